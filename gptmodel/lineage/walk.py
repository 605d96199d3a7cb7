"""The graph of artifacts: what each was made from, and what was made from it.

Nothing is kept for it: the content digests that each manifest records of its inputs are the edges. What the store has
lost, or holds otherwise than it was used, stays in the graph and says so.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gptmodel.errors import ArtifactError
from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS, MODELS, Graph, Node, in_order, node_figures, source_node
from gptmodel.store.artifacts import MANIFEST, Artifact, Ref, Store
from gptmodel.store.manifests import NAME_CHARS, read_manifest

log = logging.getLogger(__name__)


def artifact_of(store: Store, ref: Ref) -> Artifact:
    """The artifact that an input names, as the store has it now. ArtifactError if it is not there, or damaged."""
    return store.at(ref.kind, ref.fingerprint[:NAME_CHARS])


def challenges(artifact: Artifact, evaluation: Ref) -> bool:
    """Whether it is a comparison in which this is the challenger's evaluation."""
    inputs = artifact.request.inputs
    return artifact.kind == COMPARISON and len(inputs) == 2 and inputs[1].digest == evaluation.digest


def judged_model(store: Store, artifact: Artifact) -> Artifact:
    """The model that a judgement is of: of ratings the first, of a comparison the challenger; else what is given.

    ArtifactError if the store no longer has it.
    """
    if artifact.kind == COMPARISON:
        artifact = artifact_of(store, artifact.request.inputs[-1])
    return artifact_of(store, artifact.request.inputs[0]) if artifact.kind in JUDGEMENTS else artifact


def chain_of(store: Store, artifact: Artifact) -> list[Artifact]:
    """All that an artifact was made from, as far as the store still has it, origins first, each once."""
    found: dict[str, Artifact] = {}
    entered: set[str] = set()
    open_: list[tuple[Artifact, bool]] = [(artifact, False)]
    while open_:
        current, done = open_.pop()
        if done:
            found[current.fingerprint] = current
        elif current.fingerprint not in entered:
            entered.add(current.fingerprint)
            open_.append((current, True))
            open_ += [(made_from, False) for made_from in reversed(list(_inputs_there(store, current)))]
    del found[artifact.fingerprint]
    return list(found.values())


def _inputs_there(store: Store, artifact: Artifact) -> Iterator[Artifact]:
    for ref in artifact.request.inputs:
        if ref.kind == "source":
            continue  # from outside
        try:
            yield artifact_of(store, ref)
        except ArtifactError as error:
            log.warning("%s: its lineage goes on without it: %s", artifact.label, error)


