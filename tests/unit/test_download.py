"""A pinned file arrives whole or not at all: against a real HTTP server that misbehaves in every way it can."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptmodel.errors import DataError, NetworkError
from gptmodel.progress import Meter, watched
from gptmodel.text.addresses import is_public
from gptmodel.text.download import download

BODY = bytes(range(256)) * 400
SHA = hashlib.sha256(BODY).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the next function of the server's list; the last one stays."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    def head(self, code: int, **headers: str | int) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [whole]
        self.asked: list[tuple[str, str]] = []
        self.freed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.txt"


def whole(handler: Handler) -> None:
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    about = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
    handler.head(206 if start else 200, Content_Length=len(BODY) - start, **about)
    handler.wfile.write(BODY[start:])


def whole_without_ranges(handler: Handler) -> None:
    handler.head(200, Content_Length=len(BODY))
    handler.wfile.write(BODY)


def cut(handler: Handler) -> None:
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    about = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
    handler.head(206 if start else 200, Content_Length=len(BODY) - start, **about)
    handler.wfile.write(BODY[start : start + 30_000])


def short_without_length(handler: Handler) -> None:
    handler.head(200)
    handler.wfile.write(BODY[:-1])


def other_bytes(handler: Handler) -> None:
    handler.head(200, Content_Length=5)
    handler.wfile.write(b"other")


def hang(handler: Handler) -> None:
    handler.server.freed.wait()


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def redirect(where: str) -> Answer:
    return lambda handler: handler.head(302, Location=where, Content_Length=0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.freed.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "data.txt"


class Noted:
    """A watcher that keeps what it was shown."""

    def __init__(self) -> None:
        self.meters: list[Meter] = []

    def begin(self, meter: Meter) -> None:
        self.meters.append(meter)

    def end(self, meter: Meter) -> None:
        assert meter.succeeded


def get(server: Server, target: Path, sha256: str = SHA, timeout: float = 20, url: str = "") -> Path:
    return download(url or server.url, target, sha256=sha256, timeout=timeout, allow_private=True)


def left(target: Path) -> list[str]:
    """Names beside the target, locks left out."""
    return (
        sorted(p.name for p in target.parent.glob("*") if not p.name.endswith(".lock"))
        if target.parent.exists()
        else []
    )


def test_a_file_arrives_and_is_not_asked_for_again(server: Server, target: Path) -> None:
    noted = Noted()
    with watched(noted):
        got = download(server.url, target, sha256=SHA, allow_private=True)
    assert got.read_bytes() == BODY
    assert left(target) == ["data.txt"]
    (meter,) = noted.meters
    assert (meter.what, meter.done, meter.total, meter.unit) == (
        f"download of {server.url}",
        len(BODY),
        len(BODY),
        "bytes",
    )
    get(server, target)
    assert len(server.asked) == 1


def test_a_stored_file_with_other_bytes_is_fetched_again(server: Server, target: Path) -> None:
    get(server, target).write_bytes(b"spoilt")
    assert get(server, target).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_cut_body_goes_on_where_it_stopped(server: Server, target: Path) -> None:
    server.answers = [cut, cut, whole]
    assert get(server, target).read_bytes() == BODY
    assert [asked for _, asked in server.asked] == ["", "bytes=30000-", "bytes=60000-"]


def test_what_arrived_is_kept_for_the_next_attempt(server: Server, target: Path) -> None:
    server.answers = [cut, status(503)]
    with pytest.raises(NetworkError, match="503"):
        get(server, target)
    assert not target.exists()
    server.answers = [whole]
    assert get(server, target).read_bytes() == BODY
    assert server.asked[-1][1] == "bytes=30000-"


def test_a_server_without_ranges_is_read_from_the_start(server: Server, target: Path) -> None:
    server.answers = [cut, whole_without_ranges]
    assert get(server, target).read_bytes() == BODY


def test_what_an_earlier_attempt_left_of_another_version_does_no_harm(server: Server, target: Path) -> None:
    def cut_of_another(handler: Handler) -> None:
        handler.head(200, Content_Length=len(BODY))
        handler.wfile.write(b"x" * 30_000)

    server.answers = [cut_of_another, status(503)]
    with pytest.raises(NetworkError):
        get(server, target)
    server.answers = [whole]
    assert get(server, target).read_bytes() == BODY


def test_a_server_that_gives_no_byte_is_not_asked_for_ever(server: Server, target: Path) -> None:
    server.answers = [
        cut,
        lambda handler: handler.head(206, Content_Range=f"bytes 30000-{len(BODY) - 1}/{len(BODY)}", Content_Length=5),
    ]
    with pytest.raises(NetworkError):
        get(server, target)
    assert len(server.asked) == 2


def test_other_bytes_are_refused_and_deleted(server: Server, target: Path) -> None:
    server.answers = [other_bytes]
    with pytest.raises(DataError, match=f"(?s){hashlib.sha256(b'other').hexdigest()}.*{SHA}"):
        get(server, target)
    assert left(target) == []


def test_a_short_body_of_unknown_length_is_not_taken_for_the_file(server: Server, target: Path) -> None:
    server.answers = [short_without_length]
    with pytest.raises((DataError, NetworkError), match=SHA):
        get(server, target)
    assert not target.exists()


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_what_time_may_heal_is_a_network_error(server: Server, target: Path, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(NetworkError, match=str(code)):
        get(server, target)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("wish", "seconds"), [("7", 7.0), ("Thu, 01 Jan 2015 00:00:00 GMT", 0.0)])
def test_the_servers_wish_to_wait_is_passed_on(server: Server, target: Path, wish: str, seconds: float) -> None:
    server.answers = [status(429, Retry_After=wish)]
    with pytest.raises(NetworkError) as caught:
        get(server, target)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_missing_file_is_not_retried(server: Server, target: Path, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(DataError, match=str(code)):
        get(server, target)


def test_a_hanging_server_is_given_up(server: Server, target: Path) -> None:
    server.answers = [hang]
    with pytest.raises(NetworkError):
        get(server, target, timeout=0.2)


def test_a_server_that_is_not_there(server: Server, target: Path) -> None:
    with pytest.raises(NetworkError):
        get(server, target, url="http://127.0.0.1:9/data.txt")


def test_redirects_are_followed_but_not_for_ever(server: Server, target: Path) -> None:
    server.answers = [redirect("/elsewhere"), redirect(server.url), whole]
    assert get(server, target).read_bytes() == BODY
    target.unlink()
    server.answers = [redirect("/again")]
    server.asked.clear()
    with pytest.raises(DataError, match="redirects"):
        get(server, target)
    assert len(server.asked) < 12


def test_a_redirect_to_a_file_of_this_machine_is_refused(server: Server, target: Path) -> None:
    secret = target.parent.parent / "secret"
    secret.write_bytes(BODY)
    server.answers = [redirect(secret.as_uri())]
    with pytest.raises(DataError, match="file:"):
        get(server, target)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.0.0.8", "169.254.169.254", "[::1]", "0", "2130706433"),
        # An IPv4 address inside: mapped, compatible, 6to4, NAT64, and a network's own NAT64.
        *("[::ffff:127.0.0.1]", "[::127.0.0.1]", "[2002:7f00:1::]", "[2002:c0a8:1::1]", "[64:ff9b::7f00:1]"),
        *("[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::808:808]"),
    ],
)
def test_private_addresses_are_refused_unless_allowed(target: Path, host: str) -> None:
    with pytest.raises(DataError, match="allow_private_addresses"):
        download(f"http://{host}/data.txt", target, sha256=SHA, timeout=1)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The only way to a public address without a network is a proxy, and ours is the server itself.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    server.answers = [redirect("http://192.168.0.1/inside"), whole]
    with pytest.raises(DataError, match=r"192\.168\.0\.1"):
        download("http://93.184.216.34/data.txt", target, sha256=SHA, timeout=5)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "file:///etc/hostname", "http://", "http://h:99999/a", "http://[bad/a", "nothing"]
)
def test_what_is_no_web_address_is_refused(target: Path, url: str) -> None:
    with pytest.raises(DataError):
        download(url, target, sha256=SHA, timeout=1)


def test_passwords_and_tokens_stay_out_of_messages(server: Server, target: Path) -> None:
    server.answers = [status(404)]
    with pytest.raises(DataError) as caught:
        get(server, target, url=server.url.replace("//", "//me:hunter2@") + "?token=hush")
    assert "hunter2" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "data.txt" in str(caught.value)
