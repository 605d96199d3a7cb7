"""What a measurement ran on, and how a handful of values is told: the same in every file of `benchmarks/results`."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
from collections.abc import Sequence
from typing import Any

from gptmodel.store.provenance import provenance

_KEPT = ("cpu", "cpu_flags", "cpus", "python", "git_commit", "git_dirty", "code_digest")


def machine(*packages: str, threads: int = 0) -> dict[str, Any]:
    """Processor, threads, load, code and versions (torch's, and of these packages if there); never the host's name."""
    found = provenance()
    installed = {each.metadata["Name"].lower() for each in importlib.metadata.distributions()}
    more = {name: importlib.metadata.version(name) for name in packages if name in installed}
    return {
        **{name: found[name] for name in _KEPT if name in found},
        "threads": threads or os.cpu_count() or 1,
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {**{n: v for n, v in found["versions"].items() if n in ("torch", "numpy")}, **more},
    }


def spread(values: Sequence[float], digits: int = 6) -> dict[str, float]:
    """Median, least and most of the values."""
    told = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in told.items()}
