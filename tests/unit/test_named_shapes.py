"""Every shape that OpenAI and Hugging Face published, on random weights, against transformers. Slow: up to 12 GB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptmodel.pretrained import load_pretrained

SHAPES = {
    "distilgpt2": (6, 12, 768),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    import transformers

    n_layer, n_head, n_embd = SHAPES[name]
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd, initializer_range=0.05)
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    ids_BT = torch.randint(50_257, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        worst = (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-4
