"""What `prefect.yaml` names, made known to a server, and made known again only when something has changed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from tasks.operations.processes import ServiceError, demand
from tasks.operations.schedules import kept_on


def register(folder: Path, api: str, env: dict[str, str], log: Path, say: Callable[[str], None]) -> None:
    """`prefect deploy --all`, unless the server knows them all and nothing that they are made of has changed.

    ServiceError where it fails, with what it printed in `log`.
    """
    entries = yaml.safe_load((folder / "prefect.yaml").read_text())["deployments"]
    wanted = {(entry["entrypoint"], entry["name"]) for entry in entries}
    stamp, state = folder / ".prefect" / "deployed", _code_digest(folder)
    if wanted <= _registered(api).keys() and stamp.is_file() and stamp.read_text() == state:
        _name(api, wanted, say, "registered already")
        return
    with kept_on(api, folder / ".prefect" / "schedules.json", say):
        status = _deploy(folder, env, log)
    if status != 0 or not wanted <= _registered(api).keys():
        raise ServiceError(f"`prefect deploy --all` failed; read {log.relative_to(folder)}")
    stamp.write_text(state)
    _name(api, wanted, say, "registered")


def _deploy(folder: Path, env: dict[str, str], log: Path) -> int:
    """Its exit code."""
    command = (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode


def _registered(api: str) -> dict[tuple[str, str], str]:
    """What the server has: (entrypoint, deployment name) to the name that `prefect deployment run` wants."""
    found = demand(f"{api}/deployments/filter", {"limit": 200})
    flows = {flow["id"]: flow["name"] for flow in demand(f"{api}/flows/filter", {"limit": 200})}
    return {(d["entrypoint"], d["name"]): f"{flows.get(d['flow_id'], '?')}/{d['name']}" for d in found}


def _name(api: str, wanted: set[tuple[str, str]], say: Callable[[str], None], how: str) -> None:
    names = sorted(name for key, name in _registered(api).items() if key in wanted)
    say(f"{'Deployments':<15} {how}:" + "".join(f"\n                {name}" for name in names))


def _code_digest(folder: Path) -> str:
    """Of what deployments are made of: prefect.yaml, the code whose types become their forms, and where it lies."""
    code = (file for room in ("flows", "tasks", "gptmodel") for file in folder.glob(f"{room}/**/*.py"))
    files = [folder / "prefect.yaml", *sorted(code)]
    parts = [str(folder.resolve()).encode(), *(hashlib.sha256(file.read_bytes()).digest() for file in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()
