"""Each document's and each source's share of an evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gptmodel.config import EvaluateConfig
from gptmodel.errors import ArtifactError
from gptmodel.judging.bootstrap import effective_units, interval, resampled, summed
from gptmodel.judging.scoring import Scores
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.names import file_of, parent_of
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import TokenStream

log = logging.getLogger(__name__)
_LOG_2 = math.log(2)


def origins(store: Store, shards: Artifact, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """(source, text that it is a piece of) of documents of a split by their ids, as the corpus has them.

    Whole documents are no piece. Nothing if the corpus is gone.
    """
    try:
        corpus = store.input_of(shards, "corpus")
        names = corpus.names(suffix=".parquet", prefix="documents-")
        # Shards of one side have documents of another split than the corpus has them in.
        sided = shards.request.config.get("side", "all") != "all"
        picked = None if sided else [("split", "=", split)]
        found: dict[str, str] = {}
        for name in names:
            table = pq.read_table(corpus.file(name), columns=["id", "source"], filters=picked)
            found |= zip(table.column("id").to_pylist(), table.column("source").to_pylist(), strict=True)
        pieces = {i: parent_of(source, corpus.request.config["source"]) for i, source in found.items()}
        return found, {i: text for i, text in pieces.items() if text}
    except ArtifactError as error:
        log.warning(
            "the evaluation names no sources, and counts pieces of a text singly, since the corpus of %s is not to be "
            "had: %s",
            shards.label,
            error,
        )
        return {}, {}


def document_table(
    scores: Scores, stream: TokenStream, came_from: Mapping[str, str], parents: Mapping[str, str] | None = None
) -> pa.Table:
    """Each document's scored tokens, their text, nats and figures. A document's end token is its own.

    `parent` is the text that it is a piece of, or its own id.
    """
    index = stream.documents()
    owner = np.searchsorted(index.starts, scores.positions, side="right") - 1
    n = len(index.ids)
    scored = np.flatnonzero(np.bincount(owner, minlength=n))

    def total(values: npt.ArrayLike | None, kind: type = np.float64) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = np.bincount(owner, values, minlength=n)[scored].astype(kind)
        return found

    ids = [index.ids[i] for i in scored]
    return _with_figures(
        {
            "document": pa.array(ids, pa.string()),
            "source": pa.array([came_from.get(document, "") for document in ids], pa.string()),
            "parent": pa.array([(parents or {}).get(document, document) for document in ids], pa.string()),
            "n_tokens": total(None, np.int64),
            "n_bytes": total(gpt2().byte_lengths[scores.targets], np.int64),
            "n_chars": total(gpt2().char_counts[scores.targets], np.int64),
            "nats": total(scores.nats),
            "plain_nats": total(scores.plain_nats),
            "correct": total(scores.correct(), np.int64),
        }
    )


def source_table(documents: pa.Table, config: EvaluateConfig) -> pa.Table:
    """The same for each source, the hardest first, with an interval of the loss where it has several texts.

    A source is a file or a dataset; the number of a row in it, or of a piece, is left out of its name.
    """
    names = [file_of(name) for name in documents.column("source").to_pylist()]
    sources, owner = np.unique(np.array(names, dtype=object), return_inverse=True)
    counted = ("n_tokens", "n_bytes", "n_chars", "nats", "plain_nats", "correct")
    columns = {name: documents.column(name).to_numpy() for name in counted}
    n = len(sources)
    sums = {name: np.bincount(owner, part, minlength=n).astype(part.dtype) for name, part in columns.items()}
    per_document = np.stack([columns["nats"], columns["n_tokens"]], axis=1).astype(np.float64)
    parents = np.array(documents.column("parent").to_pylist(), dtype=object)
    parts = zip(_parts(per_document, owner, n), _parts(parents, owner, n), strict=True)
    bounds = [_loss_interval(summed(part, texts), config) for part, texts in parts]
    table = _with_figures(
        {
            "source": pa.array(sources, pa.string()),
            "documents": np.bincount(owner, minlength=n).astype(np.int64),
            **sums,
        }
    )
    for name, side in (("loss_low", 0), ("loss_high", 1)):
        table = table.append_column(name, pa.array([bound and bound[side] for bound in bounds], pa.float64()))
    return table.sort_by([("loss", "descending"), ("source", "ascending")])


def _parts(rows: npt.NDArray[Any], owner: npt.NDArray[np.intp], n: int) -> list[npt.NDArray[Any]]:
    order = np.argsort(owner, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(owner, minlength=n))[:-1])


def _loss_interval(nats_and_tokens: npt.NDArray[np.float64], config: EvaluateConfig) -> tuple[float, float] | None:
    if len(nats_and_tokens) < 2 or not config.resamples:
        return None
    sums = resampled(nats_and_tokens, config.resamples, config.bootstrap_seed)
    effective = effective_units(nats_and_tokens[:, 1])
    return interval(sums[:, 0] / sums[:, 1], effective, config.confidence)


def _with_figures(columns: dict[str, pa.Array | npt.NDArray[np.float64]]) -> pa.Table:
    n = np.asarray(columns["n_tokens"])
    nats = np.asarray(columns["nats"])
    loss = nats / n
    return pa.table(
        {
            **columns,
            "loss": loss,
            "perplexity": np.exp(np.minimum(loss, 700.0)),
            "bits_per_byte": nats / _LOG_2 / np.maximum(np.asarray(columns["n_bytes"]), 1),
            "accuracy": np.asarray(columns["correct"]) / n,
        }
    )
