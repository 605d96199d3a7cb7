"""From which training documents a text comes: every passage of some length that stands in them to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.judging.memorisation import overlaps, shown, spelled
from gptmodel.judging.overlap import all_passages
from gptmodel.lineage.lookup import Entry, entries_of, small
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import normalise
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import TokenStream, open_split

Report = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """A passage of a text, from character `start` on, and the ids of all training documents in which it stands."""

    start: int
    text: str
    tokens: int
    documents: tuple[str, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.text)


def origins(text: str, train: TokenStream, at_least: int) -> list[Origin]:
    """The passages of at least `at_least` characters that stand in training documents, longest first.

    One that lies inside another is left out.
    """
    data, reached = text.encode(), 0
    found: list[Origin] = []
    ids = train.documents().ids
    for passage in sorted(all_passages(data, spelled(train), at_least), key=lambda p: (p.start, -p.length)):
        written, inside = shown(data, passage), passage.start + passage.length <= reached
        reached = max(reached, passage.start + passage.length)
        if len(written) >= at_least and not inside:
            documents = tuple(ids[number] for number in passage.documents)
            start = len(data[: passage.start].decode())
            found.append(Origin(start, written, len(gpt2().encode(written)), documents))
    return sorted(found, key=lambda o: (-len(o.text), o.start))


def covered(found: Sequence[Origin]) -> int:
    """Characters of the text that stand in at least one of these passages."""
    at = total = 0
    for origin in sorted(found, key=lambda o: o.start):
        total += max(0, origin.stop - max(at, origin.start))
        at = max(at, origin.stop)
    return total


def origin_report(
    store: Store, shards: Artifact, text: str, at_least: int, *, limit: int = 20, check: bool | None = None
) -> Report:
    """Where the text comes from, as plain data; the text is normalised as documents are.

    `limit` bounds the passages and the documents of each; 0 lists all. `check` as in `gptmodel.tracing.report`. Without
    a passage of that length, `longest` is the longest there is. ConfigError for an empty text.
    """
    if not (text := normalise(text)).strip():
        raise ConfigError("the text is empty; give some as an argument, or on standard input")
    checked = small(shards) if check is None else check
    train = open_split(shards, "train", check=checked)
    found = origins(text, train, at_least)
    listed, most = found[: limit or None], limit or None
    entries = _entries(store, shards, [d for origin in listed for d in origin.documents[:most]])
    report: Report = {
        "shards": shards.label,
        "train_tokens": train.n_tokens,
        "checked": checked,
        "characters": len(text),
        "at_least": at_least,
        "covered_characters": covered(found),
        "passages_found": len(found),
        "passages": [
            asdict(origin)
            | {"documents": [asdict(entries[d]) for d in origin.documents[:most]]}
            | {"characters": len(origin.text), "documents_found": len(origin.documents)}
            for origin in listed
        ],
    }
    if not found:
        (longest,) = overlaps([text.encode()], train)
        named = _entries(store, shards, [longest.document])[longest.document]
        report["longest"] = {"text": longest.text, "characters": longest.characters, "tokens": longest.tokens}
        report["longest"] |= {"document": asdict(named)} if longest.document else {}
    return report


def _entries(store: Store, shards: Artifact, ids: list[str]) -> dict[str, Entry]:
    """The documents by id, with their sources as far as the corpus is still there."""
    try:
        known = entries_of(store.input_of(shards, "corpus"), ids, check=False) if ids else {}
    except ArtifactError:
        known = {}
    return {i: known.get(i, Entry(i, "", "train")) for i in ids}
