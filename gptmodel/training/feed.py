"""Brings the micro-batches of a step to where they are needed: on a GPU from pinned memory, read a step ahead."""

from __future__ import annotations

import torch
from torch import Tensor

from gptmodel.tokens.batches import Batches

MicroBatches = list[tuple[Tensor, Tensor]]


class Feed:
    """The micro-batches of a device. A processor reads them when it needs them: it has no time beside its own work."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._ready: tuple[Batches | None, int, MicroBatches] = (None, 0, [])

    def take(self, batches: Batches, step: int) -> MicroBatches:
        """`batches.batch(step)`, in memory that a GPU can copy from by itself."""
        source, number, micro_batches = self._ready
        self._ready = (None, 0, [])
        return micro_batches if (source, number) == (batches, step) else self._read(batches, step)

    def read_ahead(self, batches: Batches, step: int) -> None:
        """To be called while a GPU has work, before it is waited for: the batch is then there when it needs it."""
        if self._on_gpu:
            self._ready = (batches, step, self._read(batches, step))

    def _read(self, batches: Batches, step: int) -> MicroBatches:
        micro_batches = batches.batch(step)
        if self._on_gpu:
            return [(ids_BT.pin_memory(), targets_BT.pin_memory()) for ids_BT, targets_BT in micro_batches]
        return micro_batches
