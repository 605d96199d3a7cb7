"""`gptflow verify` and `gptflow store`: whether the store is what it says, what is in it, and what may go."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gptmodel.progress import progress

if TYPE_CHECKING:
    from gptmodel.errors import TrackingError
    from gptmodel.store.artifacts import Artifact, Store
    from gptmodel.upkeep.collection import Item, Plan
    from gptmodel.upkeep.sweeping import Swept
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
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
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
    end = f"{len(report.differences):,} differences" if report.differences else "all as recorded"
    size = _size(report.bytes)
    click.echo(f"{end}; {report.files:,} files, {size} in {report.seconds:.1f} s ({speed:.2f} GB/s)")


@click.group()
def store() -> None:
    """What is in the store, how large it is, and what may go."""


@store.command()
@click.option("--mlflow/--no-mlflow", default=True, help="Ask MLflow which models are registered.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def ls(mlflow: bool, as_json: bool) -> None:
    """List the artifacts: what each is, its size, when it was last used, and what keeps it."""
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.holdings import holdings

    there = open_store()
    found = list(holdings(there, _registered(there) if mlflow else {}))
    if as_json:
        click.echo(json.dumps({"artifacts": [asdict(each) for each in found]}, ensure_ascii=False))
        return
    for each in found:
        kept = f"  [{each.kept_by}]" if each.kept_by else ""
        click.echo(f"{each.label:32} {_size(each.bytes):>9}  {_when(each.used)}  {each.about}{kept}")
    if not found:
        click.echo(f"nothing in {there.root}")


@store.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def du(as_json: bool) -> None:
    """Say where the bytes are: by kind, half built, fetched, logged. Shared: that several models were made from."""
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.holdings import usage

    there = open_store()
    found = usage(there)
    total = sum(share.bytes for share in found)
    if as_json:
        click.echo(json.dumps({"store": str(there.root), "bytes": total, "shares": [asdict(s) for s in found]}))
        return
    for share in found:
        shared = f"  shared {_size(share.shared_bytes)}" if share.shared_bytes else ""
        click.echo(f"{share.what:12} {share.count or '':>6} {_size(share.bytes):>10}{shared}")
    click.echo(f"{'all':12} {'':>6} {_size(total):>10}")


@store.command()
@click.argument("name")
@click.option("--note", default="", help="Why, for those who find it.")
def pin(name: str, note: str) -> None:
    """Keep NAME, and all that it was made from, until it is unpinned.

    NAME may also be a training that was stopped, by its run or the name that its model will have: its checkpoints stay
    then, so that it can go on.
    """
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.pins import pin as put

    there = open_store()
    label = _label_of(there, name)
    put(there, label, note)
    click.echo(f"{label} is pinned")


def _label_of(there: Store, name: str) -> str:
    """`kind/name` of an artifact of the store, or, where there is none, of the model that an unfinished run trains."""
    from gptmodel.errors import ArtifactError
    from tasks.tracking.naming import find_artifact
    from tasks.trainings import building_of

    name = name.replace("/.building-", "/")  # as `gptflow store gc` shows it
    try:
        artifact: Artifact = find_artifact(there, name)
    except ArtifactError:
        if not (building := building_of(there, name)):
            raise
        return building
    if artifact.path.parent.parent.resolve() != there.root.resolve():
        raise ArtifactError(f"{artifact.path} is not in {there.root}; only what is in the store can be pinned")
    return artifact.label


@store.command()
@click.argument("name")
def unpin(name: str) -> None:
    """Take the pin of NAME away."""
    from gptmodel.errors import ArtifactError
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.pins import pins
    from gptmodel.upkeep.pins import unpin as take
    from tasks.tracking.naming import find_place
    from tasks.trainings import building_of

    there = open_store()
    label = name.replace("/.building-", "/")
    pinned = pins(there)
    if label not in pinned:
        try:
            path = find_place(there, label)
            label = f"{path.parent.name}/{path.name}"
        except ArtifactError:
            if not (building := building_of(there, label)):
                raise
            label = building
    take(there, label)
    click.echo(f"{label} is pinned no more")


@store.command()
@click.option("--keep-days", type=click.FloatRange(min=0), default=7.0, show_default=True, help="Keep what is younger.")
@click.option("--keep-newest", type=click.IntRange(min=0), default=1, show_default=True, help="Keep so many models.")
@click.option("--pins-only", is_flag=True, help="Do not ask MLflow: registered models are not kept then.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def gc(keep_days: float, keep_newest: int, pins_only: bool, yes: bool, as_json: bool) -> None:
    """Show what nobody wants any more, and delete it after a yes.

    Kept are registered models, pinned artifacts, what was made or reused lately, what a run is using, all that these
    these were made from, and the evaluations of kept models. A training that was stopped goes only when it is older
    than --keep-days, not pinned, and its run is not unfinished in MLflow (delete the run there to let it go). Temporary
    stores that killed reproductions left go when they are older than --keep-days, and so do patches, package lists and
    lineage events of which nothing is left in the store; events that are still to be sent stay.
    """
    from gptmodel.store.artifacts import open_store
    from gptmodel.upkeep.collection import Rules, plan
    from gptmodel.upkeep.sweeping import sweep
    from tasks.lineage.outbox import configured

    there, rules = open_store(), Rules(keep_days, keep_newest, events_to_send=configured())
    found = plan(there, rules, {} if pins_only else _wanted(there))
    if not as_json:
        _show_plan(found)
    go = bool(found.doomed) and (yes or _asked(as_json=as_json))
    # Asked again: a model may have been registered while the table was read.
    swept = sweep(there, found.doomed, rules, {} if pins_only else _wanted(there)) if go else None
    _show_swept(found, swept, as_json=as_json)


def _wanted(there: Store) -> dict[str, str]:
    from gptmodel.errors import TrackingError
    from tasks.tracking.keeping import wanted_by_mlflow

    try:
        return wanted_by_mlflow(there)
    except TrackingError as error:
        raise TrackingError(
            f"{error} Else nobody can tell which models are registered; or go by pins alone: --pins-only"
        ) from None


def _registered(there: Store) -> dict[str, str]:
    from gptmodel.errors import ArtifactError, TrackingError
    from tasks.tracking.keeping import wanted_by_mlflow

    try:
        return wanted_by_mlflow(there)
    except (TrackingError, ArtifactError) as error:
        click.echo(f"which models are registered is not shown: {error}", err=True)
        return {}


def _asked(*, as_json: bool) -> bool:
    if as_json or not sys.stdin.isatty():
        return False
    return click.confirm("Delete these?")


def _show_plan(found: Plan) -> None:
    for item in found.doomed:
        click.echo(f"{item.what:10} {item.label:48} {_size(item.bytes):>10}  {_when(item.used)}")
    total = sum(item.bytes for item in found.doomed)
    click.echo(f"{len(found.doomed):,} to delete, {_size(total)}; {len(found.kept):,} kept")


def _show_swept(found: Plan, swept: Swept | None, *, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {
            "doomed": [_plain(item) for item in found.doomed],
            "kept": found.kept,
            "deleted": [_plain(item) for item in swept.gone] if swept else [],
            "spared": [{**_plain(item), "why": why} for item, why in swept.spared] if swept else [],
            "freed_bytes": swept.bytes if swept else 0,
        }
        click.echo(json.dumps(told, ensure_ascii=False))
    elif swept is None:
        click.echo("nothing was deleted" + ("; add --yes to delete these" if found.doomed else ""))
    else:
        for item, why in swept.spared:
            click.echo(f"kept after all: {item.label} ({why})")
        click.echo(f"{len(swept.gone):,} deleted, {_size(swept.bytes)} freed")


def _plain(item: Item) -> dict[str, Any]:
    return {"what": item.what, "label": item.label, "bytes": item.bytes, "used": item.used}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-" * 16


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.2f} {unit}"
    return f"{n_bytes / 1e3:,.1f} kB"
