"""Bill of materials (CycloneDX 1.6) of .venv: `make sbom` writes dist/gptflow.cdx.json.

cyclonedx-py reads what is installed: versions, licences, who needs whom. Added here: which packages only development
needs (scope `excluded`), and the hashes that requirements.lock admits.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-cuda.lock")


def normal(name: str) -> str:
    """A package's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str, root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """(name, version) -> sha256 hashes that the lock file admits."""
    entries = re.split(r"^(?=[A-Za-z0-9])", (root / lock).read_text(), flags=re.M)
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if pin := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", entry):
            found[normal(pin[1]), pin[2]] = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
    return found


def installed() -> dict[str, Any]:
    """The bill as cyclonedx-py makes it, of the environment that runs this."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    command += ["--sv", "1.6", "--of", "JSON", "--output-reproducible", "--no-validate", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"cyclonedx-py failed:\n{done.stderr}")
    bill = json.loads(done.stdout)
    assert isinstance(bill, dict)
    return bill


def at_run_time() -> set[str]:
    """Names of the packages that installing gptflow without extras brings, directly or through others."""
    needs: dict[str, set[str]] = {}  # name -> extras of it that are asked for
    rest = [Requirement(text) for text in PROJECT["dependencies"]]
    while rest:
        asked = rest.pop()
        name, extras = normal(asked.name), set(asked.extras)
        if name in needs and extras <= needs[name]:
            continue
        needs[name] = needs.get(name, set()) | extras
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *needs[name])):
                rest.append(requirement)
    return set(needs)


def whole(bill: dict[str, Any]) -> dict[str, Any]:
    """The bill with scopes and hashes."""
    hashes = {pin: found for lock in LOCKS for pin, found in locked(lock).items()}
    needed = at_run_time()
    for component in bill["components"]:
        name = normal(component["name"])
        component["scope"] = "required" if name in needed else "excluded"
        admitted = [{"alg": "SHA-256", "content": digest} for digest in hashes.get((name, component["version"]), ())]
        if admitted:
            where = {"type": "distribution", "url": f"{component['purl']}", "hashes": admitted}
            where["comment"] = "sha256 of each file of this version that requirements.lock admits"
            component.setdefault("externalReferences", []).append(where)
    return bill


def main(target: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = whole(installed())
    text = json.dumps(bill, indent=2, sort_keys=True) + "\n"
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"not a valid CycloneDX 1.6 document: {wrong}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    required = sum(component["scope"] == "required" for component in bill["components"])
    print(f"{target}: {len(bill['components'])} packages, {required} of them needed at run time; CycloneDX 1.6, valid")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "gptflow.cdx.json")
