"""Scheduled retraining: is there anything new, what is held out, and what a night leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefect import get_run_logger, task

from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.retraining.ledger import Draft, Ledger, Named, State
from gptmodel.store.artifacts import Artifact, Store, open_store
from gptmodel.store.space import storage_errors
from gptmodel.text.corpus import DOWNLOADS
from gptmodel.text.sources import open_source
from tasks.data_gates import check_corpus
from tasks.holding import hold
from tasks.operations.signals import GATE_FAILED, NOTHING_NEW, announce
from tasks.pages import progress, show_words
from tasks.policy import STEP
from tasks.promoting import held, resolved, standing


@dataclass(frozen=True)
class News:
    """What a night found when it looked."""

    config: PipelineConfig
    """With an alias in `init_from` resolved."""
    source: str
    """Content digest of the source as it is now."""
    nothing_new: str = ""
    """Why there is nothing to do, in words; empty where there is."""
    champion: Artifact | None = None
    frozen: Artifact | None = None
    """Shards whose held-out documents judge all nights; None in the first."""
    since: Artifact | None = None
    """Held-out shards of the time when the champion was trained."""
    previous: Artifact | None = None
    """The last corpus that passed its gates."""


@task(name="look-for-news", task_run_name="look for new data of {config.name}", **STEP)
def look_for_news(config: PipelineConfig) -> News:
    """Pin the source, and hold it against what champion and last challenger were trained on."""
    store, ledger = open_store(), Ledger(open_store(), config.name)
    state = ledger.read()
    with storage_errors("the download", store.root / DOWNLOADS), progress("looking at the source"):
        source = open_source(config.corpus.source, store.root / DOWNLOADS).digest
    if said := _nothing_new(config, state, source):
        if state.last is not None and not ledger.is_told(state.last):
            from tasks.gating import move_aliases  # late: it imports MLflow

            move_aliases(store, config)  # what an outage or a death has left undone
        get_run_logger().info("nothing new: %s", said)
        show_words("news", f"# Nothing new\n\n{said}\n", said)
        announce(NOTHING_NEW, config.name, f"{config.name}: nothing new: {said}", source=source)
        return News(config, source, said)
    state = standing(store, config.name)
    champion = hold(held(store, state.champion)) if state.champion else None
    frozen = hold(held(store, state.frozen)) if state.frozen else None
    decision = state.decision_on(state.champion) if state.champion else None
    last = state.last_decision
    return News(
        _with_init(store, config, state),
        source,
        champion=champion,
        frozen=frozen,
        since=_noted(store, decision.facts.get("held_out", "") if decision else "") or frozen,
        previous=_noted(store, last.facts.get("corpus", "") if last else ""),
    )


def _nothing_new(config: PipelineConfig, state: State, source: str) -> str:
    """Why not to train; empty for a first night, another source, `when: always`, and a decision that waits."""
    last = state.last_decision
    if config.retrain.when == "always" or last is None or last.outcome == "waiting" or state.champion is None:
        return ""
    decision = state.decision_on(state.champion)
    for entry, who in ((decision, "champion"), (last, "last challenger")):
        if entry is not None and entry.subject is not None and entry.facts.get("source") == source:
            return f"the source holds what the {who} {entry.subject.label} was trained on ({source[:16]})"
    return ""


def _with_init(store: Store, config: PipelineConfig, state: State) -> PipelineConfig:
    if config.init_from in ("champion", f"{config.name}@champion") and state.champion is None:
        get_run_logger().info("init_from is champion, and there is none yet: the first one starts from random weights")
        return replace(config, init_from="")
    return resolved(store, config)


def _noted(store: Store, label: str) -> Artifact | None:
    """An artifact that a decision noted, if the store still has it."""
    if not label or not (store.root / label / "manifest.json").exists():
        return None
    kind, name = label.split("/")
    return hold(store.at(kind, name))


def check_night(corpus: Artifact, config: PipelineConfig, previous: Artifact | None, wait: bool) -> None:
    """The data gates; one that is not passed is announced before it ends the night."""
    try:
        check_corpus(corpus, config.data_gates, previous, wait)
    except DataError as error:
        announce(GATE_FAILED, config.name, f"{config.name}: {error}", corpus=corpus.label, outcome="data")
        raise


@task(name="hold-out", task_run_name="hold out validation of {config.name}", **STEP)
def hold_out(config: PipelineConfig, news: News, training: Artifact, held_out: Artifact) -> Artifact:
    """The frozen validation set: that of the first night, for good.

    ConfigError if a document of it would be trained on: a document's side follows from its text alone, so only changed
    settings can put one on the other side.
    """
    from gptmodel.retraining.gate_facts import split_ids

    def freeze(state: State) -> Draft | None:
        if state.frozen is not None:
            return None
        return Draft("freeze", Named.of(held_out), "the validation documents of the first night", "gate")

    state, entry = Ledger(open_store(), config.name).update(freeze)
    assert state.frozen is not None
    frozen = news.frozen or held(open_store(), state.frozen)
    if entry is not None:
        get_run_logger().info(
            "%s: its %s documents are the frozen validation set", frozen.label, len(split_ids(frozen))
        )
    known = split_ids(training, "train") | split_ids(training)
    if leaked := sorted(known & split_ids(frozen)):
        raise ConfigError(
            f"{len(leaked):,} frozen validation documents of {config.name} would be trained on, such as {leaked[0]}: "
            "corpus.split_key, split_by and validation_fraction must stay as they were; change the name to begin anew"
        )
    return hold(frozen)


def arrivals_of(news: News, held_out: Artifact) -> Artifact | None:
    """The held-out shards since which something arrived; None where nothing did, or nobody is to be compared on it."""
    from gptmodel.judging.evaluation import arrived

    if news.champion is None or news.since is None or not arrived(held_out, news.since):
        return None
    return news.since
