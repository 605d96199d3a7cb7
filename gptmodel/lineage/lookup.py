"""Finding documents of a corpus by id, source or text, and the evaluations of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.lineage.graph import COMPARISON
from gptmodel.store.artifacts import MANIFEST, Artifact, Store, load_artifact
from gptmodel.text.corpus import KIND, normalise

log = logging.getLogger(__name__)
_NAMED = 5
HASHED_BYTES = 1_000_000_000
"""Artifacts up to this size are hashed before an answer is read from them; for larger ones somebody has to ask."""


@dataclass(frozen=True)
class Entry:
    """A document of a corpus, without its text."""

    id: str
    source: str
    split: str


def small(artifact: Artifact) -> bool:
    """Whether hashing it takes but a moment."""
    return sum(entry.bytes for entry in artifact.files) <= HASHED_BYTES


def containing(corpus: Artifact, text: str, *, ignore_case: bool = False, check: bool = True) -> Iterator[Entry]:
    """Documents in which `text` stands, in corpus order. It is normalised as documents are.

    What stands over a cut of a document that was cut into several is in neither of them.
    """
    import pyarrow.compute as pc

    if not (wanted := normalise(text)):
        raise ConfigError("the text to look for is empty")
    for rows in _tables(corpus, ["id", "source", "split", "text"], check):
        found = rows.filter(pc.match_substring(rows.column("text"), wanted, ignore_case=ignore_case))
        yield from _entries(found)


def named(corpus: Artifact, name: str, *, check: bool = True) -> list[Entry]:
    """The document of this id; or else those of the source of this name; or else those whose ids begin with it.

    Of a source all rows (`name#number`, `name:number`) and all pieces of what was cut (`name#number`) are taken.
    DataError if nothing is called so, or several ids begin so.
    """
    import pyarrow.compute as pc

    by_id: list[Entry] = []
    by_source: list[Entry] = []
    for rows in _tables(corpus, ["id", "source", "split"], check):
        by_id += _entries(rows.filter(pc.starts_with(rows.column("id"), name)))
        sources = rows.column("source")
        is_part = pc.or_(pc.starts_with(sources, f"{name}#"), pc.starts_with(sources, f"{name}:"))
        by_source += _entries(rows.filter(pc.or_(pc.equal(sources, name), is_part)))
    found = [entry for entry in by_id if entry.id == name] or by_source or by_id
    if not found:
        raise DataError(
            f"{corpus.label} has no document {name!r}; give an id, its beginning, or a source as the corpus names it, "
            f"such as {_example(corpus)}"
        )
    if found is by_id and len(found) > 1:
        raise DataError(f"{len(found):,} documents have ids that begin with {name}; {several(e.id for e in found)}")
    return found


def several(ids: Iterable[str]) -> str:
    """Advice for a beginning that several ids have."""
    return f"give more of one: {', '.join(islice(ids, _NAMED))} …"


def _example(corpus: Artifact) -> str:
    first = next(_tables(corpus, ["source"], check=False), None)
    return first.column("source")[0].as_py() if first is not None and len(first) else "none: it is empty"


def entries_of(corpus: Artifact, ids: Iterable[str], *, check: bool = True) -> dict[str, Entry]:
    """The entries of these ids, as far as the corpus has them."""
    wanted = set(ids)
    found: dict[str, Entry] = {}
    for rows in _tables(corpus, ["id", "source", "split"], check):
        columns = [rows.column(name).to_pylist() for name in ("id", "source", "split")]
        found |= {row[0]: Entry(*row) for row in zip(*columns, strict=True) if row[0] in wanted}
        if len(found) == len(wanted):
            break
    return found


def _entries(rows: Any) -> list[Entry]:
    return [Entry(**row) for row in rows.select(["id", "source", "split"]).to_pylist()]


def _tables(corpus: Artifact, columns: list[str], check: bool) -> Iterator[Any]:
    """These columns of the corpus, a row group at a time; of the others nothing is read from the disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if corpus.kind != KIND:
        raise ArtifactError(f"{corpus.label} is of kind {corpus.kind}; documents are looked up in a corpus")
    for name in corpus.names(suffix=".parquet", prefix="documents-"):
        path: Path = corpus.file(name) if check else corpus.path / name
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{corpus.label}: {name} cannot be read ({first}); run `gptflow verify`") from None


def evaluations_of(store: Store, model_digest: str, kind: str = "evaluation") -> list[Artifact]:
    """Evaluations (or benchmarks) of the model with this content digest, in the order in which they were made."""
    return [a for a in _judgements(store, kind) if model_digest in (r.digest for r in a.request.inputs[:1])]


def comparisons_of(store: Store, evaluations: Iterable[Artifact]) -> list[Artifact]:
    """Comparisons in which one of these evaluations is the challenger's, in the order in which they were made."""
    digests = {evaluation.digest for evaluation in evaluations}
    return [a for a in _judgements(store, COMPARISON) if digests & {r.digest for r in a.request.inputs[1:]}]


def ratings_of(store: Store, model_digest: str) -> list[Artifact]:
    """People's ratings of the model with this content digest, in the order in which they were made."""
    return [a for a in _judgements(store, "ratings") if model_digest in (r.digest for r in a.request.inputs)]


def _judgements(store: Store, kind: str) -> list[Artifact]:
    found = []
    for manifest in sorted((store.root / kind).glob(f"[!.]*/{MANIFEST}")):
        try:
            found.append(load_artifact(manifest.parent))
        except ArtifactError as error:
            log.warning("%s", error)
    return sorted(found, key=lambda a: (str(a.provenance["finished"]), a.fingerprint))
