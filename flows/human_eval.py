"""Models -> texts -> raters -> figures."""

from __future__ import annotations

from typing import Any

from prefect import flow

from gptmodel.errors import ConfigError
from gptmodel.rating.rounds import RoundConfig
from gptmodel.store.artifacts import Artifact, open_store
from tasks.holding import holding
from tasks.rating import (
    ask_raters,
    await_ratings,
    checked_raters,
    corpus_for,
    draw_round,
    models_named,
    publish_ratings,
    round_waited_for,
)

_MOST_DAYS = 3_650
_DAY = 86_400


@flow(name="human-eval", flow_run_name="let people rate")
def human_eval(
    models: list[str] | None = None,
    raters: list[str] | None = None,
    corpus: str = "",
    settings: RoundConfig = RoundConfig(),  # noqa: B008 - frozen
    needed: int = 0,
    days: float = 7.0,
    look_every: float = 300.0,
    queue: bool = True,
    pairs: bool = True,
    await_raters: bool = True,
    wait: bool = False,
) -> dict[str, Any]:
    """Have people rate what models write, blind, and turn it into figures.

    Args:
        models: Checkpoints or weights of the store, runs or registered versions; left out, the newest checkpoint.
        raters: A name for each rater. Names stay in the store's folder .ratings; all else holds numbers.
        corpus: Where beginnings and checks are drawn from; left out, what the first trained model learned from.
        settings: How many beginnings, how they are continued, how many checks, and the seed.
        needed: Ratings and comparisons that are enough, checks included; 0 is all of them by all raters.
        days: After so many days the run goes on with what it has.
        look_every: Seconds between two looks at what is in; meanwhile the run takes up no worker.
        queue: Make a queue for each rater in MLflow's Review page.
        pairs: With two or more models, ask raters as well which of two texts after the same beginning they prefer.
        await_raters: Wait for the ratings; otherwise the run ends when the texts are before the raters.
        wait: Wait for another run that makes the same, instead of refusing.
    """
    names = checked_raters(raters or [])
    if wrong := [
        message
        for right, message in (
            (0 < days <= _MOST_DAYS, f"days is {days:g}; give more than 0 and at most {_MOST_DAYS:,}"),
            (1 <= look_every <= _DAY, f"look_every is {look_every:g}; give seconds from 1 to {_DAY:,}"),
            (needed >= 0, f"needed is {needed}; give 0 for all answers, or how many are enough"),
        )
        if not right
    ]:
        raise ConfigError(wrong)
    if queue and not names:
        raise ConfigError("nobody is named to rate; give raters, or queue=false for a round without MLflow's queues")
    if await_raters and not names and not needed:
        raise ConfigError("nobody is named to rate, so nobody knows what is enough; give raters or needed")
    store = open_store()
    with holding():
        found = round_waited_for(store)
        if found is None:
            rated = models_named(store, models or [])
            found = draw_round(rated, corpus_for(store, corpus, rated, settings), settings, wait)
            asked = ask_raters(found, names, days, needed, queue, pairs)
            if not await_raters:
                return {"round": found, "raters": asked}
        await_ratings(found, look_every)
        ratings: Artifact = publish_ratings(found, wait)
        return {"round": found, "ratings": ratings}
