"""A run's numbers from its log to MLflow: in batches, each step exactly once, whatever happens in between.

MLflow stores a point twice if it is sent twice, and a call that failed may have been carried out, in whole or in part.
So the feed notes in the run's directory which points the server confirmed (how many of each metric, and the last
step), compares that with the server's latest points whenever it connects, and reads the server's history where the
two differ: one batch at most, however long the run is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.search_utils import SearchUtils

from gptmodel.errors import Interrupted, LockHeldError, LockLostError, first_line
from gptmodel.store.locks import Hold, exclusive
from tasks.tracking.cards import Card
from tasks.tracking.runs import FAILURES, client, find_or_create_run, set_status
from tasks.tracking.tail import LogReader, Ticker

log = logging.getLogger(__name__)
LOCK_FILE = "mlflow.lock"
METRICS_FILE = "metrics.jsonl"
_JOURNAL_FILE = "mlflow.json"
_STATE_FILE = "state.json"
_BATCH = 1_000  # the most metrics that one request may carry
_SEND_SECONDS = 2.0
FLUSH_SECONDS = 15.0
"""How long the end of a step waits for MLflow to take the rest; twice for a training: its numbers, then its model."""
_MARGIN = 100  # points read again at a difference: the server sorts by time, and a clock may have been set back
_NOT_OURS = ("system/", "evaluation/", "benchmark/")
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # a server that is away is told once, by us


@dataclass(frozen=True)
class _Mark:
    """What the server confirmed of one metric."""

    count: int = 0
    step: int = -1


class Feed:
    """Sends a run's log to its MLflow run. `guard` raises if this process may no longer write."""

    def __init__(self, card: Card, run_dir: Path, guard: Callable[[], object] = lambda: None) -> None:
        self.card, self._guard = card, guard
        self.run_id = ""
        self._journal = run_dir / _JOURNAL_FILE
        self._marks: dict[str, _Mark] = {}
        self._there: dict[str, set[int]] = {}  # steps after the mark that the server has all the same
        self._assumed: dict[str, int] = {}  # with no journal: all up to this step
        self._log = run_dir / METRICS_FILE
        self._reader = LogReader(self._log)
        self.connected = False
        self._load()

    def connect(self) -> Run:
        """The run, created if it is not there; from now on it is known which points it has."""
        self._guard()
        run, created = find_or_create_run(self.card, known=self.run_id)
        latest = {m.key: m.step for m in run.data._metric_objs if not m.key.startswith(_NOT_OURS)}
        behind = any(latest.get(key, -1) < mark.step for key, mark in self._marks.items())
        self._there = {}
        if created or behind or run.info.run_id != self.run_id:  # another run, or a server that forgot: count anew
            self.run_id = run.info.run_id
            self._marks, self._assumed = {}, latest
            self._reader.rewind()
            self._save()
        else:
            for key, step in latest.items():
                mark = self._marks.get(key, _Mark())
                if step > max(mark.step, self._assumed.get(key, -1)):
                    self._there[key] = _steps_on_server(self.run_id, key, max(0, mark.count - _MARGIN))
        self.connected = True
        return run

    def push(self) -> int:
        """Send all that the log holds and the server lacks; how many points that were."""
        sent = 0
        try:
            if not self.connected:
                self.connect()
            while lines := self._reader.portion():
                sent += self._send([metric for line in lines for metric in _metrics_of(line)])
                self._reader.accept()
                self._save()
        except FAILURES:
            self.connected = False  # what failed may have been carried out
            raise
        return sent

    def _send(self, metrics: list[Metric]) -> int:
        missing = [metric for metric in metrics if self._lacks(metric)]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            self._guard()
            client().log_batch(self.run_id, metrics=batch)
            self._confirm(batch)
            self._save()
        self._confirm(metrics)
        return len(missing)

    def _lacks(self, metric: Metric) -> bool:
        key, step = metric.key, metric.step
        known = max(self._marks.get(key, _Mark()).step, self._assumed.get(key, -1))
        return step > known and step not in self._there.get(key, ())

    def _confirm(self, metrics: list[Metric]) -> None:
        for metric in metrics:
            mark = self._marks.get(metric.key, _Mark())
            if metric.step > mark.step:
                self._marks[metric.key] = _Mark(mark.count + 1, metric.step)

    def _load(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):  # without it the server's word is taken
            noted = json.loads(self._journal.read_text())
            marks = {key: _Mark(*mark) for key, mark in noted["marks"].items()}
            reader = LogReader(self._log, noted["offset"], noted["before"])
            self.run_id, self._assumed = noted["run_id"], noted["assumed"]
            self._marks, self._reader = marks, reader

    def _save(self) -> None:
        """Whole or not at all; a power failure may lose the newest, which is then read from the server's history."""
        noted = {
            "run_id": self.run_id,
            "offset": self._reader.offset,
            "before": self._reader.before,
            "marks": {key: [mark.count, mark.step] for key, mark in self._marks.items()},
            "assumed": self._assumed,
        }
        temporary = self._journal.with_suffix(".tmp")
        temporary.write_text(json.dumps(noted))
        temporary.replace(self._journal)


