"""A week in an hour: nights of scheduled retraining with a real server and worker, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptmodel.retraining.ledger import Ledger
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Store
from gptmodel.training.metrics_log import read_lines
from tasks.operations.processes import ask
from tests.conftest import write_text
from tests.project import Project, more_text, night_sets, opened, until

NAME = "week"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]


class Week:
    """The nights of one project, each a run of its deployment."""

    def __init__(self, project: Project, text: Path, sets: list[str]) -> None:
        self.project, self.text, self.sets = project, text, sets
        self.store = Store(project.folder / "store")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, NAME)

    def start(self, *sets: str) -> str:
        """The id of tonight's run."""
        return self.project.start(f"pipeline/{NAME}", preset="smoke", overrides=overrides([*self.sets, *sets]))

    def end(self, run: str, state: str = "Completed") -> str:
        """Wait for it to end so; its last words."""
        ends = ("Completed", "Failed", "Cancelled")
        until(lambda: self.project.of(run)[0] in ends, "the night to end", seconds=600)
        found = ask(f"{self.project.api}/flow_runs/{run}")
        assert found["state"]["name"] == state, found["state"]
        return str(found["state"]["message"])

    def steps_of_new(self, before: set[Path]) -> int:
        """The last step of a training that was not there before; 0 if it has not begun."""
        logs = [log for log in self.store.root.glob(".runs/*/metrics.jsonl") if log.parent not in before]
        return max((int(line["step"]) for log in logs for line in read_lines(log)), default=0)

    def trainings(self) -> set[Path]:
        return set(self.store.root.glob(".runs/*"))

    def checkpoints(self) -> int:
        return len(list(self.store.directories("checkpoint")))

    def processes(self) -> list[psutil.Process]:
        """Of a night that is going on: its flow and its training."""
        found = []
        for process in psutil.process_iter():
            try:
                words, here = " ".join(process.cmdline()), Path(process.cwd()).is_relative_to(self.project.folder)
                if here and any(part in words for part in ("gptmodel.pretraining.worker", "flow-run", "flow_engine")):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def overrides(sets: list[str]) -> Any:
    return merge_layers("smoke", None, sets)[1]


@pytest.fixture
def week(tmp_path: Path, tiny_sets: list[str]) -> Iterator[Week]:
    text = write_text(tmp_path / "text", documents=120, sentences=8)
    sets = [*night_sets(tiny_sets, NAME, text), "train.max_steps=4"]
    entry = {
        "name": NAME,
        "entrypoint": "flows.pipeline.pipeline",
        "tags": ["gptflow"],
        "work_pool": {"name": "local"},
        "parameters": {"preset": "smoke", "overrides": overrides(sets)},
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "triggers": [
            {
                "type": "event",
                "enabled": True,
                "expect": ["gptflow.data.arrived"],
                "match": {"prefect.resource.id": "gptflow.data.*"},
                "threshold": 1,
                "within": 0,
            }
        ],
    }
    folder = tmp_path / "project"
    folder.mkdir()
    with opened(folder, json.dumps({"deployments": [entry]}), {}) as project:
        yield Week(project, text, sets)


def test_seven_nights(week: Week) -> None:
    project = week.project

    # Monday: data, told by whoever brought it.
    project.run("-m", "flows", "data-arrived", "first")
    deployment = ask(f"{project.api}/deployments/name/pipeline/{NAME}")["id"]
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
    until(lambda: bool(ask(f"{project.api}/flow_runs/filter", asked)), "the event to start a night")
    monday = str(ask(f"{project.api}/flow_runs/filter", asked)[0]["id"])
    assert "promoted" in week.end(monday)
    first = week.ledger.read().champion
    assert first is not None

    # Tuesday: nothing.
    assert "nothing new" in week.end(week.start())
    assert week.checkpoints() == 1

    # Wednesday: most of the data is gone.
    away = week.text.parent / "away"
    away.mkdir()
    for path in sorted(week.text.glob("*.txt"))[:100]:
        shutil.move(path, away)
    wednesday = week.start()
    week.end(wednesday, "Failed")
    assert week.checkpoints() == 1, "the gate was before the training"
    for path in away.iterdir():
        shutil.move(path, week.text)

    # Thursday: data again, and a training that learns less than the champion knows.
    more_text(week.text, 200)
    assert "not shown to be better" in week.end(week.start("train.max_steps=2"))
    ledger = week.ledger.read()
    assert ledger.champion == first
    assert ledger.challenger is not None

    # Friday: a better one, that goes on from the champion.
    more_text(week.text, 300)
    better = ("init_from=champion", "train.optimizer.learning_rate=0.02")
    assert "promoted" in week.end(week.start(*better, "train.max_steps=30"))
    ledger = week.ledger.read()
    assert ledger.champion is not None
    assert ledger.champion != first
    assert ledger.previous == first

    # Saturday: the training is killed in its midst, and its step goes on from the checkpoint.
    more_text(week.text, 400)
    long = ("init_from=champion", "train.max_steps=3000", "train.eval_every=1000", "train.checkpoint_every=200")
    before = week.trainings()
    saturday = week.start(*long)
    until(lambda: week.steps_of_new(before) >= 250, "training to be under way", seconds=300)
    killed = week.processes()
    assert killed
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    week.end(saturday)
    assert project.of(saturday) == ("Completed", 1)

    # Sunday: the server goes down in the midst of the night, and whoever finds it runs `make up`.
    more_text(week.text, 500)
    before = week.trainings()
    sunday = week.start(*long)
    until(lambda: week.steps_of_new(before) >= 100, "training to be under way", seconds=300)
    project.kill("prefect")
    project.up()
    week.end(sunday)

    ledger = week.ledger.read()
    decided = [entry for entry in ledger.entries if entry.action == "decide"]
    assert [entry.outcome for entry in decided[:3]] == ["promoted", "kept", "promoted"]
    assert len(decided) == 5, "Monday, Thursday, Friday, Saturday, Sunday"
    promoted = [entry for entry in decided if entry.outcome == "promoted"]
    assert ledger.champion == promoted[-1].subject
    assert ledger.previous == promoted[-2].subject
    url = f"http://127.0.0.1:{project.ports['MLFLOW_PORT']}/api/2.0/mlflow/registered-models/get?name={NAME}"
    aliases = {a["alias"]: a["version"] for a in ask(url)["registered_model"]["aliases"]}
    version = ask(f"{url.replace('registered-models/get', 'model-versions/get')}&version={aliases['champion']}")
    tags = {tag["key"]: tag["value"] for tag in version["model_version"]["tags"]}
    assert ledger.champion is not None
    assert tags["gptflow.fingerprint"].startswith(ledger.champion.label.split("/")[1])

    # Somebody was told of the bad data and of models that were not better, and of no good night.
    assert {said["subject"] for said in project.told} == {
        f"gptflow: pipeline / pipeline {NAME} failed",
        f"gptflow: {NAME} did not pass",
    }
