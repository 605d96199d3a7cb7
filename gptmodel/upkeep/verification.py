"""Is the chain what it says? Every manifest against itself, every file against its manifest, every input against what
its directory holds now, and the sources as far as they are still there.

Damage does not stop the look: all that differs is listed, in the order of the chain, so that the first is the origin.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gptmodel.pretraining.step import LOG_HASHES, RUNS, SEALED
from gptmodel.progress import Progress
from gptmodel.store.artifacts import Store
from gptmodel.store.hashing import Hashed, hash_files
from gptmodel.store.manifests import MANIFEST, NAME_CHARS, SCRATCH, Manifest, Ref, regular_file
from gptmodel.store.provenance import FOLDER as PROVENANCE
from gptmodel.upkeep.nodes import Node, in_store, nodes_of


@dataclass(frozen=True)
class Difference:
    """One thing that is not as recorded. `node` is an artifact, its source, or what MLflow keeps of it."""

    node: str
    file: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"{self.node}: {self.file}" if self.file else self.node
        return f"{where}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass
class Report:
    """What was looked at, and what differs, origins first."""

    nodes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and leftovers that harm nobody."""
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A file to hash, and what to make of the result."""

    path: Path
    bytes: int
    place: tuple[int, ...]
    """Where its difference stands in the list."""
    judge: Callable[[Hashed], Difference | None]
    links: bool = False


@dataclass
class Look:
    """What a look at the chain has gathered: differences by their place in it, files still to be hashed, and notes."""

    differences: list[tuple[tuple[int, ...], Difference]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    """What the store keeps beside its artifacts and has been looked at for one of them."""

    def add(self, place: tuple[int, ...], *found: Difference) -> None:
        self.differences += [(place, each) for each in found]


def verify(
    store: Store, targets: Iterable[Path], *, sources: bool = True, threads: int = 0, progress: Progress | None = None
) -> Report:
    """Look at the targets and all that they were made from; `sources` looks at what lies outside the store too."""
    from gptmodel.upkeep.origins import check_origin

    started = time.perf_counter()
    nodes = nodes_of(store, (in_store(store, target) for target in targets))
    report, look = Report([node.label for node in nodes]), Look()
    by_path = {node.path: node for node in nodes}
    for number, node in enumerate(nodes):
        if sources and node.manifest is not None:
            check_origin(store, node, (number, 0), look)
        look.add((number, 1), *_check_manifest(store, node, look.notes))
        if node.manifest is not None:
            look.add((number, 2), *_check_inputs(store, node, by_path))
            _check_files(node, number, look)
            look.add((number, 4), *_strays(node, look.notes))
            _check_provenance(store, node, number, look)
            _check_log(store, node, number, look)
    results = hash_files([(job.path, job.bytes, job.links) for job in look.jobs], threads=threads, progress=progress)
    for job, result in zip(look.jobs, results, strict=True):
        report.files += 1
        report.bytes += result.bytes
        if (difference := job.judge(result)) is not None:
            look.add(job.place, difference)
    report.differences = [difference for _, difference in sorted(look.differences, key=lambda item: item[0])]
    report.notes = look.notes
    report.seconds = time.perf_counter() - started
    return report


def _check_manifest(store: Store, node: Node, notes: list[str]) -> Iterator[Difference]:
    if node.manifest is None:
        yield Difference(node.label, MANIFEST, "manifest", "a whole one", node.problem)
        if node.problem != "is missing":
            notes.append(f"{node.label}: what it was made from cannot be followed, since its manifest cannot be read")
        return
    for what, expected, found in node.manifest.disagreements(to_the_byte=True):
        yield Difference(node.label, MANIFEST, what, expected, found)
    if not node.manifest.sealed:
        notes.append(f"{node.label}: written by an older version without a seal: figures and provenance stand unproved")
    place = (node.path.parent.name, node.path.name)
    holds = (node.manifest.request.kind, node.manifest.request.fingerprint[:NAME_CHARS])
    if place != holds and node.path.parent.parent.resolve() == store.root.resolve():
        yield Difference(node.label, MANIFEST, "place", "/".join(place), "/".join(holds))


def _check_inputs(store: Store, node: Node, by_path: dict[Path, Node]) -> Iterator[Difference]:
    assert node.manifest is not None
    for ref in node.manifest.request.inputs:
        there = by_path.get(store.root / ref.label)
        if ref.kind == "source" or there is None or there.manifest is None:
            continue  # what is missing or unreadable is told of itself
        yield from _check_input(node, ref, there.manifest)


def _check_input(node: Node, ref: Ref, there: Manifest) -> Iterator[Difference]:
    if ref.digest != there.digest:
        yield Difference(node.label, MANIFEST, f"digest of input {ref.label}", ref.digest, there.digest)
    if ref.fingerprint != there.request.fingerprint:
        found = there.request.fingerprint
        yield Difference(node.label, MANIFEST, f"fingerprint of input {ref.label}", ref.fingerprint, found)


def _check_files(node: Node, number: int, look: Look) -> None:
    """What can be said at once of each file; the rest are jobs."""
    assert node.manifest is not None
    for at, entry in enumerate(sorted(node.manifest.files, key=lambda e: e.name)):
        place = (number, 3, at)
        there = regular_file(node.path, entry.name)
        if isinstance(there, str):
            look.add(place, Difference(node.label, entry.name, "file", f"{entry.bytes:,} bytes", there))
        elif there.st_size != entry.bytes:
            sizes = f"{entry.bytes:,} bytes", f"{there.st_size:,} bytes"
            look.add(place, Difference(node.label, entry.name, "size", *sizes))
        else:
            compare = judge(node.label, entry.name, entry.sha256)
            look.jobs.append(Job(node.path / entry.name, entry.bytes, place, compare))


def _check_provenance(store: Store, node: Node, number: int, look: Look) -> None:
    """The changes to the code and the list of packages that the store keeps beside its artifacts, each once."""
    assert node.manifest is not None
    told = node.manifest.provenance
    patch = told.get("code_patch")
    wanted = {"patch": patch.get("sha256") if isinstance(patch, dict) else "", "packages": told.get("packages_digest")}
    for ending, sha256 in wanted.items():
        name = f"{PROVENANCE}/{sha256}.{ending}"
        if not re.fullmatch(r"[0-9a-f]{64}", str(sha256)) or name in look.kept:
            continue
        there = regular_file(store.root, name)
        if not isinstance(there, str):
            look.kept.add(name)
            job = Job(store.root / name, there.st_size, (number, 5), judge(node.label, name, str(sha256)))
            look.jobs.append(job)
        elif there == "is missing":
            look.notes.append(f"{node.label}: {name} is not kept in this store")
        else:
            look.add((number, 5), Difference(node.label, name, "file", "a file", there))


def _check_log(store: Store, node: Node, number: int, look: Look) -> None:
    """The numbers and settings of a training, beside its artifact; one of an older version states no hashes."""
    assert node.manifest is not None
    hashes = node.manifest.provenance.get(LOG_HASHES)
    for name, sha256 in sorted(hashes.items()) if isinstance(hashes, dict) else ():
        file = f"{RUNS}/{node.path.name}/{name}"
        if name not in SEALED:
            continue  # a stranger's manifest names what it likes
        there = regular_file(store.root, file)
        if isinstance(there, str):
            look.notes.append(f"{node.label}: {file} {there}: the curve of the training cannot be checked")
        else:
            job = Job(store.root / file, there.st_size, (number, 6), judge(node.label, file, str(sha256)))
            look.jobs.append(job)


def judge(node: str, file: str, sha256: str) -> Callable[[Hashed], Difference | None]:
    """Compares a file's hash with the expected one."""

    def compare(found: Hashed) -> Difference | None:
        if found.sha256 == sha256:
            return None
        return Difference(node, file, "sha256", sha256, found.failure or found.sha256)

    return compare


def _strays(node: Node, notes: list[str]) -> Iterator[Difference]:
    """Files that the manifest does not name."""
    assert node.manifest is not None
    known = {MANIFEST, *(entry.name for entry in node.manifest.files)}

    def closed(error: OSError) -> None:
        notes.append(
            f"{node.label}: {error.filename} cannot be listed: {error.strerror}; it may hold more than it says"
        )

    for folder, folders, files in os.walk(node.path, onerror=closed):
        if SCRATCH in folders and Path(folder) == node.path:
            folders.remove(SCRATCH)
            notes.append(f"{node.label}: {SCRATCH} was left by a run that was killed; no reader sees it")
        for name in sorted([*files, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            path = Path(folder) / name
            relative = path.relative_to(node.path).as_posix()
            if relative in known:
                continue
            if name.startswith(".") and name.endswith(".tmp"):
                notes.append(f"{node.label}: {relative} was left by a run that was killed; no reader sees it")
                continue
            size = "a link"
            with suppress(OSError):
                size = size if path.is_symlink() else f"{path.lstat().st_size:,} bytes"
            yield Difference(node.label, relative, "file", "none of this name", size)
