"""Ctrl-C while the command line is still being loaded, and what it says of commands that keep nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Ctrl-C at the moment when a module is imported.
_AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
def look(found, args):
    if found == "import" and args[0] == os.environ["AT"]:
        os.environ["AT"] = ""
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
"""
KEPT = "; what is done is kept. Run the same command to go on"


@pytest.mark.parametrize(
    ("at", "words", "said"),
    [
        ("click", "plan smoke", ""),
        ("flows.commands.store", "run smoke", ""),
        ("gptmodel.planning.rates", "plan smoke", "gptflow: stopped by SIGINT\n"),
        ("gptmodel.device", "generate --untrained gpt2-124m hi", "gptflow: stopped by SIGINT\n"),
        ("flows.pipeline", "run smoke", f"gptflow: stopped by SIGINT{KEPT}\n"),
    ],
)
def test_an_interrupt_before_anything_is_done(tmp_path: Path, at: str, words: str, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(_AT_IMPORT)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": paths, "AT": at, "GPTFLOW_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "flows", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.lstrip()) == (130, said)
