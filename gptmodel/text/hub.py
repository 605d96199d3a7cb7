"""Datasets of the Hugging Face hub: pinned to a commit, read whole or streamed, its errors put in plain words."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptmodel.config import SourceConfig
from gptmodel.errors import DataError, GptflowError, NetworkError, StorageError
from gptmodel.progress import progress, watchers
from gptmodel.store.space import explained
from gptmodel.text.download import retry_after
from gptmodel.text.reading import local_path

log = logging.getLogger(__name__)
_WHERE = "corpus.source.dataset, name, revision and split"
_HINT = f"check {_WHERE}"
_SECONDS, _SECONDS_TO_CHECK = 30.0, 10.0  # without an answer
# By name, since the hub's client, `datasets` and `fsspec` bring three HTTP libraries with classes of their own.
_UNREACHABLE = {
    *("TransportError", "ConnectionError", "ClientConnectionError", "TimeoutError", "Timeout"),
    *("OfflineModeIsEnabled",),
}


def _place(config: SourceConfig) -> Path:
    """Where the dataset would lie if it were a folder here."""
    return local_path(config.dataset, _WHERE)


def local_files(config: SourceConfig) -> list[Path]:
    """The files of a dataset that is a folder here; none if it is one of the hub."""
    folder = _place(config)
    found = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def pin_revision(config: SourceConfig) -> str:
    """The commit to read: as given, or what the branch (or nothing) stands for now. A local folder has none."""
    if re.fullmatch(r"[0-9a-f]{40}", config.revision) or _place(config).is_dir():
        return config.revision
    found = _ask(config, _SECONDS)
    log.warning(
        "%s: revision %r is now commit %s; set corpus.source.revision to it so that it stays",
        *(config.dataset, config.revision or "main", found),
    )
    return found


def commit_of(dataset: str, revision: str) -> str:
    """The commit that the hub has under a revision now. NetworkError if it does not say, DataError if it has none."""
    return _ask(SourceConfig(kind="huggingface", dataset=dataset, revision=revision), _SECONDS_TO_CHECK)


def _ask(config: SourceConfig, seconds: float) -> str:
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(config.dataset, revision=config.revision or None, timeout=seconds)
    except Exception as error:
        raise _explained(error, config) from None
    return info.sha or ""


def hub_documents(config: SourceConfig, revision: str) -> Iterator[str | None]:
    """The text column of every row, in the dataset's order."""
    from datasets import disable_progress_bars, load_dataset

    folder = _place(config)
    # The library's cache knows a local file by its size and time, not by its bytes, and may hold other text.
    fresh = tempfile.TemporaryDirectory(prefix="gptflow-datasets-") if folder.is_dir() else None
    try:
        if watchers():
            disable_progress_bars()  # they would be drawn over ours
        with progress(f"download of {config.dataset}"):
            rows: Any = load_dataset(
                str(folder) if folder.is_dir() else config.dataset,
                config.name or None,
                split=config.split,
                revision=revision or None,
                streaming=config.streaming,
                cache_dir=fresh.name if fresh else None,
            )
        columns = rows.column_names or []
        if columns and config.text_column not in columns:
            raise DataError(
                f"{config.dataset} has no column {config.text_column!r}; it has {', '.join(columns)}; "
                "set corpus.source.text_column"
            )
        if columns:
            rows = rows.select_columns([config.text_column])  # pictures and the like are not decoded
        for number, row in enumerate(rows):
            if config.text_column not in row:
                raise DataError(
                    f"{config.dataset}: row {number} has no column {config.text_column!r}; it has {', '.join(row)}; "
                    "set corpus.source.text_column"
                )
            text = row[config.text_column]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{config.dataset}: {config.text_column!r} holds {type(text).__name__}, not text; set "
                    "corpus.source.text_column"
                )
            yield text
    except GptflowError:
        raise
    except StopIteration:  # what `datasets` raises for a source without a row
        return
    except Exception as error:
        raise _explained(error, config) from None
    finally:
        if fresh:
            fresh.cleanup()


def _explained(error: BaseException, config: SourceConfig) -> GptflowError:
    """The hub's error as ours: what time may heal apart from what a person must fix."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if (told := _no_room(error, config)) is not None:
        return told
    answers = [r for e in chain if (r := getattr(e, "response", None)) is not None]
    statuses = [int(getattr(answer, "status_code", 0) or 0) for answer in answers]
    unreachable = any(c.__name__ in _UNREACHABLE for e in chain for c in type(e).__mro__)
    if unreachable or any(s in (408, 429) or s >= 500 for s in statuses):
        return NetworkError(f"{config.dataset}: the hub does not answer ({first})", _retry_after(answers))
    # `datasets` says "couldn't find" for a hub that is out of reach, too.
    missing = type(error).__name__ in ("DatasetNotFoundError", "FileNotFoundError", "LocalEntryNotFoundError")
    if missing and not any(statuses) and not _place(config).is_dir():
        return NetworkError(f"{config.dataset}: not found, or the hub is out of reach ({first}); {_HINT}")
    return DataError(f"{config.dataset}: {first}; {_HINT}")


def _no_room(error: BaseException, config: SourceConfig) -> StorageError | None:
    from huggingface_hub.constants import HF_HOME

    is_folder = _place(config).is_dir()
    where, setting = (tempfile.gettempdir(), "TMPDIR") if is_folder else (HF_HOME, "HF_HOME")
    return explained(error, f"the cache of {config.dataset}", Path(where), setting=setting)


def _retry_after(answers: list[Any]) -> float | None:
    """Seconds that the nearest answer asks to wait."""
    return retry_after(str(answers[0].headers.get("Retry-After", ""))) if answers else None
