"""`gptflow config`: settings with where they come from, as a person sees them; YAML read as people mean it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from flows.__main__ import cli
from gptmodel.config import PipelineConfig, recipe
from gptmodel.config.listing import flat
from gptmodel.config.schema import json_schema
from gptmodel.errors import ConfigError
from gptmodel.presets import PRESETS
from gptmodel.pretraining.step import run_dir_of
from gptmodel.settings import load_config, preset_config
from gptmodel.store.artifacts import Artifact, Request, Store

ROOT = Path(__file__).resolve().parents[2]


def config(*words: str) -> Result:
    return CliRunner().invoke(cli, ["config", *words])


def told(*words: str) -> Any:
    done = config(*words, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def differing(a: str, b: str) -> list[str]:
    return [each["key"] for each in told("diff", a, b)["differences"]]


def problems_of(*words: str) -> list[str]:
    done = config(*words)
    assert isinstance(done.exception, ConfigError)
    return done.exception.problems


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(
        """preset: smoke
train:
  max_steps: 7

  optimizer: {learning_rate: 1e-3}
data_gates:
  pii: warn
"""
    )
    return file


def test_each_value_is_shown_with_where_it_comes_from(mine: Path) -> None:
    origins = told("show", "--config", str(mine), "--set", "data_gates.pii=fail")["origins"]
    assert origins["train.max_steps"] == f"{mine}:3"
    assert origins["train.optimizer.learning_rate"] == f"{mine}:5"
    assert origins["data_gates.pii"] == "--set data_gates.pii=fail"
    assert origins["train.batch_size"] == "preset smoke"
    assert origins["train.seed"] == "default"


def test_what_is_shown_is_a_file_with_the_same_settings(mine: Path, tmp_path: Path) -> None:
    wanted = load_config(file=mine)
    for words in ((), ("--changed",), ("--explain",), ("--changed", "--explain")):
        shown = config("show", "--config", str(mine), *words).stdout
        (tmp_path / "again.yaml").write_text(shown)
        assert load_config(file=tmp_path / "again.yaml") == wanted, words
    assert "# Optimizer steps.\n  max_steps: 7" in shown
    assert "seed" not in shown


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_file_that_reads_back_as_the_preset(name: str) -> None:
    file = ROOT / "docs" / "presets" / f"{name}.yaml"
    assert load_config(file=file) == preset_config(name)
    assert {path[0] for path in flat(yaml.safe_load(file.read_text()))} == set(asdict(preset_config(name)))
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(file.read_text()))


def test_pages_made_from_the_settings_are_as_the_settings_are() -> None:
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs" / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stale = [str(file) for file, text in script.pages().items() if (ROOT / "docs" / file).read_text() != text]
    assert not stale, "run `.venv/bin/python docs/configuration.py`"


def test_the_schema_knows_the_names_and_types() -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    schema.check_schema(json_schema())
    assert not list(schema.iter_errors({"preset": "smoke", "train": {"max_steps": 5}, "data_gates": {"pii": "off"}}))
    for wrong in ({"train": {"max_stepz": 5}}, {"preset": "smok"}, {"data_gates": {"pii": "no"}}, {"name": 5}):
        assert len(list(schema.iter_errors(wrong))) == 1, wrong
    described = json_schema()["$defs"]["TrainConfig"]["properties"]
    assert all(each.get("description") for each in described.values())


def test_the_schema_is_written_where_an_editor_finds_it(tmp_path: Path) -> None:
    done = config("schema", "--to", str(tmp_path / "s.json"))
    assert f"# yaml-language-server: $schema={tmp_path / 's.json'}" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text()) == json_schema()
    assert problems_of("schema", "--to", str(tmp_path))[0].startswith(f"cannot write {tmp_path}")


@pytest.mark.parametrize("how", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merges"])
def test_aliases_that_stand_for_billions_are_refused(how: str, tmp_path: Path) -> None:
    lines = ["a: &a {x: 1}", *(f"{b}: &{b} {how.format(', '.join([f'*{a}'] * 9))}" for a, b in pairwise("abcdefghijk"))]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    (problem,) = problems_of("validate", str(tmp_path / "laughs.yaml"))
    assert problem.startswith(f"{tmp_path / 'laughs.yaml'}:1: its aliases (`*name`) repeat more than 10,000 values")


def test_several_files_are_checked_and_all_that_is_wrong_is_told(mine: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("train:\n  max_steps: 0\n  seeed: 1\n")
    assert f"{mine}: right; preset smoke, 3 settings of its own" in config("validate", str(mine)).stdout
    found = CliRunner().invoke(cli, ["config", "validate", str(mine), str(bad), "--json"])
    assert [each["valid"] for each in json.loads(found.stdout)["files"]] == [True, False]
    assert problems_of("validate", str(bad), str(mine)) == [
        f"{bad}:3: unknown setting train.seeed (did you mean train.seed?)"
    ]


def test_presets_are_listed_with_their_figures() -> None:
    found = {each["name"]: each for each in told("presets")["presets"]}
    assert list(found) == list(PRESETS)
    assert found["gpt2-124m"]["parameters"] == 124_439_808
    assert found["gpt2-124m"]["tokens"] == 19_073 * 512 * 1024
    assert "124,439,808" in config("presets").stdout


def test_two_sides_are_compared_setting_by_setting(mine: Path) -> None:
    found = told("diff", "smoke", str(mine))["differences"]
    assert [(each["key"], each["a"], each["b"]) for each in found] == [
        ("train.max_steps", 20, 7),
        ("train.optimizer.learning_rate", 3e-3, 1e-3),
        ("data_gates.pii", "off", "warn"),
    ]
    assert config("diff", "smoke", str(mine), "--exit-code").exit_code == 1
    same = config("diff", "smoke", "smoke", "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "smoke and smoke have the same settings\n")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A checkpoint without weights, and the job of its run: what tells of its settings."""
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    store, made_with = Store(tmp_path / "store"), load_config("smoke", sets=["train.seed=99", "shards.workers=3"])
    asked = {"model": recipe(made_with.model), "train": recipe(made_with.train)}

    def built(directory: Path) -> dict[str, Any]:
        (directory / "curve.jsonl").write_text("")
        return {"step": 20}

    made, _ = store.produce(Request("checkpoint", 1, asked), built)
    run_dir = run_dir_of(store, made.fingerprint)
    run_dir.mkdir(parents=True)
    (run_dir / "job.json").write_text(json.dumps({"config": asdict(made_with)}))
    return made


