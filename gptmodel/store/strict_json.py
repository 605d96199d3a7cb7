"""JSON from a stranger, by its fields: each of the type that is asked for, and no key twice."""

from __future__ import annotations

import re
from typing import Any

_MOST_BYTES = 1 << 62
_DEEPEST = 50
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def check_depth(raw: Any) -> None:
    level = [raw]
    for _ in range(_DEEPEST):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for items in inside for child in items if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found


def refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def fields_of(raw: Any, names: set[str], what: str) -> dict[str, Any]:
    found: dict[str, Any] = of_type(raw, dict, what)
    if found.keys() != names:
        raise ValueError(f"{what} has other entries than {', '.join(sorted(names))}")
    return found


def of_type(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what} is {kind_of(value)} where {_WORDS[kind]} is due")
    return value


def kind_of(value: Any) -> str:
    """What a value of JSON is, in JSON's own words."""
    return "null" if value is None else _WORDS.get(type(value), type(value).__name__)


def number_of(value: Any, what: str) -> int:
    number: int = of_type(value, int, what)  # True is no number here
    if not 0 <= number < _MOST_BYTES:
        raise ValueError(f"{what} is {shortened(number)}")
    return number


def matching_text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    text: str = of_type(value, str, what)
    if not pattern.fullmatch(text):
        raise ValueError(f"{what} is {shortened(value)}")
    return text


def shortened(value: Any) -> str:
    return f"{value!r:.60}"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
