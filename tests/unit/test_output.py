"""Standard output that is full, closed, or of another character set: one line, or a mark for what it cannot show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def gptflow(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`gptflow COMMAND` by a shell, which knows how to redirect."""
    typed = f"exec '{sys.executable}' -m flows {command}"
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "GPTFLOW_STORE": str(folder / "store"), **env}
    return subprocess.run(["bash", "-c", typed], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["config show", "tokens hi", "generate --untrained smoke --max-new-tokens 1 a"])
def test_a_full_output_is_one_line(tmp_path: Path, command: str) -> None:
    done = gptflow(f"{command} >/dev/full", tmp_path)
    full = "standard output cannot be written (no space left on device); send it to another place"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"gptflow: {full}")
    assert "Traceback" not in done.stderr


def test_a_closed_output_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = gptflow("generate hi >&-", tmp_path)
    said = "gptflow: standard output is closed; send it somewhere, such as >/dev/null\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    assert gptflow("config show | head -1", tmp_path).stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_output_cannot_show_is_replaced(tmp_path: Path, encoding: str) -> None:
    done = gptflow("tokens 'a b'", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?b" in done.stdout