def test_a_recorded_model_is_shown_and_compared(model: Artifact, tmp_path: Path) -> None:
    found = told("show", model.label)
    assert found["settings"]["train"]["seed"] == 99
    assert found["settings"]["shards"]["workers"] == 3
    assert set(found["origins"].values()) == {model.label}
    assert differing("smoke", model.label) == ["shards.workers", "train.seed"]
    (tmp_path / "again.yaml").write_text(config("show", model.label).stdout)
    again = load_config(file=tmp_path / "again.yaml")
    smoke = preset_config("smoke")
    assert again == replace(smoke, train=replace(smoke.train, seed=99), shards=replace(smoke.shards, workers=3))
    # With its run gone, only what decided the bytes is known.
    run_dir_of(Store(tmp_path / "store"), model.fingerprint).joinpath("job.json").unlink()
    assert set(told("show", model.label)["settings"]) == {"model", "train"}
    assert differing("smoke", model.label) == ["train.seed"]


def test_names_that_are_wrong_are_told_in_words(tmp_path: Path) -> None:
    (told_of,) = problems_of("show", "--set", "evaluate.decodings=[{temperatur: 1}]")
    assert told_of.endswith("evaluate.decodings.0.temperatur (did you mean evaluate.decodings.0.temperature?)")
    (tmp_path / "odd.yaml").write_text("train:\n  ? [a, b]\n  : 1\n")
    (told_of,) = problems_of("validate", str(tmp_path / "odd.yaml"))
    assert told_of.startswith(f"{tmp_path / 'odd.yaml'}:2: a name of a setting is one word")


def test_names_that_are_nothing(model: Artifact, mine: Path) -> None:
    assert problems_of("show", "smok")[0].startswith("no settings are called 'smok' (did you mean smoke?): no preset")
    assert problems_of("show", model.label, "--set", "train.seed=1")[0].endswith("is neither")
    assert problems_of("show", "smoke", "--preset", "quickstart") == ["two presets, smoke and quickstart; give one"]
    assert problems_of("show", model.label, "--preset", "smoke") == [
        f"--preset smoke says nothing to {model.label}; leave it out"
    ]
    assert problems_of("diff", "smoke", "none.yaml")[0].startswith("cannot read config file none.yaml: No such file")


# YAML as people mean it. Each line stands in a file and, where it has one value, on the command line too.
@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("data_gates.pii", "off", "off"),
        ("train.compile", "on", True),
        ("train.compile", "no", False),
        ("train.compile", "True", True),
        ("train.optimizer.learning_rate", "1e-3", 1e-3),
        ("train.optimizer.learning_rate", "3", 3.0),
        ("train.seed", "010", 10),
        ("train.seed", "1_000", 1000),
        ("train.seed", "0x10", 16),
        ("corpus.split_key", "2026-01-01", "2026-01-01"),
        ("corpus.split_key", "1234e567", "1234e567"),
        ("corpus.split_key", "on", "on"),
        ("corpus.split_key", "007", "007"),
        ("evaluate.prompts", "[yes, 12:30, 'no']", ("yes", "12:30", "no")),
    ],
)
def test_words_mean_what_people_read(tmp_path: Path, path: str, text: str, value: object) -> None:
    file = tmp_path / "a.yaml"
    group, _, name = path.rpartition(".")
    outer = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(group.split(".")))
    file.write_text(f"{outer}{'  ' * path.count('.')}{name}: {text}\n")
    for found in (load_config(file=file), load_config(sets=[f"{path}={text}"])):
        assert flat(found)[tuple(path.split("."))] == (list(value) if isinstance(value, tuple) else value)
        assert type(flat(found)[tuple(path.split("."))]) in (list, type(value))


