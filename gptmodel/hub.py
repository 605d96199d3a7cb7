"""Datasets of the Hugging Face hub: pinned to a commit, read whole or streamed, its errors put in plain words."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptmodel.config import SourceConfig
from gptmodel.errors import DataError, GptflowError, NetworkError

log = logging.getLogger(__name__)
_HINT = "check corpus.source.dataset, name, revision and split"


def pin_revision(config: SourceConfig) -> str:
    """The commit to read: as given, or what the branch (or nothing) stands for now. A local folder has none."""
    if re.fullmatch(r"[0-9a-f]{40}", config.revision) or Path(config.dataset).is_dir():
        return config.revision
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(config.dataset, revision=config.revision or None).sha or ""
    except Exception as error:
        raise _explained(error, config) from None
    log.warning(
        "%s: revision %r is now commit %s; set corpus.source.revision to it so that it stays",
        *(config.dataset, config.revision or "main", found),
    )
    return found


def hub_documents(config: SourceConfig, revision: str) -> Iterator[str | None]:
    """The text column of every row, in the dataset's order."""
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(
            config.dataset,
            config.name or None,
            split=config.split,
            revision=revision or None,
            streaming=config.streaming,
        )
        columns = rows.column_names or []
        if columns and config.text_column not in columns:
            raise DataError(
                f"{config.dataset} has no column {config.text_column!r}; it has {', '.join(columns)}; "
                "set corpus.source.text_column"
            )
        for row in rows:
            text = row.get(config.text_column)
            if text is not None and not isinstance(text, str):
                raise DataError(f"{config.dataset}: {config.text_column!r} holds {type(text).__name__}, not text")
            yield text
    except GptflowError:
        raise
    except StopIteration:  # what `datasets` raises for a source without a row
        return
    except Exception as error:
        raise _explained(error, config) from None


def _explained(error: BaseException, config: SourceConfig) -> GptflowError:
    """The hub's error as ours: what time may heal apart from what a person must fix."""
    import httpx
    import requests

    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    first = (str(error).splitlines() or [type(error).__name__])[0]
    statuses = [getattr(getattr(e, "response", None), "status_code", 0) for e in chain]
    unreachable = (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)
    if any(isinstance(e, unreachable) for e in chain) or any(s == 429 or s >= 500 for s in statuses):
        return NetworkError(f"{config.dataset}: the hub does not answer ({first})")
    # `datasets` says "couldn't find" for a hub that is out of reach, too
    if type(error).__name__ in ("DatasetNotFoundError", "FileNotFoundError", "LocalEntryNotFoundError") and not any(
        statuses
    ):
        return NetworkError(f"{config.dataset}: not found, or the hub is out of reach ({first}); {_HINT}")
    return DataError(f"{config.dataset}: {first}; {_HINT}")
