"""Where a small pipeline is, told from the files of its store alone: so a kill can be aimed, and named afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_pipeline import EVAL_EVERY, MAX_STEPS

from gptmodel.training.metrics_log import read_lines

BETWEEN = "between two steps"
START, STEP, EVALUATION, CHECKPOINT = "start of the child", "training step", "evaluation", "checkpoint write"
PUBLISH = "publish"
TRAINING = (START, STEP, EVALUATION, CHECKPOINT)
MAKING = ("download", "corpus", "tokenization", "import", "", "final evaluation")
_DOING = {"corpus": MAKING[1], "shards": MAKING[2], "weights": MAKING[3], "evaluation": MAKING[5]}
MOMENTS = (*MAKING[:4], *TRAINING, MAKING[5], PUBLISH, BETWEEN)
"""All names of moments."""


@dataclass(frozen=True)
class Moment:
    """What went on."""

    name: str
    """One of MOMENTS."""
    finished: int
    """How many artifacts are there."""
    words: str
    step: int = 0
    """While it trains: the last one in the log."""


def moment(store: Path, since: float) -> Moment:
    """What the attempt that began at `since` (seconds since 1970) is doing. Older files are a killed one's."""
    finished = sorted(path.parents[1].name for path in store.glob("*/[0-9a-f]*/manifest.json"))
    for path in store.glob(".downloads/*/.*.part"):
        if _fresh(path, since):
            return Moment("download", len(finished), f"downloading, {_size(path):,} bytes there")
    for lock in store.glob("*/.*.lock"):
        if not _fresh(lock, since) or "pid" not in _read(lock):
            continue
        kind, number = lock.parent.name, lock.stem.lstrip(".")
        building = lock.with_name(f".building-{number}")
        if _written(building, since) or (lock.parent / number).exists():
            return Moment(PUBLISH, len(finished), f"publishing {kind}")
        if kind == "checkpoint":
            return _training(store, building, since, len(finished))
        return Moment(_DOING[kind], len(finished), f"{_DOING[kind]}, {_names(building) or 'no file yet'}")
    return Moment(BETWEEN, len(finished), f"nothing under way, {', '.join(finished) or 'nothing'} finished")


def _written(building: Path, since: float) -> bool:
    """Whether what is left to do is the manifest; of a training, from the moment that its model is written out."""
    manifests = [building / "manifest.json", *building.glob(".manifest.json.*.tmp"), building / "training.json"]
    if building.parent.name == "checkpoint":
        manifests += [building / "model.safetensors", *building.glob(".model.safetensors.*.tmp")]
    return any(_fresh(path, since) for path in manifests)


def _training(store: Path, building: Path, since: float, finished: int) -> Moment:
    log = store / ".runs" / building.name.removeprefix(".building-") / "metrics.jsonl"
    lock = building / ".work" / "worker.lock"  # an orphan of the attempt before may still touch the log
    if not (_fresh(lock, since) and "pid" in _read(lock) and _fresh(log, since)):
        return Moment(START, finished, "the child is starting")
    last = _last_line(log)
    step = last.get("step", 0)
    evaluates = not last or ("train/loss" in last["metrics"] and step % EVAL_EVERY == 0)
    doing = f"evaluating after step {step}" if evaluates else f"in step {step + 1}"
    if step == MAX_STEPS and not evaluates:
        doing = f"after step {step}"
    for unfinished in building.glob(".work/checkpoints/.step-*.tmp"):
        if _fresh(unfinished, since):
            what = f"writing checkpoint {int(unfinished.stem.removeprefix('.step-'))}"
            return Moment(CHECKPOINT, finished, f"{what} ({_names(unfinished) or 'empty'}) and {doing}", step)
    return Moment(EVALUATION if evaluates else STEP, finished, doing, step)


def _fresh(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _names(directory: Path) -> str:
    with suppress(OSError):
        return " ".join(sorted(path.name for path in directory.iterdir() if path.name != ".work"))
    return ""


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


def _last_line(log: Path) -> dict[str, Any]:
    """The last complete line; only the end of the file is read, for this is asked a thousand times a second."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, _size(log) - 20_000))
        whole = file.read().split(b"\n")[:-1]
        return dict(json.loads(whole[-1])) if whole else {}
    return {}


def child_pids(store: Path) -> Iterator[int]:
    """Who says to train in this store: quicker than to search all processes."""
    for lock in store.glob("checkpoint/.building-*/.work/worker.lock"):
        if isinstance(pid := _read(lock).get("pid"), int):
            yield pid


def on_disk(store: Path) -> str:
    """What a restart finds: finished kinds, half-built ones, the checkpoints, half a download, the last step logged."""
    done = sorted(path.parents[1].name for path in store.glob("*/[0-9a-f]*/manifest.json"))
    half = sorted(f"half of {path.parent.name}" for path in store.glob("*/.building-*"))
    parts = [f"{_size(path):,} bytes downloaded" for path in store.glob(".downloads/*/.*.part")]
    saved = sorted(path.name for path in store.glob("*/.building-*/.work/checkpoints/*"))
    steps = [line["step"] for log in store.glob(".runs/*/metrics.jsonl") for line in read_lines(log)]
    return ", ".join([*done, *half, *parts, *saved, *([f"log to step {steps[-1]}"] if steps else [])]) or "nothing"
