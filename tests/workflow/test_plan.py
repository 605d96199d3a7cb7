"""Planning with real steps: in a process of their own, as the training will be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptmodel.config import PipelineConfig
from gptmodel.errors import GptflowError
from gptmodel.planning.forecast import forecast
from gptmodel.planning.measuring import measure
from gptmodel.planning.rates import load_rates
from gptmodel.presets import PRESETS
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store


def test_a_trial_runs_real_steps(tiny: Callable[..., PipelineConfig]) -> None:
    config = tiny("train.batch_size=32", "train.micro_batch_size=2", "train.max_steps=20", "train.eval_every=10")
    train = config.train
    trial = measure(config, steps=2)
    assert (trial.precision, trial.threads, trial.device) == ("float32", 1, "cpu")
    assert min(trial.step_seconds, trial.sample_seconds, trial.validation_token_seconds) > 0
    assert trial.peak_memory_bytes > 100e6
    found = forecast(config, load_rates(), trial=trial, validation_tokens=300)
    steps, scored = train.max_steps * trial.step_seconds, 300 * trial.validation_token_seconds + trial.sample_seconds
    saved = found.checkpoints * trial.save_seconds
    assert found.evaluations == 3
    assert found.seconds == pytest.approx(trial.start_seconds + steps + 3 * scored + saved + trial.end_seconds)


def test_a_trial_that_fails_is_one_line() -> None:
    config = PRESETS["smoke"]()
    with pytest.raises(GptflowError, match=r"trial steps failed: .*cuda.*--no-measure"):
        measure(replace(config, train=replace(config.train, device="cuda")), steps=1)


@pytest.mark.slow
def test_memory_is_foretold(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    """Within the tenth that the docs promise, of a model whose tensors outweigh the libraries."""
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, tmp_path / "store" / kind)
    store = Store(tmp_path / "store")
    sizes = ("model.n_layer=4", "model.n_embd=384", "model.n_head=6", "model.context_length=64")
    config = tiny(*sizes, "train.max_steps=4", "train.eval_every=2", "train.checkpoint_every=2")
    trial = measure(config, steps=2)
    made, _ = pretrain(store, plan_training(store, config, store.resolve(tiny_data[1].label)), on_line=lambda _: None)
    assert trial.peak_memory_bytes == pytest.approx(made.summary["peak_memory_bytes"], rel=0.1)
