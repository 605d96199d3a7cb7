"""Sends the lineage events of a store to where OpenLineage is configured to: OPENLINEAGE_URL, OPENLINEAGE_CONFIG, an
`openlineage.yml`, as the library reads them.

The event files are the queue. A thread sends what is in them, in order, and notes beside each file how far it came;
what a server did not take is sent by the next step in this store, of whatever process. No step waits for it; a process
that ends gives it a few seconds.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import RunEvent

from gptmodel.errors import first_line
from gptmodel.upkeep.records import EVENTS, sent_note

log = logging.getLogger(__name__)
FOLDER = EVENTS
EXIT_SECONDS = 3.0
"""The most that the end of a process waits for events to be sent."""
_THREAD = "lineage-outbox"
_NAMED = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT", "OPENLINEAGE__TRANSPORT__TYPE")
_REFUSED = (400, 409, 413, 415, 422)  # this event will never be taken; another one may


def configured() -> bool:
    """Whether there is anything for the library to read: without it, it need not be asked."""
    places = (Path("openlineage.yml"), Path("~/.openlineage/openlineage.yml").expanduser())
    return any(os.environ.get(name) for name in _NAMED) or any(place.is_file() for place in places)


def send_soon(folder: Path) -> None:
    """Have the folder's events sent in the background. Returns at once."""
    if configured():
        import openlineage.client  # noqa: F401 - here, since a process that is ending can import no more

        _sender.wake(folder.resolve())


class _Sender:
    """One thread for the process, started when there is something to send."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Path] = []
        self._busy = False
        self._thread: threading.Thread | None = None

    def wake(self, folder: Path) -> None:
        with self._changed:
            if folder not in self._waiting:
                self._waiting.append(folder)
            if self._thread is None or not self._thread.is_alive():  # none yet, or this is a fork of where it was
                self._thread = threading.Thread(target=self._run, daemon=True, name=_THREAD)
                self._thread.start()
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is left to try; whether that was so in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                folder, self._busy = self._waiting.pop(0), True
            try:
                deliver(folder)
            except Exception as error:  # a thread that nobody waits for must say so itself
                _warn(error, folder)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()


_sender = _Sender()
_warned: set[str] = set()


@atexit.register
def _finish() -> None:
    if not _sender.settle(EXIT_SECONDS):
        log.info("lineage events that are not sent yet are sent by the next step")


def deliver(folder: Path) -> int:
    """Send all that was not sent, oldest file first; how many events that were. Raises what the transport raises."""
    sent = 0
    with _alone(folder), _client() as client:
        if client is None:
            return 0
        for file in sorted(folder.glob("*.jsonl")):
            noted = sent_note(file)
            for line, end in _unsent(file, _offset(noted)):
                try:
                    client.emit(_as_event(json.loads(line)))
                    sent += 1
                except Exception as error:
                    if not _never_taken(error):
                        raise
                    log.warning("OpenLineage refused an event of %s for good: %s", file.name, first_line(error))
                _note(noted, end)
    return sent


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One sender for each store, so that events keep their order."""
    with (folder / ".sending").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _client() -> Iterator[OpenLineageClient | None]:
    """The library's client; None where its configuration names no transport: it would print the events."""
    from openlineage.client import OpenLineageClient

    logging.getLogger("urllib3.connectionpool").addFilter(_not_ours)
    before = set(os.environ)
    # What is where in git it would take from the current folder; our events say it.
    client = OpenLineageClient(config={"facets": {"source_code_location": {"disabled": True}}})
    for name in set(os.environ) - before:  # it copies the address into other variables, the key with it
        if name.startswith("OPENLINEAGE__"):
            del os.environ[name]
    try:
        printed = client.transport.kind == "console" and not (client.config.transport or {}).get("type")
        yield None if printed or client.transport.kind == "noop" else client
    finally:
        client.close(EXIT_SECONDS)


def _not_ours(record: logging.LogRecord) -> bool:
    """Each retry would be a line; what came of it is said once."""
    return record.threadName != _THREAD


def _as_event(told: dict[str, Any]) -> RunEvent:
    """The event as the library's object, of which the facets may stay plain."""
    from openlineage.client import event_v2

    run, job = told["run"], told["job"]
    return event_v2.RunEvent(
        eventTime=told["eventTime"],
        producer=told["producer"],
        eventType=event_v2.RunState(told["eventType"]),
        run=event_v2.Run(run["runId"], run.get("facets", {})),
        job=event_v2.Job(job["namespace"], job["name"], job.get("facets", {})),
        inputs=[event_v2.InputDataset(**dataset) for dataset in told.get("inputs", [])],
        outputs=[event_v2.OutputDataset(**dataset) for dataset in told.get("outputs", [])],
    )


def _unsent(file: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines after the offset, each with the offset of its end; none if the file was collected just now."""
    with suppress(FileNotFoundError), file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def _offset(noted: Path) -> int:
    try:
        return int(noted.read_text())
    except (OSError, ValueError):
        return 0


def _note(noted: Path, offset: int) -> None:
    temporary = noted.with_name(f"{noted.name}.tmp")
    temporary.write_text(str(offset))
    temporary.replace(noted)


def _never_taken(error: Exception) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) in _REFUSED


def _warn(error: Exception, folder: Path) -> None:
    text = f"OpenLineage is not told now ({first_line(error)}); the events are kept in {folder}, and sent later"
    if (kind := type(error).__name__) not in _warned:
        _warned.add(kind)
        log.warning(text)
    else:
        log.debug(text)
