"""Lineage events sent over HTTP to a real server on loopback: healthy, hanging, failing, refusing, or not there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.commands.terminal import sync
from gptmodel.store.artifacts import Artifact, Request, open_store
from tasks.lineage import outbox as lineage_outbox
from tasks.lineage.events import note_reused, with_events
from tasks.lineage.outbox import _sender, deliver

ROOT = Path(__file__).resolve().parents[2]
SENDER = """
import sys
from pathlib import Path
from tasks.lineage import outbox as lineage_outbox
lineage_outbox.EXIT_SECONDS = float(sys.argv[2])
lineage_outbox.send_soon(Path(sys.argv[1]))
print("done", flush=True)
"""


class Backend:
    """Keeps what it is told. `status` is its answer; while `hangs` is set it gives none."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0
        self.status = 201
        self.refuses = ""
        self.hangs, self.released = False, threading.Event()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                backend.asked += 1
                if backend.hangs:
                    backend.released.wait(60)
                    return
                event = json.loads(body)
                status = 422 if event["eventType"] == backend.refuses else backend.status
                if status < 300:
                    backend.got.append(event)
                    backend.headers.append({"path": self.path, **dict(self.headers)})
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kinds(self) -> list[str]:
        return [event["eventType"] for event in self.got]


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A server, named in a file. A request takes half a second at most, and is not repeated by the library."""
    found = Backend()
    file = tmp_path / "openlineage.yml"
    file.write_text(
        f"transport:\n  type: http\n  url: {found.url}\n  timeout: 0.5\n  retry: {{total: 0}}\n"
        "  auth: {type: api_key, apiKey: secret}\n"
    )
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(file))
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(lineage_outbox, "_warned", set())
    yield found
    found.released.set()
    assert _sender.settle(30)
    found.server.shutdown()
    found.server.server_close()


@with_events
def make(name: str) -> Artifact:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "file").write_text(name)
        return {}

    artifact, reused = open_store().produce(Request("weights", 1, {"name": name}), build)
    note_reused(reused)
    return artifact


def kept(tmp_path: Path) -> list[dict[str, Any]]:
    """The events of the files, in the order of files and lines."""
    files = sorted((tmp_path / "store" / ".lineage").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_events_are_sent_as_they_are_kept(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", backend.url)  # the library copies it, and the file stands above it
    before = dict(os.environ)
    make("a")
    assert _sender.settle(30)
    make("a")
    assert _sender.settle(30)
    assert backend.kinds() == ["START", "COMPLETE"] * 2
    sent = [{**event} for event in backend.got]
    for event in sent:  # what the library adds of its own
        assert event["run"]["facets"].pop("tags")["tags"][0]["key"] == "openlineage_client_version"
    assert sent == kept(tmp_path)
    assert backend.headers[0]["path"] == "/api/v1/lineage"
    assert backend.headers[0]["Authorization"] == "Bearer secret"
    assert dict(os.environ) == before


@pytest.mark.parametrize("fault", ["hangs", "answers 500", "is not there"])
def test_a_bad_server_neither_slows_nor_fails_a_step_and_is_told_later(
    backend: Backend, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = Path(os.environ["OPENLINEAGE_CONFIG"])
    healthy = config.read_text()
    if fault == "hangs":
        backend.hangs = True
        config.write_text(healthy.replace("timeout: 0.5", "timeout: 60"))
    elif fault == "answers 500":
        backend.status = 500
    else:
        config.write_text(healthy.replace(backend.url, "http://127.0.0.1:9"))
    make("warm")
    for name in ("a", "b"):
        make(name)
    if fault == "hangs":
        assert not _sender.settle(0), "the steps are done, and the first request still waits"
        backend.released.set()  # it gets no answer
    assert _sender.settle(30)
    assert backend.got == []
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert "sent later" in caplog.text
    backend.hangs, backend.status = False, 201
    backend.released.set()
    config.write_text(healthy)
    make("c")
    assert _sender.settle(30)
    assert [(e["run"]["runId"], e["eventType"]) for e in backend.got] == [
        (e["run"]["runId"], e["eventType"]) for e in kept(tmp_path)
    ]
    assert len(backend.got) == 8


def test_an_event_that_is_refused_for_good_does_not_hold_up_the_others(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.refuses = "START"
    make("a")
    make("b")
    assert _sender.settle(30)
    assert backend.kinds() == ["COMPLETE", "COMPLETE"]
    assert "refused an event" in caplog.text
    backend.refuses = ""
    make("c")
    assert _sender.settle(30)
    assert backend.kinds() == ["COMPLETE", "COMPLETE", "START", "COMPLETE"]


def test_a_line_that_was_cut_short_is_not_sent(backend: Backend, tmp_path: Path) -> None:
    make("a")
    assert _sender.settle(30)
    folder = tmp_path / "store" / ".lineage"
    (file,) = folder.glob("*.jsonl")
    with file.open("a") as lines:
        lines.write('{"eventType": "STA')
    assert deliver(folder) == 0
    assert backend.kinds() == ["START", "COMPLETE"]


def test_a_configuration_that_names_no_server_is_told_nothing(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library would print the events."""
    config = Path(os.environ["OPENLINEAGE_CONFIG"])
    whole = config.read_text()
    config.write_text("tags: {job: {team: a}}\n")
    make("a")
    assert _sender.settle(30)
    assert "eventTime" not in "".join(capfd.readouterr())
    config.write_text(whole)
    assert deliver(tmp_path / "store" / ".lineage") == 2


def test_a_wrong_configuration_is_one_warning(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.environ["OPENLINEAGE_CONFIG"]).write_text("transport: {type: http, url: nowhere}\n")
    make("a")
    assert _sender.settle(30)
    make("a")
    assert _sender.settle(30)
    assert [r.getMessage()[:18] for r in caplog.records if r.levelno == logging.WARNING] == ["OpenLineage is not"]


@pytest.mark.parametrize("hangs", [False, True])
def test_the_end_of_a_process_waits_for_the_server_but_not_long(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """By the address alone: the library then waits 5 s for an answer, and asks six times."""
    monkeypatch.delenv("OPENLINEAGE_CONFIG")
    make("a")
    backend.hangs = hangs
    command = [sys.executable, "-c", SENDER, str(tmp_path / "store" / ".lineage"), "1" if hangs else "60"]
    env = {**os.environ, "OPENLINEAGE_URL": backend.url}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        before = time.monotonic()
        assert process.wait(60) == 0
    took = time.monotonic() - before
    if hangs:
        assert 0.9 <= took < 15, "the library itself would wait 30 s"
    else:
        assert backend.kinds() == ["START", "COMPLETE"]


def test_sync_does_not_ask_the_library_where_nothing_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store" / lineage_outbox.FOLDER).mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sync(as_json=True)
    assert "OpenLineage" not in caplog.text
