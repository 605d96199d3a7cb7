"""Room on disk: asked for before a step starts, and told in one line when it runs out all the same.

What a step will need is estimated from what is known before it: text from its bytes, with the ratios measured on the
embedded corpus and some to spare, models from their parameters. An estimate cannot be right for every text, so the
errors of a disk that fills up on the way are told the same way.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, TrainConfig
from gptmodel.errors import GptflowError, StorageError
from gptmodel.words import size

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
# safetensors has no errno, and pyarrow's stands in its text.
_IN_WORDS = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_NO_SPACE_IN_WORDS = re.compile(r"not enough disk space|no space left on device|disk quota exceeded", re.IGNORECASE)
_SMALL = 1_000_000  # manifest, lock, figures, samples
_CORPUS_RATIO = 0.5  # zstd Parquet, of plain text
_SHARD_RATIO = 0.6  # two bytes a token
_DOCUMENT_ROW = 600  # bytes a document in an evaluation's tables
_LOG_LINE = 1_500  # bytes a step in the run's log and in the published curve
_FLOAT32 = 4
_STORE = "GPTFLOW_STORE"
_COPIES_IN_CHECKPOINT = 3  # weights and two moments


def corpus_bytes(plain: int, packed: int = 0) -> int:
    """Of a corpus made from this much plain text and this much in compressed files."""
    return int(plain * _CORPUS_RATIO) + packed + _SMALL


def shards_bytes(text_bytes: int) -> int:
    """Of the shards of this much text."""
    return int(text_bytes * _SHARD_RATIO) + _SMALL


def weights_bytes(n_params: int) -> int:
    """Of a model's weights in float32."""
    return n_params * _FLOAT32 + _SMALL


def training_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Of a training while it runs: checkpoints kept, best, anchor and the one being written, log and product."""
    weights = count_parameters(model).total * _FLOAT32
    lines = train.max_steps // train.log_every + train.max_steps // train.eval_every
    return weights * (_COPIES_IN_CHECKPOINT * (train.keep_checkpoints + 3) + 1) + lines * _LOG_LINE + _SMALL


def evaluation_bytes(n_documents: int) -> int:
    """Of the figures, the tables of documents and the samples."""
    return n_documents * _DOCUMENT_ROW + _SMALL


def require(needed: int, where: Path, what: str) -> None:
    """StorageError before anything is written, if `where` is read-only or has not `needed` bytes free."""
    place = _existing(where)
    found = os.statvfs(place)
    if found.f_flag & os.ST_RDONLY:
        raise StorageError(f"cannot write {what}: {where} is on a read-only file system; {_other_place(_STORE)}")
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise StorageError(
            f"not enough disk space for {what}: it needs about {size(needed)} and {where} has {size(free)} "
            f"free; free {size(needed - free)} or more and run the same again, or {_other_place(_STORE)}"
        )


def check_root(root: Path) -> None:
    """StorageError if no store can be there: something else is in the way, or a link that leads nowhere."""
    place = next(path for path in (root.absolute(), *root.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(place):  # noqa: PTH112 - Path's own raises where a link leads to what is closed to us
        why = "is a link that leads to no folder" if place.is_symlink() else "is not a directory"
        raise StorageError(f"{root} cannot be a store: {place} {why}; {_other_place(_STORE)}")


def make_root(root: Path) -> None:
    """Make the folder of a store. StorageError where none can be made, such as in /proc."""
    check_root(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if (told := explained(error, "the store", root)) is not None:
            raise told from error
        why = os.strerror(error.errno or 0).lower()
        raise StorageError(f"{root} cannot be a store: it cannot be made ({why}); {_other_place(_STORE)}") from error


def used_bytes(directory: Path) -> int:
    """Bytes of all files below a directory; 0 where there is none."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # the orphan of a killed run may still be writing there
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def storage_errors(what: str, where: Path, needed: int = 0, setting: str = _STORE) -> Iterator[None]:
    """Errors of a full, read-only or closed disk come out as one StorageError; all others as they are.

    `setting` as in `explained`.
    """
    try:
        yield
    except GptflowError:
        raise
    except Exception as error:
        if (told := explained(error, what, where, needed, setting)) is not None:
            raise told from error
        raise


def explained(
    error: BaseException, what: str, where: Path, needed: int = 0, setting: str = _STORE
) -> StorageError | None:
    """The StorageError that an error, or a cause of it, amounts to; None for any other error.

    `setting` is the environment variable, or the option, that moves `where` elsewhere.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        code = _code(cause)
        if code in _FULL:
            return StorageError(f"{_full(what, where, needed, code)}, or {_other_place(setting)}")
        if code in _CLOSED:
            reason = "it is on a read-only file system" if code == errno.EROFS else os.strerror(code).lower()
            right = "give this user the right, or " if code in (errno.EACCES, errno.EPERM) else ""
            place = getattr(cause, "filename", None) or where
            return StorageError(f"cannot write {what}: {place}: {reason}; {right}{_other_place(setting)}")
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _code(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = str(error)
    if found := _IN_WORDS.search(text):
        return int(found[1] or found[2])
    return errno.ENOSPC if _NO_SPACE_IN_WORDS.search(text) else 0


def _full(what: str, where: Path, needed: int, code: int) -> str:
    reason = "the disk is full" if code == errno.ENOSPC else "the disk quota is used up"
    free = os.statvfs(_existing(where))
    rest = f"; it needs about {size(needed)} in all" if needed else ""
    return (
        f"{reason}: {what} could not be written to {where}{rest}, {size(free.f_bavail * free.f_frsize)} are "
        "free there. Free some and run the same again (what was finished is kept)"
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _other_place(setting: str) -> str:
    return f"set {setting} to another place"
