"""`gptflow trace`: which steps trained on a document, and which documents a step held."""

from __future__ import annotations

import json
from typing import Any

import click

from flows.commands.options import UTF8, check_option, json_option, list_option
from gptmodel.errors import ConfigError

Report = dict[str, Any]


@click.command()
@click.argument("model", required=False, default="")
@click.option(
    "--document",
    default="",
    type=UTF8,
    metavar="ID",
    help="An id, its beginning, or a source such as 1916-Wilson-1.txt.",
)
@click.option("--containing", default="", type=UTF8, metavar="TEXT", help="All documents in which this text stands.")
@click.option("--step", type=int, help="The documents of this step, row by row; steps count from 1.")
@click.option("--ignore-case", is_flag=True, help="With --containing: large and small letters are the same.")
@click.option("--through-init", is_flag=True, help="Also the trainings that its first weights come from.")
@check_option
@list_option(20, "Rows")
@json_option
def trace(
    model: str,
    document: str,
    containing: str,
    step: int | None,
    ignore_case: bool,
    through_init: bool,
    check: bool | None,
    limit: int,
    as_json: bool,
) -> None:
    """Which steps trained on a document, or which documents a step held.

    MODEL is a checkpoint, an MLflow run id, a registered version, or a run that goes on; left out, the newest
    checkpoint. It is worked out from the order of the data, for this training and not for those before it.
    """
    if sum([bool(document), bool(containing), step is not None]) != 1:
        raise ConfigError("give one of --document, --containing and --step")
    if ignore_case and not containing:
        raise ConfigError("--ignore-case goes with --containing only; leave it out")
    from gptmodel.store.artifacts import open_store
    from gptmodel.tracing.report import Asked, trace
    from tasks.trainings import find_training

    if step is not None and step < 1:
        raise ConfigError(f"--step is {step}; steps count from 1")
    store = open_store()
    asked = Asked(document, containing, step or 0, ignore_case, limit, check)
    report = trace(store, find_training(store, model), asked, through_init=through_init)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    _show(report)
    for earlier in report.get("earlier", ()):
        click.echo("")
        _show(earlier)


def _show(report: Report) -> None:
    training = report["training"]
    click.echo(training["label"] + _extent(training))
    if "step" in report:
        _show_step(report)
    else:
        _show_documents(report)
    for note in report["notes"]:
        click.echo(f"Note: {note}")


def _extent(training: Report) -> str:
    if "steps" not in training:
        return ""
    return (
        f": {training['steps']:,} steps of {training['batch_size']} rows, {training['epochs']:.2f} epochs of "
        f"{training['windows']:,} windows of {training['context_length']:,} tokens ({training['shards']})"
    )


def _show_documents(report: Report) -> None:
    found, listed = report["documents_found"], report["documents"]
    if not found:
        click.echo("No document of its corpus has it.")
        return
    if found > 1:
        shown = f"; {len(listed)} are listed" if len(listed) < found else ""
        click.echo(
            f"{found:,} documents, {report['train_documents']:,} of them to train on, "
            f"in {report['steps']:,} steps{shown}"
        )
    for document in listed:
        _show_document(document)
    steps = [row["step"] for document in listed for row in document.get("rows", ())]
    if steps and report["training"]["replay"]:
        click.echo(f"\nSee a step again:  {report['training']['replay']} {steps[0]}")


def _show_document(document: Report) -> None:
    name = f" ({document['source']})" if document["source"] else ""
    click.echo(f"\nDocument {document['id']}{name}, {document['split']}, {document['tokens']:,} tokens")
    if document.get("rows"):
        _print_table(
            ("epoch", "step", "row", "tokens of the row", "of the document", "targets", ""),
            [
                (
                    *(f"{row[name]:,}" for name in ("epoch", "step", "row")),
                    *(_span(row[name]) for name in ("row_tokens", "document_tokens")),
                    f"{row['targets']:,}",
                    "left out" if row["left_out"] else "",
                )
                for row in document["rows"]
            ],
        )
        _say_more(len(document["rows"]), document["rows_found"])
    for words in document["says"]:
        click.echo(f"  {words[0].upper()}{words[1:]}.")


def _show_step(report: Report) -> None:
    left_out = "; its update is not in the weights, because of a spike" if report["left_out"] else ""
    click.echo(
        f"Step {report['step']:,}: {report['documents_found']:,} documents in {report['rows_found']} rows{left_out}"
    )
    _print_table(
        ("row", "epoch", "tokens", "of the document", "document", "source"),
        [
            (
                str(row["row"]),
                f"{row['epoch']:,}",
                _span(document["row_tokens"]),
                f"{_span(document['document_tokens'])} of {document['tokens']:,}",
                document["id"],
                document["source"],
            )
            for row in report["rows"]
            for document in row["documents"]
        ],
    )
    _say_more(len(report["rows"]), report["rows_found"])
    if report["training"]["replay"]:
        start = f"the checkpoint of step {report['replay_from']:,}" if report["replay_from"] else "the initial weights"
        click.echo(f"\nSee it again, from {start}:  {report['training']['replay']} {report['step']}")


def _say_more(listed: int, found: int) -> None:
    if listed < found:
        click.echo(f"  … and {found - listed:,} more rows; --limit 0 lists all")


def _span(span: tuple[int, int]) -> str:
    """First and last, both included."""
    return f"{span[0]:,}–{span[1] - 1:,}"


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they must be, in a pipe too: ids are there to be copied."""
    lines = [head, *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(head))]
    for line in lines:
        cells = [
            cell.ljust(width) if name in ("document", "source", "") else cell.rjust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ]
        click.echo("  " + "  ".join(cells).rstrip())
