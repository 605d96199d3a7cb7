"""The store: artifacts named by what was asked, checked by what came out.

An artifact is a directory `<store>/<kind>/<fingerprint>` with a `manifest.json`. The fingerprint is a hash of kind,
recipe version, config and the content digests of its inputs; the content digest is a hash of its file hashes. Neither
knows a time, a host or a path. A directory without a manifest does not exist.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.locks import exclusive
from gptmodel.provenance import provenance
from gptmodel.space import require, storage_errors, used_bytes

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
SCRATCH = ".work"  # of a directory being built: what a restart needs and readers never see
_SEAL = "seal"
_NAME_CHARS = 16
_HASH_CHUNK = 1 << 22


def canonical(value: Any) -> str:
    """Stable text of plain data: sorted keys, whole floats as integers; ConfigError on all that has no stable form."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise ConfigError(f"{value!r} ({type(value).__name__}) has no stable form to take a fingerprint of")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Put a file or a directory's entries on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or none: temporary sibling, fsync, replace, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


@dataclass(frozen=True)
class Ref:
    """An input: which artifact, by what was asked (fingerprint) and by what it holds (digest)."""

    kind: str
    fingerprint: str
    digest: str


@dataclass(frozen=True)
class Request:
    """What is asked of a step. Its fingerprint names the answer."""

    kind: str
    recipe_version: int
    config: dict[str, Any]
    inputs: tuple[Ref, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over kind, recipe version, config and the content digests of the inputs."""
        asked = [self.kind, self.recipe_version, self.config, [[ref.kind, ref.digest] for ref in self.inputs]]
        return hashlib.sha256(canonical(asked).encode()).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact, by its name below the artifact's directory."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A published artifact. Reading its files through `file` checks them."""

    path: Path
    request: Request
    files: tuple[FileEntry, ...]
    summary: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.request.kind

    @property
    def fingerprint(self) -> str:
        return self.request.fingerprint

    @property
    def digest(self) -> str:
        """Content digest: hex sha256 over the sorted names and hashes of the files."""
        lines = sorted(f"{entry.sha256} {entry.name}" for entry in self.files)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def ref(self) -> Ref:
        return Ref(self.kind, self.fingerprint, self.digest)

    @property
    def label(self) -> str:
        """Short name for people, such as `shards/1f2e3d4c5b6a7980`."""
        return f"{self.kind}/{self.path.name}"

    def file(self, name: str) -> Path:
        """Path of a file after checking its size, and, the first time in this process, its sha256.

        Raises ArtifactError naming the artifact and the file.
        """
        entry = next((entry for entry in self.files if entry.name == name), None)
        if entry is None:
            raise ArtifactError(f"{self.label} has no file {name}; it has {', '.join(f.name for f in self.files)}")
        path = self.path / name
        _check_size(self.label, path, entry)
        key = (str(path), entry.sha256, path.stat().st_mtime_ns)
        if key not in _hashed:
            found = _read_whole(self.label, path)
            if found != entry.sha256:
                raise ArtifactError(
                    f"{self.label}: {name} is damaged: sha256 is {found[:16]}…, expected {entry.sha256[:16]}…; "
                    f"remove {self.path} and run the step again"
                )
            _hashed.add(key)
        return path

    def verify(self) -> Artifact:
        """Check every file as `file` does; for an artifact that no later step reads."""
        for entry in self.files:
            self.file(entry.name)
        return self

    def names(self, suffix: str = "", prefix: str = "") -> list[str]:
        """Sorted names of the files that begin and end so."""
        return sorted(e.name for e in self.files if e.name.endswith(suffix) and e.name.startswith(prefix))


_hashed: set[tuple[str, str, int]] = set()  # files whose hash this process has seen to be right


def _check_size(label: str, path: Path, entry: FileEntry) -> None:
    remedy = f"remove {path.parents[len(PurePosixPath(entry.name).parts) - 1]} and run the step again"
    if not path.is_file():
        raise ArtifactError(f"{label}: {entry.name} is missing; {remedy}")
    found = path.stat().st_size
    if found != entry.bytes:
        raise ArtifactError(f"{label}: {entry.name} is damaged: {found:,} bytes, expected {entry.bytes:,}; {remedy}")


def _read_whole(label: str, path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ArtifactError(f"{label}: {path} cannot be read: {error.strerror}") from None


def load_artifact(path: Path) -> Artifact:
    """The artifact in a directory, with file sizes checked. ArtifactError where there is none, or it is damaged."""
    manifest = path / MANIFEST
    try:
        raw = json.loads(manifest.read_text())
        request = Request(raw["kind"], raw["recipe_version"], raw["config"], tuple(Ref(**ref) for ref in raw["inputs"]))
        files = tuple(FileEntry(**entry) for entry in raw["files"])
        artifact = Artifact(path, request, files, raw["summary"], raw["provenance"])
        stated = (raw["fingerprint"], raw["digest"], raw.get(_SEAL, _seal(raw)))  # older manifests have no seal
        if unknown := raw.keys() - {*_manifest(artifact), _SEAL}:
            raise ValueError(f"it has an entry {min(unknown)!r}")
    except FileNotFoundError:
        raise ArtifactError(f"no artifact at {path}: it has no {MANIFEST}") from None
    except OSError as error:
        raise ArtifactError(f"{manifest} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{manifest} is damaged ({error}); remove {path} and run the step again") from None
    if stated != (artifact.fingerprint, artifact.digest, _seal(raw)):
        raise ArtifactError(f"{manifest} does not agree with itself; remove {path} and run the step again")
    for entry in files:
        if PurePosixPath(entry.name).is_absolute() or ".." in PurePosixPath(entry.name).parts:
            raise ArtifactError(f"{manifest} names a file outside its directory: {entry.name}")
        _check_size(f"{artifact.kind}/{path.name}", path / entry.name, entry)
    return artifact


@dataclass(frozen=True)
class Store:
    """A directory of artifacts."""

    root: Path

    def path_of(self, request: Request) -> Path:
        return self.root / request.kind / request.fingerprint[:_NAME_CHARS]

    def building_path(self, request: Request) -> Path:
        """Where it is built: a hidden sibling, kept after a failure so that a restart can go on."""
        final = self.path_of(request)
        return final.with_name(f".building-{final.name}")

    def lock_path(self, request: Request) -> Path:
        final = self.path_of(request)
        return final.with_name(f".{final.name}.lock")

    def find(self, request: Request) -> Artifact | None:
        """The answer to this request if it is already there; ArtifactError if it is there and damaged."""
        path = self.path_of(request)
        if not (path / MANIFEST).exists():
            return None
        return load_artifact(path)

    def produce(
        self, request: Request, build: Callable[[Path], dict[str, Any]], *, wait: bool = False, needed: int = 0
    ) -> tuple[Artifact, bool]:
        """Return (artifact, reused): the one that is there, or the one that `build(directory)` makes.

        `build` fills the directory and returns the summary figures. What it leaves in the directory's `.work` is
        scratch: it survives a failure and is dropped on publication. One process builds a request at a time; another
        gets LockHeldError, or waits if `wait`. StorageError if the disk has not `needed` bytes free, less what an
        earlier attempt left, or cannot be written to; nothing is published then.
        """
        if (found := self.find(request)) is not None:
            return found, True
        building, what = self.building_path(request), f"{request.kind} {request.fingerprint[:_NAME_CHARS]}"
        with storage_errors(what, self.root, needed):
            require(0, self.root, what)
            building.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.lock_path(request), what, wait=wait) as hold:
                if (found := self.find(request)) is not None:
                    return found, True
                require(needed - used_bytes(building), self.root, what)
                building.mkdir(exist_ok=True)
                started = provenance()
                summary = build(building)
                return self._publish(request, building, summary, started, hold.check), False

    def _publish(
        self,
        request: Request,
        building: Path,
        summary: dict[str, Any],
        started: dict[str, Any],
        guard: Callable[[], None],
    ) -> Artifact:
        guard()
        paths = sorted(p for p in building.rglob("*") if p.is_file() and not _is_scratch(p.relative_to(building)))
        if not paths:
            raise ArtifactError(f"{request.kind}: the step made no file")
        files = tuple(FileEntry(p.relative_to(building).as_posix(), p.stat().st_size, sha256_file(p)) for p in paths)
        for path in paths:
            fsync_path(path)
        final = self.path_of(request)
        artifact = Artifact(final, request, files, summary, {**started, "finished": provenance()["started"]})
        write_atomic(building / MANIFEST, _manifest_text(artifact))
        guard()  # again: hashing took its time
        if final.exists():  # without a manifest, or `find` would have returned it
            aside = final.with_name(f".without-manifest-{final.name}-{time.time_ns()}")
            os.replace(final, aside)
            log.warning("%s had no manifest; set aside as %s", artifact.label, aside)
        os.replace(building, final)
        fsync_path(final.parent)
        shutil.rmtree(final / SCRATCH, ignore_errors=True)
        return artifact

    def artifacts(self) -> Iterator[Artifact]:
        """All readable artifacts, by kind and name."""
        for manifest in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            if not manifest.parent.name.startswith("."):
                yield load_artifact(manifest.parent)

    def resolve(self, name: str, kind: str = "") -> Artifact:
        """The artifact that a person means: a path, `kind/name`, or the first characters of its fingerprint."""
        if (Path(name) / MANIFEST).exists():
            found = [Path(name)]
        else:
            part = name.removeprefix(f"{kind}/").rsplit("/", 1)
            kinds, stem = (part[0], part[1]) if len(part) == 2 else (kind or "*", part[0])
            if not re.fullmatch(r"[0-9a-f]{4,64}", stem) or not re.fullmatch(r"[a-z-]+|\*", kinds):
                found = []
            else:
                found = sorted(m.parent for m in self.root.glob(f"{kinds}/{stem[:_NAME_CHARS]}*/{MANIFEST}"))
        if len(found) != 1:
            what = "no artifact" if not found else f"{len(found)} artifacts"
            raise ArtifactError(f"{what} in {self.root} for {name!r}; give kind/fingerprint or the path of one")
        artifact = load_artifact(found[0])
        if kind and artifact.kind != kind:
            raise ArtifactError(f"{name} is a {artifact.kind}, and a {kind} is needed")
        return artifact

    def input_of(self, artifact: Artifact, kind: str) -> Artifact:
        """The input of this kind, found in the same store and checked against the recorded digest."""
        ref = next((ref for ref in artifact.request.inputs if ref.kind == kind), None)
        if ref is None:
            raise ArtifactError(f"{artifact.label} has no input of kind {kind}")
        found = load_artifact(self.root / ref.kind / ref.fingerprint[:_NAME_CHARS])
        if found.digest != ref.digest:
            raise ArtifactError(
                f"{artifact.label} was made from {kind} {ref.digest[:16]}…, but {found.label} now holds "
                f"{found.digest[:16]}…"
            )
        return found


def open_store() -> Store:
    """The store that GPTFLOW_STORE names, or `./store`."""
    return Store(Path(os.environ.get("GPTFLOW_STORE", "store")))


def find_model(store: Store, name: str = "") -> Artifact:
    """The named checkpoint or weights of the store; without a name the checkpoint that was finished last."""
    if name:
        found = store.resolve(name)
        if found.kind not in ("checkpoint", "weights"):
            raise ArtifactError(f"{found.label} is no model; give a checkpoint or weights")
        return found
    checkpoints = [a for a in store.artifacts() if a.kind == "checkpoint"]
    if not checkpoints:
        raise ArtifactError(f"no checkpoint in {store.root}; train one with `gptflow run`, or name a model")
    return max(checkpoints, key=lambda a: str(a.provenance["finished"]))


def _is_scratch(relative: Path) -> bool:
    return relative.parts[0] == SCRATCH or relative.name == MANIFEST or relative.name.endswith(".tmp")


def _manifest_text(artifact: Artifact) -> str:
    # Sealed as it will be read back: a tuple is a list then.
    raw = json.loads(json.dumps(_manifest(artifact)))
    return json.dumps({**raw, _SEAL: _seal(raw)}, indent=2, ensure_ascii=False) + "\n"


def _seal(raw: dict[str, Any]) -> str:
    """Hex sha256 of a manifest without its seal: figures and provenance are in no other hash."""
    rest = {name: value for name, value in raw.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _manifest(artifact: Artifact) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "recipe_version": artifact.request.recipe_version,
        "fingerprint": artifact.fingerprint,
        "digest": artifact.digest,
        "config": artifact.request.config,
        "inputs": [asdict(ref) for ref in artifact.request.inputs],
        "files": [asdict(entry) for entry in artifact.files],
        "summary": artifact.summary,
        "provenance": artifact.provenance,
    }
