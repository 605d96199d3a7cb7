"""OpenLineage events of the steps, in `<store>/.lineage/<date>-<flow run>.jsonl`, one line each.

Each attempt at a step is a run of its own, with a START and then a COMPLETE, FAIL or ABORT; a step whose answer was
there already says so in its COMPLETE. A process that was killed leaves a START alone. The next step that begins in
the same store sees that its mark is no longer held, and tells its ABORT; the work itself goes on as a new run of the
same job.

The files are the record, and the queue of what is to be sent: see lineage_outbox. OPENLINEAGE_DISABLED=true turns all
of it off. Nothing here is a reason to fail.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

from prefect import get_run_logger
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError

from gptmodel.errors import Interrupted
from gptmodel.store.artifacts import Artifact, open_store
from gptmodel.store.provenance import changed_code
from gptmodel.upkeep.records import OPEN
from tasks.lineage.facets import Attempt, aborted, event
from tasks.lineage.outbox import FOLDER, send_soon

log = logging.getLogger(__name__)
P = ParamSpec("P")
_ENDS = ("COMPLETE", "FAIL", "ABORT")
_reused: ContextVar[bool] = ContextVar("reused", default=True)
_told: set[str] = set()  # what this process has warned of


def note_reused(reused: bool) -> None:
    """Say, inside a step, whether its artifact was there already; a step that says nothing made nothing."""
    _reused.set(reused)


def with_events(step: Callable[P, Artifact]) -> Callable[P, Artifact]:
    """A step that writes its events: put it below `@task`. Its inputs are the artifacts among its arguments."""

    @functools.wraps(step)
    def told(*args: P.args, **kwargs: P.kwargs) -> Artifact:
        _reused.set(True)
        _once(changed_code())
        if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
            return step(*args, **kwargs)
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Artifact)]
        record = _Record(open_store().root / FOLDER, functools.partial(_attempt_at, step, inputs))
        with record.kept():
            record.made = step(*args, **kwargs)
        return record.made

    return told


def _once(warning: str) -> None:
    if warning and warning not in _told:
        _told.add(warning)
        with suppress(MissingContextError):  # not inside a run: whoever calls it so reads the manifest
            get_run_logger().warning(warning)


def _attempt_at(step: Callable[..., Artifact], inputs: list[Artifact]) -> Attempt:
    from openlineage.client.uuid import generate_new_uuid

    task, flow = TaskRunContext.get(), FlowRunContext.get()
    run = flow.flow_run if flow else None
    nominal = run.expected_start_time if run and run.auto_scheduled else None
    return Attempt(
        run_id=str(generate_new_uuid()),
        job=task.task.name if task else step.__name__,
        description=(step.__doc__ or "").strip(),
        number=task.task_run.run_count if task else 1,
        task_run=str(task.task_run.id) if task else "",
        flow=flow.flow.name if flow and flow.flow else "",
        flow_run=str(run.id) if run else "",
        nominal=nominal.isoformat() if nominal else "",
        inputs=inputs,
    )


class _Record:
    """The events of one attempt. While it goes on, a mark of it is locked: `.open-<run id>`, which holds its START."""

    def __init__(self, folder: Path, attempt: Callable[[], Attempt]) -> None:
        self._folder, self._begin_attempt = folder, attempt
        self._attempt: Attempt | None = None
        self._file = folder
        self._mark: int | None = None
        self.made: Artifact | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """START before the body, and its end after it, as the body ends."""
        self._try(self._start)
        try:
            yield
        except BaseException as error:
            asked = isinstance(error, Interrupted) or not isinstance(error, Exception)
            self._try(functools.partial(self._end, "ABORT" if asked else "FAIL", error))
            raise
        self._try(functools.partial(self._end, "COMPLETE"))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the step stands without its events
            log.debug("lineage events", exc_info=True)
            reason = error.strerror if isinstance(error, OSError) else error
            warning = f"OpenLineage events are not written to {self._folder}: {reason or type(error).__name__}"
            if warning not in _told:
                _told.add(warning)
                log.warning(warning)

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        end_orphans(self._folder)
        attempt = self._begin_attempt()
        name = f"{datetime.now(UTC):%Y-%m-%d}-{attempt.flow_run or attempt.run_id}.jsonl"
        line = event(attempt, "START")
        self._mark = _hold(self._folder / f"{OPEN}{attempt.run_id}", json.dumps({"file": name, "start": line}))
        self._attempt, self._file = attempt, self._folder / name
        append(self._file, line)
        send_soon(self._folder)

    def _end(self, kind: str, error: BaseException | None = None) -> None:
        if self._attempt is None or self._mark is None:
            return
        try:
            append(self._file, event(self._attempt, kind, self.made, _reused.get(), error))
        finally:
            (self._folder / f"{OPEN}{self._attempt.run_id}").unlink(missing_ok=True)
            os.close(self._mark)
        send_soon(self._folder)


def _hold(mark: Path, text: str) -> int:
    """A locked file of this text: under its name it is whole and locked, or its process is dead."""
    new = mark.with_name(f".new{mark.name}")
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, text.encode())
        new.rename(mark)
    except BaseException:
        os.close(descriptor)
        new.unlink(missing_ok=True)
        raise
    return descriptor


def append(file: Path, line: str) -> None:
    """Add a line, whole or not at all, and put it on disk."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        before, data = os.fstat(descriptor).st_size, line.encode(errors="replace")
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError:
            os.ftruncate(descriptor, before)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def end_orphans(folder: Path) -> None:
    """Tell the ABORT of each run whose process died before it could."""
    for mark in sorted(folder.glob(f"{OPEN}*")):
        with suppress(FileNotFoundError, BlockingIOError), mark.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not mark.exists():  # another one was faster
                continue
            with suppress(ValueError, KeyError, TypeError):  # a power failure can leave half of it
                noted = json.loads(file.read())
                _abort(folder / Path(noted["file"]).name, json.loads(noted["start"]))
            mark.unlink()


def _abort(file: Path, start: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
    mine = [line["eventType"] for line in lines if line["run"]["runId"] == start["run"]["runId"]]
    if mine and not set(mine) & set(_ENDS):
        append(file, aborted(start, "the process ended without telling how; it was killed, or its machine stopped"))
