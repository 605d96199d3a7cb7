"""The store: artifacts named by what was asked, checked by what came out.

An artifact is a directory `<store>/<kind>/<fingerprint>` with a `manifest.json`. The fingerprint is a hash of kind,
recipe version, config and the content digests of its inputs; the content digest is a hash of its file hashes. Neither
knows a time, a host or a path. A directory without a manifest does not exist.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError
from gptmodel.progress import progress
from gptmodel.store.artifact import Artifact, load_artifact
from gptmodel.store.directories import has_manifest, is_artifact, is_link, is_scratch, shown
from gptmodel.store.files import fsync_path, sha256_file, write_atomic
from gptmodel.store.locks import exclusive
from gptmodel.store.manifests import (
    MANIFEST,
    NAME_CHARS,
    SCRATCH,
    FileEntry,
    Manifest,
    Ref,
    Request,
    canonical,
    check_length,
    parse,
    regular_file,
)
from gptmodel.store.provenance import now, provenance
from gptmodel.store.space import check_root, make_root, require, storage_errors, used_bytes
from gptmodel.store.uses import no_collection, using

__all__ = [
    "MANIFEST",
    "NAME_CHARS",
    "SCRATCH",
    "Artifact",
    "FileEntry",
    "Ref",
    "Request",
    "Store",
    "canonical",
    "find_model",
    "fsync_path",
    "load_artifact",
    "open_store",
    "sha256_file",
    "store_root",
    "write_atomic",
]

log = logging.getLogger(__name__)
REQUEST_FILE = "request"  # in the scratch of a directory being built: what is being made, and from what


@dataclass(frozen=True)
class Store:
    """A directory of artifacts."""

    root: Path

    def path_of(self, request: Request) -> Path:
        return self.root / request.kind / request.fingerprint[:NAME_CHARS]

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
        if not has_manifest(path):
            return None
        return self.at(request.kind, path.name)

    def at(self, kind: str, name: str) -> Artifact:
        """The artifact `kind/name` of this store. ArtifactError if what lies there is another one, or a link."""
        path = self.root / kind / name
        for place in (path.parent, path):
            if is_link(place):
                raise ArtifactError(f"{place} is a link; what a store holds is in it (link the whole store instead)")
        artifact = load_artifact(path)
        if (artifact.kind, artifact.fingerprint[:NAME_CHARS]) != (kind, name):
            is_one = f"{artifact.kind}/{artifact.fingerprint[:NAME_CHARS]}"
            raise ArtifactError(f"{path} holds {is_one}; it was moved or renamed: put it back in its place")
        return artifact

    def produce(
        self,
        request: Request,
        build: Callable[[Path], dict[str, Any]],
        *,
        wait: bool = False,
        needed: int = 0,
        seal: Callable[[], dict[str, Any]] = dict,
    ) -> tuple[Artifact, bool]:
        """Return (artifact, reused): the one that is there, or the one that `build(directory)` makes.

        `build` fills the directory and returns the summary figures. What it leaves in the directory's `.work` is
        scratch: it survives a failure and is dropped on publication. `seal` is asked after it for what provenance is to
        hold besides. One process builds a request at a time; another
        gets LockHeldError, or waits if `wait`. StorageError if the disk has not `needed` bytes free, less what an
        earlier attempt left, or cannot be written to; nothing is published then.
        """
        if (found := self._reused(request)) is not None:
            return found, True
        building, what = self.building_path(request), f"{request.kind} {request.fingerprint[:NAME_CHARS]}"
        labels = [f"{request.kind}/{building.name}", *(ref.label for ref in request.inputs)]
        with storage_errors(what, self.root, needed):
            require(0, self.root, what)
            make_root(self.root)
            building.parent.mkdir(parents=True, exist_ok=True)
            with using(self.root, labels), exclusive(self.lock_path(request), what, wait=wait) as hold:
                if (found := self._reused(request)) is not None:
                    return found, True
                require(needed - used_bytes(building), self.root, what)
                (building / SCRATCH).mkdir(parents=True, exist_ok=True)
                write_atomic(building / SCRATCH / REQUEST_FILE, json.dumps(asdict(request)))
                started = provenance(self.root)
                summary = build(building)
                return self._publish(request, building, summary, {**started, **seal()}, hold.check), False

    def _reused(self, request: Request) -> Artifact | None:
        """The answer that is there, marked as used now."""
        with no_collection(self.root):
            found = self.find(request)
            if found is not None:
                found.mark_used()
            return found

    def _publish(
        self,
        request: Request,
        building: Path,
        summary: dict[str, Any],
        started: dict[str, Any],
        guard: Callable[[], None],
    ) -> Artifact:
        guard()
        paths = sorted(p for p in building.rglob("*") if p.is_file() and not is_scratch(p.relative_to(building)))
        if not paths:
            raise ArtifactError(f"{request.kind}: the step made no file")
        sizes = [p.lstat().st_size for p in paths]
        with progress(f"hashing {request.kind}", sum(sizes), "bytes") as meter:
            files = tuple(
                FileEntry(p.relative_to(building).as_posix(), n_bytes, sha256_file(p, meter))
                for p, n_bytes in zip(paths, sizes, strict=True)
            )
        for path in (*paths, *{folder for p in paths for folder in p.parents if building in folder.parents}):
            fsync_path(path)
        final = self.path_of(request)
        artifact = Artifact(final, request, files, summary, {**started, "finished": now()})
        write_atomic(building / MANIFEST, _manifest_text(artifact, building))
        guard()  # again: hashing took its time
        if final.exists():  # without a manifest, or `find` would have returned it
            aside = final.with_name(f".without-manifest-{final.name}-{time.time_ns()}")
            os.replace(final, aside)
            log.warning("%s had no manifest; set aside as %s", artifact.label, aside)
        os.replace(building, final)
        fsync_path(final.parent)
        fsync_path(self.root)  # the first of its kind
        shutil.rmtree(final / SCRATCH, ignore_errors=True)
        return artifact

    def directories(self, kind: str = "", start: str = "") -> list[Path]:
        """Where artifacts lie, by kind and name; of one kind, and with names that begin so, if given.

        What is being built, set aside or thrown away is hidden. One that is closed to us is listed: whoever reads it
        is told so. ArtifactError if the store, or a kind, cannot be listed.
        """
        return [path for path in self.entries(kind, start) if has_manifest(path)]

    def entries(self, kind: str = "", start: str = "") -> list[Path]:
        """All that lies where artifacts lie, whole or not. Arguments and errors as in `directories`."""
        kinds = [self.root / kind] if kind else shown(self.root)
        return sorted(path for folder in kinds for path in shown(folder) if path.name.startswith(start))

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts, by kind and name; ArtifactError at one that is damaged."""
        for path in self.directories():
            yield self.at(path.parent.name, path.name)

    def locate(self, name: str, kind: str = "") -> Path:
        """Where the artifact lies that a person means, without a look at it; names as in `resolve`."""
        if is_artifact(name):
            return Path(os.path.abspath(name))  # noqa: PTH100 - `..` and `.` get their names, and links keep theirs
        part = name.removeprefix(f"{kind}/").rsplit("/", 1)
        kinds, stem = (part[0], part[1]) if len(part) == 2 else (kind or "*", part[0])
        found = []
        if re.fullmatch(r"[0-9a-f]{4,64}", stem) and re.fullmatch(r"[a-z-]+|\*", kinds):
            found = self.directories(kinds.strip("*"), stem[:NAME_CHARS])
        if len(found) != 1:
            raise ArtifactError(self._not_one(name, kinds, stem, found))
        return found[0]

    def _not_one(self, name: str, kinds: str, stem: str, found: list[Path]) -> str:
        if found:
            labels = ", ".join(f"{path.parent.name}/{path.name}" for path in found[:5])
            more = f" and {len(found) - 5:,} more" if len(found) > 5 else ""
            return f"{len(found):,} artifacts in {self.root} for {name!r}: {labels}{more}; give kind and more digits"
        is_short = re.fullmatch(r"[0-9a-f]{1,3}", stem) and re.fullmatch(r"[a-z-]+|\*", kinds)
        if is_short and self.directories(kinds.strip("*"), stem):  # nobody/1 is no short name, but a version's
            return (
                f"{name!r} is too short to name an artifact in {self.root}; give at least 4 digits of its fingerprint"
            )
        return (
            f"no artifact in {self.root} for {name!r}; give kind/fingerprint or a path (`gptflow store ls` lists them)"
        )

    def resolve(self, name: str, kind: str = "") -> Artifact:
        """The artifact that a person means: a path, `kind/name`, or the first characters of its fingerprint."""
        path = self.locate(name, kind)
        is_ours = path.parent.parent.resolve() == self.root.resolve()
        artifact = self.at(path.parent.name, path.name) if is_ours else load_artifact(path)
        if kind and artifact.kind != kind:
            raise ArtifactError(
                f"{name} is of kind {artifact.kind}, and {kind} is needed; `gptflow store ls` lists them"
            )
        return artifact

    def input_of(self, artifact: Artifact, kind: str) -> Artifact:
        """The input of this kind, found in the same store and checked against the recorded digest."""
        ref = next((ref for ref in artifact.request.inputs if ref.kind == kind), None)
        if ref is None:
            raise ArtifactError(f"{artifact.label} was made from no {kind}; name an artifact that was")
        found = self.at(ref.kind, ref.fingerprint[:NAME_CHARS])
        if found.digest != ref.digest:
            raise ArtifactError(
                f"{artifact.label} was made from {kind} {ref.digest[:16]}…, but {found.label} now holds "
                f"{found.digest[:16]}…; put the old files back, or run the step that makes {artifact.label} again"
            )
        return found


