"""What a corpus or imported weights were made from, as far as it is still here: compared with what was read then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.config import SourceConfig
from gptmodel.errors import DataError, GptflowError, NetworkError
from gptmodel.reproduction.recorded import corpus_config, weights_source
from gptmodel.store.artifacts import Store
from gptmodel.store.hashing import Hashed, hash_files
from gptmodel.store.manifests import Ref, check_name, regular_file
from gptmodel.text.corpus import DOWNLOADS, KIND, SOURCES
from gptmodel.text.download import content_digest
from gptmodel.text.hub import commit_of
from gptmodel.text.sources import find_files, hub_digest
from gptmodel.upkeep.nodes import Node
from gptmodel.upkeep.verification import Difference, Job, Look, judge

_LONGEST_LIST = 512 << 20  # bytes of a list of files: millions of them
_NAMED = 3  # of the files that are gone


def check_origin(store: Store, node: Node, place: tuple[int, ...], look: Look) -> None:
    """Add what differs at once, jobs for what has to be hashed, and notes of what is not here to be looked at."""
    assert node.manifest is not None
    ref = next((ref for ref in node.manifest.request.inputs if ref.kind == "source"), None)
    if ref is None:
        return
    origin = _Origin(store, node, ref, place, look)
    try:
        if node.manifest.request.kind == KIND:
            origin.check_corpus()
        elif node.manifest.request.kind == "weights":
            origin.check_weights()
    except GptflowError as error:
        look.notes.append(f"{origin.name} cannot be looked at: {error}")
    except OSError as error:
        look.notes.append(f"{origin.name} cannot be looked at: {error.filename}: {error.strerror}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # settings of another version, or of a stranger
        look.notes.append(f"{origin.name} cannot be looked at: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Origin:
    """The source of one node, and where what is found about it goes."""

    store: Store
    node: Node
    ref: Ref
    place: tuple[int, ...]
    look: Look

    @property
    def name(self) -> str:
        return f"source of {self.node.label}"

    def note(self, text: str) -> None:
        self.look.notes.append(f"{self.name}: {text}")

    def compare(self, file: str, what: str, found: str) -> bool:
        """Whether a digest is the recorded one; a difference if not."""
        if found != self.ref.digest:
            self.look.add(self.place, Difference(self.name, file, what, self.ref.digest, found))
        return found == self.ref.digest

    def check_corpus(self) -> None:
        listed = _listing(self.node)
        if listed is not None and "dataset" in listed[0]:
            self._check_hub(str(listed[0]["dataset"]), str(listed[0]["commit"]))
            return
        if listed is not None:
            digest = content_digest([(item["name"], item["sha256"]) for item in listed])
            if not self.compare(SOURCES, "digest of the list", digest):
                return
            if self.node.artifact.request.config["source"]["kind"] == "http":
                self._check_downloads(listed)
                return
        config = corpus_config(self.store, self.node.artifact, None)
        if config is None:
            self.note("nothing in the store says where it is")
        elif listed is None:
            self._check_whole(config.source)
        else:
            here = dict(find_files(config.source, self.store.root / DOWNLOADS))
            self._queue([(i["name"], i["name"], i["bytes"], i["sha256"]) for i in listed], here)
            if more := len(here.keys() - {item["name"] for item in listed}):
                self.note(f"{more:,} files are there that were not when the corpus was made")

    def _check_hub(self, dataset: str, commit: str) -> None:
        if not self.compare("", "commit", hub_digest(dataset, commit)):
            return
        try:
            found = commit_of(dataset, commit)
        except NetworkError as error:
            self.note(f"not checked: {error}")
        except DataError as error:  # gone like a file that is not here
            self.note(f"the hub has {dataset} at {commit} no more, or not for us: {error}")
        else:
            if found != commit:
                self.look.add(self.place, Difference(self.name, "", "commit on the hub", commit, found))

    def _check_downloads(self, listed: list[dict[str, Any]]) -> None:
        folder = self.store.root / DOWNLOADS
        places = {i["sha256"]: folder / i["sha256"] / check_name(i["name"]) for i in listed}
        here = {digest: path for digest, path in places.items() if path.is_file()}
        self._queue([(i["sha256"], i["name"], i["bytes"], i["sha256"]) for i in listed], here)

    def _queue(self, wanted: Iterable[tuple[str, str, int, str]], here: dict[str, Path]) -> None:
        """Jobs for all (key, name, bytes, sha256) whose key is here, and a note of the others."""
        gone, count = [], 0
        for at, (key, file, n_bytes, sha256) in enumerate(wanted):
            count += 1
            file = _printable(file)
            if key in here:
                compare = judge(self.name, file, sha256)
                self.look.jobs.append(Job(here[key], n_bytes, (*self.place, at), compare, links=True))
            else:
                gone.append(file)
        self._tell_gone(gone, count)

    def _tell_gone(self, gone: list[str], count: int) -> None:
        if gone:
            more = f" and {len(gone) - _NAMED:,} more" if len(gone) > _NAMED else ""
            self.note(f"{len(gone):,} of {count:,} files are not here: {', '.join(gone[:_NAMED])}{more}")

    def _check_whole(self, source: SourceConfig) -> None:
        """A corpus of recipe version 1 has no list of files: only all of them together can be compared."""
        if source.kind == "huggingface" and source.revision:
            self._check_hub(source.dataset, source.revision)
            return
        here = dict(find_files(source, self.store.root / DOWNLOADS))
        names = self.node.artifact.request.config["source"]["paths"] or list(here)
        if gone := [name for name in names if name not in here]:
            self._tell_gone(gone, len(names))
            return
        hashes: dict[str, Hashed] = {}
        for at, name in enumerate(names):
            together = self._gather(name, len(names), hashes)
            self.look.jobs.append(Job(here[name], here[name].stat().st_size, (*self.place, at), together, links=True))

    def _gather(self, name: str, count: int, hashes: dict[str, Hashed]) -> Callable[[Hashed], Difference | None]:
        """Takes the hash of one of the files; the last one says whether all together are those of then."""

        def compare(found: Hashed) -> Difference | None:
            hashes[name] = found
            if found.failure:
                self.note(f"{name} {found.failure}")
            if len(hashes) < count or any(each.failure for each in hashes.values()):
                return None
            digest = content_digest([(name, each.sha256) for name, each in hashes.items()])
            what = "digest of all its files"
            return None if digest == self.ref.digest else Difference(self.name, "", what, self.ref.digest, digest)

        return compare

    def check_weights(self) -> None:
        artifact = self.node.artifact
        hashes = {check_name(file): str(digest) for file, digest in artifact.summary["files"].items()}
        self.compare("", "digest of its files", content_digest(list(hashes.items())))
        where, revision = weights_source(self.store, artifact.digest, artifact)
        folder = Path(where).expanduser()
        here: dict[str, Path] = {}
        if where and folder.is_dir():
            here = {file: folder / file for file in hashes if (folder / file).is_file()}
        elif where:
            here = _cached(where, revision, hashes)
        sizes = {file: path.stat().st_size for file, path in here.items()}
        self._queue([(file, file, sizes.get(file, 0), digest) for file, digest in hashes.items()], here)


def _listing(node: Node) -> list[dict[str, Any]] | None:
    """The lines of the corpus's own list of files; None if it has none (recipe version 1), or a damaged one."""
    assert node.manifest is not None
    entry = next((entry for entry in node.manifest.files if entry.name == SOURCES), None)
    if entry is None or entry.bytes > _LONGEST_LIST or isinstance(regular_file(node.path, SOURCES), str):
        return None
    if hash_files([(node.path / SOURCES, entry.bytes, False)])[0].sha256 != entry.sha256:
        return None  # that is told of the file itself
    lines = [json.loads(line) for line in (node.path / SOURCES).read_text(encoding="utf-8").split("\n") if line]
    for line in lines:
        if "dataset" not in line:
            check_name(line["sha256"])
    return lines or None


def _printable(name: str) -> str:
    """A person's own file may be called what no terminal shall obey."""
    return name if name.isprintable() else ascii(name)


def _cached(repo: str, revision: str, names: Iterable[str]) -> dict[str, Path]:
    """The files of a repo that the hub's client has here."""
    from huggingface_hub import try_to_load_from_cache

    found = {name: try_to_load_from_cache(repo, name, revision=revision or None) for name in names}
    return {name: Path(path) for name, path in found.items() if isinstance(path, str)}
