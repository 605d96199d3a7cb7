"""Which steps trained on a document, and which documents a step held: worked out from the order of the data.

Row of a batch = window w of the stream = its T + 1 tokens from w * T on. All but the last are inputs, and all but the
first are targets. A document is *trained on* by a step if a token of it stands in one of the step's rows. A token
teaches where it is a target, for there the loss is taken; as an input it is what later targets are guessed from, those
of the next document too. In a whole epoch each token is an input once and a target once, but the stream's first, which
is no target, and those after the last whole window, which stand in no row (the first of them is a target still).

Nothing is stored for this: windows are found in the order of the data by running its permutation backwards.
Steps and epochs count from 1 here, rows and tokens from 0, and ranges leave out their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gptmodel.errors import ConfigError, DataError
from gptmodel.lineage.lookup import several
from gptmodel.store.artifacts import Artifact
from gptmodel.tokens.batches import Batches, eval_windows
from gptmodel.tokens.permutation import Numbers
from gptmodel.tokens.tokenstream import DocumentIndex, TokenStream, open_split
from gptmodel.tracing.trained import TracedTraining

Span = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a document lies in the stream of its split. Its end token is its own."""

    id: str
    split: str
    start: int
    n_tokens: int

    @property
    def stop(self) -> int:
        return self.start + self.n_tokens


@dataclass(frozen=True)
class Stretch:
    """The tokens of one document in one row."""

    step: int
    epoch: int
    row: int
    window: int
    row_tokens: Span
    """In the row's T + 1 tokens."""
    document_tokens: Span
    """In the document."""
    inputs: int
    targets: int
    left_out: bool
    """The step's update was kept out of the weights, because of a spike."""


@dataclass(frozen=True)
class EpochShare:
    """What one epoch trained on of a document, in steps whose update was made."""

    epoch: int
    steps: int
    inputs: int
    targets: int
    whole: bool
    """The run went through this epoch to its end."""


@dataclass(frozen=True)
class DocumentTrace:
    """All that a training saw of a document."""

    place: Place
    steps: int
    """Steps that had a token of it and whose update was made."""
    steps_left_out: int
    epochs: tuple[EpochShare, ...]
    untrained_head: int
    """Its tokens that no epoch can have as a target: the stream's first."""
    untrained_tail: int
    """The same for those after the last whole window."""
    stretches: Numbers
    """Step (from 0), row, epoch (from 0) and window of each, [n, 4]; see `Tracer.stretches`."""

    @property
    def targets(self) -> int:
        return sum(share.targets for share in self.epochs)


@dataclass(frozen=True)
class Row:
    """One row of a step's batch, and what stood in it."""

    row: int
    epoch: int
    window: int
    parts: tuple[tuple[Place, Span, Span], ...]
    """Document, its tokens of the row, and which of the document those are."""


@dataclass(frozen=True)
class ValidationUse:
    """What the evaluations of a training scored of a validation document."""

    place: Place
    scored: int
    """Its tokens that each evaluation had as targets."""


