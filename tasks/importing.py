"""Weights from outside in, a weights artifact out."""

from __future__ import annotations

import re
from pathlib import Path

from prefect import task

from gptmodel.artifacts import MANIFEST, Artifact, find_model, open_store
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tracking import bounded, weights_run


@task(name="import-weights", task_run_name="import {source}", **STEP)
def import_pretrained(source: str, revision: str = "", name: str = "", wait: bool = False) -> Artifact:
    """Import GPT-2 weights from a Hugging Face repo id or directory, or take a model that the store already has."""
    from gptmodel.pretrained import import_weights
    from tasks.recording import record_model

    store = open_store()
    if re.fullmatch(r"(checkpoint|weights)/[0-9a-f]{4,64}", source) or (Path(source) / MANIFEST).exists():
        return find_model(store, source)
    artifact, reused = import_weights(store, source, revision=revision, wait=wait)
    with bounded("the weights"):
        registered = name or source.rstrip("/").rsplit("/", 1)[-1]
        record_model(weights_run(artifact, registered), artifact, [], None, registered)
    return report(artifact, reused, figures_of(artifact, "source", "revision", "n_params", "dtype"))
