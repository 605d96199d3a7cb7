"""When a step is tried again: only when time can heal it, later each time, never all at once."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import httpx
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from gptmodel.errors import TransientError

PATIENCE = 300.0
"""Seconds: a server that asks to be left alone for longer ends the step."""
_HEALED_BY_TIME = (TransientError, ConnectionError, TimeoutError, httpx.TransportError)


async def can_heal(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry a failed network, tracker, lock or killed child; never a wrong setting, bad data or a NaN.

    What a server asked for (Retry-After) is waited here, before the delay that each retry has.
    """
    found = await state.aresult(raise_on_failure=False)
    if not isinstance(found, _HEALED_BY_TIME):
        return False
    wish = getattr(found, "retry_after", None) or 0.0
    if wish > PATIENCE:
        return False  # the error tells how long it asks to wait
    await asyncio.sleep(wish)
    return True


class StepOptions(TypedDict):
    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float
    retry_condition_fn: Any
    cache_policy: Any
    persist_result: bool


STEP: StepOptions = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": can_heal,
    # The store decides what is already done: it knows the bytes, the orchestrator only the call.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
