"""Bytes and times in words: the unit changes where rounding would, and not before."""

from __future__ import annotations

import pytest

from gptmodel.words import duration, size


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (9_995, "10.0 kB"),
        (31_400_000, "31.4 MB"),
        (99_960_000, "100 MB"),
        (999.4e6, "999 MB"),
        (999.6e6, "1.00 GB"),
        (2.7e12, "2.70 TB"),
        (4e15, "4,000 TB"),
    ],
)
def test_sizes(n_bytes: float, said: str) -> None:
    assert size(n_bytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.46, "9.5 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3_599.6, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
