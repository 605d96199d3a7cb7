"""A step's one wait for a GPU, tried where there is none: on tensors without data, of which a value cannot be read."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptmodel import loss
from gptmodel.device import Machine
from gptmodel.planning.trial import trial_trainer
from gptmodel.settings import load_config


@pytest.mark.slow
def test_forward_backward_and_clipping_wait_for_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(torch.device("meta"), "float32", 1, "none", 1e9, "measured", "as configured")
    sizes = ("model.n_layer=1", "model.dropout=0.1", "train.micro_batch_size=1", "train.batch_size=3")
    trainer = trial_trainer(load_config("smoke", sets=[*sizes]), machine, tmp_path, 3)
    trainer.model.train()
    read = []
    plain = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        if not tensor.is_meta:
            return plain(tensor)
        read.append(tuple(tensor.shape))
        return [10.5, 0.25]

    monkeypatch.setattr(Tensor, "tolist", tolist)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which knows no such device
    monkeypatch.setattr(torch, "autocast", lambda *device, **how: nullcontext())
    heads = []
    padded = loss.padded_cross_entropy
    monkeypatch.setattr(loss, "padded_cross_entropy", lambda *given: heads.append(1) or padded(*given))
    seen = trainer.gradients(0)
    trainer.metrics.close()
    assert read == [(2,)]  # loss and gradient norm together; any other way of reading them is an error
    assert len(heads) == 3  # what is no processor takes the GPU's
    assert (seen.loss, seen.grad_norm) == (10.5, 0.25)
    assert all(p.grad is not None and p.grad.is_meta for p in trainer.model.parameters())
