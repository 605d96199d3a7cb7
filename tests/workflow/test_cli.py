"""The command line as a user types it: exit codes, one line for each error, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from flows.__main__ import cli
from flows.commands.options import Number
from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.model import GPT
from gptmodel.store.artifacts import Request, Store
from gptmodel.weights import load_model, save_model
from gptmodel.writing import continue_texts


def gptflow(folder: Path, *words: str, text: str = "", api: str = "") -> subprocess.CompletedProcess[str]:
    """The command; without `api` it starts a Prefect server of its own, which takes as long as the rest."""
    env = {**os.environ, "PREFECT_HOME": str(folder / ".prefect"), "GPTFLOW_STORE": str(folder / "store")}
    env.pop("PREFECT_API_URL", None)
    env.pop("MLFLOW_TRACKING_URI", None)
    env |= {"PREFECT_API_URL": api} if api else {}
    command = [sys.executable, "-m", "flows", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, input=text)


@pytest.mark.parametrize(  # in a process of their own; all that can be wrong: tests/provocations.py
    ("words", "message"),
    [
        (["run", "--set", "train.max_stepz=3"], "unknown setting train.max_stepz (did you mean train.max_steps?)"),
        (["evaluate", "--nonsense"], "No such option"),
        (["benchmark"], "the package lm-eval is not installed; install it: .venv/bin/python -m pip install"),
    ],
)
def test_wrong_settings_end_with_2_before_anything_starts(tmp_path: Path, words: list[str], message: str) -> None:
    done = gptflow(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert f"Usage: cli {command}" in done.stdout
    assert "--help" in done.stdout


def options(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from options(below)


def test_every_number_with_a_point_is_a_finite_one() -> None:
    found = [option for option in options(cli) if "float" in option.type.name]
    assert len(found) > 7
    for option in found:
        assert isinstance(option.type, Number), option.name
        for value in ("nan", "inf", "-inf", "1e400"):
            with pytest.raises(click.BadParameter, match=f"{value} is not finite"):
                option.type.convert(value, option, None)


@pytest.mark.slow  # 30 s of them for a Prefect server of its own; .ci/package does the same with the installed wheel
def test_pretrain_then_generate_in_a_fresh_folder(tmp_path: Path, tiny_sets: list[str]) -> None:
    sets = [word for text in tiny_sets for word in ("--set", text)]
    done = gptflow(tmp_path, "pretrain", "--preset", "smoke", "--json", *sets)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"]["summary"]["step"] == 12
    assert (tmp_path / "mlflow.db").exists(), "plain `mlflow ui` in the folder shows the run"
    words = ("--model", told["model"]["fingerprint"][:8], "--max-new-tokens", "5", "--temperature", "0")
    one = gptflow(tmp_path, "generate", *words, text="The mill")
    assert one.returncode == 0
    asked = DecodingConfig(max_new_tokens=5, temperature=0.0)
    (written,) = continue_texts(load_model(Path(told["model"]["path"])), ["The mill"], asked)
    assert one.stdout == f"The mill{written}\n"


def test_generate_and_export_write_what_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(directory: Path) -> dict[str, Any]:
        gpt = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32), seed=1)
        with torch.no_grad():
            gpt.wte.weight.mul_(20)  # else it writes one word over and over
        save_model(gpt, directory)
        return {}

    store = Store(tmp_path / "store")
    model, weights = (store.produce(Request(kind, 1, {}), build)[0] for kind in ("checkpoint", "weights"))
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    drawn = "--temperature 1.2 --top-k 99 --top-p 0.95 --min-p 0.001 --repetition-penalty 1.3 --past-end-token --seed 3"
    drawn += " --max-new-tokens 5 --stop zebra"
    typed = CliRunner()
    one = typed.invoke(cli, ["generate", "--model", model.path.name[:8], *drawn.split()], input="The mill")
    several = typed.invoke(cli, ["generate", *drawn.split(), "--samples", "2", "--json", "The mill", "A clerk"])
    assert (one.exit_code, several.exit_code) == (0, 0)
    texts = [row["prompt"] + row["text"] for row in json.loads(several.stdout)["texts"]]
    assert [text[:7] for text in texts] == ["The mil", "The mil", "A clerk", "A clerk"]
    assert one.stdout.rstrip("\n") == texts[0] != texts[1]
    asked = DecodingConfig(
        temperature=1.2,
        top_k=99,
        top_p=0.95,
        min_p=0.001,
        repetition_penalty=1.3,
        stop_at_end_token=False,
        seed=3,
        max_new_tokens=5,
        stop=("zebra",),
    )
    prompts = ["The mill", "The mill", "A clerk", "A clerk"]
    written = continue_texts(load_model(model), prompts, asked)
    assert texts == [prompt + text for prompt, text in zip(prompts, written, strict=True)]
    exported = typed.invoke(cli, ["export", weights.label, "--to", str(tmp_path / "out"), "--json"])
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= {*json.loads(exported.stdout)["files"]}
    monkeypatch.chdir(tmp_path)
    assert (
        f"{weights.label} is now in mine/out: "
        in typed.invoke(cli, ["export", weights.label, "--to", "mine/out"]).stdout
    )


def test_a_prefect_server_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / ".prefect"),
        "PREFECT_API_URL": "http://me:secret@127.0.0.1:9/api",
    }
    command = [sys.executable, "-m", "flows", "prepare", "--preset", "smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gptflow: the Prefect server (http://127.0.0.1:9/api) does not answer; each step")
    assert "Traceback" not in done.stderr
    assert "secret" not in last


def test_an_error_in_a_step_is_one_line_at_the_end(tmp_path: Path, workplace: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    words = ("prepare", "--set", "corpus.source.kind=files", "--set", "corpus.source.paths=['*.txt']")
    done = gptflow(tmp_path, *words, api=str(PREFECT_API_URL.value()))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("gptflow: no file matches '*.txt'")
    assert "Traceback" not in done.stderr
