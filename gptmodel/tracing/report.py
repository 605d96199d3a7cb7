"""What a trace says, as plain data: for `gptflow trace --json`, and for the tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from gptmodel.errors import ArtifactError, DataError
from gptmodel.lineage.lookup import Entry, containing, entries_of, evaluations_of, named, small
from gptmodel.lineage.walk import artifact_of
from gptmodel.store.artifacts import Artifact, Ref, Store
from gptmodel.tracing.steps import DocumentTrace, EpochShare, Place, Tracer, scored_in
from gptmodel.tracing.trained import TracedTraining, finished_training

Report = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What to trace: exactly one of document, text and step. `limit` bounds each list; 0 lists all."""

    document: str = ""
    text: str = ""
    step: int = 0
    ignore_case: bool = False
    limit: int = 20
    check: bool | None = None
    """Look at hashes first; None: of what is small enough that it takes but a moment."""

    @property
    def most(self) -> int | None:
        return self.limit or None


def trace(store: Store, training: TracedTraining, asked: Asked, *, through_init: bool = False) -> Report:
    """The report on one training; with `through_init` also on those that its first weights come from, as `earlier`."""
    report = _report(store, training, asked)
    if training.init is None:
        return report
    earlier: list[Report] = []
    ref: Ref | None = training.init
    while ref is not None:
        try:
            model = artifact_of(store, ref)
            before = finished_training(store, model)
        except ArtifactError as error:
            report["notes"].append(
                f"it began with {ref.kind}/{ref.fingerprint[:16]}, and what that saw is not known ({error})"
            )
            break
        report["notes"].append(f"it began with the weights of {before.label}, trained on {before.shards.label}")
        if through_init and not asked.step:
            earlier.append(_earlier(store, before, asked))
        ref = before.init
    return {**report, "earlier": earlier} if through_init else report


def _earlier(store: Store, training: TracedTraining, asked: Asked) -> Report:
    try:
        return _report(store, training, asked)
    except DataError as error:  # its corpus need not have the document
        return {"training": {"label": training.label}, "documents": [], "documents_found": 0, "notes": [str(error)]}


def _report(store: Store, training: TracedTraining, asked: Asked) -> Report:
    check = small(training.shards) if asked.check is None else asked.check
    tracer, corpus = Tracer(training, check=check), _corpus(store, training)
    report: Report = {"training": _training(tracer), "notes": _notes(training, tracer)}
    if not check:
        report["notes"].append(
            "the shards are large and their hashes were not looked at; --check does, or gptflow verify"
        )
    if asked.step:
        return report | _step(tracer, corpus, asked)
    return report | _documents(store, tracer, corpus, asked)


def _corpus(store: Store, training: TracedTraining) -> Artifact | None:
    try:
        return store.input_of(training.shards, "corpus")
    except ArtifactError:
        return None


def _training(tracer: Tracer) -> Report:
    training = tracer.training
    return {
        "label": training.label,
        "fingerprint": training.fingerprint,
        "finished": training.finished,
        "shards": training.shards.label,
        "shards_digest": training.shards.digest,
        "steps": training.steps,
        "steps_trained": training.steps_trained,
        "max_steps": training.max_steps,
        "epochs": tracer.n_epochs,
        "batch_size": training.batch_size,
        "context_length": training.context_length,
        "windows": tracer.batches.n_windows,
        "train_tokens": tracer.n_tokens,
        "left_out": [list(pair) for pair in training.left_out],
        "replay": training.replay,
    }


def _notes(training: TracedTraining, tracer: Tracer) -> list[str]:
    notes = []
    if not training.finished:
        notes.append(
            f"the run is not finished: step {training.steps:,} of {training.max_steps:,} is the last in its log"
        )
    elif training.steps < training.steps_trained:
        notes.append(
            f"the weights are those of step {training.steps:,}, the best of {training.steps_trained:,}: later steps "
            "are not in them and not told here"
        )
    elif training.steps < training.max_steps:
        notes.append(f"the run stopped early, after step {training.steps:,} of {training.max_steps:,}")
    if training.left_out:
        spans = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in training.left_out)
        notes.append(f"updates of steps {spans} are not in the weights, because of a spike (train.on_spike)")
    if tracer.n_epochs < 1:
        notes.append(f"the run saw {tracer.n_epochs:.1%} of its windows: most documents in part, or not at all")
    return notes


def _documents(store: Store, tracer: Tracer, corpus: Artifact | None, asked: Asked) -> Report:
    entries, places = _asked_for(tracer, corpus, asked)
    trained = [place for place in places if place.split == "train"]
    described = [_document(store, tracer, place, entries.get(place.id), asked) for place in islice(places, asked.most)]
    return {
        "documents_found": len(places),
        "train_documents": len(trained),
        "steps": tracer.steps_of(trained),
        "documents": described,
    }


