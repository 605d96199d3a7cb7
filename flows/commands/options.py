"""What several commands take alike, and how they read a text."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from gptmodel.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
check_option = click.option(
    "--check/--no-check", default=None, help="Hash the data first; left out, only what is below 1 GB."
)


class Number(click.types.FloatParamType):
    """A finite number: click's own takes NaN and infinity."""

    def __init__(self, *, least: float = -math.inf, above: float = -math.inf) -> None:
        self.least, self.above = least, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not finite; give a finite number", param, ctx)
        if found < self.least:
            self.fail(f"{value} is below {self.least:g}; give {self.least:g} or more", param, ctx)
        if found <= self.above:
            self.fail(f"{value} is not above {self.above:g}; give more", param, ctx)
        return found


class _Utf8(click.types.StringParamType):
    """A text of the command line. What is not UTF-8 Python hands on as lone surrogates, which nothing can write."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return os.fsencode(value).decode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            name = param.get_error_hint(ctx) if param is not None and ctx is not None else "the text"
            raise ConfigError(f"{name} is not UTF-8 at byte {error.start:,}; convert it first") from None


UTF8 = _Utf8()


def page_option(name: str) -> Callable[[Command], Command]:
    """`--out`, the file that a page is written to."""
    place = click.Path(path_type=Path, dir_okay=False)
    return click.option("--out", type=place, default=name, show_default=True, help="Where the page goes.")


def list_option(rows: int, what: str) -> Callable[[Command], Command]:
    """`--limit`, how many are listed."""
    at_least_none = click.IntRange(min=0)
    said = f"{what} listed; 0 lists all."
    return click.option("--limit", type=at_least_none, default=rows, show_default=True, help=said)


def given_text(text: str = "-") -> str:
    """The argument, or for `-` standard input without the line end that a shell puts behind the last line.

    ConfigError where standard input is not UTF-8.
    """
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 at byte {error.start:,}; convert it first") from None


def given_texts(texts: Sequence[str]) -> list[str]:
    """The arguments with standard input in the place of `-`, or that alone where there are none. Errors alike."""
    if texts.count("-") > 1:
        raise ConfigError("`-` is standard input, which can be read once; give one `-`")
    return [given_text(text) for text in texts or ("-",)]
