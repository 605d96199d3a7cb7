"""The training process: `python -m gptmodel.pretraining.worker job.json`, alone or as each rank of torchrun.

Needs torch, pyarrow and tiktoken, and neither an orchestrator nor a tracker. Exit codes: 0 done, 143 or 130 stopped by
a signal after saving, 1 or 2 an error that `error.json` beside the job tells.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptmodel.config import PipelineConfig
from gptmodel.device import Machine, peak_memory_bytes, set_up
from gptmodel.errors import ConfigError, GptflowError, LockLostError
from gptmodel.loss import perplexity
from gptmodel.model import GPT
from gptmodel.pretraining.assembly import CHECKPOINTS, METRICS_FILE, Job, assemble
from gptmodel.settings import parse_config
from gptmodel.sharding import is_sharded
from gptmodel.store.artifacts import SCRATCH, write_atomic
from gptmodel.store.locks import exclusive
from gptmodel.store.space import storage_errors, training_bytes, used_bytes
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.launch import ERROR_FILE, ERROR_ROOM, WATCHED
from gptmodel.training.metrics_log import MetricsLog, curve, read_lines
from gptmodel.training.seen import StopSignal
from gptmodel.weights import empty_model, load_weights, save_model

log = logging.getLogger("gptmodel.pretraining.worker")
SUMMARY_FILE = "summary.json"


def main() -> int:
    """Run the job file named on the command line; returns the exit code."""
    job_path = Path(sys.argv[1])
    job = Job(**json.loads(job_path.read_text()))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stdout)
    stop = StopSignal()
    _watch_signals(stop)
    is_orphan = _watch_parent(stop)
    try:
        if world > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=10))
        config = parse_config(job.config, PipelineConfig)
        with storage_errors("the training", Path(job.building), training_bytes(config.model, config.train)):
            train(job, stop, rank, world)
        if world > 1:
            dist.barrier()  # one that leaves while another still talks to it can abort that one
    except GptflowError as error:
        return _report(error, job_path.parent, is_orphan())
    except torch.OutOfMemoryError as error:
        message = f"out of GPU memory: {str(error).splitlines()[0]} Set a smaller train.micro_batch_size"
        return _report(ConfigError(message), job_path.parent, is_orphan())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _report(error: GptflowError, directory: Path, is_orphan: bool) -> int:
    told = {"type": type(error).__name__, "message": str(error), "signum": getattr(error, "signum", 0)}
    # Without its lock or its parent it would tell another run, whose directory this is by now.
    if not isinstance(error, LockLostError) and not is_orphan:
        _tell(directory / ERROR_FILE, json.dumps(told))
    log.error("%s", error)
    return error.exit_code


def _tell(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError:  # a full disk: write into the room that the parent left
        with suppress(OSError), path.open("r+b", buffering=0) as file:
            file.write(text.ljust(ERROR_ROOM).encode())


def _watch_signals(stop: StopSignal) -> None:
    def note(signum: int, _frame: object) -> None:
        stop.signum = signum
        log.warning("%s: finishing this step, then saving", signal.Signals(signum).name)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)


def _watch_parent(stop: StopSignal) -> Callable[[], bool]:
    """End as if by SIGTERM when who wanted this is gone: its end of our standard input closes, however it died.

    torchrun stands between and does not look, so each rank does. One that a person started by torchrun has another
    standard input. Returns what tells whether it is gone.
    """
    parent, ended = os.getppid(), threading.Event()

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        ended.set()
        stop.signum = stop.signum or signal.SIGTERM

    if "LOCAL_RANK" not in os.environ or WATCHED in os.environ:
        threading.Thread(target=wait_for_end, daemon=True, name="parent-watch").start()
    return lambda: ended.is_set() or os.getppid() != parent


def train(job: Job, stop: StopSignal, rank: int = 0, world: int = 1) -> None:
    """Train, or go on training, and leave the product in the building directory."""
    work = Path(job.building) / SCRATCH
    # An orphan of a killed run may still be saving its last step here.
    if rank == 0:
        work.mkdir(parents=True, exist_ok=True)
        with exclusive(work / "worker.lock", "this training", wait=True) as hold:
            write_atomic(Path(job.run_dir) / ERROR_FILE, " " * ERROR_ROOM)  # that one may have told of its own end
            _train(job, work, stop, rank, world, hold.check)
    else:
        _train(job, work, stop, rank, world)


def _train(
    job: Job, work: Path, stop: StopSignal, rank: int, world: int, guard: Callable[[], None] = lambda: None
) -> None:
    config = parse_config(job.config, PipelineConfig)
    machine = _machine(config, work, rank, world)
    keep, log_file = config.train.keep_checkpoints, Path(job.run_dir) / METRICS_FILE
    checkpoints = Checkpointer(work / CHECKPOINTS, keep, read_only=rank != 0, guard=guard)
    metrics = MetricsLog(log_file, guard)
    trainer = assemble(job, config, machine, checkpoints, metrics, stop, rank=rank, world=world)
    state = checkpoints.load_newest(trainer.model, trainer.optimizer) or TrainState()
    goes_on = state.step > 0
    if state.step:
        log.info("going on from the checkpoint of step %d", state.step)
    if rank == 0:
        metrics.start(state.step if state.step else -1)
    try:
        state = trainer.fit(state)
    finally:
        checkpoints.close()
    if rank == 0:
        metrics.close()
        guard()
        if job.until:
            write_atomic(work / SUMMARY_FILE, json.dumps({"machine": _in_words(machine)}))
            return
        pace = {
            **trainer.clock.pace(peak_memory_bytes(machine.device)),
            "processes": world,
            "sharded": is_sharded(trainer.model),
            "resumed": goes_on,
        }
        _leave_product(job, config, trainer.model, checkpoints, state, machine, pace)


def _machine(config: PipelineConfig, work: Path, rank: int, world: int) -> Machine:
    """Set up this process; later attempts and other ranks compute as the first attempt of rank 0 chose to."""
    record = work / "machine.json"
    if rank != 0:
        dist.barrier()
    earlier = json.loads(record.read_text()) if record.exists() else {}
    machine = set_up(config.train, earlier.get("precision", ""), int(os.environ.get("LOCAL_RANK", "0")))
    found = {"precision": machine.precision, "threads": machine.threads, "device": machine.name, "world": world}
    if rank == 0:
        log.info("%s, %s threads, %s (%s)", machine.name, machine.threads, machine.precision, machine.choice)
        changed = [f"{name} {earlier[name]} -> {found[name]}" for name in earlier if earlier[name] != found[name]]
        if changed:
            log.warning("this run began otherwise (%s): results may differ by rounding", ", ".join(changed))
        write_atomic(record, json.dumps({**found, **earlier}))
        if world > 1:
            dist.barrier()
    return machine


def _leave_product(
    job: Job,
    config: PipelineConfig,
    model: GPT,
    checkpoints: Checkpointer,
    state: TrainState,
    machine: Machine,
    pace: dict[str, Any],
) -> None:
    building, log_file = Path(job.building), Path(job.run_dir) / METRICS_FILE
    published_step = state.best_step if config.train.publish == "best" else state.step
    in_parts = is_sharded(model)
    if in_parts:
        model = empty_model(model.config)
    if in_parts or config.train.publish == "best":
        load_weights(model, checkpoints.weights_file(published_step))
    save_model(model, building)
    lines = [json.dumps(line) + "\n" for line in curve(log_file)]
    write_atomic(building / "curve.jsonl", "".join(lines))
    samples = [
        json.dumps({"step": line["step"], **sample}, ensure_ascii=False) + "\n"
        for line in read_lines(log_file)
        for sample in line.get("samples", [])
    ]
    write_atomic(building / "samples.jsonl", "".join(samples))
    last = _last_metrics(log_file)
    result = {
        "step": published_step,
        "steps_trained": state.step,
        "tokens": state.tokens,
        "train_loss": last["train/loss"],
        "first_validation_loss": _first_validation_loss(log_file),
        "best_validation_loss": state.best_loss,
        "best_step": state.best_step,
        "stopped_early": state.stopped_early,
        "left_out": state.left_out,
        "precision": machine.precision,
    }
    write_atomic(building / "training.json", json.dumps(result, indent=2) + "\n")
    telemetry = {
        "pace": pace,
        "seconds": round(state.seconds, 1),
        "elapsed_seconds": round(state.elapsed, 1),
        "disk_bytes": used_bytes(building),
        "tokens_per_second": round(last["speed/tokens_per_second"], 1),
        "peak_memory_bytes": peak_memory_bytes(machine.device),
        "machine": _in_words(machine),
        "n_params": model.num_parameters(),
        "best_validation_perplexity": perplexity(state.best_loss),
    }
    write_atomic(building / SCRATCH / SUMMARY_FILE, json.dumps({**result, **telemetry}))


def _in_words(machine: Machine) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(machine).items()}


def _first_validation_loss(log_file: Path) -> float:
    """Before the first update: what the weights that it began with know."""
    lines = (line.get("metrics", {}) for line in read_lines(log_file))
    return next(float(found["validation/loss"]) for found in lines if "validation/loss" in found)


def _last_metrics(log_file: Path) -> dict[str, float]:
    merged: dict[str, float] = {}
    for line in read_lines(log_file):
        merged |= line.get("metrics", {})
    return merged


if __name__ == "__main__":
    sys.exit(main())
