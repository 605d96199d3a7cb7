"""Brings MLflow up to date with the store: what `gptflow sync` does for all, and each step for its own artifact."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow.entities import Run

from gptmodel.errors import LockHeldError, LockLostError, first_line
from gptmodel.judging.benchmark import KIND as BENCHMARK
from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS, LAW, MODELS
from gptmodel.lineage.walk import artifact_of, chain_of
from gptmodel.pretraining.step import RUNS, run_dir_of
from gptmodel.progress import progress
from gptmodel.retraining.ledger import ledgers
from gptmodel.store.artifacts import MANIFEST, Artifact, Store, load_artifact
from gptmodel.store.locks import Hold, exclusive
from tasks.tracking.carding import CARD_TAG, record_card
from tasks.tracking.cards import CARD_FILE, Card, load_card, model_card, save_card
from tasks.tracking.feed import FLUSH_SECONDS, LOCK_FILE, METRICS_FILE, Feed, noted_state
from tasks.tracking.judgements import (
    comparison_tag,
    evaluation_tag,
    ratings_tag,
    record_benchmark,
    record_comparison,
    record_evaluation,
    record_ratings,
)
from tasks.tracking.recording import record_model
from tasks.tracking.runs import COMPLETE_TAG, FAILURES, bounded, client, set_status, set_tags

log = logging.getLogger(__name__)
_BYTES_PER_SECOND = 20e6  # a healthy artifact store is given the time to take a large model


@dataclass(frozen=True)
class Outcome:
    """What a sync did for a run or an evaluation."""

    label: str
    what: str
    """sent, current (there was nothing to send), in use (a run that is going on tells MLflow itself), or failed."""
    points: int = 0
    detail: str = ""


def sync_store(store: Store) -> Iterator[Outcome]:
    """Send what MLflow lacks of every run, model and evaluation of the store. Ends early if MLflow is out of reach."""
    runs = [card.parent for card in sorted((store.root / RUNS).glob(f"*/{CARD_FILE}"))]
    evaluations = [m.parent for kind in JUDGEMENTS for m in sorted((store.root / kind).glob(f"[!.]*/{MANIFEST}"))]
    comparisons = [m.parent for m in sorted((store.root / COMPARISON).glob(f"[!.]*/{MANIFEST}"))]
    for path in (*runs, *evaluations, *comparisons):
        label = f"{path.parent.name.replace(RUNS, 'run')}/{path.name}"
        try:
            if path in runs:
                yield sync_run(store, path)
            else:
                send = sync_comparison if path in comparisons else _sync_judgement
                yield send(store, load_artifact(path))
        except (LockHeldError, LockLostError) as error:
            yield Outcome(label, "in use", detail=str(error))
        except Exception as error:  # one odd artifact must not keep all others from being told
            log.debug("sync of %s", label, exc_info=True)
            yield Outcome(label, "failed", detail=first_line(error))
            if isinstance(error, FAILURES) and not _answers():
                return
    yield from _sync_laws(store)
    yield from _sync_registry(store)


def _sync_laws(store: Store) -> Iterator[Outcome]:
    """Laws, after the runs that they were fitted to."""
    from tasks.tracking.laws import sync_law  # late: it is built on this module

    for path in store.directories(LAW):
        label = f"{LAW}/{path.name}"
        try:
            yield sync_law(store, load_artifact(path))
        except (LockHeldError, LockLostError) as error:
            yield Outcome(label, "in use", detail=str(error))
        except Exception as error:
            log.debug("sync of %s", label, exc_info=True)
            yield Outcome(label, "failed", detail=first_line(error))


def _sync_registry(store: Store) -> Iterator[Outcome]:
    """Aliases, after the versions that they stand on were registered."""
    from tasks.tracking.aliases import follow  # late: it is built on this module

    for ledger in ledgers(store):
        label = f"registry/{ledger.name}"
        try:
            _, changed = follow(store, ledger.name)
            yield Outcome(label, "sent" if changed else "current")
        except Exception as error:
            log.debug("sync of %s", label, exc_info=True)
            yield Outcome(label, "failed", detail=first_line(error))


def _answers() -> bool:
    try:
        client().search_experiments(max_results=1)
    except FAILURES:
        return False
    return True


def sync_run(store: Store, run_dir: Path, *, again: bool = False) -> Outcome:
    """Numbers, pictures, samples, model, registration and status of one run, each once.

    `again` looks at a complete run too, and registers its model if the version was deleted. LockHeldError if the run is
    going on, or another process is at it.
    """
    card = load_card(run_dir)
    with alone(run_dir, card.run_name) as hold:
        return _sync_run(store, run_dir, card, hold, again)[0]


def _sync_run(store: Store, run_dir: Path, card: Card, hold: Hold, again: bool = False) -> tuple[Outcome, Run]:
    label = f"{card.kind}/{card.fingerprint[:16]}"
    feed = Feed(card, run_dir, hold.check)
    run = feed.connect()
    model = _published(store, card)
    if run.data.tags.get(COMPLETE_TAG) and model is not None and not again:
        set_status(run, "FINISHED")
        if CARD_TAG not in run.data.tags:  # it was completed by a version that made none
            record_card(store, run, model)
        return Outcome(label, "current"), run
    points = feed.push()
    status = "FINISHED" if model else noted_state(run_dir)
    changed = bool(points) or run.info.status != status
    if model is not None:
        hold.check()
        record_model(run, model, chain_of(store, model), run_dir / METRICS_FILE, card.model_name, hold.check)
        record_card(store, run, model)
        changed = True
    hold.check()
    set_status(run, status)
    if model is not None:
        set_tags(run.info.run_id, {COMPLETE_TAG: "true"})
    run = client().get_run(run.info.run_id)
    return Outcome(label, "sent" if changed else "current", points), run


def _sync_judgement(store: Store, artifact: Artifact) -> Outcome:
    return sync_ratings(store, artifact) if artifact.kind == "ratings" else sync_evaluation(store, artifact)


def sync_evaluation(store: Store, evaluation: Artifact) -> Outcome:
    """An evaluation or a benchmark, after the run of the model that it judges."""
    model = artifact_of(store, evaluation.request.inputs[0])
    what: Callable[[Run], object] = partial(record_benchmark, made=evaluation)
    if evaluation.kind != BENCHMARK:
        shards = artifact_of(store, evaluation.request.inputs[1])
        what = partial(record_evaluation, evaluation=evaluation, shards=shards)
    return _sync_after_model(store, model, evaluation, evaluation_tag(evaluation), what)


def sync_ratings(store: Store, ratings: Artifact) -> Outcome:
    """People's ratings, after the run of each model that they judge."""
    models = [artifact_of(store, ref) for ref in ratings.request.inputs if ref.kind in MODELS]
    found = [
        _sync_after_model(
            store, model, ratings, ratings_tag(ratings), partial(record_ratings, ratings=ratings, model=model)
        )
        for model in models
    ]
    return Outcome(ratings.label, "sent" if any(each.what == "sent" for each in found) else "current")


