"""Who is told when a night goes wrong: automations that write to Slack, to an e-mail address, or to a webhook.

Addresses come from GPTFLOW_NOTIFY, or else from the file `notify.txt` of the project folder, one a line. `make up`
makes a notification block of each, in Prefect's database, where they are encrypted, and the automations that write to
all of them; both are brought up to date when an address or an automation has changed, and gone when no address is left.
A crashed run is not worth a word while it is being started again: what is told is what stays.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptmodel.errors import ConfigError
from tasks.operations.automations import TAG, WAITING_PAUSE_SECONDS, bring_up_to_date, remove
from tasks.operations.processes import ServiceError, ask, demand
from tasks.operations.signals import GATE_FAILED

VARIABLE, FILE = "GPTFLOW_NOTIFY", "notify.txt"
PREFIX = "gptflow tells: "
_BLOCK = "gptflow-notify"
_KINDS_SECONDS = 30.0
_SLACK = re.compile(r"hooks\.slack(-gov)?\.com")
_GOES_ON = ("Running", "Scheduled", "AwaitingRetry", "AwaitingRatings", "Pending", "Late", "Completed", "Cancelled")
_LEAVES = ("Running", "Scheduled", "AwaitingRetry", "Late", "Completed", "Failed", "Crashed", "Cancelling", "Cancelled")
_BEGINS = ("Pending", "Running", "Completed", "Failed", "Crashed", "Cancelling", "Cancelled")


@dataclass(frozen=True)
class Patience:
    """Seconds before something is told, so that what mends itself is not."""

    crashed: float = WAITING_PAUSE_SECONDS + 30.0
    """Longer than the longest pause before a crashed run is started again."""
    late: float = 900.0
    pending: float = 600.0


@dataclass(frozen=True)
class Address:
    """Where word is sent."""

    url: str
    kind: str
    """Slug of a Prefect block type."""

    def __str__(self) -> str:
        """Without what is secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}/…"

    @property
    def data(self) -> dict[str, Any]:
        """What the block holds. Prefect's Slack block hands its address to Apprise, which knows e-mail as well."""
        if self.kind == "slack-webhook":
            return {"url": self.url}
        text = {"subject": "{{subject}}", "body": "{{body}}"}
        return {"name": "gptflow", "url": "{{url}}", "json_data": text, "secrets": {"url": self.url}}


def addresses(folder: Path) -> list[Address]:
    """Those that are configured; ConfigError that names each one that cannot be one."""
    given = os.environ.get(VARIABLE, "")
    where, lines = VARIABLE, re.split(r"[\s,]+", given)
    if not given.strip() and (file := folder / FILE).is_file():
        where, lines = FILE, [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    problems, found = [], []
    for number, url in enumerate(filter(None, lines), 1):
        parts = urlsplit(url)
        if parts.scheme in ("mailto", "mailtos") and parts.hostname:
            found.append(Address(url, "slack-webhook"))
        elif parts.scheme in ("http", "https") and parts.hostname:
            found.append(Address(url, "slack-webhook" if _SLACK.fullmatch(parts.hostname) else "custom-webhook"))
        else:  # never the whole of it: it may hold a secret
            what = f"{where}: address {number} begins with {url[:12]!r}"
            problems.append(f"{what}; give https://hooks.slack.com/…, mailtos://USER:PASSWORD@HOST?to=…, or https://…")
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(found))


def signals(patience: Patience = Patience()) -> list[dict[str, Any]]:
    """Name, what it tells, trigger and words of each."""
    run = "{{ flow.name }} / {{ flow_run.name }}"
    page = "\n{{ flow_run|ui_url }}"
    said = "\n{{ flow_run.state.message }}"
    return [
        _signal(
            "crashed",
            f"A run crashed and {patience.crashed:.0f} s later nothing had started it again.",
            _unless(["Crashed"], _GOES_ON, patience.crashed),
            f"gptflow: {run} crashed",
            f"{run} crashed, and nothing starts it again (that is done twice, for runs of a deployment).{said}{page}",
        ),
        _signal(
            "silent",
            "A run sent no heartbeat: its process is gone, and its worker did not say so.",
            _at_once("prefect.flow-run.Crashed", {"prefect.state-message": "No heartbeat*"}),
            f"gptflow: no heartbeat of {run}",
            f"{run} sent no heartbeat: its process and its worker are gone. Is the worker up? make status{said}{page}",
        ),
        _signal(
            "failed",
            "A run failed, or took too long.",
            _at_once(["prefect.flow-run.Failed", "prefect.flow-run.TimedOut"], {}),
            f"gptflow: {run} failed",
            f"{run} failed.{said}{page}",
        ),
        _signal(
            "late",
            f"A run was due and {patience.late / 60:.0f} minutes later had not begun.",
            _unless(["Late"], _BEGINS, patience.late),
            f"gptflow: {run} is late",
            f"{run} was due and has not begun. Is a worker up, or busy? make status{page}",
        ),
        _signal(
            "stuck",
            f"A run was handed to a worker and {patience.pending / 60:.0f} minutes later had not begun.",
            _unless(["Pending"], _LEAVES, patience.pending),
            f"gptflow: {run} is stuck",
            f"{run} was handed to a worker and has not begun: its process died at the start, or hangs.{page}",
        ),
        _signal(
            "gate failed",
            "A model was trained and not promoted, or data did not pass, and why.",
            {**_REACTIVE, "match": {"prefect.resource.id": "gptflow.*"}, "expect": [GATE_FAILED]},
            "gptflow: {{ event.resource.name }} did not pass",
            "{{ event.payload.message }}\n{{ event|ui_url }}",
        ),
    ]


