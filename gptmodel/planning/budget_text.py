"""A budget in words: each bound, what the forecast comes to, what is spent already, and what is left."""

from __future__ import annotations

from gptmodel.config import PipelineConfig
from gptmodel.planning.budget import Bound, limit_of
from gptmodel.planning.forecast import Forecast
from gptmodel.planning.plan_text import Row, Section

_NAMES = {"max_hours": "time", "max_cost": "cost", "max_energy": "energy"}


def budget_section(config: PipelineConfig, plan: Forecast, spent_seconds: float = 0.0) -> Section:
    """Of settings that have a budget; `spent_seconds` is what earlier attempts of the same training took."""
    limit = limit_of(config.train.budget, plan.device, plan.processes)
    total, spent = limit.bounds(plan.seconds), limit.bounds(spent_seconds)
    known = plan.pace is not None
    return Section("Budget", [_row(*pair, known=known) for pair in zip(total, spent, strict=True)])


def _row(total: Bound, spent: Bound, *, known: bool) -> Row:
    notes = []
    if spent.value:
        left = spent.most - spent.value
        notes.append(f"{spent.told} spent by earlier attempts, {spent.words(left) if left > 0 else 'nothing'} left")
    if not known:
        notes.append("what it will take is not known: nothing was measured here")
    elif total.value > total.most:
        notes.append(f"over by {total.words(total.value - total.most)}: would not be started")
    else:
        notes.append(f"{100 * total.value / total.most:.0f} %, by the forecast; the clock of the run decides")
    value = f"{total.told} of {total.limit}" if known else f"up to {total.limit}"
    return (f"{_NAMES[total.name]} ({total.name})", value, "; ".join(notes))
