"""What lies in a store, for people: each artifact with what it is, and where the bytes are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptmodel.lineage.graph import COMPARISON, LAW, MODELS, node_figures
from gptmodel.pretraining.step import RUNS
from gptmodel.store.artifacts import Store
from gptmodel.store.manifests import SCRATCH
from gptmodel.store.provenance import FOLDER as PROVENANCE
from gptmodel.text.corpus import DOWNLOADS
from gptmodel.upkeep.collection import ASIDE, TRASH, reproductions
from gptmodel.upkeep.nodes import Node, nodes_of
from gptmodel.upkeep.pins import BUILDING, pins
from gptmodel.upkeep.records import EVENTS
from gptmodel.upkeep.sizes import mtime, tree_bytes


@dataclass(frozen=True)
class Holding:
    """An artifact in the store."""

    label: str
    bytes: int
    used: float
    """Seconds since 1970 when it was made or last reused."""
    finished: str
    about: str
    kept_by: str
    """pinned, registered as …, or nothing."""


def holdings(store: Store, wanted: Mapping[str, str]) -> Iterator[Holding]:
    """All artifacts by kind and name, damaged ones too. `wanted` as in `gptmodel.upkeep.collection.plan`."""
    pinned = pins(store)
    for node in sorted(nodes_of(store, store.directories()), key=lambda n: n.label):
        if node.problem == "is missing":
            continue
        why = [] if node.label not in pinned else [f"pinned {pinned[node.label].get('note', '')}".strip()]
        if wanted.get(node.path.name, "").startswith("registered"):
            why.append(wanted[node.path.name])
        finished = str(node.manifest.provenance.get("finished", "")) if node.manifest else ""
        if not (used := mtime(node.path, gone=0.0)):
            continue  # collected meanwhile
        yield Holding(node.label, tree_bytes(node.path), used, finished, about(node), ", ".join(why))


def about(node: Node) -> str:
    """In a few words, from the figures that its step left."""
    if node.manifest is None:
        return node.problem
    kind, told, config = node.manifest.request.kind, node.manifest.summary, node.manifest.request.config
    if kind == "corpus":
        return f"{_count(told, 'documents')} documents of {_source(told.get('origin'), config.get('source'))}"
    if kind == "shards":
        return f"{_count(told, 'train_tokens')} train and {_count(told, 'validation_tokens')} validation tokens"
    if kind == "checkpoint":
        return f"step {_count(told, 'step')}, validation loss {_figure(told, 'best_validation_loss')}"
    if kind == "weights":
        return f"{_count(told, 'n_params')} parameters of {told.get('source', '?')!s:.60}"
    if kind == "evaluation":
        model = next((ref.label for ref in node.manifest.request.inputs if ref.kind in MODELS), "?")
        return f"{model} on {told.get('split', '?')!s:.20}: loss {_figure(told, 'loss')}"
    if kind == "benchmark":
        model = next((ref.label for ref in node.manifest.request.inputs if ref.kind in MODELS), "?")
        return f"{model} on {', '.join(map(str, told.get('tasks') or '?')):.60}"
    if kind == COMPARISON:
        models = f"{told.get('challenger', '?')!s:.30} against {told.get('champion', '?')!s:.30}"
        return f"{models}: loss {_figure(node_figures(kind, told), 'loss_difference')}"
    if kind == LAW:
        return f"fitted to {len(told.get('points') or ())} runs"
    if kind == "rating-round":
        return f"{_count(told, 'texts')} texts for raters"
    if kind == "ratings":
        return f"{_count(told, 'ratings')} ratings by {_count(told, 'raters')} raters"
    return ""


def _source(origin: Any, source: Any) -> str:
    origin = origin if isinstance(origin, dict) else {}
    for name in ("dataset", "package"):
        if origin.get(name):
            return f"{origin[name]!s:.60}"
    places = origin.get("urls") or origin.get("paths") or [source.get("kind", "?") if isinstance(source, dict) else "?"]
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{places[0]!s:.60}{more}"


def _count(told: dict[str, Any], name: str) -> str:
    value = told.get(name)
    return f"{value:,}" if isinstance(value, int) else "?"


def _figure(told: dict[str, Any], name: str) -> str:
    value = told.get(name)
    return f"{value:.4f}" if isinstance(value, int | float) else "?"


@dataclass(frozen=True)
class Share:
    """Where some of a store's bytes are."""

    what: str
    count: int
    bytes: int
    shared_bytes: int = 0
    """Of artifacts that two or more models were made from."""


def usage(store: Store) -> list[Share]:
    """Bytes by kind of artifact, then of what is half built, thrown away, fetched, logged and so on, and the rest."""
    nodes = [n for n in nodes_of(store, store.directories()) if n.problem != "is missing"]
    users = _models_made_from(nodes)
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.path.parent.name, []).append(node)
    found = []
    for kind, members in sorted(kinds.items()):
        sizes = {node.label: tree_bytes(node.path) for node in members}
        shared = sum(size for label, size in sizes.items() if users[label] > 1)
        found.append(Share(kind, len(members), sum(sizes.values()), shared))
    scratch = list(store.root.glob(f"[!.]*/{BUILDING}*"))
    scratch += [p for node in nodes if (p := node.path / SCRATCH).exists()]
    trash = [*store.root.glob(f"{TRASH}*"), *store.root.glob(f"*/{TRASH}*"), *store.root.glob(f"*/{ASIDE}*")]
    places = [("scratch", scratch), ("thrown away", trash)]
    places += [(name, list((store.root / d).glob("[!.]*"))) for name, d in (("downloads", DOWNLOADS), ("logs", RUNS))]
    places += [("records", [p for d in (PROVENANCE, EVENTS) for p in (store.root / d).glob("*")])]
    places += [("reproductions", [item.path for item in reproductions(store)])]
    found += [Share(what, len(paths), sum(map(tree_bytes, paths))) for what, paths in places]
    within = sum(tree_bytes(node.path / SCRATCH) for node in nodes)  # counted with its artifact as well
    rest = tree_bytes(store.root) - sum(share.bytes for share in found) + within
    return [*found, Share("other", 0, rest)]


def _models_made_from(nodes: list[Node]) -> Counter[str]:
    """How many models each artifact was used for, directly or not. From manifests that are read already."""
    refs = {node.label: node.manifest.request.inputs if node.manifest else () for node in nodes}
    found: Counter[str] = Counter()
    for model in (label for label in refs if label.split("/")[0] in MODELS):
        upstream: set[str] = set()
        open_ = [model]
        while open_:
            inputs = {ref.label for ref in refs.get(open_.pop(), ()) if ref.kind != "source"} - upstream
            upstream |= inputs
            open_ += inputs
        found.update(upstream - {model})
    return found
