"""Where a command's settings come from: WHAT, --preset and --config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from flows.__main__ import cli
from flows.commands.settings_options import checked_overrides, settings_options, starts_from
from gptmodel.errors import ConfigError


@click.command()
@settings_options
@starts_from
def command(preset: str, file: Path | None, sets: tuple[str, ...], wait: bool, as_json: bool) -> None:
    name, overrides = checked_overrides(preset, file, sets)
    click.echo(f"{name} {overrides.model_dump(exclude_unset=True)}")


def asked(*words: str) -> Result:
    return CliRunner().invoke(command, words)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text("preset: smoke\ntrain:\n  max_steps: 7\n")
    return str(tmp_path / "mine.yaml")


def test_what_is_a_preset_or_a_file(mine: str) -> None:
    assert asked().output == "quickstart {}\n"
    assert asked("smoke").output == asked("--preset", "smoke").output == "smoke {}\n"
    assert asked("smoke", "--preset", "smoke").output == "smoke {}\n"
    told = "smoke {'train': {'max_steps': 7}}\n"
    assert asked(mine).output == asked("--config", mine).output == told
    assert asked("gpt2-124m", "--config", mine).output == asked("--preset", "gpt2-124m", "--config", mine).output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quikstart",), "did you mean quickstart"),
        (("gone.yaml",), "cannot read config file gone.yaml"),
        (("smoke", "--preset", "quickstart"), "two presets, smoke and quickstart; give one"),
        (("a.yaml", "--config", "b.yaml"), "two files of settings, a.yaml and b.yaml; give one"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], said: str) -> None:
    error: Any = asked(*words).exception
    assert isinstance(error, ConfigError)
    assert said in str(error)


@pytest.mark.parametrize(
    "words",
    [("run", ""), ("pretrain", " "), ("run", "--preset", ""), ("config", "show", ""), ("config", "diff", "", "smoke")],
)
def test_an_empty_name_is_not_taken_for_one_left_out(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `run "$PRESET"` gives it where the variable is unset."""
    monkeypatch.setattr("flows.__main__._run", lambda *_, **__: pytest.fail("it started"))
    error: Any = CliRunner().invoke(cli, words).exception
    assert isinstance(error, ConfigError), error
    assert "is empty" in str(error) or "no preset ''" in str(error)
