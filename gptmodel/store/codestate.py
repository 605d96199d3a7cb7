"""The code that runs, as lineage: its commit, what was changed since, and a digest that needs no git.

The patch is what `git apply` takes on the commit to give the same code again: changes of the packages and of what
installs them first, then source files that git does not know yet, then all other changes. Whole files are left out,
by name, where it would grow too large; so it always applies.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("flows", "gptmodel", "tasks")
LOCK = "requirements.lock"
PATCH_BYTES = 1_000_000
_INSTALLS = ("pyproject.toml", LOCK, "requirements-cuda.lock")
_GIT_SECONDS = 10.0  # for all questions together
_LISTING_BYTES = 4_000_000
# Whatever a person's own git configuration says, `git apply` must be able to read it. Not followed: renames.
_DIFF = ("diff", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv")
_PREFIXES = ("--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--ignore-submodules=all")
# Of a hook or a rebase under which this runs: they would name another repository, or another index.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")


@dataclass(frozen=True)
class Code:
    """What git says of the code that runs."""

    commit: str = ""
    dirty: bool = False
    """Something tracked is not as in the commit, or a package has a source file that is not tracked."""
    patch: bytes = b""
    left_out: tuple[str, ...] = ()
    """Changed files that are not in the patch: too large, or not text that a patch can hold."""
    problem: str = ""
    """Why commit or patch are not known."""
    remote: str = ""
    """Address of the repository that it was cloned from, without a password; "" for a folder of this machine."""


def inspect_code(project: Path) -> Code:
    """Ask git about the folder that holds the packages. Never raises: what it cannot tell is in `problem`."""
    try:
        return _inspect(_Git(project, time.monotonic() + _GIT_SECONDS))
    except FileNotFoundError:
        return Code(problem="git is not installed")
    except (OSError, _GitError) as error:
        return Code(problem=str(error))


def code_digest(project: Path) -> str:
    """Hex sha256 over the sorted names and hashes of the packages' *.py files, as they lie on disk."""
    lines = [f"{hashlib.sha256(data).hexdigest()} {name}" for name, data in _sources(project)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def recipe_versions(project: Path) -> dict[str, int]:
    """Version of each step's recipe by the kind that it makes, as its module in gptmodel states it.

    Read from the text of the modules: importing them all would load torch.
    """
    found = {}
    for path in sorted((project / "gptmodel").rglob("*.py")):
        text = path.read_text(errors="replace")
        if "RECIPE_VERSION" not in text:
            continue
        if version := re.search(r"^_?RECIPE_VERSION = (\d+)", text, re.M):
            kind = re.search(r'\bRequest\(\s*"([a-z-]+)"', text) or re.search(r'^_?KIND = "([a-z-]+)"', text, re.M)
            found[kind[1] if kind else path.stem] = int(version[1])
    return dict(sorted(found.items()))


def _sources(project: Path) -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        for path in sorted((project / package).rglob("*.py")):
            yield path.relative_to(project).as_posix(), path.read_bytes()


class _GitError(Exception):
    """Git refused, or took too long."""


@dataclass(frozen=True)
class _Git:
    project: Path
    deadline: float

    def ask(self, *words: str, limit: int = _LISTING_BYTES) -> tuple[bytes, bool]:
        """Git's answer, and whether it was cut after `limit` bytes; _GitError if it refuses or takes too long."""
        command = ["git", "-C", str(self.project), "-c", "core.quotePath=true", "-c", "core.fsmonitor=false", *words]
        env = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {"GIT_OPTIONAL_LOCKS": "0"}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(
            command, env=env, stdin=null, stdout=pipe, stderr=null, start_new_session=True
        ) as process:
            late = threading.Timer(max(0.0, self.deadline - time.monotonic()), _kill, [process])
            late.start()
            assert process.stdout is not None
            try:
                answer = process.stdout.read(limit + 1)
                if cut := len(answer) > limit:
                    _kill(process)
                process.wait()
            finally:
                late.cancel()
        if process.returncode != 0 and not cut:
            slow = time.monotonic() >= self.deadline
            raise _GitError(f"git took longer than {_GIT_SECONDS:.0f} s" if slow else f"git {words[0]} refused")
        return answer[:limit], cut


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Its filters too: they hold the pipe that is read."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _inspect(git: _Git) -> Code:
    try:
        tracked, _ = git.ask("ls-files", "--", "gptmodel")
    except _GitError as error:
        raise error if "longer" in str(error) else _GitError("not in a git checkout that may be read") from None
    if not tracked:  # installed inside somebody else's checkout
        raise _GitError("not in a git checkout of its own")
    try:
        answer = git.ask("rev-parse", "--show-toplevel", "HEAD")[0].decode(errors="surrogateescape")
        top, commit = answer.rstrip("\n").rsplit("\n", 1)
    except _GitError:
        raise _GitError("the checkout has no commit yet") from None
    remote = _remote(git)
    try:
        changed, cut = git.ask(*_DIFF, *_PREFIXES, "--name-only", "HEAD", "--", ".")
        unknown = git.ask("ls-files", "-z", "--others", "--exclude-standard", "--full-name", "--", *_patterns())[0]
    except _GitError as error:
        return Code(commit, problem=str(error), remote=remote)
    names = changed.decode(errors="replace").splitlines()
    new = [name for name in unknown.decode(errors="surrogateescape").split("\0") if name]
    if not names and not new:
        return Code(commit, remote=remote)
    try:
        patch, held = _patch(git, Path(top), names, new)
    except _GitError as error:
        return Code(commit, dirty=True, problem=str(error), remote=remote)
    left_out = sorted({*names, *new} - held) + (["…"] if cut else [])
    return Code(commit, True, patch, tuple(left_out), remote=remote)


def _remote(git: _Git) -> str:
    try:
        address = git.ask("config", "--get", "remote.origin.url")[0].decode(errors="replace").strip()
    except _GitError:
        return ""
    if web := re.fullmatch(r"(https?|ssh|git)://(?:[^/@]*@)?([^?#]+)", address):
        return f"{web[1]}://{web[2]}"
    return address if re.fullmatch(r"[\w.-]+@[\w.-]+:[\w./~-]+", address) else ""


def _patterns() -> list[str]:
    return [f"{package}/*.py" for package in PACKAGES]  # git's * also takes a slash


def _patch(git: _Git, top: Path, names: list[str], new: list[str]) -> tuple[bytes, set[str]]:
    """The patch of files that changed and files that are new, and the names of those that it holds."""
    parts: list[bytes] = []
    held: set[str] = set()
    room = PATCH_BYTES

    def add(name: str, part: bytes) -> None:
        nonlocal room
        if part and len(part) <= room:
            parts.append(part)
            held.add(name)
            room -= len(part)

    first = [*PACKAGES, *_INSTALLS]
    for part in _sections(git, first):
        add(_name_of(part), part)
    for name in new:
        add(name, _added(top, name))
    if not held.issuperset(names):
        for part in _sections(git, [".", *(f":(exclude){name}" for name in first)]):
            add(_name_of(part), part)
    return b"".join(parts), held


def _sections(git: _Git, where: list[str]) -> list[bytes]:
    """The changes of each file by itself. What a cut answer ends with is not whole, and left away."""
    answer, cut = git.ask(*_DIFF, *_PREFIXES, "HEAD", "--", *where, limit=2 * PATCH_BYTES)
    found = [part for part in re.split(rb"(?m)^(?=diff --git )", answer) if part.startswith(b"diff --git ")]
    return found[:-1] if cut else found


def _name_of(section: bytes) -> str:
    """From its first line, `diff --git a/NAME b/NAME`: both are the same, since renames are not followed."""
    line = section.split(b"\n", 1)[0].removeprefix(b"diff --git ")
    name = line[: len(line) // 2].decode(errors="replace")
    return f'"{name[3:]}' if name.startswith('"') else name[2:]


def _added(top: Path, name: str) -> bytes:
    """A file that git does not know, as a change that adds it; nothing where it is no plain text file."""
    try:
        data = (top / name).read_bytes() if (top / name).stat().st_size <= PATCH_BYTES else b"\0"
    except OSError:
        return b""
    if b"\0" in data or not re.fullmatch(r"[\w./-]+", name, re.ASCII):
        return b""
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not data:
        return f"{head}index {'0' * 40}..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\n".encode()
    lines = re.findall(rb"[^\n]*\n|[^\n]+\Z", data)
    end = b"" if data.endswith(b"\n") else b"\n\\ No newline at end of file\n"
    head += f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n"
    return head.encode() + b"".join(b"+" + line for line in lines) + end
