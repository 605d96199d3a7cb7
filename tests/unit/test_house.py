"""The rules of the house that a reader can see in the text of the files: imports, names, paths, the lock."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from graphlib import CycleError
from pathlib import Path

import pytest

from docs.rooms import PAGE, chart, rooms

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("gptmodel", "tasks", "flows")
MAY_NOT_IMPORT = {
    "gptmodel": {"prefect", "mlflow", "tasks", "flows"},
    "tasks": {"flows"},
    "benchmarks": {"flows"},
    "docs": {"flows"},
}
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every module that the file imports, at any depth in it, relative ones resolved."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            yield node.lineno, ".".join((*above, *filter(None, [node.module])))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@pytest.mark.parametrize("room", MAY_NOT_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files(room)
        for line, name in imports(file)
        if name.split(".")[0] in MAY_NOT_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_build_on_each_other_one_way_and_are_drawn_so() -> None:
    assert chart(rooms()) in PAGE.read_text(), "the imports changed: python docs/rooms.py"
    with pytest.raises(CycleError):
        chart({"store": {"text"}, "text": {"store"}})


@pytest.mark.parametrize("room", ["tasks", "flows"])
def test_the_room_itself_imports_nothing(room: str) -> None:
    assert (ROOT / room / "__init__.py").read_text() == ""


def test_no_file_hijacks_a_module_of_that_name() -> None:
    """A flow loaded by its file's path puts its folder first on sys.path: its neighbours are then found first."""
    taken = sys.stdlib_module_names | set(importlib.metadata.packages_distributions())
    wrong = [str(f.relative_to(ROOT)) for room in ("flows", "tasks") for f in files(room) if f.stem in taken]
    assert not wrong


def test_no_test_folder_is_named_like_a_package() -> None:
    assert not [f for f in (ROOT / "tests").rglob("*") if f.is_dir() and f.name in ROOMS]


def test_flows_come_without_torch_and_mlflow() -> None:
    """Prefect imports a flow to register it and to show its form: seconds of these would be paid every time."""
    paths = [file.relative_to(ROOT).with_suffix("") for file in files("flows") if not file.stem.startswith("__")]
    modules = [".".join(path.parts) for path in paths]
    if not modules:
        pytest.skip("there is no flow yet")
    program = f"import sys, {', '.join(modules)}\nfrom tasks.console import start_server_apart\nstart_server_apart()\n"
    slow = {"torch", "mlflow", "pandas", "matplotlib", "datasets", "prefect.server.api.server"}
    program += f"sys.exit(', '.join({slow} & set(sys.modules)) or 0)"
    env = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
    }  # with a server up none is started, nor its code read
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def tracked() -> list[Path]:
    """What is in the repository, or would be with the next `git add`."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    """Folders of one person's machine, and hosts that serve packages, differ everywhere."""
    machine = re.compile(
        rb"(?<![\w.])/(?:home|Users|root|work|opt|mnt)/\w|\b(?:files\.)?(?:pypi|pythonhosted)\.org|registry\.npmjs"
        rb"|://[^/\s\"']*/simple\b|:\d{2,5}/simple\b"
    )
    wrong = []
    for file in tracked():
        text = file.read_bytes()
        if file == Path(__file__).resolve() or b"\0" in text[:8000]:
            continue
        wrong += [f"{file.relative_to(ROOT)}: {found.group().decode()}" for found in machine.finditer(text)]
    assert not wrong, "\n".join(wrong)


def normal(requirement: str) -> str:
    """The name in a requirement line, as the index spells it (PEP 503)."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def locked() -> dict[str, list[str]]:
    """Versions in requirements.lock by name; several where platforms differ."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.M):
        found.setdefault(normal(name), []).append(version)
    return found


def test_the_lock_holds_what_the_project_asks_for() -> None:
    """Each requirement of pyproject.toml is in the lock, in a version that it admits: else run `make lock`."""
    from packaging.requirements import Requirement

    pins = locked()
    asked = [*TOML["project"]["dependencies"], *TOML["project"]["optional-dependencies"]["dev"]]
    wrong = []
    for text in asked:
        requirement = Requirement(text)
        versions = pins.get(normal(requirement.name), [])
        if not versions or not all(requirement.specifier.contains(v, prereleases=True) for v in versions):
            wrong.append(f"{text}: the lock has {versions or 'nothing'}")
    assert not wrong, "\n".join(wrong)


def test_the_lock_pins_all_by_hash_but_torch() -> None:
    """Torch's CPU and CUDA builds have the same version and other bytes."""
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text(), flags=re.M)
    loose = [entry.split()[0] for entry in entries if entry.strip() and "--hash=sha256:" not in entry]
    assert [normal(entry) for entry in loose] == ["torch"]


def test_what_is_installed_is_what_is_locked() -> None:
    """Otherwise the tests speak of other versions than a user gets: run `make setup`."""
    pins = locked()
    wrong = []
    # Not all of sys.path: setuptools, where something imported it, puts packages of its own there.
    places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    for distribution in importlib.metadata.distributions(path=places):
        version = distribution.version.split("+")[0]
        versions = pins.get(normal(distribution.metadata["Name"]))
        if versions and version not in versions:
            wrong.append(f"{distribution.metadata['Name']} {version}, locked {versions}")
    assert not wrong, "\n".join(wrong)
