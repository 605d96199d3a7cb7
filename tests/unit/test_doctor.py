"""The check-up: what is well is said in a line, what is not says what to do, and the exit code tells machines."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import gptmodel.checkup
import tasks.operations.reachable
from flows.commands.doctor import doctor
from gptmodel.errors import GptflowError

PREFECT, MLFLOW = importlib.metadata.version("prefect"), importlib.metadata.version("mlflow")


@contextmanager
def server(status: int = 200, body: str = "", clock: float = 0.0) -> Iterator[str]:
    """Answers everything the same way, `clock` seconds off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + clock, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Measuring sets threads and precision of the whole process, and other tests count on theirs."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of its own, no hub, and none of a developer's servers."""
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PREFECT_PORT", "MLFLOW_PORT"):
        monkeypatch.setattr(tasks.operations.reachable, name, free_port())
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*words: str) -> Result:
    return CliRunner().invoke(doctor, words)


def findings(result: Result) -> dict[str, tuple[str, str, str]]:
    rows = json.loads(result.stdout)["findings"]
    return {row["what"]: (row["state"], row["value"], row["advice"]) for row in rows}


def services() -> dict[str, tuple[str, str, str]]:
    return {found.what: (found.state, found.value, found.advice) for found in tasks.operations.reachable.services()}


def test_a_machine_that_is_well(place: Path) -> None:
    result = run("--json")
    found = findings(result)
    assert result.exit_code == 0, found
    assert {name for name, (state, _, _) in found.items() if state == "bad"} == set()
    expected = "Python packages tokenizer embedded-text store locks memory torch arithmetic GPU Prefect MLflow hub"
    assert [name.replace(" ", "-") for name in found] == expected.split()
    assert found["embedded text"][1] == "249 speeches"
    assert found["hub"][1] == "not asked: HF_HUB_OFFLINE is set"
    assert list(place.iterdir()) == [], "nothing is changed"


def test_what_is_bad_ends_with_1_and_is_looked_past(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> gptmodel.checkup.Finding:
        raise OSError("the library is cut short")

    monkeypatch.setattr(gptmodel.checkup, "_torch", broken)
    result = run()
    assert isinstance(result.exception, GptflowError)
    assert str(result.exception).startswith("not ready: torch; ")
    lines = result.stdout.splitlines()
    assert "bad  torch          OSError: the library is cut short  → make setup" in lines
    assert lines[-1].startswith("ok   hub"), "it went on to its end"


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    true = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.165.0" if name == "fastapi" else true(name))
    found = gptmodel.checkup._packages()
    assert (found.state, found.value) == ("bad", "fastapi 0.165.0 is not <0.151")


def test_a_full_disk_and_a_closed_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptmodel.checkup, "_ROOM", 1e18)
    assert gptmodel.checkup._store(place / "store").state == "warn"
    monkeypatch.setattr(gptmodel.checkup.os, "access", lambda *_: False)  # root may write everywhere
    assert gptmodel.checkup._store(place / "store").state == "bad"
    assert gptmodel.checkup._lock(Path("/proc/none")).state == "bad"


@pytest.mark.parametrize("name", ["a-file", "dangling", "/proc/x", "a-file/store"])
def test_a_store_that_cannot_be_one_is_one_bad_finding(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (place / "a-file").write_text("")
    (place / "dangling").symlink_to(place / "nowhere")
    found = [f for f in gptmodel.checkup.examine(place / name) if f.what in ("store", "lock", "locks")]
    assert [(f.what, f.state) for f in found] == [("store", "bad")]
    assert not (place / "nowhere").exists()


def test_servers_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(body=f'"{PREFECT}"') as prefect, server(body=MLFLOW) as mlflow:
        monkeypatch.setenv("PREFECT_API_URL", f"{prefect}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
        found = services()
    assert found["Prefect"] == ("ok", f"{PREFECT} at {prefect}/api", "")
    assert found["MLflow"] == ("ok", f"{MLFLOW} at {mlflow}", "")
    assert found["clock"] == ("ok", "within 5 s of Prefect's", "")


@pytest.mark.parametrize(
    ("how", "state", "said"),
    [
        ({"status": 401}, "bad", "asks for a password"),
        ({"status": 500}, "bad", "answers 500"),
        ({"body": '"2.20.1"'}, "warn", "is 2.20.1, and here is"),
    ],
)
def test_a_prefect_that_will_not_do(
    how: dict[str, object], state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(**how) as url:  # type: ignore[arg-type]
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        found = services()["Prefect"]
    assert (found[0], said in found[1], bool(found[2])) == (state, True, True)


def test_servers_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    found = services()
    for name, variable in (("Prefect", "PREFECT_API_URL"), ("MLflow", "MLFLOW_TRACKING_URI")):
        state, value, advice = found[name]
        assert (state, "does not answer" in value, advice) == ("bad", True, f"make up, or unset {variable}")
    assert "clock" not in found


def test_a_port_that_somebody_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(tasks.operations.reachable, "PREFECT_PORT", port)
        state, value, advice = services()["Prefect"]
    assert (state, f"port {port} is taken" in value, advice) == ("warn", True, f"PREFECT_PORT={port + 1} make up")


@pytest.mark.parametrize(("off", "said"), [(3_600.0, "behind"), (-3_600.0, "ahead of")])
def test_a_clock_that_is_wrong(off: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(body=f'"{PREFECT}"', clock=off) as url:
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        state, value, advice = services()["clock"]
    assert (state, said in value, "ntp" in advice.lower()) == ("warn", True, True)


def test_a_hub_that_is_out_of_reach_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert services()["hub"][0] == "warn"
    with server() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert services()["hub"][:2] == ("ok", f"{url} answers")


@pytest.mark.parametrize(("compiler", "state"), [("/usr/bin/gcc", "ok"), (None, "warn")])
def test_a_gpu_without_a_compiler_is_told_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, compiler: str | None, state: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (79e9, 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    found = gptmodel.checkup._gpu()
    assert found.state == state
    assert found.value.startswith("NVIDIA H100, 79.0 GB of 80.0 GB free")
