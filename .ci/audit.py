"""Known vulnerabilities of the locked versions: `make audit`.

The package index is asked for its page of each release (its JSON API), which lists the advisories of the PyPA's and
GitHub's databases. Many mirrors have no such pages, only that of a project's newest release; then only pins that are
the newest are answered. ADVISORIES=path adds a database of one's own: a folder or zip of OSV records, such as OSV's
PyPI export, which answers for every version, with no network.

An audit that could not look says so and fails: it first looks up packages that are known to be vulnerable, and
believes no database that does not know them. (pip-audit asks for pages of releases alone, and skips what has none.)

Exit code 0: every pin was answered, and none has a vulnerability but those that .ci/audit.toml accepts with a reason.
1: one has. 3: no database was consulted, or none answered for some pins, which are named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from bill import LOCKS, ROOT, locked, normal
from packaging.version import InvalidVersion, Version

Pin = tuple[str, str]  # name, version
# Last releases, never mended: a database that finds nothing here is none. Advisories of 2013 and 2018, and of 2026.
KNOWN_BAD: tuple[Pin, ...] = (("pycrypto", "2.6.1"), ("diskcache", "5.6.3"))
UNSURE = 3


@dataclass(frozen=True)
class Advisory:
    """One entry of a database; `names` has its id and those it goes by in other databases."""

    id: str
    names: frozenset[str]
    summary: str
    fixed_in: str


class Index:
    """The package index's JSON API."""

    def __init__(self, simple: str) -> None:
        """`simple` is the index's address as pip knows it."""
        address = simple.rstrip("/").removesuffix("/simple")
        self.api = f"{address}/pypi"
        self.title = f"the package index {urlsplit(address).hostname}"
        self.client = httpx.Client(
            timeout=30, follow_redirects=True, transport=httpx.HTTPTransport(retries=2), trust_env=True
        )
        self.releases = True

    def page(self, path: str) -> dict[str, Any] | None:
        """The page, or None where there is none; raises httpx.HTTPError or ValueError where the index fails."""
        answer = self.client.get(f"{self.api}/{path}/json")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict) or not isinstance(found.get("vulnerabilities"), list):
            raise ValueError(f"{self.title} lists no vulnerabilities")
        return found

    def look_up(self, pin: Pin) -> list[Advisory] | str:
        """The advisories of a pin, or why there is no answer."""
        name, version = pin
        try:
            found = self.page(f"{name}/{version}") if self.releases else None
            if found is None:
                found = self.page(name)
                if found is None:
                    return "not in the index"
                newest = str(found["info"]["version"])
                if Version(newest) != Version(version):
                    open_there = ", ".join(str(entry["id"]) for entry in found["vulnerabilities"]) or "none known"
                    return f"no page of this release; the newest is {newest}, its vulnerabilities: {open_there}"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"no answer: {error}"
        return [
            Advisory(
                id=str(entry["id"]),
                names=frozenset([entry["id"], *entry.get("aliases", ())]),
                summary=str(entry.get("summary") or entry.get("details") or ""),
                fixed_in=", ".join(entry.get("fixed_in") or ()),
            )
            for entry in found["vulnerabilities"]
            if not entry.get("withdrawn")
        ]


class Records:
    """OSV records from a folder or a zip, read once."""

    def __init__(self, path: Path) -> None:
        self.newest = ""
        self.by_name: dict[str, list[dict[str, Any]]] = {}
        count = 0
        for text in self.texts(path):
            record = json.loads(text)
            if record.get("withdrawn"):
                continue
            count += 1
            self.newest = max(self.newest, str(record.get("modified", ""))[:10])
            for affected in record.get("affected", ()):
                if affected.get("package", {}).get("ecosystem") == "PyPI":
                    entry = {**affected, "record": record}
                    self.by_name.setdefault(normal(affected["package"]["name"]), []).append(entry)
        self.title = f"{path.name}: {count} records, the newest of {self.newest or 'no date'}"

    @staticmethod
    def texts(path: Path) -> Iterator[bytes]:
        if path.is_dir():
            yield from (file.read_bytes() for file in sorted(path.rglob("*.json")))
        else:
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in archive.namelist() if name.endswith(".json"))

    def look_up(self, pin: Pin) -> list[Advisory] | str:
        found = {}
        for entry in self.by_name.get(pin[0], ()):
            if not holds(entry, pin[1]):
                continue
            record = entry["record"]
            fixed = [e["fixed"] for r in entry.get("ranges", ()) for e in r.get("events", ()) if "fixed" in e]
            found[record["id"]] = Advisory(
                id=record["id"],
                names=frozenset([record["id"], *record.get("aliases", ())]),
                summary=str(record.get("summary") or record.get("details") or ""),
                fixed_in=", ".join(fixed),
            )
        return list(found.values())


def holds(affected: dict[str, Any], version: str) -> bool:
    """Whether an OSV `affected` entry is about this version: listed, or inside one of its ranges."""
    if version in affected.get("versions", ()):
        return True
    asked = Version(version)
    for span in affected.get("ranges", ()):
        if span.get("type") != "ECOSYSTEM":
            continue
        inside = False
        for event in span.get("events", ()):  # in the order of versions, as the schema demands
            for kind, value in event.items():
                try:
                    at = Version("0" if value == "0" else value)
                except InvalidVersion:
                    continue
                if kind == "introduced" and asked >= at:
                    inside = True
                elif (kind == "fixed" and asked >= at) or (kind == "last_affected" and asked > at):
                    inside = False
        if inside:
            return True
    return False


