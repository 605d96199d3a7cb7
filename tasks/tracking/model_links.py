"""What binds a model in MLflow to the data and the code that made it: tags to search by, figures tied to datasets, and
the patch of the code if it was not committed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import LoggedModel, Metric, Run

from gptmodel.store.artifacts import Artifact
from gptmodel.store.provenance import stored_patch
from tasks.tracking.cards import datasets_of, model_tags
from tasks.tracking.runs import client, set_tags

log = logging.getLogger(__name__)
PATCH_FILE = "lineage/code.patch"
_FIGURES = {"train": "train_loss", "validation": "best_validation_loss"}


def link_model(run: Run, logged: LoggedModel, registered: str, model: Artifact, chain: Sequence[Artifact]) -> None:
    """Tag run, model and version `name/number`, tie the model's losses to its datasets, and log the patch.

    Done twice it leaves what it leaves once. `chain` is what the model was made from.
    """
    run_id, tags = run.info.run_id, model_tags(model, chain)
    own = {name: value for name, value in tags.items() if name.startswith("gptflow.")}
    set_tags(run_id, tags)
    client().set_logged_model_tags(logged.model_id, own)
    if registered:
        name, number = registered.rsplit("/", 1)
        known = client().get_model_version(name, number).tags
        for key, value in own.items():
            if known.get(key) != value:
                client().set_model_version_tag(name, number, key, value)
    _tie_to_data(run_id, logged.model_id, model, chain)
    _record_patch(run_id, model)


def _tie_to_data(run_id: str, model_id: str, model: Artifact, chain: Sequence[Artifact]) -> None:
    """The model's own losses as MLflow shows them on its page: each with the dataset that it was measured on."""
    finished = int(datetime.fromisoformat(model.provenance["finished"]).timestamp() * 1_000)
    metrics = [
        Metric(
            f"model/{figure}",
            float(model.summary[figure]),
            finished,
            int(model.summary["step"]),
            model_id=model_id,
            dataset_name=dataset["name"],
            dataset_digest=dataset["digest"],
            run_id=run_id,
        )
        for dataset in datasets_of(model, chain)
        if (figure := _FIGURES[dataset["context"]]) in model.summary
    ]
    there = {metric.key for metric in client().get_logged_model(model_id).metrics or []}
    if missing := [metric for metric in metrics if metric.key not in there]:
        client().log_batch(run_id, metrics=missing)


def _record_patch(run_id: str, model: Artifact) -> None:
    patch = stored_patch(model.path.parents[1], model.provenance)
    if patch is None:
        if model.provenance.get("git_dirty"):
            log.warning("%s was made by code that was not committed, and its store has no patch of it", model.label)
        return
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / Path(PATCH_FILE).name
        file.write_bytes(patch)
        client().log_artifact(run_id, str(file), str(Path(PATCH_FILE).parent))
