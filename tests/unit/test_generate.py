"""Writing text: cache against no cache, batch against single rows, samplers against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.errors import DataError
from gptmodel.generate import filter_top_k, filter_top_p, generate, generate_batch, sample, stream
from gptmodel.model import GPT

CONFIG = ModelConfig(vocab_size=97, context_length=16, n_layer=2, n_head=2, n_embd=32)
GREEDY = DecodingConfig(temperature=0.0, max_new_tokens=40, stop_at_end_token=False)
DRAWN = replace(GREEDY, temperature=1.0, top_k=40, top_p=0.95, seed=7)
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [90, 3], list(range(16)), list(range(40)), []]


@pytest.fixture(scope="module")
def model():
    """Large weights, so that what it writes depends on all it has read."""
    gpt = GPT(CONFIG, seed=3).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return gpt


def by_the_rule(model, prompt, n, end_token=96):
    """Greedy continuation as the docstring states it, with nothing but the model's forward pass."""
    window, new = list(prompt) or [end_token], []
    for _ in range(n):
        if len(window) > 16:
            window = window[-8:]
        window.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        new.append(window[-1])
    return new


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
def test_greedy_follows_the_stated_rule_far_beyond_the_context(model, prompt, use_cache):
    assert generate(model, prompt, decoding=GREEDY, end_token=96, use_cache=use_cache) == by_the_rule(model, prompt, 40)


