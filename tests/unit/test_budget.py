"""A budget: what is above it in words, a run that is stopped by it with nothing lost, and one that is not begun."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptmodel.config import PipelineConfig
from gptmodel.config.budget import BudgetConfig
from gptmodel.errors import BudgetError, ConfigError
from gptmodel.planning import budget as budgets
from gptmodel.planning.budget import limit_of, measured_forecast, over_budget
from gptmodel.planning.budget_text import budget_section
from gptmodel.planning.forecast import forecast
from gptmodel.planning.measuring import Trial
from gptmodel.planning.rates import SHIPPED, load_rates
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training import loop
from gptmodel.training.checkpoint import TrainState
from tests.unit.test_spikes import CONFIG, Run, same

Tiny = Callable[..., PipelineConfig]


class Clock:
    """In place of the `time` of the loop: each look at it takes a second, so that no machine is too fast or slow."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> object:
        import time

        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(loop, "time", made)
    return made


def bounded(directory: Path, hours: float, clock: Clock) -> Run:
    run = Run(directory, replace(CONFIG, checkpoint_every=1000, spike_threshold=0.0))
    run.trainer.began = clock.now
    run.trainer.over_budget = limit_of(BudgetConfig(max_hours=hours), "cpu").over
    return run


def test_bounds_are_told_in_their_own_units() -> None:
    local, pue = load_rates().this_machine, load_rates().pue
    limits = BudgetConfig(max_hours=3, max_cost=local["cpu"].per_hour, max_energy=100)
    assert limit_of(limits, "cpu").over(3599) == ""
    assert limit_of(limits, "cpu").over(7200) == "0.20 USD of train.budget.max_cost 0.1 USD"
    assert "4.0 h of train.budget.max_hours 3 h, 0.40 USD of" in limit_of(limits, "cpu").over(4 * 3600)
    kwh = local["gpu"].watts / 1000 * pue
    assert limit_of(BudgetConfig(max_energy=kwh * 1.01), "cuda").over(3600) == ""
    assert "train.budget.max_energy" in limit_of(BudgetConfig(max_energy=kwh * 1.01), "cuda", devices=2).over(3600)
    assert limit_of(BudgetConfig(max_cost=local["cpu"].per_hour), "cpu", devices=2).over(3600) == "", "of one processor"
    assert limit_of(BudgetConfig(max_hours=1), "cpu").over(3601) == "1.0 h of train.budget.max_hours 1 h"
    assert [bound.name for bound in limit_of(BudgetConfig(max_hours=1), "cpu").bounds(9e9)] == ["max_hours"]


def test_a_forecast_counts_each_gpu_and_ones_own_prices(tiny: Tiny, tmp_path: Path) -> None:
    two = replace(TRIAL, device="cuda", processes=2)  # 25 s: 50 s of a GPU
    an_hour = load_rates().this_machine["gpu"].per_hour
    config = tiny(f"train.budget.max_cost={40 / 3600 * an_hour}")
    assert "train.budget.max_cost" in over_budget(config, forecast(config, load_rates(), trial=two))
    assert over_budget(config, forecast(config, load_rates(), trial=replace(two, processes=1))) == ""
    mine = tmp_path / "mine.yaml"
    mine.write_text(SHIPPED.read_text().replace("cpu: {watts: 30, per_hour: 0.10}", "cpu: {watts: 30, per_hour: 9}"))
    own = tiny(f"train.budget.rates={mine}", "train.budget.max_cost=1")
    assert budgets.rates_of(own).this_machine["cpu"].per_hour == 9
    assert budgets.rates_of(tiny()).this_machine["cpu"].per_hour == 0.10


def test_a_budget_is_held_against_what_past_runs_correct(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "measure", lambda _: TRIAL)
    monkeypatch.setattr(budgets, "correction", lambda *_: (3.0, 5))
    store = Store(Path("store"))
    assert measured_forecast(tiny("train.budget.max_hours=1"), store).seconds == 3 * 25
    assert measured_forecast(tiny("train.budget.max_hours=1")).seconds == 25


def test_the_plan_tells_what_is_left_of_a_budget(tiny: Tiny) -> None:
    config = tiny("train.budget.max_hours=0.01", "train.budget.max_cost=1")
    time, cost = budget_section(config, forecast(config, load_rates(), trial=TRIAL), spent_seconds=12).rows
    assert time[:2] == ("time (max_hours)", "25 s of 0.01 h")
    assert time[2] == "12 s spent by earlier attempts, 24 s left; 69 %, by the forecast; the clock of the run decides"
    assert cost[1] == "under 0.01 USD of 1 USD"
    (over,) = budget_section(
        dear := tiny("train.budget.max_hours=0.005"), forecast(dear, load_rates(), trial=TRIAL)
    ).rows
    assert over[2] == "over by 7 s: would not be started"
    several = forecast(config, load_rates(), trial=replace(TRIAL, device="cuda", processes=4))
    assert several.here is not None
    assert several.here.device_hours == pytest.approx(4 * several.seconds / 3600)


