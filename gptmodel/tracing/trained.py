"""What must be known of a training to say what it saw: of a finished one by its manifest, of another by its job."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError
from gptmodel.pretraining.step import KIND, RECIPE_VERSION, RUNS, run_dir_of
from gptmodel.store.artifacts import SCRATCH, Artifact, Ref, Store, load_artifact
from gptmodel.training.metrics_log import read_lines

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TracedTraining:
    """A training, as far as it has come."""

    label: str
    fingerprint: str
    shards: Artifact
    seed: int
    batch_size: int
    context_length: int
    max_steps: int
    eval_tokens: int
    steps: int
    """Steps that the weights come of: the published ones', or those made so far."""
    steps_trained: int
    """Steps that were made."""
    left_out: tuple[tuple[int, int], ...]
    """First and last of each stretch of steps whose updates are not in the weights."""
    evaluations: int
    """Evaluations on validation data that were made on the way."""
    finished: bool
    publish: str
    run_dir: Path
    model_digest: str = ""
    init: Ref | None = None
    """What it started from; None for random weights."""

    @property
    def replay(self) -> str:
        """Command that shows a step again, but for its number; empty if the run's files are gone."""
        job = self.run_dir / "job.json"
        if not job.exists() or not self._has_all(job):
            return ""
        return f"python -m gptmodel.pretraining.replay {shlex.quote(str(job))} --step"

    def replay_from(self, step: int) -> int:
        """The step of the checkpoint that a replay of `step` would go from; 0 is the initial weights."""
        try:
            work = Path(json.loads((self.run_dir / "job.json").read_text())["building"]) / SCRATCH / _CHECKPOINTS
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        kept = [int(path.name.removeprefix("step-")) for path in work.glob("step-*")]
        return max((known for known in kept if known < step), default=0)

    def _has_all(self, job: Path) -> bool:
        try:
            told = json.loads(job.read_text())
            return Path(told["shards"]).is_dir() and (not told["init_from"] or Path(told["init_from"]).is_dir())
        except (OSError, ValueError, KeyError, TypeError):
            return False


def finished_training(store: Store, model: Artifact) -> TracedTraining:
    """Of a checkpoint. ArtifactError for a model whose training is not known here, or of another recipe."""
    if model.kind == "weights":
        origin = " ".join(str(model.summary.get(name, "")) for name in ("source", "revision")).strip()
        raise ArtifactError(f"{model.label} was imported ({origin}): what it was trained on is not known here")
    if model.kind != KIND:
        raise ArtifactError(f"{model.label} is a {model.kind}, and no training; name a checkpoint or a run")
    if not 1 <= model.request.recipe_version <= RECIPE_VERSION:  # all of them have the same order
        raise ArtifactError(
            f"{model.label} was trained by recipe {model.request.recipe_version}, and the order of the data is known "
            f"here for recipes 1 to {RECIPE_VERSION}; trace it with the version of gptflow that trained it"
        )
    config, steps = model.request.config, int(model.summary["step"])
    lines = list(read_lines(model.file("curve.jsonl")))
    return TracedTraining(
        model.label,
        model.fingerprint,
        store.input_of(model, "shards"),
        *_order_of(config),
        steps=steps,
        steps_trained=int(model.summary.get("steps_trained", steps)),
        left_out=_in_weights(model.summary.get("left_out", []), steps),
        evaluations=_evaluations(lines),
        finished=True,
        publish=config["train"]["publish"],
        run_dir=run_dir_of(store, model.fingerprint),
        model_digest=model.digest,
        init=_started_from(model),
    )


def unfinished_training(store: Store, run_dir: Path) -> TracedTraining:
    """Of a run that goes on, or was stopped: up to the last step of its log. ArtifactError if its files are gone."""
    job = run_dir / "job.json"
    try:
        told = json.loads(job.read_text())
        config, digest = told["config"], told["shards_digest"]
        shards = _moved(store, Path(told["shards"]))
        init = _first_weights(store, Path(told["init_from"]), told["init_digest"]) if told["init_from"] else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{job} is no job of a training run ({error}); put it back from a backup") from None
    if shards.digest != digest:
        raise ArtifactError(
            f"{shards.label} now holds {shards.digest[:16]}…, and this run began with {digest[:16]}…; put the old "
            "files back"
        )
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    made = max((line["step"] for line in lines), default=0)
    left_out = [line["decision"]["left_out"] for line in lines if "decision" in line]
    return TracedTraining(
        f"run/{run_dir.name}",
        run_dir.name,
        shards,
        *_order_of(config),
        steps=made,
        steps_trained=made,
        left_out=_in_weights(left_out, made),
        evaluations=_evaluations(lines),
        finished=False,
        publish=config["train"]["publish"],
        run_dir=run_dir,
        init=init,
    )


def find_unfinished(store: Store, name: str) -> Path | None:
    """The run directory, with no model of it yet, that a fingerprint, its beginning, or `run/…` means."""
    said = re.fullmatch(rf"(?:(?:run|{KIND})/)?([0-9a-f]{{4,64}})", name)  # and not the version of a model: name/1234
    if said is None:
        return None
    found = [path for path in (store.root / RUNS).glob(f"{said[1][:16]}*") if (path / "job.json").exists()]
    open_ones = [path for path in found if not (store.root / KIND / path.name).exists()]
    if len(open_ones) > 1:
        names = ", ".join(sorted(path.name for path in open_ones))
        raise ArtifactError(f"{len(open_ones)} unfinished runs in {store.root} for {name!r}; name one: {names}")
    return open_ones[0] if open_ones else None


def _order_of(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    train = config["train"]
    length = config["model"]["context_length"]
    return train["seed"], train["batch_size"], length, train["max_steps"], train["eval_tokens"]


def _in_weights(left_out: list[list[int]], steps: int) -> tuple[tuple[int, int], ...]:
    """Stretches that count: weights published as of an earlier step were never set back by a later rollback."""
    return tuple((first, last) for first, last in left_out if last <= steps)


def _evaluations(lines: list[dict[str, Any]]) -> int:
    return sum("validation/loss" in line.get("metrics", {}) for line in lines)


def _started_from(model: Artifact) -> Ref | None:
    return next((ref for ref in model.request.inputs if ref.kind in (KIND, "weights")), None)


def _first_weights(store: Store, path: Path, digest: str) -> Ref:
    try:
        return _moved(store, path).ref
    except ArtifactError:
        return Ref(path.parent.name, path.name, digest)


def _moved(store: Store, path: Path) -> Artifact:
    """The artifact at a path that was noted, or, if the store has moved since, where it is now."""
    return load_artifact(path if path.is_dir() else store.root / path.parent.name / path.name)
