"""The parts of a retraining night without its flow: sides of a corpus, arrivals, followed addresses, one decision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gptmodel.config import PipelineConfig, ShardsConfig, SourceConfig
from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.judging.evaluation import arrived, evaluate
from gptmodel.model import GPT
from gptmodel.pretraining.step import plan_training
from gptmodel.retraining.gate_facts import pair, scored, split_ids, trained_ids
from gptmodel.retraining.ledger import Draft, Ledger, Named
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.text.sources import open_source
from gptmodel.tokens.shards import build_shards
from gptmodel.weights import save_model
from tasks.gating import Judged, decide_once
from tasks.retraining import _nothing_new
from tests.conftest import write_text

Tiny = Callable[..., PipelineConfig]


class Data:
    """A folder of text that grows, and the sides of its corpus."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        self.text = write_text(folder / "text", documents=60, sentences=6)
        self.store = Store(folder / "store")
        self.config = tiny(
            f"corpus.source.paths=['{self.text}/*.txt']",
            "corpus.validation_fraction=0.3",
            "name=kept",
            "evaluate.max_tokens=0",
            "retrain.gate.min_documents=2",
            "retrain.gate.max_repeated=1",
            "retrain.gate.max_memorised=1",
        )

    def sides(self) -> tuple[Artifact, Artifact]:
        """(training, held out) as the text is now."""
        corpus, _ = build_corpus(self.store, self.config.corpus)
        training = replace(self.config.shards, side="training", selection_fraction=0.2)
        held_out = replace(self.config.shards, side="held-out")
        return build_shards(self.store, corpus, training)[0], build_shards(self.store, corpus, held_out)[0]

    def grow(self) -> None:
        for number in range(30):
            (self.text / f"new-{number:02d}.txt").write_text(f"Arrived {number}. A letter of the {number}th day.\n" * 9)

    def model(self, seed: int, shards: Artifact) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            save_model(GPT(self.config.model, seed=seed), directory)
            return {"step": 1}

        return self.store.produce(Request("checkpoint", 1, {"seed": seed}, (shards.ref,)), build)[0]

    def judged(self, model: Artifact, frozen: Artifact) -> Judged:
        return Judged(model, evaluate(self.store, model, frozen, self.config.evaluate)[0])


@pytest.fixture
def data(tmp_path: Path, tiny: Tiny) -> Data:
    return Data(tmp_path, tiny)


def test_nothing_held_out_is_trained_or_selected_on_and_arrivals_move_nothing(data: Data) -> None:
    training, held_out = data.sides()
    train, selection, frozen = split_ids(training, "train"), split_ids(training), split_ids(held_out)
    assert train
    assert selection
    assert frozen
    assert not train & selection
    assert not (train | selection) & frozen
    assert held_out.summary["train_documents"] == 0
    data.grow()
    more, more_held = data.sides()
    assert train < split_ids(more, "train")
    assert selection <= split_ids(more)
    assert frozen < split_ids(more_held)
    assert not frozen & (split_ids(more, "train") | split_ids(more))
    assert more.summary["documents_reused"] == len(train | selection), "incremental"


@pytest.mark.parametrize(("split", "advice"), [("train", "lower"), ("validation", "raise")])
def test_a_side_too_short_for_one_window_names_the_fraction_that_cut_it(data: Data, split: str, advice: str) -> None:
    training, _ = data.sides()
    found = training.summary[f"{split}_tokens"]
    config = replace(data.config, model=replace(data.config.model, context_length=found))
    with pytest.raises(DataError, match=rf"the {split} split has .*; add text, {advice} retrain.selection_fraction,"):
        plan_training(data.store, config, training)


@pytest.mark.parametrize(("side", "fraction"), [("all", 0.1), ("held-out", 0.1), ("training", 0.0)])
def test_a_side_and_its_fraction_must_fit(side: Any, fraction: float) -> None:
    with pytest.raises(ConfigError, match="selection_fraction"):
        ShardsConfig(side=side, selection_fraction=fraction)


