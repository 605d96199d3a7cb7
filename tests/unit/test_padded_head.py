"""The padded head, the GPU's way forced on the processor too: no padding in loss, gradients or files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gptmodel import padded_head
from gptmodel.config import GPT2_VOCAB_SIZE, ModelConfig, OptimizerConfig
from gptmodel.loss import cross_entropy
from gptmodel.model import GPT
from gptmodel.padded_head import padded_cross_entropy
from gptmodel.training.optimizer import make_optimizer
from gptmodel.weights import WEIGHTS_FILE, load_model, read_header, save_model

SMALL = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8)


def problem(vocabulary: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(11)
    x_NC = (torch.randn(40, 16, generator=draw) * scale).requires_grad_()
    weight_VC = torch.randn(vocabulary, 16, generator=draw).requires_grad_()
    targets_N = torch.randint(vocabulary, (40,), generator=draw)
    targets_N[:2] = torch.tensor([0, vocabulary - 1])
    return x_NC, weight_VC, targets_N


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor takes the GPU's way through the head."""
    monkeypatch.setattr(padded_head, "_in_cache", padded_head._in_large_chunks)


@pytest.fixture(params=["processor", "gpu"])
def way(request: pytest.FixtureRequest) -> None:
    """Both ways to the same sums, on a processor."""
    if request.param == "gpu":
        request.getfixturevalue("on_gpu")


@pytest.fixture(params=[7, 40, 1000], ids="rows_{}".format)
def rows_at_a_time(request: pytest.FixtureRequest, way: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded_head, "_CHUNK_ROWS", request.param)
    monkeypatch.setattr(padded_head, "CHUNK_BYTES", request.param * 256 * 4)


@pytest.mark.parametrize("vocabulary", [211, 256], ids=["padded by 45", "a multiple of 128"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.usefixtures("rows_at_a_time")
def test_loss_and_gradients_equal_the_plain_ones(vocabulary: int, scale: float) -> None:
    x, weight, targets = problem(vocabulary, scale)
    plain = F.cross_entropy(x @ weight.T, targets)
    wanted = torch.autograd.grad(plain * 0.25, (x, weight))
    padded = padded_cross_entropy(x, weight, targets)
    found = torch.autograd.grad(padded * 0.25, (x, weight))  # scaled, as by gradient accumulation
    assert padded.item() == pytest.approx(plain.item(), rel=1e-6, abs=1e-6)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-6 * max(1.0, b.abs().max().item())


@pytest.mark.usefixtures("way")
def test_the_padding_gets_no_probability_where_all_logits_are_far_below_zero() -> None:
    x, weight = torch.ones(3, 16, requires_grad=True), torch.full((211, 16), -4.0, requires_grad=True)
    found = padded_cross_entropy(x, weight, torch.tensor([0, 5, 210]))  # zeros of the padding would win by e**64
    assert found.item() == pytest.approx(torch.tensor(211.0).log().item(), rel=1e-5)


@pytest.mark.usefixtures("rows_at_a_time")
def test_under_autocast_the_loss_is_float32_and_close() -> None:
    x, weight, targets = problem(211, 0.3)
    exact = padded_cross_entropy(x, weight, targets)
    wanted = torch.autograd.grad(exact, (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        low = padded_cross_entropy(x, weight, targets)
    found = torch.autograd.grad(low, (x, weight))
    assert (low.dtype, low.item() != exact.item()) == (torch.float32, True)  # it did run in bfloat16
    assert low.item() == pytest.approx(exact.item(), abs=5e-3)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 0.01


def trained(precision: torch.dtype, *, padded: bool) -> tuple[list[float], GPT]:
    model = GPT(SMALL, seed=1).train()
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=1e-2))
    draw, losses = torch.Generator().manual_seed(2), []
    for _ in range(4):
        ids_BT = torch.randint(GPT2_VOCAB_SIZE, (2, 9), generator=draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            inputs, targets = ids_BT[:, :-1], ids_BT[:, 1:]
            found = model(inputs, targets) if padded else cross_entropy(model(inputs), targets)
        torch.autograd.backward(found)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(found.item())
    return losses, model


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("precision", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_model_trained_on_gpt2s_vocabulary_is_the_unpadded_one(
    precision: torch.dtype, close: float, tmp_path: Path
) -> None:
    wanted, _ = trained(precision, padded=False)
    losses, model = trained(precision, padded=True)
    assert losses == pytest.approx(wanted, abs=close)
    save_model(model, tmp_path)
    assert read_header(tmp_path / WEIGHTS_FILE)["wte.weight"].shape == (GPT2_VOCAB_SIZE, SMALL.n_embd)
    assert load_model(tmp_path)(torch.tensor([[1, 2]])).shape == (1, 2, GPT2_VOCAB_SIZE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
@pytest.mark.usefixtures("on_gpu")
def test_the_compiler_makes_one_graph_of_it_that_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded_head, "_CHUNK_ROWS", 8)  # two chunks
    ids_BT = torch.randint(GPT2_VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(2))
    model = GPT(SMALL, seed=1).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}
    for name, module in (("plain", model), ("compiled", compiled)):
        result = module(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
        torch.autograd.backward(result)
        found[name] = result.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    assert found["compiled"][0] == pytest.approx(found["plain"][0], abs=1e-5)
    for name, gradient in found["plain"][1].items():
        assert (found["compiled"][1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
