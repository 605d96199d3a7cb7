"""Attention in blocks against torch's own: outputs, gradients, and when the model takes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from gptmodel import attention, model
from gptmodel.attention import causal_attention
from gptmodel.config import ModelConfig
from gptmodel.model import GPT

B, T, H, D = 2, 20, 3, 8


def torchs(qkv: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, H * D)


def both(function, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradient, from the same numbers, in float64."""
    draw = torch.Generator().manual_seed(4)
    qkv = torch.randn(B, T, 3 * H * D, generator=draw).bfloat16().to(dtype).requires_grad_()
    weights = torch.randn(B, T, H * D, generator=draw).bfloat16().to(dtype)
    out = function(qkv)
    out.backward(weights)
    return [out.detach().double(), qkv.grad.double()]


@pytest.mark.parametrize("block", [7, 10, 64])
def test_blocks_of_any_size_equal_torchs_own(monkeypatch, block):
    monkeypatch.setattr(attention, "_BLOCK", block)
    torch.testing.assert_close(both(lambda x: causal_attention(x, H), torch.float64), both(torchs, torch.float64))


def test_in_bfloat16_it_rounds_about_as_much_as_torchs_own():
    exact = both(torchs, torch.float64)
    ours, theirs = both(lambda x: causal_attention(x, H), torch.bfloat16), both(torchs, torch.bfloat16)
    for number in (0, 1):
        error, usual = (float((found[number] - exact[number]).norm()) for found in (ours, theirs))
        assert 0 < error < 1.6 * usual


def test_the_model_takes_it_to_train_in_bfloat16_and_never_with_dropout(monkeypatch):
    calls = []

    def spy(qkv, n_head):
        calls.append(qkv.dtype)
        return causal_attention(qkv, n_head)

    monkeypatch.setattr(model, "causal_attention", spy)
    ids = torch.zeros(1, 8, dtype=torch.long)
    sizes = {"vocab_size": 11, "context_length": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    plain, dropping = (GPT(ModelConfig(**sizes, dropout=share), seed=1).train() for share in (0.0, 0.1))
    plain(ids, ids)
    with torch.autocast("cpu", torch.bfloat16):
        dropping(ids, ids)
        with torch.no_grad():
            plain(ids, ids)
        assert not calls
        plain(ids, ids).backward()
    assert calls == [torch.bfloat16]
    assert float(plain.blocks[0].attn.qkv.weight.grad.norm()) > 0
