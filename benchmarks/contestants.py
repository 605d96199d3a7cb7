"""One contestant of the training-step race, in a process of its own: a step for each line on standard input.

    python -m benchmarks.contestants nanogpt --sizes 12 12 768 4 256 --dtype float32 --nanogpt PATH

Answers each line with the step's loss, wall and processor seconds as JSON, and the end of the input with its peak
memory. Everyone starts from the same weights, with positions of zero, since litgpt's GPT has no learned ones. Each
does what its own training script does in a step: its loss, its clipping, its optimizer's kernel. Imports little, so
that it runs in the peers' environment.

Sizes: layers, heads, width, sequences, tokens in each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gptmodel.config import GPT2_VOCAB_SIZE, ModelConfig, OptimizerConfig
from gptmodel.model import GPT
from gptmodel.resident import peak_resident_bytes
from gptmodel.training.optimizer import make_optimizer

_RATE = 6e-4


@dataclass
class Contestant:
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    clip: Callable[[], object]


def ours(config: ModelConfig, weights: dict[str, Tensor], _: str) -> Contestant:
    from gptmodel.training.seen import clip_gradients

    torch.set_float32_matmul_precision("medium")  # as gptmodel.device does
    model = GPT(config, seed=0)
    model.load_state_dict(weights)
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=_RATE))
    return Contestant(model, model, optimizer, lambda: clip_gradients(model, 1.0))


def nanogpt(config: ModelConfig, weights: dict[str, Tensor], path: str) -> Contestant:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "bias": True}
    model = module.GPT(module.GPTConfig(block_size=config.context_length, vocab_size=config.vocab_size, **sizes))
    names = _hugging_face_names(config)
    model.load_state_dict({"lm_head.weight": weights["wte.weight"], **{n: weights[ours] for n, ours in names.items()}})
    optimizer = model.configure_optimizers(0.1, _RATE, (0.9, 0.95), "cpu")
    return Contestant(model, lambda x, y: model(x, y)[1], optimizer, _clip(model))


def transformers(config: ModelConfig, weights: dict[str, Tensor], _: str) -> Contestant:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=config.vocab_size, n_positions=config.context_length, **sizes, **none)
    )
    transposed = ("attn.qkv.weight", "attn.proj.weight", "mlp.up.weight", "mlp.down.weight")
    names = _hugging_face_names(config)
    given = {n: weights[ours].T if ours.endswith(transposed) else weights[ours] for n, ours in names.items()}
    missing, unknown = model.load_state_dict(given, strict=False)
    assert (set(missing), unknown) == ({"lm_head.weight"}, [])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1, fused=True)  # its Trainer's default
    return Contestant(
        model, lambda x, y: model(x, labels=y, shift_labels=y, use_cache=False).loss, optimizer, _clip(model)
    )


def book(config: ModelConfig, weights: dict[str, Tensor], _: str) -> Contestant:
    from llms_from_scratch.ch04 import GPTModel

    sizes = {"emb_dim": config.n_embd, "n_heads": config.n_head, "n_layers": config.n_layer}
    more = {"context_length": config.context_length, "drop_rate": 0.0, "qkv_bias": True}
    model = GPTModel({"vocab_size": config.vocab_size, **sizes, **more})
    given = {
        "tok_emb.weight": weights["wte.weight"],
        "out_head.weight": weights["wte.weight"].clone(),  # untied there
        "pos_emb.weight": weights["wpe.weight"],
        "final_norm.scale": weights["ln_f.weight"],
        "final_norm.shift": weights["ln_f.bias"],
    }
    for layer in range(config.n_layer):
        there, here = f"trf_blocks.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            parts = weights[f"{here}attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("W_query", "W_key", "W_value"), parts, strict=True):
                given[f"{there}att.{name}.{kind}"] = part
            given[f"{there}att.out_proj.{kind}"] = weights[f"{here}attn.proj.{kind}"]
            given[f"{there}ff.layers.0.{kind}"] = weights[f"{here}mlp.up.{kind}"]
            given[f"{there}ff.layers.2.{kind}"] = weights[f"{here}mlp.down.{kind}"]
        for number in (1, 2):
            given[f"{there}norm{number}.scale"] = weights[f"{here}ln_{number}.weight"]
            given[f"{there}norm{number}.shift"] = weights[f"{here}ln_{number}.bias"]
    missing, unknown = model.load_state_dict(given, strict=False)
    assert (all(name.endswith("mask") for name in missing), unknown) == (True, [])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1)
    return Contestant(model, lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), optimizer, lambda: None)


def litgpt(config: ModelConfig, weights: dict[str, Tensor], _: str) -> Contestant:
    from litgpt import GPT as LitGPT  # noqa: N811
    from litgpt import Config
    from litgpt.utils import chunked_cross_entropy

    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "attn_bias": True}
    model = LitGPT(
        Config(
            block_size=config.context_length,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            rotary_percentage=0.0,
            parallel_residual=False,
            gelu_approximate="tanh",
            **sizes,
        )
    )
    wte = weights["wte.weight"]
    given = {"transformer.wte.weight": wte, "lm_head.weight": wte.clone()}  # untied there
    for kind in ("weight", "bias"):
        given[f"transformer.ln_f.{kind}"] = weights[f"ln_f.{kind}"]
        for layer in range(config.n_layer):
            there, here = f"transformer.h.{layer}.", f"blocks.{layer}."
            names = {
                "norm_1": "ln_1",
                "norm_2": "ln_2",
                "attn.qkv": "attn.qkv",
                "attn.proj": "attn.proj",
                "mlp.fc": "mlp.up",
                "mlp.proj": "mlp.down",
            }
            given |= {f"{there}{n}.{kind}": weights[f"{here}{ours}.{kind}"] for n, ours in names.items()}
    model.load_state_dict(given)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    return Contestant(model, lambda x, y: chunked_cross_entropy(model(x), y), optimizer, _clip(model))


CONTESTANTS: dict[str, Callable[[ModelConfig, dict[str, Tensor], str], Contestant]] = {
    "ours": ours,
    "nanogpt": nanogpt,
    "transformers": transformers,
    "book": book,
    "litgpt": litgpt,
}


def _clip(model: nn.Module) -> Callable[[], object]:
    return lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def _hugging_face_names(config: ModelConfig) -> dict[str, str]:
    """nanoGPT's and transformers' name of each parameter, and ours."""
    inside = {
        "ln_1": "ln_1",
        "ln_2": "ln_2",
        "attn.c_attn": "attn.qkv",
        "attn.c_proj": "attn.proj",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    names = {f"transformer.{n}.weight": f"{n}.weight" for n in ("wte", "wpe")}
    for kind in ("weight", "bias"):
        names[f"transformer.ln_f.{kind}"] = f"ln_f.{kind}"
        for layer in range(config.n_layer):
            names |= {
                f"transformer.h.{layer}.{n}.{kind}": f"blocks.{layer}.{ours}.{kind}" for n, ours in inside.items()
            }
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=CONTESTANTS)
    parser.add_argument("--sizes", type=int, nargs=5, required=True)
    parser.add_argument("--vocab", type=int, default=GPT2_VOCAB_SIZE)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--nanogpt", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    L, H, C, B, T = given.sizes
    config = ModelConfig(vocab_size=given.vocab, context_length=T, n_layer=L, n_head=H, n_embd=C)
    weights = {name: tensor.detach() for name, tensor in GPT(config, seed=0).state_dict().items()}
    weights["wpe.weight"].zero_()
    contestant = CONTESTANTS[given.who](config, weights, given.nanogpt)
    del weights
    contestant.model.train()
    print(json.dumps({"parameters": sum(p.numel() for p in contestant.model.parameters())}), flush=True)
    draw = torch.Generator().manual_seed(1)
    for _ in sys.stdin:
        ids = torch.randint(given.vocab, (B, T + 1), generator=draw)
        print(json.dumps(_step(contestant, ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), given.dtype)), flush=True)
    print(json.dumps({"peak_bytes": peak_resident_bytes()}), flush=True)


def _step(contestant: Contestant, x: Tensor, y: Tensor, dtype: str) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        loss = contestant.loss(x, y)
    torch.autograd.backward(loss)
    contestant.clip()
    contestant.optimizer.step()
    contestant.optimizer.zero_grad(set_to_none=True)
    return {"loss": float(loss.detach()), "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
