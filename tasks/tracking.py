"""MLflow: one run for each model artifact, found again by its fingerprint, fed from the run's own log.

Nothing here can slow, stop or fail the work: every call is bounded in time, made off the hot path, and what could not
be sent stays in the log, to be sent by the next step that looks at the same artifact.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Against a dead server one call would otherwise block for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from gptmodel.artifacts import Artifact
from gptmodel.metrics_log import read_lines
from gptmodel.pretraining import Training
from tasks.tail import Lines, Tail

log = logging.getLogger(__name__)
FINGERPRINT_TAG = "gptflow.fingerprint"
COMPLETE_TAG = "gptflow.complete"
_BATCH = 1_000  # the most metrics that one request may carry
_SEND_SECONDS = 2.0
_PARAM_CHARS = 6_000
_FAILURES = (MlflowException, OSError)
logging.getLogger("mlflow").setLevel(logging.WARNING)  # its own steps are not the user's
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Card:
    """What a run says about itself from its first moment."""

    experiment: str
    run_name: str
    fingerprint: str
    params: dict[str, Any]
    tags: dict[str, str]
    datasets: list[DatasetInput] = field(default_factory=list)


def training_card(training: Training, corpus: Artifact) -> Card:
    """Params, lineage tags and datasets of a training."""
    config, shards = training.config, training.shards
    params = {
        **{f"model.{name}": value for name, value in training.request.config["model"].items()},
        **_flat(training.request.config["train"], "train"),
        "data.train_tokens": shards.summary["train_tokens"],
        "data.validation_tokens": shards.summary["validation_tokens"],
        "init_from": training.init.label if training.init else "random weights",
    }
    tags = {
        **lineage_tags(corpus, shards),
        "gptflow.request": training.request.fingerprint,
        **({"gptflow.init": training.init.digest} if training.init else {}),
    }
    name = f"{config.name}-{training.request.fingerprint[:8]}"
    return Card(config.name, name, training.request.fingerprint, params, tags, dataset_inputs(shards, corpus))


def lineage_tags(corpus: Artifact, shards: Artifact) -> dict[str, str]:
    """Content digests of the chain, and the code that runs."""
    from gptmodel.provenance import git_state

    commit, dirty = git_state()
    return {
        "gptflow.corpus": corpus.digest,
        "gptflow.shards": shards.digest,
        "gptflow.git_dirty": str(dirty).lower(),
        **({"mlflow.source.git.commit": commit} if commit else {}),
        "mlflow.source.name": "gptflow",
        "mlflow.source.type": "JOB",
    }


def dataset_inputs(shards: Artifact, corpus: Artifact) -> list[DatasetInput]:
    """The train and validation splits as MLflow datasets: digest, source, schema and size."""
    found = []
    for split in ("train", "validation"):
        profile = {name: shards.summary[f"{split}_{name}"] for name in ("documents", "tokens", "bytes")}
        source = {"corpus": corpus.digest, "shards": shards.digest, "split": split, **_source_of(corpus)}
        dataset = Dataset(
            name=f"{split} tokens",
            digest=shards.digest[:32],
            source_type="gptflow.shards",
            source=json.dumps(source),
            schema=json.dumps({"document": "string", "part": "int32", "tokens": "large_list<uint16>"}),
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    return found


def _source_of(corpus: Artifact) -> dict[str, Any]:
    return {"source": corpus.request.config.get("source", {})}


def _flat(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def client() -> MlflowClient:
    """A client of the server or database that MLFLOW_TRACKING_URI names."""
    return MlflowClient()


def find_run(fingerprint: str) -> str:
    """Id of the run with this fingerprint, or an empty string."""
    mlflow = client()
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    found = mlflow.search_runs(experiments, f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def find_or_create_run(card: Card) -> str:
    """The one run of this fingerprint, running: retries and resumes go on in it."""
    mlflow = client()
    if run_id := find_run(card.fingerprint):
        if mlflow.get_run(run_id).info.status != "RUNNING":
            mlflow.update_run(run_id, status="RUNNING")
        return run_id
    experiment = mlflow.get_experiment_by_name(card.experiment)
    experiment_id = experiment.experiment_id if experiment else mlflow.create_experiment(card.experiment)
    tags = {**card.tags, FINGERPRINT_TAG: card.fingerprint}
    run_id = str(mlflow.create_run(experiment_id, run_name=card.run_name, tags=tags).info.run_id)
    params = [Param(name, str(value)[:_PARAM_CHARS]) for name, value in card.params.items()]
    mlflow.log_batch(run_id, params=params)
    mlflow.log_inputs(run_id, datasets=card.datasets)
    return run_id


class Feed:
    """Sends a log's numbers to a run, each step once, whatever was sent before and whenever the server answers."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.run_id = ""
        self._waiting: Lines = []
        self._sent: dict[str, int] = {}
        self._warned = False
        self._agreed = False  # on what the server has
        self._monitor: SystemMetricsMonitor | None = None

    def offer(self, lines: Lines) -> None:
        """Take lines and send all that wait, or keep them if the server does not take them now."""
        self._waiting += lines
        try:
            self._connect()
            self._send()
        except _FAILURES as error:
            self._agreed = False  # a call that timed out may have been carried out
            if not self._warned:
                log.warning("MLflow does not answer (%s); the log is kept, and sent later", _first_line(error))
            self._warned = True

    def watch_system(self) -> None:
        """Log the machine's load to the run as well, from when it is known until `end`."""
        if self.run_id and self._monitor is None:
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True)
            self._monitor.start()

    def end(self, status: str) -> None:
        """Mark the run; what cannot be marked now is marked by the next step that looks at it."""
        if self._monitor is not None:
            self._monitor.finish()
        if self.run_id:
            with bounded(f"the end of run {self.run_id}"):
                client().set_terminated(self.run_id, status)

    @property
    def complete(self) -> bool:
        return bool(self.run_id) and not self._waiting

    def _connect(self) -> None:
        if self._agreed:
            return
        self.run_id = self.run_id or find_or_create_run(self.card)
        mlflow = client()
        for name in mlflow.get_run(self.run_id).data.metrics:
            history = mlflow.get_metric_history(self.run_id, name)
            self._sent[name] = max((point.step for point in history), default=-1)
        self._agreed = True

    def _send(self) -> None:
        mlflow = client()
        while self._waiting:
            taken = 0
            metrics: list[Metric] = []
            for line in self._waiting:
                new = [m for m in _metrics_of(line) if m.step > self._sent.get(m.key, -1)]
                if metrics and len(metrics) + len(new) > _BATCH:
                    break
                metrics += new
                taken += 1
            if metrics:
                mlflow.log_batch(self.run_id, metrics=metrics)
            for metric in metrics:
                self._sent[metric.key] = metric.step
            del self._waiting[:taken]


