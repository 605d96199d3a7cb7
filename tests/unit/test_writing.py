"""Text in, text out: what is printed is what the tokens say, and stops where it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gptmodel.config import DecodingConfig, EvaluateConfig, ModelConfig
from gptmodel.errors import ConfigError
from gptmodel.generate import generate
from gptmodel.judging.evaluation import draw_samples
from gptmodel.model import GPT
from gptmodel.tokenizer import gpt2
from gptmodel.writing import _Row, continue_text, continue_texts, stream_texts

DRAWN = DecodingConfig(temperature=1.0, max_new_tokens=40, stop_at_end_token=False, seed=5)
PROMPTS = ("The harbour", "", "A much longer prompt than the others, to be padded")


@pytest.fixture(scope="module")
def model() -> GPT:
    gpt = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64), seed=1).eval()
    with torch.no_grad():
        gpt.wte.weight.mul_(20)
    return gpt


def test_the_text_is_that_of_the_tokens(model: GPT) -> None:
    ids = generate(model, gpt2().encode("The harbour").tolist(), decoding=DRAWN)
    assert continue_text(model, "The harbour", DRAWN) == gpt2().decode(ids)


def test_several_prompts_write_what_each_writes_alone(model: GPT) -> None:
    alone = [continue_text(model, prompt, DRAWN, row=row) for row, prompt in enumerate(PROMPTS)]
    assert continue_texts(model, PROMPTS, DRAWN) == alone
    assert len({*alone}) == 3


def test_pieces_come_one_by_one(model: GPT) -> None:
    pieces = list(stream_texts(model, ["The harbour"], DRAWN))
    assert len(pieces) > 10
    assert "".join(piece for _, piece in pieces) == continue_text(model, "The harbour", DRAWN)


def test_a_stop_text_ends_a_row_before_it_and_no_other(model: GPT) -> None:
    free = continue_texts(model, PROMPTS, DRAWN)
    stop = next(free[0][at : at + 5] for at in range(20, 60) if all(free[0][at : at + 5] not in t for t in free[1:]))
    stopped = continue_texts(model, PROMPTS, replace(DRAWN, stop=("never in it", stop)))
    assert stopped == [free[0][: free[0].index(stop)], *free[1:]]


def test_several_samples_of_a_prompt_are_drawn_apart_and_the_first_is_that_of_one(model: GPT) -> None:
    config = EvaluateConfig(prompts=PROMPTS[:2], decodings=(DRAWN, replace(DRAWN, top_k=5)), samples_per_prompt=3)
    samples = draw_samples(model, config)
    assert len({sample["text"] for sample in samples}) == len(samples) == 12
    assert [sample["prompt"] for sample in samples] == ["The harbour"] * 6 + [""] * 6
    one = draw_samples(model, replace(config, samples_per_prompt=1))
    assert samples[::3] == one


def test_an_end_token_is_not_shown(model: GPT) -> None:
    with torch.no_grad():
        ending = GPT(model.config, seed=1).eval()
        ending.load_state_dict(model.state_dict())
        ending.ln_f.weight.zero_()
        ending.wte.weight[gpt2().end_token].mul_(50)
        ending.ln_f.bias.copy_(ending.wte.weight[gpt2().end_token])  # so that the end token is the likeliest
    greedy = replace(DRAWN, temperature=0.0, max_new_tokens=3)
    assert continue_text(ending, "x", replace(greedy, stop_at_end_token=True)) == ""
    assert continue_text(ending, "x", greedy) == "<|endoftext|>" * 3


def test_a_padded_table_writes_no_ids_that_stand_for_nothing() -> None:
    padded = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64, vocab_size=50_304), seed=1).eval()
    with torch.no_grad():
        padded.wte.weight[gpt2().vocab_size :].mul_(1_000)  # one of these is nearly always the likeliest
    ids = generate(padded, [0], decoding=DRAWN)
    assert max(ids) >= gpt2().vocab_size
    assert len(continue_text(padded, "The harbour", DRAWN)) > 0


def test_halves_of_characters_and_of_stop_texts_are_held_back() -> None:
    row = _Row(("END", "ENOUGH"))
    assert [row.add(b) for b in ("é".encode()[:1], "é".encode()[1:])] == ["", "é"]
    assert [row.add(b) for b in (b"a EN", b"O", b"X")] == ["a ", "", "ENOX"]
    assert (row.add(b"more E"), row.rest()) == ("more ", "E")
    assert (row.add(b"ND of it"), row.stopped, row.rest()) == ("", True, "")
    cut = _Row(())
    assert (cut.add("é".encode()[:1]), cut.rest()) == ("", "\ufffd")


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop holds an empty text"):
        DecodingConfig(stop=("x", ""))
