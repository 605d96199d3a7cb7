"""Evaluation as a step: a model and shards in; loss, perplexity and bits per byte, each document's share, and samples.

The split is read as the one stream that training reads; `gptmodel.judging.scoring` tells how its tokens are scored.
"""

from __future__ import annotations

import json
import logging
import math
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
from gptmodel.judging.scoring import Progress, Scores, score_tokens, stride_of
from gptmodel.judging.surprisal import SURPRISAL_FILE, as_json, read_documents
from gptmodel.space import evaluation_bytes
from gptmodel.tokenizer import gpt2
from gptmodel.tokenstream import TokenStream, open_split

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from gptmodel.model import GPT

__all__ = ["Scores", "evaluate", "score_tokens"]

log = logging.getLogger(__name__)
KIND = "evaluation"
RECIPE_VERSION = 2  # 1 had loss, perplexity and bits per byte, in windows that do not overlap, and each document's


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

    Files: `evaluation.json`, `documents.parquet` (document, n_tokens, n_bytes, nats, loss), `surprisal.json`,
    `samples.jsonl`.
    """
    request = Request(KIND, RECIPE_VERSION, recipe(config), (model.ref, shards.ref))

    def build(directory: Path) -> dict[str, Any]:
        from gptmodel.device import pick_device
        from gptmodel.weights import load_model

        gpt = load_model(model).to(pick_device("auto")).eval()
        stream = _stream(gpt, shards, config)
        scores = score_tokens(gpt, stream, config, progress)
        stride = stride_of(config, gpt.config.context_length)
        figures = {
            **_figures(scores),
            "stride": stride,
            **unigram_baseline(open_split(shards, "train"), scores.targets),
        }
        write_atomic(directory / "evaluation.json", json.dumps(figures, indent=2) + "\n")
        pq.write_table(document_table(scores, stream), directory / "documents.parquet")
        passages = read_documents(
            gpt, stream, {}, passages=config.surprisal_passages, max_tokens=config.surprisal_tokens
        )
        write_atomic(directory / SURPRISAL_FILE, as_json(passages))
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


def _figures(scores: Scores) -> dict[str, Any]:
    n = len(scores.targets)
    total, plain = (float(nats.sum(dtype=np.float64)) for nats in (scores.nats, scores.plain_nats))
    n_bytes, n_chars = (int(counts[scores.targets].sum()) for counts in (gpt2().byte_lengths, gpt2().char_counts))
    return {
        "loss": total / n,
        "perplexity": _perplexity(total / n),
        "plain_loss": plain / n,
        "plain_perplexity": _perplexity(plain / n),
        "bits_per_byte": total / math.log(2) / max(1, n_bytes),
        "bits_per_char": total / math.log(2) / max(1, n_chars),
        "accuracy": float(scores.correct().mean()),
        "accuracy_at_5": float(scores.correct(5).mean()),
        "tokens": n,
        "bytes": n_bytes,
        "chars": n_chars,
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


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
    """Every prompt continued by every decoding, `samples_per_prompt` times."""
    from gptmodel.writing import continue_texts

    return [
        {"prompt": prompt, "text": text, "decoding": decoding_name(decoding), **asdict(decoding)}
        for prompt in config.prompts
        for decoding in config.decodings
        for text in continue_texts(model, [prompt] * config.samples_per_prompt, decoding)
    ]


def decoding_name(decoding: DecodingConfig) -> str:
    """Short name of a decoding, such as `greedy` or `temperature 0.8, top-k 50`."""
    if decoding.temperature == 0:
        parts = ["greedy"]  # no filter drops the likeliest token
    else:
        parts = [f"temperature {decoding.temperature:g}"]
        parts += [f"top-k {decoding.top_k}"] if decoding.top_k else []
        parts += [f"top-p {decoding.top_p:g}"] if decoding.top_p < 1 else []
        parts += [f"min-p {decoding.min_p:g}"] if decoding.min_p else []
    parts += [f"repetition penalty {decoding.repetition_penalty:g}"] if decoding.repetition_penalty != 1 else []
    return ", ".join(parts)
