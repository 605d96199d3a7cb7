"""A published artifact, and reading its files, which checks them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError
from gptmodel.store.files import sha256_file
from gptmodel.store.manifests import (
    FileEntry,
    Ref,
    Request,
    digest_of,
    read_manifest,
    regular_file,
)


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
        return digest_of(self.files)

    @property
    def ref(self) -> Ref:
        return Ref(self.kind, self.fingerprint, self.digest)

    @property
    def label(self) -> str:
        """Short name for people, such as `shards/1f2e3d4c5b6a7980`."""
        return f"{self.kind}/{self.path.name}"

    def mark_used(self) -> None:
        """Note that it is in use now: what is, is not swept away as old."""
        with suppress(OSError):  # a store that is read-only
            os.utime(self.path)

    def file(self, name: str) -> Path:
        """Path of a file after checking its size, and, the first time in this process, its sha256.

        Raises ArtifactError naming the artifact and the file.
        """
        entry = self._by_name.get(name)
        if entry is None:
            raise ArtifactError(f"{self.label} has no file {name}; it has {', '.join(f.name for f in self.files)}")
        path = self.path / name
        _check_size(self.label, self.path, entry)
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

    @cached_property
    def _by_name(self) -> dict[str, FileEntry]:
        return {entry.name: entry for entry in self.files}

    def verify(self) -> Artifact:
        """Check every file as `file` does; for an artifact that no later step reads."""
        for entry in self.files:
            self.file(entry.name)
        return self

    def names(self, suffix: str = "", prefix: str = "") -> list[str]:
        """Sorted names of the files that begin and end so."""
        return sorted(e.name for e in self.files if e.name.endswith(suffix) and e.name.startswith(prefix))


_hashed: set[tuple[str, str, int]] = set()  # files whose hash this process has seen to be right


def _check_size(label: str, directory: Path, entry: FileEntry) -> None:
    remedy = f"remove {directory} and run the step again"
    found = regular_file(directory, entry.name)
    if isinstance(found, str):
        if not os.path.lexists(directory):
            raise ArtifactError(f"{label} is gone from {directory}; run the step that makes it again")
        raise ArtifactError(f"{label}: {entry.name} {found}; {remedy}")
    if found.st_size != entry.bytes:
        raise ArtifactError(
            f"{label}: {entry.name} is damaged: {found.st_size:,} bytes, expected {entry.bytes:,}; {remedy}"
        )


def _read_whole(label: str, path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ArtifactError(
            f"{label}: {path} cannot be read: {error.strerror}; give this user the right to read it"
        ) from None


def load_artifact(path: Path) -> Artifact:
    """The artifact in a directory, with file sizes checked. ArtifactError where there is none, or it is damaged."""
    found = read_manifest(path)
    artifact = Artifact(path, found.request, found.files, found.summary, found.provenance)
    for entry in artifact.files:
        _check_size(f"{artifact.kind}/{path.name}", path, entry)
    return artifact
