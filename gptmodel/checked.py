"""How a settings class says all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gptmodel.errors import ConfigError

STRICT: Any = {"extra": "forbid", "use_attribute_docstrings": True}
"""For pydantic: unknown keys are refused, and docstrings of fields describe them in forms."""


def check(owner: object, problems: Iterable[tuple[bool, str]]) -> None:
    """Raise one ConfigError with the message of every pair whose first member is true."""
    found = [f"{type(owner).__name__}: {message}" for wrong, message in problems if wrong]
    if found:
        raise ConfigError(found)
