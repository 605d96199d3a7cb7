"""How a settings class says all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from gptmodel.errors import ConfigError

ConfigT = TypeVar("ConfigT")
_made: dict[type[Any], TypeAdapter[Any]] = {}

STRICT: Any = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}
"""For pydantic: unknown keys, infinity and NaN are refused, and docstrings of fields describe them in forms."""


def adapter(cls: type[ConfigT]) -> TypeAdapter[ConfigT]:
    """The validator of a settings class, made once.

    To make one parses the class's source, which Python 3.11 may refuse with "AST constructor recursion depth mismatch"
    while another thread parses too (gh-106905), as a workflow's server does: so it is made at import.
    """
    if cls not in _made:
        _made[cls] = TypeAdapter(cls)
    return cast(TypeAdapter[ConfigT], _made[cls])


def check(owner: object, problems: Iterable[tuple[bool, str]]) -> None:
    """Raise one ConfigError with the message of every pair whose first member is true."""
    found = [f"{type(owner).__name__}: {message}" for wrong, message in problems if wrong]
    if found:
        raise ConfigError(found)
