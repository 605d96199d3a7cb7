"""`gptflow config`: see settings and where they come from, check a file, compare two, and help an editor."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.settings_options import check_one_preset, layer_options, named, one_file
from gptmodel.errors import ArtifactError, ConfigError, TrackingError
from gptmodel.presets import PRESETS

if TYPE_CHECKING:
    from gptmodel.config.known import Named

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def config() -> None:
    """Settings: see them and where they come from, check files, compare, presets, a schema for editors."""


@config.command()
@click.argument("name", default=None, callback=named)
@layer_options
@click.option("--changed", is_flag=True, help="Only what is not as the preset has it.")
@click.option("--explain", is_flag=True, help="What each setting means, instead of where its value comes from.")
@_json
def show(
    name: str | None, preset: str, file: Path | None, sets: tuple[str, ...], changed: bool, explain: bool, as_json: bool
) -> None:
    """The settings that a run would use, as YAML that --config takes, and where each value comes from.

    Takes --preset, --config and --set as `run` does. Or NAME: a preset, a YAML file, or what was recorded of a model,
    corpus, shards or evaluation of the store (or an MLflow run or registered version).
    """
    check_one_preset(name or "", preset)
    found = _named(name, preset, file, sets)
    values = found.changed if changed and found.preset else found.values
    if as_json:
        from gptmodel.config.listing import nested

        origins = {".".join(path): found.origin(path) for path in values}
        told = {"name": found.name, "preset": found.preset or None, "settings": nested(values), "origins": origins}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    click.echo(_as_yaml(found, values, explain=explain, with_preset=changed and bool(found.preset)), nl=False)


def _as_yaml(found: Named, values: dict[tuple[str, ...], Any], *, explain: bool, with_preset: bool) -> str:
    from gptmodel.config.listing import yaml_text
    from gptmodel.config.reference import meanings

    before = f"preset: {found.preset}\n" if with_preset else ""
    if explain:
        told = meanings()
        return before + yaml_text(values, above=lambda path: told.get(path, ""))
    return before + yaml_text(values, beside=found.origin)


@config.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), required=True)
@click.option("--preset", default="quickstart", show_default=True, help="For files that name none.")
@_json
def validate(files: tuple[Path, ...], preset: str, as_json: bool) -> None:
    """Check FILES of settings without running anything. Exit code 2 if one is wrong, and a line for each problem."""
    from gptmodel.config.known import of_layers
    from gptmodel.markdown_text import counted

    told: list[dict[str, Any]] = []
    for file in files:
        try:
            found = of_layers(preset, file)
            told.append({"file": str(file), "valid": True, "preset": found.preset, "changed": len(found.changed)})
        except ConfigError as error:
            told.append({"file": str(file), "valid": False, "problems": error.problems})
    if as_json:
        click.echo(json.dumps({"files": told}, ensure_ascii=False))
    for each in told if not as_json else ():
        if each["valid"]:
            click.echo(
                f"{each['file']}: right; preset {each['preset']}, {counted(each['changed'], 'setting')} of its own"
            )
    problems = [problem for each in told for problem in each.get("problems", ())]
    if problems:
        raise ConfigError(problems)


@config.command()
@click.argument("a", callback=named)
@click.argument("b", callback=named)
@click.option("--exit-code", is_flag=True, help="End with 1 where they differ.")
@_json
def diff(a: str, b: str, exit_code: bool, as_json: bool) -> None:
    """What differs between the settings of A and B: presets, YAML files, or models of the store, runs, versions."""
    from dataclasses import asdict

    from gptmodel.config.known import differences
    from gptmodel.config.listing import scalar

    one, other = _named(a), _named(b)
    found = differences(one, other)
    if as_json:
        told = {"a": one.name, "b": other.name, "differences": [asdict(each) for each in found]}
        click.echo(json.dumps(told, ensure_ascii=False))
    elif not found:
        click.echo(f"{one.name} and {other.name} have the same settings")
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for side in (one.name, other.name):
            table.add_column(escape(side), overflow="fold")
        for each in found:
            table.add_row(each.key, escape(scalar(each.a)), escape(scalar(each.b)))
        Console(highlight=False).print(table)
    if exit_code and found:
        raise SystemExit(1)


@config.command()
@_json
def presets(as_json: bool) -> None:
    """The presets: what each is for, its size and how long it trains."""
    from gptmodel.config.reference import preset_facts

    found = preset_facts()
    if as_json:
        click.echo(json.dumps({"presets": found}, ensure_ascii=False))
        return
    click.echo(f"{'preset':<12}{'parameters':>14}{'context':>9}{'steps':>8}{'tokens':>15}")
    for each in found:
        figures = f"{each['parameters']:>14,}{each['context']:>9,}{each['steps']:>8,}{each['tokens']:>15,}"
        click.echo(f"{each['name']:<12}{figures}")
        for line in textwrap.wrap(each["for"], 76):
            click.echo(f"    {line}")
    click.echo("\nSee one: gptflow config show quickstart. A file to start from: ... --explain > my.yaml")


@config.command()
@click.option("--to", type=click.Path(path_type=Path), help="Write it to this file.")
def schema(to: Path | None) -> None:
    """The JSON Schema of a file of settings, with which editors complete, explain and check as you type."""
    from gptmodel.config.schema import json_schema

    text = json.dumps(json_schema(), ensure_ascii=False, indent=2) + "\n"
    if to is None:
        click.echo(text, nl=False)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {to}: {error.strerror}; give another --to") from None
    click.echo(f"{to} is written. As the first line of your file:\n\n# yaml-language-server: $schema={to}")


def _named(name: str | None, preset: str = "quickstart", file: Path | None = None, sets: tuple[str, ...] = ()) -> Named:
    from gptmodel.config.known import is_file, of_layers

    if not name or name in PRESETS:
        return of_layers(name or preset, file, sets)
    if is_file(name):
        return of_layers(preset, one_file(name, file), sets)
    if sets or file:
        raise ConfigError(f"--set and --config change presets and files; {name} is neither")
    return _recorded(name)


def _recorded(name: str) -> Named:
    from gptmodel.config.known import unknown
    from gptmodel.reproduction.recorded import of_artifact, of_run
    from gptmodel.reproduction.sides import unfinished_run
    from gptmodel.store.artifacts import Store, open_store
    from tasks.tracking.naming import find_artifact

    store = open_store()
    try:
        artifact = find_artifact(store, name)
    except (ArtifactError, TrackingError) as error:
        if (run_dir := unfinished_run(store, name)) is not None:
            return of_run(run_dir, name)
        if isinstance(error, ArtifactError):
            raise unknown(name, str(error)) from None
        raise
    return of_artifact(Store(artifact.path.resolve().parent.parent), artifact)
