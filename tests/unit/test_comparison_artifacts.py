"""A comparison hangs on its challenger in lineage, verification, collection, listing and card; it keeps no champion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gptmodel.lineage.graph import node_figures
from gptmodel.lineage.layout import layers_of
from gptmodel.lineage.text import mermaid, phrases, text
from gptmodel.lineage.walk import Lineage, judged_model
from gptmodel.pages.card_facts import facts_of
from gptmodel.pages.card_sections import evaluation as evaluation_section
from gptmodel.pages.card_sections import lineage as lineage_section
from gptmodel.pages.lineage import page
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from gptmodel.upkeep.collection import Rules, plan
from gptmodel.upkeep.holdings import holdings
from gptmodel.upkeep.nodes import with_evaluations
from gptmodel.upkeep.verification import verify

LOSS = {"name": "loss", "champion": 4.5, "challenger": 4.25, "difference": -0.25}
LOSS |= {"low": -0.375, "high": -0.125, "p_better": 0.996}
OTHER = {**LOSS, "name": "perplexity", "difference": -20.0}
NOTHING = Rules(keep_days=0, keep_newest=0)


class Made:
    """Two models of the same shards, each with an evaluation, and the comparison of the new with the old."""

    def __init__(self, store: Store) -> None:
        self.store = store
        shards = self.make("shards", "s")
        self.old, self.new = (self.make("weights", name, shards.ref, n_params=7) for name in ("old", "new"))
        figures = {"split": "validation", "loss": 4.25, "tokens": 9}
        self.was, self.now = (
            self.make("evaluation", f"of {model.summary['name']}", model.ref, shards.ref, **figures)
            for model in (self.old, self.new)
        )
        told = {"champion": self.old.label, "challenger": self.new.label, "differences": [OTHER, LOSS]}
        refs = (self.was.ref, self.now.ref)
        self.comparison = self.make("comparison", "both", *refs, split="validation", **told)

    def make(self, kind: str, name: str, *inputs: Ref, **summary: Any) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            (directory / "data").write_text(name)
            return {"name": name, **summary}

        return self.store.produce(Request(kind, 1, {"name": name}, inputs), build)[0]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(Store(tmp_path / "store"))


def ids(store: Store, artifact: Artifact) -> set[str]:
    return {node.id for node in Lineage(store).around(artifact.ref).nodes}


def test_lineage_shows_it_with_the_challenger_and_what_that_was_measured_against(made: Made) -> None:
    graph = Lineage(made.store).around(made.new.ref)
    assert {made.comparison.label, made.now.label, made.was.label, made.old.label} <= {node.id for node in graph.nodes}
    assert {edge for edge in graph.edges if edge[1] == made.comparison.label} == {
        (made.was.label, made.comparison.label),
        (made.now.label, made.comparison.label),
    }
    assert made.comparison.label not in ids(made.store, made.old), "it judges the challenger"
    assert made.comparison.label in {node.id for node in Lineage(made.store).downstream(made.old.ref).nodes}
    assert judged_model(made.store, made.comparison).label == made.new.label
    assert judged_model(made.store, made.was).label == made.old.label
    layers = layers_of(graph)
    assert layers[made.comparison.label] > layers[made.now.label]


def test_text_and_page_say_by_how_much_the_losses_differ(made: Made) -> None:
    graph = Lineage(made.store).around(made.new.ref)
    (node,) = [node for node in graph.nodes if node.kind == "comparison"]
    assert phrases(node) == ["loss difference -0.2500", "P(better) 0.9960", "validation split"]
    assert "loss difference -0.2500, P(better) 0.9960" in text(graph)
    assert "P(better)" in mermaid(graph).replace("#40;", "(").replace("#41;", ")")
    drawn = page(graph)
    colours = dict(re.findall(r'background:(#\w+)"></span>(?:<b>)?(\w+)/', drawn))
    by_kind = {kind: colour for colour, kind in colours.items()}
    assert by_kind.keys() == {"shards", "weights", "evaluation", "comparison"}, "each kind has a colour of its own"
    assert f'fill="{by_kind["comparison"]}"' in drawn


@pytest.mark.parametrize("told", [None, [], {}, {"differences": 3}, {"differences": [3, {"name": "loss"}]}])
def test_a_hostile_summary_has_no_figures(told: Any) -> None:
    assert node_figures("comparison", told) == {}


def test_the_collector_keeps_it_while_both_evaluations_are_kept_and_no_champion_for_it(made: Made) -> None:
    def kept(*models: Artifact, rules: Rules = NOTHING) -> dict[str, str]:
        found = plan(made.store, rules, {model.path.name: "registered" for model in models})
        assert {item.label for item in found.doomed} | set(found.kept) == {a.label for a in made.store.artifacts()}
        return found.kept

    assert kept(made.old, made.new)[made.comparison.label] == f"judges {made.now.label}"
    assert kept(made.new).keys().isdisjoint({made.comparison.label, made.was.label, made.old.label})
    assert kept(made.old).keys().isdisjoint({made.comparison.label, made.now.label, made.new.label})
    assert kept() == {}
    lately = kept(rules=Rules(keep_days=7, keep_newest=0))
    assert made.comparison.label in lately
    from gptmodel.upkeep.pins import pin

    pin(made.store, made.comparison.label)
    assert len(kept()) == 6, "what it was made from is kept with it"


def test_it_is_verified_with_its_challenger_and_listed(made: Made) -> None:
    assert with_evaluations(made.store, made.new.path) == [made.new.path, made.now.path, made.comparison.path]
    assert with_evaluations(made.store, made.old.path) == [made.old.path, made.was.path]
    (made.comparison.path / "data").write_text("B0TH")
    (difference,) = verify(made.store, with_evaluations(made.store, made.new.path), sources=False).differences
    assert (difference.node, difference.file, difference.what) == (made.comparison.label, "data", "sha256")
    about = {holding.label: holding.about for holding in holdings(made.store, {})}
    assert about[made.comparison.label] == f"{made.new.label} against {made.old.label}: loss -0.2500"


def test_the_card_of_the_challenger_tells_it(made: Made) -> None:
    facts = facts_of(made.store, made.new)
    assert f"| `{made.old.label}` on validation | -0.2500 | -0.3750 | -0.1250 | 0.9960 |" in evaluation_section(facts)
    assert f"| `{made.comparison.label}` | `{made.comparison.digest}` |" in lineage_section(facts)
    assert "Against other models" not in evaluation_section(facts_of(made.store, made.old))
