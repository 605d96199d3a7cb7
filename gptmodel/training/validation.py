"""The evaluation done while training: the same windows each time, shared between the ranks, and a few samples."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from gptmodel.config import TrainConfig
from gptmodel.device import Machine
from gptmodel.model import GPT
from gptmodel.sharding import whole
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.batches import Stream, eval_windows, read_windows
from gptmodel.training.seen import Validation
from gptmodel.writing import continue_text


class SplitEvaluator:
    """Scores `eval_tokens` of the validation split, spread evenly over it. Called by every rank at the same step."""

    def __init__(
        self, model: GPT, stream: Stream, config: TrainConfig, machine: Machine, rank: int = 0, world: int = 1
    ) -> None:
        self._model, self._stream, self._config, self._machine = model, stream, config, machine
        self._rank, self._world = rank, world
        self._context = model.config.context_length
        self._windows = eval_windows(stream, self._context, config.eval_tokens)
        self._byte_lengths = torch.from_numpy(gpt2().byte_lengths.copy())

    @torch.no_grad()
    def __call__(self) -> Validation:
        """Mean loss and bits per byte over all ranks' windows; samples on rank 0."""
        model = whole(self._model)
        nats, n_bytes, n_tokens = self._score(model)
        return Validation(
            loss=nats / n_tokens,
            bits_per_byte=nats / math.log(2) / max(1.0, n_bytes),
            samples=self._samples(model) if self._rank == 0 else [],
        )

    def _score(self, model: GPT) -> tuple[float, float, float]:
        size = self._config.micro_batch_size
        mine = self._windows[self._rank :: self._world]
        losses: list[tuple[Tensor, int, int]] = []
        for start in range(0, len(mine), size):
            ids_BT, targets_BT = read_windows(self._stream, mine[start : start + size], self._context)
            with self._machine.autocast():
                loss = model(ids_BT.to(self._machine.device), targets_BT.to(self._machine.device))
            losses.append((loss, int(self._byte_lengths[targets_BT].sum()), targets_BT.numel()))
        sums = torch.zeros(3, dtype=torch.float64)
        for loss, n_bytes, n in losses:  # only now: each would be a wait for a GPU
            sums += torch.tensor([float(loss) * n, n_bytes, n], dtype=torch.float64)
        if self._world > 1:
            dist.all_reduce(sums)
        return float(sums[0]), float(sums[1]), float(sums[2])

    def _samples(self, model: GPT) -> list[dict[str, str]]:
        return [
            {"prompt": prompt, "text": continue_text(model, prompt, self._config.sample)}
            for prompt in self._config.sample_prompts
        ]
