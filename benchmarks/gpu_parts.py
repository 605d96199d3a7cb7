"""What `benchmarks.gpu` measures besides steps: the machine, products and kernels, Muon against AdamW, writing."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import curves
from benchmarks.machine import machine, spread
from gptmodel.config import (
    GPT2_VOCAB_SIZE,
    CorpusConfig,
    DecodingConfig,
    ModelConfig,
    PipelineConfig,
    ShardsConfig,
)
from gptmodel.generate import generate_batch
from gptmodel.model import GPT
from gptmodel.padded_head import padded_cross_entropy
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards

Row = dict[str, Any]
Named = Iterator[tuple[str, Callable[[], Row]]]
_PROMPT = 64  # tokens
_TINY = ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=128)
_RATES = (1e-3, 3e-3)  # peak learning rates that both optimizers are tried with


def seconds_of(call: Callable[[], object], device: str, rounds: int = 10) -> list[float]:
    """Of each of so many calls after three to warm up; a GPU is waited for before and after each."""
    found = []
    for number in range(rounds + 3):
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            found.append(time.perf_counter() - began)
    return found


def the_machine(given: argparse.Namespace) -> Named:
    """The environment, and what its matrix products, attentions and heads reach in bfloat16."""
    sizes = (64, 128) if given.tiny else (4096, 8192, 16384)
    yield "environment", lambda: {"machine": environment(given)}
    for n in sizes:
        yield f"product {n} x {n} x {n}", lambda n=n: product(n, n, n, given)  # type: ignore[misc]
    rows, width = (64, 64) if given.tiny else (8192, 768)
    for vocabulary in (GPT2_VOCAB_SIZE, -(-GPT2_VOCAB_SIZE // 128) * 128):
        yield (
            f"product {rows} x {width} x {vocabulary}",
            lambda v=vocabulary: product(rows, width, v, given),  # type: ignore[misc]
        )
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        yield f"attention, {backend.lower()}", lambda b=backend: attention(b, given)  # type: ignore[misc]
    for name in ("plain", "padded", "padded, compiled"):
        if not (given.tiny and "compiled" in name):
            yield f"head, {name}", lambda n=name: head(n, given)  # type: ignore[misc]


def environment(given: argparse.Namespace) -> Row:
    """Versions, processor and GPU."""
    found = machine("triton", "transformers")
    if given.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        asked = [
            "nvidia-smi",
            "--query-gpu=driver_version,power.limit,clocks.max.sm",
            "--format=csv,noheader",
            "--id=0",
        ]
        there = shutil.which(asked[0]) is not None
        driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if there else "no nvidia-smi"
        found["gpu"] = {
            "name": about.name,
            "memory_bytes": about.total_memory,
            "multiprocessors": about.multi_processor_count,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver, power limit, highest clock": driver,
        }
    return found


def product(rows: int, inner: int, columns: int, given: argparse.Namespace) -> Row:
    """`x @ w.T` as a layer makes it."""
    x, w = (torch.randn(n, inner, device=given.device, dtype=torch.bfloat16) for n in (rows, columns))
    seconds = spread(seconds_of(lambda: x @ w.T, given.device), 9)
    return {"seconds": seconds, "flops_per_second": 2 * rows * inner * columns / seconds["median"]}


def attention(backend: str, given: argparse.Namespace) -> Row:
    """Causal, forward and backward, GPT-2's 12 heads of 64."""
    B, T = (1, 64) if given.tiny else (16, 1024)
    qkv = torch.randn(3, B, 12, T, 64, device=given.device, dtype=torch.bfloat16, requires_grad=True)

    def call() -> None:
        with sdpa_kernel(SDPBackend.__members__[backend]):
            found = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        torch.autograd.grad(found, qkv, found)

    return {"seconds": spread(seconds_of(call, given.device), 9), "shape": [B, 12, T, 64]}


def head(name: str, given: argparse.Namespace) -> Row:
    """Head and cross-entropy, forward and backward: torch's own with all logits, and this project's."""
    rows, width = (64, 64) if given.tiny else (16 * 1024, 768)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=draw).to(given.device).requires_grad_()
    weight = (0.02 * torch.randn(GPT2_VOCAB_SIZE, width, generator=draw)).to(given.device).requires_grad_()
    targets = torch.randint(GPT2_VOCAB_SIZE, (rows,), generator=draw).to(given.device)

    def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), targets)

    ours = torch.compile(padded_cross_entropy, dynamic=False) if "compiled" in name else padded_cross_entropy
    loss_of = plain if name == "plain" else ours
    losses = []

    def call() -> None:
        with torch.autocast(given.device, torch.bfloat16):
            loss = loss_of(x, weight, targets)
        torch.autograd.grad(loss, (x, weight))
        losses.append(loss.detach())

    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = spread(seconds_of(call, given.device), 9)
    memory = {"peak_memory_bytes": torch.cuda.max_memory_allocated()} if given.device == "cuda" else {}
    return {"seconds": seconds, "rows": rows, "loss": float(losses[-1]), **memory}


