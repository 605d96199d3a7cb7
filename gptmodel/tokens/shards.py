"""Documents in, token shards out: one Arrow IPC file of uint16 ids a shard, made in parallel, restarted where it was.

A shard is one record batch. Its columns are document (id), part (0, or the number of the part where a large document
goes on from the shard before) and tokens (a list of uint16). The list's values are the shard's token stream as it is
trained on, end tokens included, and its offsets are the document boundaries. Read them through `open_split`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent import futures
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gptmodel.config import ShardsConfig, recipe
from gptmodel.errors import ArtifactError, DataError
from gptmodel.progress import Progress
from gptmodel.store.artifacts import SCRATCH, Artifact, Request, Store, fsync_path, sha256_file, write_atomic
from gptmodel.store.space import shards_bytes
from gptmodel.store.uses import using
from gptmodel.text.sides import documents_of, keeps_texts_whole
from gptmodel.tokenizer import Tokenizer, Tokens, gpt2
from gptmodel.tokens.encoder import CHECK_EVERY, Encoder, encoder
from gptmodel.tokens.known_tokens import KnownTokens, find_known
from gptmodel.tokens.shardplan import SPLITS, Part, ShardPlan, plan_shards
from gptmodel.tokens.tokenstream import DocumentIndex, TokenStream, open_split

__all__ = ["DocumentIndex", "TokenStream", "build_shards", "open_split", "shards_request"]

log = logging.getLogger(__name__)
_RECIPE_VERSION = 1
NO_SETTINGS = ("tokenizer_digest", "split_by")
"""What a manifest records beside the settings, since it decides the bytes too."""


def shards_request(corpus: Artifact, config: ShardsConfig) -> Request:
    """What `build_shards` asks the store for."""
    settings = {**recipe(config), "tokenizer_digest": gpt2().digest}
    if config.side == "training" and keeps_texts_whole(corpus):
        settings["split_by"] = "text"  # the same documents may come of a corpus that does not
    return Request("shards", _RECIPE_VERSION, settings, (corpus.ref,))


def build_shards(
    store: Store, corpus: Artifact, config: ShardsConfig, *, wait: bool = False, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """(shards artifact, reused) of all documents, or of one side of the corpus.

    After a crash, shards that were finished are kept and not made again.

    Documents that earlier shards of the store hold are not tokenized again: see `known_tokens`. The files are the same
    to the byte either way.

    `progress` gets bytes of text. Besides the corpus's own errors: DataError for text that cannot be tokenized, and for
    a corpus without documents; LockHeldError if another process builds the same and not `wait`.
    """
    if corpus.kind != "corpus":
        raise ArtifactError(f"{corpus.label} is of kind {corpus.kind}; shards are made from a corpus")

    asked = shards_request(corpus, config)

    def build(directory: Path) -> dict[str, Any]:
        plans = plan_shards(documents_of(corpus, config), config.shard_bytes)
        known = find_known(store, corpus, asked, gpt2(), shard_schema(gpt2()))
        with using(store.root, known.labels) if known.labels else nullcontext():
            done = _make_all(plans, directory, known, config, _total_bytes(corpus), progress)
        if not done:
            raise DataError(f"{corpus.label} has no documents; nothing to tokenize")
        for stray in set(directory.glob("*.arrow")) - {directory / name for name in done}:
            stray.unlink()  # of another plan, left by an older version that was stopped here
        return _summary(done, gpt2())

    needed = shards_bytes(_total_bytes(corpus))
    return store.produce(asked, build, wait=wait, needed=needed)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _total_bytes(corpus: Artifact) -> int:
    figures = [corpus.summary.get(f"{split}_bytes") for split in SPLITS]
    return sum(f for f in figures if isinstance(f, int))


def _make_all(
    plans: Iterator[ShardPlan],
    directory: Path,
    known: KnownTokens,
    config: ShardsConfig,
    total: int,
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    """Figures of every shard by file name. Holds the text of at most workers + 2 shards at a time."""
    scratch = directory / SCRATCH
    scratch.mkdir(exist_ok=True)
    workers, encode = config.workers or _cores(), encoder(config.encoder)
    log.info("tokens by %s", encode.name)
    running: set[futures.Future[dict[str, Any]]] = set()
    done: dict[str, dict[str, Any]] = {}

    def collect(finished: Iterable[futures.Future[dict[str, Any]]]) -> None:
        for future in finished:
            figures = future.result()
            done[figures["name"]] = figures
            if progress is not None:
                progress(sum(f["bytes"] for f in done.values()), total, "bytes")

    # Threads: encoders work outside the interpreter lock.
    with futures.ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        try:
            for plan in plans:
                running.add(pool.submit(_make, plan, directory, known, encode))
                if len(running) > workers:
                    finished, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                    collect(finished)
            collect(futures.as_completed(running))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _make(plan: ShardPlan, directory: Path, known: KnownTokens, encode: Encoder) -> dict[str, Any]:
    """Write one shard, or find that it is already there; the sidecar beside it is written last and says so."""
    path, sidecar = directory / plan.name, directory / SCRATCH / f"{plan.name}.json"
    if (figures := _finished(path, sidecar, plan.key)) is not None:
        log.info("%s is already there", plan.name)
        # An older version's sidecar does not say what it tokenized: it was all.
        return {**_work_done(plan, [None] * len(plan.parts)), **figures}
    taken = known.tokens_of(plan.parts)
    table = _record_batch(plan, taken, encode)
    temporary = directory / SCRATCH / plan.name
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
        fsync_path(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk should not stay full of halves
        raise
    figures = {
        "name": plan.name,
        "plan": plan.key,
        "sha256": sha256_file(temporary),
        "split": plan.split,
        "tokens": len(table.column("tokens").values),
        "documents": sum(part.last for part in plan.parts),
        "bytes": plan.n_bytes,
        **_work_done(plan, taken),
    }
    os.replace(temporary, path)
    fsync_path(directory)
    write_atomic(sidecar, json.dumps(figures))
    return figures


def _finished(path: Path, sidecar: Path, key: str) -> dict[str, Any] | None:
    try:
        figures: dict[str, Any] = json.loads(sidecar.read_text())
        if figures["plan"] == key and figures["sha256"] == sha256_file(path):
            return figures
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: make it
    return None


def _work_done(plan: ShardPlan, taken: list[Tokens | None]) -> dict[str, Any]:
    """What was tokenized here: bytes, whole documents, and the ids of those of which this shard has a part."""
    made = [part for part, tokens in zip(plan.parts, taken, strict=True) if tokens is None]
    return {
        "tokenized_bytes": sum(part.n_bytes for part in made),
        "tokenized_documents": sum(part.whole for part in made),
        "tokenized_in_part": [part.document for part in made if not part.whole],
    }


def shard_schema(tokenizer: Tokenizer) -> Any:
    """The Arrow schema of a shard file, with what made it."""
    fields = {"document": pa.string(), "part": pa.int32(), "tokens": pa.large_list(pa.uint16())}
    metadata = {
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer.digest,
        "vocab_size": str(tokenizer.vocab_size),
        "end_token": str(tokenizer.end_token),
    }
    return pa.schema(fields, metadata)


def _record_batch(plan: ShardPlan, taken: list[Tokens | None], encode: Encoder) -> pa.RecordBatch:
    """The shard; tokens of parts that were not `taken` from earlier ones are made here."""
    tokenizer = gpt2()
    end = np.array([tokenizer.end_token], np.uint16)
    pieces: list[Tokens] = []
    offsets = [0]
    texts = count()
    for part, known in zip(plan.parts, taken, strict=True):
        found = list(_part_tokens(part, encode, texts)) if known is None else [known]
        found += [end] if part.last else []
        pieces += found
        offsets.append(offsets[-1] + sum(map(len, found)))
    tokens = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(pieces), pa.uint16()))
    columns = [
        pa.array([part.document for part in plan.parts], pa.string()),
        pa.array([part.number for part in plan.parts], pa.int32()),
        tokens,
    ]
    return pa.record_batch(columns, schema=shard_schema(tokenizer))


def _part_tokens(part: Part, encode: Encoder, texts: Iterator[int]) -> Iterator[Tokens]:
    try:
        for text in part.texts:
            yield from encode.iter_encode(text, check=next(texts) % CHECK_EVERY == 0)
    except DataError as error:
        raise DataError(f"document {part.document}: {error}") from None


def _summary(done: dict[str, dict[str, Any]], tokenizer: Tokenizer) -> dict[str, Any]:
    """Figures of the artifact. bytes_per_token counts end tokens as tokens; what was reused is history, not content."""
    summary: dict[str, Any] = {
        f"{split}_{what}": sum(f[what] for f in done.values() if f["split"] == split)
        for split in SPLITS
        for what in ("tokens", "documents", "bytes")
    }
    n_bytes, n_tokens, n_documents = (sum(f[what] for f in done.values()) for what in ("bytes", "tokens", "documents"))
    tokenized = sum(f["tokenized_documents"] for f in done.values())
    tokenized += len({document for f in done.values() for document in f["tokenized_in_part"]})
    return {
        **summary,
        "documents_tokenized": tokenized,
        "documents_reused": n_documents - tokenized,
        "bytes_tokenized": sum(f["tokenized_bytes"] for f in done.values()),
        "shards": len(done),
        "bytes_per_token": n_bytes / n_tokens,
        "tokenizer": {"name": tokenizer.name, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size},
    }
