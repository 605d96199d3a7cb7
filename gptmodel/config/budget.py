"""The settings of a budget: what a training may take of time, money and energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gptmodel.checked import STRICT, check


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Bounds on a whole training, all its attempts together. One whose forecast is above them is not started; one that
    goes above them is stopped, saved. They change nothing of what is computed, so they may be raised to go on."""

    __pydantic_config__: ClassVar[Any] = STRICT

    max_hours: float = 0.0
    """Hours from start to end; 0 is no bound."""
    max_cost: float = 0.0
    """Money, by the table's price for an hour of this machine; 0 is no bound."""
    max_energy: float = 0.0
    """kWh, by the table's power of this machine, full all the time; 0 is no bound."""
    rates: str = ""
    """File of your own prices and power; left out, the shipped `gptmodel/planning/rates.yaml`."""

    @property
    def is_set(self) -> bool:
        """Whether there is a bound at all."""
        return bool(self.max_hours or self.max_cost or self.max_energy)

    def __post_init__(self) -> None:
        check(
            self,
            [
                (
                    not 0 <= getattr(self, name) < float("inf"),
                    f"{name} is {getattr(self, name)}; give 0 for no bound, or {unit} above 0",
                )
                for name, unit in (("max_hours", "hours"), ("max_cost", "an amount"), ("max_energy", "kWh"))
            ],
        )
