"""A process is found again and stopped with all its kin, and nobody else ever is."""

from __future__ import annotations

import base64
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tasks.operations import processes
from tasks.operations.processes import Record, ask, read, start, stop

# A parent that starts a child in a session of its own, and both say so before they wait.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("deaf")
time.sleep(600)
"""


def begin(folder: Path, program: str) -> Record:
    said = folder / "said"
    said.unlink(missing_ok=True)
    file = folder / "it.json"
    start([sys.executable, "-c", program, str(said)], folder, dict(os.environ), folder / "log", file, 0)
    while not said.exists() or not said.read_text():
        assert read(file) is not None
    found = read(file)
    assert found is not None
    return found


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[Record, int]]:
    record = begin(tmp_path, FAMILY)
    yield record, int((tmp_path / "said").read_text())
    stop(record)


def test_stop_ends_the_process_and_a_child_in_another_session(family: tuple[Record, int]) -> None:
    record, child = family
    assert record.leader is not None
    assert stop(record) == 2
    assert record.leader is None
    assert not record.kin()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_orphans_of_a_killed_leader_are_stopped(family: tuple[Record, int]) -> None:
    record, child = family
    assert record.leader is not None
    record.leader.kill()
    psutil.wait_procs([psutil.Process(record.pid)], 10)
    assert stop(record) == 1
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_recycled_pid_is_left_alone(family: tuple[Record, int]) -> None:
    record, _ = family
    stranger = replace(record, created=record.created - 100, mark="another")
    assert stranger.leader is None
    assert stop(stranger) == 0
    assert record.leader is not None


def test_a_clock_that_was_set_right_since_hides_nothing(family: tuple[Record, int]) -> None:
    """Start times move with the clock, since they are reckoned from the time of boot."""
    record = replace(family[0], created=family[0].created - 5)
    assert record.leader is not None
    assert stop(record) == 2
    assert family[0].leader is None


def test_one_whose_environment_cannot_be_read_is_known_by_its_start(tmp_path: Path) -> None:
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})
    try:
        record = Record(process.pid, process.create_time(), 0, "mark")
        assert record.leader is not None
        assert replace(record, created=record.created - 100).leader is None
    finally:
        process.kill()
        process.wait()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    record = begin(tmp_path, DEAF)
    assert stop(record, seconds=0.2) == 1
    assert record.leader is None


def test_an_unreadable_record_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"pid": 1')
    assert read(tmp_path / "it.json") is None
    assert read(tmp_path / "other.json") is None


def test_a_server_with_a_password_is_asked_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "Basic " + base64.b64encode(b"admin:secret").decode()

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.headers.get("Authorization") == wanted
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(b"true" if right else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert ask(f"{url}/api/flows/count") is None
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
        assert ask(f"{url}/api/flows/count") is True
        assert ask(f"{url}/health") is None, "Prefect's password is told to Prefect alone"
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "times", "answer", "asked"), [(503, 2, "done", 3), (503, 9, None, 3), (500, 9, None, 1)]
)
def test_only_a_busy_server_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, code: int, times: int, answer: str | None, asked: int
) -> None:
    monkeypatch.setattr(processes, "_PAUSES", (0.01, 0.01))
    heard = []

    class Busy(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(code if len(heard) <= times else 200)
            self.end_headers()
            self.wfile.write(b'"done"')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(f"http://127.0.0.1:{server.server_address[1]}/api/it", {"enabled": False}, "PUT") == answer
        server.shutdown()
    assert heard == [b'{"enabled": false}'] * asked
