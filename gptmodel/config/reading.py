"""Settings as people write them: YAML in which each value knows its line, read by what its setting is.

PyYAML reads YAML 1.1, in which off is False, 1e-3 a text, 010 eight and 2026-01-01 a date. Editors read YAML 1.2, and
people mean what they see. So words are read as in 1.2, and as text wherever the setting is text: a revision 1234e567
or a name 007 stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from gptmodel.errors import ConfigError

_TOO_DEEP = "nested too deeply to be read; settings are a few levels deep, so look at its brackets"
_MOST_REPEATED = 10_000
Place = tuple[str, ...]
"""Names of nested settings from the outside in: ("train", "max_steps")."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place, nested and unchecked, and where each of them was written."""

    data: dict[str, Any]
    origins: dict[Place, str] = field(default_factory=dict)
    """Such as `my.yaml:3` or `--set train.max_steps=9`, for groups and items of lists too."""


def read_file(path: Path, cls: type[Any]) -> Layer:
    """A YAML (or JSON) file of the settings of a class. ConfigError with file and line for what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}; is the path right?") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    try:
        reader = _Reader(text, lambda node: f"{path}:{node.start_mark.line + 1}")
        data = reader.read_all(cls, ())
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(path, error)) from None
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    if reader.problems:
        raise ConfigError(reader.problems)
    if data is None:
        raise ConfigError(f"{path} holds no settings; write lines such as `train:`, or leave --config out")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "one value"
        raise ConfigError(f"{path}:1: holds {kind}, not settings; write lines such as `train:`")
    reader.origins.pop((), None)
    return Layer(data, reader.origins)


def read_set(text: str, cls: type[Any]) -> Layer:
    """One `a.b=value`. ConfigError if it is not of that form."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r} is not of the form a.b=value, such as train.max_steps=100")
    shown = f"--set {text if len(text) <= 80 else text[:77] + '...'}"
    hint = hint_of(cls, path)
    nested: Any = value
    origins: dict[Place, str] = {}
    if hint is not str:
        try:
            reader = _Reader(value, lambda _node: shown)
            nested = reader.read_all(hint, path)
        except yaml.YAMLError:
            nested = value
        except RecursionError:
            raise ConfigError(f"{shown}: {_TOO_DEEP}") from None
        else:
            if reader.problems:
                raise ConfigError(reader.problems)
            origins = reader.origins
    for depth in range(len(path), 0, -1):
        origins[path[:depth]] = shown
        nested = {path[depth - 1]: nested}
    return Layer(nested, origins)


def hint_of(cls: Any, path: Place) -> Any:
    """The type of the setting that a path of names leads to, without annotations; None where there is no such."""
    for part in path:
        if isinstance(cls, type) and is_dataclass(cls):
            cls = get_type_hints(cls).get(part)
        elif get_origin(cls) is tuple and part.isdigit():
            cls = get_args(cls)[0]
        else:
            return None
    return cls


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    said = " ".join(str(problem).split())
    advice = "indent with spaces, not tabs" if "'\\t'" in said else "look at brackets, quotes, colons and indentation"
    return f"{where}: not valid YAML: {said}; {advice}"


class _Loader(yaml.SafeLoader):
    """Reads words as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as in the class that it replaces


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0 if re.match(r"0[xo]", text) else 10)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Nodes of the text with each alias written out: a few lines can stand for billions. `sizes` is by node."""
    if id(node) not in sizes:
        sizes[id(node)] = 0  # what it is where it holds itself
        is_list = isinstance(node, yaml.SequenceNode)
        inside = node.value if is_list else chain(*node.value) if isinstance(node, yaml.MappingNode) else ()
        sizes[id(node)] = 1 + sum([_written_out(each, sizes) for each in inside])
    return sizes[id(node)]


class _Reader:
    """Turns the nodes of one YAML text into plain data, and notes where each stood and what stands twice."""

    def __init__(self, text: str, where: Callable[[yaml.Node], str]) -> None:
        self.loader = _Loader(text)
        self.where = where
        self.origins: dict[Place, str] = {}
        self.problems: list[str] = []
        self._within: set[int] = set()
        self._flat: set[int] = set()

    def read_all(self, hint: Any, path: Place) -> Any:
        """What the text holds; None where that is nothing."""
        if (root := self.loader.get_single_node()) is None:
            return None
        sizes: dict[int, int] = {}
        if _written_out(root, sizes) - len(sizes) > _MOST_REPEATED:
            self.problems.append(
                f"{self.where(root)}: its aliases (`*name`) repeat more than {_MOST_REPEATED:,} values; write out what "
                "is meant"
            )
            return None
        return self.read(root, hint, path)

    def read(self, node: yaml.Node, hint: Any, path: Place) -> Any:
        self.origins.setdefault(path, self.where(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, hint, path)
        if id(node) in self._within:
            self.problems.append(f"{self.where(node)}: {'.'.join(path)} holds itself; write it out without `*`")
            return None
        self._within.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, hint, path)
            of = get_args(hint)[0] if get_origin(hint) is tuple else None
            return [self.read(item, of, (*path, str(i))) for i, item in enumerate(node.value)]
        finally:
            self._within.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, hint: Any, path: Place) -> Any:
        is_text = hint is str or get_origin(hint) is Literal
        if node.tag == "tag:yaml.org,2002:bool":  # to Python True is 1
            is_text = is_text or bool({int, float} & {hint, *get_args(hint)})
        if is_text and node.tag != "tag:yaml.org,2002:null":
            return node.value
        try:
            return self.loader.construct_object(node, deep=True)
        except ValueError as error:
            said = str(error)
        except (AttributeError, LookupError):  # of PyYAML's own readers, for a value that is not what its tag says
            said = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
        self.problems.append(f"{self.where(node)}: {'.'.join(path)}: {said}")
        return None

    def _mapping(self, node: yaml.MappingNode, hint: Any, path: Place) -> dict[str, Any]:
        hints = get_type_hints(hint) if isinstance(hint, type) and is_dataclass(hint) else {}
        if id(node) not in self._flat:
            self._flat.add(id(node))
            for key_node, _ in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    said = "a name of a setting is one word, not a list or a group"
                    self.problems.append(f"{self.where(key_node)}: {said}; look at brackets and `?`")
                    return {}
            self._look_for_twins(node, path)
            self.loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            self.origins[(*path, key)] = self.where(key_node)
            found[key] = self.read(value_node, hints.get(key), (*path, key))
        return found

    def _look_for_twins(self, node: yaml.MappingNode, path: Place) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first and key_node.tag != "tag:yaml.org,2002:merge":
                name = ".".join((*path, key))
                self.problems.append(f"{self.where(key_node)}: {name} stands twice, in line {first[key]} too; keep one")
            first.setdefault(key, line)
