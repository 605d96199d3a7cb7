"""Who made this, with what: recorded beside every artifact, never part of its fingerprint."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "numpy", "pyarrow", "tiktoken", "datasets", "safetensors", "prefect", "mlflow", "gptflow")


def provenance() -> dict[str, Any]:
    """Git commit and dirty flag, command, Python and library versions, processor, host, and the time now (UTC)."""
    return {
        **_fixed(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _fixed() -> dict[str, Any]:
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "host": socket.gethostname(),
    }


def git_state() -> tuple[str, bool]:
    """(commit, dirty) of the code that runs, or ("", False) where it is not in a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", Path(__file__).name):  # installed inside somebody else's checkout
            return "", False
        commit = git("rev-parse", "HEAD")
        return commit, bool(commit) and bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return "", False


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
