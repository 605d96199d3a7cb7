"""Settings: layers, errors that a person can act on, and the partial form that flows take."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from pydantic import ValidationError

from gptmodel import config as config_module
from gptmodel.config import (
    CorpusConfig,
    DataGatesConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    ShardsConfig,
    SourceConfig,
    TrainConfig,
    recipe,
    with_later,
)
from gptmodel.errors import ConfigError
from gptmodel.overrides import PipelineOverrides, given, partial
from gptmodel.presets import PRESETS, PresetName
from gptmodel.settings import load_config, merge_layers, parse_config, preset_config
from gptmodel.store.artifacts import Request


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
    assert "unknown setting train.max_stepz (did you mean train.max_steps?)" in text
    assert "unknown setting trian (did you mean train?)" in text
    assert "n_embd 192 is not divisible by n_head 5" in text
    assert "dropout is 2.0" in text


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train=5"], "train is a group of settings"),
        (["max_steps"], "not of the form a.b=value"),
        (["train.max_steps=four"], "train.max_steps"),
        ([f"train.seed={2**63}"], "train.seed is 9223372036854775808; give a whole number from 0 up to"),
        (["train.max_steps=true"], "train.max_steps is 'true'; give a whole number"),
        (["train.optimizer.learning_rate=false"], "train.optimizer.learning_rate is 'false'; give a number"),
        (["train.batch_size=9"], "not a multiple of micro_batch_size 8"),
        (["name=a/b"], "not a plain name"),
        (["model.vocab_size=100"], "below the tokenizer's 50257"),
    ],
)
def test_wrong_values_name_setting_and_fix(sets: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        load_config(sets=sets)


def test_a_value_where_a_group_belongs_is_not_hidden_by_what_changes_the_group_later(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: 5\nevaluate:\nmodel: {n_layer: 0}\n")
    with pytest.raises(ConfigError) as told:
        load_config(file=tmp_path / "a.yaml", sets=["train.max_steps=3", "evaluate.stride=4"])
    assert [problem.removeprefix(f"{tmp_path}/a.yaml:").partition(";")[0] for problem in told.value.problems] == [
        "3: model.n_layer is 0",
        "1: train is a group of settings, not 5",
        "2: evaluate is a group of settings, not empty",
    ]
    with pytest.raises(ConfigError, match=r"--set train\.optimizer=x: train\.optimizer is a group of"):
        load_config(sets=["train.optimizer=x", "train.optimizer.eps=1"])


def test_true_in_a_file_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("evaluate:\n  decodings: [{top_k: true, stop: ['a']}]\ntrain: {max_steps: true}\n")
    with pytest.raises(ConfigError) as told:
        load_config(file=tmp_path / "a.yaml")
    assert [problem.removeprefix(f"{tmp_path}/a.yaml:") for problem in told.value.problems] == [
        "3: train.max_steps is 'true'; give a whole number",
        "2: evaluate.decodings.0.top_k is 'true'; give a whole number",
    ]


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read config file"):
        load_config(file=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file=broken)
    broken.write_text("just words")
    with pytest.raises(ConfigError, match="holds one value, not settings"):
        load_config(file=broken)
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_config("quikstart")


_ODD = {
    "!!timestamp x": "'x' is no timestamp",
    "!!bool x": "train.max_steps is 'x'; give a whole number",
    "!!float ''": "'' is no float",
    "!!int x": "invalid literal",
    "[" * 3_000 + "]" * 3_000: "nested too deeply",
    "\x01": "not valid YAML: unacceptable character|give a whole number",
}


@pytest.mark.parametrize("value", _ODD)
def test_what_yaml_stumbles_over_is_told_in_one_line_with_its_place(tmp_path: Path, value: str) -> None:
    odd = tmp_path / "odd.yaml"
    odd.write_text("train:\n  max_steps: " + value)
    for place, file, sets in (("odd.yaml", odd, []), ("train.max_steps", None, [f"train.max_steps={value}"])):
        with pytest.raises(ConfigError, match=_ODD[value]) as error:
            load_config(file=file, sets=sets)
        assert place in str(error.value)
        assert "\n" not in str(error.value)


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


# What these classes gave when stores were first filled with them. A field that changes one of these makes every user
# train, tokenize or evaluate anew: put it into its class's LATER.
FIRST_FINGERPRINTS = {
    SourceConfig: "4d7edf7cb8bd8bdc",
    CorpusConfig: "7b94bc955ad0b688",
    ShardsConfig: "64682ff883c7ee19",
    ModelConfig: "7143451d903c6e02",
    OptimizerConfig: "8452cc03f287cbca",
    DecodingConfig: "853307c455514f1c",
    TrainConfig: "8b78dae655e2dfa4",
    DataGatesConfig: "3cbd0df14e7c5aef",
}


@pytest.mark.parametrize("cls", FIRST_FINGERPRINTS)
def test_settings_that_came_later_leave_earlier_fingerprints_as_they_were(cls: type[Any]) -> None:
    request = Request("any", 1, {"settings": recipe(cls())})
    assert request.fingerprint.startswith(FIRST_FINGERPRINTS[cls])


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    depth: int = 1

    LATER: ClassVar[Mapping[str, Any]] = {"depth": 1}


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "a"
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    words: tuple[str, ...] = ()

    LATER: ClassVar[Mapping[str, Any]] = {"words": ()}


EARLIER = {"name": "a", "inner": {"width": 3}, "several": [{"width": 3}]}


def test_a_later_setting_is_in_the_recipe_only_where_it_is_set() -> None:
    assert recipe(Outer()) == EARLIER
    assert recipe(Outer(words=("b",))) == {**EARLIER, "words": ["b"]}
    assert recipe(Outer(inner=Inner(depth=2))) == {**EARLIER, "inner": {"width": 3, "depth": 2}}
    assert recipe(Outer(several=(Inner(), Inner(depth=2))))["several"] == [{"width": 3}, {"width": 3, "depth": 2}]


def test_recorded_settings_are_completed_by_what_came_later() -> None:
    whole = {
        "name": "a",
        "inner": {"width": 3, "depth": 1},
        "several": [{"width": 3, "depth": 1}],
        "words": [],
    }
    assert with_later(EARLIER, Outer) == whole
    changed = recipe(Outer(words=("b",), inner=Inner(depth=2), several=(Inner(depth=5),)))
    assert with_later(changed, Outer) == changed  # what was set stays


def test_what_is_left_out_of_a_recipe_is_what_its_class_fills_in() -> None:
    """A recorded recipe is read back with the class's defaults, so the two may never part."""
    for cls in vars(config_module).values():
        if is_dataclass(cls) and isinstance(cls, type):
            defaults = {f.name: f.default if f.default is not MISSING else None for f in fields(cls)}
            later = getattr(cls, "LATER", {})
            assert {name: defaults.get(name, "no such field") for name in later} == dict(later), cls.__name__


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


def test_no_source_is_parsed_while_a_flow_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 may fail to parse in one thread while another parses, and a flow's server thread does (gh-106905)."""

    def refused(*_args: object, **_more: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", refused)
        load_config("smoke", sets=["train.seed=4"])
        for settings in (CorpusConfig, ModelConfig, DecodingConfig):
            parse_config({}, settings)
