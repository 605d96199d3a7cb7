"""Scores of tokens: windows that slide, against transformers and against a window of its own for each token; ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptmodel.config import EvaluateConfig, ModelConfig
from gptmodel.errors import ConfigError
from gptmodel.judging.scoring import plain_spans, score_tokens, windows_of
from gptmodel.loss import token_scores
from gptmodel.model import GPT
from gptmodel.pretrained import load_pretrained

CONTEXT, VOCABULARY = 12, 60


@dataclass
class Ids:
    """A stream that is held in memory."""

    ids: npt.NDArray[np.uint16]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        assert 0 <= start <= stop <= len(self.ids)
        return self.ids[start:stop]


@pytest.fixture(scope="module")
def stream() -> Ids:
    return Ids(np.random.default_rng(0).integers(0, VOCABULARY, 101).astype(np.uint16))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, GPT2LMHeadModel]:
    """The same weights in our model and in that of transformers, large enough that context matters."""
    torch.manual_seed(3)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": VOCABULARY, "n_positions": CONTEXT}
    theirs = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    directory: Path = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return load_pretrained(str(directory)).eval(), theirs


def by_transformers(model: GPT2LMHeadModel, ids: npt.NDArray[np.uint16], stride: int) -> list[float]:
    """Losses of tokens 1, 2, … as its documentation slides a window: what the one before has not reached counts."""
    losses: list[float] = []
    tokens = torch.from_numpy(ids.astype(np.int64))
    for begin in range(0, len(ids) - 1, stride):
        window = tokens[begin : begin + CONTEXT + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        nats = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").tolist()
        losses += nats[len(losses) - begin :]
        if begin + CONTEXT >= len(ids) - 1:
            return losses
    raise AssertionError


@pytest.mark.parametrize("stride", [1, 3, 4, 12])
@pytest.mark.parametrize("length", [2, 12, 14, 73, 101])
def test_a_sliding_window_is_that_of_transformers(
    both: tuple[GPT, GPT2LMHeadModel], stream: Ids, stride: int, length: int
) -> None:
    ours, theirs = both
    part = Ids(stream.ids[:length])
    scores = score_tokens(ours, part, EvaluateConfig(stride=stride, batch_size=3))
    assert scores.positions.tolist() == list(range(1, length))
    assert scores.targets.tolist() == part.ids[1:].tolist()
    np.testing.assert_allclose(scores.nats, by_transformers(theirs, part.ids, stride), atol=2e-5)
    np.testing.assert_allclose(scores.plain_nats, by_transformers(theirs, part.ids, CONTEXT), atol=2e-5)


def test_a_sliding_window_makes_a_difference(both: tuple[GPT, GPT2LMHeadModel], stream: Ids) -> None:
    scores = score_tokens(both[0], stream, EvaluateConfig(stride=3))
    apart = np.flatnonzero(np.abs(scores.nats - scores.plain_nats) > 1e-3)
    assert len(apart) > 30
    assert apart.min() >= CONTEXT, "the first window is the same"
    assert all((i % CONTEXT) < CONTEXT - 3 for i in apart), "so are the last tokens of each"


@pytest.mark.parametrize("stride", [1, 5, 7, 11, 12])
@pytest.mark.parametrize("max_tokens", [0, 36])
def test_every_token_is_fresh_once_with_the_context_it_was_promised(stride: int, max_tokens: int) -> None:
    for n_tokens in (2, 12, 13, 30, 100, 101):
        spans = plain_spans(n_tokens, CONTEXT, max_tokens)
        wanted = [position for start, stop in spans for position in range(start + 1, stop + 1)]
        fresh: dict[int, int] = {}
        for window in windows_of(spans, CONTEXT, stride):
            assert 0 <= window.start < window.stop <= min(n_tokens - 1, window.start + CONTEXT)
            for back in range(window.fresh):
                place = window.at - 1 - back
                assert wanted[place] == window.stop - back
                assert place not in fresh
                fresh[place] = wanted[place] - window.start  # tokens that it sees
        assert sorted(fresh) == list(range(len(wanted)))
        for place, seen in fresh.items():
            assert seen >= min(wanted[place], CONTEXT - stride + 1)
        assert [(w.start, w.stop) for w in windows_of(spans, CONTEXT, stride) if w.plain] == spans


def test_without_a_stride_there_is_one_pass_and_no_second_array(both: tuple[GPT, GPT2LMHeadModel], stream: Ids) -> None:
    scores = score_tokens(both[0], stream, EvaluateConfig())
    assert scores.plain_nats is scores.nats
    assert len(list(windows_of(plain_spans(101, CONTEXT, 0), CONTEXT, CONTEXT))) == math.ceil(100 / CONTEXT)


def test_ranks_and_sureness_by_sorting(both: tuple[GPT, GPT2LMHeadModel], stream: Ids) -> None:
    ours, theirs = both
    scores = score_tokens(ours, Ids(stream.ids[: CONTEXT + 1]), EvaluateConfig())
    with torch.no_grad():
        logits = theirs(torch.from_numpy(stream.ids[:CONTEXT].astype(np.int64))[None]).logits[0]
    order = logits.argsort(-1, descending=True)
    ranks = [order[i].tolist().index(int(target)) + 1 for i, target in enumerate(scores.targets)]
    assert scores.rank.tolist() == ranks
    assert scores.correct(20).tolist() == [rank <= 20 for rank in ranks]
    np.testing.assert_allclose(scores.top_probability, logits.softmax(-1).amax(-1), rtol=1e-5)


def test_a_tie_counts_against_the_model() -> None:
    indifferent = token_scores(torch.ones(1, 2, 4), torch.zeros(7, 4), torch.tensor([[0, 6]]))
    assert indifferent.rank.tolist() == [[7, 7]]
    assert indifferent.nats[0].tolist() == pytest.approx([math.log(7)] * 2)
    assert indifferent.top_probability[0].tolist() == pytest.approx([1 / 7] * 2)


def test_a_stride_beyond_the_context_is_refused(stream: Ids) -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=VOCABULARY, context_length=CONTEXT), seed=0)
    with pytest.raises(ConfigError, match=r"evaluate.stride is 13 and the model's context 12"):
        score_tokens(model, stream, EvaluateConfig(stride=13))
    with pytest.raises(ConfigError, match="stride is -1"):
        EvaluateConfig(stride=-1)
