"""Weights from outside in, a weights artifact out."""

from __future__ import annotations

import re
from pathlib import Path

from prefect import task

from gptmodel.artifacts import MANIFEST, Artifact, find_model, open_store
from gptmodel.pretraining import run_dir_of
from tasks.cards import model_card, save_card
from tasks.policy import STEP
from tasks.steps import figures_of, report


@task(name="import-weights", task_run_name="import {source}", **STEP)
def import_pretrained(source: str, revision: str = "", name: str = "", wait: bool = False) -> Artifact:
    """Import GPT-2 weights from a Hugging Face repo id or directory, or take a model that the store already has."""
    from gptmodel.pretrained import import_weights
    from tasks.syncing import settle, size_of, sync_run

    store = open_store()
    if re.fullmatch(r"(checkpoint|weights)/[0-9a-f]{4,64}", source) or (Path(source) / MANIFEST).exists():
        return find_model(store, source)
    artifact, reused = import_weights(store, source, revision=revision, wait=wait)
    registered = name or source.rstrip("/").rsplit("/", 1)[-1]
    run_dir = run_dir_of(store, artifact.fingerprint)
    save_card(run_dir, model_card(artifact, registered), anew=False)
    settle(lambda: sync_run(store, run_dir), artifact.label, size_of(artifact))
    return report(artifact, reused, figures_of(artifact, "source", "revision", "n_params", "dtype"))
