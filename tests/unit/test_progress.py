"""Progress: what a meter says, that a watcher is told all and the work waits for none, and where it is shown."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gptmodel import progress as module
from gptmodel.pretraining.watching import LogEnd
from gptmodel.progress import Lines, Looking, Meter, clock, progress, watched, watchers
from gptmodel.store.hashing import hash_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    at = [1_000.0]

    class Clock:
        monotonic = staticmethod(lambda: at[0])

    monkeypatch.setattr(module, "time", Clock)
    return at


def test_words_have_units_rate_and_what_is_left(now: list[float]) -> None:
    meter = Meter("tokenizing", 2_700_000_000, "bytes")
    assert meter.line() == "tokenizing: 0 % · 0 B of 2.70 GB"
    now[0] += 30
    meter(900_000_000)
    assert meter.line() == "tokenizing: 33 % · 900 MB of 2.70 GB · 30.0 MB/s · 1:00 left"
    meter(2_700_000_000)
    assert meter.line() == "tokenizing: 100 % · 2.70 of 2.70 GB · 90.0 MB/s"


def test_what_an_earlier_attempt_did_is_not_in_the_rate(now: list[float]) -> None:
    meter = Meter("training", 1_000, "steps")
    now[0] += 500
    meter.go_on_from(600)
    now[0] += 10
    meter(700)
    assert meter.seconds_left == pytest.approx(30)
    assert meter.words() == "700 of 1,000 steps · 0:30 left"


def test_work_of_unknown_length_says_how_long_it_has_taken(now: list[float]) -> None:
    meter = Meter("looking for near duplicates")
    now[0] += 75
    assert meter.line() == "looking for near duplicates: 1:15 so far"
    meter(1_200, unit="documents")
    assert meter.line() == "looking for near duplicates: 1,200 documents"


@pytest.mark.parametrize(("seconds", "said"), [(9, "0:09"), (3_723, "1:02:03"), (90_000, "1 d 1:00:00")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


class Noted(Looking):
    """A watcher that looks all the time, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__(0.01)
        self.seen: list[list[str]] = []
        self.ended: list[tuple[str, bool | None]] = []
        self.looked = threading.Event()

    def look(self, meters: list[Meter]) -> None:
        self.seen.append([meter.line() for meter in meters])
        self.looked.set()

    def finish(self, meter: Meter) -> None:
        self.ended.append((meter.what, meter.succeeded))


def test_a_watcher_sees_what_is_under_way_and_how_it_ended() -> None:
    noted = Noted()
    with watched(noted), suppress(ValueError), progress("outer", 4, "parts") as outer:
        outer.add(3)
        with progress("inner"):
            noted.looked.clear()
            assert noted.looked.wait(10)
        raise ValueError
    noted.close(10)
    assert ["outer: 75 % · 3 of 4 parts", "inner: 0:00 so far"] in noted.seen
    assert noted.ended == [("inner", True), ("outer", False)]
    assert watchers() == ()


def test_a_watcher_that_fails_or_hangs_stops_no_work() -> None:
    answered = threading.Event()

    class Broken(Noted):
        def look(self, meters: list[Meter]) -> None:
            self.looked.set()
            raise RuntimeError("no page")

    class Stuck(Noted):
        def look(self, meters: list[Meter]) -> None:
            self.looked.set()
            answered.wait(60)

    broken, stuck = Broken(), Stuck()
    with watched(broken, stuck), progress("work") as meter:
        assert broken.looked.wait(10)
        assert stuck.looked.wait(10)
        meter(1, 1, "parts")
    stuck.close(0.01)
    answered.set()


def test_a_line_is_of_what_moved_and_none_where_the_work_has_lines_of_its_own() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    outer, inner, training = Meter("outer"), Meter("inner", 10, "files"), Meter("training", tells_itself=True)
    inner(5)
    lines.look([outer, inner])
    lines.look([outer, inner])  # nothing moved: only that it still goes on
    lines.look([outer, training])
    assert said == ["inner: 50 % · 5 of 10 files", "inner: 50 % · 5 of 10 files"]


def test_work_in_threads_is_counted_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    meter = Meter("hashing")
    hash_files([(path, 3_000_000, False)] * 4, threads=4, progress=meter)
    assert (meter.done, meter.total, meter.unit) == (12_000_000, 12_000_000, "bytes")


def test_a_training_is_read_from_the_end_of_its_log_and_follows_one_that_went_back(
    tmp_path: Path, now: list[float]
) -> None:
    log, meter = tmp_path / "metrics.jsonl", Meter("training", 100, "steps")
    look = LogEnd(log)
    look(meter)  # nothing there yet
    assert meter.done == 0

    def line(step: int, **more: Any) -> str:
        speed = {"speed/tokens_per_second": 3_100.4, "speed/mfu": 0.553}
        figures = {"train/loss": 5.1, "train/perplexity": 164.0, **speed}
        return json.dumps({"step": step, "tokens": step, "metrics": figures, **more}) + "\n"

    log.write_text(line(1) + line(40) + json.dumps({"step": 40, "metrics": {"validation/loss": 5.0}}) + "\n" + '{"st')
    look(meter)
    assert (meter.done, meter.note) == (40, "loss 5.100 · perplexity 164.0 · 3,100 tokens/s · MFU 55 %")
    log.write_text(line(1) + line(30) + json.dumps({"samples": "x" * 70_000}) + "\n")  # longer than what is read
    look(meter)
    assert meter.done == 40
    log.write_text(line(1) + line(30))
    look(meter)
    assert meter.done == 30
    now[0] += 10
    log.write_text(line(1) + line(30) + line(40))
    look(meter)
    assert meter.seconds_left == pytest.approx(60)  # counted from step 30 on


PROGRAM = """
import sys, time
import flows.commands.bars
from flows.commands.bars import shown_progress
from gptmodel.progress import LINE_SECONDS, Lines, progress
assert 10 <= LINE_SECONDS <= 30
flows.commands.bars._AFTER = 0.0
Lines.__init__.__defaults__ = (0.05,)
with shown_progress(), progress("tokenizing", 4, "shards") as meter:
    meter.add(3)
    time.sleep(0.7)
print('{"result": 1}')
"""


def test_a_terminal_gets_a_bar_that_goes_away_and_standard_output_only_the_result() -> None:
    ours, theirs = pty.openpty()
    ran = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    drawn = io.BytesIO()
    with suppress(OSError):  # what a terminal says when its last writer is gone
        while part := os.read(ours, 4096):
            drawn.write(part)
    os.close(ours)
    assert ran.communicate()[0] == b'{"result": 1}\n'
    assert ran.returncode == 0
    shown = drawn.getvalue().decode()
    assert "tokenizing: 75 % · 3 of 4 shards" in shown
    assert shown.rstrip().endswith("\r\x1b[2K\x1b[?25h")  # the line is wiped, and the cursor is back


def test_a_pipe_gets_lines_and_no_control_characters() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == '{"result": 1}\n'
    assert set(ran.stderr.splitlines()) >= {"gptflow: tokenizing: 75 % · 3 of 4 shards"}
    assert "\x1b" not in ran.stderr


def test_a_meter_that_nobody_watches_starts_no_thread() -> None:
    before = threading.active_count()
    with progress("work", 1_000, "parts") as meter:
        meter(1)
        assert threading.active_count() == before
