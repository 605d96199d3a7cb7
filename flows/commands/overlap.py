"""`gptflow overlap`: from which training documents a text comes."""

from __future__ import annotations

import json
from typing import Any

import click

from flows.commands.options import UTF8, check_option, given_text, json_option, list_option
from gptmodel.errors import ConfigError

Report = dict[str, Any]


@click.command()
@click.argument("text", required=False, default="-", type=UTF8)
@click.option("--model", default="", help="Whose training text to search; left out, the newest checkpoint's.")
@click.option("--shards", default="", help="Search the training split of these shards, whoever trained on them.")
@click.option(
    "--at-least", type=click.IntRange(min=1), default=30, show_default=True, help="Characters of a passage to be told."
)
@check_option
@list_option(10, "Passages, and documents of each, that are")
@json_option
def overlap(text: str, model: str, shards: str, at_least: int, check: bool | None, limit: int, as_json: bool) -> None:
    """From which training documents TEXT comes: its passages that stand there word for word.

    All passages that are long enough and cannot be made longer are found, to the byte; case and spaces count. For the
    steps that trained on a document, see `gptflow trace --document ID`. Without TEXT, or with -, standard input is
    read, less one line end at its end.
    """
    if model and shards:
        raise ConfigError("give --model or --shards, not both")
    from gptmodel.judging.origins import origin_report
    from gptmodel.store.artifacts import open_store
    from tasks.trainings import find_training

    written = given_text(text)
    store = open_store()
    training = None if shards else find_training(store, model)
    searched = store.resolve(shards, "shards") if training is None else training.shards
    report = origin_report(store, searched, written, at_least, limit=limit, check=check)
    report = {"model": training.label if training else "", **report}
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _show(report)
        if training is not None and training.init is not None:
            first = f"{training.init.kind}/{training.init.fingerprint[:16]}"
            click.echo(f"\nNote: it began with the weights of {first}, and what those saw was not searched")


def _show(report: Report) -> None:
    whose = f"{report['model']}, trained on " if report["model"] else ""
    click.echo(f"{whose}{report['shards']}: {report['train_tokens']:,} training tokens")
    if not report["checked"]:
        click.echo("Note: the shards are large and their hashes were not looked at; --check does, or gptflow verify")
    if report["passages_found"]:
        _show_passages(report)
    elif longest := report["longest"]["text"]:
        found = report["longest"]
        click.echo(f"No passage of {report['at_least']} characters or more. The longest has {found['characters']}:")
        click.echo(f"  {longest!r}  in {_named(found['document'])}")
    else:
        click.echo("Nothing of the text stands there.")


def _show_passages(report: Report) -> None:
    share = report["covered_characters"] / report["characters"]
    click.echo(
        f"{share:.0%} of the text's {report['characters']:,} characters stand there, in passages of "
        f"{report['at_least']} or more"
    )
    for passage in report["passages"]:
        size = f"{passage['characters']:,} characters ({passage['tokens']:,} tokens)"
        click.echo(f"\n{size} from character {passage['start']:,} on:")
        click.echo(f"  {passage['text']!r}")
        for document in passage["documents"]:
            click.echo(f"  in {_named(document)}")
        _say_more(len(passage["documents"]), passage["documents_found"], "documents", "  ")
    _say_more(len(report["passages"]), report["passages_found"], "passages", "\n")


def _named(document: Report) -> str:
    return f"{document['id']} ({document['source']})" if document["source"] else document["id"]


def _say_more(listed: int, found: int, what: str, before: str) -> None:
    if listed < found:
        click.echo(f"{before}… and {found - listed:,} more {what}; --limit 0 lists all")
