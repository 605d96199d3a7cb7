"""What a training will take, in the Prefect pages before it starts."""

from __future__ import annotations

from gptmodel.planning.forecast import forecast
from gptmodel.planning.plan_text import markdown, sections
from gptmodel.planning.rates import load_rates
from gptmodel.pretraining.step import Training
from tasks.pages import show_words


def show_plan(training: Training) -> None:
    """A page of counts and estimates. Nothing is measured for it: the run will show that by itself."""
    rates, data = load_rates(), training.shards.summary
    found = forecast(
        training.config,
        rates,
        train_tokens=data["train_tokens"],
        validation_tokens=data["validation_tokens"],
    )
    words = f"# Plan of {training.config.name}\n\n{markdown(sections(found, rates))}"
    show_words("plan", words, "What this training computes, holds and costs, by its settings")