def race(given: argparse.Namespace) -> Named:
    """Validation losses of AdamW and Muon by step, in real trainings, and when Muon has AdamW's last one."""
    folder = tempfile.TemporaryDirectory()
    made: dict[str, tuple[dict[int, float], float]] = {}
    data: list[tuple[Store, Artifact]] = []

    def train(kind: str, rate: float) -> Row:
        if not data:
            data.append(_shards(Path(folder.name) / "store", given))
        began = time.perf_counter()
        found = curves.curve(*data[0], _racer(given, kind, rate))
        made[f"{kind} {rate:g}"] = found, time.perf_counter() - began
        return {"optimizer": kind, "learning_rate": rate, "validation_loss": found, "last": list(found.values())[-1]}

    def verdict() -> Row:
        if len({name.split()[0] for name in made}) < 2:
            return {"why": "it needs a training by each of the two"}
        best = {kind: min((v for v in made.items() if v[0].startswith(kind)), key=lambda v: list(v[1][0].values())[-1])
                for kind in ("adamw", "muon")}  # fmt: skip
        wanted = list(best["adamw"][1][0].values())[-1]
        reached = [step for step, loss in best["muon"][1][0].items() if loss <= wanted]
        told = {kind: name for kind, (name, _) in best.items()}
        return {
            **{f"best {kind}": name for kind, name in told.items()},
            "adamws_last_validation_loss": wanted,
            "steps": max(best["adamw"][1][0]),
            "muon_has_it_at_step": reached[0] if reached else -1,
        }

    for rate in _RATES[:1] if given.tiny else _RATES:
        for kind in ("adamw", "muon"):
            yield f"{kind}, learning rate {rate:g}", lambda k=kind, r=rate: train(k, r)  # type: ignore[misc]
        yield f"muon against adamw, rates up to {rate:g}", verdict


def _racer(given: argparse.Namespace, kind: str, rate: float) -> PipelineConfig:
    """30 M parameters (most of them the token table), 16 k tokens a step, on the embedded speeches."""
    layers, width, context, batch, steps = (1, 16, 32, 4, 4) if given.tiny else (6, 384, 256, 64, 300)
    return load_config(
        "smoke",
        sets=[
            f"corpus.source.first_year={2010 if given.tiny else 1790}",
            f"model.n_layer={layers}",
            f"model.n_head={layers}",
            f"model.n_embd={width}",
            f"model.context_length={context}",
            f"train.max_steps={steps}",
            f"train.batch_size={batch}",
            f"train.micro_batch_size={batch}",
            f"train.device={given.device}",
            "train.processes=1",
            "train.precision=bfloat16",
            f"train.optimizer.kind={kind}",
            f"train.optimizer.learning_rate={rate}",
            f"train.optimizer.warmup_steps={steps // 10}",
            f"train.eval_every={max(1, steps // 30)}",
            f"train.eval_tokens={1_024 if given.tiny else 131_072}",
            f"train.checkpoint_every={steps}",
            "train.sample_prompts=[]",
        ],
    )


def _shards(root: Path, given: argparse.Namespace) -> tuple[Store, Artifact]:
    store, asked = Store(root), _racer(given, "adamw", 1e-3)
    assert isinstance(asked.corpus, CorpusConfig)
    assert isinstance(asked.shards, ShardsConfig)
    corpus, _ = build_corpus(store, asked.corpus)
    return store, build_shards(store, corpus, asked.shards)[0]


def writing(given: argparse.Namespace) -> Named:
    """Greedy text from random weights after a prompt of 64 tokens, beside `transformers.generate` where that is."""
    models: list[tuple[GPT, Any]] = []
    name, tokens, rounds = ("small", 4, 1) if given.tiny else ("124m", 64, 3)

    def make(batch: int, decoding: str) -> Row:
        from benchmarks import generation  # which needs transformers

        if not models:
            models.append(generation.contestants(name))
        ours, theirs = (model.to(given.device) for model in models[0])
        draw = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(GPT2_VOCAB_SIZE, (batch, generation.PROMPT_TOKENS), generator=draw).to(given.device)
        asked = generation.DECODINGS[decoding]
        for warm in generation.writers(ours, theirs, ids_BT, asked, 4).values():
            warm()
        found = generation.race(generation.writers(ours, theirs, ids_BT, asked, tokens), rounds, tokens)
        clock = {who: [batch * 1e3 / ms for ms in all_ms["clock"]] for who, all_ms in found["all_ms"].items()}
        return {
            "model": name,
            "batch": batch,
            "tokens_per_second": spread(clock["gptflow"], 1),
            "transformers_tokens_per_second": spread(clock["transformers"], 1),
            "times_as_fast": found["times_as_fast"]["clock"],
            "same_tokens": found["same_tokens"],
        }

    def alone(batch: int) -> Row:
        model = GPT(_TINY if given.tiny else ModelConfig(), seed=0).eval().to(given.device)
        decoding = DecodingConfig(temperature=0.0, precision="bfloat16", max_new_tokens=tokens, stop_at_end_token=False)
        prompts = torch.randint(GPT2_VOCAB_SIZE, (batch, _PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
        seconds = seconds_of(lambda: generate_batch(model, prompts, decoding=decoding), given.device, rounds)
        return {"batch": batch, "tokens_per_second": spread([batch * tokens / s for s in seconds], 1)}

    for batch in (1, 8):
        yield f"batch {batch}, greedy, bfloat16, ours alone", lambda b=batch: alone(b)  # type: ignore[misc]
    for decoding in ("greedy",) if given.tiny else ("greedy, bfloat16", "greedy"):
        for batch in (8,) if given.tiny else (1, 8):
            yield f"batch {batch}, {decoding}", lambda b=batch, d=decoding: make(b, d)  # type: ignore[misc]


PARTS: dict[str, Callable[[argparse.Namespace], Named]] = {"machine": the_machine, "race": race, "writing": writing}
