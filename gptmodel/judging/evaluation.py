"""Evaluation as a step: a model and shards in; figures with intervals, each document's and source's share, samples.

The split is read as the one stream that training reads; `gptmodel.judging.scoring` tells how its tokens are scored.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from gptmodel.config import DecodingConfig, EvaluateConfig, recipe
from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.judging.bootstrap import interval, resampled
from gptmodel.judging.diversity import repetition
from gptmodel.judging.memorisation import remembered
from gptmodel.judging.scoring import Scores, score_tokens, stride_of
from gptmodel.judging.surprisal import SURPRISAL_FILE, as_json, read_documents
from gptmodel.judging.tables import document_table, origins, source_table
from gptmodel.judging.units import UNITS, Units, calibration_bins, save_units, units_of
from gptmodel.progress import Progress
from gptmodel.progress import progress as measured
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic
from gptmodel.store.space import evaluation_bytes
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import TokenStream, open_split

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from gptmodel.model import GPT

__all__ = ["Scores", "evaluate", "score_tokens"]

log = logging.getLogger(__name__)
KIND = "evaluation"
ARRIVALS = "arrivals"
# 1 had loss, perplexity and bits per byte, in windows that do not overlap, and each document's; 2 wrote its samples
# with the sums of the matrix products in another order; 3 took pieces of one text for documents of their own.
RECIPE_VERSION = 4


def evaluate(
    store: Store,
    model: Artifact,
    shards: Artifact,
    config: EvaluateConfig,
    *,
    since: Artifact | None = None,
    wait: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """Return (evaluation artifact, reused) of a checkpoint or imported weights on one split of the shards.

    With `since`, other shards, only documents that those do not have are scored: the arrivals. Its `split` is then
    called so in the summary.

    Files: `evaluation.json` (figures, their intervals, calibration), `documents.parquet`, `sources.parquet`,
    `units.parquet` (what the intervals were drawn from), `surprisal.json`, `samples.jsonl`, and `repetition.json`: how
    much the samples repeat themselves, each other, and the training text.
    """
    request = Request(KIND, RECIPE_VERSION, recipe(config), (model.ref, shards.ref, *([since.ref] if since else [])))

    def build(directory: Path) -> dict[str, Any]:
        from gptmodel.device import pick_device
        from gptmodel.weights import load_model

        gpt = load_model(model).to(pick_device("auto")).eval()
        stream = _stream(gpt, shards, config, since)
        with measured("scoring", unit="tokens") as meter:
            scores = score_tokens(gpt, stream, config, progress or meter)
        came_from, parents = origins(store, shards, config.split)
        documents = document_table(scores, stream, came_from, parents)
        pq.write_table(documents, directory / "documents.parquet")
        pq.write_table(source_table(documents, config), directory / "sources.parquet")
        # Held-out shards have no training text of their own: the model's is counted.
        counted = shards if shards.summary["train_tokens"] else trained_on(store, model, shards) or shards
        unigram_nats = unigram_losses(open_split(counted, "train"))[scores.targets]
        units = units_of(scores, stream.documents(), unigram_nats, config.calibration_bins, parents)
        save_units(units, directory / UNITS)
        told = {**figures(units, config), "stride": stride_of(config, gpt.config.context_length)}
        written = {**told, "calibration": calibration_bins(units)}
        write_atomic(directory / "evaluation.json", json.dumps(written, indent=2) + "\n")
        passages = read_documents(
            gpt, stream, came_from, passages=config.surprisal_passages, max_tokens=config.surprisal_tokens
        )
        write_atomic(directory / SURPRISAL_FILE, as_json(passages))
        samples, judged = judge_samples(draw_samples(gpt, config), trained_on(store, model, shards), config)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_atomic(directory / "samples.jsonl", "".join(lines))
        write_atomic(directory / "repetition.json", json.dumps(judged, indent=2) + "\n")
        return {**told, **judged, "split": ARRIVALS if since else config.split, "samples": samples[:8]}

    needed = evaluation_bytes(shards.summary[f"{config.split}_documents"])
    artifact, reused = store.produce(request, build, wait=wait, needed=needed)
    return artifact.verify(), reused  # no later step reads it, so it would be reused damaged


def _stream(model: GPT, shards: Artifact, config: EvaluateConfig, since: Artifact | None) -> TokenStream:
    stream = open_split(shards, config.split)
    if since is not None:
        stream = stream.picked(arrived(shards, since, config.split))
    if stream.n_tokens < 2:
        new = f" that is not in {since.label}" if since else ""
        raise DataError(
            f"the {config.split} split of {shards.label}{new} has {stream.n_tokens} tokens; nothing to score"
        )
    if (needed := shards.summary["tokenizer"]["vocab_size"]) > model.config.vocab_size:
        raise ConfigError(
            f"{shards.label} has ids up to {needed - 1:,} and the model knows {model.config.vocab_size:,} tokens; "
            "evaluate it on shards of its own vocabulary"
        )
    return stream


def arrived(shards: Artifact, since: Artifact, split: str = "validation") -> set[str]:
    """Ids of the documents of a split that other shards do not have in it."""
    new, old = (set(open_split(each, split, check=False).documents().ids) for each in (shards, since))
    return new - old


def figures(units: Units, config: EvaluateConfig) -> dict[str, Any]:
    """Every figure by its name, what was counted, `intervals` [low, high] of the figures, and how they were drawn."""
    counts = {name.removeprefix("n_"): int(units.columns[name].sum()) for name in ("n_tokens", "n_bytes", "n_chars")}
    resampling = {
        "unit": units.kind,
        "units": len(units.ids),
        "effective_units": units.effective,
        "resamples": config.resamples,
        "confidence": config.confidence,
        "seed": config.bootstrap_seed,
    }
    intervals: dict[str, tuple[float, float]] = {}
    if config.resamples and len(units.ids) > 1:
        drawn = units.figures_of(resampled(units.flat(), config.resamples, config.bootstrap_seed))
        intervals = {name: interval(values, units.effective, config.confidence) for name, values in drawn.items()}
    return {**units.figures(), **counts, "intervals": intervals, "resampling": resampling}


def unigram_losses(train: TokenStream) -> npt.NDArray[np.float64]:
    """Loss [vocab_size] of guessing each token by its share of the training tokens, with one added to every count.

    What a model must beat before it has learned anything about order.
    """
    vocab_size = gpt2().vocab_size
    counts = np.ones(vocab_size, np.float64)
    step = 1 << 24
    for start in range(0, train.n_tokens, step):
        part = train.slice(start, min(start + step, train.n_tokens))
        counts += np.bincount(part, minlength=vocab_size)
    losses: npt.NDArray[np.float64] = -np.log(counts / counts.sum())
    return losses


def draw_samples(model: GPT, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Every prompt continued by every decoding, `samples_per_prompt` times."""
    from gptmodel.writing import continue_texts

    samples = []
    total = len(config.prompts) * len(config.decodings) * config.samples_per_prompt
    with measured("writing samples", total, "samples") as meter:
        for prompt, decoding in product(config.prompts, config.decodings):
            for text in continue_texts(model, [prompt] * config.samples_per_prompt, decoding):
                told = {"prompt": prompt, "text": text, "decoding": decoding_name(decoding)}
                samples.append({**told, **asdict(decoding)})
                meter.add()
    return samples


def trained_on(store: Store, model: Artifact, shards: Artifact) -> Artifact | None:
    """The shards that the model was trained on, often those that it is judged on; None where they are not known here.

    That is so for imported weights, and for shards that the store has lost.
    """
    if shards.ref in model.request.inputs:
        return shards
    try:
        return store.input_of(model, "shards")
    except ArtifactError as error:
        log.warning("what %s has memorised is not measured: its training text is not here (%s)", model.label, error)
        return None


def judge_samples(
    samples: list[dict[str, Any]], trained: Artifact | None, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(samples, each with its longest passage of training text where that is known, figures of all)."""
    if not samples:
        return samples, {}
    figures = repetition(samples)
    if trained is None:
        return samples, figures
    train, validation = (open_split(trained, split) for split in ("train", "validation"))
    rows, told = remembered(samples, train, validation, config.memorised_tokens)
    return [{**sample, **row} for sample, row in zip(samples, rows, strict=True)], {**figures, **told}


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
    parts += [decoding.precision] if decoding.precision != "float32" else []
    return ", ".join(parts)
