"""Weights from outside in, a weights artifact out."""

from __future__ import annotations

from prefect import task

from gptmodel.artifacts import Artifact
from gptmodel.errors import ArtifactError
from tasks.policy import STEP
from tasks.steps import figures_of, open_store, report
from tasks.tracking import bounded, weights_run


@task(name="import-weights", task_run_name="import {source}", **STEP)
def import_pretrained(source: str, revision: str = "", name: str = "", wait: bool = False) -> Artifact:
    """Import GPT-2 weights from a Hugging Face repo id or directory, or take a model that the store already has."""
    from gptmodel.pretrained import import_weights
    from tasks.recording import record_model

    store = open_store()
    try:
        return store.resolve(source)
    except ArtifactError:
        pass  # not of the store: a directory or a repo id
    artifact, reused = import_weights(store, source, revision=revision, wait=wait)
    with bounded("the weights"):
        registered = name or source.rstrip("/").rsplit("/", 1)[-1]
        record_model(weights_run(artifact, registered), artifact, [], None, registered)
    return report(artifact, reused, figures_of(artifact, "source", "revision", "n_params", "dtype"))


def find_model(name: str) -> Artifact:
    """The named checkpoint or weights of the store; without a name the checkpoint that was finished last."""
    store = open_store()
    if name:
        found = store.resolve(name)
        if found.kind not in ("checkpoint", "weights"):
            raise ArtifactError(f"{found.label} is no model; give a checkpoint or weights")
        return found
    checkpoints = [a for a in store.artifacts() if a.kind == "checkpoint"]
    if not checkpoints:
        raise ArtifactError(f"no checkpoint in {store.root}; train one with `gptflow run`, or name a model")
    return max(checkpoints, key=lambda a: str(a.provenance["finished"]))
