"""What a training will take, in the Prefect pages before it starts."""

from __future__ import annotations

from gptmodel.planning.budget import rates_of
from gptmodel.planning.budget_text import budget_section
from gptmodel.planning.forecast import Forecast
from gptmodel.planning.plan_text import markdown, sections
from gptmodel.pretraining.step import Training, spent_seconds
from gptmodel.store.artifacts import Store
from tasks.pages import show_words


def show_plan(store: Store, training: Training, plan: Forecast) -> None:
    """A page of counts and estimates; of time where a budget had it measured, or past runs tell it."""
    config = training.config
    found = sections(plan, rates_of(config))
    if config.train.budget.is_set:
        found.insert(0, budget_section(config, plan, spent_seconds(store, training)))
    words = f"# Plan of {config.name}\n\n{markdown(found)}"
    show_words("plan", words, "What this training computes, holds and costs, as foretold before its first step")
