"""The ledger of a model's name: every decision about its champion, in `<store>/.ledger/NAME.jsonl`.

The file only grows, a line each time, on disk before anybody acts on it; each line holds the hash of the one before, so
that a line that was changed or taken out is seen; at the end, where no line follows, the note of what MLflow was told
last shows it. A line that a kill cut short is no line. The champion is what the lines say; the aliases of MLflow's
registry are made to follow (`tasks.tracking.aliases`), now or later.
`gptflow store gc` never touches this folder, and keeps the models that stand in it as champion, previous, challenger.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.store.artifacts import Artifact, Store, canonical, fsync_path, write_atomic
from gptmodel.store.locks import exclusive
from gptmodel.store.space import storage_errors

FOLDER = ".ledger"
Action = Literal["freeze", "decide", "promote", "rollback", "adopt", "retire"]
_ACTIONS = ("freeze", "decide", "promote", "rollback", "adopt", "retire")


@dataclass(frozen=True)
class Named:
    """A model, or other artifact: its label in the store, and the content digest that the label had."""

    label: str
    digest: str

    @classmethod
    def of(cls, artifact: Artifact) -> Named:
        return cls(artifact.label, artifact.digest)


@dataclass(frozen=True)
class Draft:
    """What is to be written."""

    action: Action
    subject: Named | None
    """freeze: the shards whose held-out documents are frozen. decide: the challenger. promote, adopt: the new champion.
    rollback: the one that goes."""
    reason: str = ""
    by: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry(Draft):
    """A line of the ledger."""

    number: int = 0
    at: str = ""
    before: str = ""
    """Hash of the line before; empty in the first."""
    hash: str = ""

    @property
    def outcome(self) -> str:
        """Of a decision: promoted, kept or waiting."""
        return str(self.facts.get("outcome", ""))

    def own_hash(self) -> str:
        told = {name: value for name, value in asdict(self).items() if name != "hash"}
        return hashlib.sha256(canonical(told).encode()).hexdigest()


@dataclass
class State:
    """What the lines come to."""

    champions: list[Named] = field(default_factory=list)
    """The champions that a rollback leads back through, the present one last."""
    challenger: Named | None = None
    """The newest model that was decided on and is not the champion."""
    frozen: Named | None = None
    entries: list[Entry] = field(default_factory=list)

    @property
    def champion(self) -> Named | None:
        return self.champions[-1] if self.champions else None

    @property
    def previous(self) -> Named | None:
        return self.champions[-2] if len(self.champions) > 1 else None

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    @property
    def last_decision(self) -> Entry | None:
        return next((each for each in reversed(self.entries) if each.action == "decide"), None)

    def decided(self, key: str) -> Entry | None:
        """The decision that was made on just this question."""
        return next((each for each in self.entries if each.action == "decide" and each.facts.get("key") == key), None)

    def decision_on(self, model: Named) -> Entry | None:
        """The newest decision on a model."""
        found = (each for each in reversed(self.entries) if each.action == "decide" and each.subject == model)
        return next(found, None)

    def take(self, entry: Entry) -> None:
        """Go on by one line."""
        self.entries.append(entry)
        subject = entry.subject
        if entry.action == "freeze":
            self.frozen = subject
        elif entry.action == "decide" and subject is not None and entry.outcome != "promoted":
            if subject != self.champion:
                self.challenger = subject
        elif entry.action in ("decide", "promote", "adopt") and subject is not None:
            self.champions.append(subject)
            self.challenger = None if self.challenger == subject else self.challenger
        elif entry.action == "rollback" and self.champions:
            self.champions.pop()


class Ledger:
    """The ledger of one registered name."""

    def __init__(self, store: Store, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ConfigError(f"{name!r} is no name of a registered model here; use letters, digits, dots, dashes, _")
        self.name, self.root = name, store.root
        self.folder = store.root / FOLDER
        self.path = self.folder / f"{name}.jsonl"
        self._told = self.folder / f".{name}.told.json"

    def read(self) -> State:
        """All whole lines. ArtifactError where one is not what was written, or one that MLflow was told of is gone."""
        told = self._last_told()  # before the lines, which are written first: so nobody writing now looks like a loss
        state, text = State(), self._whole().decode(errors="replace")
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
            state.take(self._parse(number, line, state.last))
        self._check_told(state, *told)
        return state

    def update(self, decide: Callable[[State], Draft | None]) -> tuple[State, Entry | None]:
        """Write what `decide` makes of the present state, nobody writing in between; nothing if it gives None."""
        with storage_errors("the ledger", self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder / f".{self.name}.lock", f"the ledger of {self.name}", wait=True) as hold:
                state = self.read()
                draft = decide(state)
                if draft is None:
                    return state, None
                entry = self._sealed(draft, state.last)
                hold.check()
                self._append(entry)
        state.take(entry)
        return state, entry

    def is_told(self, entry: Entry) -> bool:
        """Whether the registry was brought up to this line."""
        with suppress(OSError, ValueError, TypeError):
            return bool(json.loads(self._told.read_text())["hash"] == entry.hash)
        return False

    def note_told(self, entry: Entry) -> None:
        """The registry is as this line says."""
        write_atomic(self._told, json.dumps({"number": entry.number, "hash": entry.hash}) + "\n")

    def last_told(self) -> int:
        """The number of the line that the registry was brought up to last; 0 for none."""
        return self._last_told()[0]

    def _last_told(self) -> tuple[int, str]:
        """(number, hash) of that line."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(self._told.read_text())
            return int(told["number"]), str(told["hash"])
        return 0, ""

    def _check_told(self, state: State, number: int, told: str) -> None:
        """A line is on disk before MLflow is told of it, so no kill leaves one that was told and is not there."""
        advice = f"put the file back from a backup, or remove {self._told} to go on with the lines that are there"
        if number > (last := len(state.entries)):
            raise ArtifactError(f"{self.path} ends at line {last}, and MLflow was told of line {number}: {advice}")
        if number > 0 and state.entries[number - 1].hash != told:
            raise ArtifactError(f"{self.path}: line {number} is not the one that MLflow was told of; {advice}")

    def _sealed(self, draft: Draft, last: Entry | None) -> Entry:
        entry = Entry(
            **{name: getattr(draft, name) for name in ("action", "subject", "reason", "facts")},
            by=draft.by or _user(),
            number=last.number + 1 if last else 1,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            before=last.hash if last else "",
        )
        sealed = {**entry.__dict__, "hash": entry.own_hash()}
        return Entry(**{**sealed, "facts": json.loads(json.dumps(draft.facts))})  # as a reader will have them

    def _parse(self, number: int, line: str, last: Entry | None) -> Entry:
        wrong = "is not what was written there"
        with suppress(ValueError, TypeError, KeyError, ConfigError):
            raw = json.loads(line)
            subject = Named(**raw.pop("subject")) if raw.get("subject") else raw.pop("subject")
            entry = Entry(subject=subject, **raw)
            if entry.hash == entry.own_hash() and entry.number == number and entry.action in _ACTIONS:
                if entry.before == (last.hash if last else ""):
                    return entry
                wrong = "does not follow on the line before: one was changed or taken out"
        advice = f"put the file back from a backup, or move it and {self._told.name} away"
        raise ArtifactError(f"{self.path}: line {number} {wrong}; {advice}")

    def _whole(self) -> bytes:
        """All but a line that a kill cut short. The last may have lost its line break, to an editor or a copy: one that
        was cut short is no JSON, since its closing brace is gone."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        ended = raw.rfind(b"\n") + 1
        with suppress(ValueError):
            json.loads(raw[ended:])
            return raw
        return raw[:ended]

    def _append(self, entry: Entry) -> None:
        whole = self._whole()
        text = "" if not whole or whole.endswith(b"\n") else "\n"
        text += json.dumps(asdict(entry), ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.truncate(len(whole))  # what a kill left of a line
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fsync_path(self.folder)


def ledgers(store: Store) -> Iterator[Ledger]:
    """Every ledger of the store, by name."""
    for path in sorted((store.root / FOLDER).glob("[!.]*.jsonl")):
        yield Ledger(store, path.stem)


def needed_by_ledgers(store: Store) -> dict[str, str]:
    """Why the collector must keep an artifact, by its label. ArtifactError at a ledger that cannot be trusted."""
    found: dict[str, str] = {}
    for ledger in ledgers(store):
        state = ledger.read()
        roles = ("champion", "previous", "challenger", "frozen")
        for role, named in ((role, getattr(state, role)) for role in roles):
            if named is not None:
                what = "frozen validation set" if role == "frozen" else role
                found.setdefault(named.label, f"{what} of {ledger.name}")
    return found


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