def tell(folder: Path, api: str, say: Callable[[str], None], patience: Patience = Patience()) -> None:
    """Make blocks and automations as the addresses ask for, and say in a line who is told.

    ConfigError for an address that is none, ServiceError where the server refuses one.
    """
    told = addresses(folder)
    if not told:
        if remove(api, PREFIX, keep=()):
            say(f"{'Signals':<15} removed: no address is left")
        say(f"{'Signals':<15} nobody is told of crashed, late or failed runs; put an address into {VARIABLE} or {FILE}")
        _drop_blocks(api, keep=0)
        return
    blocks = [_block(api, number, address) for number, address in enumerate(told, 1)]
    mark = hashlib.sha256("\n".join(address.url for address in told).encode()).hexdigest()[:12]
    wanted = [_with_actions(signal, blocks) for signal in signals(patience)]
    bring_up_to_date(api, say, wanted, "Signals", mark)
    remove(api, PREFIX, keep=[signal["name"] for signal in wanted])
    _drop_blocks(api, keep=len(told))
    say(f"{'Signals':<15} sent to {', '.join(map(str, told))}")


_TAGGED = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_REACTIVE = {"type": "event", "posture": "Reactive", "threshold": 1, "within": 0.0, "for_each": ["prefect.resource.id"]}


def _signal(name: str, description: str, trigger: dict[str, Any], subject: str, body: str) -> dict[str, Any]:
    action = {"type": "send-notification", "subject": subject, "body": body}
    return {"name": PREFIX + name, "description": description, "trigger": trigger, "actions": [action]}


def _at_once(events: str | list[str], match: dict[str, Any]) -> dict[str, Any]:
    expect = [events] if isinstance(events, str) else events
    where = {"prefect.resource.id": "prefect.flow-run.*", **match}
    return {**_REACTIVE, "match": where, "match_related": _TAGGED, "expect": expect}


def _unless(after: Sequence[str], expect: Sequence[str], seconds: float) -> dict[str, Any]:
    """Fires where a run was in the one state, and for so long in none of the others since."""
    return {
        "type": "event",
        "posture": "Proactive",
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": _TAGGED,
        "for_each": ["prefect.resource.id"],
        "after": [f"prefect.flow-run.{name}" for name in after],
        "expect": [f"prefect.flow-run.{name}" for name in expect],
        "threshold": 1,
        "within": seconds,
    }


def _with_actions(signal: dict[str, Any], blocks: Sequence[str]) -> dict[str, Any]:
    return {**signal, "actions": [{**signal["actions"][0], "block_document_id": block} for block in blocks]}


def _block(api: str, number: int, address: Address) -> str:
    """The id of the block with this number, made or brought up to date. ServiceError where the server refuses it."""
    name = f"{_BLOCK}-{number}"
    refused = ServiceError(
        f"the Prefect server took no block {name!r} ({address.kind}) for {address}; is the address right?"
    )
    there = _blocks(api).get(name)
    kind = _kind(api, address.kind)
    if there and there["block_type_id"] != kind["id"]:
        ask(f"{api}/block_documents/{there['id']}", method="DELETE")
        there = None
    if there:  # secrets are not shown, so it is written anew each time: the same stays the same
        body = {"data": address.data, "merge_existing_data": False}
        if ask(f"{api}/block_documents/{there['id']}", body, "PATCH") is None:
            raise refused
        return str(there["id"])
    schemas = demand(f"{api}/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}})
    body = {"name": name, "data": address.data, "block_type_id": kind["id"], "block_schema_id": schemas[0]["id"]}
    if not (made := ask(f"{api}/block_documents/", body)):
        raise refused
    return str(made["id"])


def _kind(api: str, slug: str) -> dict[str, Any]:
    """The block type. A server that has just begun to answer is still making its block types known to itself."""
    deadline = time.monotonic() + _KINDS_SECONDS
    while True:
        found = ask(f"{api}/block_types/slug/{slug}")
        if found and ask(f"{api}/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [found["id"]]}}}):
            return dict(found)
        if time.monotonic() > deadline:
            raise ServiceError(f"the Prefect server knows no block of the kind {slug!r}; is it of another version?")
        time.sleep(0.2)


def _blocks(api: str) -> dict[str, dict[str, Any]]:
    found = demand(f"{api}/block_documents/filter", {"limit": 200})
    return {block["name"]: block for block in found if str(block["name"]).startswith(f"{_BLOCK}-")}


def _drop_blocks(api: str, keep: int) -> None:
    for name, block in _blocks(api).items():
        if int(name.rpartition("-")[2]) > keep:
            ask(f"{api}/block_documents/{block['id']}", method="DELETE")