def test_arrivals_alone_are_scored_and_as_they_would_be_by_themselves(data: Data) -> None:
    training, first = data.sides()
    data.grow()
    _, held_out = data.sides()
    new = arrived(held_out, first)
    assert new == split_ids(held_out) - split_ids(first)
    model = data.model(1, training)
    on_all, _ = evaluate(data.store, model, held_out, data.config.evaluate)
    on_new, _ = evaluate(data.store, model, held_out, data.config.evaluate, since=first)
    assert on_new.summary["split"] == "arrivals"
    assert set(scored(on_new).ids) == new
    assert on_new.fingerprint != on_all.fingerprint
    together = dict(zip(scored(on_all).ids, scored(on_all).n_tokens, strict=True))
    ours = dict(zip(scored(on_new).ids, scored(on_new).n_tokens, strict=True))
    assert {name: together[name] for name in list(ours)[1:]} == dict(list(ours.items())[1:]), "every token of each"
    assert all(name.startswith("new-") for name in scored(on_new).sources)
    again = evaluate(data.store, data.model(2, training), held_out, data.config.evaluate, since=first)[0]
    assert np.isfinite(pair(on_new, again).difference())


def test_pieces_of_a_cut_text_are_judged_together(data: Data) -> None:
    cut = replace(data.config.corpus, cut_above_chars=150, cut_to_chars=60)
    data.config = replace(data.config, corpus=cut)
    training, held_out = data.sides()
    found = evaluate(data.store, data.model(1, training), held_out, data.config.evaluate)[0]
    texts = set(scored(found).parents)
    assert 1 < len(texts) < len(scored(found).ids)
    assert all("#" not in text for text in texts)
    assert found.summary["resampling"]["unit"] == "text"
    assert found.summary["resampling"]["units"] == len(texts)
    sources = pq.read_table(found.file("sources.parquet")).to_pydict()
    assert set(sources["loss_low"]) == {None}, "each file is one text"


def test_one_question_is_decided_once_and_a_person_is_not_overruled(data: Data) -> None:
    training, frozen = data.sides()
    first, second = (data.judged(data.model(seed, training), frozen) for seed in (1, 2))
    entry, fresh = decide_once(data.store, data.config, first, None, {"source": "s1"})
    assert (entry.outcome, fresh) == ("promoted", True)
    assert decide_once(data.store, data.config, first, None, {})[1] is False
    ledger = Ledger(data.store, "kept")
    kept, _ = decide_once(data.store, data.config, second, first, {"source": "s2"})
    assert kept.facts["champion"] == asdict(Named.of(first.model))
    assert {"challenger.frozen", "champion.frozen"} <= kept.facts["evaluations"].keys()
    assert ledger.read().last_decision == kept
    # Somebody takes the champion away: the answer stands, and nothing is promoted again.
    ledger.update(lambda _: Draft("promote", Named.of(second.model), "by hand"))
    before = ledger.read()
    assert decide_once(data.store, data.config, first, None, {})[1] is False
    assert ledger.read() == before


def test_a_champion_that_changed_meanwhile_is_not_overwritten(data: Data) -> None:
    training, frozen = data.sides()
    first, second, third = (data.judged(data.model(seed, training), frozen) for seed in (1, 2, 3))
    decide_once(data.store, data.config, first, None, {})
    Ledger(data.store, "kept").update(lambda _: Draft("promote", Named.of(second.model), "by hand"))
    with pytest.raises(ArtifactError, match="run again to compare it"):
        decide_once(data.store, data.config, third, first, {})


