"""SIGTERM and Ctrl-C on the real command line, with a real Prefect server: saved, told, reported, nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.checkpoint import Checkpointer

LONG = ["train.max_steps=100000", "train.eval_every=100000"]


class Command:
    """`gptflow` in a process group of its own, in a folder of its own, with its training under way.

    `api` is the Prefect server; without one the command starts its own.
    """

    def __init__(self, store: Store, words: list[str], sets: list[str], folder: Path, api: str | None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") or k.endswith("_RETRIES")}
        env = (os.environ | {"PREFECT_API_URL": api}) if api else clean
        self.env = env | {"GPTFLOW_STORE": str(store.root), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        words = [*words, "--preset", "smoke", *(w for s in sets for w in ("--set", s))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", *words],
            cwd=folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.read_until("step 1/")
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "gptmodel.pretraining.worker"], capture_output=True
        )
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

    def make(*sets: str, words: tuple[str, ...] = (), own_server: bool = False) -> Command:
        from prefect.settings import PREFECT_API_URL

        words = words or ("pretrain", "--shards", tiny_data[1].label)
        api = None if own_server else PREFECT_API_URL.value()
        started.append(Command(store, [*words], [*tiny_sets, *LONG, *sets], tmp_path, api))
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


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "name"), [(2, "SIGINT"), (15, "SIGTERM")])
def test_a_signal_to_the_group_ends_a_command_that_has_its_own_prefect_server(
    start: Any, tmp_path: Path, signum: int, name: str
) -> None:
    """A terminal's Ctrl-C and `timeout` signal all of the group, and still the run can tell how it ended."""
    command = start("train.checkpoint_every=100000", words=("run",), own_server=True)
    server = server_of(command)
    os.killpg(command.process.pid, signum)
    assert command.end() == 128 + signum, command.said
    assert nothing_left(command)
    assert not server.is_running()
    assert command.lines[-1] == f"gptflow: stopped by {name}; what is done is kept. Run the same command to go on"
    (step,) = checkpoints(tmp_path).steps()
    checkpoints(tmp_path).weights_file(step)
    assert f"stopped after step {step} of 100000; saved" in command.said
    assert "Traceback" not in command.said
    assert "Error" not in command.said
    assert "Crashed" in told_by_prefect(tmp_path / ".prefect" / "prefect.db")


@pytest.mark.slow
def test_a_command_that_is_killed_takes_its_own_prefect_server_along(start: Any) -> None:
    command = start(own_server=True)
    server = server_of(command)
    command.process.kill()
    assert psutil.wait_procs([server], 60) == ([server], [])
    assert command.end() == -signal.SIGKILL
    assert nothing_left(command)


@pytest.mark.slow
def test_a_prefect_server_that_is_gone_for_good_costs_no_finished_work(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "1")  # else it asks for 6 minutes: the server might come back
    command = start("train.max_steps=300", "train.eval_every=300", "train.checkpoint_every=300", own_server=True)
    server_of(command).kill()
    assert command.end() == 1, command.said
    assert nothing_left(command)
    assert "gptflow: the Prefect server (http://127.0.0.1:" in command.lines[-1]
    assert "each step that was finished stands in the store" in command.lines[-1]
    assert "Traceback" not in command.said
    (manifest,) = (tmp_path / "store" / "checkpoint").glob("[!.]*/manifest.json")
    made = manifest.read_bytes()
    assert json.loads(made)["summary"]["step"] == 300, "it was trained to its end"
    again = subprocess.run(command.process.args, cwd=tmp_path, env=command.env, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already there, reused" in again.stdout + again.stderr
    assert manifest.read_bytes() == made


def server_of(command: Command) -> psutil.Process:
    """The Prefect server that the command started for itself."""
    children = psutil.Process(command.process.pid).children()
    (server,) = [p for p in children if "prefect.server.api.server:create_app" in p.cmdline()]
    return server


def told_by_prefect(database: Path) -> list[str]:
    """State names of all flow runs that it holds."""
    with closing(sqlite3.connect(database)) as db:
        return [name for (name,) in db.execute("SELECT state_name FROM flow_run")]


# Stops the training child while it writes its last checkpoint, with some of the files there and some not.
_HALF_WRITTEN = """
import os, signal, sys
def look(found, args):
    if found == "open" and "/checkpoints/.step-" in str(args[0]) and str(args[0]).endswith("state.json"):
        os.kill(os.getpid(), signal.SIGSTOP)
sys.addaudithook(look)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_ctrl_c_while_it_saves_leaves_no_torn_checkpoint_and_the_end_is_the_same(
    start: Any, tmp_path: Path, tiny: Any, tiny_data: tuple[Store, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Store(shutil.copytree(tiny_data[0].root, tmp_path / "whole" / "store"))
    steps = ("train.max_steps=400", "train.eval_every=400", "train.checkpoint_every=400")
    undisturbed, _ = pretrain(whole, plan_training(whole, tiny(*steps), whole.resolve(tiny_data[1].label)))

    (tmp_path / "sitecustomize.py").write_text(_HALF_WRITTEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    command = start(*steps)
    os.killpg(command.process.pid, signal.SIGINT)
    until_stopped(command.child)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end() == 130, command.said
    assert nothing_left(command)
    assert "Run the same command to go on" in command.lines[-1]
    assert "Traceback" not in command.said
    found = checkpoints(tmp_path)
    assert found.steps() == []
    assert list(found.directory.glob(".step-*.tmp")), "it was in the middle"
    monkeypatch.delenv("PYTHONPATH")
    store = Store(tmp_path / "store")
    artifact, reused = pretrain(store, plan_training(store, tiny(*steps), store.resolve(tiny_data[1].label)))
    assert not reused
    assert artifact.digest == undisturbed.digest
    assert not list(found.directory.parent.glob("*/.step-*.tmp"))


def until_stopped(pid: int) -> None:
    deadline = time.monotonic() + 120
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pending(pid: int, signum: int) -> bool:
    """Whether a signal waits for a stopped process."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signum - 1) & 1 for mask in masks)
