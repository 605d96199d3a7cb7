"""Writing text: cache against no cache, batch against single rows, rows that share and rows that leave."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptmodel import few_rows
from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.errors import DataError
from gptmodel.few_rows import FewRows, few_rows_linear, few_rows_of
from gptmodel.generate import Writer, generate, generate_batch, stream
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


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
def test_rows_of_one_prompt_share_its_reading(model, use_cache, monkeypatch):
    prompts = [[5, 6, 7], [8], [5, 6, 7], [5, 6, 7]]
    wanted = [generate(model, p, decoding=DRAWN, end_token=96, row=row) for row, p in enumerate(prompts)]
    read = []
    hidden = GPT.hidden

    def counted(gpt, ids_BT, cache=None):
        read.append(tuple(ids_BT.shape))
        return hidden(gpt, ids_BT, cache)

    monkeypatch.setattr(GPT, "hidden", counted)
    assert generate_batch(model, prompts, decoding=DRAWN, end_token=96, use_cache=use_cache) == wanted
    assert read[0] == (2, 3)
    assert len({*map(tuple, wanted)}) == 4
    if use_cache:
        assert read[1] == (4, 1)


def test_half_of_the_rows_ended_leave_the_cache(model, monkeypatch):
    prompts = [[5, 6], [8], [9, 9, 9, 9], [11, 3]]
    decoding = replace(DRAWN, max_new_tokens=10)
    free = generate_batch(model, prompts, decoding=decoding, end_token=96)
    rows, hidden = [], GPT.hidden

    def counted(gpt, ids_BT, cache=None):
        rows.append(len(ids_BT))
        return hidden(gpt, ids_BT, cache)

    monkeypatch.setattr(GPT, "hidden", counted)
    writer = Writer(model, prompts, decoding, 96, 0, True)
    written = {row: [] for row in range(4)}
    for step, tokens in enumerate(writer):
        for row, token in tokens.items():
            written[row].append(token)
        for row in {1: [0], 3: [2]}.get(step, []):
            writer.finish(row)
    assert rows == [4, 4, 4, 4, 2, 2, 2, 2, 2, 2]
    assert [written[row] for row in range(4)] == [free[0][:2], free[1], free[2][:4], free[3]]


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "min_p": 0.05}], ids=["greedy", "drawn"])
def test_the_penalty_counts_prompt_and_text_beyond_the_context_and_each_row_for_itself(model, changes):
    decoding = replace(GREEDY, repetition_penalty=3.0, **changes)
    together = generate_batch(model, PROMPTS, decoding=decoding, end_token=96)
    alone = [generate(model, p, decoding=decoding, end_token=96, row=row) for row, p in enumerate(PROMPTS)]
    assert together == alone
    assert together == generate_batch(model, PROMPTS, decoding=decoding, end_token=96, use_cache=False)
    assert together != generate_batch(model, PROMPTS, decoding=replace(decoding, repetition_penalty=1.0), end_token=96)
    everything = replace(GREEDY, repetition_penalty=1e6, max_new_tokens=60)  # what was seen comes only when all was
    long_prompt = list(range(30))
    written = generate(model, long_prompt, decoding=everything, end_token=96)
    positive = [token for token in written[:40] if token not in long_prompt]
    assert len({*positive}) == len(positive) == 40


def prepared(monkeypatch):
    """(rows, whether laid out anew) of all weights that are prepared from now on."""
    made = []

    class Counted(FewRows):
        def __init__(self, model, head, rows, *, lay_out):
            made.append((rows, lay_out))
            super().__init__(model, head, rows, lay_out=lay_out)

    monkeypatch.setattr(few_rows, "FewRows", Counted)
    return made


@pytest.mark.skipif(few_rows_of(torch.nn.Linear(1, 1), torch.zeros(1), 1, 9) is None, reason="no oneDNN in this torch")
def test_weights_for_few_rows_give_the_plain_logits_and_are_copied_where_that_pays(model, monkeypatch):
    made, products = prepared(monkeypatch), []
    monkeypatch.setattr(few_rows, "few_rows_linear", lambda *given: products.append(1) or few_rows_linear(*given))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for lay_out in (False, True):
        with torch.no_grad():
            plain, weights = model.hidden(ids), FewRows(model, model.wte.weight, 2, lay_out=lay_out)
            with weights.at_work():
                found = model.hidden(ids)
            logits = few_rows_linear(found, weights.head, None)
        assert len(products) == 4 * CONFIG.n_layer
        del products[:]
        assert (found - plain).abs().max() < 1e-4
        assert (logits - model.logits(plain)).abs().max() < 1e-3
    rows = [[1, 2], [3], [4, 5, 6]]
    del made[:]
    generate(model, [1, 2, 3], decoding=GREEDY)
    generate_batch(model, rows, decoding=replace(GREEDY, max_new_tokens=3))  # not worth the copy
    generate_batch(model, rows, decoding=GREEDY)
    assert made == [(1, False), (3, False), (3, True)]
    assert products
    del made[:]
    for steps in (3, 12):
        generate(model, [1, 2, 3], decoding=replace(GREEDY, precision="bfloat16", max_new_tokens=steps))
    laid_out = [(1, True)] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    assert made == laid_out
    monkeypatch.setattr(few_rows, "_lays_out_bfloat16", lambda: False)  # as on an older processor
    generate(model, [1, 2, 3], decoding=replace(GREEDY, precision="bfloat16", max_new_tokens=12))
    assert made == laid_out
    assert all(layer.lent is None for layer in model.modules() if hasattr(layer, "lent"))


def test_a_model_that_learned_between_two_texts_writes_with_its_new_weights(model):
    gpt = GPT(CONFIG, seed=4).eval()
    prompts = [[1, 2, 3], [4, 5, 6]]
    before = generate_batch(gpt, prompts, decoding=GREEDY)
    gpt.load_state_dict(model.state_dict())
    assert generate_batch(gpt, prompts, decoding=GREEDY) == generate_batch(model, prompts, decoding=GREEDY) != before


def test_bfloat16_rounds_and_float32_does_not(model):
    low = replace(GREEDY, precision="bfloat16", max_new_tokens=12)
    with torch.no_grad():
        exact = model(torch.tensor([[1, 2, 3]]))[0, -1]
    writer = Writer(model, [[1, 2, 3]], low, None, 0, True)
    seen = []
    hidden = model.hidden
    model.hidden = lambda ids, cache: seen.append(hidden(ids, cache)) or seen[-1]
    try:
        next(writer)
        next(writer)
    finally:
        del model.hidden
    rounded = model.logits(seen[0][0, -1])
    assert writer._cache._layers[0][0].dtype == torch.bfloat16
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    assert len(generate(model, [1, 2, 3], decoding=low)) == 12
