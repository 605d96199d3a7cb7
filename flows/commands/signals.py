"""`gptflow data-arrived`: says that there may be something new to learn from, so that retraining looks at once."""

from __future__ import annotations

import os
import re

import click

from gptmodel.errors import ConfigError


@click.command("data-arrived")
@click.argument("name", default="new")
@click.option("--message", default="", help="A line for people, shown with the event in Prefect's pages.")
def data_arrived(name: str, message: str) -> None:
    """Tell Prefect that data arrived; deployments that start on that look whether it is new. NAME says which data.

    For whatever brings the data: the end of a copy, a hook, cron. Without it the data is found by the next night.
    """
    from tasks.operations.signals import data_arrived as tell

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise ConfigError(f"{name[:40]!r} is no name of data; use letters, digits and . _ -, at most 100")
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        raise ConfigError("no Prefect server is up, so nobody would hear it; start it: make up")
    listening = tell(api.rstrip("/"), name, message or f"{name} arrived")
    click.echo(f"told: data {name!r} arrived; {', '.join(listening)} starts on it")
