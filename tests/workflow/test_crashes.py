"""Runs that die under a real server and worker: marked, started again, and cancelled cleanly.

One project folder with its servers serves the slow tests, in this order.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml

from gptmodel.training.metrics_log import read_lines
from tasks.operations import automations, pool
from tasks.operations.automations import HEARTBEAT_SECONDS, RESTARTS, install
from tasks.operations.processes import ask
from tests.project import REPOSITORY, Project, opened, until

FLOW = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def patient(enough: str) -> None:
    with open("attempts", "a") as file:
        print(os.getpid(), file=file, flush=True)
    while not Path(enough).exists():
        time.sleep(0.1)

@flow
def looking(kill_at: int, enough_at: int) -> None:
    from prefect.exceptions import Pause
    from tasks.awaiting import rest
    with open("looks", "a") as file:
        print(os.getpid(), file=file, flush=True)
    looks = len(open("looks").readlines())
    if looks >= enough_at:
        return
    try:
        rest(1.0, "not enough yet")
    except Pause:  # the server knows that it waits, and its process has not ended
        if looks == kill_at:
            os.kill(os.getpid(), 9)
        raise
"""
DEPLOYMENTS = """
deployments:
- {name: once, entrypoint: patient_flow.patient, tags: [gptflow], work_pool: {name: local}}
- {name: waits, entrypoint: patient_flow.looking, tags: [gptflow, awaits-people], work_pool: {name: local}}
- name: told
  entrypoint: patient_flow.patient
  parameters: {enough: patient_flow.py}
  triggers: [TRIGGER]
  work_pool: {name: local}
- {name: tiny, entrypoint: flows.pretrain.pretrain, tags: [gptflow], work_pool: {name: local}}
"""


def shipped_trigger() -> dict[str, Any]:
    """By which retraining starts when data arrives, as prefect.yaml has it."""
    entries = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    (trigger,) = next(entry["triggers"] for entry in entries if entry["name"] == "nightly-retrain")
    return dict(trigger)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    deployments = DEPLOYMENTS.replace("TRIGGER", json.dumps(shipped_trigger()))
    with opened(tmp_path_factory.mktemp("crashes"), deployments, {"patient_flow.py": FLOW}) as project:
        yield project


@pytest.mark.slow
def test_a_restart_of_the_server_during_a_run_does_no_harm(project: Project) -> None:
    before = len(project.attempts())
    run = project.start("patient/once", enough="after restart")
    project.next_attempt(before + 1)
    project.kill("prefect")
    assert "Prefect worker  running already" in project.up()
    (project.folder / "after restart").touch()
    until(lambda: project.of(run) == ("Completed", 1), "the run to end")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_lost_with_its_machine_goes_on_after_make_up(project: Project) -> None:
    before = len(project.attempts())
    run = project.start("patient/once", enough="after the cut")
    pid = project.next_attempt(before + 1)
    for service in ("worker", "prefect", "mlflow"):
        project.kill(service)
    os.kill(pid, signal.SIGKILL)
    with closing(sqlite3.connect(project.folder / ".prefect" / "prefect.db")) as database, database:
        # A state that is no older than 5 minutes has a new server wait 15 for the event of the old one before it.
        database.execute("UPDATE flow_run_state SET timestamp = strftime('%Y-%m-%d %H:%M:%f', timestamp, '-1 hour')")
    assert "its process is gone; marked Crashed" in project.up()
    (project.folder / "after the cut").touch()
    until(lambda: project.of(run) == ("Completed", 2), "the run to go on")
    assert "its process is gone" not in project.up()


@pytest.mark.slow
def test_data_that_arrives_starts_the_deployment_that_waits_for_it(project: Project) -> None:
    found = ask(f"{project.api}/deployments/name/patient/told")
    asked = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}}}
    assert not ask(f"{project.api}/flow_runs/filter", asked)
    assert "'speeches' arrived; data arrived: nightly-retrain" in project.run("-m", "flows", "data-arrived", "speeches")
    until(lambda: bool(ask(f"{project.api}/flow_runs/filter", asked)), "the run to be made")
    (run,) = ask(f"{project.api}/flow_runs/filter", asked)
    until(lambda: project.of(run["id"]) == ("Completed", 1), "the run to end")


