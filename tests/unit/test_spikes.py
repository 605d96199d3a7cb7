"""Spikes in the real loop: found before the update, stopped, left out or rolled back, and exact after a resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.errors import ConfigError, Interrupted, TrainingError
from gptmodel.model import GPT
from gptmodel.tokens.batches import Batches, read_windows
from gptmodel.tokens.tokenstream import Shard, TokenStream
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog, curve, read_lines
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal, Validation
from gptmodel.training.spikes import spike

T, V, WINDOWS, BAD = 16, 32, 120, 91
SHAPE = ModelConfig(vocab_size=V, context_length=T, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
CONFIG = TrainConfig(
    max_steps=30,
    batch_size=4,
    micro_batch_size=2,
    optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=2, schedule="constant"),
    checkpoint_every=4,
    eval_every=10,
    keep_checkpoints=1,
    spike_threshold=1.0,
    spike_window=5,
)
MACHINE = Machine(torch.device("cpu"), "float32", 1, "cpu", 1e9, "measured", "as configured")


def stream() -> TokenStream:
    """The same eight tokens again and again, but for one window of noise: a spike by data alone."""
    tokens = np.tile(np.arange(8, dtype=np.uint16), WINDOWS * T // 8 + 1)
    tokens[BAD * T : BAD * T + T] = np.random.default_rng(1).integers(8, V, T)
    return TokenStream([Shard(None, tokens)])


def bad_step() -> int:
    """Number, from 1, of the step that sees the noise."""
    batches = Batches(stream(), context_length=T, batch_size=4, micro_batch_size=2, seed=CONFIG.seed)
    return next(step + 1 for step in range(30) if BAD in batches.windows(step))


class Run:
    """A run in a directory; `go` starts it, or goes on from its newest checkpoint, as the worker does."""

    def __init__(self, directory: Path, config: TrainConfig) -> None:
        self.directory, self.config = directory, config
        self.metrics = MetricsLog(directory / "metrics.jsonl")
        self.checkpoints = Checkpointer(directory / "checkpoints", config.keep_checkpoints)
        self.model = GPT(SHAPE, seed=config.seed)
        self.stop = StopSignal()
        self.trainer = Trainer(
            model=self.model,
            optimizer=make_optimizer(self.model, config.optimizer),
            batches=Batches(stream(), context_length=T, batch_size=4, micro_batch_size=2, seed=config.seed),
            evaluate=self.evaluate,
            metrics=self.metrics,
            checkpoints=self.checkpoints,
            config=config,
            machine=MACHINE,
            byte_lengths=torch.ones(V, dtype=torch.int64),
            stop=self.stop,
            documents=lambda windows: [f"window-{w}" for w in windows],
            replay="replay job.json",
        )

    @torch.no_grad()
    def evaluate(self) -> Validation:
        return Validation(float(self.model(*read_windows(stream(), [3, 80], T))), 1.0)

    def go(self) -> TrainState:
        state = self.checkpoints.load_newest(self.model, self.trainer.optimizer) or TrainState()
        self.metrics.start(state.step if state.step else -1)
        try:
            return self.trainer.fit(state)
        finally:
            self.checkpoints.close()
            self.metrics.close()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def curve(self) -> str:
        """Every step's losses and decisions, to the bit."""
        return json.dumps(list(curve(self.metrics.path)))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def decisions(run: Run) -> list[dict[str, Any]]:
    return [line for line in read_lines(run.metrics.path) if "decision" in line]


def test_what_counts_as_a_spike() -> None:
    config = replace(CONFIG, spike_threshold=1.0, spike_window=3)
    assert spike(float("nan"), 1.0, [], TrainConfig()).startswith("loss nan")
    assert spike(1.0, float("inf"), [], TrainConfig()) == "loss 1.0 and gradient norm inf"
    assert not spike(99.0, 1.0, [1.0, 2.0, 9.0], TrainConfig()), "no threshold, no watch on finite losses"
    assert not spike(99.0, 1.0, [1.0, 2.0], config), "too few losses known"
    assert not spike(3.0, 1.0, [1.0, 2.0, 9.0], config), "not more than the threshold"
    assert spike(3.01, 1.0, [1.0, 2.0, 9.0], config) == "loss 3.0100, 1.0100 nats above the median of the 3 before it"


def test_wrong_settings_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"spike_threshold is nan(.|\n)*spike_window is 0|spike_window is 0(.|\n)*nan"
    ):
        TrainConfig(spike_threshold=float("nan"), spike_window=0)


def test_a_spike_stops_the_run_before_the_update(tmp_path: Path) -> None:
    run, step = Run(tmp_path / "a", CONFIG), bad_step()
    assert 6 < step < 28, "the data puts the spike where the tests need it"
    with pytest.raises(TrainingError) as told:
        run.go()
    message = str(told.value)
    assert f"at step {step}, before its update; weights are as after step {step - 1}" in message
    assert f"window-{BAD}" in message
    assert f"replay job.json --step {step}" in message
    before = Run(tmp_path / "b", replace(CONFIG, max_steps=step - 1))
    before.go()
    assert same(run.weights(), before.weights())
    assert run.checkpoints.steps()[-1] == (step - 1) // 4 * 4
    run.checkpoints.weights_file(run.checkpoints.steps()[-1])