def merged(found: Iterable[Advisory]) -> list[Advisory]:
    """One advisory for each vulnerability: databases list the same one under different names."""
    groups: list[Advisory] = []
    for advisory in found:
        same = [group for group in groups if group.names & advisory.names]
        first = min([*same, advisory], key=lambda one: (not one.id.startswith("PYSEC"), one.id))
        names = frozenset().union(advisory.names, *(group.names for group in same))
        fixed = max((one.fixed_in for one in (*same, advisory)), key=len)
        groups = [group for group in groups if group not in same]
        groups.append(Advisory(first.id, names, first.summary, fixed))
    return sorted(groups, key=lambda one: one.id)


def consulted(database: Index | Records) -> str:
    """'' when the database knows what is known to be vulnerable, else why it is not believed."""
    answers = [database.look_up(pin) for pin in KNOWN_BAD]
    if any(isinstance(answer, list) and answer for answer in answers):
        return ""
    told = [
        f"{name} {version}: {answer or 'no advisory'}"
        for (name, version), answer in zip(KNOWN_BAD, answers, strict=True)
    ]
    return f"it does not know packages that are known to be vulnerable ({'; '.join(told)})"


def believed(databases: list[Index | Records]) -> list[Index | Records]:
    """Those that know what is known to be vulnerable; says of each whether it was consulted, and if not, why."""
    found = []
    for database in databases:
        if isinstance(database, Index):
            with suppress(httpx.HTTPError, ValueError):  # consulted() will say it
                database.releases = database.page("/".join(KNOWN_BAD[0])) is not None
        reason = consulted(database)
        print(f"database: {database.title}: {f'NOT CONSULTED: {reason}' if reason else 'consulted'}")
        if not reason:
            found.append(database)
    return found


def ask(pins: list[Pin], databases: list[Index | Records]) -> tuple[dict[Pin, list[Advisory]], dict[Pin, str]]:
    """(advisories of the pins that some database answered for, why there is no answer for the others)."""
    with ThreadPoolExecutor(8) as pool:
        answers = [list(pool.map(database.look_up, pins)) for database in databases]
    found: dict[Pin, list[Advisory]] = {}
    unanswered: dict[Pin, str] = {}
    for pin, told in zip(pins, zip(*answers, strict=True), strict=True):
        lists = [answer for answer in told if isinstance(answer, list)]
        if lists:
            found[pin] = merged(advisory for answer in lists for advisory in answer)
        else:
            unanswered[pin] = next(answer for answer in told if isinstance(answer, str))
    return found, unanswered


def audit(pins: list[Pin], databases: list[Index | Records], accepted: dict[str, dict[str, str]]) -> int:
    """Print what was asked, what was found and what was not answered; the exit code."""
    databases = believed(databases)
    if not databases:
        print(f"NOT AUDITED: no database was consulted, so nothing is known of the {len(pins)} locked versions.")
        return UNSURE
    found, unanswered = ask(pins, databases)
    wrong = 0
    known: set[str] = set()
    for pin, advisories in found.items():
        for advisory in advisories:
            reason = next((accepted[name]["why"] for name in sorted(advisory.names) if name in accepted), "")
            known |= advisory.names
            wrong += not reason
            names = ", ".join([advisory.id, *sorted(advisory.names - {advisory.id})])
            print(f"{'accepted' if reason else 'VULNERABLE'}: {' '.join(pin)}: {names}")
            print(f"    {' '.join(advisory.summary.split())[:200]}")
            print(f"    fixed in: {advisory.fixed_in or 'no release'}" + (f"; accepted: {reason}" if reason else ""))
    stale = [] if unanswered else sorted(set(accepted) - known)
    for name in stale:
        print(f".ci/audit.toml accepts {name}, which no locked version has any more; drop it")
    for pin, reason in sorted(unanswered.items()):
        print(f"not answered: {' '.join(pin)}: {reason}")
    named = sum(map(len, found.values()))
    print(f"{datetime.now(UTC):%Y-%m-%d}: {len(found)} of {len(pins)} locked versions answered, {len(unanswered)} not")
    print(f"known vulnerabilities of those answered: {named}, of which accepted with a reason: {named - wrong}")
    return 1 if wrong or stale else UNSURE if unanswered else 0


def main(arguments: list[str] | None = None) -> int:
    from pip._internal.models.index import PyPI

    parser = argparse.ArgumentParser(description="Known vulnerabilities of the locked versions.")
    parser.add_argument("--advisories", type=Path, help="a folder or zip of OSV records, to be asked too")
    parser.add_argument("--offline", action="store_true", help="ask these alone")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the lock files")
    asked = parser.parse_args(arguments)
    databases: list[Index | Records] = []
    if not asked.offline:
        databases.append(Index(os.environ.get("UV_DEFAULT_INDEX") or PyPI.simple_url))
    if asked.advisories:
        try:
            databases.append(Records(asked.advisories))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            print(f"--advisories: {asked.advisories} has no readable OSV records: {error}", file=sys.stderr)
            return 2
    pins = sorted({pin for lock in LOCKS for pin in locked(lock, asked.root)})
    table = asked.root / ".ci" / "audit.toml"
    try:
        return audit(pins, databases, tomllib.loads(table.read_text()) if table.is_file() else {})
    finally:
        for database in databases:
            if isinstance(database, Index):
                database.client.close()


if __name__ == "__main__":
    sys.exit(main())
