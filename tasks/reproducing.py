"""A model made again and compared; the verdict in the pages and on its MLflow run."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from gptmodel.errors import ArtifactError
from gptmodel.lineage.differences import Change
from gptmodel.reproduction.chain import plan_reproduction
from gptmodel.reproduction.rebuilding import reproduce_apart
from gptmodel.reproduction.repeating import Wishes
from gptmodel.reproduction.sides import mlflow_run_of
from gptmodel.reproduction.verdicts import Verdict
from gptmodel.store.artifacts import Artifact, Store, find_model, open_store
from tasks.pages import shown
from tasks.policy import STEP
from tasks.tracking.naming import find_artifact

log = logging.getLogger(__name__)
_MARKS = {True: "✓ equal", False: "≠ differs", None: "–"}


@task(name="reproduce", task_run_name="reproduce {model}", **STEP)
def reproduce_model(model: str = "", steps: int = 0, threads: int = 0, cached: bool = False) -> dict[str, Any]:
    """Make a model again in a temporary store. ArtifactError if it comes out otherwise."""
    store, logger = open_store(), get_run_logger()
    artifact = find_artifact(store, model) if model else find_model(store)
    store = Store(artifact.path.resolve().parent.parent)  # a path may lead into another one
    plan = plan_reproduction(store, artifact, Wishes(steps=steps, threads=threads))
    logger.info("%d artifacts; it took %.0f s then", len(plan.nodes), plan.seconds)
    for note in plan.notes:
        logger.warning("%s", note)
    with shown():
        verdict, _ = reproduce_apart(plan, cached=cached, say=logger.info)
    _show(verdict)
    note_verdict(store, artifact, verdict)
    if not verdict.equal:
        raise ArtifactError(verdict.words)
    return asdict(verdict)


def note_verdict(store: Store, artifact: Artifact, verdict: Verdict) -> None:
    """Tags on the MLflow run of the original, if this store told MLflow of one. A dead server fails nothing."""
    from tasks.tracking.runs import set_tags
    from tasks.tracking.syncing import settle

    if not (run_id := mlflow_run_of(store, artifact.fingerprint)):
        return
    tags = {
        "gptflow.reproduced": "equal" if verdict.equal else "differs",
        "gptflow.reproduced_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gptflow.reproduced_steps": f"{verdict.steps} of {verdict.of_steps}",
    }
    settle(lambda: set_tags(run_id, tags), "the verdict")


def _show(verdict: Verdict) -> None:
    try:
        said = "Reproduced" if verdict.equal else "Not reproduced"
        create_markdown_artifact(_words(verdict, said), key="reproduction", description=said)
    except Exception as error:  # the pages are for people; the verdict stands without them
        log.warning("not shown in the Prefect pages: %s", error)


def _words(verdict: Verdict, title: str) -> str:
    nodes = "\n".join(
        f"| {node.name} | {_MARKS[node.equal]} | `{node.recorded_digest[:12]}` | `{node.digest[:12]}` | "
        f"{'; '.join(part for part in (', '.join(node.files), node.said) if part)} |"
        for node in verdict.nodes
    )
    return (
        f"# {title}: {verdict.artifact}\n\n{verdict.words}\n\n"
        f"| node | | recorded | now | |\n|---|---|---|---|---|\n{nodes}\n\n"
        + _table("Code", verdict.code)
        + _table("Environment", verdict.environment)
        + "".join(f"- {note}\n" for note in verdict.notes)
    )


def _table(title: str, found: list[Change]) -> str:
    if not found:
        return ""
    rows = "".join(f"| {c.name} | {_cell(c.a)} | {_cell(c.b)} |\n" for c in found)
    return f"## {title}\n\n| | recorded | now |\n|---|---|---|\n{rows}\n"


def _cell(value: Any) -> str:
    text = " ".join(str("–" if value is None else value).split()).replace("|", "\\|")
    return text if len(text) <= 80 else f"{text[:80]}…"