class Tracer:
    """The order of the data of one training, forwards and backwards.

    ArtifactError where the shards are damaged; with `check` their hashes are looked at too.
    """

    def __init__(self, training: TracedTraining, *, check: bool = True) -> None:
        self.training = training
        self._check = check
        self.T = training.context_length
        stream = self._open("train")
        self.n_tokens = stream.n_tokens
        self.index: DocumentIndex = stream.documents()
        self.batches = Batches(
            stream,
            context_length=self.T,
            batch_size=training.batch_size,
            micro_batch_size=1,
            seed=training.seed,
        )
        left_out = np.zeros(training.steps + 2, bool)
        for first, last in training.left_out:
            left_out[first : last + 1] = True
        self._left_out: npt.NDArray[np.bool_] = left_out[1:]  # by step from 0

    @cached_property
    def n_epochs(self) -> float:
        """How often the training has gone through its data."""
        return self.training.steps * self.training.batch_size / self.batches.n_windows

    @cached_property
    def validation(self) -> tuple[TokenStream, DocumentIndex]:
        stream = self._open("validation")
        return stream, stream.documents()

    def place(self, document: str) -> Place | None:
        """Where the document of this id, or of this beginning of one, lies; None if the shards do not have it.

        DataError if several ids begin so.
        """
        for split, index in (("train", self.index), ("validation", self.validation[1])):
            for number in _numbers(index.ids, document):
                return self._place(split, index, number)
        return None

    def places(self, documents: Iterable[str]) -> list[Place]:
        """Where these documents lie: those of the train split, then those of validation, each in stream order."""
        wanted = set(documents)
        splits = (("train", self.index), ("validation", self.validation[1]))
        return [self._place(split, index, n) for split, index in splits for n, i in enumerate(index.ids) if i in wanted]

    def document(self, place: Place) -> DocumentTrace:
        """What the training saw of a document of the train split."""
        seen = self.batches.sightings(self._windows(place), self.training.steps)
        made = ~self._left_out[seen.steps]
        inputs, targets = self._counts(place, seen.windows)
        shares = []
        for epoch in np.unique(seen.epochs):
            here = made & (seen.epochs == epoch)
            n_steps, whole = len(np.unique(seen.steps[here])), bool(epoch + 1 <= self.n_epochs)
            shares.append(EpochShare(int(epoch) + 1, n_steps, int(inputs[here].sum()), int(targets[here].sum()), whole))
        past = self.batches.n_windows * self.T + 1
        return DocumentTrace(
            place,
            steps=len(np.unique(seen.steps[made])),
            steps_left_out=len(np.unique(seen.steps[~made])),
            epochs=tuple(shares),
            untrained_head=int(place.start == 0),
            untrained_tail=max(0, place.stop - max(place.start, past)),
            stretches=np.stack([seen.steps, seen.rows, seen.epochs, seen.windows], axis=1),
        )

    def stretches(self, trace: DocumentTrace) -> Iterator[Stretch]:
        """Each row that had a token of the document, by step and row."""
        place = trace.place
        for step, row, epoch, window in trace.stretches.tolist():
            start, stop = self._overlap(place, window)
            inputs, targets = self._counts(place, np.array([window]))
            yield Stretch(
                *(step + 1, epoch + 1, row, window),
                row_tokens=(start - window * self.T, stop - window * self.T),
                document_tokens=(start - place.start, stop - place.start),
                inputs=int(inputs[0]),
                targets=int(targets[0]),
                left_out=bool(self._left_out[step]),
            )

    def steps_of(self, places: Sequence[Place]) -> int:
        """How many steps had a token of any of these documents and made their update."""
        n_windows = self.batches.n_windows
        first = np.maximum(np.array([place.start for place in places], np.int64) - 1, 0) // self.T
        past = np.minimum((np.array([place.stop for place in places], np.int64) - 1) // self.T + 1, n_windows)
        edges = np.bincount(first[first < past], minlength=n_windows + 1)
        edges -= np.bincount(past[first < past], minlength=n_windows + 1)
        steps = self.batches.sightings(np.nonzero(np.cumsum(edges))[0], self.training.steps).steps
        return int(np.count_nonzero(np.bincount(steps[~self._left_out[steps]])))

    def is_left_out(self, step: int) -> bool:
        return bool(self._left_out[step - 1])

    def step(self, step: int) -> list[Row]:
        """The rows of a step, and the documents in each. ConfigError if the training made no such step."""
        if not 1 <= step <= self.training.steps:
            raise ConfigError(
                f"step {step} is none of {self.training.label}, whose weights come of steps 1 to {self.training.steps}"
            )
        windows, epochs = self.batches.all_windows(step - 1), self.batches.all_epochs(step - 1)
        return [
            Row(row, int(epoch) + 1, int(window), tuple(self._parts(int(window))))
            for row, (window, epoch) in enumerate(zip(windows, epochs, strict=True))
        ]

    def validation_use(self, place: Place) -> ValidationUse:
        """What of a validation document each evaluation of the training scored."""
        stream, _ = self.validation
        windows = eval_windows(stream, self.T, self.training.eval_tokens)
        return ValidationUse(place, int(self._counts(place, windows)[1].sum()))

    def _open(self, split: str) -> TokenStream:
        return open_split(self.training.shards, split, check=self._check)

    def _place(self, split: str, index: DocumentIndex, number: int) -> Place:
        return Place(index.ids[number], split, int(index.starts[number]), int(index.n_tokens[number]))

    def _parts(self, window: int) -> Iterator[tuple[Place, Span, Span]]:
        at = window * self.T
        for number in self.index.between(at, at + self.T + 1):
            place = self._place("train", self.index, number)
            start, stop = self._overlap(place, window)
            yield place, (start - at, stop - at), (start - place.start, stop - place.start)

    def _windows(self, place: Place) -> Numbers:
        """Windows that have a token of it; a token between two windows is the last target of one, and in both."""
        last = min((place.stop - 1) // self.T, self.batches.n_windows - 1)
        return np.arange(max(place.start - 1, 0) // self.T, last + 1, dtype=np.int64)

    def _overlap(self, place: Place, window: int) -> Span:
        at = window * self.T
        return max(place.start, at), min(place.stop, at + self.T + 1)

    def _counts(self, place: Place, windows: Numbers) -> tuple[Numbers, Numbers]:
        """Of each window the document's inputs and targets."""
        at = windows * self.T
        inputs = np.minimum(place.stop, at + self.T) - np.maximum(place.start, at)
        targets = np.minimum(place.stop, at + self.T + 1) - np.maximum(place.start, at + 1)
        return np.maximum(inputs, 0), np.maximum(targets, 0)


def _numbers(ids: list[str], wanted: str) -> list[int]:
    """The number of the document of this id, or of the only one that begins so."""
    found = [number for number, name in enumerate(ids) if name.startswith(wanted)]
    exact = [number for number in found if ids[number] == wanted]
    if len(found) > 1 and not exact:
        raise DataError(
            f"{len(found):,} documents have ids that begin with {wanted}; {several(ids[number] for number in found)}"
        )
    return exact or found


def scored_in(evaluation: Artifact, document: str) -> int:
    """Tokens of a document that an evaluation scored."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(evaluation.file("documents.parquet"), columns=["document", "n_tokens"])
    return int(pc.sum(table.filter(pc.equal(table.column("document"), document)).column("n_tokens")).as_py() or 0)
