"""Training on a CUDA device: the same curve as on a processor, and the same bits after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptmodel.config import PipelineConfig
from gptmodel.errors import Interrupted
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.metrics_log import read_lines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
Tiny = Callable[..., PipelineConfig]
ON_GPU = ("train.device=cuda", "train.processes=1")


def own_store(tiny_data: tuple[Store, Artifact], root: Path) -> tuple[Store, Artifact]:
    shutil.copytree(tiny_data[0].root, root)
    store = Store(root)
    return store, store.resolve(tiny_data[1].label)


def losses(store: Store, shards: Artifact, config: PipelineConfig) -> list[float]:
    training = plan_training(store, config, shards)
    pretrain(store, training, on_line=lambda _: None)
    lines = read_lines(training.metrics_file)
    return [line["metrics"]["train/loss"] for line in lines if "train/loss" in line["metrics"]]


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_the_curve_is_that_of_the_processor(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path, precision: str, close: float
) -> None:
    store, shards = own_store(tiny_data, tmp_path / "store")
    on_cpu = losses(store, shards, tiny("model.dropout=0", "train.device=cpu"))
    on_gpu = losses(store, shards, tiny("model.dropout=0", *ON_GPU, f"train.precision={precision}"))
    assert on_gpu == pytest.approx(on_cpu, abs=close)


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*ON_GPU, "train.deterministic=true", "train.max_steps=400", "train.checkpoint_every=400")
    whole_store, shards = own_store(tiny_data, tmp_path / "whole")
    whole, _ = pretrain(whole_store, plan_training(whole_store, config, shards), on_line=lambda _: None)
    store, shards = own_store(tiny_data, tmp_path / "stopped")
    training = plan_training(store, config, shards)

    def stop(line: str) -> None:
        if line.startswith("step 6 "):
            found = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "gptmodel.pretraining.worker"], capture_output=True
            )
            os.kill(int(found.stdout.split()[0]), signal.SIGTERM)

    with pytest.raises(Interrupted):
        pretrain(store, training, on_line=stop)
    assert pretrain(store, training, on_line=lambda _: None)[0].digest == whole.digest
