"""Draws the rooms of gptmodel and who builds on whom, from the imports: `python docs/rooms.py` renews architecture.md.

A room is a folder of gptmodel, or one of the groups of single modules below. An arrow goes from a room to what it
builds on; one that follows from others is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PAGE = Path(__file__).with_name("architecture.md")
CRAFT = PAGE.parents[1] / "gptmodel"
BEGIN, END = "<!-- made by docs/rooms.py -->\n", "<!-- end -->\n"
GROUPS = {
    "settings": "errors checked config criteria requirements presets settings overrides arithmetic",
    "model": "device nvidia resident tokenizer safecuts model sharding attention loss padded_head few_rows sampling "
    "generate weights writing",
    "formats": "pretrained",
}
Rooms = dict[str, set[str]]


def room_of(module: str) -> str:
    """The room of `gptmodel.MODULE`; a module in no folder and no group is a room by itself."""
    first = module.split(".")[0]
    return next((name for name, members in GROUPS.items() if first in members.split()), first)


def imported(file: Path) -> Iterator[str]:
    """Each module of gptmodel that the file imports, at any depth in it, without the package's name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            within = node.module == "gptmodel"
            names = [f"gptmodel.{alias.name}" for alias in node.names] if within else [node.module]
        yield from (name.removeprefix("gptmodel.") for name in names if name.startswith("gptmodel."))


def rooms() -> Rooms:
    """Every room, with those that it builds on."""
    found: Rooms = {}
    for file in sorted(CRAFT.rglob("*.py")):
        module = ".".join(file.relative_to(CRAFT).with_suffix("").parts)
        if module.split(".")[-1] != "__init__":
            room = room_of(module)
            found.setdefault(room, set()).update({room_of(name) for name in imported(file)} - {room})
    return found


def chart(found: Rooms) -> str:
    """A Mermaid chart of the rooms; CycleError from graphlib where two build on each other."""
    below: Rooms = {}
    for room in TopologicalSorter({room: sorted(found[room]) for room in sorted(found)}).static_order():
        below[room] = set(found[room]).union(*(below[other] for other in found[room]))
    lines = ["```mermaid", "flowchart TD"]
    for room, others in sorted(found.items()):
        direct = sorted(other for other in others if not any(other in below[between] for between in others))
        lines += [f"    {room} --> {other}" for other in direct] or [f"    {room}"]
    return "\n".join([*lines, "```\n"])


def main() -> None:
    """Put the chart into its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + chart(rooms()) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
