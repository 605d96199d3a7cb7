"""Events by which the system says what happened: Prefect automations send word of them, and deployments start on them.

Every event has a `message`, one line for people, beside its own facts. They are seen under Events in Prefect's pages.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

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
    resource = {"prefect.resource.id": f"gptflow.{about.replace('/', '.')}", "prefect.resource.name": about}
    emit_event(event, resource, payload={"message": message, **facts})
