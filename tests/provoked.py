"""A case of `tests.provocations` through the real command line, and what it said as a block of docs/errors.md."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from flows.__main__ import main
from tasks import services
from tests.mishaps import PORT, Case, Place

ROOT = Path(__file__).resolve().parents[1]


def run(case: Case, place: Place) -> tuple[int, str]:
    """Exit code and what was said, by the command line's own entry point, without what differs between machines.

    A case with a flow uses the Prefect server and the MLflow database that the environment names.
    """
    ours = ("GPTFLOW_", "OPENLINEAGE_") if case.flow else ("PREFECT_", "MLFLOW_", "GPTFLOW_", "OPENLINEAGE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # as tasks.tracking.runs sets it when it is imported first
    env |= {"GPTFLOW_STORE": "store", "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **case.env}
    words = shlex.split(case.command.format(**place.names))
    before, told, code = Path.cwd(), io.StringIO(), 0
    try:
        os.chdir(place.folder)
        with (
            mock.patch.dict(os.environ, env, clear=True),
            case.prepare(place) or nullcontext(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(told),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.given))),
        ):
            code = _typed(words)
    finally:
        os.chdir(before)
    return code, said(told.getvalue(), place)


def _typed(words: list[str]) -> int:
    if words == ["make", "up"]:
        return services.main(["up"])
    with mock.patch.object(sys, "argv", ["gptflow", *words]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


_NOT_SAID = r"\d\d:\d\d:\d\d|Usage: |Try |$|gptflow: .* so far$"
"""Logs, click's advice, and how far slow work is."""


def said(stderr: str, place: Place) -> str:
    """What speaks of the error, without this machine's folders, ports and hashes; logs are left out."""
    lines = [line for line in stderr.splitlines() if not re.match(_NOT_SAID, line)]
    found = "\n".join(line for line in lines if re.match("gptflow: |Error: ", line)) or "\n".join(lines)
    found = (
        found.replace(str(ROOT), "/…/gptflow")
        .replace(str(place.folder.resolve()), "/…")
        .replace(str(PORT), "4200")
        .replace(str(PORT + 1), "4201")
    )
    found = re.sub(r"'(/…/\S+)'", r"\1", found)  # quoted for the shell where the folder's name asks for it
    found = re.sub(r"process \d+ on \S+ since \S+;", "process 4711 on here since 2026-01-01T00:00:00+00:00;", found)
    found = re.sub(r"[\d.]+ s of train.budget", "6.3 s of train.budget", found)
    return plain(re.sub(r"line \d+ column \d+ \(char \d+\)", "line 9 column 2 (char 99)", found))


def plain(found: str) -> str:
    """Every hash as the same one."""
    return re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,64}\b", lambda m: "1f2e3d4c5b6a7980"[: len(m[0])], found)


def block(case: Case, place: Place, code: int, told: str) -> str:
    """The case as it stands on the page."""
    command = plain(case.command.format(**place.names).replace("0" * 64, "…"))
    env = "".join(f"{name}={value} " for name, value in case.env.items() if name.endswith(("_URI", "_URL", "_STORE")))
    typed = command if command == "make up" else f"gptflow {command}"
    return f"{case.how[0].upper()}{case.how[1:]} (exit code {code}):\n\n```\n$ {env}{typed}\n{told}\n```\n"


HEAD = """# What can go wrong, and what it says

Every message names what failed, the value, and what to do. Exit codes: 2 for a wrong setting or argument, 1 for what
failed, 143 or 130 after a signal (saved), 0 for done. What time may heal (a server, a lock, a download) is tried again
by itself before it is told; [promises](reliability.md) says what holds then.

Made from `tests/provocations.py` by `python -m tests.provocations`; tests run all of it and hold this page.
"""


def page(blocks: dict[str, list[str]]) -> str:
    """The page: a heading for each area, and its blocks."""
    return HEAD + "".join(f"\n## {area}\n\n" + "\n".join(found) for area, found in blocks.items())


def outcome(case: Case, furnished: Path, names: dict[str, str], folder: Path) -> tuple[int, str]:
    """Exit code, and the block of a case that runs in a new folder with a store of its own."""
    shutil.copytree(furnished / "store", folder / "store")
    place = Place(folder, names)
    code, told = run(case, place)
    return code, block(case, place, code, told)
