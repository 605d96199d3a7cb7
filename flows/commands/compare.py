"""`gptflow reproduce` and `gptflow diff`: make a model again and compare; compare two that are there."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gptmodel.reproduction.chain import Plan
    from gptmodel.reproduction.sides import Side
    from gptmodel.reproduction.verdicts import Verdict
    from gptmodel.store.artifacts import Artifact, Store


@click.command()
@click.argument("name")
@click.option("--steps", type=int, default=0, help="Only the first steps, of the whole schedule; 0 is all.")
@click.option("--store", "where", type=click.Path(path_type=Path), help="Make it in this empty directory, and keep it.")
@click.option("--keep", is_flag=True, help="Keep the temporary store.")
@click.option("--cached", is_flag=True, help="Take downloads from the store instead of fetching them again.")
@click.option("--threads", type=int, default=0, help="CPU threads; left out, as many as were recorded.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Left out, the recorded one.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
def reproduce(
    name: str,
    steps: int,
    where: Path | None,
    keep: bool,
    cached: bool,
    threads: int,
    precision: str | None,
    as_json: bool,
) -> None:
    """Make NAME again from its recorded settings in a fresh store, and compare byte by byte.

    NAME is a checkpoint of the store, an MLflow run or a registered version. Exit code 0: the same; 1: it differs.
    """
    from flows.commands.compare_text import show_cost, show_verdict
    from gptmodel.reproduction.chain import plan_reproduction
    from gptmodel.reproduction.freshstore import ROOM
    from gptmodel.reproduction.rebuilding import reproduce_apart
    from gptmodel.reproduction.repeating import Wishes
    from gptmodel.store.artifacts import open_store

    wishes = Wishes(steps=steps, threads=threads, precision=precision or "")
    store = open_store()
    artifact = _published(store, name)
    plan = plan_reproduction(_store_of(artifact), artifact, wishes)
    show_cost(plan)
    left = "the temporary store is removed"
    if where:
        left = "what was made is kept; give the same --store to go on"
    elif keep:
        left = f"what was made is kept in {plan.store.root / ROOM}; another call makes it all again"
    verdict, kept = _uninterrupted(lambda: reproduce_apart(plan, where, keep=keep, cached=cached, say=_say), left)
    _tell_mlflow(plan, verdict)
    if as_json:
        told = {**asdict(verdict), "verdict": verdict.words, "store": str(kept) if kept else None}
        click.echo(json.dumps(told, ensure_ascii=False, default=str))
    else:
        show_verdict(verdict, kept)
    if not verdict.equal:
        raise SystemExit(1)


def _published(store: Store, name: str) -> Artifact:
    from gptmodel.errors import ArtifactError
    from gptmodel.reproduction.sides import unfinished_run
    from tasks.tracking.naming import find_artifact

    try:
        return find_artifact(store, name)
    except ArtifactError:
        if (run_dir := unfinished_run(store, name)) is None:
            raise
        raise ArtifactError(
            f"run {run_dir.name} has published no model to compare with; finish it first, or show one of its steps "
            f"again with `python -m gptmodel.pretraining.replay {shlex.quote(str(run_dir / 'job.json'))} --step N`"
        ) from None


def _say(line: str) -> None:
    click.echo(line, err=True)


def _store_of(artifact: Artifact) -> Store:
    """The store that it lies in, with its inputs: a path may lead into another one than the usual."""
    from gptmodel.store.artifacts import Store

    return Store(artifact.path.resolve().parent.parent)


def _uninterrupted(work: Callable[[], Any], left: str) -> Any:
    """The result of the work; a signal is told with what became of the store (`left`)."""
    from gptmodel.errors import Interrupted

    try:
        return work()
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {left}", signal.SIGINT) from None
    except SystemExit as end:
        if end.code != 128 + signal.SIGTERM:
            raise
        raise Interrupted(f"stopped; {left}", signal.SIGTERM) from None


def _tell_mlflow(plan: Plan, verdict: Verdict) -> None:
    """Tags on the run that this store told MLflow of; nothing is imported where there is none."""
    from gptmodel.reproduction.sides import mlflow_run_of

    artifact = plan.target.recorded
    if artifact is not None and mlflow_run_of(plan.store, artifact.fingerprint):
        from tasks.reproducing import note_verdict

        note_verdict(plan.store, artifact, verdict)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="End with 1 where they differ.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with both curves to this file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print all that differs as one JSON object.")
def diff(a: str, b: str, exit_code: bool, html: Path | None, as_json: bool) -> None:
    """Compare A and B: two models, runs, corpora or shards. Documents, settings, code, environment, figures, curves.

    Names are those of the store, MLflow runs or registered versions.
    """
    from flows.commands.compare_text import as_json_text, show_comparison
    from gptmodel.reproduction.comparing import compare
    from gptmodel.store.artifacts import open_store

    store = open_store()
    sides = _side(store, a), _side(store, b)
    found = compare(*sides)
    if html is not None:
        from flows.commands.compare_page import page_of
        from gptmodel.pages.frame import write_page

        write_page(html, page_of(found, *sides))
    if as_json:
        click.echo(as_json_text(found))
    else:
        show_comparison(found, *sides)
    if exit_code and not found.same:
        raise SystemExit(1)


def _side(store: Store, name: str) -> Side:
    from gptmodel.errors import ArtifactError, TrackingError
    from gptmodel.reproduction.sides import side_of, side_of_run, unfinished_run
    from tasks.tracking.naming import find_artifact

    try:
        artifact = find_artifact(store, name)
        return side_of(_store_of(artifact), artifact)
    except (ArtifactError, TrackingError):
        if (run_dir := unfinished_run(store, name)) is None:
            raise
        return side_of_run(store, run_dir, name)
