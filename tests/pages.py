"""Pages whose commands are run, and whose outputs are what these printed: `python -m tests.pages PAGE… [--write]`.

A block of ```bash is run by `bash -euo pipefail` in the page's own folder, after those above it; the block of ```text
that follows is what it printed, standard error too. Without one only the exit code is looked at. What varies is said:

- a line `…` in the output stands for any lines, and … within a line for any text: a reader sees that it is left out;
- `<!-- varies: PATTERN -->` before the block: a line of this pattern (… is any text) may be another line of it;
- `<!-- within 2 % -->`: numbers with a decimal point may differ by so much and one in their last digit; else by none;
- `<!-- exits 1 -->`: the block ends with this code and not with 0;
- `<!-- not run: REASON -->`: what needs a network, a GPU, or a person.

With `--write` the outputs in the page are replaced by what is printed now, but for what a … leaves out.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = ("docs/tutorial.md", "docs/howto.md")
"""Pages that are run whole, each in a folder of its own."""
_NUMBER = r"\d[\d,]*\.\d+(?:e[+-]?\d+)?"
_COMMENT = re.compile(r"<!-- (varies|within|exits|not run):? (.*?) -->")


@dataclass(frozen=True)
class Block:
    """A box of commands of a page and what stands below it."""

    page: str
    line: int
    """Of its first command, from 1."""
    heading: str
    """The one that it stands under."""
    commands: str
    output: str | None
    """None where the page shows none."""
    at: tuple[int, int] = (0, 0)
    """The lines of the output in the page, from 0, the end excluded."""
    varies: tuple[str, ...] = ()
    within: float | None = None
    exits: int = 0
    not_run: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class _Said:
    """The comments before a block."""

    varies: list[str] = field(default_factory=list)
    within: float | None = None
    exits: int = 0
    not_run: str = ""

    def note(self, key: str, value: str) -> None:
        if key == "varies":
            self.varies.append(value)
        elif key == "within":
            self.within = float(value.removesuffix("%")) / 100
        elif key == "exits":
            self.exits = int(value)
        else:
            self.not_run = value


def blocks(page: str, text: str) -> list[Block]:
    """The ```bash blocks of a page in order, with what was said of each."""
    lines, found = text.splitlines(), list[Block]()
    said, heading, number = _Said(), "", 0
    while number < len(lines):
        line = lines[number]
        if comment := _COMMENT.fullmatch(line.strip()):
            said.note(*comment.groups())
        elif line.startswith("```"):
            end = lines.index("```", number + 1)
            if line == "```bash":
                after = next((n for n in range(end + 1, len(lines)) if lines[n].strip()), len(lines))
                output, at = None, (end + 1, end + 1)
                if after < len(lines) and lines[after] == "```text":
                    at = (after + 1, lines.index("```", after + 1))
                    output = "\n".join(lines[at[0] : at[1]])
                commands = "\n".join(lines[number + 1 : end])
                told = (tuple(said.varies), said.within, said.exits, said.not_run)
                found.append(Block(page, number + 2, heading, commands, output, at, *told))
            said, number = _Said(), end
        elif line.strip():
            heading = line.lstrip("# ") if line.startswith("#") else heading
            said = _Said()
        number += 1
    return found


def differences(block: Block, printed: str) -> str:
    """How the output differs from that of the page, as a diff; empty if it does not."""
    expected, actual = (block.output or "").splitlines(), _trimmed(printed)
    if block.output is None or _lines_match(block, expected, actual):
        return ""
    return "\n".join(difflib.unified_diff(expected, actual, f"{block.place} says", "and it printed", lineterm=""))


def _trimmed(printed: str) -> list[str]:
    """Its lines without blanks behind them, nor empty lines at both ends."""
    return [line.rstrip() for line in printed.rstrip().lstrip("\n").splitlines()]


def _lines_match(block: Block, expected: list[str], actual: list[str]) -> bool:
    return _placed(_parts(expected), actual, _like(block)) is not None