@pytest.mark.parametrize("text", ["# a", "a: b", "[x", "'quoted'", "a #b", "~"])
def test_a_text_on_the_command_line_is_taken_as_it_stands(text: str) -> None:
    assert load_config(sets=[f"corpus.split_key={text}"]).corpus.split_key == text


def test_an_off_that_yaml_1_1_made_false_is_off() -> None:
    assert yaml.safe_load("off") is False  # as Prefect reads prefect.yaml
    assert load_config(overrides={"data_gates": {"pii": False}}).data_gates.pii == "off"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  seed: 1\n  seed: 2\n", ":3: train.seed stands twice, in line 2 too; keep one"),
        ("train:\n\tseed: 1\n", ":2:1: not valid YAML: found character '\\t' that cannot start any token; indent with"),
        ("train: [\n", ":2:1: not valid YAML: "),
        ("train:\n  max_steps: many\n", ":2: train.max_steps is 'many'; give a whole number"),
        ("train:\n  max_steps:\n", ":2: train.max_steps is empty; give a whole number, or leave the line out"),
        ("train:\n  max_steps:\n    many\n", ":2: train.max_steps is 'many'; give a whole number"),
        ("train:\n  compile: perhaps\n", ":2: train.compile is 'perhaps'; give true or false"),
        (
            "train:\n  precision: float16\n",
            ":2: train.precision is 'float16'; give 'auto', 'float32' or 'bfloat16' (",
        ),
        ("data_gates: {pii: no}\n", ":1: data_gates.pii is 'no'; give 'off', 'warn' or 'fail' (did you mean off?)"),
        ("train:\n  optimizer:\n    learning_rate: .nan\n", ":3: train.optimizer.learning_rate is nan; give a finite"),
        ("evaluate:\n  prompts: hello\n", ":2: evaluate.prompts is 'hello'; give a list, such as [a, b]"),
        (
            "evaluate:\n  decodings:\n  - {top_k: 1}\n  - {top_k: -1}\n",
            ":4: evaluate.decodings.1.top_k is -1; give",
        ),
        ("max_steps: 5\n", ":1: unknown setting max_steps (did you mean train.max_steps?)"),
        ("train:\n  lr: 5\n", ":2: unknown setting train.lr (did you mean train.optimizer.learning_rate?)"),
        ("train:\n  warmup: 5\n", ":2: unknown setting train.warmup (did you mean train.optimizer.warmup_steps?)"),
        ("train: 5\n", ":1: train is a group of settings, not 5; set one: max_steps, batch_size"),
        ("# a\nmodel:\n  n_embd: 64\n  n_head: 5\n", ":3: model.n_embd 64 is not divisible by n_head 5"),
        ("train:\n  seed: 1\n  batch_size: 9\n", ":3: train.batch_size 9 is not a multiple of micro_batch_size 8"),
        ("preset: smok\n", ":1: no preset 'smok' (did you mean smoke?); there are"),
        ("", " holds no settings; write lines such as `train:`"),
        ("- 1\n", ":1: holds a list, not settings"),
        ("train: &a [*a]\n", ":1: train.0 holds itself"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file=file)
    assert error.value.problems[0].startswith(f"{file}{said}")


def test_the_command_line_tells_which_set_is_wrong() -> None:
    for command in ("run", "plan", "prepare"):
        done = CliRunner().invoke(cli, [command, "--set", "train.seed=3", "--set", "train.batch_size=9"])
        assert isinstance(done.exception, ConfigError)
        assert done.exception.problems == [
            "--set train.batch_size=9: train.batch_size 9 is not a multiple of micro_batch_size 8"
        ]


def test_a_later_layer_answers_for_what_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  batch_size: 9\n")
    with pytest.raises(ConfigError, match=r"^--set train.batch_size=10: train.batch_size 10 is not"):
        load_config(file=file, sets=["train.batch_size=10"])
    assert load_config(file=file, sets=["train.batch_size=16"]).train.batch_size == 16
    with pytest.raises(ConfigError, match=r"^train.batch_size 10 is not"):
        load_config(file=file, overrides={"train": {"batch_size": 10}})


def test_merged_keys_of_an_anchor_are_not_twins(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("evaluate:\n  decodings:\n  - &a {top_k: 5, seed: 1}\n  - {<<: *a, seed: 2}\n  - {<<: *a}\n")
    assert [(d.top_k, d.seed) for d in load_config(file=file).evaluate.decodings] == [(5, 1), (5, 2), (5, 1)]


def test_every_setting_has_a_meaning_and_a_type() -> None:
    from gptmodel.config.listing import sections

    found = [setting for section in sections(PipelineConfig) for setting in section.settings]
    assert {setting.path for setting in found} == set(flat(PipelineConfig()))
    assert not [setting.path for setting in found if not setting.meaning or not setting.type]
