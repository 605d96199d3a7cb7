"""Settings: layers, errors that a person can act on, and the partial form that flows take."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from gptmodel.artifacts import Request
from gptmodel.config import ModelConfig, PipelineConfig, ShardsConfig, SourceConfig, TrainConfig, recipe
from gptmodel.errors import ConfigError
from gptmodel.overrides import PipelineOverrides, given, partial
from gptmodel.presets import PRESETS, PresetName
from gptmodel.settings import load_config, merge_layers, parse_config, preset_config


def test_later_layers_win_and_leave_the_rest_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: smoke\ntrain:\n  max_steps: 7\n  optimizer: {learning_rate: 1e-3}\n")
    config = load_config("quickstart", file, {"train": {"seed": 5}}, ["train.max_steps=9", "name=mine"])
    smoke = preset_config("smoke")
    assert (config.train.max_steps, config.train.seed, config.name) == (9, 5, "mine")
    assert config.train.optimizer == replace(smoke.train.optimizer, learning_rate=1e-3)
    assert config.model == smoke.model


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1e-3", 1e-3), ("0.5", 0.5)])
def test_numbers_on_the_command_line(text: str, value: float) -> None:
    assert load_config(sets=[f"train.optimizer.learning_rate={text}"]).train.optimizer.learning_rate == value


def test_a_text_setting_stays_text_even_if_it_looks_like_a_number() -> None:
    sets = ["corpus.source.kind=huggingface", "corpus.source.dataset=a/b", "corpus.source.revision=12345678"]
    assert load_config(sets=sets).corpus.source.revision == "12345678"


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as told:
        load_config(sets=["train.max_stepz=3", "model.n_head=5", "model.dropout=2", "trian.x=1"])
    text = "\n".join(told.value.problems)
    assert "unknown setting train.max_stepz (did you mean max_steps?)" in text
    assert "unknown setting trian (did you mean train?)" in text
    assert "n_embd 192 is not divisible by n_head 5" in text
    assert "dropout is 2.0" in text


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train=5"], "train is a group of settings"),
        (["max_steps"], "not of the form a.b=value"),
        (["train.max_steps=four"], "train.max_steps"),
        (["train.batch_size=9"], "not a multiple of micro_batch_size 8"),
        (["name=a/b"], "not a plain name"),
        (["model.vocab_size=100"], "below the tokenizer's 50257"),
    ],
)
def test_wrong_values_name_setting_and_fix(sets: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        load_config(sets=sets)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read config file"):
        load_config(file=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file=broken)
    broken.write_text("just words")
    with pytest.raises(ConfigError, match="holds str, not settings"):
        load_config(file=broken)
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_config("quikstart")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_stands_and_survives_plain_data(name: str) -> None:
    config = preset_config(name)
    assert parse_config(asdict(config), PipelineConfig) == config


def test_preset_names_are_one_list() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


def test_overrides_change_only_what_they_name() -> None:
    overrides = PipelineOverrides.model_validate({"train": {"max_steps": 5}})
    assert given(overrides) == {"train": {"max_steps": 5}}
    changed = load_config("smoke", overrides=given(overrides))
    assert changed == replace(preset_config("smoke"), train=replace(preset_config("smoke").train, max_steps=5))


def test_overrides_refuse_unknown_keys_and_describe_each_field() -> None:
    with pytest.raises(ValidationError):
        PipelineOverrides.model_validate({"train": {"max_stepz": 5}})
    assert partial(TrainConfig).model_fields["max_steps"].description == "Optimizer steps."


def test_merged_layers_are_what_the_command_line_hands_to_a_flow() -> None:
    preset, merged = merge_layers("smoke", None, ["train.max_steps=3", "train.seed=1"])
    assert (preset, merged) == ("smoke", {"train": {"max_steps": 3, "seed": 1}})


def test_how_work_is_done_is_not_in_the_fingerprint() -> None:
    def fingerprint(config: object) -> str:
        return Request("shards", 1, recipe(config)).fingerprint

    assert fingerprint(ShardsConfig(workers=1)) == fingerprint(ShardsConfig(workers=7))
    assert fingerprint(ShardsConfig(shard_bytes=5_000)) != fingerprint(ShardsConfig())
    assert fingerprint(TrainConfig(threads=1)) == fingerprint(TrainConfig(threads=2))
    assert fingerprint(TrainConfig(seed=1)) != fingerprint(TrainConfig(seed=2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "files"}, "needs paths"),
        ({"kind": "http", "paths": ("http://a/b",)}, "1 URLs but 0 sha256"),
        ({"kind": "http", "paths": ("http://a/b",), "sha256": ("xyz",)}, "not 64 lower-case hex"),
        ({"kind": "huggingface"}, "needs dataset"),
        ({"first_year": 2000, "last_year": 1990}, "is after last_year"),
        ({"paths": ("a.txt",)}, "not used by kind=embedded"),
    ],
)
def test_source_settings_that_do_not_go_together(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SourceConfig(**wrong)  # type: ignore[arg-type]


def test_one_dataclass_reports_several_problems() -> None:
    with pytest.raises(ConfigError) as told:
        ModelConfig(n_layer=0, n_head=5, n_embd=64, dropout=1.0)
    assert len(told.value.problems) == 3
