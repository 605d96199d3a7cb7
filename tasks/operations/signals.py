"""Events by which the system says what happened: Prefect automations send word of them, and deployments start on them.

Every event has a `message`, one line for people, beside its own facts. They are seen under Events in Prefect's pages.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from gptmodel.errors import GptflowError
from tasks.operations.processes import ask

GATE_PASSED = "gptflow.gate.passed"
"""A challenger was found better, and promoted."""
GATE_FAILED = "gptflow.gate.failed"
"""A challenger was trained and not promoted, or a gate stopped the run before it was trained."""
DATA_ARRIVED = "gptflow.data.arrived"
"""There may be new data: retraining looks. Emitted by whoever brings it."""
NOTHING_NEW = "gptflow.retrain.nothing-new"
"""Retraining looked, and there was nothing to learn from."""


def announce(event: str, about: str, message: str, **facts: Any) -> None:
    """Emit an event about an artifact's label or another name; in a flow it is tied to the run by Prefect.

    It is sent beside the work: a server that does not answer stops nothing, and then nobody is told. `facts` must be
    values that JSON has.
    """
    from prefect.events import emit_event  # seconds, which `make up` need not wait for to read the names

    resource = {"prefect.resource.id": f"gptflow.{about.replace('/', '.')}", "prefect.resource.name": about}
    emit_event(event, resource, payload={"message": message, **facts})


def data_arrived(api: str, name: str, message: str) -> list[str]:
    """Say that data came, and wait until the server has it; the automations that start a deployment on it.

    GptflowError if the server does not answer, or if nothing would start.
    """
    found = ask(f"{api}/automations/filter", {"limit": 200})
    if found is None:
        raise GptflowError(f"the Prefect server at {api} does not answer; start it: make up")
    listening = [each["name"] for each in found if each["enabled"] and _starts_on(each, DATA_ARRIVED)]
    if not listening:
        raise GptflowError(f"no deployment starts on {DATA_ARRIVED}; `make up` registers nightly-retrain, which does")
    resource = {"prefect.resource.id": f"gptflow.data.{name}", "prefect.resource.name": name}
    event = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": DATA_ARRIVED}
    if ask(f"{api}/events", [{**event, "resource": resource, "payload": {"message": message}}]) is None:
        raise GptflowError(f"the Prefect server at {api} did not take the event; try again")
    return listening


def _starts_on(automation: dict[str, Any], event: str) -> bool:
    starts = any(action["type"] == "run-deployment" for action in automation["actions"])
    return starts and event in automation["trigger"].get("expect", ())