def _parts(lines: list[str]) -> list[list[str]]:
    """The lines between those that are a … and no more."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == "…":
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _placed(parts: list[list[str]], actual: list[str], alike: Callable[[str, str], bool]) -> list[int] | None:
    """Where each part begins in the output, in this order, the first at its start and the last at its end; or None."""

    def fits(part: list[str], start: int) -> bool:
        stop = start + len(part)
        return start >= 0 and stop <= len(actual) and all(map(alike, part, actual[start:stop]))

    if len(parts) == 1:
        return [0] if len(actual) == len(parts[0]) and fits(parts[0], 0) else None
    first, *middle, last = parts
    found, place, end = [0], len(first), len(actual) - len(last)
    if not fits(first, 0) or not fits(last, end):
        return None
    for part in middle:
        at = next((start for start in range(place, end - len(part) + 1) if fits(part, start)), None)
        if at is None:
            return None
        found.append(at)
        place = at + len(part)
    return [*found, end] if place <= end else None


def _like(block: Block) -> Callable[[str, str], bool]:
    patterns = [re.compile(_elided(pattern)) for pattern in block.varies]

    def like(expected: str, actual: str) -> bool:
        if expected.rstrip() == actual or any(p.fullmatch(expected.rstrip()) and p.fullmatch(actual) for p in patterns):
            return True
        pieces = re.split(f"({_NUMBER})", expected.rstrip()) if block.within is not None else [expected.rstrip()]
        pattern = "".join(f"({_NUMBER})" if n % 2 else _elided(piece) for n, piece in enumerate(pieces))
        found = re.fullmatch(pattern, actual)
        return found is not None and all(map(_near(block.within or 0.0), pieces[1::2], found.groups()))

    return like


def _elided(text: str) -> str:
    """A pattern for a text in which … is any text, and blanks are as many as a column takes."""
    return "".join(".*" if p == "…" else r"\s+" if p.isspace() else re.escape(p) for p in re.split(r"(…|\s+)", text))


def _near(within: float) -> Callable[[str, str], bool]:
    def near(expected: str, actual: str) -> bool:
        a, b = (float(text.replace(",", "")) for text in (expected, actual))
        mantissa, _, exponent = expected.partition("e")
        last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        return abs(a - b) <= within * max(abs(a), abs(b)) + 1.001 * last_digit

    return near


def run(block: Block, folder: Path, env: Mapping[str, str] = {}) -> tuple[int, str]:
    """Exit code, and what it printed, standard error too; as from a shell in which nothing was exported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    clean |= {"PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "100", "NO_COLOR": "1", **env}
    shell = ["bash", "-euo", "pipefail", "-c", block.commands]
    done = subprocess.run(shell, cwd=folder, env=clean, text=True, stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return done.returncode, done.stdout.replace("\r", "\n")


def problem(block: Block, code: int, printed: str) -> str:
    """What is not as the page says, or nothing."""
    if code != block.exits:
        return f"{block.place} ended with {code}, and should with {block.exits}:\n{block.commands}\n{printed}"
    return differences(block, printed)


def rewritten(text: str, new: Mapping[Block, str]) -> str:
    """The page with these outputs in the place of its own."""
    lines = text.splitlines()
    for block in sorted(new, key=lambda each: each.at, reverse=True):
        if block.output is not None:
            lines[slice(*block.at)] = _kept_short(block, _trimmed(new[block]))
    return "\n".join(lines) + "\n"


def _kept_short(block: Block, actual: list[str]) -> list[str]:
    """The new output without what the old one left out; whole where the old lines are not found in it again."""
    parts = _parts((block.output or "").splitlines())
    placed = _placed(parts, actual, _akin)
    if placed is None:
        return actual
    short: list[str] = []
    for number, (part, start) in enumerate(zip(parts, placed, strict=True)):
        short += ["…"] * bool(number)
        short += [old if "…" in old else new for old, new in zip(part, actual[start : start + len(part)], strict=True)]
    return short


def _akin(old: str, new: str) -> bool:
    """Whether two lines tell of the same thing: equal but for words that hold digits, or but for what is left out."""
    without = [re.sub(r"\S*\d\S*", "", line).split() for line in (old, new)]
    return without[0] == without[1] if "…" not in old else re.fullmatch(_elided(old.rstrip()), new) is not None


@contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    """Variables of a server in this folder: one for all blocks of a page, for each would start its own (20 s)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {"PREFECT_HOME": str(folder / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / ".server.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/api/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / ".server.log").read_text())
            time.sleep(0.2)
        yield {**home, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        server.terminate()
        server.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> int:
    """Run pages, and say what is not as they say; with --write make them say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=RUN)
    parser.add_argument("--write", action="store_true", help="put what is printed now into the pages")
    asked = parser.parse_args()
    wrong = 0
    for page in asked.pages:
        text, new = (ROOT / page).read_text(encoding="utf-8"), dict[Block, str]()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, prefect_server(Path(name)) as env:
            for block in blocks(page, text):
                if block.not_run:
                    continue
                began = time.monotonic()
                code, new[block] = run(block, Path(name), env)
                found = problem(block, code, new[block])
                took = time.monotonic() - began
                print(f"{block.place}: {'differs' if found else 'as it says'}, {took:.1f} s", flush=True)
                if found:
                    wrong += 1
                    print(found, flush=True)
                if code != block.exits:
                    break
        if asked.write:
            (ROOT / page).write_text(rewritten(text, new), encoding="utf-8")
    return int(bool(wrong) and not asked.write)


if __name__ == "__main__":
    sys.exit(main())
