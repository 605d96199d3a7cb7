"""What raters say, one word each, and the file in which such words are kept: it only grows.

A line is one delivery: one word, or a whole sheet of them. A line that a kill cut short is no line, and is dropped by
the next writer, so a delivery is in or not. Of a rater's words on one thing the last one counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from gptmodel.errors import ArtifactError
from gptmodel.store.artifacts import fsync_path


@dataclass(frozen=True)
class Rating:
    """One rater's word on one text."""

    rater: int
    item: str
    scores: dict[str, int]
    comment: str = ""
    channel: str = "terminal"
    """terminal, csv or queue."""

    @property
    def about(self) -> str:
        return self.item


@dataclass(frozen=True)
class Comparison:
    """One rater's word on one pair of texts."""

    rater: int
    pair: str
    chosen: str
    """The id of the text that was preferred; empty for a tie."""
    comment: str = ""
    channel: str = "terminal"

    @property
    def about(self) -> str:
        return self.pair


Word = TypeVar("Word", Rating, Comparison)


class Deliveries(Generic[Word]):
    """The words of one kind in one file; `name` is what a line calls them. Writers must be alone."""

    def __init__(self, path: Path, kind: type[Word], name: str) -> None:
        self.path, self.name = path, name
        self.kind: type[Word] = kind

    def add(self, words: Iterable[Word]) -> int:
        """Append those that say something new, all or none, and put them on disk; how many there were."""
        known = {(word.rater, word.about, word.channel): word for word in self}
        fresh = []
        for word in words:  # the queue is read again and again: what it said before is no new word
            if known.get(key := (word.rater, word.about, word.channel)) != word:
                known[key] = word
                fresh.append(word)
        if fresh:
            self._append(fresh)
        return len(fresh)

    def last(self) -> dict[tuple[int, str], Word]:
        """By rater and what it is about, the last word each. ArtifactError for a line that is none."""
        return {(word.rater, word.about): word for word in self}

    def __iter__(self) -> Iterator[Word]:
        for number, line in enumerate(self._whole_text().split("\n")[:-1], 1):
            try:
                delivered = [self.kind(**raw) for raw in json.loads(line)[self.name]]
            except (ValueError, TypeError, KeyError):
                raise ArtifactError(
                    f"{self.path} is damaged at line {number}; remove that line to go on without it"
                ) from None
            yield from delivered

    def _whole_text(self) -> str:
        """All whole lines."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return ""
        return raw[: raw.rfind(b"\n") + 1].decode(errors="replace")

    def _append(self, words: list[Word]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, self.name: [asdict(word) for word in words]}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        whole = len(self._whole_text().encode())
        with self.path.open("ab") as file:
            file.truncate(whole)  # what a kill left of a line
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.path.parent)
