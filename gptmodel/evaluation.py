"""Evaluation as a step: a model and shards in; loss, perplexity and bits per byte, each document's share, and samples.

The split is read as the one stream that training reads, in windows of the model's context that do not overlap, so that
every token but the stream's first is predicted once. The first tokens of a window have little context: a sliding
window gives a lower perplexity, and other figures.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gptmodel.artifacts import Artifact, Request, Store, write_atomic
from gptmodel.config import DecodingConfig, EvaluateConfig, recipe
from gptmodel.errors import ConfigError, DataError
from gptmodel.tokenizer import gpt2
from gptmodel.tokenstream import TokenStream, open_split

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from gptmodel.model import GPT

log = logging.getLogger(__name__)
KIND = "evaluation"
RECIPE_VERSION = 1
Progress = Callable[[int, int, str], None]
Floats = npt.NDArray[np.float64]


def evaluate(
    store: Store,
    model: Artifact,
    shards: Artifact,
    config: EvaluateConfig,
    *,
    wait: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """Return (evaluation artifact, reused) of a checkpoint or imported weights on one split of the shards.

    Files: `evaluation.json`, `documents.parquet` (document, n_tokens, n_bytes, nats, loss), `samples.jsonl`.
    """
    request = Request(KIND, RECIPE_VERSION, recipe(config), (model.ref, shards.ref))

    def build(directory: Path) -> dict[str, Any]:
        from gptmodel.device import pick_device
        from gptmodel.weights import load_model

        gpt = load_model(model).to(pick_device("auto")).eval()
        stream = _stream(gpt, shards, config)
        nats = token_nats(gpt, stream, config, progress)
        figures = {**_figures(nats, stream), **unigram_baseline(open_split(shards, "train"), stream, len(nats))}
        write_atomic(directory / "evaluation.json", json.dumps(figures, indent=2) + "\n")
        pq.write_table(document_table(nats, stream), directory / "documents.parquet")
        samples = draw_samples(gpt, config)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_atomic(directory / "samples.jsonl", "".join(lines))
        return {**figures, "split": config.split, "samples": samples[:8]}

    return store.produce(request, build, wait=wait)


def _stream(model: GPT, shards: Artifact, config: EvaluateConfig) -> TokenStream:
    stream = open_split(shards, config.split)
    if stream.n_tokens < 2:
        raise DataError(f"the {config.split} split of {shards.label} has {stream.n_tokens} tokens; nothing to score")
    if (needed := shards.summary["tokenizer"]["vocab_size"]) > model.config.vocab_size:
        raise ConfigError(
            f"{shards.label} has ids up to {needed - 1:,} and the model knows {model.config.vocab_size:,} tokens; "
            "evaluate it on shards of its own vocabulary"
        )
    return stream


def token_nats(
    model: GPT, stream: TokenStream, config: EvaluateConfig, progress: Progress | None = None
) -> npt.NDArray[np.float32]:
    """Loss in nats of stream tokens 1, 2, …, in order: [n_tokens - 1], or the first max_tokens of them. In float32."""
    import torch

    context = model.config.context_length
    total = stream.n_tokens - 1
    if config.max_tokens:
        total = min(total, config.max_tokens)
    whole, found = total // context, []
    starts = [range(i, min(i + config.batch_size, whole)) for i in range(0, whole, config.batch_size)]
    with torch.no_grad():
        for rows in starts:
            tokens = stream.slice(rows.start * context, rows.stop * context + 1).astype(np.int64)
            n = len(rows)
            found.append(_score(model, tokens[:-1].reshape(n, context), tokens[1:].reshape(n, context)))
            if progress:
                progress(rows.stop * context, total, "tokens")
        if total % context:
            tail = stream.slice(whole * context, total + 1).astype(np.int64)
            found.append(_score(model, tail[None, :-1], tail[None, 1:]))
    return np.concatenate(found)


def _score(model: GPT, ids: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    import torch

    device = model.wte.weight.device
    losses = model.token_losses(torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device))
    result: npt.NDArray[np.float32] = losses.float().cpu().numpy().reshape(-1)
    return result


def _figures(nats: npt.NDArray[np.float32], stream: TokenStream) -> dict[str, Any]:
    targets = stream.slice(1, len(nats) + 1)
    total, n_bytes = float(nats.sum(dtype=np.float64)), int(gpt2().byte_lengths[targets].sum())
    loss = total / len(nats)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": total / math.log(2) / max(1, n_bytes),
        "tokens": len(nats),
        "bytes": n_bytes,
    }


def document_table(nats: npt.NDArray[np.float32], stream: TokenStream) -> pa.Table:
    """Each scored document's tokens, text bytes, nats and mean loss. A document's end token is its own."""
    index = stream.documents()
    # Token t of the stream has its loss at t - 1; the stream's first token has none.
    starts = np.maximum(index.starts - 1, 0)
    inside = starts < len(nats)
    starts = starts[inside]
    lengths = gpt2().byte_lengths[stream.slice(1, len(nats) + 1)]
    sums: Floats = np.add.reduceat(nats.astype(np.float64), starts)
    counts = np.diff(np.append(starts, len(nats)))
    return pa.table(
        {
            "document": pa.array(np.array(index.ids, dtype=object)[inside].tolist(), pa.string()),
            "n_tokens": counts,
            "n_bytes": np.add.reduceat(lengths, starts),
            "nats": sums,
            "loss": sums / counts,
        }
    )


def unigram_baseline(train: TokenStream, scored: TokenStream, n_tokens: int) -> dict[str, float]:
    """Loss of guessing each token by its share of the training tokens, with one added to every count.

    What a model must beat before it has learned anything about order.
    """
    vocab_size = gpt2().vocab_size
    counts = np.ones(vocab_size, np.float64)
    step = 1 << 24
    for start in range(0, train.n_tokens, step):
        part = train.slice(start, min(start + step, train.n_tokens))
        counts += np.bincount(part, minlength=vocab_size)
    log_probs = np.log(counts / counts.sum())
    loss = float(-log_probs[scored.slice(1, n_tokens + 1)].mean())
    return {"unigram_loss": loss, "unigram_perplexity": math.exp(loss)}


def draw_samples(model: GPT, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Every prompt continued by every decoding."""
    from gptmodel.generate import generate

    tokenizer = gpt2()
    return [
        {
            "prompt": prompt,
            "text": tokenizer.decode(generate(model, tokenizer.encode(prompt).tolist(), decoding=decoding)),
            "decoding": decoding_name(decoding),
            **asdict(decoding),
        }
        for prompt in config.prompts
        for decoding in config.decodings
    ]


def decoding_name(decoding: DecodingConfig) -> str:
    """Short name of a decoding, such as `greedy` or `temperature 0.8, top-k 50`."""
    if decoding.temperature == 0:
        return "greedy"
    parts = [f"temperature {decoding.temperature:g}"]
    parts += [f"top-k {decoding.top_k}"] if decoding.top_k else []
    parts += [f"top-p {decoding.top_p:g}"] if decoding.top_p < 1 else []
    return ", ".join(parts)
