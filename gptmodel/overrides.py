"""The settings as a form in which everything may be left out: what a flow takes beside a preset.

A nested parameter would otherwise replace the whole default, and `{"train": {"max_steps": 5}}` would silently become
another model. Made from the config classes, so there is one source of truth.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Optional, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from gptmodel.checked import adapter
from gptmodel.config import PipelineConfig


@cache
def partial(cls: type[Any]) -> type[BaseModel]:
    """A model with the fields of a config class, at every depth, each of them optional; unknown keys are refused."""
    hints, described = get_type_hints(cls, include_extras=True), adapter(cls).json_schema()["properties"]
    made: dict[str, Any] = {}
    for field in fields(cls):
        hint = hints[field.name]
        hint = partial(hint) if isinstance(hint, type) and is_dataclass(hint) else hint
        # Optional and not `|`: the hint is a value here.
        made[field.name] = (Optional[hint], Field(None, description=described[field.name].get("description")))  # noqa: UP045
    name = cls.__name__.replace("Config", "Overrides")
    return create_model(name, __config__=ConfigDict(extra="forbid"), __doc__=cls.__doc__, **made)


PipelineOverrides = partial(PipelineConfig)


def given(overrides: BaseModel | None) -> dict[str, Any]:
    """Only what was filled in, as nested plain data."""
    return overrides.model_dump(exclude_none=True) if overrides else {}
