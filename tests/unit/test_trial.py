"""Trial steps: what is reckoned from those that were made. Whole trials run in workflow/test_plan.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptmodel.config import PipelineConfig, TrainConfig
from gptmodel.errors import ConfigError, GptflowError
from gptmodel.planning import measuring, trial
from gptmodel.presets import PRESETS


class Steps:
    """In place of a trainer: a step takes so long for its start, and so long for each micro-batch, by a clock of ours.

    Each third one is a slow one.
    """

    def __init__(self, start: float, each: float) -> None:
        self.start, self.each, self.made, self.now = start, each, 0, 0.0
        self.config = TrainConfig(batch_size=8, micro_batch_size=4)
        self.model = SimpleNamespace(config=PRESETS["smoke"]().model)

    def advance(self, _: object) -> None:
        self.made += 1
        micro_batches = self.config.batch_size // self.config.micro_batch_size
        self.now += self.start + micro_batches * self.each + 60 * (self.made % 3 == 0)

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("start", "each", "micro_batches", "wanted"),
    [
        (1.0, 2.0, 2, 1 + 2 * 2),  # as measured
        (1.0, 2.0, 10, 1 + 10 * 2),
        (8.0, 0.0, 10, 8 + 8 * 2),  # one more cannot be free: a quarter of the two
    ],
)
def test_a_step_of_many_micro_batches_is_reckoned_from_steps_of_one_and_of_two(
    start: float, each: float, micro_batches: int, wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(start, each)
    monkeypatch.setattr(trial, "time", steps)
    monkeypatch.setattr(trial.torch.cuda, "is_available", lambda: False)
    assert trial._step(steps, None, 5, micro_batches) == pytest.approx(wanted)  # type: ignore[arg-type]


def test_a_slice_of_the_random_tokens_is_always_the_same() -> None:
    stream = trial.RandomTokens(1 << 40, 500)
    drawn = stream.slice(1 << 39, (1 << 39) + 1000)
    assert np.array_equal(drawn, trial.RandomTokens(1 << 40, 500).slice(1 << 39, (1 << 39) + 1000))
    assert (drawn.dtype, drawn.max() < 500, len(set(drawn.tolist())) > 100) == (np.uint16, True, True)


def test_a_trial_measures_twice_and_reckons_the_room(
    tiny: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"measured_seconds": 0.0, "step_seconds": 1.0, "peak_memory_bytes": 1_000, "free_memory_bytes": 10_000}
    told |= dict.fromkeys(("validation_token_seconds", "sample_seconds", "save_seconds", "end_seconds"), 0)
    told |= {"precision": "float32", "choice": "", "device": "cpu", "machine": "x", "threads": 1}
    told |= {"peak_flops": 1e9, "peak_source": "measured"}
    asked: list[tuple[PipelineConfig, int, bool]] = []

    def run(config: PipelineConfig, steps: int, *, memory_only: bool = False) -> dict[str, object]:
        asked.append((config, steps, memory_only))
        return {**told, "peak_memory_bytes": 200 * config.train.micro_batch_size + 200}

    monkeypatch.setattr(measuring, "_run", run)
    found = measuring.measure(replace(tiny("train.micro_batch_size=4", "train.batch_size=8"), init_from="gpt2"), 3)
    (first, steps, whole), (second, once, memory_only) = asked
    assert (steps, whole, once, memory_only) == (3, False, 1, True)
    assert (first.train.on_spike, first.init_from) == ("skip", ""), "it says what steps take, not how they end"
    assert (first.train.micro_batch_size, second.train.micro_batch_size) == (4, 2)
    assert (found.bytes_per_sequence, found.peak_memory_bytes) == (200, 1_000)
    assert found.largest_micro_batch(4) == 4 + (9_200 - 1_000) // 200
    with pytest.raises(ConfigError, match="trial steps is 0"):
        measuring.measure(tiny(), steps=0)


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        ("os.kill(os.getpid(), 9)", "were killed, as by want of memory, at micro_batch_size 4; lower"),
        ("sys.exit('one\\nthe last line')", "the trial steps failed: the last line; plan without"),
        ("os._exit(3)", "the trial steps failed: exit code 3"),
    ],
)
def test_a_trial_that_ends_badly_is_told_in_a_line(
    last_words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_badly.py").write_text(f"import os, sys\n{last_words}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(measuring, "_TRIAL", "ends_badly")
    config = PRESETS["smoke"]()
    with pytest.raises(GptflowError, match=said):
        measuring.measure(replace(config, train=replace(config.train, micro_batch_size=4)), steps=1)
