"""The training that a person means: by its model, by its run in the store, or by its run in MLflow."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS
from gptmodel.lineage.walk import artifact_of
from gptmodel.pretraining.step import KIND, RUNS
from gptmodel.store.artifacts import Store, find_model
from gptmodel.tracing.trained import TracedTraining, find_unfinished, finished_training, unfinished_training
from gptmodel.upkeep.pins import BUILDING
from tasks.tracking.naming import find_artifact


def find_training(store: Store, name: str = "") -> TracedTraining:
    """The training of a model, a registered version, an evaluation of it, or a run that has no model yet.

    Without a name, that of the checkpoint that was finished last. Errors as in `find_artifact`; ArtifactError too for
    what is no training, or one that is not known here.
    """
    run_dir = _unfinished(store, name) if name else None
    if run_dir is not None:
        return unfinished_training(store, run_dir)
    found = find_artifact(store, name) if name else find_model(store)
    if found.kind == COMPARISON:
        found = artifact_of(store, found.request.inputs[-1])  # the challenger's evaluation
    if found.kind in JUDGEMENTS:
        made_from = {ref.kind for ref in found.request.inputs}
        found = store.input_of(found, KIND if KIND in made_from else "weights")
    return finished_training(store, found)


def building_of(store: Store, name: str) -> str:
    """`kind/name` of the model that a run trains that has none yet and can go on; empty if there is no such run."""
    run_dir = _unfinished(store, name)
    half = run_dir is not None and (store.root / KIND / f"{BUILDING}{run_dir.name}").is_dir()
    return f"{KIND}/{run_dir.name}" if half and run_dir is not None else ""


def _unfinished(store: Store, name: str) -> Path | None:
    return find_unfinished(store, _fingerprint_of_run(store, name) or name)


def _fingerprint_of_run(store: Store, run_id: str) -> str:
    """The run of this store that MLflow knows by this id; empty if there is none."""
    for journal in (store.root / RUNS).glob("*/mlflow.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(journal.read_text())["run_id"] == run_id:
                return journal.parent.name
    return ""
