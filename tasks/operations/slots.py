"""A GPU is one slot of a concurrency limit on the Prefect server: trainings that want it wait for each other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptmodel.config import TrainConfig
from tasks.operations.processes import ServiceError, ask, demand

GPU_LIMIT = "gptflow-gpu"
_LEASE_SECONDS = 300.0  # a process that dies gives its slots back after this


def slots_wanted(config: TrainConfig) -> int:
    """GPUs that a training takes on this machine: one for each of its processes; 0 on a processor."""
    if config.device == "cpu":
        return 0
    import torch  # late: a flow must import fast

    there = torch.cuda.device_count()
    return min(config.processes or there, there)


@contextmanager
def slots(wanted: int) -> Iterator[None]:
    """Hold so many slots while the body runs, and wait for them before; on a server without the limit, nothing.

    A server that is gone while the body runs takes the slots from us and stops nothing: a training goes on.
    """
    if not wanted:
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(
        GPU_LIMIT, occupy=wanted, lease_duration=_LEASE_SECONDS, strict=False, raise_on_lease_renewal_failure=False
    ):
        yield


def gpus_here() -> int:
    """GPUs of this machine, as its driver lists them; 0 where there is no driver."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return 0
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def install(api: str, gpus: int, say: Callable[[str], None]) -> None:
    """Make the limit known to a server, with a slot for each GPU. One that is there stays as it is."""
    if not gpus or demand(f"{api}/v2/concurrency_limits/{GPU_LIMIT}", none_for=(404,)) is not None:
        return
    if ask(f"{api}/v2/concurrency_limits/", {"name": GPU_LIMIT, "limit": gpus, "active": True}) is None:
        raise ServiceError(f"the Prefect server refused the concurrency limit {GPU_LIMIT}; read .run/prefect.log")
    say(f"{'GPU slots':<15} {gpus}: trainings on a GPU wait for each other ({GPU_LIMIT})")
