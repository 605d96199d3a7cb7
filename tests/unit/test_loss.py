"""Losses: the worked example of docs/loss.md, and the chunked head against the plain formula."""

import math
import re
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from gptmodel import loss as loss_module
from gptmodel import padded_head
from gptmodel.loss import bits_per_byte, cross_entropy, linear_cross_entropy, perplexity, token_losses
from gptmodel.tokenizer import gpt2

V = 50_257
PROBABILITIES = [7.4541e-05, 3.1061e-05, 1.1563e-05, 1.0337e-05, 5.6776e-05, 4.7559e-06]
INPUTS = [[16833, 3626, 6100], [40, 1107, 588]]
TARGETS = [[3626, 6100, 345], [1107, 588, 11311]]


def worked_logits():
    """Logits [2, 3, V] whose softmax gives each target its probability and shares the rest evenly."""
    p = torch.tensor(PROBABILITIES, dtype=torch.float64).view(2, 3, 1)
    rest = ((1 - p) / (V - 1)).log().expand(2, 3, V).clone()
    return rest.scatter_(2, torch.tensor(TARGETS)[:, :, None], p.log()).float()


def test_the_batch_is_the_text_of_the_example():
    encode = gpt2().encode
    assert [encode("every effort moves").tolist(), encode("I really like").tolist()] == INPUTS
    assert [encode(" effort moves you").tolist(), encode(" really like chocolate").tolist()] == TARGETS


def test_the_worked_example():
    logits_BTV, targets_BT = worked_logits(), torch.tensor(TARGETS)
    assert logits_BTV.shape == (2, 3, V)
    assert logits_BTV.flatten(0, 1).shape == (6, V)
    probabilities = torch.softmax(logits_BTV, -1).gather(2, targets_BT[:, :, None]).flatten()
    assert probabilities.tolist() == pytest.approx(PROBABILITIES, rel=1e-4)
    assert probabilities.log().mean().item() == pytest.approx(-10.794, abs=5e-4)
    loss = cross_entropy(logits_BTV, targets_BT)
    assert loss.item() == pytest.approx(10.794, abs=5e-4)
    assert perplexity(loss) == pytest.approx(48_726, rel=1e-4)


def test_uniform_guessing_hesitates_between_all_tokens():
    loss = cross_entropy(torch.zeros(2, 3, V), torch.tensor(TARGETS))
    assert loss.item() == pytest.approx(math.log(V), abs=1e-5)
    assert round(loss.item(), 3) == 10.825
    assert round(perplexity(math.log(V))) == V


def test_perplexity_of_a_huge_loss_is_infinite_and_not_an_error():
    assert perplexity(0.0) == 1.0
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_bits_per_byte():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    assert bits_per_byte(4 * math.log(256), 4) == pytest.approx(8.0)  # uniform over bytes
    assert math.isnan(bits_per_byte(1.0, 0))


def chunks_of(rows, monkeypatch):
    for module in (padded_head, loss_module):  # of training and of evaluation
        monkeypatch.setattr(module, "CHUNK_BYTES", rows * 256 * 4)


@pytest.fixture(params=[1, 7, 40, 1000], ids="rows_{}".format)
def rows_at_a_time(request, monkeypatch):
    chunks_of(request.param, monkeypatch)
    monkeypatch.setattr(padded_head, "_CACHED_ELEMENTS", 3 * 211)


def problem(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(11)
    x = (torch.randn(4, 10, 16, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(211, 16, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randint(211, (4, 10), generator=generator)


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.usefixtures("rows_at_a_time")
def test_chunked_loss_and_gradients_equal_the_plain_ones(scale):
    x, weight, targets = problem(scale=scale)
    plain = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten())
    wanted = torch.autograd.grad(plain * 0.25, (x, weight))
    fused = linear_cross_entropy(x, weight, targets)
    found = torch.autograd.grad(fused * 0.25, (x, weight))  # scaled, as by gradient accumulation
    assert fused.item() == pytest.approx(plain.item(), rel=1e-6, abs=1e-6)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-6 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("grads", [True, False])
def test_no_chunk_of_logits_is_made_beside_another(grads, monkeypatch):
    chunks_of(7, monkeypatch)
    shape, made = (16, 256 if grads else 211), []  # padded to train

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten.mm.default or args[1].shape != shape or not any(w() for w in made)
            found = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and args[1].shape == shape:
                made.append(weakref.ref(found))
            return found

    x, weight, targets = problem()
    with Watch(), torch.set_grad_enabled(grads):
        (linear_cross_entropy if grads else token_losses)(x, weight, targets)
    assert len(made) == (6 if grads else 5)  # of 7 rows, of 8


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch():
    x, weight, targets = problem()
    linear_cross_entropy(x, weight, targets).backward()
    whole = weight.grad.clone()
    weight.grad = None
    for part in range(4):
        (linear_cross_entropy(x[part : part + 1], weight, targets[part : part + 1]) / 4).backward()
    assert (weight.grad - whole).abs().max() < 1e-6


@pytest.mark.usefixtures("rows_at_a_time")
def test_under_autocast_the_loss_is_float32_and_close():
    x, weight, targets = problem(scale=0.3)
    exact = linear_cross_entropy(x, weight, targets)
    wanted = torch.autograd.grad(exact, (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_cross_entropy(x, weight, targets)
    found = torch.autograd.grad(low, (x, weight))
    assert low.dtype == torch.float32
    assert low.item() != exact.item()  # it did run in bfloat16
    assert low.item() == pytest.approx(exact.item(), abs=5e-3)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 0.01


@pytest.mark.usefixtures("rows_at_a_time")
def test_token_losses_are_the_loss_token_by_token():
    x, weight, targets = problem()
    losses = token_losses(x, weight, targets)
    assert losses.shape == targets.shape
    assert losses.dtype == torch.float32
    assert not losses.requires_grad
    plain = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), reduction="none").view(4, 10)
    assert (losses - plain).abs().max() < 1e-5
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets).item() == pytest.approx(plain.mean().item(), rel=1e-6)


def test_under_autocast_only_the_product_is_rounded():
    x, weight, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(x, weight, targets)
        logits = x @ weight.T
    assert logits.dtype == torch.bfloat16
    plain = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(4, 10)
    assert (losses - plain).abs().max() < 1e-5


def test_an_impossible_token_costs_a_finite_loss():
    x, weight = torch.tensor([[[100.0]]], requires_grad=True), torch.tensor([[10.0], [-10.0]], requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(2000.0)
    loss.backward()
    assert weight.grad.flatten().tolist() == pytest.approx([100.0, -100.0])


def test_the_code_of_the_guide_runs_and_prints_what_it_says(capsys):
    guide = (Path(__file__).parents[2] / "docs" / "loss.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", guide, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for code, printed in blocks:
        exec(code, names)  # noqa: S102 - our own document
        assert capsys.readouterr().out == printed, code
