"""From a preset, a file and single values to one checked PipelineConfig, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptmodel.checked import ConfigT, adapter
from gptmodel.config import PipelineConfig
from gptmodel.config.problems import nearest, told_problems
from gptmodel.config.reading import Layer, Place, hint_of, read_file, read_set
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS

adapter(PipelineConfig)


@dataclass(frozen=True)
class Settled:
    """Checked settings, and how they came about."""

    config: PipelineConfig
    preset: str
    changes: dict[str, Any]
    """What changes the preset, nested."""
    origins: dict[Place, str]
    """Where each change was written: `my.yaml:3`, `--set a.b=value`."""


def settle(
    preset: str = "quickstart",
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> Settled:
    """Preset, then the YAML file, then `overrides` (nested), then `sets` (`a.b=value`); later ones win.

    A mapping changes only the keys that it names, at any depth. A file may name its own preset with `preset: …`.
    ConfigError lists every unknown key, with the nearest known one, and every wrong value, each with file and line or
    its --set.
    """
    preset, changes = _layered(preset, file, sets, overrides, PipelineConfig)
    start = asdict(preset_config(preset, changes.origins.pop(("preset",), "")))
    data = _merge(start, changes.data)
    return Settled(parse_config(data, PipelineConfig, changes.origins), preset, changes.data, changes.origins)


def load_config(
    preset: str = "quickstart",
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> PipelineConfig:
    """The settings of `settle` alone."""
    return settle(preset, file, overrides, sets).config


def merge_layers(
    preset: str,
    file: Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    cls: type[Any] = PipelineConfig,
) -> tuple[str, dict[str, Any]]:
    """The preset's name, and all that changes it as one nested mapping, unchecked but read as `cls` has its fields."""
    preset, merged = _layered(preset, file, sets, overrides, cls)
    return preset, merged.data


def preset_config(name: str, where: str = "") -> PipelineConfig:
    """The preset of this name; ConfigError with the nearest one otherwise, and `where` it was written."""
    if name not in PRESETS:
        before = f"{where}: " if where else ""
        raise ConfigError(f"{before}no preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def parse_config(data: Mapping[str, Any], cls: type[ConfigT], origins: Mapping[Place, str] | None = None) -> ConfigT:
    """A config dataclass from plain data; ConfigError with all that is wrong, and where it was written if known."""
    try:
        return adapter(cls).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(told_problems(error, cls, origins or {})) from None


def _layered(
    preset: str, file: Path | None, sets: Iterable[str], overrides: Mapping[str, Any] | None, cls: type[Any]
) -> tuple[str, Layer]:
    layers = [read_file(file, cls)] if file else []
    layers.append(Layer(dict(overrides or {})))
    problems = []
    for text in sets:
        try:
            layers.append(read_set(text, cls))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if file:
        preset = str(layers[0].data.pop("preset", preset))
    data: dict[str, Any] = {}
    origins: dict[Place, str] = {}
    for layer in layers:
        for leaf in _leaves(layer.data):
            origins = {path: told for path, told in origins.items() if path[: len(leaf)] != leaf}
        data, origins = _merge(data, layer.data), {**origins, **layer.origins}
    for layer in layers:
        wrong = _misplaced(layer.data, cls)
        data = _merge(data, wrong)
        origins |= {leaf: layer.origins[leaf] for leaf in _leaves(wrong) if leaf in layer.origins}
    return preset, Layer(data, origins)


def _misplaced(data: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """What stands where a group of settings belongs: a later layer that changes the group must not hide it."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if is_dataclass(hint := hint_of(cls, (key,))):
            inside = _misplaced(value, hint) if isinstance(value, Mapping) else value
            found |= {} if inside == {} else {key: inside}
    return found


def _leaves(data: Mapping[str, Any], before: Place = ()) -> Iterable[Place]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key)


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged
