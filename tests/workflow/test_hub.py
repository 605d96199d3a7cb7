"""Weights from a hub that nobody here wrote (olah, installed in an environment of its own), and all that goes wrong.

In front of it stands a proxy that is slow, cuts, says 429, changes bytes, or redirects. Slow: it installs a package.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptmodel.config import ModelConfig
from gptmodel.formats.hf_export import export_hf
from gptmodel.model import GPT
from gptmodel.pretrained import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ModelConfig(n_layer=1, n_head=2, n_embd=128, context_length=32)  # 26 MB: the client keeps whole 10 MB pieces
WEIGHTS = "/acme/tiny/resolve/"
CHILD = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.errors import GptflowError
from gptmodel.pretrained import import_weights
try:
    found, reused = import_weights(Store(Path(sys.argv[1])), "acme/tiny")
    print(json.dumps({"digest": found.digest, "reused": reused, "revision": found.summary["revision"]}))
except GptflowError as error:
    print(json.dumps({"error": type(error).__name__, "said": str(error)}))
"""
CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
ssl-key = ""
ssl-cert = ""
repos-path = "./repos"
hf-scheme = "http"
hf-netloc = "127.0.0.1:1"
hf-lfs-netloc = "127.0.0.1:1"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
mirrors-path = ["./mirrors"]
[accessibility]
offline = true
"""
Handler = BaseHTTPRequestHandler
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Port and commit of a hub with one repository, acme/tiny."""
    folder = tmp_path_factory.mktemp("hub")
    repository = folder / "mirrors" / "models" / "acme" / "tiny"
    export_hf(GPT(SHAPE, seed=1), repository)
    for words in ("init -q -b main", "add -A", "-c user.name=a -c user.email=a@b commit -qm x"):
        subprocess.run(["git", "-C", repository, *words.split()], check=True)
    commit = subprocess.check_output(["git", "-C", repository, "rev-parse", "HEAD"], text=True).strip()
    command = _installed(folder / "venv")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config.toml").write_text(CONFIG.format(port=port))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([command, "-c", "config.toml"], cwd=folder, stdout=log, stderr=log)
    try:
        while not _answers(port):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield port, commit
    finally:
        server.terminate()
        server.wait()


def _installed(where: Path) -> Path:
    venv.create(where, with_pip=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pip = [where / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *extras["hub"]], check=True, stdout=sys.stderr)
    return where / "bin" / "olah-cli"


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/models/acme/tiny/revision/main", timeout=5):
            return True
    except OSError:
        return False


class Fault:
    """What the proxy does to answers for the weights; `seen` is the range that each request for them asked for."""

    def __init__(self, work: Callable[[Fault, Handler, int, dict[str, str], bytes], None] | None = None) -> None:
        self.work = work
        self.seen: list[str] = []


@contextmanager
def through(port: int, fault: Fault) -> Iterator[str]:
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            kept = {k: v for k, v in self.headers.items() if k.lower() in ("range", "accept-encoding", "user-agent")}
            there.request(self.command, self.path, headers=kept)
            answer = there.getresponse()
            body = answer.read()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            framing = ("transfer-encoding", "connection", "content-length")
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in framing}
            headers |= {"Content-Length": length} if length else {}  # or a client could not see that it was cut off
            wanted = self.path.startswith(WEIGHTS) and self.path.endswith("model.safetensors")
            if wanted and self.command == "GET":
                fault.seen.append(self.headers.get("Range", ""))
                if fault.work is not None:
                    fault.work(fault, self, answer.status, headers, body)
                    return
            send(self, answer.status, headers, body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: Handler, status: int, headers: dict[str, str], body: bytes, upto: int | None = None) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[:upto])


def slowly(fault: Fault, handler: Handler, status: int, headers: dict[str, str], body: bytes) -> None:
    send(handler, status, headers, body, upto=0)
    for start in range(0, len(body), len(body) // 10):
        handler.wfile.write(body[start : start + len(body) // 10])
        time.sleep(0.2)


def cut_once(fault: Fault, handler: Handler, status: int, headers: dict[str, str], body: bytes) -> None:
    send(handler, status, headers, body, upto=len(body) // 2 if len(fault.seen) == 1 else None)
    handler.close_connection = True


def busy(fault: Fault, handler: Handler, status: int, headers: dict[str, str], body: bytes) -> None:
    send(handler, 429, {"Retry-After": "1", "Content-Length": "0"}, b"")


def altered(fault: Fault, handler: Handler, status: int, headers: dict[str, str], body: bytes) -> None:
    send(handler, status, headers, body[:-5] + b"other")


def import_from(endpoint: str, folder: Path) -> dict[str, str]:
    import json

    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(folder / "store")]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_weights_arrive_pinned_to_their_commit_and_are_asked_for_once(hub: tuple[int, str], tmp_path: Path) -> None:
    port, commit = hub
    fault = Fault()
    with through(port, fault) as url:
        first = import_from(url, tmp_path)
        assert first["revision"] == commit
        again = import_from(url, tmp_path)
    assert (again["digest"], again["reused"]) == (first["digest"], True)
    assert len(fault.seen) == 1
    wanted = GPT(SHAPE, seed=1)
    (found,) = (tmp_path / "store" / "weights").glob("[0-9a-f]*")
    ours = dict(load_pretrained(found).named_parameters())
    assert all(bool((ours[name] == parameter).all()) for name, parameter in wanted.named_parameters())


def test_a_slow_hub_and_one_that_is_cut_off_give_the_same_bytes(hub: tuple[int, str], tmp_path: Path) -> None:
    digests = set()
    for name, work in (("plain", None), ("slow", slowly), ("cut", cut_once)):
        fault = Fault(work)
        (tmp_path / name).mkdir()
        with through(hub[0], fault) as url:
            digests.add(import_from(url, tmp_path / name)["digest"])
        if name == "cut":
            assert len(fault.seen) == 2
            assert fault.seen[1].startswith("bytes="), "it went on where it was cut"
    assert len(digests) == 1


def test_a_busy_hub_is_told_as_what_time_may_heal(hub: tuple[int, str], tmp_path: Path) -> None:
    with through(hub[0], Fault(busy)) as url:
        found = import_from(url, tmp_path)
    assert found["error"] == "NetworkError"
    assert "429" in found["said"]
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_other_bytes_than_the_hub_said_are_refused_and_asked_for_again(hub: tuple[int, str], tmp_path: Path) -> None:
    fault = Fault(altered)
    with through(hub[0], fault) as url:
        found = import_from(url, tmp_path)
        assert found["error"] == "DataError"
        assert "model.safetensors is not what the hub said" in found["said"]
        assert not list((tmp_path / "store").rglob("manifest.json"))
        fault.work = None
        assert "digest" in import_from(url, tmp_path)


def test_a_redirect_to_another_server_is_followed(hub: tuple[int, str], tmp_path: Path) -> None:
    """As the hub does for large files: to a store of its own, with the hash in the first answer."""
    plain = Fault()
    with through(hub[0], plain) as store:

        def elsewhere(fault: Fault, handler: Handler, status: int, headers: dict[str, str], body: bytes) -> None:
            send(handler, 302, {"Location": store + handler.path, "Content-Length": "0"}, b"")

        with through(hub[0], Fault(elsewhere)) as url:
            assert "digest" in import_from(url, tmp_path)
    assert len(plain.seen) == 1
