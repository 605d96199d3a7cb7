"""What is asked of a step, and the manifest that says what came out. Read as if a stranger had written it.

A store may come from anywhere, so `read_manifest` takes nothing on trust: the size of the file, every type, name and
number in it are checked before they are used, and whatever is wrong is one ArtifactError. What `Manifest.text` writes
is read back by the same rules before it is published.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.store.strict_json import (
    check_depth,
    fields_of,
    kind_of,
    matching_text,
    no_key_twice,
    number_of,
    of_type,
    one_line,
    refuse_constant,
    shortened,
)

MANIFEST = "manifest.json"
SCRATCH = ".work"  # of a directory being built: what a restart needs and readers never see
NAME_CHARS = 16
LONGEST_MANIFEST = 16 << 20
"""Bytes: about 100,000 files. A larger one is neither read nor written."""
_SEAL = "seal"
_FIELDS = {"kind", "recipe_version", "fingerprint", "digest", "config", "inputs", "files", "summary", "provenance"}
_KIND = re.compile(r"[a-z][a-z0-9-]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME, _LONGEST_PART = 1_024, 255  # bytes of a file's name, and of a part of it


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


@dataclass(frozen=True)
class Ref:
    """An input: which artifact, by what was asked (fingerprint) and by what it holds (digest)."""

    kind: str
    fingerprint: str
    digest: str

    @property
    def label(self) -> str:
        """Where a store keeps it, such as `shards/1f2e3d4c5b6a7980`."""
        return f"{self.kind}/{self.fingerprint[:NAME_CHARS]}"


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


def digest_of(files: Iterable[FileEntry]) -> str:
    """Content digest: hex sha256 over the sorted names and hashes of the files."""
    lines = sorted(f"{entry.sha256} {entry.name}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, checked for form. Whether it agrees with itself, `disagreements` tells."""

    request: Request
    files: tuple[FileEntry, ...]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    stated: tuple[str, str, str, str] = ("", "", "", "")
    """As read: fingerprint, digest, seal (empty in manifests of older versions), and sha256 of the text."""

    @property
    def digest(self) -> str:
        return digest_of(self.files)

    @property
    def sealed(self) -> bool:
        return bool(self.stated[2])

    def text(self) -> str:
        """As it is written: one form, so that no byte of it can differ unseen."""
        # Sealed as it will be read back: a tuple is a list then.
        raw = json.loads(json.dumps(self._raw()))
        return json.dumps({**raw, _SEAL: _seal(raw)}, indent=2, ensure_ascii=False) + "\n"

    def disagreements(self, *, to_the_byte: bool = False) -> list[tuple[str, str, str]]:
        """(what, as stated, as it follows from the rest) of each part that does not agree with the rest.

        `to_the_byte` compares the text too, which may differ in white space alone and say the same.
        """
        fingerprint, digest, seal, text = self.stated
        found = [
            ("fingerprint", fingerprint, self.request.fingerprint),
            ("digest", digest, self.digest),
        ]
        if seal:  # older manifests have none
            found.append(("seal", seal, _seal(self._raw())))
        wrong = [item for item in found if item[1] != item[2]]
        if seal and to_the_byte and not wrong:
            written = hashlib.sha256(self.text().encode()).hexdigest()
            return [("text", written, text)] if text != written else []
        return wrong

    def _raw(self) -> dict[str, Any]:
        return {
            "kind": self.request.kind,
            "recipe_version": self.request.recipe_version,
            "fingerprint": self.request.fingerprint,
            "digest": self.digest,
            "config": self.request.config,
            "inputs": [asdict(ref) for ref in self.request.inputs],
            "files": [asdict(entry) for entry in self.files],
            "summary": self.summary,
            "provenance": self.provenance,
        }


def read_manifest(directory: Path, *, whole: bool = True) -> Manifest:
    """The manifest of a directory. ArtifactError where there is none, it is malformed or, if `whole`, not in accord."""
    path = directory / MANIFEST
    remedy = f"remove {directory} and run the step again"
    try:
        found = parse(_bytes_of(path))
        wrong = found.disagreements() if whole else []
    except FileNotFoundError:
        raise ArtifactError(
            f"no artifact at {directory}: it has no {MANIFEST}; `gptflow store ls` lists what there is"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; give this user the right to read it") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({one_line(error)}); {remedy}") from None
    if wrong:
        raise ArtifactError(f"{path} does not agree with itself ({', '.join(w[0] for w in wrong)}); {remedy}")
    return found


