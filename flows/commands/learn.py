"""`gptflow tokens`, `next` and `loss`: a model's work one step at a time, in numbers that can be done by hand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.options import UTF8, Number, given_text, given_texts, json_option
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS

if TYPE_CHECKING:
    from gptmodel.model import GPT

Command = Callable[..., Any]


def model_options(command: Command) -> Command:
    """--model and --untrained, for `the_model`."""
    for option in (
        click.option(
            "--untrained",
            metavar="PRESET",
            default="",
            help=f"The random weights that the training of this preset begins with; one of {', '.join(PRESETS)}.",
        ),
        click.option(
            "--model",
            default="",
            help="Checkpoint, weights, or registered version, as smoke/1 or smoke@champion; left out, the newest.",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """The settings that decide which token comes next, as arguments of DecodingConfig; None where not given."""
    for option in (
        click.option(
            "--repetition-penalty", type=Number(), help="Above 1: tokens that came before are less likely; 1: none."
        ),
        click.option(
            "--min-p", type=Number(), help="Keep tokens at least this share as likely as the likeliest; 0: all."
        ),
        click.option("--top-p", type=Number(), help="Keep the most likely tokens whose probabilities reach p; 1: all."),
        click.option("--top-k", type=int, help="Keep only the k most likely tokens; 0: all."),
        click.option("--temperature", type=Number(), help="0 is greedy."),
    ):
        command = option(command)
    return command


def the_model(model: str, untrained: str) -> tuple[str, GPT]:
    """A name for people, and the model. ConfigError if both are asked for, or the preset is not known.

    The environment is prepared for MLflow only where it has to be asked for a name: that takes a second.
    """
    from gptmodel.errors import ArtifactError
    from gptmodel.store.artifacts import find_model, open_store
    from gptmodel.weights import load_model, untrained_model

    if model and untrained:
        raise ConfigError(f"both --model {model} and --untrained {untrained} are given; leave one out")
    if untrained:
        from gptmodel.settings import preset_config

        return f"{untrained} before training", untrained_model(preset_config(untrained)).eval()
    try:
        artifact = find_model(open_store(), model)
    except ArtifactError:
        if not re.search(r".[/@].", model):
            raise
        from tasks.operations.servers import environment
        from tasks.tracking.naming import named_model

        os.environ.update({**environment(), **os.environ})
        artifact = named_model(open_store(), model)
    return artifact.label, load_model(artifact).eval()


@click.command()
@click.argument("text", required=False, default="-", type=UTF8)
@click.option(
    "--ids", default="", type=UTF8, metavar="'ID ID …'", help="The other way round: the text that these tokens spell."
)
@json_option
def tokens(text: str, ids: str, as_json: bool) -> None:
    """Cut TEXT into GPT-2's tokens, each with its id. Spaces are shown as ␣.

    Without TEXT, or with -, standard input is read, less one line end at its end.
    """
    from gptmodel.judging.pieces import label_of
    from gptmodel.tokenizer import gpt2

    if ids and text != "-":
        raise ConfigError("give TEXT or --ids, not both")
    found = _parsed(ids) if ids else gpt2().encode(given_text(text)).tolist()
    said = gpt2().decode(found)
    if as_json:
        click.echo(json.dumps({"text": said, "ids": found}, ensure_ascii=False))
    elif ids:
        click.echo(said)
    else:
        table = Table("id", "token", box=None)
        table.columns[0].justify = "right"
        for token in found:
            table.add_row(str(token), escape(label_of(token)))
        _console().print(table)
        click.echo(f"{len(found):,} token{'' if len(found) == 1 else 's'}, {len(said.encode()):,} bytes")


@click.command("next")
@click.argument("text", required=False, default="-", type=UTF8)
@model_options
@sampling_options
@click.option("--show", type=click.IntRange(min=1), default=5, show_default=True, help="How many tokens.")
@json_option
def next_(text: str, model: str, untrained: str, show: int, as_json: bool, **sampling: Any) -> None:
    """What could come after TEXT: the likeliest tokens, with logit and probability.

    With --temperature, --top-k and so on also with which probability each would be drawn. Without TEXT, or with -,
    standard input is read, less one line end at its end.
    """
    from gptmodel.config import DecodingConfig
    from gptmodel.judging.by_hand import next_choices
    from gptmodel.judging.pieces import label_of
    from gptmodel.settings import parse_config

    asked = {name: value for name, value in sampling.items() if value is not None}
    decoding = parse_config(asked, DecodingConfig)
    said = given_text(text)
    label, gpt = the_model(model, untrained)
    found, kept = next_choices(gpt, said, decoding)
    if as_json:
        rows = [{**asdict(choice), "text": label_of(choice.token)} for choice in found[:show]]
        click.echo(json.dumps({"model": label, "of": len(found), "may_be_drawn": kept, "choices": rows}))
        return
    table = Table("id", "token", "logit", "probability", *(["drawn with"] if asked else []), box=None)
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for choice in found[:show]:
        drawn = [f"{choice.drawn_with:.4f}" if choice.drawn_with else "-"] if asked else []
        figures = (f"{choice.logit:.4f}", f"{choice.probability:.4g}", *drawn)
        table.add_row(str(choice.token), escape(label_of(choice.token)), *figures)
    _console().print(table)
    sums = sum(choice.probability for choice in found[:show])
    may = f"; {kept:,} of them may be drawn" if asked else ""
    click.echo(f"{label}: these {min(show, len(found)):,} of {len(found):,} tokens share {sums:.4g}{may}")


@click.command()
@click.argument("text", nargs=-1, type=UTF8)
@model_options
@json_option
def loss(text: tuple[str, ...], model: str, untrained: str, as_json: bool) -> None:
    """How wrong a model is on each TEXT, token by token, and on all of them together.

    The first token of a text is read only; each other one is the target of those before it. `gptflow surprise` makes a
    page of a longer text. Without TEXT, or with -, standard input is read, less one line end at its end.
    """
    from gptmodel.judging.by_hand import loss_of
    from gptmodel.judging.pieces import label_of

    texts = given_texts(text)
    label, gpt = the_model(model, untrained)
    found = loss_of(gpt, texts)
    figures = {"mean_log_probability": found.mean_log_probability, "loss": found.loss, "perplexity": found.perplexity}
    if as_json:
        told = [[{**asdict(each), "probability": each.probability} for each in row] for row in found.predictions]
        click.echo(json.dumps({"model": label, **figures, "predictions": told}))
        return
    table = Table("after", "target", "id", "probability", "ln p", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in found.predictions:
        for each in row:
            words = (escape(label_of(each.after)), escape(label_of(each.target)), str(each.target))
            table.add_row(*words, f"{each.probability:.4e}", f"{each.log_probability:.4f}")
    _console().print(table)
    click.echo(
        f"{label}: mean of ln p {found.mean_log_probability:.4f}, loss {found.loss:.4f}, "
        f"perplexity {found.perplexity:,.1f}"
    )


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _parsed(ids: str) -> list[int]:
    words = ids.replace(",", " ").strip(" []").split()
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)]:
        raise ConfigError(
            f"--ids has {wrong[0][:20]!r}, which is no token id; give whole numbers, such as '16833 3626 6100'"
        )
    return [int(word) for word in words]
