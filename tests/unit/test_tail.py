"""Following a log that is written, torn, and written anew by a resumed run."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

from gptmodel.metrics_log import MetricsLog
from tasks.tail import Tail


def test_each_step_is_handed_over_once_even_if_a_resumed_run_makes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.start(-1)
    got: list[dict[str, Any]] = []
    arrived = Event()

    def take(lines: list[dict[str, Any]]) -> None:
        got.extend(lines)
        arrived.set()

    with Tail(path, take, seconds=0.01):
        for step in (1, 2, 3):
            log.log(step, tokens=step, metrics={"a": step})
        log.log(3, tokens=3, metrics={"b": 3})
        assert arrived.wait(10)
        log.close()
        log.start(2)  # the run was killed after step 3 and resumes from step 2
        for step in (3, 4):
            log.log(step, tokens=step, metrics={"a": step})
        log.close()
        with path.open("a") as file:
            file.write('{"step": 5, "tok')
    steps = [(line["step"], *line["metrics"]) for line in got]
    assert [s for s in steps if s[1] == "a"] == [(1, "a"), (2, "a"), (3, "a"), (4, "a")]
    assert len(steps) == len(set(steps))


def test_a_failing_listener_does_not_stop_the_body(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.start(-1)
    log.log(1, tokens=1, metrics={})

    def fail(lines: list[dict[str, Any]]) -> None:
        raise RuntimeError("the listener is broken")

    with Tail(path, fail, seconds=0.01):
        log.log(2, tokens=2, metrics={})
    log.close()
    assert "no longer following" in caplog.text
