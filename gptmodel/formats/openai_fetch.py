"""OpenAI's own files by URL: a base address with `hparams.json`, `checkpoint` and `model.ckpt.*` under it.

They publish no hashes. What arrives is checked by the CRC32C of the index and of each tensor, and named by its sha256;
that name, given as the revision, pins the next import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from gptmodel.errors import CheckpointError, DataError
from gptmodel.formats.openai_format import HPARAMS_FILE, PREFIX, STATE_FILE, prefix_of
from gptmodel.formats.tensor_bundle import read_index
from gptmodel.text.download import download
from gptmodel.tokenizer import FILES


def fetch_openai(base: str, cache: Path, *, allow_private: bool = False, timeout: float = 60.0) -> Path:
    """A directory under `cache` with the files under this address; those that are there already are not asked for.

    DataError or NetworkError as from a download; CheckpointError, and the file deleted, where the index is damaged.
    """
    base = base.rstrip("/")
    directory = cache / hashlib.sha256(base.encode()).hexdigest()[:16]

    def fetch(name: str) -> Path:
        return download(f"{base}/{name}", directory / name, timeout=timeout, allow_private=allow_private)

    fetch(HPARAMS_FILE)
    prefix = _prefix(fetch)
    index = fetch(f"{prefix}.index")
    try:
        files = read_index(directory / prefix).files
    except CheckpointError:
        index.unlink()
        raise
    for path in files[1:]:
        fetch(path.name)
    for name in FILES:
        _fetch_optional(fetch, name)
    return directory


def _prefix(fetch: Callable[[str], Path]) -> str:
    found = _fetch_optional(fetch, STATE_FILE)
    if found is None:
        return PREFIX
    try:
        return prefix_of(found.read_text(errors="replace"))
    except CheckpointError:
        found.unlink()
        raise


def _fetch_optional(fetch: Callable[[str], Path], name: str) -> Path | None:
    """The file, or None where the server says that there is none."""
    try:
        return fetch(name)
    except DataError as error:
        if "answered 404" in str(error) or "answered 403" in str(error):
            return None
        raise
