"""What a model wrote down from its training text: for each sample the longest passage that stands there to the byte.

Any text shares short passages with any other, so the same is measured on passages of validation text, which the model
has not seen. A passage that stands in the sample's own prompt is not counted: the model may have copied it from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np

from gptmodel.judging.grams import Bytes
from gptmodel.judging.overlap import END, Passage, longest_passages
from gptmodel.progress import progress
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.spelling import Spelling
from gptmodel.tokens.tokenstream import TokenStream

UNSEEN_PASSAGES = 64
_BLOCK_TOKENS = 1 << 20
Figures = dict[str, Any]


@dataclass(frozen=True)
class Overlap:
    """The longest passage of a text that stands in a training document and not in the text's prompt.

    Its length is in GPT-2 tokens, when encoded alone, and in characters; the longest is meant in UTF-8 bytes.
    """

    text: str
    tokens: int
    characters: int
    document: str
    """Id of the first document that has it; empty if there is no passage at all."""
    prompt_characters: int
    """Length of a longer passage that the prompt has too; 0 if there is none."""


def overlaps(texts: Sequence[bytes], train: TokenStream, prompts: Sequence[str] = ()) -> list[Overlap]:
    """The overlap of each text with these training tokens."""
    found = longest_passages(texts, spelled(train), [prompt.encode() for prompt in prompts])
    ids = train.documents().ids
    results = []
    for text, longest in zip(texts, found, strict=True):
        passage = longest.passage
        written = shown(text, passage) if passage else ""
        results.append(
            Overlap(
                written,
                len(gpt2().encode(written)),
                len(written),
                ids[passage.documents[0]] if passage else "",
                len(shown(text, longest.prompted)) if longest.prompted else 0,
            )
        )
    return results


def spelled(stream: TokenStream) -> Iterator[Bytes]:
    """The text of a stream as bytes, with `END` after each document."""
    with progress("searching the training text", stream.n_tokens, "tokens") as meter:
        for start in range(0, stream.n_tokens, _BLOCK_TOKENS):
            stop = min(start + _BLOCK_TOKENS, stream.n_tokens)
            yield _spelling().spell(stream.slice(start, stop))
            meter(stop)


@cache
def _spelling() -> Spelling:
    return Spelling(gpt2(), bytes([END]))


def unseen_passages(validation: TokenStream, lengths: Sequence[int], n: int = UNSEEN_PASSAGES) -> list[bytes]:
    """`n` passages of validation text as long as samples are, in tokens, spread evenly; each inside one document.

    Fewer where the split has fewer documents of that length.
    """
    index, passages = validation.documents(), []
    for number, length in enumerate(islice(cycle(lengths or [0]), n)):
        fits = np.flatnonzero(index.n_tokens > length)  # the end token besides
        if not length or not len(fits):
            continue
        room = np.cumsum(index.n_tokens[fits] - length)
        place = int(room[-1] * number // n)
        at = int(np.searchsorted(room, place, side="right"))
        start = int(index.starts[fits[at]]) + place - int(room[at - 1] if at else 0)
        passages.append(_spelling().spell(validation.slice(start, start + length)).tobytes())
    return passages


def remembered(
    samples: Sequence[dict[str, Any]], train: TokenStream, validation: TokenStream, memorised_tokens: int
) -> tuple[list[Figures], Figures]:
    """(what to add to each sample's row, figures of all) of samples with `prompt` and `text`.

    `memorisation_rate` is the share of samples of at least `memorised_tokens` tokens with an overlap of as many;
    left out if no sample is that long. Figures that begin with `unseen_` are those of the validation passages.
    """
    texts = [sample["text"].encode() for sample in samples]
    lengths = [len(gpt2().encode(sample["text"])) for sample in samples]
    unseen = unseen_passages(validation, [length for length in lengths if length])
    prompts = [sample["prompt"] for sample in samples] + [""] * len(unseen)
    found = overlaps([*texts, *unseen], train, prompts)
    own, others = found[: len(texts)], found[len(texts) :]
    unseen_lengths = [len(gpt2().encode(text.decode(errors="replace"))) for text in unseen]
    rows = [{f"overlap_{name}": value for name, value in asdict(overlap).items()} for overlap in own]
    figures = _figures("", own, lengths, memorised_tokens)
    return rows, figures | _figures("unseen_", others, unseen_lengths, memorised_tokens)


def _figures(prefix: str, found: Sequence[Overlap], lengths: Sequence[int], memorised_tokens: int) -> Figures:
    if not found:
        return {}
    tokens = [overlap.tokens for overlap in found]
    figures: Figures = {
        f"{prefix}overlap_tokens_mean": sum(tokens) / len(tokens),
        f"{prefix}overlap_tokens_max": max(tokens),
    }
    long = [t for t, length in zip(tokens, lengths, strict=True) if length >= memorised_tokens]
    if long:
        figures[f"{prefix}memorisation_rate"] = sum(t >= memorised_tokens for t in long) / len(long)
    return figures


def shown(text: bytes, passage: Passage) -> str:
    """The passage as it stands in the text."""
    return text[passage.start : passage.start + passage.length].decode()
