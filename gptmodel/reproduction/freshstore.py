"""A store with nothing in it, to make an artifact again in: a temporary one on the same disk, or a named directory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gptmodel.errors import ConfigError, LockHeldError, StorageError
from gptmodel.store.artifacts import Artifact, Store, write_atomic
from gptmodel.store.locks import exclusive
from gptmodel.store.manifests import MANIFEST
from gptmodel.store.provenance import provenance

ROOM = ".reproduce"  # in the store: a temporary store for each reproduction that is going on, or was kept
_LOCK = ".lock"
_MARK = "reproduction.json"


@contextmanager
def temporary_store(store: Store, artifact: Artifact, *, keep: bool = False) -> Iterator[Store]:
    """An empty store inside `store`, so on the same disk; removed at the end, however that comes, unless `keep`.

    What a killed process left is removed by the next one. StorageError where the store cannot be written to.
    """
    room = store.root / ROOM
    with ExitStack() as held:
        try:
            room.mkdir(parents=True, exist_ok=True)
            with exclusive(
                room / _LOCK, "the temporary stores", wait=True
            ):  # or another would sweep it before its lock
                _sweep(room)
                path = Path(tempfile.mkdtemp(prefix=f"{artifact.path.name[:8]}-", dir=room))
                held.enter_context(exclusive(path / _LOCK, "a reproduction"))
        except OSError as error:
            raise StorageError(
                f"cannot make a temporary store in {room}: {(error.strerror or str(error)).lower()}; "
                "name another place with --store"
            ) from None
        try:
            yield Store(path)
        finally:
            if keep:
                (path / _LOCK).unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
                (room / _LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # another is at work
                    room.rmdir()


def _sweep(room: Path) -> None:
    for lock in room.glob(f"*/{_LOCK}"):
        with suppress(LockHeldError, FileNotFoundError), exclusive(lock, f"the temporary store {lock.parent.name}"):
            shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def named_store(path: Path, store: Store, artifact: Artifact, how: Mapping[str, Any]) -> Iterator[Store]:
    """A store at `path`, kept: empty, or one in which the same artifact was begun to be made again in the same way.

    `how` is what was wished (threads, precision). ConfigError for any other directory, and for one in which the
    artifact is finished: what lies there already would be reused, and nothing proved.
    """
    mark = path / _MARK
    record = provenance()
    told = {
        "artifact": artifact.fingerprint,
        "how": dict(how),
        "code": record["code_digest"],
        "versions": record["versions"],
    }
    if path.resolve() == store.root.resolve():
        raise ConfigError(f"--store {path} is the store that holds the original; give an empty directory")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--store {path} is a file; give an empty directory")
    if path.is_dir() and any(path.iterdir()):
        _check_begun(path, told, artifact)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, json.dumps(told))
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {(error.strerror or str(error)).lower()}; name another place with --store"
        ) from None
    with exclusive(path / _LOCK, f"the reproduction in {path}"):
        yield Store(path)


def _check_begun(path: Path, told: dict[str, Any], artifact: Artifact) -> None:
    """ConfigError unless the same reproduction was begun in this directory, and did not come to its end."""
    try:
        begun = json.loads((path / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = None
    if not isinstance(begun, dict) or begun.get("artifact") != told["artifact"]:
        raise ConfigError(f"--store {path} is not empty, and what lies there would be reused; give an empty one")
    names = {"how": "other --threads or --precision", "code": "other code", "versions": "other versions of libraries"}
    if other := [said for name, said in names.items() if begun.get(name) != told[name]]:
        raise ConfigError(
            f"--store {path} was begun with {' and '.join(other)}, and what lies there would be reused; "
            "give an empty directory"
        )
    if (path / artifact.kind / artifact.path.name / MANIFEST).exists():
        raise already_made(path, artifact.label)


def already_made(path: Path, label: str) -> ConfigError:
    return ConfigError(f"{label} is already made again in --store {path}; give an empty directory to make it once more")
