"""Settings that have a name, and how two of them differ: presets and files here, models in `reproduction.recorded`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.config import PipelineConfig
from gptmodel.config.listing import flat, plain
from gptmodel.config.problems import nearest, written
from gptmodel.config.reading import Place
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS
from gptmodel.settings import Settled, preset_config, settle


@dataclass(frozen=True)
class Named:
    """Settings, flat, each with where its value comes from."""

    name: str
    values: dict[Place, Any]
    origins: dict[Place, str]
    """`default`, `preset smoke`, `my.yaml:3`, `--set a.b=value`, or `checkpoint/1f2e…`."""
    preset: str = ""
    """The one under them; "" for what was recorded."""

    def origin(self, path: Place) -> str:
        """Where this setting's value comes from."""
        return self.origins.get(path, "default")

    @property
    def changed(self) -> dict[Place, Any]:
        """What is neither the preset's nor the default."""
        usual = ("default", f"preset {self.preset}")
        return {path: value for path, value in self.values.items() if self.origin(path) not in usual}


def of_layers(preset: str = "quickstart", file: Path | None = None, sets: Iterable[str] = ()) -> Named:
    """What a run with these would use. ConfigError as in `settle`."""
    found = settle(preset, file, sets=sets)
    return Named(str(file) if file else found.preset, flat(found.config), _origins(found), found.preset)


def _origins(found: Settled) -> dict[Place, str]:
    usual, start = flat(PipelineConfig()), flat(preset_config(found.preset))
    told: dict[Place, str] = {}
    for path in flat(found.config):
        changed = _value_at(found.changes, path)
        if changed and (where := written(path, found.origins)):
            told[path] = where
        elif start[path] != usual[path]:
            told[path] = f"preset {found.preset}"
    return told


def _value_at(data: Any, path: Place) -> bool:
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True


def is_file(name: str) -> bool:
    """Whether a name is a file of settings by its ending or by being one."""
    return name not in PRESETS and (Path(name).suffix in (".yaml", ".yml", ".json") or Path(name).is_file())


def unknown(name: str, trouble: str) -> ConfigError:
    """For a name that is neither a preset nor a file nor, as `trouble` says, in the store."""
    return ConfigError(f"no settings are called {name!r}{nearest(name, PRESETS)}: no preset, no file, and {trouble}")


@dataclass(frozen=True)
class Difference:
    """One setting with its value on either side."""

    key: str
    a: Any
    b: Any


def differences(a: Named, b: Named) -> list[Difference]:
    """Settings that both sides know and that are not the same, in the order of the file."""
    both = (
        (".".join(path), plain(value), plain(b.values[path])) for path, value in a.values.items() if path in b.values
    )
    return [Difference(*found) for found in both if found[1] != found[2]]