def _metrics_of(line: dict[str, Any]) -> list[Metric]:
    """A line's numbers on the step axis, and losses and perplexities against tokens as well. NaN and inf are kept."""
    values, time = line.get("metrics", {}), line["time"]
    against_tokens = [name for name in values if name.endswith(("/loss", "/perplexity"))]
    return [
        *(Metric(name, value, time, line["step"]) for name, value in values.items()),
        *(Metric(f"vs_tokens/{name}", values[name], time, line["tokens"]) for name in against_tokens),
    ]


@contextmanager
def followed(card: Card, metrics_file: Path) -> Iterator[Feed]:
    """Feed the card's run from the log, with system metrics, while the body runs. The body waits for nothing."""
    feed = Feed(card)
    status = "FAILED"

    def send(lines: Lines) -> None:
        feed.offer(lines)
        feed.watch_system()

    try:
        with Tail(metrics_file, send, _SEND_SECONDS):
            yield feed
        status = "FINISHED"
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        feed.offer([])
        feed.end(status)


def catch_up(card: Card, metrics_file: Path) -> str:
    """Send what the run's log holds and MLflow lacks. Returns the run id, or an empty string if out of reach."""
    with bounded("the log"):
        if (run_id := find_run(card.fingerprint)) and client().get_run(run_id).data.tags.get(COMPLETE_TAG):
            return run_id  # nothing to send, and its end stays as it was
    feed = Feed(card)
    feed.offer(list(read_lines(metrics_file)))
    if feed.complete:
        feed.end("FINISHED")
    return feed.run_id


def mark_complete(run_id: str, tags: dict[str, str]) -> None:
    """Note that a run holds all it will; later steps leave it alone."""
    set_tags(run_id, {**tags, COMPLETE_TAG: "true"})


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """For calls that may fail without harm: the failure is one warning."""
    try:
        yield
    except _FAILURES as error:
        log.warning("MLflow does not answer (%s); %s is not logged now", _first_line(error), what)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def set_tags(run_id: str, tags: dict[str, str]) -> None:
    client().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def evaluation_run(model: Artifact) -> str:
    """The run of an evaluated model: that of its training or import, or a new one."""
    return find_run(model.fingerprint) or find_or_create_run(_model_card(model, f"{model.kind}-{model.path.name[:8]}"))


def weights_run(weights: Artifact, name: str) -> str:
    """The run that stands for imported weights."""
    run_id = find_or_create_run(_model_card(weights, name))
    client().set_terminated(run_id)
    return run_id


def _model_card(model: Artifact, name: str) -> Card:
    params = {k: v for k, v in model.summary.items() if isinstance(v, int | float | str)}
    return Card("imported-weights", name, model.fingerprint, params, {"gptflow.model": model.digest})
