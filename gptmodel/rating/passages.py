"""Passages of validation documents, cut into a beginning and how it really goes on; and salads of their words."""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from dataclasses import dataclass

from gptmodel.errors import DataError
from gptmodel.store.artifacts import Artifact
from gptmodel.text.corpus import iter_documents
from gptmodel.tokenizer import gpt2

_MOST_CHARS = 200_000  # of a document: where in a longer one a passage begins matters to nobody
_BEGINNING = re.compile(r"(?:\A|(?<=[.!?])\s+|\n+)(?=[\w\x22\x27“‘(])")
_LEAST_WORDS = 8  # of a real continuation


@dataclass(frozen=True)
class Passage:
    """`prompt` and `rest` are the document's own text, one after the other."""

    document: str
    prompt: str
    rest: str


def draw_passages(corpus: Artifact, n: int, *, prompt_words: int, rest_tokens: int, seed: int) -> list[Passage]:
    """`n` passages that begin at a sentence, from as many validation documents as there are, the same for a seed.

    DataError where the documents are too few or too short.
    """
    documents = _choose(corpus, n, seed)
    draw = random.Random(f"passages {seed}")
    found: list[Passage] = []
    seen: set[str] = set()
    rounds = 0
    while documents and len(found) < n and rounds < n:
        rounds += 1
        for document, text in documents:
            passage = _cut(document, text, prompt_words, rest_tokens, draw)
            if passage is not None and passage.prompt not in seen and len(found) < n:
                seen.add(passage.prompt)
                found.append(passage)
    if len(found) < n:
        raise DataError(
            f"{corpus.label} has room for {len(found)} passages of {prompt_words} words and a continuation in its "
            f"validation split, and {n} are asked for; ask for fewer, or for shorter prompts"
        )
    return found


def word_salad(passages: list[Passage], n_words: int, draw: random.Random) -> str:
    """Words of these passages, drawn one by one: each is a word, and nothing hangs together."""
    words = [word for passage in passages for word in f"{passage.prompt} {passage.rest}".split()]
    return " " + " ".join(draw.choices(words, k=n_words))


def _choose(corpus: Artifact, n: int, seed: int) -> list[tuple[str, str]]:
    """`n` validation documents by a hash of seed and id, so that the choice does not hang on their order."""

    def key(document_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed} {document_id}".encode()).digest()[:8], "big")

    kept: list[tuple[int, str, str]] = []
    for document in iter_documents(corpus, "validation"):
        heapq.heappush(kept, (-key(document.id), document.id, document.text[:_MOST_CHARS]))
        if len(kept) > n:
            heapq.heappop(kept)
    return [(document, text) for _, document, text in sorted(kept, reverse=True)]


def _cut(document: str, text: str, prompt_words: int, rest_tokens: int, draw: random.Random) -> Passage | None:
    starts = [match.end() for match in _BEGINNING.finditer(text)]
    for start in draw.sample(starts, min(len(starts), 20)):
        words = list(re.finditer(r"\S+", text[start : start + 20 * (prompt_words + rest_tokens)]))
        if len(words) < prompt_words + _LEAST_WORDS:
            continue
        end = start + words[prompt_words - 1].end()
        tokens = gpt2().encode(text[end : end + 20 * rest_tokens])[:rest_tokens]
        rest = gpt2().decode(tokens.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")  # half a character at the cut
        return Passage(document, text[start:end], rest)
    return None
