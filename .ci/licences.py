"""Licences of all packages of the lock, and a refusal of those that .ci/licences.toml does not admit: `make licences`.

Exit code 0 when all are admitted, 1 when one is refused, unknown, or the table holds an entry that nothing needs.
"""

from __future__ import annotations

import fnmatch
import sys
import tomllib
from collections import defaultdict
from typing import Any

from bill import LOCKS, ROOT, installed, locked, normal
from license_expression import ExpressionError, get_spdx_licensing

TABLE = ROOT / ".ci" / "licences.toml"
SPDX = get_spdx_licensing()


def stated(component: dict[str, Any], spelled: dict[str, str]) -> tuple[str, list[str]]:
    """The SPDX expression of all that a component's metadata says, '' for nothing; and words that nobody has read.

    Several statements are joined by AND: where they are a choice, .ci/licences.toml says so by hand.
    """
    found, unread = [], []
    for entry in component.get("licenses", ()):
        if "expression" in entry:
            found.append(f"({entry['expression']})")
        elif "id" in entry["license"]:
            found.append(entry["license"]["id"])
        elif (name := entry["license"]["name"]) in spelled:
            found.append(spelled[name])
        else:
            unread.append(" ".join(name.split())[:60])
    return " AND ".join(dict.fromkeys(filter(None, found))), unread


def refused(expression: str, admitted: set[str]) -> list[str]:
    """Licences of the expression that stand in its way: none where it can be met with admitted ones alone."""
    if not expression:
        return ["unknown: its metadata names no licence"]
    try:
        parsed = SPDX.parse(expression, simple=True)
    except ExpressionError as error:
        return [f"{expression} cannot be read: {error}"]

    def wrong(node: Any) -> list[str]:
        if isinstance(node, SPDX.AND):
            return [name for part in node.args for name in wrong(part)]
        if isinstance(node, SPDX.OR):
            parts = [wrong(part) for part in node.args]
            return [] if not all(parts) else [name for part in parts for name in part]
        return [] if str(node) in admitted else [str(node)]

    return sorted(set(wrong(parsed)))


def judge(components: list[dict[str, Any]], pins: dict[str, set[str]], table: dict[str, Any]) -> tuple[Any, list[str]]:
    """(licence -> `name version`s, what is wrong). `pins` has the names of each lock file."""
    every = set().union(*pins.values())
    by_hand, elsewhere, spelled = table["by_hand"], table["elsewhere"], table["spelled"]
    common = {*table["permissive"], *table["open_files"]}
    said: dict[str, tuple[str, str, list[str]]] = {}
    wrong = []

    def told(name: str) -> str:
        return next((licence for pattern, licence in elsewhere.items() if fnmatch.fnmatch(name, pattern)), "")

    for component in components:
        name = normal(component["name"])
        expression, unread = stated(component, spelled)
        if name in by_hand:
            if not unread and not refused(expression, common):
                wrong.append(f"{name}: its metadata says {expression} by now; drop it from by_hand")
            expression, unread = by_hand[name]["licence"], []
        elif told(name) and (unread or not expression):
            expression, unread = told(name), []
        said[name] = (component["version"], expression, unread)
    said |= {name: ("not installed here", told(name), []) for name in every - set(said)}
    listed = defaultdict(list)
    for name, (version, expression, unread) in sorted(said.items()):
        admitted = common | set(table["cuda"] if name in pins["requirements-cuda.lock"] else ())
        problems = [f"`{words}` is not spelled in the table" for words in unread] or refused(expression, admitted)
        wrong += [f"{name} ({version}): {problem}" for problem in problems]
        listed[expression or "unknown"].append(f"{name} {version}" if version[0].isdigit() else f"{name} ({version})")
    wrong += [f"{name}: by_hand has it, and no lock does; drop it" for name in sorted(set(by_hand) - every)]
    for pattern in elsewhere:
        if not fnmatch.filter(every, pattern):
            wrong.append(f"{pattern}: elsewhere has it, and no lock does; drop it")
    return listed, wrong


def main() -> None:
    table = tomllib.loads(TABLE.read_text())
    pins = {lock: {name for name, _ in locked(lock)} for lock in LOCKS}
    components = [part for part in installed()["components"] if normal(part["name"]) in set().union(*pins.values())]
    listed, wrong = judge(components, pins, table)
    for expression, packages in sorted(listed.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"{len(packages):4d}  {expression}\n      {', '.join(packages)}")
    if wrong:
        print(*(f"refused: {line}" for line in wrong), sep="\n", file=sys.stderr)
        sys.exit("Look at the package's licence; admit it in .ci/licences.toml, or do without the package.")
    print(f"licences: all {sum(map(len, listed.values()))} packages of {' and '.join(LOCKS)} have an admitted licence")


if __name__ == "__main__":
    main()
