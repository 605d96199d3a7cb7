"""The schedules of deployments: switched on and off by an explicit word, and left so when deployments are renewed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptmodel.errors import ConfigError
from tasks.operations.processes import demand

SETTING = "NIGHTLY"
DEPLOYMENT = "nightly-retrain"
Say = Callable[[str], None]
Key = tuple[str, str]  # entrypoint, deployment
States = dict[Key, dict[str, bool]]  # of each schedule of a deployment, by its time: whether it is on


def states(api: str) -> States:
    """Of all schedules that the server has."""
    found: States = {}
    for key, when, _, active in _schedules(api):
        of = found.setdefault(key, {})
        of[when] = active or of.get(when, False)
    return found


@contextmanager
def kept_on(api: str, note: Path, say: Say) -> Iterator[None]:
    """What was on before the body renewed deployments is on after it, also where the body fails midway.

    What was on stands in `note` until then, so that the next time finishes what was cut off.
    """
    before = states(api) | _noted(note)
    note.write_text(json.dumps([[*key, of] for key, of in before.items()]))
    try:
        yield
    finally:
        keep_on(api, before, say)
        note.unlink()


def keep_on(api: str, before: States, say: Say) -> None:
    """Switch on again what was on `before`: a deployment that is renewed has its schedules as prefect.yaml says.

    One with a new time takes the place of one that was on and is gone.
    """
    now = states(api)
    for key, when, place, active in list(_schedules(api)):
        was = before.get(key, {})
        moved = any(on for time, on in was.items() if time not in now[key])
        if was.get(when, moved) and not active:
            _switch(place, on=True)
            say(f"{'Schedule':<15} {key[1]}: on, as it was ({when})")


def _noted(note: Path) -> States:
    try:
        return {(entrypoint, name): of for entrypoint, name, of in json.loads(note.read_text())}
    except (OSError, ValueError, TypeError):
        return {}


def switch(api: str, word: str | None, say: Say) -> None:
    """Switch the nightly schedule as the setting says: on or off; left out, it stays as it is.

    ConfigError for another word, ServiceError where the server refuses.
    """
    if word is None:
        return
    if (said := word.strip().lower()) not in ("on", "off"):
        raise ConfigError(f"{SETTING} is {word!r}; say on or off, or leave it out to leave the schedule as it is")
    for key, _, place, active in list(_schedules(api)):
        if key[1] == DEPLOYMENT:
            if active != (said == "on"):
                _switch(place, on=said == "on")
            say(f"{'Schedule':<15} {key[1]}: {said}")


def _switch(place: str, *, on: bool) -> None:
    demand(place, {"active": on}, "PATCH")


def _schedules(api: str) -> Iterator[tuple[Key, str, str, bool]]:
    """Deployment, time, address and state of every schedule."""
    for deployment in demand(f"{api}/deployments/filter", {"limit": 200}):
        for schedule in deployment["schedules"]:
            key = (deployment["entrypoint"] or "", deployment["name"])
            place = f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}"
            yield key, _plain(schedule["schedule"]), place, schedule["active"]


def _plain(schedule: dict[str, Any]) -> str:
    """What tells a schedule from the others of its deployment, whatever id it has now."""
    return str(schedule.get("cron") or schedule.get("rrule") or schedule.get("interval") or "")
