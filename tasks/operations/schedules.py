"""The schedules of deployments: switched on and off by an explicit word, and left so when deployments are renewed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gptmodel.errors import ConfigError
from tasks.operations.processes import demand

SETTING = "NIGHTLY"
DEPLOYMENT = "nightly-retrain"
Say = Callable[[str], None]
Key = tuple[str, str, str]


def switched_on(api: str) -> set[Key]:
    """(entrypoint, deployment, schedule) of each schedule that is active on the server."""
    return {key for key, _, active in _schedules(api) if active}


def keep_on(api: str, before: set[Key], say: Say) -> None:
    """Switch on again what was on `before`: a deployment that is renewed has its schedule as prefect.yaml says."""
    for key, place, active in list(_schedules(api)):
        if key in before and not active:
            _switch(place, on=True)
            say(f"{'Schedule':<15} {key[1]}: on, as it was")


def switch(api: str, word: str | None, say: Say) -> None:
    """Switch the nightly schedule as the setting says: on or off; left out, it stays as it is.

    ConfigError for another word, ServiceError where the server refuses.
    """
    if word is None:
        return
    if (said := word.strip().lower()) not in ("on", "off"):
        raise ConfigError(f"{SETTING} is {word!r}; say on or off, or leave it out to leave the schedule as it is")
    for key, place, active in list(_schedules(api)):
        if key[1] == DEPLOYMENT:
            if active != (said == "on"):
                _switch(place, on=said == "on")
            say(f"{'Schedule':<15} {key[1]}: {said}")


def _switch(place: str, *, on: bool) -> None:
    demand(place, {"active": on}, "PATCH")


def _schedules(api: str) -> Iterator[tuple[Key, str, bool]]:
    """Key, address and state of every schedule."""
    for deployment in demand(f"{api}/deployments/filter", {"limit": 200}):
        for schedule in deployment["schedules"]:
            key = (deployment["entrypoint"] or "", deployment["name"], _plain(schedule["schedule"]))
            yield key, f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}", schedule["active"]


def _plain(schedule: dict[str, Any]) -> str:
    """What tells a schedule from the others of its deployment, whatever id it has now."""
    return str(schedule.get("cron") or schedule.get("rrule") or schedule.get("interval") or "")
