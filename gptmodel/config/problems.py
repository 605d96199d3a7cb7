"""What is wrong with settings, in words: where it was written, which setting, its value, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError

from gptmodel.config.reading import Place, hint_of
from gptmodel.errors import ConfigError

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number, such as 0.1 or 6e-4",
    "float_parsing": "a number, such as 0.1 or 6e-4",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [a, b]",
}
_MEANT = {"no": "off", "false": "off", "none": "off", "yes": "warn", "on": "warn", "true": "warn", "error": "fail"}
"""Words for which some settings have another one."""


def told_problems(error: ValidationError, cls: type[Any], origins: Mapping[Place, str]) -> list[str]:
    """A line for each thing that a validator found, with where it was written in front where that is known."""
    return [line for item in error.errors() for line in _lines(item, cls, origins)]


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` for the most similar name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def written(path: Place, origins: Mapping[Place, str]) -> str:
    """Where a setting, or the nearest group around it, was written; "" if it comes from the preset."""
    return next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "")


def _lines(item: Any, cls: type[Any], origins: Mapping[Place, str]) -> Iterator[str]:
    path = tuple(str(part) for part in item["loc"])
    name, value = ".".join(path), _shown(item.get("input"))
    if isinstance(cause := item.get("ctx", {}).get("error"), ConfigError):
        for text in cause.problems:
            yield _of_group(path, text.partition(": ")[2], cls, origins)
        return
    if item["type"] == "unexpected_keyword_argument":
        said = f"unknown setting {name}{_instead(path, cls)}"
    elif item["type"] == "dataclass_type":
        known = ", ".join(_names(hint_of(cls, path)))
        said = f"{name} is a group of settings, not {value}; set one: {known}"
    elif item["type"] == "literal_error":
        said = f"{name} is {value}; give {item['ctx']['expected']}"
        meant = _MEANT.get(str(item["input"]).lower(), str(item["input"]))
        said += nearest(meant, re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    elif wanted := _WANTED.get(item["type"]):
        said = f"{name} is {value}; give {wanted}"
        said += ", or leave the line out" if item["input"] is None else ""
    else:
        said = f"{name}: {item['msg']}; it is {value}"
    where = written(path, origins)
    yield f"{where}: {said}" if where else said


def _of_group(path: Place, text: str, cls: type[Any], origins: Mapping[Place, str]) -> str:
    """A problem that a class found with its own fields: it stands where the first of them that was set stands."""
    names = _names(hint_of(cls, path)) if path else _names(cls)
    mentioned = [word for word in re.findall(r"\w+", text) if word in names]
    places = [origins[(*path, word)] for word in mentioned if (*path, word) in origins]
    where = places[0] if places else "" if mentioned else written(path, origins)
    begins = mentioned and text.startswith(mentioned[0])
    said = ".".join((*path, text)) if begins else f"{'.'.join(path)}: {text}".removeprefix(": ")
    return f"{where}: {said}" if where else said


def _instead(path: Place, cls: type[Any]) -> str:
    """The name that was perhaps meant: the same one in another group, or a similar one."""
    everywhere = list(_paths(cls))
    inside = [found for found in everywhere if found[:-1] == path[:-1]]
    same = [found for found in everywhere if found[-1] == path[-1]]
    same = same or [found for found in everywhere if _is_short_for(path[-1], found[-1])]
    close = difflib.get_close_matches(path[-1], [found[-1] for found in inside], n=1)
    inside_list = any(part.isdigit() for part in path)  # whose fields `everywhere` has not
    close = close or (difflib.get_close_matches(path[-1], _names(hint_of(cls, path[:-1])), n=1) if inside_list else [])
    if close and (inside_list or not same):
        same = [(*path[:-1], close[0])]
    if not same:
        close = difflib.get_close_matches(path[-1], [found[-1] for found in everywhere], n=1, cutoff=0.75)
        same = [found for found in everywhere if close and found[-1] == close[0]]
    if not same:
        return f"; known: {', '.join(_names(hint_of(cls, path[:-1]) or cls))}"
    shared = max(_in_common(found, path) for found in same)
    best = [".".join(found) for found in same if _in_common(found, path) == shared]
    return f" (did you mean {' or '.join(best[:3])}?)"


def _is_short_for(word: str, name: str) -> bool:
    """Whether it is one of the name's words or its initials: steps or ms for max_steps."""
    words = name.split("_")
    return len(words) > 1 and (word in words or word == "".join(part[:1] for part in words))


def _in_common(a: Place, b: Place) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _paths(cls: Any, before: Place = ()) -> Iterator[Place]:
    for name, hint in get_type_hints(cls).items():
        if name in _names(cls):
            yield (*before, name)
            if isinstance(hint, type) and is_dataclass(hint):
                yield from _paths(hint, (*before, name))


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)] if isinstance(cls, type) and is_dataclass(cls) else []


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
