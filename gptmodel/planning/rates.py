"""What hours cost: the table of prices, power and grids in `rates.yaml`, or a person's own copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gptmodel.checked import adapter
from gptmodel.errors import ConfigError

SHIPPED = Path(__file__).with_name("rates.yaml")
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device that can be rented."""

    __pydantic_config__ = _STRICT

    label: str
    tflops: float
    """Dense bf16 peak, in 10^12 operations a second."""
    memory_gb: float
    watts: float
    per_hour: float
    """Price of one device for an hour."""
    mfu: float
    """Share of the peak that training gets."""

    def __post_init__(self) -> None:
        wrong = [n for n in ("tflops", "memory_gb", "watts", "per_hour") if not getattr(self, n) > 0]
        if wrong or not 0 < self.mfu <= 1:
            name = wrong[0] if wrong else "mfu"
            raise ConfigError(f"{self.label}: {name} is {getattr(self, name)}; give a number above 0 (mfu up to 1)")


@dataclass(frozen=True, kw_only=True)
class Local:
    """What an hour of the machine at hand draws and costs."""

    __pydantic_config__ = _STRICT

    watts: float
    per_hour: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The whole table."""

    __pydantic_config__ = _STRICT

    as_of: str
    currency: str
    pue: float
    hardware: dict[str, Hardware]
    this_machine: dict[str, Local]
    grids: dict[str, float]

    def grid(self, named: str) -> float:
        """Grams of CO2-equivalent for a kWh, of a grid of the table or given as a number."""
        try:
            grams = float(named)
        except ValueError:
            if named not in self.grids:
                known = ", ".join(sorted(self.grids))
                raise ConfigError(f"no grid {named!r}; give grams of CO2 for a kWh, or one of {known}") from None
            return self.grids[named]
        if not 0 <= grams < float("inf"):
            raise ConfigError(f"grid is {named}; give grams of CO2 for a kWh, 0 or more")
        return grams

    def device(self, named: str) -> Hardware:
        if named not in self.hardware:
            raise ConfigError(f"no hardware {named!r} in the table; there are {', '.join(sorted(self.hardware))}")
        return self.hardware[named]


@dataclass(frozen=True)
class Bill:
    """What so many device-hours come to."""

    device_hours: float
    cost: float
    kwh: float
    co2_kg: float


def bill(device_hours: float, watts: float, per_hour: float, pue: float, grams: float) -> Bill:
    """Money, energy (at full power all the time) and CO2-equivalent of device-hours."""
    kwh = device_hours * watts / 1000 * pue
    return Bill(device_hours, device_hours * per_hour, kwh, kwh * grams / 1000)


def load_rates(path: Path | None = None) -> Rates:
    """The shipped table, or the one in this file. ConfigError names what is wrong with it."""
    path = path or SHIPPED
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the rates in {path}: {error.strerror}; is the path right?") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return adapter(Rates).validate_python(data)
    except ValidationError as error:
        lost = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing"]
        told = [
            f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}; it is {str(e['input'])[:60]!r}"
            for e in error.errors()
            if e["type"] != "missing"
        ]
        told += [f"{path} lacks {', '.join(lost)}; start from a copy of {SHIPPED}"] if lost else []
        raise ConfigError(told) from None