def test_ones_own_prices_count(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(SHIPPED.read_text().replace("cpu: {watts: 30, per_hour: 0.10}", "cpu: {watts: 30, per_hour: 9}"))
    assert "9.00 USD of" in limit_of(BudgetConfig(max_cost=5, rates=str(mine)), "cpu").over(3600)
    mine.write_text(re.sub(r"(?m)^pue: [0-9.]+", "pue: 2.0", SHIPPED.read_text()))
    kwh = load_rates().this_machine["cpu"].watts / 1000
    assert "max_energy" in limit_of(BudgetConfig(max_energy=1.9 * kwh, rates=str(mine)), "cpu").over(3600), "cooling"
    assert limit_of(BudgetConfig(max_energy=2.1 * kwh, rates=str(mine)), "cpu").over(3600) == ""
    with pytest.raises(ConfigError, match="cannot read the rates"):
        limit_of(BudgetConfig(max_cost=5, rates=str(tmp_path / "none.yaml")), "cpu")


@pytest.mark.parametrize("wrong", ["train.budget.max_hours=-1", "train.budget.max_cost=.inf"])
def test_a_wrong_bound_is_told(tiny: Tiny, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"give (0 for no bound|a finite number)"):
        tiny(wrong)


def test_a_run_above_its_budget_stops_saved_and_goes_on_to_the_same_bits(tmp_path: Path, clock: Clock) -> None:
    whole = bounded(tmp_path / "whole", 0.0, clock)
    whole.go()
    with pytest.raises(BudgetError, match=r"after step \d+ of 30: .* of train.budget.max_hours 0.01 h; saved") as told:
        bounded(tmp_path / "run", 0.01, clock).go()
    assert told.value.exit_code == 1
    again = bounded(tmp_path / "run", 0.01, clock)
    stopped = again.checkpoints.steps()[-1]
    assert 0 < stopped < 30
    with pytest.raises(BudgetError, match=f"after step {stopped} of 30"):  # all attempts count, and not a step is made
        again.go()
    more = bounded(tmp_path / "run", 1.0, clock)
    state = more.go()
    assert same(more.weights(), whole.weights())
    assert more.curve() == whole.curve()
    assert state.elapsed > 0.01 * 3600


def test_a_run_that_is_done_is_not_withheld(tmp_path: Path, clock: Clock) -> None:
    run = bounded(tmp_path, 1.0, clock)

    advance = run.trainer.advance

    def late(state: TrainState) -> loop.Seen:
        seen = advance(state)
        if state.step == 30:
            run.trainer.over_budget = lambda _: "too much"
        return seen

    run.trainer.advance = late  # type: ignore[method-assign]
    assert run.go().step == 30


TRIAL = Trial(
    *(2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10**8, 1e6, 10**9, "float32", "as configured", "cpu", "cpu", 1, 1e9, "measured")
)


def test_a_forecast_above_the_budget_is_refused(
    tiny: Tiny, tiny_data: tuple[Store, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "measure", lambda _: TRIAL)  # real trials: workflow/test_plan.py
    assert measured_forecast(tiny("train.budget.max_hours=1")).seconds == 12 * 2 + 1
    dear = tiny("train.budget.max_hours=0.001", "train.budget.max_energy=1")
    assert over_budget(dear, forecast(dear, load_rates())) == "", "nothing measured, nothing to hold against it"
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, tmp_path / "store" / kind)
    store = Store(tmp_path / "store")
    training = plan_training(store, dear, store.resolve(tiny_data[1].label))
    with pytest.raises(
        ConfigError, match=r"not started, .* over the budget: 25 s of train.budget.max_hours 0.001"
    ) as no:
        pretrain(store, training)
    assert no.value.exit_code == 2
    assert not store.building_path(training.request).exists()
    assert training.request.fingerprint == plan_training(store, tiny(), training.shards).request.fingerprint


@pytest.mark.slow
def test_the_training_process_keeps_to_its_budget(
    tiny: Tiny, tiny_data: tuple[Store, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the child: its own start already takes more than this; without a bound it goes on to the end."""
    monkeypatch.setattr(budgets, "measure", lambda _: replace(TRIAL, step_seconds=1e-9, start_seconds=0.0))
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, tmp_path / "store" / kind)
    store = Store(tmp_path / "store")
    shards = store.resolve(tiny_data[1].label)
    with pytest.raises(BudgetError, match=r"over the budget after step 1 of 12: .* train.budget.max_cost 1e-06 USD"):
        pretrain(store, plan_training(store, tiny("train.budget.max_cost=1e-6"), shards), on_line=lambda _: None)
    lines: list[str] = []
    bounded = tiny("train.budget.max_hours=1")
    made, _ = pretrain(store, plan_training(store, bounded, shards), on_line=lines.append)
    assert any(line.startswith("going on from the checkpoint of step 1") for line in lines)
    assert made.summary["step"] == 12
