"""The drawn forms of a lineage: names that would be code stay words, and every box has its place."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gptmodel.lineage.graph import Graph, Node, Registered, in_order
from gptmodel.lineage.layout import lay_out, layers_of
from gptmodel.lineage.text import fitted, mermaid, narrow_text, plain, text
from gptmodel.pages.lineage import page

HOSTILE = [
    "<script>alert(1)</script>",
    '"]; click n0 "javascript:alert(1)"; n9["',
    "</title></style></svg><img src=x onerror=alert(1)>",
    "line\nbreak\r\n    n0 --> n1",
    "\x1b[2J\x1b]0;title\x07 \u202egnp.exe \ud800",
    "&lt;b&gt; #quot; `code` {{x}} $1 %% end",
    "x" * 100_000,
]


def graph(*names: str) -> Graph:
    """A source, shards of it, and a model; then one evaluation for each name."""
    digest = "ab" * 32
    nodes = [
        Node(id="source/1", kind="source", name=names[0], state="outside", digest=digest, figures={"urls": [names[0]]}),
        Node(id="shards/2", kind="shards", name=names[0], digest=digest, figures={"train_tokens": 63_031}),
        Node(id="checkpoint/3", kind="checkpoint", name="checkpoint/3", digest=digest, figures={"train_loss": 6.5}),
    ]
    edges = [("source/1", "shards/2"), ("shards/2", "checkpoint/3")]
    for number, name in enumerate(names):
        told = {"split": name, "loss": 1.0}
        bad = {"state": "damaged", "note": name} if number % 2 == 0 else {}
        nodes.append(Node(id=name, kind="evaluation", name=name, figures=told, finished=name, code=name, **bad))
        edges += [("checkpoint/3", name), ("shards/2", name)]
    found = Graph("checkpoint/3", "upstream", tuple(nodes), tuple(edges))
    model = replace(nodes[2], fingerprint="f")
    versions = [Registered(name, name, "f", aliases=(name,), created=name) for name in names]
    return replace(found, nodes=(*nodes[:2], model, *nodes[3:])).with_versions(versions)


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_of_hostile_names_has_the_tags_of_a_plain_one(name: str) -> None:
    plain_one, hostile = Reader(), Reader()
    plain_one.feed(page(graph("a name", "b name")))
    hostile.feed(page(graph(name, "b name")))
    assert hostile.tags == plain_one.tags
    assert hostile.attributes == plain_one.attributes
    assert "script" not in hostile.tags
    assert not {a for a in hostile.attributes if a.startswith("on")}
    assert any(plain(name)[:60] in words for words in hostile.words), "it is there, as words"
    page(graph(name)).encode()


def test_a_page_loads_nothing() -> None:
    told = page(graph("https://example.com/data.txt"))
    reader = Reader()
    reader.feed(told)
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "base"}
    assert not reader.attributes & {"src", "href", "srcdoc"}
    assert not re.search(r"url\((?!#)|@import", told)


def test_a_page_shows_figures_digests_and_troubles() -> None:
    told = page(graph("one", "two"))
    assert "63,031 train tokens" in told
    assert told.count("ab" * 32) >= 6, "whole digests, in the table and under the pointer"
    assert 'class="node focus"' in told
    assert 'class="node troubled"' in told
    assert "DAMAGED: one" in told
    assert page(graph("one", "two")) == told


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_mermaid_of_hostile_names_has_one_label_for_each_node(name: str) -> None:
    found = graph(name, "b name")
    lines = mermaid(found).splitlines()
    labels = [line for line in lines if re.fullmatch(r'    n\d+\["[^"\[\]]*"\]', line)]
    edges = [line for line in lines if re.fullmatch(r"    n\d+ --> n\d+", line)]
    rest = [line for line in lines if line not in labels and line not in edges]
    assert (len(labels), len(edges)) == (len(found.nodes), len(found.edges))
    assert all(re.match(r"flowchart LR$|    class(Def)? [\w,]+ ", line) for line in rest), rest
    for label in labels:
        said = label.split('["')[1].removesuffix('"]')
        assert not re.search(r"<(?!br/>)|[`{}$;](?<!\d;)|[\x00-\x1f\x7f]", said), said
        assert len(said) < 2_500


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_the_tree_of_hostile_names_commands_no_terminal(name: str) -> None:
    found = graph(name)
    told = text(found)
    told.encode()
    assert all(c.isprintable() or c == "\n" for c in told)
    lines = told.splitlines()
    assert len(lines) == len(found.nodes) + 1, "one for each, and one reference"
    assert max(map(len, lines)) < 1_000
    narrow = narrow_text(found, 60)
    assert all(c.isprintable() or c == "\n" for c in narrow)
    # What cannot be broken is a title and what is wrong, each cut on its own.
    assert re.sub(r"[ │]+", " ", narrow.replace("\n", " ")).count("loss 1.0000") == 1


def test_what_is_cut_keeps_its_width() -> None:
    assert fitted("漢字かな交じり文", 7) == "漢字か…"
    assert fitted("short", 7) == "short"
    assert plain("a\n\tb  c\x00") == "a b c\N{REPLACEMENT CHARACTER}"


def wide() -> Graph:
    """Two corpora, three models of which one starts from another, each judged on both shards."""
    kinds = {"s": "source", "c": "corpus", "t": "shards", "w": "weights", "m": "checkpoint", "e": "evaluation"}
    edges = [("s1", "c1"), ("s2", "c2"), ("c1", "t1"), ("c2", "t2"), ("s3", "w1"), ("w1", "m1"), ("t1", "m1")]
    edges += [("t1", "m2"), ("m1", "m3"), ("t2", "m3")]
    edges += [(made_from, f"e{m}{t}") for m in "123" for t in "12" for made_from in (f"m{m}", f"t{t}")]
    ids = sorted({i for edge in edges for i in edge}, key=lambda i: ("sctwme".index(i[0]), i))
    return Graph("m1", "upstream", tuple(Node(id=i, kind=kinds[i[0]], name=i) for i in ids), tuple(edges))


def test_what_was_used_comes_before_what_was_made_of_it() -> None:
    """Even of two of a kind, of which the names are in the other order."""
    nodes = {name: Node(id=name, kind="checkpoint", name=name) for name in "abc"}
    ordered, edges = in_order(nodes, [("b", "a"), ("c", "b")])
    assert [node.id for node in ordered] == ["c", "b", "a"]
    assert edges == (("c", "b"), ("b", "a"))


def test_every_arrow_goes_one_way_and_each_layer_has_one_kind() -> None:
    found = wide()
    at = layers_of(found)
    assert all(at[made_from] < at[made] for made_from, made in found.edges)
    for layer in range(max(at.values()) + 1):
        assert len({n.kind for n in found.nodes if at[n.id] == layer} - {"weights"}) == 1
    assert at["m3"] == at["m1"] + 1
    assert at["m2"] == at["m1"]


def test_no_box_lies_on_another_or_on_an_arrow() -> None:
    found, gap = wide(), 10.0
    sizes = {node.id: 50.0 + 7 * number for number, node in enumerate(found.nodes)}
    layout = lay_out(found, sizes, gap)
    assert {slot.node_id for layer in layout.layers for slot in layer} - {""} == set(sizes)
    for layer in layout.layers:
        for one, other in itertools.pairwise(layer):  # corners of arrows too
            assert other.centre - other.size / 2 >= one.centre + one.size / 2 + gap - 1e-6
    assert min(slot.centre - slot.size / 2 for layer in layout.layers for slot in layer) == pytest.approx(0)
    assert len(layout.routes) == len(found.edges)
    for route in layout.routes:
        assert [slot.layer for slot in route] == list(range(route[0].layer, route[-1].layer + 1))


def test_a_chain_is_drawn_straight() -> None:
    nodes = [Node(id=kind, kind=kind, name=kind) for kind in ("source", "corpus", "shards", "checkpoint")]
    edges = tuple(itertools.pairwise(node.id for node in nodes))
    layout = lay_out(Graph("corpus", "upstream", tuple(nodes), edges), {node.id: 50.0 for node in nodes}, 10.0)
    assert {slot.centre for layer in layout.layers for slot in layer} == {25.0}
