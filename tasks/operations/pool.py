"""The work pool of `make up`: one run at a time, and no run that nobody carries out any more.

A machine that is switched off, or a worker that is killed with its run, leaves the run Running, Pending or Cancelling
on the server, and the first two hold the pool's one place. The automations find a silent run only where the server is
up again within a minute of the time when they would have: as it starts, Prefect drops what it waited for before that.
One that had not begun they never find. So whoever starts the worker ends what the one before it left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

from tasks.operations.processes import demand
from tasks.operations.servers import POOL

_MESSAGE = "Its process is gone: `make up` found it so."


def install(api: str) -> None:
    """Make the pool known to a server. One that is there stays as it is."""
    # One run at a time. Not by a worker's --limit: in 3.8 that worker dies when a run is started again at once.
    pool = {"name": POOL, "type": "process", "concurrency_limit": 1}
    demand(f"{api}/work_pools/", pool, none_for=(409,))


def end_lost_runs(api: str, say: Callable[[str], None]) -> None:
    """Mark the pool's runs that have no process Crashed, or Cancelled where a person wanted that. With no worker up.

    The automations start a crashed one again, as they do under a living worker; after a restart of the server they hear
    of one that had begun within the last 5 minutes only 15 minutes later, since Prefect waits for the event before.
    """
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    asked = {"flow_runs": {"state": states}, "work_pools": {"name": {"any_": [POOL]}}}
    living: set[str] | None = None
    for run in demand(f"{api}/flow_runs/filter", asked):
        living = _living(api) if living is None else living
        if run["id"] not in living:
            name = "Cancelled" if run["state_type"] == "CANCELLING" else "Crashed"
            demand(f"{api}/flow_runs/{run['id']}/set_state", _becomes(name))
            say(f"{'Flow run':<15} {run['name']}: its process is gone; marked {name}")


def _becomes(name: str) -> dict[str, Any]:
    return {"state": {"type": name.upper(), "name": name, "message": _MESSAGE}, "force": True}


def _living(api: str) -> set[str]:
    """Runs of this server that have a process on this machine: of a worker that a person started, say."""
    found = set()
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
        if env.get("PREFECT_API_URL") == api:
            found.add(env.get("PREFECT__FLOW_RUN_ID", ""))
    return found
