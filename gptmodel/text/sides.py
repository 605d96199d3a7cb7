"""The two sides of a corpus in retraining: what models are trained and selected on, and what is held out from both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from gptmodel.config import ShardsConfig
from gptmodel.store.artifacts import Artifact
from gptmodel.text.corpus import Document, iter_documents
from gptmodel.text.names import parent_of

_KEY = b"gptflow/selection"


def documents_of(corpus: Artifact, config: ShardsConfig) -> Iterator[Document]:
    """The documents that shards are made of, in corpus order, with the split that they have there.

    On the training side a document's split depends on its id alone, so that it moves with nothing. Where the corpus
    keeps the pieces of a text on one side, it is the id of the text's first piece.
    """
    if config.side == "all":
        yield from iter_documents(corpus)
    elif config.side == "held-out":
        yield from iter_documents(corpus, "validation")
    else:
        together, firsts = keeps_texts_whole(corpus), dict[str, str]()
        for document in iter_documents(corpus, "train"):
            decides = document.id
            if together and (text := parent_of(document.source, corpus.request.config["source"])):
                decides = firsts.setdefault(text, document.id)
            digest = hashlib.blake2b(decides.encode(), digest_size=8, key=_KEY).digest()
            selects = int.from_bytes(digest, "big") / 2**64 < config.selection_fraction
            yield replace(document, split="validation") if selects else document


def keeps_texts_whole(corpus: Artifact) -> bool:
    """Whether all pieces of a text that was cut are on one side of the corpus."""
    return bool(corpus.request.config.get("split_by") == "text")
