"""Forecasts of real trainings, scored: by settings, trial, past runs and first steps; and what they teach the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from flows.commands.plan import plan as plan_command
from gptmodel.config import OptimizerConfig, PipelineConfig, TrainConfig
from gptmodel.planning import budget as budgets
from gptmodel.planning import past as past_room
from gptmodel.planning.forecast import Forecast, forecast
from gptmodel.planning.past import correction, past
from gptmodel.planning.rates import load_rates
from gptmodel.planning.score import Score, bases, median_and_worst, past_scores, scores
from gptmodel.pretraining.step import plan_training, pretrain, run_dir_of
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.pace import Pace, evaluations, first_steps, saves, saves_beside_steps
from gptmodel.training.stopwatch import FIRST_STEPS_FILE, Stopwatch
from tests.unit.test_budget import TRIAL

Tiny = Callable[..., PipelineConfig]
FIGURES = {"seconds", "tokens_per_second", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def ran(
    tiny: Tiny, undisturbed: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Artifact, Artifact, Forecast]:
    """A store with two real trainings of one shape: one of its own accord, one shorter with a budget, measured before:
    its steps were foretold to take two seconds; and the forecast of that."""
    root = tmp_path_factory.mktemp("scored") / "store"
    shutil.copytree(undisturbed.path.parents[1], root)
    store, plans = Store(root), list[Forecast]()
    free = store.resolve(undisturbed.label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "measure", lambda _: TRIAL)
        config = tiny("train.budget.max_hours=1", "train.max_steps=5")
        training = plan_training(store, config, store.input_of(free, "shards"))
        held, _ = pretrain(store, training, on_line=lambda _: None, on_plan=plans.append)
    return store, free, held, plans[0]


Ran = tuple[Store, Artifact, Artifact, Forecast]


def with_summary(made: Artifact, **changed: object) -> Artifact:
    return replace(made, summary={**made.summary, **changed})


def with_pace(made: Artifact, **changed: object) -> Artifact:
    return with_summary(made, pace={**made.summary["pace"], **changed})


def test_every_run_is_scored_by_its_settings_and_its_first_steps(ran: Ran, tiny: Tiny) -> None:
    free, before = ran[1], forecast(tiny(), load_rates())
    found = scores(free.provenance, free.summary)
    assert set(found) == {"disk_bytes", "loss", "counted/peak_memory_bytes"} | {f"first_steps/{f}" for f in FIGURES}
    assert found["counted/peak_memory_bytes"].forecast == before.memory.total
    assert found["disk_bytes"].error == pytest.approx(0, abs=0.02)
    time = found["first_steps/seconds"]
    assert time.actual == free.summary["elapsed_seconds"] > free.summary["seconds"]
    assert 0 < time.forecast < 10 * time.actual
    assert found["first_steps/peak_memory_bytes"].error == pytest.approx(0, abs=0.1)
    assert bases(free.provenance)["first_steps"] == "after step 3 of 12"


def test_a_run_with_a_budget_is_scored_by_its_trial_too(ran: Ran) -> None:
    store, free, held, plan = ran
    found = scores(held.provenance, held.summary)
    assert set(found) == {*scores(free.provenance, free.summary), *FIGURES}
    assert found["seconds"] == Score(5 * 2 + 1, held.summary["elapsed_seconds"], "seconds", "trial")
    assert found["tokens_per_second"].forecast == 4 * 32 / 2
    assert plan.trial == TRIAL
    assert {found[name].basis for name in ("disk_bytes", "loss")} == {"settings"}, "no step tells these"
    early = scores(held.provenance, {**held.summary, "stopped_early": True})
    assert set(found) - set(early) == {"seconds", "first_steps/seconds"}
    assert len(past_scores(store)["peak_memory_bytes from the settings alone"]) == 2


def test_the_report_tells_each_kind_of_forecast_apart(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, held, _ = ran
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    told = json.loads(CliRunner().invoke(plan_command, ["--report", "--json"]).stdout)
    error = scores(held.provenance, held.summary)["seconds"].error
    assert [row["error"] for row in told["seconds by trial steps before the start"]] == [error]
    assert len(told["seconds by the run's own first steps"]) == 2
    words = " ".join(CliRunner().invoke(plan_command, ["--report"]).stdout.split())
    assert f"time {100 * error:+.1f} % foretold by trial steps before the start; one run" in words
    assert "foretold by the run's own first steps; 2 runs, worst" in words
    assert median_and_worst([Score(10, 12), Score(10, 5), Score(10, 11)]) == (pytest.approx(0.1), -0.5)


def test_past_runs_of_the_shape_tell_the_pace_of_the_next(ran: Ran, tiny: Tiny) -> None:
    store, free, held, _ = ran
    found = past(store, tiny("train.max_steps=400", "train.eval_every=50"))
    assert found is not None
    assert (found.runs, found.device, found.precision) == (2, "cpu", "float32")
    paces = [made.summary["pace"] for made in (free, held)]
    assert found.pace.step_seconds == pytest.approx(sum(pace["step_seconds"] for pace in paces) / 2)
    longer = forecast(tiny("train.max_steps=400"), load_rates(), past=found)
    assert longer.seconds > 399 * found.pace.step_seconds
    assert (longer.basis, longer.pace) == ("past runs", found.pace)
    for other in ("model.n_embd=32", "train.micro_batch_size=4", "train.threads=9", "train.eval_tokens=300"):
        assert past(store, tiny(other)) is None, other
    assert past(store, tiny("train.device=cuda")) is None
    assert past(store, tiny("train.optimizer.kind=muon")) is None
    assert past(store, tiny("train.processes=2")) is None


def test_past_runs_that_say_nothing_of_the_next_are_left_out(
    ran: Ran, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, free, _, _ = ran
    elsewhere = replace(free, provenance={**free.provenance, "cpu": "another"})
    old = with_summary(free, pace={"step_seconds": 1.0})
    for odd in (elsewhere, with_pace(free, resumed=True), old):
        monkeypatch.setattr(past_room, "trainings", lambda _, odd=odd: [odd])
        assert past(store, tiny()) is None
    paces = [with_pace(free, step_seconds=seconds) for seconds in (1.0, 2.0, 9.0)]
    monkeypatch.setattr(past_room, "trainings", lambda _: paces)
    found = past(store, tiny())
    assert found is not None
    assert (found.pace.step_seconds, found.runs) == (2.0, 3), "the median"
    plain, corrected = (forecast(tiny(), load_rates(), past=found, correction=c) for c in ((1.0, 0), (3.0, 3)))
    assert plain.seconds == corrected.seconds, "past runs took what they took: only a trial is corrected"


def test_three_measured_runs_correct_the_next(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, held, _ = ran
    ratio = held.summary["elapsed_seconds"] / (5 * 2 + 1)
    for runs, wanted in ((2, 1.0), (3, ratio)):
        monkeypatch.setattr(past_room, "trainings", lambda _, n=runs: [held] * n)
        assert correction(store, TRIAL) == (pytest.approx(wanted), runs)
    assert correction(store, replace(TRIAL, threads=9)) == (1.0, 0), "another machine"
    odd = [
        with_summary(held, elapsed_seconds=seconds) for seconds in (11.0, 22.0, 99.0)
    ]  # once, twice and nine times what its trial foretold
    monkeypatch.setattr(past_room, "trainings", lambda _: odd)
    assert correction(store, TRIAL) == (2.0, 3), "the median: one slow night is no reason to expect more"
    corrected = replace(held, provenance={**held.provenance, "plan": {**held.provenance["plan"], "correction": 4.0}})
    monkeypatch.setattr(past_room, "trainings", lambda _: [with_summary(corrected, elapsed_seconds=11.0)] * 3)
    assert correction(store, TRIAL) == (4.0, 3), "of what the trial foretold, before it was corrected"
    stopped, resumed = with_summary(held, stopped_early=True), with_pace(held, resumed=True)
    monkeypatch.setattr(past_room, "trainings", lambda _: [stopped, resumed] * 3)
    assert correction(store, TRIAL) == (1.0, 0)
    plain, raised = (
        forecast(load_config("smoke"), load_rates(), trial=TRIAL, correction=c) for c in ((1.0, 0), (2.0, 3))
    )
    assert raised.seconds == 2 * plain.seconds


def test_a_damaged_model_keeps_nobody_from_planning(ran: Ran, tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(ran[0].root, tmp_path / "store")
    store = Store(tmp_path / "store")
    (store.root / "checkpoint" / ran[1].path.name / "manifest.json").write_text("{")
    found = past(store, tiny())
    assert found is not None
    assert found.runs == 1


def test_a_pace_counts_what_the_loop_does() -> None:
    train = TrainConfig(max_steps=25, eval_every=10, checkpoint_every=6, optimizer=OptimizerConfig(warmup_steps=1))
    assert evaluations(train) == len([0, 10, 20, 25])
    assert saves(train) == len([6, 12, 18, 24, 25])
    assert saves(replace(train, publish="best")) == len([0, 6, 10, 12, 18, 20, 24, 25])
    assert saves(replace(train, on_spike="rollback")) == len([0, 6, 12, 18, 24, 25])
    assert [saves_beside_steps(replace(train, checkpoint_every=n)) for n in (6, 25)] == [True, False]
    pace = Pace(
        start_seconds=1000, step_seconds=1, evaluation_seconds=10, save_seconds=100, end_seconds=5, peak_memory_bytes=0
    )
    assert pace.seconds(train) == 1000 + 25 + 4 * 10 + 5 * 100 + 5
    assert pace.seconds(train, done=12) == 13 + 2 * 10 + 4 * 100 + 5
    assert [first_steps(n) for n in (1, 3, 4, 20, 300, 19_073)] == [0, 0, 3, 3, 15, 20]


@pytest.mark.parametrize("on_spike", ["stop", "rollback"])
@pytest.mark.parametrize("publish", ["last", "best"])
@pytest.mark.parametrize("last", [1, 2, 12, 13, 24, 30])
def test_what_is_counted_by_arithmetic_is_what_is_counted_step_by_step(
    last: int, publish: Literal["last", "best"], on_spike: Literal["stop", "rollback"]
) -> None:
    for evaluate_every, save_every in product((1, 4, 6, 13, 50), repeat=2):
        train = TrainConfig(max_steps=last, eval_every=evaluate_every, checkpoint_every=save_every)
        train = replace(train, publish=publish, on_spike=on_spike)
        evaluated = {0, last, *range(evaluate_every, last, evaluate_every)}
        saved = {last, *range(save_every, last, save_every)} | (evaluated if publish == "best" else set())
        saved |= {0} if on_spike == "rollback" else set()
        assert saves_beside_steps(train) == any(0 < step < last for step in saved)
        for done in range(last + 1):
            assert evaluations(train, done) == sum(step >= done for step in evaluated)
            assert saves(train, done) == sum(step >= done for step in saved)


def test_the_forecast_of_the_first_steps_is_what_is_done_and_the_rest_at_their_pace(tmp_path: Path) -> None:
    train = TrainConfig(max_steps=10, eval_every=5, checkpoint_every=5, batch_size=4, micro_batch_size=4)
    clock = Stopwatch(tmp_path / FIRST_STEPS_FILE, start=3.0, steps=[9.0, 2.0, 2.5], evaluations=[1.0])
    assert [clock.is_due(step, 10) for step in (2, 3, 4)] == [False, True, False]
    assert not Stopwatch().is_due(3, 10)
    assert not Stopwatch(clock.path, steps=[1.0]).is_due(3, 10), "an attempt that went on has not seen them all"
    clock.foretell(train, n_tokens=128, elapsed=20.0, save_seconds=0.5, peak_memory_bytes=7)
    told = json.loads((tmp_path / FIRST_STEPS_FILE).read_text())
    assert told == {
        "after_step": 3,
        "of": 10,
        "seconds": 20 + 7 * 2.25 + 2 * 1.0 + 2 * 0.5,
        "tokens_per_second": 128 / 2.25,
        "peak_memory_bytes": 7,
    }


def test_a_first_step_that_compiles_is_no_measure_of_the_steps_of_a_longer_run() -> None:
    told = Stopwatch(start=3.0, steps=[62.0, 2.0, 2.0], evaluations=[1.0], saves=[4.0]).pace(7)
    assert (told["start_seconds"], told["step_seconds"]) == (63.0, 2.0)
    short = TrainConfig(max_steps=3, eval_every=3, checkpoint_every=3)
    assert Pace(**told).seconds(short) == 3 + 62 + 2 + 2 + 2 * 1 + 4, "the whole of the run itself stays what it was"
    assert Stopwatch(start=3.0, steps=[5.0]).pace(7)["step_seconds"] == 5.0
    assert Stopwatch(start=3.0).pace(7) == {}


def test_nothing_that_cannot_be_read_is_sealed(tmp_path: Path) -> None:
    from gptmodel.planning.score import PLAN_FILE, seal_plan

    assert seal_plan(tmp_path) == {}
    (tmp_path / PLAN_FILE).write_text("[")
    (tmp_path / FIRST_STEPS_FILE).write_text('{"seconds": 1}')
    assert seal_plan(tmp_path) == {"plan": {"first_steps": {"seconds": 1}}}
    assert run_dir_of(Store(tmp_path), "a" * 64).name == "a" * 16
