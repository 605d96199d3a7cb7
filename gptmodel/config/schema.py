"""The JSON Schema of a file of settings, for editors."""

from __future__ import annotations

from typing import Any

from gptmodel.checked import adapter
from gptmodel.config import PipelineConfig
from gptmodel.presets import PRESETS


def json_schema() -> dict[str, Any]:
    """Of what `--config` takes: every setting with its meaning, and `preset`. Checks across settings are not in it."""
    made = adapter(PipelineConfig).json_schema()
    preset = {
        "type": "string",
        "enum": list(PRESETS),
        "default": "quickstart",
        "description": "The settings to start from; what this file leaves out stays as the preset has it.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "Settings of GPTFlow",
        "properties": {"preset": preset, **made["properties"]},
    }
