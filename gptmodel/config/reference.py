"""What the documents and `gptflow config` tell of settings: meanings, presets, and the page with all of them."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Any

from gptmodel.arithmetic import count_parameters
from gptmodel.config import PipelineConfig
from gptmodel.config.listing import Section, Setting, flat, plain, scalar, sections, yaml_text
from gptmodel.config.reading import Place
from gptmodel.presets import PRESETS

_HEAD = """# All settings

Made from the classes in [`gptmodel/config/`](../gptmodel/config) by `docs/configuration.py`; a test holds it in step.
How to work with them: [configuring](configuring.md).

**Default** is what a setting is where neither the preset nor you say otherwise; **in presets** lists those that do. A
setting with † says how work is done and not what comes out: it is in no artifact's fingerprint.

"""


@cache
def meanings() -> dict[Place, str]:
    """What each setting and group means, by path."""
    found: dict[Place, str] = {}
    for section in sections(PipelineConfig):
        found[section.path] = section.meaning
        found |= {setting.path: setting.meaning for setting in section.settings}
    return found


def preset_facts() -> list[dict[str, Any]]:
    """Of each preset: name, trainable parameters, context in tokens, optimizer steps, training tokens, and its use."""
    found = []
    for name, make in PRESETS.items():
        config = make()
        found.append(
            {
                "name": name,
                "parameters": count_parameters(config.model).total,
                "context": config.model.context_length,
                "steps": config.train.max_steps,
                "tokens": config.train.max_steps * config.train.batch_size * config.model.context_length,
                "for": " ".join((make.__doc__ or "").split()),
            }
        )
    return found


def preset_file(name: str) -> str:
    """A preset as a file of settings: every one of them, with its meaning above it."""
    config, told = PRESETS[name](), meanings()
    about = textwrap.wrap(" ".join((PRESETS[name].__doc__ or "").split()), 108)
    head = [f"The preset {name}, written out by docs/configuration.py.", *about]
    body = yaml_text(flat(config), above=lambda path: told.get(path, ""))
    return "".join(f"# {line}\n" for line in head) + "\n" + body


def page() -> str:
    """The reference as Markdown."""
    values = {name: flat(make()) for name, make in PRESETS.items()}
    return _HEAD + _presets() + "\n".join(_section(section, values) for section in sections(PipelineConfig))


def _presets() -> str:
    rows = "".join(
        f"| [`{each['name']}`](presets/{each['name']}.yaml) | {each['parameters']:,} | {each['context']:,} | "
        f"{each['steps']:,} | {each['tokens']:,} | {each['for']} |\n"
        for each in preset_facts()
    )
    head = "| preset | parameters | context | steps | tokens | for |\n|---|--:|--:|--:|--:|---|\n"
    return f"## Presets\n\n{head}{rows}\n"


def _section(section: Section, values: dict[str, dict[Place, Any]]) -> str:
    title = f"`{'.'.join(section.path)}`" if section.path else "At the top"
    rows = "".join(_row(setting, values) for setting in section.settings)
    table = f"| setting | type | default | in presets | meaning |\n|---|---|---|---|---|\n{rows}" if rows else ""
    return f"## {title}\n\n{section.meaning}\n\n{table}"


def _row(setting: Setting, values: dict[str, dict[Place, Any]]) -> str:
    by_value: dict[str, list[str]] = {}
    for name, found in values.items():
        if found[setting.path] != plain(setting.default):
            by_value.setdefault(_code(found[setting.path]), []).append(name)
    presets = "; ".join(f"{value} {', '.join(names)}" for value, names in by_value.items())
    cells = (
        f"`{setting.path[-1]}`" + ("" if setting.decides else " †"),
        setting.type,
        _code(plain(setting.default)),
        presets,
        setting.meaning.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |\n"


def _code(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"`{value:,}`" if isinstance(value, int) and value >= 10_000 else f"`{value}`"
    return f"`{scalar(value)}`".replace("|", "\\|")
