"""Models in; texts before raters, their ratings, and figures out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import get_run_logger, task

from gptmodel.criteria import OVERALL
from gptmodel.errors import ArtifactError, ConfigError, TrackingError
from gptmodel.lineage.walk import artifact_of
from gptmodel.rating.journal import Journal, Opening, checked_name, round_of_flow_run
from gptmodel.rating.pairs import Pair, pairs_of
from gptmodel.rating.results import preferences_of, publish
from gptmodel.rating.rounds import KIND, RoundConfig, build_round, models_of, read_items
from gptmodel.rating.statistics import interval_words
from gptmodel.store.artifacts import Artifact, Store, open_store
from tasks.awaiting import rest, this_run
from tasks.holding import hold
from tasks.lineage.events import with_events
from tasks.pages import progress, show_table, show_words
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tracking.naming import named_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a round is."""

    given: int
    """Ratings and comparisons that are in, checks included."""
    needed: int
    deadline: datetime

    @property
    def is_over(self) -> bool:
        return self.given >= self.needed or datetime.now(UTC) >= self.deadline

    def __str__(self) -> str:
        return (
            f"{self.given} of {self.needed} ratings are in, and there is time until {self.deadline:%Y-%m-%d %H:%M} UTC"
        )


def checked_raters(names: Sequence[str]) -> list[str]:
    """The names, if each can be one and none comes twice; ConfigError otherwise."""
    found = [checked_name(name) for name in names]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ConfigError(f"rater {twice[0]!r} is named twice; each rates once")
    return found


def round_waited_for(store: Store) -> Artifact | None:
    """The round that this Prefect run has opened already, when it was started again to look."""
    run = this_run()
    name = round_of_flow_run(store, str(run.id)) if run is not None else ""
    return hold(store.at(KIND, name)) if name else None


def models_named(store: Store, names: Sequence[str]) -> list[Artifact]:
    """The models that a person named, or the checkpoint that was finished last."""
    found = [named_model(store, name) for name in names] or [named_model(store)]
    return [hold(model) for model in found]


def corpus_for(store: Store, name: str, models: Sequence[Artifact], config: RoundConfig) -> Artifact | None:
    """The named corpus, or the one that the first trained model learned from; None if no passages are drawn."""
    if name:
        return hold(store.resolve(name, "corpus"))
    if not config.from_validation and not config.checks:
        return None
    for model in models:
        if shards := next((ref for ref in model.request.inputs if ref.kind == "shards"), None):
            return hold(store.input_of(artifact_of(store, shards), "corpus"))
    raise ConfigError(
        f"{models[0].label} was not trained here, so nobody knows its corpus; name one (--corpus), or draw no "
        "passages: from_validation=0 and checks=0, with prompts of your own"
    )


@task(name="draw-round", task_run_name="write texts to rate", **STEP)
@with_events
def draw_round(models: list[Artifact], corpus: Artifact | None, config: RoundConfig, wait: bool = False) -> Artifact:
    """Let every model go on from the same prompts, and plant the checks."""
    with progress("writing") as update:
        artifact, reused = build_round(open_store(), models, corpus, config, wait=wait, progress=update)
    return report(artifact, reused, figures_of(artifact, "texts", "prompts", "models", "checks"))


@task(name="ask-raters", task_run_name="put texts before raters", **STEP)
def ask_raters(
    found: Artifact, raters: list[str], days: float, needed: int, queue: bool, pairs: bool = False
) -> dict[str, Any]:
    """Give each rater a number and, if asked, queues in MLflow; from now on the time runs."""
    journal, items = Journal(open_store(), found.path.name), read_items(found)
    numbers = {name: journal.number_of(name) for name in raters}
    compared = pairs_of(found, items) if pairs else []
    pages: dict[int, list[str]] = {}
    if queue:
        from tasks.tracking.review_queue import put_before

        pages = put_before(found, items, list(numbers.values()), compared)
    now, run = datetime.now(UTC), this_run()
    waiting = (str(run.id),) if run is not None else ()
    wanted = needed or len(journal.raters()) * (len(items) + len(compared))
    deadline = (now + timedelta(days=days)).isoformat(timespec="seconds")
    journal.open(Opening(now.isoformat(timespec="seconds"), deadline, wanted, waiting, bool(compared), bool(raters)))
    rows = "\n".join(f"| rater-{number} | {' '.join(pages.get(number, []))} |" for number in numbers.values())
    many = f"{len(items)} texts" + (f" and {len(compared)} pairs" if compared else "")
    head = f"# Rating of {', '.join(models_of(found))}\n\n{many} each, until {deadline}."
    words = f"{head}\n\n| | |\n|---|---|\n{rows}\n"
    show_words("raters", words, f"Who rates {found.label}, and where")
    empty = ["", ""]
    told = {name: (number, (pages.get(number, []) + empty)[:2]) for name, number in numbers.items()}
    return {name: {"rater": number, "page": page, "pairs": second} for name, (number, (page, second)) in told.items()}


