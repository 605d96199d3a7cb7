"""MLflow's client, and the one run of each model artifact, found again by its fingerprint.

Nothing in this room can slow, stop or fail the work: calls are bounded in time, made in a thread that nobody waits for
longer than stated, and what could not be sent stays in the store, to be sent by the next step that looks at the same
artifact or by `gptflow sync`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Against a dead server one call would otherwise block for four minutes. No call is repeated blindly: one whose answer
# was lost may have been carried out, so the next attempt looks first.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for `--json`

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_DATASET_SOURCE_SIZE

from gptmodel.errors import first_line
from tasks.tracking.cards import Card

log = logging.getLogger(__name__)
FINGERPRINT_TAG = "gptflow.fingerprint"
COMPLETE_TAG = "gptflow.complete"
_DESCRIBED_TAG = "gptflow.described"
FAILURES = (MlflowException, OSError)
_PARAM_CHARS = 6_000
logging.getLogger("mlflow").setLevel(logging.WARNING)  # its own steps are not the user's
logging.getLogger("alembic").setLevel(logging.WARNING)


def client() -> MlflowClient:
    """A client of the server or database that MLFLOW_TRACKING_URI names."""
    return MlflowClient()


def find_run(fingerprint: str, known: str = "") -> Run | None:
    """The run with this fingerprint: the `known` one if it is still there, else the oldest."""
    mlflow = client()
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    wanted = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
    found = list(mlflow.search_runs(experiments, wanted, max_results=10, order_by=["attributes.start_time ASC"]))
    if not found:
        return None
    kept = next((run for run in found if run.info.run_id == known), found[0])
    for run in found:
        if run is not kept and not run.data.metrics:  # made by a call whose answer came too late
            mlflow.delete_run(run.info.run_id)
    return kept


def find_or_create_run(card: Card, known: str = "") -> tuple[Run, bool]:
    """The one run of this fingerprint, with all that its card says, and whether it was just created."""
    run = find_run(card.fingerprint, known)
    if run is None and restored_experiment(card.experiment):
        run = find_run(card.fingerprint, known)
    created = run is None
    if run is None:
        mlflow = client()
        experiment = mlflow.get_experiment_by_name(card.experiment)
        experiment_id = experiment.experiment_id if experiment else mlflow.create_experiment(card.experiment)
        tags = {**card.tags, FINGERPRINT_TAG: card.fingerprint}
        run = mlflow.create_run(experiment_id, run_name=card.run_name, tags=tags)
    _describe(run, card)
    return run, created


def restored_experiment(name: str) -> bool:
    """Whether the experiment was deleted, and is there again: MLflow keeps its name, and takes nothing into it."""
    experiment = client().get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != LifecycleStage.DELETED:
        return False
    client().restore_experiment(experiment.experiment_id)
    log.warning(
        "the experiment %s was deleted in MLflow; it is restored with what was in it, to take what is new", name
    )
    return True


def _describe(run: Run, card: Card) -> None:
    """Datasets and params; the tag that says so comes last, so that a call that fails is made up for."""
    if run.data.tags.get(_DESCRIBED_TAG):
        return
    if card.datasets:
        client().log_inputs(run.info.run_id, datasets=[dataset_input(dataset) for dataset in card.datasets])
    missing = {name: value for name, value in card.params.items() if name not in run.data.params}
    params = [Param(name, str(value)[:_PARAM_CHARS]) for name, value in missing.items()]
    client().log_batch(run.info.run_id, params=params, tags=[RunTag(_DESCRIBED_TAG, "true")])


def dataset_input(dataset: dict[str, str]) -> DatasetInput:
    """A dataset of a card, as MLflow takes it."""
    fields = {name: value for name, value in dataset.items() if name != "context"}
    fields["source"] = _bounded_source(fields["source"])
    return DatasetInput(Dataset(**fields), [InputTag("mlflow.data.context", dataset["context"])])


def _bounded_source(source: str) -> str:
    """With files counted instead of named where MLflow would not take it; a shorter one stays as it always was."""
    if len(source) <= MAX_DATASET_SOURCE_SIZE:
        return source
    told = json.loads(source)
    many = f"{len(told['source']['paths'])}, see sources.jsonl of the corpus"
    return json.dumps({**told, "source": {**told["source"], "paths": many}})


def set_status(run: Run, status: str) -> None:
    """RUNNING, FINISHED, FAILED or KILLED; a run that is so already keeps its end time."""
    if run.info.status == status:
        return
    if status == "RUNNING":
        client().update_run(run.info.run_id, status=status)
    else:
        client().set_terminated(run.info.run_id, status)


def set_tags(run_id: str, tags: dict[str, str]) -> None:
    client().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """For calls that may fail without harm: the failure is one warning."""
    try:
        yield
    except FAILURES as error:
        log.warning("MLflow does not answer (%s); %s is sent later, or by `gptflow sync`", first_line(error), what)
