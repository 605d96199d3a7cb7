"""A flow that waits for people gives its process back, and looks again later.

A run of a deployment goes from Running to Scheduled in one step, and its process ends: there is no moment at which a
kill could leave it with nobody to start it again. All that it waits with is a row in Prefect's database and files of
the store, so worker, server and machine may restart meanwhile. One that is killed before its process has ended is
marked Crashed by its worker, and started again by an automation (`tasks.operations.automations`). A run without a
deployment has nobody to start it again, and sleeps instead.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Scheduled
from prefect.utilities.engine import propose_state_sync

from gptmodel.errors import GptflowError

STATE = "AwaitingRatings"


def this_run() -> FlowRun | None:
    """The Prefect run that this code is part of."""
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def rest(seconds: float, why: str) -> None:
    """Come back after so many seconds: by returning, or, for a run of a deployment, by starting all over.

    Raises Pause, which ends the process of a run of a deployment without ending the run.
    """
    run = this_run()
    get_run_logger().info("%s; looks again in %s", why, timedelta(seconds=round(seconds)))
    if run is None or run.deployment_id is None:
        time.sleep(seconds)
        return
    _leave(run, seconds, why)


def _leave(run: FlowRun, seconds: float, why: str) -> NoReturn:
    again: State[None] = Scheduled(
        scheduled_time=datetime.now(UTC) + timedelta(seconds=seconds), name=STATE, message=why
    )
    with get_client(sync_client=True) as client:
        state = propose_state_sync(client, again, flow_run_id=run.id)
    if state.type != StateType.SCHEDULED:
        raise GptflowError(f"Prefect did not let the run wait: it is {state.name} ({state.message})")
    raise Pause(state=state)