def parse(text: bytes) -> Manifest:
    """A manifest from its bytes; ValueError or RecursionError for what is none."""
    raw = json.loads(text.decode(), object_pairs_hook=no_key_twice, parse_constant=refuse_constant)
    if not isinstance(raw, dict):
        raise ValueError(f"it is {kind_of(raw)}, not an object")
    if missing := _FIELDS - raw.keys():
        raise ValueError(f"it has no entry {min(missing)!r}")
    if unknown := raw.keys() - _FIELDS - {_SEAL}:
        raise ValueError(f"it has an entry {shortened(min(unknown))}")
    request = Request(
        matching_text(raw["kind"], _KIND, "kind"),
        number_of(raw["recipe_version"], "recipe_version"),
        of_type(raw["config"], dict, "config"),
        tuple(_ref(item) for item in of_type(raw["inputs"], list, "inputs")),
    )
    files = tuple(_entry(item) for item in of_type(raw["files"], list, "files"))
    if len({entry.name for entry in files}) != len(files):
        raise ValueError("it names a file twice")
    stated = (
        matching_text(raw["fingerprint"], _SHA256, "fingerprint"),
        matching_text(raw["digest"], _SHA256, "digest"),
        matching_text(raw[_SEAL], _SHA256, _SEAL) if _SEAL in raw else "",
        hashlib.sha256(text).hexdigest(),
    )
    summary, provenance = (of_type(raw[name], dict, name) for name in ("summary", "provenance"))
    check_depth(raw)
    json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()  # infinite numbers, halves of characters
    return Manifest(request, files, summary, provenance, stated)


def check_name(name: Any) -> str:
    """A file's name that stays below its directory, in the one spelling that it has; ValueError for any other."""
    text: str = of_type(name, str, "the name of a file")
    parts = text.split("/")
    if (
        not all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_PART for part in parts)
        or len(text.encode()) > _LONGEST_NAME
        or re.search(r"[\x00-\x1f\x7f\\]", text)
    ):
        raise ValueError(f"it names a file outside its directory, or none that can be: {shortened(name)}")
    if parts[0] == SCRATCH or parts[-1] == MANIFEST:
        raise ValueError(f"it names {shortened(name)}, which is no file of an artifact")
    return text


def regular_file(directory: Path, name: str) -> os.stat_result | str:
    """What a file below `directory` is, reached without following a link; or what is wrong with it, in words."""
    place = directory
    *folders, last = name.split("/")
    try:
        for folder in folders:
            place = place / folder
            if not stat.S_ISDIR(place.lstat().st_mode):
                return f"is reached through {folder}, which is no folder"
        found = (place / last).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISLNK(found.st_mode):
        return "is a link; an artifact holds its files itself"
    return found if stat.S_ISREG(found.st_mode) else "is no regular file"


def _bytes_of(path: Path) -> bytes:
    # Neither a link, which may lead out of the store, nor a pipe, which would never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        text = file.read(LONGEST_MANIFEST + 1)
    check_length(len(text))
    return text


def check_length(n_bytes: int) -> None:
    """ValueError for a manifest longer than LONGEST_MANIFEST."""
    if n_bytes > LONGEST_MANIFEST:
        raise ValueError(f"it is longer than {LONGEST_MANIFEST:,} bytes, the most that a manifest may have")


def _ref(raw: Any) -> Ref:
    fields = fields_of(raw, {"kind", "fingerprint", "digest"}, "an input")
    return Ref(
        matching_text(fields["kind"], _KIND, "the kind of an input"),
        matching_text(fields["fingerprint"], _SHA256, "the fingerprint of an input"),
        matching_text(fields["digest"], _SHA256, "the digest of an input"),
    )


def _entry(raw: Any) -> FileEntry:
    fields = fields_of(raw, {"name", "bytes", "sha256"}, "a file")
    return FileEntry(
        check_name(fields["name"]),
        number_of(fields["bytes"], "the bytes of a file"),
        matching_text(fields["sha256"], _SHA256, "the sha256 of a file"),
    )


def _seal(raw: dict[str, Any]) -> str:
    """Hex sha256 of a manifest without its seal: figures and provenance are in no other hash."""
    rest = {name: value for name, value in raw.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
