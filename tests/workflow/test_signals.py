"""SIGTERM and Ctrl-C on the real command line, with a real Prefect server: saved, told, reported, nothing left."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptmodel.artifacts import Artifact, Store
from gptmodel.checkpoint import Checkpointer

LONG = ["train.max_steps=100000", "train.eval_every=100000"]


class Command:
    """`gptflow pretrain` in a process group of its own, in a folder of its own, with its training under way."""

    def __init__(self, store: Store, shards: Artifact, sets: list[str], folder: Path) -> None:
        from prefect.settings import PREFECT_API_URL

        env = {**os.environ, "GPTFLOW_STORE": str(store.root), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        env["PREFECT_API_URL"] = PREFECT_API_URL.value()
        words = ["pretrain", "--preset", "smoke", "--shards", shards.label, *(w for s in sets for w in ("--set", s))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", *words],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.read_until("step 1/")
        found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "gptmodel.worker"], capture_output=True)
        self.child = int(found.stdout.split()[0])
        self.child_ends = os.pidfd_open(self.child)

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if words in line:
                return
        raise AssertionError("\n".join(self.lines))

    def end(self) -> int:
        """Wait for the end of command and child; the exit code."""
        with self.process as process:
            assert process.stdout is not None
            self.lines += [line.rstrip() for line in process.stdout]
        return self.process.wait()

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def start(workplace: Path, tiny_data: tuple[Store, Artifact], tiny_sets: list[str], tmp_path: Path) -> Any:
    """Starts the command on a store of its own, with more `--set` values."""
    shutil.copytree(tiny_data[0].root, tmp_path / "store")
    store = Store(tmp_path / "store")
    started: list[Command] = []

    def make(*sets: str) -> Command:
        started.append(Command(store, store.resolve(tiny_data[1].label), [*tiny_sets, *LONG, *sets], tmp_path))
        return started[-1]

    yield make
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
        assert command.process.stdout is not None
        command.process.stdout.close()
        command.process.wait()


def nothing_left(command: Command) -> bool:
    """No training child, and nobody in the command's own process group."""
    assert select.select([command.child_ends], [], [], 60)[0], "the child goes on"
    os.close(command.child_ends)
    try:
        os.killpg(command.process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def checkpoints(folder: Path) -> Checkpointer:
    (directory,) = (folder / "store" / "checkpoint").glob(".building-*/.work/checkpoints")
    return Checkpointer(directory, 2, read_only=True)


def newest_state() -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    async def ask() -> Any:
        async with get_client() as client:
            (run,) = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
            return run.state

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("signum", "name", "reported"),
    [(15, "SIGTERM", "termination"), pytest.param(2, "SIGINT", "interrupt", marks=pytest.mark.slow)],
)
def test_a_signal_saves_ends_with_its_code_and_says_how_to_go_on(
    start: Any, tmp_path: Path, signum: int, name: str, reported: str
) -> None:
    command = start("train.checkpoint_every=100000")
    os.killpg(command.process.pid, signum)  # as a terminal does: to all of the group at once
    assert command.end() == 128 + signum, command.said
    assert nothing_left(command)
    assert command.lines[-1] == f"gptflow: stopped by {name}; what is done is kept. Run the same command to go on"
    (told,) = [line for line in command.lines if "saved. Run the same command to go on" in line]
    (step,) = checkpoints(tmp_path).steps()
    assert f"stopped after step {step} of 100000" in told
    checkpoints(tmp_path).weights_file(step)
    assert "Traceback" not in command.said
    state = newest_state()
    assert state.is_crashed()
    assert f"{reported} signal" in state.message


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_leaves_no_torn_checkpoint(start: Any, tmp_path: Path) -> None:
    command = start("train.checkpoint_every=1")
    os.kill(command.child, signal.SIGSTOP)  # a step without end
    os.kill(command.process.pid, signal.SIGINT)
    while not pending(command.child, signal.SIGINT):  # the first has been passed on, and the command waits
        os.sched_yield()
    os.kill(command.process.pid, signal.SIGINT)
    assert command.end() == 130, command.said
    assert nothing_left(command)
    assert "Run the same command to go on" in command.lines[-1]
    found = checkpoints(tmp_path)
    for step in found.steps():
        found.weights_file(step)


def pending(pid: int, signum: int) -> bool:
    """Whether a signal waits for a stopped process."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signum - 1) & 1 for mask in masks)
