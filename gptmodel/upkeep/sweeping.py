"""Takes away what a plan dooms: each by one rename, then file by file; what a run began to use meanwhile stays."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gptmodel.errors import LockHeldError, StorageError
from gptmodel.store.artifacts import Store, fsync_path
from gptmodel.store.locks import exclusive
from gptmodel.store.space import storage_errors
from gptmodel.store.uses import collecting
from gptmodel.text.following import FOLLOWED_LOCK, UNFINISHED
from gptmodel.upkeep.collection import FRESH_LOCK, TRASH, Item, Rules, plan
from gptmodel.upkeep.pins import BUILDING
from gptmodel.upkeep.records import sent_note

Say = Callable[[Item], None]


@dataclass
class Swept:
    """What went, what stayed after all and why, and the bytes that are free now."""

    gone: list[Item] = field(default_factory=list)
    spared: list[tuple[Item, str]] = field(default_factory=list)
    bytes: int = 0


def sweep(
    store: Store,
    shown: Iterable[Item],
    rules: Rules,
    wanted: Mapping[str, str],
    *,
    on_gone: Say = lambda _: None,
) -> Swept:
    """Take away what was `shown` and is still doomed. Run again after a kill it finishes what was begun.

    StorageError if the store cannot be written to; what is renamed by then goes with the next sweep.
    """
    swept, trash = Swept(), list[tuple[Item, list[Path]]]()
    with storage_errors("the collection", store.root):
        with collecting(store.root):
            still = {item.path for item in plan(store, rules, wanted, clear=True).doomed}
            needed: set[str] = set()  # by what could not be taken away
            for item in shown:
                aside, why = list[Path](), "it is needed now"
                if item.path in still and item.label not in needed:
                    aside, why = _try(store, item)
                if aside:
                    trash.append((item, aside))
                else:
                    swept.spared.append((item, why))
                    needed |= set(item.inputs)
        for item, aside in trash:
            for path in aside:
                _remove(path)
            swept.gone.append(item)
            swept.bytes += item.bytes
            on_gone(item)
    return swept


def _try(store: Store, item: Item) -> tuple[list[Path], str]:
    """Where its parts lie now, or why it stays."""
    if item.what == "trash":
        return [item.path], ""
    try:
        return _put_aside(store, item), ""
    except LockHeldError as error:
        return [], str(error)
    except FileNotFoundError:
        return [], "it is gone already"


def _put_aside(store: Store, item: Item) -> list[Path]:
    """One rename, under the lock of who would write there; a run's log goes first, and never alone."""
    name = item.path.name.removeprefix(BUILDING)
    end, parts = f"{name}-{time.time_ns()}", list[Path]()
    lock = item.path.with_name(f".{name}.lock") if item.what in ("artifact", "building") else None
    lock = item.path / FRESH_LOCK if item.what == "reproduction" else lock
    lock = item.path.with_name(FOLLOWED_LOCK) if name.startswith(UNFINISHED) else lock
    with exclusive(lock, item.label) if lock is not None else nullcontext():
        if item.log is not None and item.log.is_dir() and item.path.is_dir():
            # Not among the logs, where it would be read as a run's.
            parts.append(store.root / f"{TRASH}log-{end}")
            os.replace(item.log, parts[0])
            fsync_path(item.log.parent)
        folder = store.root if item.what in ("download", "reproduction", "record") else item.path.parent
        parts.append(folder / f"{TRASH}{end}")
        try:
            os.replace(item.path, parts[-1])
        except OSError:
            if len(parts) > 1 and item.log is not None:  # the model stays, and so does its log
                with suppress(OSError):
                    os.replace(parts[0], item.log)
            raise
        fsync_path(item.path.parent)
        if item.what == "record":
            sent_note(item.path).unlink(missing_ok=True)
        if lock is not None:  # still locked, so a run that waits for it opens a new one
            lock.unlink(missing_ok=True)
    return parts


def _remove(path: Path) -> None:
    failures: list[OSError] = []

    def note(_: object, name: str, info: tuple[type[BaseException], BaseException, object]) -> None:
        if isinstance(info[1], OSError) and not isinstance(info[1], FileNotFoundError):
            failures.append(info[1])

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=note)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
    if failures:
        reason = failures[0].strerror or str(failures[0])
        raise StorageError(f"{path} cannot be removed: {reason}; run `gptflow store gc` again when that is mended")
