"""Signals: what a Prefect server says to a webhook and to a mail server on loopback, and when it says nothing."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gptmodel.errors import ConfigError
from tasks.operations import notifying
from tasks.operations.notifying import FILE, PREFIX, VARIABLE, Patience, addresses, signals, tell
from tasks.operations.processes import ask
from tasks.operations.signals import GATE_FAILED, announce
from tests.project import until
from tests.project import webhook as hook

SOON = Patience(crashed=10.0, late=10.0, pending=10.0)  # Prefect takes no less


@dataclass
class Webhook:
    url: str
    heard: list[dict[str, str]]

    def subjects(self) -> list[str]:
        return [said["subject"] for said in self.heard]


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs that has one letter to hand over."""

    letters: ClassVar[list[str]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                letter = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    letter += line
                self.letters.append(letter.decode())
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 yes\r\n")
            if word == b"QUIT":
                return


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with hook() as (url, heard):
        yield Webhook(url, heard)


@pytest.fixture
def api(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from prefect.settings import PREFECT_API_URL

    monkeypatch.delenv(VARIABLE, raising=False)
    found = str(PREFECT_API_URL.value())
    yield found
    monkeypatch.delenv(VARIABLE, raising=False)
    tell(workplace, found, lambda _: None)
    assert not there(found)


def there(api: str) -> list[dict[str, Any]]:
    return [found for found in ask(f"{api}/automations/filter", {}) if found["name"].startswith(PREFIX)]


def run_in(states: list[tuple[str, str, str]], tags: Sequence[str] = ("gptflow",)) -> str:
    """The name of a run that goes through (type, name, message) states."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled, State

    @flow(name="night")
    def night() -> None: ...

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(night, tags=tags, state=Scheduled())
        for kind, name, message in states:
            client.set_flow_run_state(run.id, State(type=StateType(kind), name=name, message=message), force=True)
            time.sleep(0.5)  # nights are not a burst, in which a server on SQLite loses events to locks of its database
        return str(run.name)


@pytest.mark.slow
def test_what_stays_wrong_is_told_and_what_mends_itself_is_not(
    api: str, workplace: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, webhook.url)
    tell(workplace, api, lambda _: None, SOON)
    time.sleep(1.0)  # the server reads new automations on an event of its own
    running = ("RUNNING", "Running", "")
    crashed = ("CRASHED", "Crashed", "killed")
    gone = run_in([running, crashed])
    mended = run_in([running, crashed, ("SCHEDULED", "AwaitingRetry", ""), running])
    silent = run_in([running, ("CRASHED", "Crashed", "No heartbeat for 90 s")])
    failed = run_in([running, ("FAILED", "Failed", "no space left")])
    late = run_in([("SCHEDULED", "Late", "")])
    stuck = run_in([("PENDING", "Pending", "")])
    begun = run_in([("SCHEDULED", "Late", ""), ("PENDING", "Pending", ""), running])
    other = run_in([running, ("FAILED", "Failed", "not ours")], ["other"])

    wanted = {
        f"gptflow: night / {gone} crashed",
        f"gptflow: night / {silent} crashed",
        f"gptflow: no heartbeat of night / {silent}",
        f"gptflow: night / {failed} failed",
        f"gptflow: night / {late} is late",
        f"gptflow: night / {stuck} is stuck",
    }
    until(lambda: wanted <= set(webhook.subjects()), "all of these to be told")
    last = run_in([running, crashed])  # what comes later is told, so the others would have been
    until(lambda: f"gptflow: night / {last} crashed" in webhook.subjects(), "the last to be told")
    # A set: an event that met a locked database is looked at again, and may be told twice.
    assert set(webhook.subjects()) == {*wanted, f"gptflow: night / {last} crashed"}
    assert not [name for name in (mended, begun, other) if any(name in said for said in webhook.subjects())]
    why, *_ = [said["body"] for said in webhook.heard if failed in said["subject"]]
    assert "no space left" in why


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_gate_that_failed_is_told_by_mail_too_with_its_reason(
    api: str, workplace: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mail = f"mailto://127.0.0.1:{server.server_address[1]}/?from=night@example.org&to=day@example.org"
    monkeypatch.setenv(VARIABLE, f"{webhook.url} {mail}")
    tell(workplace, api, lambda _: None)
    time.sleep(1.0)

    @flow
    def retrain() -> None:
        announce(GATE_FAILED, "checkpoint/1f2e", "worse by 0.02 nats, p = 0.4", p_value=0.4)

    try:
        retrain()
        until(lambda: bool(webhook.heard and Mail.letters), "word and letter")
    finally:
        server.shutdown()
        server.server_close()
    (said,) = webhook.heard
    assert said["subject"] == "gptflow: checkpoint/1f2e did not pass"
    assert "worse by 0.02 nats, p = 0.4" in said["body"]
    (letter,) = Mail.letters
    assert "To: day@example.org" in letter
    assert "checkpoint/1f2e did not pass" in letter.replace("=\r\n", "").replace("_", " ")


def test_signals_are_installed_once_renewed_with_the_address_and_gone_without_one(
    api: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def again(*urls: str) -> list[str]:
        said.clear()
        monkeypatch.setenv(VARIABLE, " ".join(urls))
        tell(workplace, api, said.append)
        return [line.split()[1] for line in said]

    names = {signal["name"] for signal in signals()}
    assert again() == ["nobody"]
    assert again("http://127.0.0.1:9/t0psecret") == ["installed:"] * len(names) + ["sent"]
    assert said[-1].endswith("sent to http://127.0.0.1/…")
    assert again("http://127.0.0.1:9/t0psecret") == ["sent"]
    assert {found["name"] for found in there(api)} == names
    ask(f"{api}/automations/{there(api)[0]['id']}", {"enabled": False}, "PATCH")
    both = ("http://127.0.0.1:9/other", "https://hooks.slack.com/services/T0/B0/s3cretpath")
    assert again(*both) == ["renewed:"] * len(names) + ["sent"]
    assert sorted(found["enabled"] for found in there(api)) == [False] + [True] * (len(names) - 1)
    assert {len(found["actions"]) for found in there(api)} == {2}
    assert "t0psecret" not in json.dumps(ask(f"{api}/block_documents/filter", {}))
    assert "s3cretpath" not in json.dumps(there(api))
    assert again() == ["removed:", "nobody"]
    assert not there(api)
    assert not [b for b in ask(f"{api}/block_documents/filter", {}) if str(b["name"]).startswith("gptflow-notify")]


def test_addresses_come_from_the_environment_or_the_file_and_a_wrong_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert addresses(tmp_path) == []
    (tmp_path / FILE).write_text(
        "# the night shift\nhttps://hooks.slack.com/services/a/b/c\n\nhttps://own.example/x # me\n"
    )
    assert [found.kind for found in addresses(tmp_path)] == ["slack-webhook", "custom-webhook"]
    monkeypatch.setenv(VARIABLE, "mailtos://me:pw@mail.example.org?to=you@example.org, https://own.example/x")
    found = addresses(tmp_path)
    assert [address.kind for address in found] == ["slack-webhook", "custom-webhook"]
    assert str(found[0]) == "mailtos://mail.example.org/…"
    monkeypatch.setenv(VARIABLE, "ftp://x you@example.org")
    with pytest.raises(ConfigError) as error:
        addresses(tmp_path)
    assert [problem.partition(";")[0] for problem in error.value.problems] == [
        "GPTFLOW_NOTIFY: address 1 begins with 'ftp://x'",
        "GPTFLOW_NOTIFY: address 2 begins with 'you@example.'",
    ]


def test_no_signal_is_sent_while_a_crashed_run_is_still_to_be_started_again() -> None:
    from tasks.operations.automations import AUTOMATIONS

    pauses = [found["trigger"]["within"] for found in AUTOMATIONS if "restart" in found["name"]]
    (crashed,) = [found for found in signals() if found["name"] == f"{notifying.PREFIX}crashed"]
    assert crashed["trigger"]["within"] > max(pauses)
    assert "prefect.flow-run.AwaitingRetry" in crashed["trigger"]["expect"]
