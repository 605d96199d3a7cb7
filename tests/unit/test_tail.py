"""Following a log that is written, torn, and written anew by a resumed run."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

from gptmodel.training.metrics_log import MetricsLog
from tasks.tracking.tail import LogReader, Ticker


def write(path: Path, start: int, steps: range) -> None:
    log = MetricsLog(path)
    log.start(start)
    for step in steps:
        log.log(step, tokens=step, metrics={"a": step})
    log.close()


def read_all(reader: LogReader) -> list[int]:
    steps = []
    while lines := reader.portion():
        steps += [line["step"] for line in lines]
        reader.accept()
    return steps


def test_a_torn_last_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, -1, range(1, 4))
    reader = LogReader(path)
    assert read_all(reader) == [1, 2, 3]
    with path.open("a") as file:
        file.write('{"step": 4, "tokens": 4, "time": 0}\n{"step": 5, "tok')
    assert read_all(reader) == [4]


def test_a_log_that_a_resumed_run_wrote_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, -1, range(1, 6))
    reader = LogReader(path)
    assert read_all(reader) == [1, 2, 3, 4, 5]
    write(path, 2, range(3, 8))  # killed after step 5, gone on from the checkpoint of step 2; longer than before
    assert read_all(reader) == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_not_accepted_comes_again_and_another_reader_goes_on_from_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, -1, range(1, 4))
    reader = LogReader(path)
    assert [line["step"] for line in reader.portion()] == [1, 2, 3]
    assert [line["step"] for line in reader.portion()] == [1, 2, 3]
    reader.accept()
    write(path, 3, range(4, 6))
    assert read_all(LogReader(path, reader.offset, reader.before)) == [4, 5]


def test_a_long_log_is_read_in_portions(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, -1, range(20_000))
    reader = LogReader(path)
    assert len(reader.portion()) < 10_000
    assert read_all(reader) == list(range(20_000))


def test_a_failing_call_does_not_stop_the_body(caplog: Any) -> None:
    def fail(_last: bool) -> None:
        raise RuntimeError("the listener is broken")

    with Ticker(fail, 0.01, "broken", patience=10.0):
        pass
    assert "no longer following" in caplog.text


def test_the_end_waits_no_longer_than_its_patience() -> None:
    answered = Event()
    with Ticker(lambda _last: bool(answered.wait(60)), 0.01, "stuck", patience=0.1) as ticker:
        pass
    assert ticker.running
    answered.set()
