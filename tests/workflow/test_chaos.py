"""A few kills at random moments, and the bytes of the undisturbed run. `make chaos N=50` does more of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos.py"
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kills", "through", "seed"),
    [
        pytest.param(1, "plain", 1597, marks=pytest.mark.timeout(900)),
        pytest.param(2, "plain", 1597, marks=[SLOW, pytest.mark.timeout(900)]),
        pytest.param(20, "plain", 1, marks=[SLOW, pytest.mark.timeout(1800)]),
        pytest.param(3, "cli", 2, marks=[SLOW, pytest.mark.timeout(1800)]),
        pytest.param(5, "worker", 145, marks=[SLOW, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_pipelines_make_the_same_bytes(tmp_path: Path, kills: int, through: str, seed: int) -> None:
    words = f"--kills {kills} --seed {seed} --through {through} --keep {tmp_path / 'chaos'}"
    command = [sys.executable, str(CHAOS), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.count("\nkill ") == kills
    assert "no differences" in done.stdout.splitlines()[-1]
