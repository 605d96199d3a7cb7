"""What the tasks share: the store, and how a step reports itself."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from gptmodel.store.artifacts import Artifact
from tasks.holding import hold
from tasks.lineage.events import note_reused
from tasks.lineage.pages import show_lineage
from tasks.pages import show_artifact


def report(artifact: Artifact, reused: bool, figures: dict[str, Any]) -> Artifact:
    """Say in log and pages what came out, and whether it was already there; it stays until the flow ends."""
    hold(artifact)
    how = "already there, reused" if reused else "done"
    get_run_logger().info("%s: %s", artifact.label, how)
    show_artifact(artifact, reused, figures)
    show_lineage(artifact)
    note_reused(reused)
    return artifact


def figures_of(artifact: Artifact, *names: str) -> dict[str, Any]:
    """The named summary figures, in words."""
    return {name.replace("_", " "): artifact.summary[name] for name in names if name in artifact.summary}
