"""`gptflow doctor`: is all there that runs need, and what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gptmodel.checkup import Finding

_MARK = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "bad": "[red]bad [/red]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def doctor(as_json: bool) -> None:
    """Look at Python, packages, torch, disk, memory, locks, GPU, Prefect, MLflow, the hub and the clock.

    Each line is ok, warn or bad, with what to do. Exit code 1 if something is bad. Nothing is changed.
    """
    from gptmodel.checkup import failed

    found = []
    for finding in _findings():
        found.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found]}, ensure_ascii=False))
    failed(found)


def _findings() -> Iterator[Finding]:
    from gptmodel.checkup import examine
    from gptmodel.store.artifacts import store_root
    from tasks.operations.reachable import services

    yield from examine(store_root())
    yield from services()


def _say(finding: Finding) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    advice = f"  [bold]→ {escape(finding.advice)}[/bold]" if finding.advice and finding.state != "ok" else ""
    console.print(f"{_MARK[finding.state]} {finding.what:<14} {escape(finding.value)}{advice}")