@pytest.mark.slow
def test_cancelling_saves_and_leaves_no_process(project: Project, tiny_sets: list[str]) -> None:
    from gptmodel.settings import merge_layers

    _, wanted = merge_layers("smoke", None, [*tiny_sets, "train.max_steps=1000000", "train.checkpoint_every=1000000"])
    run = project.start("pretrain/tiny", preset="smoke", overrides=wanted)
    store = project.folder / "store"
    until(
        lambda: any(line["step"] >= 5 for log in store.glob(".runs/*/metrics.jsonl") for line in read_lines(log)),
        "training to begin",
    )
    assert training_processes(project.folder)
    project.run("-m", "prefect", "flow-run", "cancel", run)
    until(lambda: project.of(run)[0] == "Cancelled", "the run to be cancelled")
    until(lambda: not training_processes(project.folder), "its processes to end")
    (saved,) = store.glob("checkpoint/.building-*/.work/checkpoints/step-*")
    assert int(saved.name.removeprefix("step-")) >= 5
    assert project.of(run) == ("Cancelled", 1), "and it is not started again"


@pytest.mark.slow
def test_a_run_that_waits_for_people_survives_a_kill_after_many_looks(project: Project) -> None:
    looks = RESTARTS + 2  # so that it is not started again as one that crashed a first or second time
    run = project.start("looking/waits", kill_at=looks, enough_at=looks + 2)
    until(lambda: project.of(run) == ("Completed", looks + 2), "the run to look again until it is enough")
    names = [state["name"] for state in project.states(run)]
    assert names.count("Crashed") == 1
    assert names.count("AwaitingRatings") == looks + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_is_started_again_twice_and_no_more(project: Project) -> None:
    before = len(project.attempts())
    run = project.start("patient/once", enough="never")
    for number in range(1, RESTARTS + 2):
        os.kill(project.next_attempt(before + number), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: project.of(run) == ("Crashed", number), f"its end number {number}")  # noqa: B023 - used at once
        assert not project.told, "of one that is started again nobody is told"
        print(f"killed {number}: marked Crashed after {time.monotonic() - killed:.0f} s")
        assert time.monotonic() - killed < 30, "the worker saw it, not the silence"
    # One that crashes later is back before this one would be.
    control = project.start("patient/once", enough="after control")
    os.kill(project.next_attempt(before + RESTARTS + 2), signal.SIGKILL)
    killed = time.monotonic()
    project.next_attempt(before + RESTARTS + 3)
    print(f"the control began again after {time.monotonic() - killed:.0f} s")
    (project.folder / "after control").touch()
    until(lambda: project.of(control) == ("Completed", 2), "the control to end")
    assert project.of(run) == ("Crashed", RESTARTS + 1)
    until(lambda: bool(project.told), "word of the run that stays crashed")
    name = ask(f"{project.api}/flow_runs/{run}")["name"]
    assert {said["subject"] for said in project.told} == {f"gptflow: patient / {name} crashed"}
    assert f"/runs/flow-run/{run}" in project.told[0]["body"]
    assert len(project.attempts()) == before + RESTARTS + 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_died_with_its_worker_is_marked_within_two_minutes_and_goes_on(project: Project) -> None:
    before = len(project.attempts())
    typed = start_by_hand(project)  # no deployment, so nobody would run it again
    by_hand = project.next_attempt(before + 1)
    run = project.start("patient/once", enough="after silence")
    pid = project.next_attempt(before + 2)
    project.kill("worker")
    typed.kill()
    assert typed.wait() == -signal.SIGKILL
    assert by_hand == typed.pid
    os.kill(pid, signal.SIGKILL)
    killed = time.time()

    def crashes() -> list[dict[str, Any]]:
        return [state for state in project.states(run) if state["type"] == "CRASHED"]

    until(lambda: len(crashes()) > 0, "the silent run to be marked")
    (crashed,) = crashes()
    assert crashed["message"].startswith("No heartbeat")
    assert datetime.fromisoformat(crashed["timestamp"]).timestamp() - killed < 120
    project.up()
    project.next_attempt(before + 3)
    (project.folder / "after silence").touch()
    until(lambda: project.of(run) == ("Completed", 2), "the run to end")
    (other,) = ask(f"{project.api}/flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})
    until(lambda: project.of(other["id"])[0] == "Crashed", "the other to be marked as well")
    stopped = start_by_hand(project)
    project.next_attempt(before + 4)
    stopped.terminate()
    stopped.wait()
    # One that crashes later is back before these would be.
    control = project.start("patient/once", enough="after by hand")
    os.kill(project.next_attempt(before + 5), signal.SIGKILL)
    project.next_attempt(before + 6)
    (project.folder / "after by hand").touch()
    until(lambda: project.of(control) == ("Completed", 2), "the control to end")
    typed_runs = ask(f"{project.api}/flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})
    assert [(found["state"]["name"], found["run_count"]) for found in typed_runs] == [("Crashed", 1)] * 2


def start_by_hand(project: Project) -> subprocess.Popen[bytes]:
    """The flow in a process of its own, as `gptflow run` does with the servers up."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
    env |= {"PREFECT_API_URL": project.api, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    program = "from patient_flow import patient; patient(enough='never')"
    return subprocess.Popen([sys.executable, "-c", program], cwd=project.folder, env=env)


def training_processes(folder: Path) -> list[str]:
    """Command lines of what runs in the folder, or on its store, besides the services."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if ("gptmodel.pretraining.worker" in words and str(folder) in words) or (
                Path(process.cwd()).is_relative_to(folder) and ("flow-run" in words or "flow_engine" in words)
            ):
                found.append(words)
        except psutil.Error:
            continue
    return found


def test_a_run_that_waits_for_people_is_not_taken_for_a_silent_one() -> None:
    from tasks.awaiting import STATE

    (silent,) = [found for found in automations.AUTOMATIONS if found["name"].endswith("mark silent runs")]
    assert f"prefect.flow-run.{STATE}" in silent["trigger"]["expect"]


def test_automations_are_installed_once_and_what_a_person_changed_stands(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL

    api, said = str(PREFECT_API_URL.value()), list[str]()

    def there() -> list[dict[str, Any]]:
        return [found for found in ask(f"{api}/automations/filter", {}) if found["name"].startswith("gptflow: ")]

    install(api, said.append)
    assert [line.split()[1] for line in said] == ["installed:"] * 3
    install(api, said.append)
    assert len(said) == len(there()) == 3
    for found in there():
        ask(f"{api}/automations/{found['id']}", {"enabled": False}, "PATCH")
    install(api, said.append)
    assert len(said) == 3
    newer = ({**automations.AUTOMATIONS[0], "description": "in other words"}, *automations.AUTOMATIONS[1:])
    monkeypatch.setattr(automations, "AUTOMATIONS", newer)
    install(api, said.append)
    assert "renewed: mark silent runs" in said[3]
    assert len(said) == 4
    assert sorted((f["description"] == "in other words", f["enabled"]) for f in there()) == [
        (False, False),
        (False, False),
        (True, False),
    ]
    for found in there():
        ask(f"{api}/automations/{found['id']}", method="DELETE")


def test_a_run_that_was_lost_with_its_machine_makes_room_for_the_next(workplace: Path) -> None:
    """The pool has one place, and a run that no process carries out any more would hold it for good."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL
    from prefect.states import Cancelling, Pending, Running

    api = str(PREFECT_API_URL.value())

    @flow
    def night() -> None: ...

    with get_client(sync_client=True) as client:
        pool.install(api)
        client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"))
        of = client.create_flow(night)
        ours = client.create_deployment(of, "ours", work_pool_name="local")
        theirs = client.create_deployment(of, "theirs", work_pool_name="elsewhere")
        lost, begun, unwanted, next_night = [client.create_flow_run_from_deployment(ours).id for _ in range(4)]
        other = client.create_flow_run_from_deployment(theirs).id
        for run, state in ((lost, Running()), (begun, Pending()), (unwanted, Cancelling()), (other, Running())):
            client.set_flow_run_state(run, state, force=True)

        def due() -> list[UUID]:
            return [found.flow_run.id for found in client.get_scheduled_flow_runs_for_work_pool("local")]

        assert due() == [], "else nothing would have to be ended"
        pool.end_lost_runs(api, lambda _: None)
        states = [client.read_flow_run(run).state for run in (lost, begun, unwanted, other)]
        assert [state.name for state in states if state] == ["Crashed", "Crashed", "Cancelled", "Running"]
        assert due() == [next_night]
