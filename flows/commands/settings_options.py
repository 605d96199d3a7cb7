"""--preset, --config and --set, as all commands take them, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from flows.commands.options import UTF8, json_option
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS

Command = Callable[..., Any]


def layer_options(command: Command) -> Command:
    """--preset, --config and --set: where settings come from."""
    for option in (
        click.option(
            "--set", "sets", multiple=True, type=UTF8, metavar="A.B=VALUE", help="Change one setting; may be repeated."
        ),
        click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings."),
        click.option("--preset", default="quickstart", show_default=True, help=f"One of {', '.join(PRESETS)}."),
    ):
        command = option(command)
    return command


def settings_options(command: Command) -> Command:
    """These with --wait and --json, for the commands that run flows."""
    command = json_option(command)
    wait = click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
    return layer_options(wait(command))


def starts_from(command: Command) -> Command:
    """`run gpt2-124m` and `run mine.yaml` for `run --preset gpt2-124m` and `run --config mine.yaml`."""

    @click.argument("what", default=None, callback=named)
    @wraps(command)
    def with_what(what: str | None, preset: str, file: Path | None, **given: Any) -> Any:
        from gptmodel.config.known import is_file

        if what and is_file(what):
            file = one_file(what, file)
        elif what:
            check_one_preset(what, preset)
            preset = what
        return command(preset=preset, file=file, **given)

    return with_what


def named(_: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """What an argument gave. ConfigError if it is empty, as an unset variable of the shell is."""
    if given is not None and not given.strip():
        what = parameter.human_readable_name
        raise ConfigError(f"{what} is empty; is a variable of the shell unset? There are {', '.join(PRESETS)}")
    return given


def check_one_preset(what: str, preset: str) -> None:
    """ConfigError where --preset names another than WHAT, which is no file; one may have settings of its own."""
    from gptmodel.config.known import is_file

    source = click.get_current_context().get_parameter_source("preset")
    if not what or is_file(what) or source is ParameterSource.DEFAULT or preset == what:
        return
    if what in PRESETS:
        raise ConfigError(f"two presets, {what} and {preset}; give one")
    raise ConfigError(f"--preset {preset} says nothing to {what}; leave it out")


def one_file(what: str, file: Path | None) -> Path:
    """The file of settings that WHAT is. ConfigError where --config names one too."""
    if file is not None:
        raise ConfigError(f"two files of settings, {what} and {file}; give one")
    return Path(what)


def checked_overrides(preset: str, file: Path | None, sets: tuple[str, ...]) -> tuple[str, Any]:
    """Preset name and overrides that give just these settings. ConfigError before anything starts if one is wrong.

    StorageError if the store cannot be one: Prefect takes seconds to import.
    """
    from gptmodel.overrides import PipelineOverrides
    from gptmodel.settings import settle
    from gptmodel.store.artifacts import open_store

    found = settle(preset, file, sets=sets)
    open_store()
    return found.preset, PipelineOverrides.model_validate(found.changes)
