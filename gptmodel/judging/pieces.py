"""Tokens as a person can read them: whole characters with the tokens that spell them, and names for what is not seen.

GPT-2's tokens are bytes, so one may hold a part of a character, and a character may take several.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from gptmodel.tokenizer import gpt2

END = "end of text"
_JOINERS = "\u200c\u200d"  # they are not seen, and what stands beside them looks otherwise without them
_CODE_OF_SYMBOL = 0x2400  # Unicode's pictures of the control characters begin here


@dataclass(frozen=True)
class Piece:
    """As few tokens as make whole characters: most often one."""

    text: str
    """What they spell; empty for the end token, which stands for no text."""
    first: int
    """Number of the first token."""
    count: int


def pieces(tokens: Sequence[int]) -> list[Piece]:
    """The tokens, in order, none left out. Bytes that make no character become U+FFFD."""
    tokenizer, found = gpt2(), list[Piece]()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, first = "", 0
    for number, token in enumerate(tokens):
        if token == tokenizer.end_token:
            if number > first:
                found.append(Piece(text + decoder.decode(b"", final=True), first, number - first))
            found.append(Piece("", number, 1))
            decoder.reset()
        else:
            text += decoder.decode(tokenizer.token_bytes(token))
            if decoder.getstate()[0]:
                continue  # within a character
            found.append(Piece(text, first, number + 1 - first))
        text, first = "", number + 1
    if first < len(tokens):
        found.append(Piece(text + decoder.decode(b"", final=True), first, len(tokens) - first))
    return found


def whole(tokens: Sequence[int]) -> list[int]:
    """Without the tokens at the end that begin a character and do not finish it."""
    kept = list(tokens)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    safe = 0
    for number, token in enumerate(kept, start=1):
        decoder.decode(gpt2().token_bytes(token))
        safe = safe if decoder.getstate()[0] else number
    return kept[:safe]


def label_of(token: int) -> str:
    """A token's name on one line: spaces as ␣, line ends as ↵, its bytes where they are no whole characters."""
    tokenizer = gpt2()
    if token == tokenizer.end_token:
        return END
    raw = tokenizer.token_bytes(token)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "bytes " + " ".join(f"{byte:02X}" for byte in raw)
    return "".join("␣" if c == " " else symbol_of(c) or c for c in text)


def symbol_of(character: str) -> str:
    """What is shown for a character that is not seen, or that could turn a line around; empty for all others."""
    if character == "\n":
        return "↵"
    if character == "\t":
        return "⇥"
    if ord(character) < ord(" "):
        return chr(_CODE_OF_SYMBOL + ord(character))
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return ""
    return f"U+{ord(character):04X}"
