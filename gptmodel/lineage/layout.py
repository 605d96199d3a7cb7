"""Where each node of a lineage is drawn: in layers by kind, so that every arrow goes one way, with few crossings.

The way of Sugiyama, Tagawa and Toda (1981): layers, corners where an edge passes a layer, an order within each layer by
the mean place of the neighbours, and places as near to them as the boxes' sizes allow.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from gptmodel.lineage.graph import ORDER, Graph

_SWEEPS = 8
_CORNER = 10.0  # room for an edge that passes a layer


@dataclass
class Slot:
    """A node's place in its layer, or a corner of an edge (no node). Lengths in pixels."""

    layer: int
    size: float
    node_id: str = ""
    centre: float = 0.0
    before: list[Slot] = field(default_factory=list)
    after: list[Slot] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """Layers in order, each with its slots in order, and the slots that each edge passes from end to end."""

    layers: list[list[Slot]]
    routes: list[list[Slot]]

    @property
    def breadth(self) -> float:
        """Extent across the layers; the first slot begins at 0."""
        return max((slot.centre + slot.size / 2 for layer in self.layers for slot in layer), default=0.0)


def layers_of(graph: Graph) -> dict[str, int]:
    """The layer of each node: kinds in the order in which they are made, and one more for each that its like made."""
    rank = {kind: number for number, kind in enumerate(ORDER)} | {"weights": ORDER.index("shards")}
    rank |= dict.fromkeys(("benchmark", "rating-round", "version"), rank["evaluation"])
    rank["scaling-law"] = rank["ratings"]
    rank["comparison"], rank["data-check"] = rank["ratings"], rank["shards"]
    kinds = {node.id: node.kind for node in graph.nodes}
    inputs = defaultdict(list)
    for made_from, made in graph.edges:
        inputs[made].append(made_from)
    places: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:  # origins first
        own = rank.get(node.kind, len(ORDER))
        above = [places[i] for i in inputs[node.id] if i in places]
        same = [depth + 1 for place, depth in above if place == own]
        late = [place + 1 for place, _ in above if place > own]  # of no honest manifest
        places[node.id] = (max([own, *late]), max(same, default=0))
    used = sorted(set(places.values()))
    return {node_id: used.index(place) for node_id, place in places.items() if node_id in kinds}


def lay_out(graph: Graph, sizes: dict[str, float], gap: float) -> Layout:
    """Place the nodes, each so wide (across the layers) as `sizes` says, at least `gap` apart."""
    at = layers_of(graph)
    layers: list[list[Slot]] = [[] for _ in range(max(at.values()) + 1)]
    slots = {}
    for node in graph.nodes:
        slots[node.id] = Slot(at[node.id], sizes[node.id], node.id)
        layers[at[node.id]].append(slots[node.id])
    routes = [_route(slots[made_from], slots[made], layers) for made_from, made in graph.edges]
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            _order(layer, layers, forward=sweep % 2 == 0)
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            _place(layer, gap, both=sweep > 0)
    first = min(slot.centre - slot.size / 2 for layer in layers for slot in layer)
    for slot in (slot for layer in layers for slot in layer):
        slot.centre -= first
    return Layout(layers, routes)


def _route(start: Slot, end: Slot, layers: list[list[Slot]]) -> list[Slot]:
    corners = [Slot(number, _CORNER) for number in range(start.layer + 1, end.layer)]
    for corner in corners:
        layers[corner.layer].append(corner)
    route = [start, *corners, end]
    for one, other in pairwise(route):
        one.after.append(other)
        other.before.append(one)
    return route


def _order(layer: list[Slot], layers: list[list[Slot]], *, forward: bool) -> None:
    place = {id(slot): number / max(1, len(each) - 1) for each in layers for number, slot in enumerate(each)}

    def mean(slot: Slot) -> float:
        neighbours = slot.before if forward else slot.after
        return sum(place[id(n)] for n in neighbours) / len(neighbours) if neighbours else place[id(slot)]

    layer.sort(key=mean)


def _place(layer: list[Slot], gap: float, *, both: bool) -> None:
    """Centres as near as they can be to the mean of the neighbours', least squares, in order and without overlap.

    Slots that would overlap are pooled into blocks, which take the mean of what their members wish.
    """
    offset, blocks = 0.0, list[tuple[float, list[tuple[Slot, float]]]]()
    for number, slot in enumerate(layer):
        if number:
            offset += layer[number - 1].size / 2 + gap + slot.size / 2
        neighbours = [*slot.before, *(slot.after if both else ())]
        wish = sum(n.centre for n in neighbours) / len(neighbours) if neighbours else slot.centre
        mean, members = wish - offset, [(slot, offset)]
        while blocks and blocks[-1][0] > mean:
            earlier, others = blocks.pop()
            mean = (earlier * len(others) + mean * len(members)) / (len(others) + len(members))
            members = others + members
        blocks.append((mean, members))
    for mean, members in blocks:
        for slot, within in members:
            slot.centre = mean + within
