"""Who made this, with what: recorded beside every artifact, never part of its fingerprint.

What is too long for a manifest lies once in the store, named by its sha256: `.provenance/<sha256>.patch`, the code's
changes that were not committed, and `.provenance/<sha256>.packages`, the installed packages.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from gptmodel.store.codestate import LOCK, Code, code_digest, inspect_code, recipe_versions

FOLDER = ".provenance"
_LIBRARIES = (
    *("torch", "numpy", "pyarrow", "tiktoken", "fastokens", "datasets", "safetensors", "prefect", "mlflow", "gptflow"),
)
_PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of installed packages
# What decides which kernels run, and so bits: of x86 and of ARM.
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_NAMES_SHOWN = 50


def provenance(root: Path | None = None) -> dict[str, Any]:
    """Code, command, library versions, processor, host, and the time now (UTC).

    With the root of a store, patch and package list are put there as well; why one is not there stands beside its hash.
    """
    return {
        **_fixed(),
        **({"code_patch": _patch_entry(root)} if _code().dirty else {}),
        "packages_digest": _keep(root, _packages(), "packages")["sha256"],
        "command": [_without_secrets(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
        "threads": _threads(),
        "started": now(),
    }


def _threads() -> int:
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a number for each level of nesting
    return int(outermost) if outermost.isdecimal() and int(outermost) else os.cpu_count() or 1


def _without_secrets(word: str) -> str:
    """The word, its addresses without a password, and without a query or fragment, which may hold a token."""
    word = re.sub(r"""(://[^\s'"?#]*)[?#][^\s'"]*?(?=,?[\s'"]|[]}]*$|,\w+://)""", r"\1", word)
    return re.sub(r"://[^/@\s]*@", "://", word)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def changed_code() -> str:
    """One line for a run's log on the code's changes that are not committed; "" where there are none."""
    code = _code()
    if not code.dirty:
        return ""
    kept = f"sha256 {hashlib.sha256(code.patch).hexdigest()[:16]}…" if code.patch else code.problem or "not kept"
    cut = f", without {len(code.left_out)} files" if code.left_out else ""
    return f"the code has changes that are not committed; they are kept as a patch ({kept}{cut})"


def stored_patch(root: Path, made_with: dict[str, Any]) -> bytes | None:
    """The patch that a manifest's provenance names, from the store; None if there is none, or it is damaged."""
    try:
        wanted = made_with["code_patch"]["sha256"]
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            return None
        data = (root / FOLDER / f"{wanted}.patch").read_bytes()
    except (OSError, KeyError, TypeError):
        return None
    return data if hashlib.sha256(data).hexdigest() == wanted else None


@cache
def _code() -> Code:
    return inspect_code(_PROJECT)


@cache
def _fixed() -> dict[str, Any]:
    code, lock = _code(), _PROJECT / LOCK
    installed = dict(line.split("==", 1) for line in _packages().decode().splitlines())
    return {
        "git_commit": code.commit,
        "git_dirty": code.dirty,
        **({"git_problem": code.problem} if code.problem else {}),
        **({"git_remote": code.remote} if code.remote else {}),
        "code_digest": code_digest(_PROJECT),
        "recipes": recipe_versions(_PROJECT),
        **({"lock_digest": hashlib.sha256(lock.read_bytes()).hexdigest()} if lock.is_file() else {}),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in _LIBRARIES if name in installed},
        "platform": platform.platform(),
        **_cpu(),
        "cpus": os.cpu_count(),
        "host": socket.gethostname(),
    }


def _patch_entry(root: Path | None) -> dict[str, Any]:
    code = _code()
    left_out = {"left_out": list(code.left_out[:_NAMES_SHOWN]), "left_out_files": len(code.left_out)}
    entry = _keep(root, code.patch, "patch") if code.patch else {"missing": code.problem or "nothing fits in it"}
    return {**entry, **(left_out if code.left_out else {})}


def _keep(root: Path | None, data: bytes, ending: str) -> dict[str, Any]:
    """Put data into the store under its hash, once. A store that cannot take it is no reason to fail."""
    from gptmodel.store.artifacts import write_atomic  # late: artifacts records provenance

    entry: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if root is None:
        return entry
    path = root / FOLDER / f"{entry['sha256']}.{ending}"
    try:
        if not path.is_file() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        else:
            os.utime(path)  # the collector takes it for old otherwise, until the manifest that names it is there
    except OSError as error:
        entry["missing"] = error.strerror or str(error)
    return entry


@cache
def _packages() -> bytes:
    """`name==version` of every installed distribution, sorted, one a line.

    From the names of their folders: reading 200 metadata files takes 0.2 s.
    """
    found: dict[str, str] = {}
    for place in dict.fromkeys(sys.path):
        try:
            entries = sorted(entry.name for entry in os.scandir(place or "."))
        except OSError:
            continue
        for entry in entries:
            if match := re.fullmatch(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info", entry):
                found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found)).encode(errors="replace")


def _cpu() -> dict[str, Any]:
    """The processor's name, and which of the instructions that matter it has."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            text = file.read(16_384)
    except OSError:
        return {"cpu": platform.processor(), "cpu_flags": []}
    name = re.search(r"^model name\s*: (.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.M)
    has = set(flags[1].split()) if flags else set()
    return {"cpu": name[1] if name else platform.processor(), "cpu_flags": [f for f in _CPU_FLAGS if f in has]}
