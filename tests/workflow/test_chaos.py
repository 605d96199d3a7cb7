"""A few kills at random moments, and the bytes of the undisturbed run. `make chaos N=50` does more of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos.py"


@pytest.mark.parametrize(
    ("kills", "through"),
    [
        pytest.param(2, "plain", marks=pytest.mark.timeout(900)),
        pytest.param(20, "plain", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_pipelines_make_the_same_bytes(tmp_path: Path, kills: int, through: str) -> None:
    command = [
        sys.executable,
        str(CHAOS),
        "--kills",
        str(kills),
        "--seed",
        "139",
        "--through",
        through,
        "--keep",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.count("\nkill ") == kills
    assert "no differences" in done.stdout.splitlines()[-1]
