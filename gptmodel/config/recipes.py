"""The part of a config that decides what comes out, and reading one that an earlier version recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints


def recipe(config: Any) -> Any:
    """The part of a config that decides what comes out: plain data, without EXECUTION fields and unset LATER ones."""
    if is_dataclass(config) and not isinstance(config, type):
        skipped: frozenset[str] = getattr(config, "EXECUTION", frozenset())
        later: Mapping[str, Any] = getattr(config, "LATER", {})
        found = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in skipped}
        return {name: recipe(value) for name, value in found.items() if name not in later or value != later[name]}
    if isinstance(config, tuple | list):
        return [recipe(item) for item in config]
    return config


def with_later(data: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """Recorded settings of a class with its LATER fields put in where they are missing, at every depth."""
    hints = get_type_hints(cls)
    found = {**recipe(dict(getattr(cls, "LATER", {}))), **data}
    return {name: _with_later(value, hints.get(name)) for name, value in found.items()}


def _with_later(value: Any, hint: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(hint, type) and is_dataclass(hint):
        return with_later(value, hint)
    if isinstance(value, list | tuple) and (of := get_args(hint)):
        return [_with_later(item, of[0]) for item in value]
    return value