def pairs_asked(store: Store, found: Artifact) -> list[Pair]:
    """The pairs that raters of a round are asked to compare; none in a round that was opened without."""
    opening = Journal(store, found.path.name).opening()
    return pairs_of(found, read_items(found)) if opening is not None and opening.pairs else []


def collect(store: Store, found: Artifact) -> int:
    """Take into the journal what was answered in MLflow's queues; how much of it was new. TrackingError."""
    from tasks.tracking.review_queue import read_back

    pairs, known = pairs_asked(store, found), {item.id for item in read_items(found)}
    answers = read_back(found, pairs)
    if answers.incomplete:
        log.warning(
            "%s: %d texts or pairs were closed without an answer to each question; they do not count",
            found.label,
            answers.incomplete,
        )
    journal = Journal(store, found.path.name)
    return journal.add(word for word in answers.ratings if word.item in known) + journal.compare(answers.comparisons)


def progress_of(store: Store, found: Artifact) -> Progress:
    """How far a round is. ArtifactError if it was never put before raters."""
    journal = Journal(store, found.path.name)
    if (opening := journal.opening()) is None:
        raise ArtifactError(f"{found.label} was never put before raters; run `gptflow rate start`")
    given = len(journal.ratings()) + len(journal.comparisons())
    return Progress(given, opening.needed, datetime.fromisoformat(opening.deadline))


def await_ratings(found: Artifact, look_every: float) -> None:
    """Return when enough ratings are in or time is up; until then the run rests, see `tasks.awaiting`.

    Where MLflow is away when time is up there is one look more: what was rated last may be known there only.
    """
    store, logger, away = open_store(), get_run_logger(), False
    while True:
        try:
            collect(store, found)
            away = False
        except TrackingError as error:
            if not away:
                logger.warning("%s: %s", found.label, error)
            away = True
        how = progress_of(store, found)
        left = (how.deadline - datetime.now(UTC)).total_seconds()
        once_more = away and how.given < how.needed and left > -look_every
        if how.is_over and not once_more:
            logger.info("%s: %s", found.label, how)
            return
        rest(max(1.0, min(look_every, left)) if left > 0 else look_every, str(how))


@task(name="rate", task_run_name="figures of the ratings", **STEP)
@with_events
def publish_ratings(found: Artifact, wait: bool = False) -> Artifact:
    """Turn what raters said so far into figures, and tell MLflow."""
    from tasks.tracking.syncing import settle, sync_ratings

    store = open_store()
    artifact, reused = figures(store, found, wait=wait)
    settle(lambda: sync_ratings(store, artifact), artifact.label)
    show_table("ratings", figure_rows(artifact), f"Ratings of {', '.join(models_of(artifact))}")
    if preferred := preference_words(artifact):
        show_words("preference", "\n\n".join(preferred) + "\n", "Which model's texts raters prefer")
    return report(artifact, reused, figures_of(artifact, "ratings", "prompts", "raters", "raters_flagged"))


def figures(store: Store, found: Artifact, *, wait: bool = False) -> tuple[Artifact, bool]:
    """The ratings artifact of all that raters have said so far, and whether it was there already."""
    journal = Journal(store, found.path.name)
    return publish(store, found, list(journal.ratings().values()), list(journal.comparisons().values()), wait=wait)


def preference_words(artifact: Artifact) -> list[str]:
    """For each two models a line: which was preferred after how many prompts, and how that is known."""
    words = []
    for pair in preferences_of(artifact.summary):
        p_value = "none" if pair["p_value"] is None else f"{pair['p_value']:.3g}"
        how = (
            "derived from points"
            if pair["how"] == "derived"
            else (
                f"asked: {pair['answers_a']} answers for it, {pair['answers_b']} against, {pair['answers_tie']} ties, "
                f"of {pair['raters']} raters"
            )
        )
        words.append(
            f"{pair['a']} against {pair['b']}: preferred after {pair['a_wins']} prompts, not preferred after "
            f"{pair['b_wins']}, {pair['ties']} ties; sign test p = {p_value} ({how})"
        )
    return words


def figure_rows(artifact: Artifact) -> list[dict[str, Any]]:
    """A row for each model and criterion: mean with interval, without and with flagged raters, and alpha."""

    def said(figure: dict[str, Any]) -> str:
        if figure["mean"] is None:
            return "none"
        return interval_words(figure["mean"], figure["low"], figure["high"])

    told, rows = artifact.summary, []
    for model, figures in told["models"].items():
        for name, figure in figures.items():
            alpha = told["alpha"].get(name)
            rows.append(
                {
                    "model": model,
                    "criterion": name.replace("_", " "),
                    "mean [95 %]": said(figure),
                    "with flagged": said(told["with_flagged"]["models"][model][name]),
                    "alpha": "" if name == OVERALL else "none" if alpha is None else f"{alpha:.2f}",
                    "ratings": figure["ratings"],
                }
            )
    return rows