def _steps_on_server(run_id: str, key: str, offset: int) -> set[int]:
    """Steps of the metric's points from the offset on, in order of their times."""
    store, steps = client()._tracking_client.store, set()  # the public call reads the whole history
    token = SearchUtils.create_page_token(offset) if offset else None
    while True:
        page = store.get_metric_history(run_id, key, max_results=_BATCH, page_token=token)
        steps |= {int(point.step) for point in page}
        if not (token := page.token):
            return steps


def _metrics_of(line: dict[str, Any]) -> list[Metric]:
    """A line's numbers on the step axis, and losses and perplexities against tokens as well. NaN and inf are kept."""
    values = line.get("metrics", {})
    against_tokens = [name for name in values if name.endswith(("/loss", "/perplexity"))]
    return [
        *(Metric(name, value, line["time"], line["step"]) for name, value in values.items()),
        *(Metric(f"vs_tokens/{name}", values[name], line["time"], line["tokens"]) for name in against_tokens),
    ]


class _Monitor(SystemMetricsMonitor):
    """MLflow's monitor of the machine's load; a holder that was replaced sends none."""

    def __init__(self, run_id: str, hold: Hold) -> None:
        super().__init__(run_id, resume_logging=True)
        self._hold = hold

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        self._hold.check()
        super().publish_metrics(metrics)


class _Live:
    """The feed of a training that runs: all its calls are made in one thread, which holds the lock of the feed."""

    def __init__(self, card: Card, run_dir: Path) -> None:
        self._card, self._run_dir = card, run_dir
        self.status = "RUNNING"
        self._stack = ExitStack()
        self._hold: Hold | None = None
        self._feed: Feed | None = None
        self._monitor: _Monitor | None = None
        self._told = False

    @property
    def replaced(self) -> bool:
        """Whether another feeds this run by now."""
        return self._hold is not None and not self._hold.stands

    def tick(self, last: bool) -> None:
        try:
            self._work(last)
        except (*FAILURES, LockHeldError, LockLostError) as error:
            if not self._told:
                log.warning("MLflow is not told now (%s); the log is kept, and sent later", first_line(error))
            self._told = True
        finally:
            if last:
                self._stack.close()

    def _work(self, last: bool) -> None:
        if self._hold is None or self._feed is None:
            what = f"the MLflow run of {self._card.run_name}"
            self._hold = self._stack.enter_context(exclusive(self._run_dir / LOCK_FILE, what))
            self._feed = Feed(self._card, self._run_dir, self._hold.check)
        feed, hold = self._feed, self._hold
        hold.check()
        if not feed.connected:
            run = feed.connect()
            hold.check()  # a server may be slow to answer
            set_status(run, "RUNNING")
        if last and self._monitor is not None:
            self._monitor.finish()
        feed.push()
        if last and self.status != "RUNNING":
            hold.check()
            client().set_terminated(feed.run_id, self.status)
        elif not last:
            self._watch_system(feed.run_id, hold)

    def _watch_system(self, run_id: str, hold: Hold) -> None:
        """MLflow's monitor ends when its server does not answer once."""
        if self._monitor is None or not (self._monitor._process and self._monitor._process.is_alive()):
            self._monitor = _Monitor(run_id, hold)
            self._monitor.start()


@contextmanager
def followed(card: Card, run_dir: Path) -> Iterator[None]:
    """Feed the card's run from its log, with the machine's load, while the body runs. The body waits for nothing.

    The end waits FLUSH_SECONDS at most. The run of a body that succeeded stays RUNNING: its model is still to come.
    """
    live = _Live(card, run_dir)
    note_state(run_dir, "RUNNING")
    with Ticker(live.tick, _SEND_SECONDS, f"feed of {card.run_name}", FLUSH_SECONDS):
        try:
            yield
        except BaseException as error:
            if live.replaced or isinstance(error, LockLostError):
                raise  # the run goes on, and how it ends is for its new holder to say
            asked = isinstance(error, Interrupted) or not isinstance(error, Exception)
            live.status = "KILLED" if asked else "FAILED"
            with suppress(OSError):  # a full disk must not hide what ended the run
                note_state(run_dir, live.status)
            raise


def note_state(run_dir: Path, status: str) -> None:
    """Note beside the log how the run is, for whoever tells MLflow later."""
    temporary = run_dir / f".{_STATE_FILE}.tmp"
    temporary.write_text(json.dumps({"status": status}))
    temporary.replace(run_dir / _STATE_FILE)


def noted_state(run_dir: Path) -> str:
    """How a run ended that published nothing. One that is still RUNNING with nobody at it was killed."""
    try:
        status = str(json.loads((run_dir / _STATE_FILE).read_text())["status"])
    except (OSError, ValueError, KeyError):
        return "KILLED"
    return "KILLED" if status == "RUNNING" else status
