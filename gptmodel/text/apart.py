"""Training documents that are nearly equal to a validation document are left out, so that no cluster is split.

The side of a document is decided by its own text alone, so validation has the same documents however the corpus grows:
what is near to one of them is not trained on, whichever came first. Moving it to validation instead would take what a
champion was trained on into the text that it is compared on. Which documents are left out depends on the set of
documents, and not on their order.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptmodel.progress import progress
from gptmodel.store.artifacts import Artifact
from gptmodel.text.corpus import Counts, iter_documents
from gptmodel.text.documents import Document, documents_in, write_documents
from gptmodel.text.minhash import Signatures, near_to
from gptmodel.text.shingles import word_hashes


def leave_out_near(
    documents: Iterator[Document], held: Artifact | None, at_least: float, scratch: Path, counts: Counts
) -> Iterator[Document]:
    """The documents without those of training whose similarity to a validation document is `at_least` so much.

    Validation documents are those among them, and those of the `held` corpus. They are put into `scratch` first, with
    512 bytes a document besides; it is removed at the end. What is left out is taken out of `counts` again.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    signatures, guards = Signatures(scratch / "signatures"), bytearray()
    for document in iter_documents(held, "validation") if held is not None else ():
        signatures.add(word_hashes(document.text))
        guards.append(1)
    before = len(guards)

    def noted() -> Iterator[Document]:
        for document in documents:
            signatures.add(word_hashes(document.text))
            guards.append(document.split == "validation")
            yield document

    with progress("signatures of documents", unit="bytes") as meter:
        write_documents(noted(), scratch, progress=meter)
    protected = np.frombuffer(guards, bool)
    with progress("looking for near duplicates of validation text"):
        near = near_to(signatures.close(), protected, ~protected, at_least)
    for number, document in enumerate(documents_in(sorted(scratch.glob("documents-*.parquet"))), before):
        if near[number] < 0:
            yield document
        else:
            counts.near_duplicates_dropped += 1
            counts.documents -= 1
            counts.train_documents -= 1
            counts.train_bytes -= document.n_bytes
    shutil.rmtree(scratch)