@pytest.mark.parametrize("on_spike", ["stop", "skip"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(tmp_path: Path, what: str, on_spike: Any) -> None:
    config = replace(CONFIG, on_spike=on_spike, spike_threshold=0.0, max_steps=9)
    run, calls = Run(tmp_path / "a", config), [0]

    def poison(module: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return loss
        calls[0] += 1
        if calls[0] != 11:  # the first micro-batch of step 6
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float("nan")

    run.model.register_forward_hook(poison)
    if on_spike == "stop":
        with pytest.raises(TrainingError, match="at step 6, before its update"):
            run.go()
        before = Run(tmp_path / "b", replace(config, max_steps=5))
        before.go()
        assert same(run.weights(), before.weights())
    else:
        state = run.go()
        assert (state.step, state.left_out) == (9, [[6, 6]])
        assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_skip_leaves_one_update_out_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, step = Run(tmp_path, replace(CONFIG, on_spike="skip")), bad_step()
    with caplog.at_level(logging.WARNING):
        state = run.go()
    assert state.left_out == [[step, step]]
    assert state.tokens == 30 * 4 * T
    (line,) = decisions(run)
    assert (line["step"], line["decision"]["left_out"]) == (step, [step, step])
    assert f"window-{BAD}" in line["decision"]["documents"]
    assert f"step {step}: loss " in caplog.text
    assert "its update is left out" in caplog.text
    steps = [entry["step"] for entry in read_lines(run.metrics.path) if "train/loss" in entry["metrics"]]
    assert steps == list(range(1, 31)), "each step is in the log once"


def test_rollback_takes_the_weights_of_the_checkpoint_before(tmp_path: Path) -> None:
    step = bad_step()
    run = Run(tmp_path / "a", replace(CONFIG, on_spike="rollback", max_steps=step))
    state = run.go()
    anchor = (step - 1) // 4 * 4
    assert state.left_out == [[anchor + 1, step]]
    before = Run(tmp_path / "b", replace(CONFIG, max_steps=anchor))
    before.go()
    assert same(run.weights(), before.weights())
    assert decisions(run)[0]["decision"]["left_out"] == [anchor + 1, step]


def test_a_rollback_before_the_first_checkpoint_goes_to_the_initial_weights(tmp_path: Path) -> None:
    step = bad_step()
    run = Run(tmp_path, replace(CONFIG, on_spike="rollback", max_steps=step, checkpoint_every=100))
    assert run.go().left_out == [[1, step]]
    assert same(run.weights(), {name: p.detach() for name, p in GPT(SHAPE, seed=CONFIG.seed).named_parameters()})


@pytest.mark.parametrize("on_spike", ["skip", "rollback"])
@pytest.mark.parametrize("away", [pytest.param(-1, marks=pytest.mark.slow), 0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_stopped_near_a_spike_goes_on_to_the_same_bits(tmp_path: Path, on_spike: Any, away: int) -> None:
    config = replace(CONFIG, on_spike=on_spike)
    whole = Run(tmp_path / "whole", config)
    whole.go()
    stopped = Run(tmp_path / "stopped", config)
    at = bad_step() + away
    advance: Callable[[TrainState], Any] = stopped.trainer.advance

    def stop_there(state: TrainState) -> Any:
        seen = advance(state)
        stopped.stop.signum = 15 if state.step == at else 0
        return seen

    stopped.trainer.advance = stop_there  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"stopped after step {at} of 30"):
        stopped.go()
    again = Run(tmp_path / "stopped", config)
    state = again.go()
    assert same(again.weights(), whole.weights())
    assert again.curve() == whole.curve()
    assert len(state.left_out) == 1


@pytest.mark.parametrize("on_spike", ["skip", "rollback"])
def test_too_many_spikes_stop_the_run(tmp_path: Path, on_spike: Any) -> None:
    run = Run(tmp_path, replace(CONFIG, on_spike=on_spike, max_spikes=2, spike_threshold=0.0))
    run.model.register_forward_hook(lambda m, i, loss: loss * float("nan") if m.training else loss)
    with pytest.raises(TrainingError, match=r"at step 3, before its update, after 2 spikes \(train.max_spikes 2\)"):
        run.go()


def test_a_run_killed_before_its_first_update_counts_its_first_evaluation_once(tmp_path: Path) -> None:
    config = replace(CONFIG, publish="best", early_stop_evals=2, max_steps=4, spike_threshold=0.0)
    killed = Run(tmp_path, config)

    def die(state: TrainState) -> Any:
        raise RuntimeError("killed")

    killed.trainer.advance = die  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        killed.go()
    assert killed.checkpoints.steps() == [0]
    again = Run(tmp_path, config)
    seen: list[TrainState] = []
    advance = again.trainer.advance

    def look(state: TrainState) -> Any:
        seen.append(replace(state))
        return advance(state)

    again.trainer.advance = look  # type: ignore[method-assign]
    again.go()
    assert (seen[0].best_step, seen[0].evals_since_best) == (0, 0)
