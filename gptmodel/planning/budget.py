"""A budget, held against a forecast before a training and against the clock while it goes on.

Money and energy follow from hours by the table of prices, so each bound is a bound on hours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.config import PipelineConfig
from gptmodel.config.budget import BudgetConfig
from gptmodel.errors import ConfigError
from gptmodel.planning.forecast import Forecast, forecast
from gptmodel.planning.measuring import measure
from gptmodel.planning.past import correction
from gptmodel.planning.plan_text import energy, money, span
from gptmodel.planning.rates import Rates, bill, load_rates
from gptmodel.store.artifacts import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """One bound of a budget, and what is held against it."""

    name: str
    value: float
    most: float
    words: Callable[[float], str]
    unit: str

    @property
    def told(self) -> str:
        return self.words(self.value)

    @property
    def limit(self) -> str:
        return f"{self.most:g} {self.unit}"


@dataclass(frozen=True)
class Limit:
    """The budget of one training on this machine."""

    budget: BudgetConfig
    rates: Rates
    device: str
    """cpu or cuda: whose price and power count."""
    devices: int = 1
    """GPUs that it keeps busy; of a processor there is one."""

    def bounds(self, seconds: float) -> list[Bound]:
        """What so many seconds from start to end come to, against each bound that is set."""
        hours = seconds / 3600
        local = self.rates.this_machine["gpu" if self.device == "cuda" else "cpu"]
        devices = self.devices if self.device == "cuda" else 1
        spent = bill(hours * devices, local.watts, local.per_hour, self.rates.pue, 0.0)
        found, currency = self.budget, self.rates.currency
        rows = [
            Bound("max_hours", hours, found.max_hours, span, "h"),
            Bound("max_cost", spent.cost, found.max_cost, lambda value: money(value, currency), currency),
            Bound("max_energy", spent.kwh, found.max_energy, energy, "kWh"),
        ]
        return [row for row in rows if row.most]

    def over(self, seconds: float) -> str:
        """Which bounds so many seconds are above, in words; empty for none."""
        above = [row for row in self.bounds(seconds) if row.value > row.most]
        return ", ".join(f"{row.told} of train.budget.{row.name} {row.limit}" for row in above)


def limit_of(budget: BudgetConfig, device: str, devices: int = 1) -> Limit:
    """With the prices that the budget names. ConfigError where its table cannot be read."""
    return Limit(budget, load_rates(Path(budget.rates) if budget.rates else None), device, devices)


def measured_forecast(config: PipelineConfig, store: Store | None = None, **data: Any) -> Forecast:
    """The forecast by a few steps here and now, as `gptflow plan` makes it; past runs of the store correct it.

    `data` are the tokens that `forecast` takes.
    """
    log.info("a budget is set: measuring a few steps first")
    trial = measure(config)
    factor = correction(store, trial) if store else (1.0, 0)
    return forecast(config, rates_of(config), trial=trial, correction=factor, **data)


def refuse_over_budget(config: PipelineConfig, plan: Forecast) -> None:
    """ConfigError that tells forecast and bound where the training would take more."""
    if over := over_budget(config, plan):
        raise ConfigError(
            f"not started, the forecast is over the budget: {over}. Raise it, or ask for less, such as a lower "
            "train.max_steps; `gptflow plan` shows what takes how much"
        )


def over_budget(config: PipelineConfig, plan: Forecast) -> str:
    """Which bounds of the settings a forecast is above, in words; empty for none, or where nothing is known of time."""
    if plan.pace is None or not config.train.budget.is_set:
        return ""
    return limit_of(config.train.budget, plan.device, plan.processes).over(plan.seconds)


def rates_of(config: PipelineConfig) -> Rates:
    """The prices that the settings name, or the shipped ones."""
    return load_rates(Path(config.train.budget.rates) if config.train.budget.rates else None)
