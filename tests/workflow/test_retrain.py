"""Nights of scheduled retraining, through the real flow, store and MLflow, with the smallest models that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.client.schemas.objects import State

from gptmodel.config import PipelineConfig, recipe
from gptmodel.overrides import PipelineOverrides
from gptmodel.retraining.ledger import Ledger
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from tests.conftest import write_text
from tests.project import more_text, night_sets

NAME = "nights"


class Night:
    """A folder of text, and the flow over it; each night's settings on top of the smallest ones."""

    def __init__(self, folder: Path, sets: list[str]) -> None:
        self.text = write_text(folder / "text", documents=120, sentences=8)
        self.store = Store(folder / "store")
        self.sets = night_sets(sets, NAME, self.text)

    def __call__(self, *sets: str, steps: int = 4) -> tuple[State[Any], dict[str, Artifact]]:
        from flows.pipeline import pipeline

        config = load_config("smoke", sets=[*self.sets, f"train.max_steps={steps}", *sets])
        overrides = PipelineOverrides.model_validate(recipe_of(config))
        state = pipeline(preset="smoke", overrides=overrides, return_state=True)
        return state, state.result(raise_on_failure=False)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, NAME)


def recipe_of(config: PipelineConfig) -> dict[str, Any]:
    """All settings as plain data, those too that a fingerprint leaves out."""
    from dataclasses import asdict

    assert recipe(config)
    return json.loads(json.dumps(asdict(config)))


@pytest.fixture
def night(
    workplace: Path,
    tiny_sets: list[str],
    tmp_path: Path,
    fresh_mlflow: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Night:
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_mlflow(tmp_path / "mlflow.db"))
    return Night(tmp_path, tiny_sets)


def held_out_ids(artifact: Artifact, split: str) -> set[str]:
    from gptmodel.retraining.gate_facts import split_ids

    return split_ids(artifact, split)


@pytest.mark.slow
def test_two_nights_and_one_without_news(night: Night) -> None:
    state, first = night()
    assert state.is_completed(), state.message
    assert "promoted" in str(state.message)
    assert night.ledger.read().champion is not None

    state, found = night()
    assert (state.is_completed(), found) == (True, {})
    assert "nothing new: the source holds what the champion" in str(state.message)
    assert [entry.action for entry in night.ledger.read().entries] == ["freeze", "decide"]

    more_text(night.text, 200)
    state, second = night("init_from=champion", "train.optimizer.learning_rate=0.02", steps=30)
    assert state.is_completed(), state.message
    ledger = night.ledger.read()
    assert ledger.last_decision is not None
    assert ledger.last_decision.outcome == "promoted", ledger.last_decision.facts["said"]
    assert (ledger.champion.label, ledger.previous.label) == (second["model"].label, first["model"].label)  # type: ignore[union-attr]

    # Continued from the champion, by its digest.
    assert first["model"].ref in second["model"].request.inputs
    job = json.loads((night.store.root / ".runs" / second["model"].path.name / "job.json").read_text())
    assert job["config"]["init_from"] == first["model"].label

    # The frozen set is that of the first night, none of it was trained or selected on, and arrivals are apart.
    frozen = held_out_ids(first["held out"], "validation")
    trained = {split: held_out_ids(second["shards"], split) for split in ("train", "validation")}
    assert frozen
    assert not frozen & (trained["train"] | trained["validation"])
    assert frozen < held_out_ids(second["held out"], "validation")
    assert second["evaluation"].request.inputs[1].digest == first["held out"].digest
    checks = {check["name"]: check for check in ledger.last_decision.facts["checks"]}
    arrived = held_out_ids(second["held out"], "validation") - frozen
    assert checks["arrivals"]["figures"]["documents"] == len(arrived) > 0
    assert checks["better"]["figures"]["documents"] == len(frozen)
    assert second["shards"].summary["documents_reused"] > 50, "incremental shards"

    client = MlflowClient()
    aliases = {alias: str(number) for alias, number in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"champion": "2", "previous": "1"}
    assert "promoted" in client.get_model_version(NAME, "1").tags["gptflow.gate"]


@pytest.mark.slow
def test_a_worse_model_stays_challenger_and_is_not_trained_again(night: Night) -> None:
    night("train.optimizer.learning_rate=0.02", steps=30)
    more_text(night.text, 200)
    state, found = night(steps=2)
    assert state.is_completed()
    assert "not shown to be better" in str(state.message)
    ledger = night.ledger.read()
    assert ledger.challenger is not None
    assert ledger.challenger.label == found["model"].label
    assert ledger.champion != ledger.challenger
    state, found = night(steps=2)
    assert found == {}
    assert "last challenger" in str(state.message)


@pytest.mark.slow
def test_a_night_that_died_after_the_decision_is_told_by_the_next(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import gating

    with monkeypatch.context() as patch:
        patch.setattr(gating, "move_aliases", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        state, _ = night()
    assert state.is_failed()
    assert night.ledger.read().champion is not None
    state, found = night()
    assert (state.is_completed(), found) == (True, {})
    assert MlflowClient().get_registered_model(NAME).aliases["champion"]


@pytest.mark.slow
def test_bad_data_stops_the_night_before_training(night: Night) -> None:
    night()
    before = night.ledger.read()
    for path in sorted(night.text.glob("*.txt"))[:100]:
        path.unlink()
    state, error = night()
    assert state.is_failed()
    assert "size" in str(error)
    assert night.ledger.read() == before
    assert len(list(night.store.directories("checkpoint"))) == 1


@pytest.mark.slow
def test_a_changed_split_is_refused_before_training(night: Night) -> None:
    night()
    more_text(night.text, 200)
    state, error = night("corpus.split_key=another")
    assert state.is_failed()
    assert "frozen validation documents of nights would be trained on" in str(error)
    assert len(list(night.store.directories("checkpoint"))) == 1


def test_init_from_a_champion_that_is_not_there_is_a_wrong_setting(night: Night) -> None:
    from flows.pretrain import pretrain

    config = load_config("smoke", sets=[*night.sets, "init_from=nobody@champion"])
    overrides = PipelineOverrides.model_validate(recipe_of(config))
    state = pretrain(preset="smoke", overrides=overrides, return_state=True)
    assert "nobody has no champion yet" in str(state.message)
