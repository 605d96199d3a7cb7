"""Text in, text out: prompts continued piece by piece, up to an end token, a stop string, or a length.

A row's text does not depend on the other rows, but for rounding between batch sizes. What may be the start of a stop
string, or half of a character, is held back until the next token tells.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from gptmodel.config import DecodingConfig
from gptmodel.generate import Writer
from gptmodel.model import GPT
from gptmodel.tokenizer import gpt2


def continue_texts(model: GPT, prompts: Sequence[str], decoding: DecodingConfig, *, row: int = 0) -> list[str]:
    """What the model writes after each prompt. `row` is the number of the first row's generator."""
    texts = [""] * len(prompts)
    for index, piece in stream_texts(model, prompts, decoding, row=row):
        texts[index] += piece
    return texts


def continue_text(model: GPT, prompt: str, decoding: DecodingConfig, *, row: int = 0) -> str:
    return continue_texts(model, [prompt], decoding, row=row)[0]


def stream_texts(
    model: GPT, prompts: Sequence[str], decoding: DecodingConfig, *, row: int = 0
) -> Iterator[tuple[int, str]]:
    """(index of the prompt, piece of text) as soon as each is certain; rows that end give no more pieces.

    DataError as from `gptmodel.generate`, at the first piece.
    """
    if not prompts:
        return
    tokenizer = gpt2()
    ids = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    known = min(tokenizer.vocab_size, model.config.vocab_size)  # ids of a padded table stand for nothing
    writer = Writer(model, ids, decoding, tokenizer.end_token, row, use_cache=True, vocab_size=known)
    rows = [_Row(decoding.stop) for _ in prompts]
    for drawn in writer:
        for index, token in drawn.items():
            if token == tokenizer.end_token and decoding.stop_at_end_token:
                continue
            piece = rows[index].add(tokenizer.token_bytes(token))
            if rows[index].stopped:
                writer.finish(index)
            if piece:
                yield index, piece
    for index, written in enumerate(rows):
        if piece := written.rest():
            yield index, piece


class _Row:
    """Bytes in, text out that is certain to stay."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def add(self, raw: bytes) -> str:
        self._held += self._decoder.decode(raw)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            piece, self._held, self.stopped = self._held[: min(found)], "", True
            return piece
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def rest(self) -> str:
        return "" if self.stopped else self._held + self._decoder.decode(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
