"""Evaluation: figures that add up, whatever the batch size, and a baseline that can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gptmodel.config import DecodingConfig, EvaluateConfig, ModelConfig, PipelineConfig
from gptmodel.judging.evaluation import Scores, decoding_name, judge_samples, score_tokens, trained_on, unigram_losses
from gptmodel.judging.tables import document_table
from gptmodel.model import GPT
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import Shard, TokenStream, open_split


def stream_of(*documents: list[int]) -> TokenStream:
    """A token stream as `open_split` gives it, of these documents."""
    values = np.array([token for document in documents for token in document], dtype=np.uint16)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    batch = pa.record_batch(
        {
            "document": pa.array([f"d{n}" for n in range(len(documents))]),
            "part": pa.array([0] * len(documents), pa.int32()),
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values)),
        }
    )
    return TokenStream([Shard(batch, values)])


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8), seed=3).eval()


def test_each_token_is_scored_once_with_the_context_before_it(model: GPT) -> None:
    tokens = [int(t) for t in torch.randint(50_257, (21,), generator=torch.Generator().manual_seed(0))]
    scores = score_tokens(model, stream_of(tokens), EvaluateConfig(batch_size=2))
    by_hand = []
    for start in range(0, 20, 8):  # windows of 8, and a short one at the end
        window = tokens[start : start + 9]
        with torch.no_grad():
            logits = model(torch.tensor([window[:-1]]))
        log_probs = torch.log_softmax(logits[0].float(), -1)
        by_hand += [-float(log_probs[i, target]) for i, target in enumerate(window[1:])]
    assert scores.positions.tolist() == list(range(1, 21))
    assert scores.targets.tolist() == tokens[1:]
    assert scores.nats.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_the_batch_size_changes_nothing(model: GPT, tiny_data: tuple[Store, Artifact]) -> None:
    stream = open_split(tiny_data[1], "validation")
    one, seven = (score_tokens(model, stream, EvaluateConfig(batch_size=n, max_tokens=500)) for n in (1, 7))
    np.testing.assert_allclose(one.nats, seven.nats, atol=1e-5)
    assert len(one.nats) == 62 * 8
    windows = (one.positions.reshape(62, 8)[:, 0] - 1) // 8
    assert windows[0] == 0
    assert set(np.diff(windows)) <= {stream.n_tokens // 8 // 62, stream.n_tokens // 8 // 62 + 1}


def test_documents_share_the_total_out(model: GPT) -> None:
    stream = stream_of([5, 6, 50_256], [7, 8, 9, 50_256], [10, 50_256])
    scores = score_tokens(model, stream, EvaluateConfig())
    nats = scores.nats
    table = document_table(scores, stream, {}).to_pydict()
    assert table["document"] == ["d0", "d1", "d2"]
    assert table["n_tokens"] == [2, 4, 2], "the stream's first token is not predicted; every end token is"
    assert table["nats"] == pytest.approx([nats[:2].sum(), nats[2:6].sum(), nats[6:].sum()])
    lengths = gpt2().byte_lengths
    assert table["n_bytes"] == [lengths[6], lengths[7] + lengths[8] + lengths[9], lengths[10]]


def test_documents_without_a_scored_token_are_left_out() -> None:
    stream = stream_of([5, 6, 50_256], [7, 8, 9, 50_256], [10, 50_256])
    nats = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    ones = np.ones(4, np.int32)
    scores = Scores(np.array([1, 2, 7, 8]), np.array([6, 50_256, 10, 50_256]), nats, nats, ones, nats)
    table = document_table(scores, stream, {}).to_pydict()
    assert (table["document"], table["n_tokens"], table["nats"]) == (["d0", "d2"], [2, 2], [3.0, 7.0])


def test_the_unigram_baseline_by_hand() -> None:
    train = stream_of([1, 1, 1, 2, 50_256])
    total = 5 + 50_257
    expected = [-math.log(4 / total), -math.log(2 / total), -math.log(1 / total)]
    assert unigram_losses(train)[[1, 2, 3]].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("decoding", "name"),
    [
        (DecodingConfig(temperature=0.0, top_k=5), "greedy"),
        (DecodingConfig(temperature=0.7, top_k=50), "temperature 0.7, top-k 50"),
        (DecodingConfig(temperature=1.0, top_p=0.9), "temperature 1, top-p 0.9"),
        (DecodingConfig(temperature=1.5, min_p=0.1), "temperature 1.5, min-p 0.1"),
        (DecodingConfig(temperature=0.0, repetition_penalty=1.2), "greedy, repetition penalty 1.2"),
    ],
)
def test_decodings_have_names(decoding: DecodingConfig, name: str) -> None:
    assert decoding_name(decoding) == name


def test_a_model_of_another_vocabulary_is_refused(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig]
) -> None:
    from gptmodel.errors import ConfigError
    from gptmodel.judging.evaluation import evaluate
    from gptmodel.weights import save_model

    store, shards = tiny_data
    small = GPT(replace(tiny().model, vocab_size=100))

    def build(directory: object) -> dict[str, object]:
        save_model(small, directory)  # type: ignore[arg-type]
        return {}

    weights, _ = store.produce(Request("weights", 1, {"vocabulary": "small"}), build)
    with pytest.raises(ConfigError, match=r"ids up to 50,256 and the model knows 100 tokens"):
        evaluate(store, weights, shards, EvaluateConfig())


def test_an_evaluation_keeps_passages_for_the_surprisal_map(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig]
) -> None:
    from gptmodel.judging.evaluation import evaluate
    from gptmodel.judging.surprisal import passages_of
    from gptmodel.weights import save_model

    store, shards = tiny_data
    config = replace(tiny().evaluate, max_tokens=100, surprisal_passages=2, prompts=())

    def build(directory: object) -> dict[str, object]:
        save_model(GPT(tiny().model, seed=4), directory)  # type: ignore[arg-type]
        return {}

    weights, _ = store.produce(Request("weights", 1, {"for": "passages"}, ()), build)
    kept = passages_of(evaluate(store, weights, shards, config)[0])
    index = open_split(shards, "validation").documents()
    assert [passage.document for passage in kept] == [index.ids[0], index.ids[-1]]
    assert [len(passage.nats) for passage in kept] == [40, 40]
    assert passages_of(evaluate(store, weights, shards, replace(config, surprisal_passages=0))[0]) == []


def test_an_evaluation_says_what_its_samples_repeat(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig]
) -> None:
    shards = tiny_data[1]
    config = replace(tiny().evaluate, prompts=("Document",), memorised_tokens=1)
    samples = [{"prompt": "Document", "decoding": "d", "temperature": 1.0, "text": " the old river keeps many letters"}]
    (sample,), told = judge_samples(samples, shards, config)
    assert sample["overlap_text"] in sample["text"]
    assert sample["overlap_tokens"] == told["overlap_tokens_max"] > 1
    assert told["memorisation_rate"] == 1.0
    assert {"distinct_1", "repeated_4", "unseen_overlap_tokens_max"} <= set(told)
    assert judge_samples([], shards, config) == ([], {})
    alone, figures = judge_samples(samples, None, config)
    assert (alone, set(figures)) == (samples, {"distinct_1", "distinct_2", "distinct_3", "distinct_4", "repeated_4"})


def test_what_a_model_memorised_is_looked_for_in_its_own_training_text(
    tiny_data: tuple[Store, Artifact], tmp_path: Path
) -> None:
    store, shards = tiny_data

    def produced(kind: str, inputs: tuple[Ref, ...]) -> Artifact:
        def build(directory: Path) -> dict[str, object]:
            (directory / "file").write_text("")
            return {}

        return Store(tmp_path).produce(Request(kind, 1, {}, inputs), build)[0]

    others = produced("shards", ())
    assert trained_on(store, produced("checkpoint", (shards.ref,)), others) == shards
    assert trained_on(store, produced("checkpoint", (others.ref,)), others) == others
    assert trained_on(store, produced("weights", ()), shards) is None
    assert trained_on(store, produced("checkpoint", (others.ref,)), shards) is None, "gone from the store"
