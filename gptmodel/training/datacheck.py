"""Hashes the shards of a training: small ones before its first step, large ones beside its first steps.

Ten gigabytes take as long to hash as dozens of steps. Their sizes are checked at once (a mapped file cut short would
kill the process), and nothing is saved before the hashes are known to be right, so no checkpoint ever stands on bytes
that nobody checked.
"""

from __future__ import annotations

import threading

from gptmodel.store.artifacts import Artifact
from gptmodel.tokens.shardplan import SPLITS
from gptmodel.tokens.tokenstream import open_split

_AT_ONCE = 1 << 28  # bytes: hashed in less than a second


class NothingToCheck:
    """In the place of a check, where the data is not read from a store's files."""

    def raise_failed(self) -> None:
        """Never."""

    def wait(self) -> None:
        """At once."""


class DataCheck:
    """The check of all shards of an artifact, done or under way. ArtifactError at once where small ones are damaged."""

    def __init__(self, shards: Artifact) -> None:
        self._shards = shards
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="data-check")
        if sum(entry.bytes for entry in shards.files) <= _AT_ONCE:
            self._check()
        else:
            self._thread.start()

    def raise_failed(self) -> None:
        """ArtifactError if something has been found to be wrong so far."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Until all is checked; ArtifactError if something is wrong."""
        if self._thread.ident is not None:
            self._thread.join()
        self.raise_failed()

    def _check(self) -> None:
        for split in SPLITS:
            open_split(self._shards, split)

    def _run(self) -> None:
        try:
            self._check()
        except BaseException as error:  # raised again in the thread that trains
            self._error = error
