"""Text in, documents out: cleaned, cut, without duplicates, and each on its side of the split for good.

Normalisation: a leading byte-order mark is dropped, CRLF and CR become LF, and the text is put in Unicode form NFC.
Nothing else is changed. A document's id is the first 32 hex digits of the sha256 of its normalised text; its side is a
keyed hash of the same text, so that it moves with nothing: not with new data, nor with another order. With
`near_duplicates=apart` training documents that are nearly equal to a validation document are left out. With
`split_by=text` the pieces of a text that was cut are all on the side of its first piece.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gptmodel.config import CorpusConfig, recipe
from gptmodel.errors import ArtifactError, DataError
from gptmodel.progress import Progress
from gptmodel.store.artifacts import SCRATCH, Artifact, Request, Store, write_atomic
from gptmodel.store.manifests import LONGEST_MANIFEST
from gptmodel.store.space import storage_errors
from gptmodel.store.uses import using
from gptmodel.text.documents import Document as Document
from gptmodel.text.documents import documents_in, write_documents
from gptmodel.text.reading import RawText
from gptmodel.text.sources import Source, open_source

log = logging.getLogger(__name__)
KIND = "corpus"
RECIPE_VERSION = 3  # 1 had no list of its source's files; by 2 max_documents took all pieces of the last text
SOURCES = "sources.jsonl"
DOWNLOADS = ".downloads"  # in the store: fetched files by sha256
_NAME_ROOM = 16  # bytes of a name in a manifest besides its own
_SMALLEST_PIECE = 200  # characters: less is no document to train on
_SPLITS = ("train", "validation")
_NEIGHBOURS = (
    "%s of %s texts were cut, and their pieces have sides of their own: a model is judged on neighbours of what it was "
    "trained on; corpus.split_by=text keeps each text on one side"
)


@dataclass
class Counts:
    """What came in and what became of it."""

    texts_read: int = 0
    null_dropped: int = 0
    empty_dropped: int = 0
    duplicates_dropped: int = 0
    near_duplicates_dropped: int = 0
    invalid_utf8: int = 0
    cut_documents: int = 0
    documents: int = 0
    longest_bytes: int = 0
    train_documents: int = 0
    train_bytes: int = 0
    validation_documents: int = 0
    validation_bytes: int = 0


def build_corpus(
    store: Store, config: CorpusConfig, *, wait: bool = False, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """(corpus artifact, reused). DataError for text that cannot be used, NetworkError for a source out of reach.

    StorageError where the disk has no room for what is fetched or made. `progress` gets bytes of text.

    Files: `documents-*.parquet`, and `sources.jsonl` with a line for each file of the source in order (name, bytes,
    sha256), or with dataset and commit.
    """
    with storage_errors("the download", store.root / DOWNLOADS):
        source = open_source(config.source, store.root / DOWNLOADS)
    _check_names(source)
    held = store.at(KIND, config.hold_out.removeprefix(f"{KIND}/")) if config.hold_out else None
    inputs = (source.ref, *([held.ref] if held else []))
    request = Request(KIND, _recipe_version(config), asked_of(config, source), inputs)

    def build(directory: Path) -> dict[str, Any]:
        counts = Counts()
        _remove_leftovers(directory)
        try:
            documents = _documents(source, config, counts)
            if config.near_duplicates == "apart":
                from gptmodel.text import apart  # late: it reads corpora itself

                documents = apart.leave_out_near(
                    documents, held, config.similarity, directory / SCRATCH / "apart", counts
                )
            write_documents(documents, directory, source.n_bytes, progress)
            _check_split(counts, config, source)
            if config.split_by == "piece" and counts.cut_documents and counts.texts_read > 1:
                log.warning(_NEIGHBOURS, f"{counts.cut_documents:,}", f"{counts.texts_read:,}")
            lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in source.listing]
            write_atomic(directory / SOURCES, "".join(lines))
        except Exception:
            _remove_leftovers(directory)  # of no use to the next attempt, and a full disk should not stay full
            raise
        return {**asdict(counts), "origin": source.origin}

    downloads = [f"{DOWNLOADS}/{digest}" for digest in config.source.sha256]
    with storage_errors("the corpus", store.root), using(store.root, downloads) if downloads else nullcontext():
        return store.produce(
            request, build, wait=wait, needed=source.n_disk * (2 if config.near_duplicates == "apart" else 1)
        )


def asked_of(config: CorpusConfig, source: Source) -> dict[str, Any]:
    """What a corpus of these settings and this source is named by."""
    asked = {**recipe(config), "source": source.asked}
    if config.near_duplicates == "keep":
        return asked
    from gptmodel.text.minhash import ALGORITHM  # late: rensa is not needed else

    return {**asked, "minhash": ALGORITHM}


def _recipe_version(config: CorpusConfig) -> int:
    """All that 3 changed is what max_documents takes: no other corpus is made anew for it."""
    return RECIPE_VERSION if config.source.max_documents else 2


def _check_names(source: Source) -> None:
    """DataError, before any work, if the names of the files are more than a manifest may hold."""
    names = source.asked["paths"]
    if sum(len(name.encode()) + _NAME_ROOM for name in names) > LONGEST_MANIFEST:
        raise DataError(
            f"the source has {len(names):,} files, and the list of their names would be longer than "
            f"{LONGEST_MANIFEST:,} bytes; put many texts into one file, as lines of JSON or rows of Parquet"
        )


def _remove_leftovers(directory: Path) -> None:
    for path in (*directory.glob("documents-*.parquet"), directory / SOURCES):
        path.unlink(missing_ok=True)


def iter_documents(artifact: Artifact, split: str | None = None) -> Iterator[Document]:
    """The documents in corpus order; of one split only, if named. Holds one row group at a time."""
    if artifact.kind != KIND:
        raise ArtifactError(f"{artifact.label} is of kind {artifact.kind}; documents are read from a corpus")
    files = (artifact.file(name) for name in artifact.names(suffix=".parquet", prefix="documents-"))
    return (document for document in documents_in(files) if split in (None, document.split))


def split_of(text: str, config: CorpusConfig) -> str:
    """`train` or `validation`, by a keyed hash of the normalised text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=_key(config.split_key)).digest()
    return "validation" if int.from_bytes(digest, "big") / 2**64 < config.validation_fraction else "train"


