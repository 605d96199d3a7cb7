"""Standard output as it is found: closed, full, or of a character set that cannot show all."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gptmodel.errors import GptflowError, StorageError


@contextmanager
def told_output() -> Iterator[None]:
    """Show `?` for what standard output's character set lacks. StorageError if it is closed, or once it fails."""
    if sys.stdout is None:  # the next file that is opened would be taken for it
        raise StorageError("standard output is closed; send it somewhere, such as >/dev/null")
    if not isinstance(found := sys.stdout, io.TextIOWrapper):
        yield
        return
    by_line = found.line_buffering
    output = sys.stdout = _Output(found.buffer, found.encoding, "replace", line_buffering=by_line)
    try:
        yield
        output.flush()
    except BrokenPipeError:  # nobody reads on
        _drop(output)
        sys.exit(1)
    finally:
        try:
            output.detach()
        except (OSError, GptflowError):
            _drop(output)
        sys.stdout = found


class _Output(io.TextIOWrapper):
    """Says in a line why it cannot be written, and whose fault it is."""

    def write(self, text: str) -> int:
        with _failures(self):
            return super().write(text)

    def flush(self) -> None:
        with _failures(self):
            super().flush()


@contextmanager
def _failures(output: _Output) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        _drop(output)
        why = os.strerror(error.errno or errno.EIO).lower()
        raise StorageError(f"standard output cannot be written ({why}); send it to another place") from error


def _drop(output: _Output) -> None:
    """Send to nowhere what is still held: it would fail once more when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output.fileno())
    os.close(nowhere)