def store_root() -> Path:
    """What GPTFLOW_STORE names, or `./store`."""
    return Path(os.environ.get("GPTFLOW_STORE") or "store")


def open_store() -> Store:
    """The store at `store_root()`. StorageError if that is no folder, and none can be made there."""
    check_root(store_root())
    return Store(store_root())


def find_model(store: Store, name: str = "") -> Artifact:
    """The named checkpoint or weights of the store; without a name the checkpoint that was finished last.

    What is damaged is passed over then, and warned about; ArtifactError if nothing is left.
    """
    if name:
        found = store.resolve(name)
        if found.kind not in ("checkpoint", "weights"):
            raise ArtifactError(f"{found.label} is no model; give a checkpoint or weights")
        return found
    checkpoints, damaged = [], 0
    for path in store.directories("checkpoint"):
        try:
            checkpoints.append(store.at(path.parent.name, path.name))
        except ArtifactError as error:
            if has_manifest(path):  # or it was collected just now
                damaged += 1
                log.warning("%s; left out, and it may be newer", error)
    if not checkpoints:
        what = f"none of the {damaged:,} checkpoints in {store.root} can be read; see `gptflow verify --all`"
        nothing = f"no checkpoint in {store.root}; train one with `gptflow run`, or name a model"
        raise ArtifactError(what if damaged else nothing)
    return max(checkpoints, key=lambda a: str(a.provenance.get("finished", "")))


def _manifest_text(artifact: Artifact, building: Path) -> str:
    """The manifest, read back by the rules that readers hold it to; ArtifactError if they would refuse it."""
    text = Manifest(artifact.request, artifact.files, artifact.summary, artifact.provenance).text()
    try:
        check_length(len(text.encode()))
        parse(text.encode())
        for entry in artifact.files:
            if isinstance(wrong := regular_file(building, entry.name), str):
                raise ValueError(f"{entry.name} {wrong}")
    except ValueError as error:
        raise ArtifactError(f"{artifact.label} cannot be published, since no reader would take it: {error}") from None
    return text
