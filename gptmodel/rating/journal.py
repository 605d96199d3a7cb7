"""What raters said, as it comes in: `<store>/.ratings/<round>/`, on disk before anybody is told that it is saved.

`ratings.jsonl` only grows: a line for each delivery, one rating or a whole sheet; of a rater's ratings of a text the
last one counts. A line that a kill cut short is no line, and dropped by the next writer, so a delivery is in or not.
`raters.json` is the one place that knows names; all else knows numbers. These are a person's hours, so `gptflow store
gc` never touches this folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from gptmodel.artifacts import Store, fsync_path, write_atomic
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.locks import exclusive

FOLDER = ".ratings"
_LOG, _RATERS, _OPENED, _LOCK = "ratings.jsonl", "raters.json", "opened.json", "lock"


@dataclass(frozen=True)
class Rating:
    """One rater's word on one text."""

    rater: int
    item: str
    scores: dict[str, int]
    comment: str = ""
    channel: str = "terminal"
    """terminal, csv or queue."""


@dataclass(frozen=True)
class Opening:
    """When a round was put before raters, by whom it is waited for, and how long."""

    opened: str
    deadline: str
    needed: int
    """Ratings that are enough, checks included."""
    flow_runs: tuple[str, ...] = ()
    """Prefect runs that wait for it."""


class Journal:
    """The ratings of one round, by its name."""

    def __init__(self, store: Store, name: str) -> None:
        self.folder = store.root / FOLDER / name
        self.what = f"the ratings of rating-round/{name}"

    def raters(self) -> dict[str, int]:
        """Numbers by name, from 1, in the order in which the names were first seen."""
        found = self._read(_RATERS)
        return {str(name): int(number) for name, number in found.items()}

    def number_of(self, name: str) -> int:
        """The number of a rater, given out at the first call. ConfigError for a name that cannot be one."""
        name = checked_name(name)
        known = self.raters()
        if name in known:
            return known[name]
        with self._alone():
            known = self.raters()
            known.setdefault(name, len(known) + 1)
            write_atomic(self.folder / _RATERS, json.dumps(known, ensure_ascii=False, indent=2) + "\n")
        return known[name]

    def add(self, ratings: Iterable[Rating]) -> int:
        """Append those that say something new, all or none, and put them on disk; how many there were."""
        with self._alone():
            known = {(r.rater, r.item, r.channel): r for r in self._delivered()}
            fresh = []
            for rating in ratings:  # the queue is read again and again: what it said before is no new word
                if known.get(key := (rating.rater, rating.item, rating.channel)) != rating:
                    known[key] = rating
                    fresh.append(rating)
            if fresh:
                self._append(fresh)
        return len(fresh)

    def ratings(self) -> dict[tuple[int, str], Rating]:
        """By rater and text, the last word each. ArtifactError for a line that is none."""
        return {(rating.rater, rating.item): rating for rating in self._delivered()}

    def draft(self, rater: int) -> dict[str, Any]:
        """What a rater has said so far of a text that he is not done with."""
        return self._read(f"draft-{rater}.json")

    def save_draft(self, rater: int, draft: dict[str, Any]) -> None:
        write_atomic(self.folder / f"draft-{rater}.json", json.dumps(draft, ensure_ascii=False))

    def _delivered(self) -> Iterator[Rating]:
        for number, line in enumerate(self._whole_text().split("\n")[:-1], 1):
            try:
                delivered = [Rating(**raw) for raw in json.loads(line)["ratings"]]
            except (ValueError, TypeError, KeyError):
                path = self.folder / _LOG
                raise ArtifactError(
                    f"{path} is damaged at line {number}; remove that line to go on without it"
                ) from None
            yield from delivered

    def opening(self) -> Opening | None:
        """How it was put before raters; None if it never was."""
        raw = self._read(_OPENED)
        try:
            return Opening(**{**raw, "flow_runs": tuple(raw["flow_runs"])}) if raw else None
        except (TypeError, KeyError) as error:
            path = self.folder / _OPENED
            raise ArtifactError(f"{path} is damaged ({error}); remove it and run `gptflow rate start` again") from None

    def open(self, opening: Opening) -> Opening:
        """Note when it was opened; an earlier time stands, the later deadline and the new wishes count."""
        with self._alone():
            if (before := self.opening()) is not None:
                runs = tuple(dict.fromkeys((*before.flow_runs, *opening.flow_runs)))
                deadline = max(before.deadline, opening.deadline)
                opening = Opening(before.opened, deadline, opening.needed, runs)
            write_atomic(self.folder / _OPENED, json.dumps(asdict(opening), indent=2) + "\n")
        return opening

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); put it right, or move it away") from None
        return found if isinstance(found, dict) else {}

    def _whole_text(self) -> str:
        """All whole lines."""
        try:
            raw = (self.folder / _LOG).read_bytes()
        except FileNotFoundError:
            return ""
        return raw[: raw.rfind(b"\n") + 1].decode(errors="replace")

    def _append(self, ratings: list[Rating]) -> None:
        path = self.folder / _LOG
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, "ratings": [asdict(rating) for rating in ratings]}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        whole = len(self._whole_text().encode())
        with path.open("ab") as file:
            file.truncate(whole)  # what a kill left of a line
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.folder)

    def _alone(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return exclusive(self.folder / _LOCK, self.what, wait=True)


def checked_name(name: str) -> str:
    """A rater's name: letters, digits, space and . _ @ - of at most 60 characters."""
    name = name.strip()
    if not re.fullmatch(r"[\w.@-][\w .@-]{0,59}", name):
        raise ConfigError(f"{name[:80]!r} is no name of a rater; use letters, digits, space and . _ @ -, at most 60")
    return name


def round_of_flow_run(store: Store, flow_run: str) -> str:
    """The name of the round that a Prefect run waits for; empty if it has opened none yet."""
    return next((name for name, opening in _openings(store) if flow_run in opening.flow_runs), "")


def rounds_open(store: Store) -> set[str]:
    """Names of the rounds whose time is not up."""
    now = datetime.now(UTC)
    return {name for name, opening in _openings(store) if datetime.fromisoformat(opening.deadline) > now}


def _openings(store: Store) -> Iterator[tuple[str, Opening]]:
    for path in sorted((store.root / FOLDER).glob(f"*/{_OPENED}")):
        if (opening := Journal(store, path.parent.name).opening()) is not None:
            yield path.parent.name, opening
