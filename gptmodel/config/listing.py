"""The settings one by one: name, type, default and meaning, from the classes themselves; and values written as YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from gptmodel.checked import adapter
from gptmodel.config.reading import Place

Note = Callable[[Place], str]


@dataclass(frozen=True)
class Setting:
    """One setting as its class has it."""

    path: Place
    type: str
    default: Any
    meaning: str
    decides: bool
    """Whether it decides what comes out; a setting that does not is in no fingerprint."""


@dataclass(frozen=True)
class Section:
    """The settings of one class, without those of the classes inside it."""

    path: Place
    cls: type[Any]
    meaning: str
    settings: tuple[Setting, ...]


def sections(cls: type[Any], path: Place = (), decides: bool = True) -> Iterator[Section]:
    """The class's own settings, then those of each class inside it, in the order of the file.

    Classes that stand in a list (`evaluate.decodings`) are described where they stand alone (`train.sample`).
    """
    hints, described = get_type_hints(cls), adapter(cls).json_schema()["properties"]
    skipped: frozenset[str] = getattr(cls, "EXECUTION", frozenset())
    inner: list[Section] = []
    own: list[Setting] = []
    for field in fields(cls):
        hint, place = hints[field.name], (*path, field.name)
        deciding = decides and field.name not in skipped
        if isinstance(hint, type) and is_dataclass(hint):
            inner += sections(hint, place, deciding)
        else:
            meaning = " ".join(str(described[field.name].get("description", "")).split())
            default = None if field.default is MISSING else field.default
            own.append(Setting(place, type_words(hint), default, meaning, deciding))
    yield Section(path, cls, " ".join((cls.__doc__ or "").split()), tuple(own))
    yield from inner


def type_words(hint: Any) -> str:
    """A type in the words of the reference: `whole number`, `list of texts`, `adamw or muon`."""
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is Literal:
        words = [str(value) for value in get_args(hint)]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if get_origin(hint) is tuple:
        of = get_args(hint)[0]
        return "list of texts" if of is str else f"list of {of.__name__.removesuffix('Config').lower()} settings"
    if get_origin(hint) is UnionType:
        return " or ".join(type_words(part) for part in get_args(hint) if part is not NoneType) + ", or empty"
    raise TypeError(f"no words for {hint}")


def flat(config: Any, before: Place = ()) -> dict[Place, Any]:
    """Each single setting by its path; lists are one setting. From a config, or from nested plain data."""
    own = config if isinstance(config, Mapping) else {f.name: getattr(config, f.name) for f in fields(config)}
    found: dict[Place, Any] = {}
    for name, value in own.items():
        if isinstance(value, Mapping) or is_dataclass(value):
            found |= flat(value, (*before, name))
        else:
            found[*before, name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Lists instead of tuples, and of a class in a list only what is not as the class has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(got) for f in fields(value) if (got := getattr(value, f.name)) != f.default}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def nested(values: Mapping[Place, Any]) -> dict[str, Any]:
    """Flat settings as nested ones again."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        group = found
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = value
    return found


def yaml_text(values: Mapping[Place, Any], *, beside: Note = lambda _: "", above: Note = lambda _: "") -> str:
    """A file of settings that reads back as these values, with a note beside or above each."""
    lines: list[tuple[str, str]] = []
    open_groups: Place = ()
    for path, value in values.items():
        shared = 0
        while path[: shared + 1] == open_groups[: shared + 1] and shared < len(path) - 1:
            shared += 1
        if lines and not shared and len(path) > 1:
            lines.append(("", ""))
        for depth in range(shared, len(path) - 1):
            lines += _above(above(path[: depth + 1]), depth)
            lines.append((f"{'  ' * depth}{path[depth]}:", ""))
        open_groups = path[:-1]
        depth = len(path) - 1
        lines += _above(above(path), depth)
        lines += _entry(path[-1], value, "  " * depth, beside(path))
    width = max((len(text) for text, note in lines if note and len(text) <= 60), default=0)
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def scalar(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _entry(name: str, value: Any, indent: str, note: str) -> Iterator[tuple[str, str]]:
    line = f"{indent}{name}: {scalar(value)}"
    if isinstance(value, list) and (len(line) > 80 or any(isinstance(item, dict) for item in value)):
        yield f"{indent}{name}:", note
        yield from ((f"{indent}  - {scalar(item)}", "") for item in value)
    else:
        yield line, note


def _above(note: str, depth: int) -> list[tuple[str, str]]:
    indent = "  " * depth
    return [(f"{indent}# {line}", "") for line in textwrap.wrap(note, 110 - len(indent))]
