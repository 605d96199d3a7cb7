"""A shape for a count of parameters: GPT-2's own come out, none is nearer, and the command trains it on the budget."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.commands.plan import plan
from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, PipelineConfig
from gptmodel.planning.advice_text import shape_section
from gptmodel.planning.scaling import BESIROGLU, HOFFMANN, advise
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


@pytest.mark.parametrize("flops", [1e14, 1e15, 1e18])
def test_a_law_that_leaves_embeddings_out_is_asked_for_what_they_cost(flops: float, tmp_path: Path) -> None:
    """A shape of other size has a higher loss, and its training costs the budget: its tables are paid too."""
    file, counts = tmp_path / "law.json", "without-embeddings"
    coefficients = {name: getattr(HOFFMANN, name) for name in ("E", "A", "B", "alpha", "beta")}
    file.write_text(json.dumps({"counts": counts, "coefficients": coefficients}))
    words = ("quickstart", "--best-for", f"{flops:g}", "--law", str(file), "--plot", str(tmp_path / "best.png"))
    told = json.loads(CliRunner().invoke(plan, [*words, "--json"]).stdout)
    config = settings_of(told["shape"]["command"])
    counted, train = count_parameters(config.model), config.train
    tokens = train.max_steps * train.batch_size * config.model.context_length
    assert 6 * counted.total * tokens == pytest.approx(flops, abs=3.1 * counted.total * told["shape"]["step_tokens"])
    assert (told["counts"], told["shape"]["n_blocks"]) == (counts, counted.without_embeddings)

    def by_law(model: ModelConfig) -> float:
        found = count_parameters(model)
        return HOFFMANN.loss(found.without_embeddings, flops / 6 / found.total)

    others = [shape_for(told["n_params"] * 2**power, config.model, counts) for power in (-2, -1, 1, 2)]
    best = by_law(config.model)
    assert told["shape"]["loss"] == pytest.approx(min(best, math.log(config.model.vocab_size)))
    assert told["loss"] <= best <= min(map(by_law, others))
    assert told["loss"] == min(loss for _, _, loss in told["curve"])
    assert best < 1.05 * told["loss"], "the advice is of shapes that can be built"


def test_a_budget_below_a_step_is_told_and_has_no_command() -> None:
    advice, base = advise(1e12), PRESETS["gpt2-124m"]()
    found = suggest(advice, BESIROGLU, base, ["--preset", "gpt2-124m"])
    assert (found.steps, found.n_tokens, found.command) == (0, 0, "")
    rows = {what: f"{value} {note}" for what, value, note in shape_section(found, advice, base.name).rows}
    assert "less than a step: a step has 524,288 tokens, as in gpt2-124m" in rows["training"]
    assert "no shape of the rule is nearer" in rows["parameters"]
    assert "settings" not in rows
    assert "shape" not in json.loads(CliRunner().invoke(plan, ["llama-2-7b", "--best-for", "1e20", "--json"]).stdout)
