"""The peak of memory that a training tells is its own."""

from __future__ import annotations

import subprocess
import sys

from gptmodel.resident import peak_resident_bytes

CHILD = "from gptmodel.resident import peak_resident_bytes; {work}; print(peak_resident_bytes())"
PARENT = """
import subprocess, sys
held = bytearray(400_000_000)
held[::4096] = b"x" * len(held[::4096])
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def told(*arguments: str) -> int:
    return int(subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout)


def test_a_child_does_not_begin_with_what_its_parent_held() -> None:
    assert 1_000_000 < told("-c", PARENT, CHILD.format(work="pass")) < 100_000_000


def test_the_peak_is_told_after_it_is_over() -> None:
    work = "held = bytearray(200_000_000); held[::4096] = b'x' * len(held[::4096]); del held"
    assert 200_000_000 < told("-c", CHILD.format(work=work)) < 300_000_000
    assert peak_resident_bytes() > 1_000_000
