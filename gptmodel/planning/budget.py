"""A budget, held against a forecast before a training and against the clock while it goes on.

Money and energy follow from hours by the table of prices, so each bound is a bound on hours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from gptmodel.config import PipelineConfig
from gptmodel.config.budget import BudgetConfig
from gptmodel.errors import ConfigError
from gptmodel.planning.forecast import Forecast, forecast, measure
from gptmodel.planning.plan_text import energy, money, span
from gptmodel.planning.rates import Rates, bill, load_rates
from gptmodel.planning.score import correction
from gptmodel.store.artifacts import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limit:
    """The budget of one training on this machine."""

    budget: BudgetConfig
    rates: Rates
    device: str
    """cpu or cuda: whose price and power count."""
    devices: int = 1
    """GPUs that it keeps busy; of a processor there is one."""

    def over(self, seconds: float) -> str:
        """Which bounds so many seconds from start to end are above, in words; empty for none."""
        hours = seconds / 3600
        local = self.rates.this_machine["gpu" if self.device == "cuda" else "cpu"]
        devices = self.devices if self.device == "cuda" else 1
        spent = bill(hours * devices, local.watts, local.per_hour, self.rates.pue, 0.0)
        found, currency = self.budget, self.rates.currency
        rows = [
            ("max_hours", hours, found.max_hours, span(hours), f"{found.max_hours:g} h"),
            ("max_cost", spent.cost, found.max_cost, money(spent.cost, currency), f"{found.max_cost:g} {currency}"),
            ("max_energy", spent.kwh, found.max_energy, energy(spent.kwh), f"{found.max_energy:g} kWh"),
        ]
        return ", ".join(
            f"{told} of train.budget.{name} {bound}" for name, value, most, told, bound in rows if most and value > most
        )


def limit_of(budget: BudgetConfig, device: str, devices: int = 1) -> Limit:
    """With the prices that the budget names. ConfigError where its table cannot be read."""
    return Limit(budget, load_rates(Path(budget.rates) if budget.rates else None), device, devices)


def refuse_over_budget(
    config: PipelineConfig, validation_tokens: int = 0, devices: int = 1, store: Store | None = None
) -> Forecast | None:
    """Measure a few steps and forecast the training, as `gptflow plan` does; None where there is no budget.

    Past runs of the store correct it.

    ConfigError that tells forecast and bound where it would take more.
    """
    if not config.train.budget.is_set:
        return None
    rates = limit_of(config.train.budget, "cpu").rates
    log.info("a budget is set: measuring a few steps first")
    trial = measure(config)
    factor = correction(store, trial) if store else 1.0
    plan = forecast(config, rates, trial=trial, validation_tokens=validation_tokens, correction=factor)
    if over := over_budget(config, plan, devices):
        raise ConfigError(
            f"not started, the forecast is over the budget: {over}. Raise it, or ask for less, such as a lower "
            "train.max_steps; `gptflow plan` shows what takes how much"
        )
    return plan


def over_budget(config: PipelineConfig, plan: Forecast, devices: int = 1) -> str:
    """Which bounds of the settings a forecast is above, in words; empty for none, or where nothing was measured."""
    if plan.trial is None or not config.train.budget.is_set:
        return ""
    return limit_of(config.train.budget, plan.trial.device, devices).over(plan.seconds)
