"""What a flow has made or found so far stays in the store until the flow ends: between two steps no step holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

from gptmodel.store.artifacts import Artifact, open_store
from gptmodel.store.uses import using

_held: ContextVar[ExitStack | None] = ContextVar("held", default=None)


@contextmanager
def holding() -> Iterator[None]:
    """Until the body ends, `gptflow store gc` takes nothing that was given to `hold` in it."""
    with ExitStack() as held:
        token = _held.set(held)
        try:
            yield
        finally:
            _held.reset(token)


def hold(artifact: Artifact) -> Artifact:
    """Keep it until the flow ends, if there is one. In a store that is read-only nothing needs to be kept."""
    if (held := _held.get()) is not None:
        with suppress(OSError):
            held.enter_context(using(open_store().root, [artifact.label]))
    return artifact
