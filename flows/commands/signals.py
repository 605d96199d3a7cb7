"""`gptflow data-arrived`: says that there may be something new to learn from, so that retraining looks at once."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

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
    if not _is_address(api):
        shown = api.rpartition("@")[2]  # before it may stand a password
        raise ConfigError(
            f"PREFECT_API_URL is {shown!r}, which is no address; give one such as http://127.0.0.1:4200/api"
        )
    listening = tell(api.rstrip("/"), name, message or f"{name} arrived")
    click.echo(f"told: data {name!r} arrived; {', '.join(listening)} starts on it")


def _is_address(url: str) -> bool:
    try:
        found = urlsplit(url)
        return found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:  # half a bracket, or a port that is no number
        return False