def test_documents_that_the_champion_was_trained_on_do_not_judge(data: Data) -> None:
    """A champion from before documents were held out: on those it knows it cannot be beaten."""
    training, frozen = data.sides()
    corpus, _ = build_corpus(data.store, data.config.corpus)
    # Another split key: its training text holds some of what is frozen here.
    other = build_corpus(data.store, replace(data.config.corpus, split_key="older"))[0]
    older = build_shards(data.store, other, data.config.shards)[0]
    known = data.judged(data.model(5, older), frozen)
    assert corpus.digest != other.digest
    seen = trained_ids(data.store, known.model) & split_ids(frozen)
    assert seen
    ledger = Ledger(data.store, "kept")
    ledger.update(lambda _: Draft("promote", Named.of(known.model), "it was there before"))
    entry, _ = decide_once(data.store, data.config, data.judged(data.model(6, training), frozen), known, {})
    better = next(check for check in entry.facts["checks"] if check["name"] == "better")
    assert better["figures"]["documents"] == len(split_ids(frozen) - seen)


def test_a_source_is_news_unless_champion_or_last_challenger_saw_it(data: Data) -> None:
    ledger = Ledger(data.store, "kept")
    a, b = (Named(f"checkpoint/{letter * 16}", letter * 64) for letter in "ab")

    def said(source: str, config: PipelineConfig = data.config) -> str:
        return _nothing_new(config, ledger.read(), source)

    def decide(subject: Named, outcome: str, source: str) -> None:
        ledger.update(lambda _: Draft("decide", subject, facts={"outcome": outcome, "source": source, "said": ""}))

    assert said("s1") == "", "the first night"
    decide(a, "promoted", "s1")
    assert "champion" in said("s1")
    assert said("s2") == ""
    decide(b, "kept", "s2")
    assert "last challenger" in said("s2")
    assert "champion" in said("s1")
    assert said("s3") == ""
    assert said("s1", replace(data.config, retrain=replace(data.config.retrain, when="always"))) == ""
    decide(b, "waiting", "s2")
    assert said("s2") == "", "ratings may be in by now"


class _Changing(BaseHTTPRequestHandler):
    """One file that changes; says how often it was sent whole."""

    body, sent, with_etag = b"one\n", 0, True

    def do_GET(self) -> None:
        etag = f'"{hash(self.body)}"'
        if self.with_etag and self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.end_headers()
            return
        type(self).sent += 1
        self.send_response(200)
        if self.with_etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    _Changing.body, _Changing.sent, _Changing.with_etag = b"one\n", 0, True
    with ThreadingHTTPServer(("127.0.0.1", 0), _Changing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/letters.txt"
        server.shutdown()


def test_a_followed_address_is_fetched_when_its_etag_changes(address: str, tmp_path: Path) -> None:
    config = SourceConfig(kind="http", paths=(address,), follow=True, allow_private_addresses=True)
    first = open_source(config, tmp_path)
    assert open_source(config, tmp_path).digest == first.digest
    assert _Changing.sent == 1, "the second look cost no transfer"
    _Changing.body = b"two\n"
    second = open_source(config, tmp_path)
    assert second.digest != first.digest
    assert [raw.text for raw in second.texts()] == [b"two\n"]
    # What lies here damaged is fetched again, whatever the server says.
    for path in tmp_path.glob("*/letters.txt"):
        path.write_bytes(b"bad\n")
    assert open_source(config, tmp_path).digest == second.digest
    assert _Changing.sent == 3


def test_a_server_without_etags_is_asked_for_all_each_time(address: str, tmp_path: Path) -> None:
    _Changing.with_etag = False
    config = SourceConfig(kind="http", paths=(address,), follow=True, allow_private_addresses=True)
    assert open_source(config, tmp_path).digest == open_source(config, tmp_path).digest
    assert _Changing.sent == 2


def test_following_and_a_promised_hash_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="follow"):
        SourceConfig(kind="http", paths=("http://example.com/a",), sha256=("0" * 64,), follow=True)
    with pytest.raises(ConfigError, match="follow=true"):
        SourceConfig(kind="http", paths=("http://example.com/a",))
