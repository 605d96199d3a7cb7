"""What raters said, as it comes in: `<store>/.ratings/<round>/`, on disk before anybody is told that it is saved.

`ratings.jsonl` holds points and `comparisons.jsonl` preferences, as `gptmodel.rating.deliveries` says. `raters.json`
is the one place that knows names; all else knows numbers. These are a person's hours, so `gptflow store gc` never
touches this folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from gptmodel.config.problems import nearest
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.rating.deliveries import Comparison, Deliveries, Rating
from gptmodel.store.artifacts import Store, write_atomic
from gptmodel.store.locks import exclusive

FOLDER = ".ratings"
_LOG, _COMPARED = "ratings.jsonl", "comparisons.jsonl"
_RATERS, _OPENED, _LOCK = "raters.json", "opened.json", "lock"


@dataclass(frozen=True)
class Opening:
    """When a round was put before raters, by whom it is waited for, and how long."""

    opened: str
    deadline: str
    needed: int
    """Ratings and comparisons that are enough, checks included."""
    flow_runs: tuple[str, ...] = ()
    """Prefect runs that wait for it."""
    pairs: bool = False
    """Whether raters are asked to compare, too."""
    named: bool = False
    """Whether each rater was named when it was opened: nobody else rates."""


class Journal:
    """The ratings of one round, by its name."""

    def __init__(self, store: Store, name: str) -> None:
        self.folder = store.root / FOLDER / name
        self.what = f"the ratings of rating-round/{name}"
        self._ratings = Deliveries(self.folder / _LOG, Rating, "ratings")
        self._comparisons = Deliveries(self.folder / _COMPARED, Comparison, "comparisons")

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

    def number_told(self, name: str) -> int:
        """As `number_of`, of who comes to rate. ConfigError where the round's raters were named, without this one."""
        name, known, opening = checked_name(name), self.raters(), self.opening()
        if opening is not None and opening.named and name not in known:
            raise ConfigError(
                f"rater {name!r} was not named to this round{nearest(name, known)}; there are {', '.join(known)}. "
                "`gptflow rate start` with this --rater, and all else as before, adds one"
            )
        return self.number_of(name)

    def add(self, ratings: Iterable[Rating]) -> int:
        """Keep those that say something new, all or none; how many there were."""
        with self._alone():
            return self._ratings.add(ratings)

    def ratings(self) -> dict[tuple[int, str], Rating]:
        """By rater and text, the last word each. ArtifactError for a damaged file."""
        return self._ratings.last()

    def compare(self, comparisons: Iterable[Comparison]) -> int:
        """As `add`, of preferences."""
        with self._alone():
            return self._comparisons.add(comparisons)

    def comparisons(self) -> dict[tuple[int, str], Comparison]:
        """By rater and pair, the last word each. ArtifactError for a damaged file."""
        return self._comparisons.last()

    def draft(self, rater: int) -> dict[str, Any]:
        """What a rater has said so far of a text that he is not done with."""
        return self._read(f"draft-{rater}.json")

    def save_draft(self, rater: int, draft: dict[str, Any]) -> None:
        write_atomic(self.folder / f"draft-{rater}.json", json.dumps(draft, ensure_ascii=False))

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
                pairs, named = opening.pairs or before.pairs, opening.named and before.named
                opening = Opening(before.opened, deadline, opening.needed, runs, pairs, named)
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
