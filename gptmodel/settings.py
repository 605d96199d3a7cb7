"""From a preset, a file and single values to one checked PipelineConfig, with errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ValidationError

from gptmodel.checked import ConfigT, adapter
from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS

adapter(PipelineConfig)


def load_config(
    preset: str = "quickstart",
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> PipelineConfig:
    """Preset, then the YAML file, then `overrides` (nested), then `sets` (`a.b=value`); later ones win.

    A mapping changes only the keys that it names, at any depth. A file may name its own preset with `preset: …`.
    ConfigError lists every unknown key, with the nearest known one, and every wrong value.
    """
    preset, merged = merge_layers(preset, file, sets, overrides)
    data = _merge(asdict(preset_config(preset)), merged)
    return parse_config(data, PipelineConfig)


def merge_layers(
    preset: str, file: Path | None = None, sets: Iterable[str] = (), overrides: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The preset's name, and all that changes it as one nested mapping, unchecked."""
    from_file = _read_yaml(file) if file else {}
    preset = str(from_file.pop("preset", preset))
    merged: dict[str, Any] = {}
    for layer in (from_file, dict(overrides or {}), *(_parse_set(text) for text in sets)):
        merged = _merge(merged, layer)
    return preset, merged


def preset_config(name: str) -> PipelineConfig:
    """The preset of this name; ConfigError with the nearest one otherwise."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{_nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def parse_config(data: Mapping[str, Any], cls: type[ConfigT]) -> ConfigT:
    """A config dataclass from plain data; ConfigError with all that is wrong."""
    try:
        return adapter(cls).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(_problems(error, cls)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not settings; write lines such as `train:`")
    return data


def _parse_set(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text!r} is not of the form a.b=value, such as train.max_steps=100")
    nested: Any = value if _is_text(key.split(".")) else _value(value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _is_text(path: list[str]) -> bool:
    """Whether the setting is a string, so that a revision such as 12345678 is not read as a number."""
    owner = _owner(PipelineConfig, path[:-1])
    return owner is not None and get_type_hints(owner).get(path[-1]) is str


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # YAML 1.1 reads 3e-4 as a string; people mean a number.
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _problems(error: ValidationError, cls: type[Any]) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        if item["type"] == "unexpected_keyword_argument":
            known = _known_keys(cls, path[:-1])
            lines.append(f"unknown setting {'.'.join(path)}{_nearest(path[-1], known)}; known: {', '.join(known)}")
        elif isinstance(cause := item.get("ctx", {}).get("error"), ConfigError):
            lines += [f"{'.'.join(path)}: {text.partition(': ')[2]}".removeprefix(": ") for text in cause.problems]
        elif item["type"] == "dataclass_type":
            known = _known_keys(cls, path)
            lines.append(f"{'.'.join(path)} is a group of settings, not {item['input']!r}; set one: {', '.join(known)}")
        else:
            lines.append(f"{'.'.join(path)}: {item['msg']}; it is {item['input']!r}")
    return lines


def _owner(cls: type[Any], path: list[str]) -> type[Any] | None:
    """The dataclass that a path of field names leads to."""
    for part in path:
        hint = get_type_hints(cls).get(part)
        if not isinstance(hint, type) or not is_dataclass(hint):
            return None
        cls = hint
    return cls


def _known_keys(cls: type[Any], path: list[str]) -> list[str]:
    owner = _owner(cls, path)
    return [f.name for f in fields(owner)] if owner else []


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
