"""Much text to GPT-2's tokens: by fastokens where it is known to give what tiktoken gives, else by tiktoken.

tiktoken is the reference. fastokens is told of the same vocabulary, and is left aside where it cannot be loaded or
cuts one of `HARD` otherwise. What remains is watched: shards have every 64th text encoded by both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptmodel.errors import DataError
from gptmodel.safecuts import chunks
from gptmodel.tokenizer import Tokenizer, Tokens, checked, data_files, gpt2

log = logging.getLogger(__name__)
Quick = Callable[[str], npt.NDArray[np.uint32]]
CHECK_EVERY = 64
"""Of so many texts of a shard one is encoded by tiktoken too: about a tenth of the time on top."""
HARD = (
    "Every effort moves you. I'll don't WE'VE 'Tis 's's o'clock'd",
    "  two  spaces\n\n\n and\t\ttabs \r\n\x0b\x0c\x1c\x85 end ",
    "\u00a0no-break\u2003em\u3000wide\u200b\u200dzero\ufeff\u2028\u2029x",
    "١٢٣ ²³ Ⅷ ½ 1,234.5e-6 x1y2",
    "e\u0301 é ß ſ İ ǅ Ωmega ĳ \u0345",
    "漢字かな交じり文。한국어 ไทย क्षत्रिय العربية עברית",
    "👩‍👩‍👧‍👦🏳️‍🌈 \U0001f1e9\U0001f1ea\U0010ffff\ue000\U000e0001",
    "<|endoftext|> <|endoftext|>\n<|endoftext",
    "\x00\x01\x7f!!!???...---***___ (a)[b]{c}",
    "a" * 300 + " " * 300 + "x" + "\n" * 300 + "1" * 300 + "!" * 300,
)
"""Texts of every class of characters that GPT-2's pattern tells apart, and of the ends between them."""


class Encoder:
    """Text to token ids, in parts. Safe to share between threads; works outside the interpreter lock."""

    def __init__(self, tokenizer: Tokenizer, quick: Quick | None) -> None:
        self._tokenizer, self._quick = tokenizer, quick

    @property
    def name(self) -> str:
        """Package and version, such as `fastokens 0.3.5`."""
        package = "fastokens" if self._quick else "tiktoken"
        return f"{package} {version(package)}"

    def iter_encode(self, text: str, *, check: bool = False) -> Iterator[Tokens]:
        """As `Tokenizer.iter_encode`, with its errors.

        With `check`, DataError where the two packages differ on it.
        """
        if self._quick is None:
            yield from self._tokenizer.iter_encode(text)
            return
        for part in chunks(text):
            found = checked(self._quick, part)
            if check and not np.array_equal(found, self._tokenizer.encode(part)):
                raise DataError(
                    f"{self.name} and tiktoken {version('tiktoken')} cut it into different tokens, somewhere from "
                    f"{part[:20]!r} on; set shards.encoder=tiktoken, and report it"
                )
            yield found


@cache
def encoder(kind: Literal["auto", "tiktoken"] = "auto") -> Encoder:
    """The one for GPT-2's vocabulary, made once in a process (about a quarter of a second)."""
    return Encoder(gpt2(), _quick(gpt2()) if kind == "auto" else None)


def _quick(reference: Tokenizer) -> Quick | None:
    try:
        from fastokens import Tokenizer as Fast
    except ImportError as error:
        log.info("fastokens is not there (%s): tiktoken makes the tokens, a tenth as fast", error)
        return None
    try:
        fast = Fast.from_json_str(json.dumps(_description()))

        def quick(text: str) -> npt.NDArray[np.uint32]:
            return np.frombuffer(fast.encode_batch_flat([text])[0], np.dtype("<u4"))

        differs = [text for text in HARD if not np.array_equal(quick(text), reference.encode(text))]
    except Exception as error:  # another version may want other words
        log.warning("fastokens %s cannot be used (%s): tiktoken makes the tokens", version("fastokens"), error)
        return None
    if differs:
        log.warning("fastokens %s gives other tokens for %r: tiktoken makes them", version("fastokens"), differs[0])
        return None
    return quick


def _description() -> dict[str, Any]:
    """GPT-2's encoding in the form of Hugging Face's tokenizer.json. No special tokens: they are ordinary text."""
    files = data_files()
    merges = files["vocab.bpe"].read_text(encoding="utf-8").split("\n")[1:-1]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "vocab": json.loads(files["encoder.json"].read_bytes()),
        "merges": merges,
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
