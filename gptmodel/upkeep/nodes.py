"""What a check looks at: each artifact's manifest as it lies there, and which belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptmodel.errors import ArtifactError
from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS, MODELS
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.directories import has_manifest, is_link
from gptmodel.store.manifests import MANIFEST, NAME_CHARS, Manifest, read_manifest


@dataclass(frozen=True)
class Node:
    """An artifact's directory, and its manifest as far as it can be read."""

    path: Path
    manifest: Manifest | None
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def artifact(self) -> Artifact:
        assert self.manifest is not None
        m = self.manifest
        return Artifact(self.path, m.request, m.files, m.summary, m.provenance)


def read_node(path: Path) -> Node:
    """The node in a directory; a manifest that disagrees with itself is read as far as it has a form."""
    try:
        if is_link(path) or is_link(path.parent):
            return Node(path, None, "is a link")
        return Node(path, read_manifest(path, whole=False))
    except ArtifactError as error:
        return Node(path, None, str(error).partition("; ")[0] if has_manifest(path) else "is missing")


def nodes_of(store: Store, targets: Iterable[Path]) -> list[Node]:
    """The targets and all that they were made from, each once, origins first."""
    found: dict[Path, Node] = {}
    done: dict[Path, Node] = {}
    open_ = [(path, False) for path in reversed(list(targets))]
    while open_:
        path, is_done = open_.pop()
        if is_done:
            done[path] = found[path]
        elif path not in found:
            node = found[path] = read_node(path)
            open_.append((path, True))
            refs = node.manifest.request.inputs if node.manifest else ()
            open_ += [(store.root / ref.label, False) for ref in reversed(refs) if ref.kind != "source"]
    return list(done.values())


def with_evaluations(store: Store, target: Path) -> list[Path]:
    """A model's directory with those of its evaluations and ratings, and of the comparisons in which it is the
    challenger; of anything else only itself."""
    node, found = read_node(target), [target]
    if node.manifest is None or node.manifest.request.kind not in MODELS:
        return found
    wanted = {node.manifest.request.fingerprint, node.manifest.digest}
    for kind in (*JUDGEMENTS, COMPARISON):
        for path in store.directories(kind):
            other = read_node(path)
            refs = other.manifest.request.inputs if other.manifest else ()
            if kind == COMPARISON:
                refs = refs[1:]
            if other.manifest is None or any({r.fingerprint, r.digest} & wanted for r in refs):
                found.append(path)  # one that cannot be read may be of this model
                wanted |= {other.manifest.request.fingerprint, other.manifest.digest} if other.manifest else set()
    return found


def newest_checkpoint(store: Store, notes: list[str]) -> Path:
    """The directory of the checkpoint that was finished last, of those whose manifest can be read; `notes` tells of
    the others. ArtifactError if there is none."""
    nodes = [read_node(path) for path in store.directories("checkpoint")]
    readable = [node for node in nodes if node.manifest is not None]
    if not readable:
        what = f"none of the {len(nodes):,} checkpoints in {store.root} can be read; see `gptflow verify --all`"
        nothing = f"no checkpoint in {store.root}; train one with `gptflow run`, or name an artifact"
        raise ArtifactError(what if nodes else nothing)
    notes += [f"{n.label}: left out, since its manifest {n.problem}; it may be newer" for n in nodes if not n.manifest]
    return max(readable, key=lambda node: str(node.artifact.provenance.get("finished", ""))).path


def without_manifest(store: Store) -> Iterator[str]:
    """A note of each directory that bears an artifact's name and is none: no reader sees it."""
    for path in store.entries():
        if re.fullmatch(rf"[0-9a-f]{{{NAME_CHARS}}}", path.name) and not has_manifest(path) and path.is_dir():
            yield f"{path.parent.name}/{path.name}: has no {MANIFEST}; no reader sees it, and it was not looked at"


def store_around(store: Store, path: Path) -> Store:
    """The store in which an artifact's inputs are to be looked for: the one that it lies in.

    That is `store` for a copy that lies by itself, away from any store.
    """
    is_ours = path.parent.parent.resolve() == store.root.resolve()
    in_another = not is_ours and re.fullmatch(rf"[0-9a-f]{{{NAME_CHARS}}}", path.name)
    return Store(path.parent.parent) if in_another else store


def in_store(store: Store, path: Path) -> Path:
    """The path as the store spells it, if it lies there."""
    is_ours = path.parent.parent.resolve() == store.root.resolve()
    return store.root / path.parent.name / path.name if is_ours else path
