"""A shape for a count of parameters: GPT-2's own come out, none is nearer, and the command trains it on the budget."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner

from flows.commands.plan import plan
from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, PipelineConfig
from gptmodel.planning.advice_text import shape_section
from gptmodel.planning.scaling import BESIROGLU, advise
from gptmodel.planning.shape import shape_for, suggest
from gptmodel.presets import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M, PRESETS
from gptmodel.settings import load_config


@pytest.mark.parametrize("model", [GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M])
def test_the_four_models_of_gpt2_come_out_at_their_own_counts(model: ModelConfig) -> None:
    counted = count_parameters(model)
    assert shape_for(counted.total, GPT2_124M) == model
    assert shape_for(counted.without_embeddings, GPT2_124M, "without-embeddings") == model


@pytest.mark.parametrize("n", [1e5, 5e6, 33e6, 2e8, 9e8])
def test_of_the_shapes_of_the_rule_none_is_nearer(n: float) -> None:
    base = PRESETS["quickstart"]().model
    shapes = [
        replace(base, n_layer=layers, n_embd=64 * heads, n_head=heads)
        for heads in range(1, 40)
        for layers in range(heads, int(64 * heads / (1600 / 48)) + 1)
    ]
    found = shape_for(n, base)
    assert found in shapes
    assert (found.vocab_size, found.context_length) == (base.vocab_size, base.context_length)
    off = [abs(math.log(count_parameters(shape).total / n)) for shape in shapes]
    assert abs(math.log(count_parameters(found).total / n)) == min(off)


def settings_of(command: str) -> PipelineConfig:
    first, verb, *words = shlex.split(command)
    assert (first, verb) == (".venv/bin/gptflow", "run")
    given = list(zip(words[::2], words[1::2], strict=True))
    return load_config(dict(given)["--preset"], sets=[value for name, value in given if name == "--set"])


@pytest.mark.parametrize(("flops", "preset"), [(1e12, "smoke"), (3e15, "quickstart"), (1e19, "gpt2-124m")])
def test_the_command_trains_the_shape_on_the_budget(flops: float, preset: str) -> None:
    words = (preset, "--set", "train.seed=7", "--best-for", f"{flops:g}")
    told = json.loads(CliRunner().invoke(plan, [*words, "--json"]).stdout)["shape"]
    config = settings_of(told["command"])
    model, train = config.model, config.train
    assert told["shape"] == f"{model.n_layer}x{model.n_embd}x{model.n_head}"
    assert (count_parameters(model).total, train.max_steps) == (told["n_params"], told["steps"])
    tokens = train.max_steps * train.batch_size * model.context_length
    assert told["n_tokens"] == tokens
    assert 6 * told["n_params"] * tokens == pytest.approx(flops, abs=3.1 * told["n_params"] * told["step_tokens"])
    assert train.seed == 7
    assert train.optimizer.warmup_steps <= max(1, round(0.1 * train.max_steps))
    by_law = BESIROGLU.loss(told["n_params"], flops / 6 / told["n_params"])
    assert told["loss"] == pytest.approx(min(by_law, math.log(model.vocab_size)))
    assert by_law >= advise(flops).loss
    assert f"Train it: {told['command']}" in CliRunner().invoke(plan, words).stdout


def test_a_budget_below_a_step_is_told_and_has_no_command() -> None:
    advice, base = advise(1e12), PRESETS["gpt2-124m"]()
    found = suggest(advice, BESIROGLU, base, ["--preset", "gpt2-124m"])
    assert (found.steps, found.n_tokens, found.command) == (0, 0, "")
    rows = {what: f"{value} {note}" for what, value, note in shape_section(found, advice, base.name, 3.3e6).rows}
    assert "less than a step: a step has 524,288 tokens, as in gpt2-124m" in rows["training"]
    assert "no shape of the rule is nearer" in rows["parameters"]
    assert "settings" not in rows
    assert "shape" not in json.loads(CliRunner().invoke(plan, ["llama-2-7b", "--best-for", "1e20", "--json"]).stdout)
