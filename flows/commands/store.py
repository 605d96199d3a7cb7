"""`gptflow store`: what is in the store, and what may go."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import UTF8, Number, json_option
from gptmodel.words import size

if TYPE_CHECKING:
    from gptmodel.store.artifacts import Artifact, Store
    from gptmodel.upkeep.collection import Item, Plan
    from gptmodel.upkeep.sweeping import Swept


@click.group()
def store() -> None:
    """What is in the store, how large it is, and what may go."""


@store.command()
@click.option("--mlflow/--no-mlflow", default=True, help="Ask MLflow which models are registered.")
@json_option
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
        click.echo(f"{each.label:32} {size(each.bytes):>9}  {_when(each.used)}  {each.about}{kept}")
    if not found:
        click.echo(f"nothing in {there.root}")


@store.command()
@json_option
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
    width = max([12, *(len(share.what) for share in found)])
    for share in found:
        shared = f"  shared {size(share.shared_bytes)}" if share.shared_bytes else ""
        click.echo(f"{share.what:{width}} {share.count or '':>6} {size(share.bytes):>10}{shared}")
    click.echo(f"{'all':{width}} {'':>6} {size(total):>10}")


@store.command()
@click.argument("name")
@click.option("--note", default="", type=UTF8, help="Why, for those who find it.")
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
@click.option("--keep-days", type=Number(least=0), default=7.0, show_default=True, help="Keep what is younger.")
@click.option("--keep-newest", type=click.IntRange(min=0), default=1, show_default=True, help="Keep so many models.")
@click.option("--pins-only", is_flag=True, help="Do not ask MLflow: registered models are not kept then.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def gc(keep_days: float, keep_newest: int, pins_only: bool, yes: bool, as_json: bool) -> None:
    """Show what nobody wants any more, and delete it after a yes.

    Kept are registered models, pinned artifacts, what was made or reused lately, what a run is using, all that
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
        click.echo(f"{item.what:10} {item.label:48} {size(item.bytes):>10}  {_when(item.used)}")
    total = sum(item.bytes for item in found.doomed)
    click.echo(f"{len(found.doomed):,} to delete, {size(total)}; {len(found.kept):,} kept")


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
        click.echo(f"{len(swept.gone):,} deleted, {size(swept.bytes)} freed")


def _plain(item: Item) -> dict[str, Any]:
    return {"what": item.what, "label": item.label, "bytes": item.bytes, "used": item.used}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-" * 16
