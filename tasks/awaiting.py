"""A flow that waits for people gives its process back, and looks again later.

A run of a deployment is suspended, its process ends, and the server is told when to start the same run again. All
that it waits with is a row in Prefect's database and files of the store, so worker, server and machine may restart
meanwhile. A run without a deployment has nobody to start it again, and sleeps instead.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NoReturn
from uuid import uuid4

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Scheduled, Suspended
from prefect.utilities.engine import propose_state_sync

from gptmodel.errors import GptflowError

STATE = "AwaitingRatings"
_SOMEBODY_ELSE_SECONDS = 10 * 365 * 86_400


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
    _suspend(run, seconds, why)


def _suspend(run: FlowRun, seconds: float, why: str) -> NoReturn:
    with get_client(sync_client=True) as client:
        state = propose_state_sync(
            client, Suspended(timeout_seconds=_SOMEBODY_ELSE_SECONDS, pause_key=str(uuid4())), flow_run_id=run.id
        )
        if state.type != StateType.PAUSED:
            raise GptflowError(f"Prefect did not suspend the run: it is {state.name} ({state.message})")
        again: State[None] = Scheduled(
            scheduled_time=datetime.now(UTC) + timedelta(seconds=seconds), name=STATE, message=why
        )
        client.set_flow_run_state(run.id, again, force=True)
    raise Pause(state=state)