def _key(text: str) -> bytes:
    raw = text.encode()
    return raw if len(raw) <= 64 else hashlib.sha256(raw).digest()  # blake2b takes no longer one


def normalise(text: str) -> str:
    """Line ends to LF, Unicode NFC, no leading byte-order mark."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text)


def cut(text: str, above: int, to: int) -> Iterator[str]:
    """The pieces of a text longer than `above` characters; joined they are the text again.

    A piece ends at the first paragraph end (blank line) after `to` characters; with none in the next `to` characters,
    at a line end there, else after a space, else after 2 * `to` characters.
    """
    start = 0
    while len(text) - start > above or (start and len(text) - start > 2 * to):
        window = text[start + to : start + 2 * to]
        found = next((m for p in (r"\n\s*\n", r"\n", r"\s") if (m := re.search(p, window))), None)
        end = start + to + (found.end() if found else len(window))
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _documents(source: Source, config: CorpusConfig, counts: Counts) -> Iterator[Document]:
    seen: set[bytes] = set()
    limit = config.source.max_documents or math.inf
    for raw in source.texts():
        if counts.documents >= limit:
            return
        counts.texts_read += 1
        text = _decoded(raw, config, counts)
        if text is None:
            continue
        pieces = cut(normalise(text), config.cut_above_chars, config.cut_to_chars)
        first = list(islice(pieces, 2))  # not all at once: a text may be as long as a file
        several = len(first) > 1
        counts.cut_documents += several
        side = ""
        for number, piece in enumerate(chain(first or [""], pieces)):
            if counts.documents >= limit:
                break  # and no return: the source shall see that its file is unchanged
            if not side or config.split_by == "piece":
                side = split_of(piece, config) if piece.strip() else ""
            document = _keep(piece, f"{raw.source}#{number}" if several else raw.source, side, seen, counts)
            if document:
                yield document


def _keep(text: str, source: str, side: str, seen: set[bytes], counts: Counts) -> Document | None:
    if not text.strip():
        counts.empty_dropped += 1
        return None
    encoded = text.encode()
    digest = hashlib.sha256(encoded).digest()[:16]
    if digest in seen:
        counts.duplicates_dropped += 1
        return None
    seen.add(digest)
    document = Document(digest.hex(), text, source, len(encoded), side)
    counts.documents += 1
    counts.longest_bytes = max(counts.longest_bytes, document.n_bytes)
    if document.split == "train":
        counts.train_documents += 1
        counts.train_bytes += document.n_bytes
    else:
        counts.validation_documents += 1
        counts.validation_bytes += document.n_bytes
    return document


def _decoded(raw: RawText, config: CorpusConfig, counts: Counts) -> str | None:
    """The text, or None for what is left out; DataError for bad UTF-8 if the config is strict."""
    if raw.text is None:
        counts.null_dropped += 1
        return None
    try:
        if isinstance(raw.text, bytes):
            return raw.text.decode()
        raw.text.encode()
        return raw.text
    except UnicodeError as error:
        counts.invalid_utf8 += 1
        if config.errors == "strict":
            at = getattr(error, "start", 0)
            if isinstance(raw.text, str):
                at = len(raw.text[:at].encode())
            raise DataError(
                f"{raw.source} is not valid UTF-8 at byte {at:,} of its text; mend it, or set corpus.errors=replace "
                "or skip"
            ) from None
        if config.errors == "skip":
            return None
    if isinstance(raw.text, bytes):
        return raw.text.decode(errors="replace")
    return re.sub("[\ud800-\udfff]", "\ufffd", raw.text)


def _check_split(counts: Counts, config: CorpusConfig, source: Source) -> None:
    if not counts.documents:
        raise DataError(
            f"no document is left of {counts.texts_read:,} texts: {counts.empty_dropped:,} empty, "
            f"{counts.null_dropped:,} null, {counts.duplicates_dropped:,} duplicates, {counts.invalid_utf8:,} invalid; "
            "look at what corpus.source takes"
        )
    missing = [s for s in _SPLITS if not getattr(counts, f"{s}_documents")]
    if missing:
        advice = ""
        if config.split_by == "text" and counts.cut_documents:
            advice = "let each piece have a side: corpus.split_by=piece, or "
        elif piece := _piece_that_splits(counts, config, source):
            by = "" if config.split_by == "piece" else " and corpus.split_by=piece"
            advice = f"have documents cut: corpus.cut_above_chars={piece} and corpus.cut_to_chars={piece}{by}, or "
        raise DataError(
            f"all {counts.documents:,} documents fall on one side of the split, so {missing[0]} has none; {advice}"
            f"add text or change corpus.validation_fraction ({config.validation_fraction}) or corpus.split_key"
        )


def _piece_that_splits(counts: Counts, config: CorpusConfig, source: Source) -> int:
    """Characters to cut at so that both sides get documents, found by trying it; 0 if none of a few sizes does."""
    for parts in (20, 100, 500):
        piece = max(_SMALLEST_PIECE, counts.longest_bytes // parts)
        cut_config = replace(config, cut_above_chars=piece, cut_to_chars=piece, split_by="piece")
        sides: set[str] = set()
        for document in _documents(source, cut_config, Counts()):
            sides.add(document.split)
            if len(sides) == len(_SPLITS):
                return piece
        if piece == _SMALLEST_PIECE:
            break
    return 0
