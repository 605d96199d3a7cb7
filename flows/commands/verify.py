"""`gptflow verify`: is what the store says of an artifact, and all that it was made from, still so?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option
from gptmodel.markdown_text import counted
from gptmodel.progress import progress
from gptmodel.words import size

if TYPE_CHECKING:
    from gptmodel.errors import TrackingError
    from gptmodel.store.artifacts import Store
    from gptmodel.upkeep.verification import Difference, Report

_SHOWN = 12  # artifacts by name
_NOTHING = "nothing to compare"


@click.command()
@click.argument("name", required=False, default="")
@click.option("--all", "everything", is_flag=True, help="Look at every artifact of the store.")
@click.option("--sources/--no-sources", default=True, help="Hash the sources too, as far as they are here.")
@click.option(
    "--mlflow",
    type=click.Choice(["auto", "required", "off"]),
    default="auto",
    show_default=True,
    help="Compare with MLflow; required fails if it cannot be asked.",
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Left out, one for each processor.")
@json_option
def verify(name: str, everything: bool, sources: bool, mlflow: str, threads: int, as_json: bool) -> None:
    """Hash again all that NAME was made from, and name the first file that differs.

    NAME is a model, an evaluation or another artifact of the store, an MLflow run id, a registered version, or the
    path of an artifact, in another store too; left out, the newest checkpoint. A model's evaluations are looked at
    with it. Exit code 1 if anything differs.
    """
    from gptmodel.errors import ArtifactError, TrackingError
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.nodes import newest_checkpoint, store_around, with_evaluations, without_manifest
    from gptmodel.upkeep.verification import verify
    from tasks.tracking.naming import find_place

    if name and everything:
        raise click.UsageError(f"give {name} or --all, not both")
    store, notes = open_store(), list[str]()
    if everything:
        targets = store.directories()
        notes += without_manifest(store)
        if not targets:
            raise ArtifactError(f"nothing in {store.root} to verify; is GPTFLOW_STORE right?")
    else:
        place = find_place(store, name) if name else newest_checkpoint(store, notes)
        store = store_around(store, place)
        targets = with_evaluations(store, place)
    with progress("hashing") as meter:
        report = verify(store, targets, sources=sources, threads=threads, progress=meter)
    report.notes += notes
    state, trouble = ("not asked", None) if mlflow == "off" else _ask_mlflow(store, report)
    if mlflow == "required" and trouble is None and state == _NOTHING:
        chain = f"{report.nodes[-1]} and what it was made from" if report.nodes else store.root
        trouble = TrackingError(f"MLflow knows nothing of {chain}, so nothing was compared; see `gptflow sync`")
    failed = trouble if mlflow == "required" else None
    _tell(report, state, ok=not report.differences and failed is None, as_json=as_json)
    if failed is not None:  # last: what the files say stands above it
        raise failed
    if report.differences:
        raise SystemExit(1)


def _ask_mlflow(store: Store, report: Report) -> tuple[str, TrackingError | None]:
    """Add what MLflow holds otherwise; agrees, differs, nothing to compare, or why it was not asked, with the error."""
    from gptmodel.errors import TrackingError
    from gptmodel.upkeep.nodes import read_node
    from tasks.tracking.agreement import compare

    nodes = [read_node(store.root / label) for label in report.nodes]
    found: list[Difference] = []
    known_there: list[str] = []
    try:
        found += compare(store, nodes, report.notes, known_there)
    except TrackingError as error:
        return f"not compared: {error}", error
    finally:
        report.differences += found
    return "differs" if found else "agrees" if known_there else _NOTHING, None


def _tell(report: Report, mlflow: str, *, ok: bool, as_json: bool) -> None:
    speed = report.bytes / 1e9 / max(report.seconds, 1e-9)
    if as_json:
        found = [asdict(difference) for difference in report.differences]
        told = {
            "ok": ok,
            "first": found[0] if found else None,
            "differences": found,
            "mlflow": mlflow,
            "notes": report.notes,
            "nodes": report.nodes,
            "files": report.files,
            "bytes": report.bytes,
            "seconds": round(report.seconds, 3),
            "gigabytes_per_second": round(speed, 3),
        }
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    chain = " -> ".join(report.nodes) if len(report.nodes) <= _SHOWN else f"{len(report.nodes):,} artifacts"
    click.echo(f"looked at: {chain}")
    for note in report.notes:
        click.echo(f"note: {note}")
    click.echo(f"MLflow: {mlflow}")
    for number, difference in enumerate(report.differences):
        click.echo(f"{'also' if number else 'first difference'}: {difference}")
    end = counted(len(report.differences), "difference") if report.differences else "all as recorded"
    looked_at = size(report.bytes)
    click.echo(f"{end}; {report.files:,} files, {looked_at} in {report.seconds:.1f} s ({speed:.2f} GB/s)")