class Lineage:
    """All manifests of a store, read once; damaged ones too, as far as they agree with themselves."""

    def __init__(self, store: Store) -> None:
        self._root = store.root
        self._at: dict[tuple[str, str], Artifact] = {}  # by kind and name in the store
        self._damage: dict[tuple[str, str], str] = {}
        self._holding: dict[tuple[str, str], list[Artifact]] = defaultdict(list)  # by kind and content digest
        self._made_from: dict[tuple[str, str], list[Artifact]] = defaultdict(list)  # by the input's kind and digest
        for path in store.directories():
            self._read(store, path)

    def _read(self, store: Store, path: Path) -> None:
        place = (path.parent.name, path.name)
        try:
            artifact = store.at(*place)
            self._holding[place[0], artifact.digest].append(artifact)
        except ArtifactError as error:
            said = str(error).removeprefix(f"{'/'.join(place)}: ").split("; ")[0]
            self._damage[place] = said.replace(str(path / MANIFEST), "its manifest").replace(str(path), "its place")
            try:  # its manifest may be whole where its files are not
                found = read_manifest(path)
            except ArtifactError:
                return
            if (found.request.kind, found.request.fingerprint[:NAME_CHARS]) != place:
                return
            artifact = Artifact(path, found.request, found.files, found.summary, found.provenance)
        self._at[place] = artifact
        for ref in artifact.request.inputs:
            self._made_from[ref.kind, ref.digest].append(artifact)

    def find(self, name: str) -> Ref:
        """What bears this digest or fingerprint, or the first eight or more characters: a source, or what is gone, too.

        ArtifactError if nothing does, or several things.
        """
        said = re.fullmatch(r"(?:([a-z][a-z0-9-]*)/)?([0-9a-f]{8,64})", name)
        found: dict[tuple[str, str], Ref] = {}
        if said is not None:
            for artifact in self._at.values():
                for ref in (artifact.ref, *artifact.request.inputs):
                    is_named = ref.digest.startswith(said[2]) or ref.fingerprint.startswith(said[2])
                    if is_named and said[1] in (None, ref.kind):
                        found.setdefault((ref.kind, ref.digest), ref)
        if len(found) != 1:
            what = "no artifact or source" if not found else f"{len(found)} things"
            raise ArtifactError(f"{what} in the store for {name!r}; give more of the name, or kind/fingerprint")
        return next(iter(found.values()))

    def newest(self, kind: str) -> Ref:
        """What was finished last of a kind; ArtifactError if there is none."""
        found = [artifact for (its_kind, _), artifact in self._at.items() if its_kind == kind]
        if not found:
            raise ArtifactError(f"no {kind} in {self._root}; make one with `gptflow run`, or name what you mean")
        return max(found, key=lambda a: str(a.provenance.get("finished", ""))).ref

    def around(self, ref: Ref) -> Graph:
        """All that it was made from; for a model its judgements too, and what those were made from.

        Judgements are its evaluations, benchmarks and ratings, and the comparisons in which it is the challenger.
        """
        focus, made = self._focus(ref)
        hanging = [a for a in self._products(ref) if a.kind in JUDGEMENTS] if focus.kind in MODELS else []
        hanging += [a for judged in hanging for a in self._products(judged.ref) if challenges(a, judged.ref)]
        nodes, edges = {focus.id: focus}, dict[tuple[str, str], None]()
        for artifact in hanging:
            nodes[artifact.label] = self._node(artifact)
        open_ = [(focus.id, made), *((artifact.label, artifact) for artifact in hanging)]
        while open_:
            node_id, current = open_.pop()
            for needed in current.request.inputs if current is not None else ():
                node, found = self._resolve(needed, current)
                edges[node.id, node_id] = None
                if node.id not in nodes:  # a hostile manifest may lead in a circle
                    nodes[node.id] = node
                    open_.append((node.id, found))
        return Graph(focus.id, "upstream", *in_order(nodes, edges))

    def downstream(self, ref: Ref) -> Graph:
        """All that was made from these bytes, directly or not."""
        focus, _ = self._focus(ref)
        nodes, edges = {focus.id: focus}, dict[tuple[str, str], None]()
        open_ = [(focus.id, ref)]
        while open_:
            node_id, current = open_.pop()
            for artifact in self._products(current):
                edges[node_id, artifact.label] = None
                if artifact.label not in nodes:
                    nodes[artifact.label] = self._node(artifact)
                    open_.append((artifact.label, artifact.ref))
        used = defaultdict(set)
        for made_from, made in edges:
            used[made].add((nodes[made_from].kind, nodes[made_from].digest))
        for node_id in list(nodes)[1:]:
            needed = [
                ref for ref in self._at[_place(node_id)].request.inputs if (ref.kind, ref.digest) not in used[node_id]
            ]
            nodes[node_id] = replace(nodes[node_id], left_out=tuple(self._resolve(ref, None)[0].id for ref in needed))
        return Graph(focus.id, "downstream", *in_order(nodes, edges))

    def _focus(self, ref: Ref) -> tuple[Node, Artifact | None]:
        return self._resolve(ref, next(iter(self._products(ref)), None))

    def _products(self, ref: Ref) -> list[Artifact]:
        return self._made_from.get((ref.kind, ref.digest), [])

    def _resolve(self, ref: Ref, maker: Artifact | None) -> tuple[Node, Artifact | None]:
        """The node of an input, and the artifact whose inputs are its own. `maker` is what was made from it."""
        if ref.kind == "source":
            return source_node(ref, maker), None
        place = _place(ref.label)
        there = self._at.get(place)
        if there is not None and there.digest == ref.digest:
            return self._node(there), there
        if same := self._holding.get((ref.kind, ref.digest)):
            return self._node(same[0]), same[0]
        state, note = "missing", "it is not in the store any more"
        if there is not None:
            state, note = "differs", f"the store now holds {there.digest[:NAME_CHARS]} in its place"
        elif place in self._damage:
            state, note = "damaged", self._damage[place]
        node = Node(
            id=f"{ref.label}@{ref.digest[:NAME_CHARS]}",
            kind=ref.kind,
            name=ref.label,
            state=state,
            note=note,
            fingerprint=ref.fingerprint,
            digest=ref.digest,
        )
        return node, there  # what bears the same fingerprint was made from the same inputs

    def _node(self, artifact: Artifact) -> Node:
        note = self._damage.get((artifact.kind, artifact.path.name), "")
        made = artifact.provenance
        return Node(
            id=artifact.label,
            kind=artifact.kind,
            name=artifact.label,
            state="damaged" if note else "there",
            note=note,
            fingerprint=artifact.fingerprint,
            digest=artifact.digest,
            figures=node_figures(artifact.kind, artifact.summary),
            finished=str(made.get("finished", "")),
            code=str(made.get("git_commit", "")) + ("+" if made.get("git_dirty") else ""),
        )


def _place(node_id: str) -> tuple[str, str]:
    kind, _, name = node_id.partition("/")
    return kind, name