@pytest.mark.parametrize("decoding", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
def test_a_batch_of_unequal_prompts_writes_what_its_rows_write_alone(model, decoding, use_cache):
    together = generate_batch(model, PROMPTS, decoding=decoding, end_token=96, use_cache=use_cache)
    alone = [generate(model, p, decoding=decoding, end_token=96, row=row) for row, p in enumerate(PROMPTS)]
    assert together == alone


def test_rows_that_end_early_leave_the_others_as_they_are(model):
    free = generate_batch(model, PROMPTS, decoding=DRAWN, end_token=96)
    end = free[1][4]
    stopping = replace(DRAWN, stop_at_end_token=True)
    prompts = [prompt or [96] for prompt in PROMPTS]
    stopped = generate_batch(model, prompts, decoding=stopping, end_token=end)
    assert stopped == [row[: row.index(end) + 1] if end in row else row for row in free]
    assert len({len(row) for row in stopped}) > 1
    assert stopped[1][-1] == end


def test_the_seed_decides_the_draws_and_rows_draw_differently(model):
    def run(**changes):
        return generate_batch(model, [[5, 6]] * 2, decoding=replace(DRAWN, **changes), end_token=96)

    first = run()
    torch.manual_seed(123)  # torch's own generator has no part in it
    assert run() == first
    assert run(seed=8) != first
    assert first[0] != first[1]


def test_stream_gives_the_same_tokens_one_by_one_and_leaves_gradients_on(model):
    tokens = stream(model, [5, 6], decoding=DRAWN, end_token=96)
    first = next(tokens)
    assert torch.is_grad_enabled()
    assert [first, *tokens] == generate(model, [5, 6], decoding=DRAWN, end_token=96)


@pytest.mark.parametrize("ids", [[5, 6], torch.tensor([5, 6]), np.array([5, 6], dtype=np.uint16), (5, 6)], ids=type)
def test_one_prompt_in_any_form_gives_a_list_of_new_ids(model, ids):
    wanted = generate(model, [5, 6], decoding=GREEDY)
    found = generate(model, ids, decoding=GREEDY)
    assert found == wanted
    assert len(found) == 40
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize("ids", [[[5, 6], [7, 8]], torch.tensor([[5, 6], [7, 8]])], ids=type)
def test_two_prompts_give_a_list_of_lists(model, ids):
    assert generate(model, ids, decoding=GREEDY) == [generate(model, row, decoding=GREEDY) for row in ([5, 6], [7, 8])]


def test_a_model_in_training_writes_without_dropout_and_goes_on_training():
    gpt = GPT(replace(CONFIG, dropout=0.5), seed=3)
    gpt.blocks[0].eval()
    before = [module.training for module in gpt.modules()]
    tracked = []
    gpt.ln_f.register_forward_hook(lambda module, args, output: tracked.append(output.requires_grad))
    written = generate(gpt, [5], decoding=GREEDY)
    assert not any(tracked)  # no graph of 40 passes in memory
    assert [module.training for module in gpt.modules()] == before
    assert written == generate(gpt.eval(), [5], decoding=GREEDY)


@pytest.mark.parametrize("prompt", [[97], [3, -1]])
def test_an_id_outside_the_vocabulary_is_a_clear_error(model, prompt):
    with pytest.raises(DataError, match=r"token (97 at place 0|-1 at place 1) .* vocabulary of 97"):
        stream(model, prompt, decoding=GREEDY)  # at the call, before a token is asked for


def test_an_empty_prompt_needs_an_end_token(model):
    with pytest.raises(DataError, match="empty"):
        generate(model, [], decoding=GREEDY, end_token=None)


def test_damaged_weights_are_told_and_not_sampled_from():
    gpt = GPT(CONFIG, seed=0)
    with torch.no_grad():
        gpt.ln_f.weight[0] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        generate(gpt, [1], decoding=DRAWN)


def test_a_context_of_one_token_works():
    gpt = GPT(replace(CONFIG, context_length=1), seed=0)
    assert generate(gpt, [1, 2, 3], decoding=GREEDY) == generate(gpt, [3], decoding=GREEDY, use_cache=False)


def test_progress_counts_the_tokens(model):
    seen = []
    generate_batch(model, [[1], [2]], decoding=replace(GREEDY, max_new_tokens=3), progress=lambda *a: seen.append(a))
    assert seen == [(1, 3, "tokens"), (2, 3, "tokens"), (3, 3, "tokens")]


def test_no_prompts_give_no_rows(model):
    assert generate_batch(model, []) == []


logits = st.lists(st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40).map(torch.tensor)


@settings(deadline=None, max_examples=60)
@given(logits, st.integers(0, 45))
def test_top_k_keeps_the_k_largest_as_they_are(logits_V, k):
    kept = filter_top_k(logits_V, k)
    stay = kept.isfinite()
    assert int(stay.sum()) == (min(k, len(logits_V)) or len(logits_V))
    assert torch.equal(kept[stay], logits_V[stay])
    if not stay.all():
        assert logits_V[stay].min() >= logits_V[~stay].max()


@settings(deadline=None, max_examples=60)
@given(logits, st.floats(0.0, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits_V, p):
    kept = filter_top_p(logits_V, p)
    stay = kept.isfinite()
    probs = torch.softmax(logits_V.double(), -1)
    assert stay.any()
    assert torch.equal(kept[stay], logits_V[stay])
    assert probs[stay].sum() >= p - 1e-9
    if p < 1:
        assert probs[stay].sum() - probs[stay].min() < p + 1e-9  # without its least likely it falls short
    if not stay.all():
        assert logits_V[stay].min() >= logits_V[~stay].max()


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(2, 12))
def test_filters_treat_each_row_alone(rows, columns):
    logits_BV = torch.randn(rows, columns)
    assert torch.equal(filter_top_k(logits_BV, 2), torch.stack([filter_top_k(row, 2) for row in logits_BV]))
    assert torch.equal(filter_top_p(logits_BV, 0.7), torch.stack([filter_top_p(row, 0.7) for row in logits_BV]))


def drawn_shares(decoding, n=1500):
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    return torch.bincount(torch.tensor([sample(values, decoding, generator) for _ in range(n)]), minlength=4) / n


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.6849, 0.2466, 0.0616, 0.0068]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5263, 0.3158, 0.1579, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 5e-324}, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(changes, wanted):
    shares = drawn_shares(replace(DecodingConfig(temperature=1.0), **changes))
    assert shares.tolist() == pytest.approx(wanted, abs=0.04)
    assert all(share == 0 for share, want in zip(shares.tolist(), wanted, strict=True) if want == 0)