def _asked_for(tracer: Tracer, corpus: Artifact | None, asked: Asked) -> tuple[dict[str, Entry], list[Place]]:
    """The documents that were asked for: what the corpus says of them, and where they lie."""
    if corpus is None:
        if asked.text:
            raise ArtifactError(
                f"{tracer.training.shards.label}: its corpus is not in the store, so text cannot be found; ask by "
                "--document or --step"
            )
        place = tracer.place(asked.document)
        if place is None:
            raise DataError(
                f"{tracer.training.shards.label} has no document whose id begins with {asked.document!r}; its corpus "
                "is not in the store, so names of sources are not known"
            )
        return {}, [place]
    check = small(corpus) if asked.check is None else asked.check
    if asked.text:
        found = list(containing(corpus, asked.text, ignore_case=asked.ignore_case, check=check))
    else:
        found = named(corpus, asked.document, check=check)
    entries = {entry.id: entry for entry in found}
    return entries, tracer.places(entries)


def _document(store: Store, tracer: Tracer, place: Place, entry: Entry | None, asked: Asked) -> Report:
    known: Report = {
        "id": place.id,
        "source": entry.source if entry else "",
        "split": place.split,
        "tokens": place.n_tokens,
        "stream": [place.start, place.stop],
    }
    if place.split != "train":
        return known | _validation(store, tracer, place)
    found = tracer.document(place)
    return known | {
        "steps": found.steps,
        "steps_left_out": found.steps_left_out,
        "targets": found.targets,
        "epochs": [asdict(share) for share in found.epochs],
        "untrained_head": found.untrained_head,
        "untrained_tail": found.untrained_tail,
        "rows_found": len(found.stretches),
        "rows": [asdict(stretch) for stretch in islice(tracer.stretches(found), asked.most)],
        "says": _in_words(tracer, found),
    }


def _in_words(tracer: Tracer, found: DocumentTrace) -> list[str]:
    """What the figures come to."""
    place, said = found.place, []
    if not found.steps:
        said.append("no step that is in the weights trained on it")
    else:
        begun = int(np.ceil(tracer.n_epochs))
        said.append(
            f"trained on in {len(found.epochs)} of {begun} {_plural('epoch', begun)}, in {found.steps:,} "
            f"{_plural('step', found.steps)}; of its {place.n_tokens:,} tokens {_shares(found.epochs)}"
        )
    if found.steps_left_out:
        said.append(f"{found.steps_left_out:,} more had it, whose updates are not in the weights")
    if found.untrained_head:
        said.append("its first token is the stream's first, and so never a target")
    if found.untrained_tail:
        whole = "it lies wholly" if found.untrained_tail == place.n_tokens else f"its last {found.untrained_tail:,} lie"
        said.append(f"{whole} after the stream's last whole window, on which no step trains")
    return said


def _shares(epochs: Sequence[EpochShare]) -> str:
    """How many tokens were targets in the whole epochs, and in the one that was begun."""
    said = []
    if counts := [share.targets for share in epochs if share.whole]:
        least, most = min(counts), max(counts)
        said.append(f"{least:,} as targets" if least == most else f"{least:,} to {most:,} as targets")
        said[0] += " in each" if len(counts) > 1 and least == most else ""
    said += [f"{share.targets:,} in epoch {share.epoch}, which was not finished" for share in epochs if not share.whole]
    return ", ".join(said)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _validation(store: Store, tracer: Tracer, place: Place) -> Report:
    """A validation document was never trained on; where it was scored."""
    use, training = tracer.validation_use(place), tracer.training
    said = ["it is a validation document: no step trained on it"]
    if use.scored and training.evaluations:
        chose = ", and these chose the step that was published" if training.publish == "best" else ""
        said.append(
            f"{use.scored:,} of its {place.n_tokens:,} tokens were scored in each of the {training.evaluations} "
            f"evaluations on the way{chose}"
        )
    else:
        said.append("none of its tokens were scored on the way")
    judged = {}
    for evaluation in evaluations_of(store, training.model_digest) if training.finished else ():
        if n_scored := scored_in(evaluation, place.id):
            judged[evaluation.label] = n_scored
            said.append(f"{n_scored:,} of its tokens are in {evaluation.label}")
    return {
        "scored_on_the_way": use.scored,
        "evaluations_on_the_way": training.evaluations,
        "evaluations": judged,
        "says": said,
    }


def _step(tracer: Tracer, corpus: Artifact | None, asked: Asked) -> Report:
    rows = tracer.step(asked.step)
    ids = {place.id for row in rows for place, _, _ in row.parts}
    entries = entries_of(corpus, ids, check=small(corpus) if asked.check is None else asked.check) if corpus else {}
    described = [
        {
            "row": row.row,
            "epoch": row.epoch,
            "window": row.window,
            "stream": [row.window * tracer.T, row.window * tracer.T + tracer.T + 1],
            "documents": [
                {
                    "id": place.id,
                    "source": entries[place.id].source if place.id in entries else "",
                    "tokens": place.n_tokens,
                    "row_tokens": list(in_row),
                    "document_tokens": list(in_document),
                }
                for place, in_row, in_document in row.parts
            ],
        }
        for row in islice(rows, asked.most)
    ]
    return {
        "step": asked.step,
        "left_out": tracer.is_left_out(asked.step),
        "rows_found": len(rows),
        "documents_found": len(ids),
        "rows": described,
        "replay_from": tracer.training.replay_from(asked.step),
    }
