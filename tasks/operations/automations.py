"""What the Prefect server does by itself when a run dies: it marks it Crashed, and starts it again, up to a limit.

A worker notices within a second that the process of a run is gone. If the worker is gone as well, only the run's own
heartbeats are left to notice: `make up` has the server mark a run that is silent for too long. A crashed run of a
deployment with the tag `gptflow` is scheduled again, under the same id; its steps reuse what is done, and training goes
on from its checkpoint. A run that failed, or that was cancelled, is left alone. One that waits for people starts anew
at each look, so for it the number of starts says nothing, and it is started again however many there were.

A run that dies before it has begun (still Pending) sends no heartbeat and is not found by this, nor is one that died
with the server, if that stays away for minutes: `tasks.operations.pool` ends these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tasks.operations.processes import ServiceError, ask, demand

TAG, WAITING_TAG = "gptflow", "awaits-people"
HEARTBEAT_SECONDS = 30  # Prefect takes no less
SILENCE_SECONDS = 90.0  # with less than three heartbeats, living runs are marked
RESTARTS = 2
WAITING_PAUSE_SECONDS = 60.0  # longer than the other pause, so that the first crashes are that one's
PAUSE_SECONDS = 30.0  # the worker reports a crash twice, seconds apart: a run that is back by then is hit by the second
SETTINGS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # On a busy machine its database is locked for longer than the 5 s that it waits, and events are dropped.
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    # 2 + 4 + 8 + 16 s for each question: enough for a restart. With its default, 5, a server that is gone costs twice.
    "PREFECT_CLIENT_MAX_RETRIES": "4",
}

_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")
_WAITS = (
    "Paused",
    "Suspended",
    "Scheduled",
    "AwaitingRetry",
    "AwaitingConcurrencySlot",
    "Late",
    "Pending",
    "AwaitingRatings",
)


def _restart(
    name: str, description: str, tag: str, seconds: float, match: dict[str, Any], state: tuple[str, str]
) -> dict[str, Any]:
    """Schedules a crashed run of a tag again after some seconds, unless somebody was faster."""
    return {
        "name": f"gptflow: {name}",
        "description": description,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*", **match},
            "match_related": {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"},
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.Crashed"],
            "expect": [f"prefect.flow-run.{each}" for each in ("Running", *_WAITS)],
            "threshold": 1,
            "within": seconds,
        },
        "actions": [{"type": "change-flow-run-state", "state": "SCHEDULED", "name": state[0], "message": state[1]}],
    }


AUTOMATIONS: tuple[dict[str, Any], ...] = (
    {
        "name": "gptflow: mark silent runs",
        "description": f"A running flow that sent no heartbeat for {SILENCE_SECONDS:.0f} s is marked Crashed.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.Running", "prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in (*_ENDS, *_WAITS))],
            "threshold": 1,
            "within": SILENCE_SECONDS,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"No heartbeat for {SILENCE_SECONDS:.0f} s: its process and its worker are gone.",
            }
        ],
    },
    _restart(
        "restart crashed runs",
        f"A crashed run of a deployment tagged {TAG} is started again, up to {RESTARTS} times.",
        TAG,
        PAUSE_SECONDS,
        {"prefect.run-count": [str(count) for count in range(1, RESTARTS + 1)]},
        ("AwaitingRetry", f"It crashed, and is started again: {RESTARTS} times at most."),
    ),
    _restart(
        "restart waiting runs",
        f"A crashed run of a deployment tagged {WAITING_TAG} looks again, however often it has looked before.",
        WAITING_TAG,
        WAITING_PAUSE_SECONDS,
        {},
        ("AwaitingRetry", "It crashed while it looked, and looks again."),
    ),
)


def install(api: str, say: Callable[[str], None]) -> None:
    """Make these automations known to a server, or bring those of an older version up to date.

    One that a person has changed or switched off since stays so. ServiceError where the server refuses one.
    """
    bring_up_to_date(api, say, AUTOMATIONS, "Automation")


def bring_up_to_date(
    api: str, say: Callable[[str], None], automations: Sequence[dict[str, Any]], title: str, mark: str = ""
) -> None:
    """Install those that are missing, and renew those whose definition, or `mark`, is not that of the server's."""
    there = _there(api)
    for wanted in automations:
        version = _version(wanted, mark)
        found = there.get(wanted["name"])
        if found and version in found["tags"]:
            continue
        body = {**wanted, "tags": [version], "enabled": found is None or found["enabled"]}
        where, method = (f"{api}/automations/{found['id']}", "PUT") if found else (f"{api}/automations/", "POST")
        if ask(where, body, method) is None:
            raise ServiceError(f"the Prefect server refused the automation {wanted['name']!r}; read .run/prefect.log")
        say(f"{title:<15} {'renewed' if found else 'installed'}: {wanted['name'].partition(': ')[2]}")


def remove(api: str, prefix: str, keep: Collection[str]) -> int:
    """Remove automations whose names begin so, but for those to keep; how many there were.

    ServiceError for one that stays: a signal left behind would go on telling.
    """

    def unwanted() -> dict[str, dict[str, Any]]:
        return {n: found for n, found in _there(api).items() if n.startswith(prefix) and n not in keep}

    for found in (first := unwanted()).values():
        ask(f"{api}/automations/{found['id']}", method="DELETE")
    if first and (left := unwanted()):
        raise ServiceError(f"the Prefect server did not remove {', '.join(sorted(left))}; run the same command again")
    return len(first)


def _there(api: str) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in demand(f"{api}/automations/filter", {"limit": 200})}


def _version(wanted: dict[str, Any], mark: str) -> str:
    return "gptflow-" + hashlib.sha256((json.dumps(wanted, sort_keys=True) + mark).encode()).hexdigest()[:12]
