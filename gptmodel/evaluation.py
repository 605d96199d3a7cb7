"""Evaluation as a step: a model and shards in; loss, perplexity and bits per byte, each document's share, and samples.

The split is read as the one stream that training reads, in windows of the model's context that do not overlap, so that
every token but the stream's first is predicted once. The first tokens of a window have little context: a sliding
window gives a lower perplexity, and other figures.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gptmodel.artifacts import Artifact, Request, Store, write_atomic
from gptmodel.config import DecodingConfig, EvaluateConfig, recipe
from gptmodel.errors import ConfigError, DataError
from gptmodel.space import evaluation_bytes
from gptmodel.tokenizer import gpt2
from gptmodel.tokenstream import TokenStream, open_split

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from gptmodel.model import GPT

log = logging.getLogger(__name__)
KIND = "evaluation"
RECIPE_VERSION = 1
Progress = Callable[[int, int, str], None]


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
        scores = score_tokens(gpt, stream, config, progress)
        figures = {**_figures(scores), **unigram_baseline(open_split(shards, "train"), scores.targets)}
        write_atomic(directory / "evaluation.json", json.dumps(figures, indent=2) + "\n")
        pq.write_table(document_table(scores, stream), directory / "documents.parquet")
        samples = draw_samples(gpt, config)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_atomic(directory / "samples.jsonl", "".join(lines))
        return {**figures, "split": config.split, "samples": samples[:8]}

    needed = evaluation_bytes(shards.summary[f"{config.split}_documents"])
    artifact, reused = store.produce(request, build, wait=wait, needed=needed)
    return artifact.verify(), reused  # no later step reads it, so it would be reused damaged


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


@dataclass(frozen=True)
class Scores:
    """The scored tokens: `positions` in the stream, rising, the token at each, and its loss in `nats`."""

    positions: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    nats: npt.NDArray[np.float32]


def score_tokens(model: GPT, stream: TokenStream, config: EvaluateConfig, progress: Progress | None = None) -> Scores:
    """Losses of stream tokens 1, 2, … in float32; with max_tokens, of windows spread evenly over the stream."""
    import torch

    context, end = model.config.context_length, stream.n_tokens - 1
    starts = np.arange(0, end, context)
    if config.max_tokens and len(starts) > (wanted := max(1, config.max_tokens // context)):
        starts = starts[np.arange(wanted) * len(starts) // wanted]
    spans = [(int(start), min(int(start) + context, end)) for start in starts]
    targets, nats = [], []
    with torch.no_grad():
        for batch in _batches(spans, config.batch_size):
            rows = np.stack([stream.slice(start, stop + 1).astype(np.int64) for start, stop in batch])
            targets.append(rows[:, 1:].reshape(-1))
            nats.append(_score(model, rows[:, :-1], rows[:, 1:]))
            if progress:
                progress(sum(map(len, nats)), sum(stop - start for start, stop in spans), "tokens")
    positions = np.concatenate([np.arange(start + 1, stop + 1) for start, stop in spans])
    return Scores(positions, np.concatenate(targets), np.concatenate(nats))


def _batches(spans: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Spans of one length together; only the stream's last may be shorter."""
    whole = [span for span in spans if span[1] - span[0] == spans[0][1] - spans[0][0]]
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
    if len(whole) < len(spans):
        yield spans[-1:]


def _score(model: GPT, ids: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    import torch

    device = model.wte.weight.device
    losses = model.token_losses(torch.from_numpy(ids.copy()).to(device), torch.from_numpy(targets.copy()).to(device))
    result: npt.NDArray[np.float32] = losses.float().cpu().numpy().reshape(-1)
    return result


def _figures(scores: Scores) -> dict[str, Any]:
    total, n_bytes = float(scores.nats.sum(dtype=np.float64)), int(gpt2().byte_lengths[scores.targets].sum())
    loss = total / len(scores.targets)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": total / math.log(2) / max(1, n_bytes),
        "tokens": len(scores.targets),
        "bytes": n_bytes,
    }


def document_table(scores: Scores, stream: TokenStream) -> pa.Table:
    """Each document's scored tokens, their text bytes, nats and mean loss. A document's end token is its own."""
    index = stream.documents()
    owner = np.searchsorted(index.starts, scores.positions, side="right") - 1
    lengths = gpt2().byte_lengths[scores.targets]
    n = len(index.ids)
    counts = np.bincount(owner, minlength=n)
    scored = counts > 0
    nats = np.bincount(owner, scores.nats.astype(np.float64), minlength=n)[scored]
    return pa.table(
        {
            "document": pa.array([d for d, s in zip(index.ids, scored, strict=True) if s], pa.string()),
            "n_tokens": counts[scored],
            "n_bytes": np.bincount(owner, lengths, minlength=n)[scored].astype(np.int64),
            "nats": nats,
            "loss": nats / counts[scored],
        }
    )


def unigram_baseline(train: TokenStream, targets: npt.NDArray[np.int64]) -> dict[str, float]:
    """Loss of guessing each token by its share of the training tokens, with one added to every count.

    What a model must beat before it has learned anything about order.
    """
    vocab_size = gpt2().vocab_size
    counts = np.ones(vocab_size, np.float64)
    step = 1 << 24
    for start in range(0, train.n_tokens, step):
        part = train.slice(start, min(start + step, train.n_tokens))
        counts += np.bincount(part, minlength=vocab_size)
    loss = float(-np.log(counts / counts.sum())[targets].mean())
    return {"unigram_loss": loss, "unigram_perplexity": math.exp(loss)}


def draw_samples(model: GPT, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Every prompt continued by every decoding."""
    from gptmodel.writing import continue_text

    return [
        {
            "prompt": prompt,
            "text": continue_text(model, prompt, decoding),
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
