"""Spikes: what counts as one, and which documents were in a batch.

A loss or a gradient that is not finite always counts. A finite loss counts if `spike_threshold` is set and the loss
lies more than so many nats above the median of the last `spike_window` losses; while fewer are known, none does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gptmodel.config import TrainConfig

if TYPE_CHECKING:
    from gptmodel.tokens.tokenstream import TokenStream

_NAMED = 8


def spike(loss: float, grad_norm: float, recent_losses: Sequence[float], config: TrainConfig) -> str:
    """Why this step is a spike, in words; empty if it is none."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return f"loss {loss} and gradient norm {grad_norm}"
    if not config.spike_threshold or len(recent_losses) < config.spike_window:
        return ""
    median = statistics.median(recent_losses)
    if loss <= median + config.spike_threshold:
        return ""
    return f"loss {loss:.4f}, {loss - median:.4f} nats above the median of the {len(recent_losses)} before it"


def remember(recent_losses: list[float], loss: float, config: TrainConfig) -> None:
    """Add the loss of an update that was made; nothing is kept while no threshold is set."""
    if config.spike_threshold:
        recent_losses[:] = [*recent_losses, loss][-config.spike_window :]


def documents_of(stream: TokenStream, windows: Iterable[int], context_length: int) -> list[str]:
    """Ids of the documents that have a token in these windows, each once, in the windows' order."""
    index = stream.documents()
    found: dict[str, None] = {}
    for window in windows:
        start = int(window) * context_length
        found |= dict.fromkeys(index.ids[n] for n in index.between(start, start + context_length + 1))
    return list(found)


def named(documents: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    more = f" and {len(documents) - _NAMED} more" if len(documents) > _NAMED else ""
    return ", ".join(documents[:_NAMED]) + more


def told(step: int, reason: str, documents: Sequence[str], replay: str, config: TrainConfig, n_before: int) -> str:
    """What the person reads whose run this spike has ended."""
    often = f", after {n_before} spikes (train.max_spikes {config.max_spikes})" if n_before else ""
    return (
        f"{reason}, at step {step}, before its update{often}; weights are as after step {step - 1}, and the last "
        f"checkpoint stands. Its batch holds documents {named(documents)}; to see it again: {replay} --step {step}. "
        f"Lower train.optimizer.learning_rate ({config.optimizer.learning_rate}), lengthen warmup_steps, set "
        "train.precision=float32, or let train.on_spike skip it or roll back"
    )