def _sync_after_model(
    store: Store, model: Artifact, judgement: Artifact, tag: str, record: Callable[[Run], object]
) -> Outcome:
    """What was said of a model, once, after all that its run lacks."""
    run_dir = run_dir_of(store, model.fingerprint)
    name, chain = f"{model.kind}-{model.path.name[:8]}", chain_of(store, model)
    save_card(run_dir, model_card(model, name, register=False, chain=chain), anew=False)
    card = load_card(run_dir)
    with alone(run_dir, card.run_name) as hold:
        _, run = _sync_run(store, run_dir, card, hold)
        if run.data.tags.get(tag) == judgement.digest:
            return Outcome(judgement.label, "current")
        hold.check()
        record_card(store, run, model)  # before the tag that says that this judgement is told
        record(run)
    return Outcome(judgement.label, "sent")


def sync_comparison(store: Store, comparison: Artifact) -> Outcome:
    """A comparison of two evaluations, after the run of the challenger."""
    challenger = artifact_of(store, comparison.request.inputs[1])
    sync_evaluation(store, challenger)
    model = artifact_of(store, challenger.request.inputs[0])
    what = partial(record_comparison, comparison=comparison, model=model)
    return _sync_after_model(store, model, comparison, comparison_tag(comparison), what)


def settle(work: Callable[[], object], what: str, n_bytes: int = 0) -> None:
    """Do the work in a thread, and wait FLUSH_SECONDS for it, and longer only for `n_bytes` that are to be uploaded.

    A step ends then; what is missing is sent by the next step that looks at the same artifact, or by `gptflow sync`.
    """

    def run() -> None:
        try:
            with bounded(what):
                work()
        except (LockHeldError, LockLostError) as error:
            log.info("%s: %s", what, error)
        except Exception:  # the artifact stands, and no tracker is a reason to fail
            log.exception("%s is not sent to MLflow", what)

    thread = threading.Thread(target=run, daemon=True, name=f"settle {what}")
    thread.start()
    seconds = FLUSH_SECONDS + n_bytes / _BYTES_PER_SECOND
    with progress(f"telling MLflow of {what}"):
        thread.join(seconds)
    if thread.is_alive():
        log.warning("MLflow took longer than %.0f s; what %s lacks there is sent by `gptflow sync`", seconds, what)


def size_of(artifact: Artifact) -> int:
    return sum(entry.bytes for entry in artifact.files)


def _published(store: Store, card: Card) -> Artifact | None:
    path = store.root / card.kind / card.fingerprint[:16]
    return load_artifact(path) if (path / MANIFEST).exists() else None


def alone(run_dir: Path, run_name: str) -> AbstractContextManager[Hold]:
    """The lock under which one process tells MLflow of a run. LockHeldError if another has it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return exclusive(run_dir / LOCK_FILE, f"the MLflow run of {run_name}")
