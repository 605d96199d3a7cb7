"""What a training will take: counted from its settings, by a pace that was measured, reckoned for other hardware."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gptmodel.arithmetic import (
    Flops,
    Memory,
    Parameters,
    count_parameters,
    flops_per_token,
    largest_micro_batch,
    memory,
)
from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError
from gptmodel.nvidia import gpu_files
from gptmodel.planning.measuring import SPARE, Trial
from gptmodel.planning.rates import Bill, Hardware, Rates, bill
from gptmodel.planning.scaling import Expected, expected_loss
from gptmodel.store.space import shards_bytes, training_bytes, weights_bytes
from gptmodel.training.pace import Pace, evaluations, saves

if TYPE_CHECKING:
    from gptmodel.planning.own_law import OwnLaw
    from gptmodel.planning.past import Past

BYTES_A_TOKEN = 4.5  # of English text, by GPT-2's vocabulary; ours measured 4.4 to 4.6


@dataclass(frozen=True)
class Offer:
    """The training on one kind of hardware."""

    key: str
    label: str
    devices: int
    hours: float
    mfu: float
    bill: Bill
    micro_batch: int
    """Most sequences that fit by the estimate; 0 where not even one does."""


@dataclass(frozen=True)
class Forecast:
    """All that can be said before a training starts."""

    name: str
    parameters: Parameters
    flops: Flops
    steps: int
    micro_batch_size: int
    tokens: int
    epochs: float
    """How often the data is read; 0 where it is not known."""
    evaluations: int
    checkpoints: int
    memory: Memory
    trial: Trial | None
    past: Past | None
    """Runs of the same shape that tell the pace where there is no trial."""
    pace: Pace | None
    """By the trial, or by past runs."""
    seconds: float
    """On this machine, from start to end; 0 without a pace."""
    here: Bill | None
    offers: tuple[Offer, ...]
    store_bytes: int
    """Room in the store that is asked for while it trains."""
    kept_bytes: int
    """Of it in use at the end, where the best checkpoint is among the newest."""
    model_bytes: int
    text_bytes: int
    """Of text that holds as many tokens."""
    shard_bytes: int
    """Of as many tokens."""
    expected: Expected
    correction: float = 1.0
    """That `seconds` were multiplied by, since past runs on this machine took so much more or less than foretold."""
    corrected_by: int = 0
    """Past runs that there are to correct by; fewer than 3 correct nothing."""

    @property
    def basis(self) -> str:
        """What the time comes of: trial, past runs, or nothing."""
        return "trial" if self.trial else "past runs" if self.past else ""

    @property
    def device(self) -> str:
        """cpu or cuda, as measured; empty where nothing was."""
        found = self.trial or self.past
        return found.device if found else ""

    @property
    def processes(self) -> int:
        """Of the training on this machine: on GPUs, how many of them."""
        found = self.trial or self.past
        return found.processes if found else 1

    @property
    def total_flops(self) -> float:
        return float(self.flops.exact) * self.tokens

    @property
    def flops_by_rule(self) -> float:
        """6ND."""
        return 6.0 * self.parameters.total * self.tokens

    @property
    def mfu(self) -> float:
        """Share of this machine's peak that the measured step comes to; 0 without a trial."""
        if self.trial is None:
            return 0.0
        peak = self.trial.peak_flops * (self.trial.processes if self.trial.device == "cuda" else 1)
        return self.total_flops / self.steps / self.trial.step_seconds / peak

    def plain(self) -> dict[str, Any]:
        """For machines."""
        derived = {"total_flops": self.total_flops, "flops_by_rule": self.flops_by_rule, "mfu": self.mfu}
        totals = {"parameters_total": self.parameters.total, "flops_per_token": self.flops.exact}
        return {**asdict(self), **derived, **totals, "memory_total": self.memory.total}


def forecast(
    config: PipelineConfig,
    rates: Rates,
    *,
    trial: Trial | None = None,
    past: Past | None = None,
    train_tokens: int = 0,
    validation_tokens: int = 0,
    on: tuple[str, ...] = (),
    devices: int = 1,
    mfu: float = 0.0,
    grid: str = "world",
    correction: tuple[float, int] = (1.0, 0),
    own: OwnLaw | None = None,
) -> Forecast:
    """The plan of a training. The tokens are how many the data has, if known; `on` names hardware of the table.

    A trial says more than past runs; `correction` is what it is multiplied by, and of how many runs that is known.
    """
    if devices < 1:
        raise ConfigError(f"devices is {devices}; give at least 1")
    if not 0 <= mfu <= 1:
        raise ConfigError(f"mfu is {mfu}; give a share above 0 and up to 1, or 0 for the table's")
    model, train = config.model, config.train
    parameters, flops = count_parameters(model), flops_per_token(model)
    tokens = train.max_steps * train.batch_size * model.context_length
    grams = rates.grid(grid)
    total = float(flops.exact) * tokens
    known = trial or past
    bf16 = known.precision == "bfloat16" if known else train.precision != "float32"
    on_gpu = known.device == "cuda" if known else _for_gpu(train.device, elsewhere=bool(on) or devices > 1)
    scored = min(train.eval_tokens or validation_tokens, validation_tokens or train.eval_tokens)
    pace = trial.pace(scored) if trial else past.pace if past else None
    seconds = pace.seconds(train) * (correction[0] if trial else 1.0) if pace else 0.0
    local = rates.this_machine["gpu" if on_gpu else "cpu"]
    device_hours = seconds / 3600 * (known.processes if known and on_gpu else 1)
    processes = known.processes if known else train.processes or (devices if on_gpu else 1)
    held = memory(
        model,
        train.micro_batch_size,
        bfloat16=bf16,
        on_cpu=not on_gpu,
        muon=train.optimizer.kind == "muon",
        accumulates=train.batch_size // train.micro_batch_size > processes,
        compiled=train.compile,
        parts=processes if train.sharding == "full" else 1,
    )
    return Forecast(
        name=config.name,
        parameters=parameters,
        flops=flops,
        steps=train.max_steps,
        micro_batch_size=train.micro_batch_size,
        tokens=tokens,
        epochs=tokens / train_tokens if train_tokens else 0.0,
        evaluations=evaluations(train),
        checkpoints=saves(train),
        memory=held,
        trial=trial,
        past=past,
        pace=pace,
        seconds=seconds,
        here=bill(device_hours, local.watts, local.per_hour, rates.pue, grams) if pace else None,
        offers=tuple(_offer(key, rates, config, total, devices, mfu, grams) for key in on or tuple(rates.hardware)),
        store_bytes=training_bytes(model, train),
        kept_bytes=held.weights + min(train.keep_checkpoints, saves(train)) * (held.weights + held.optimizer),
        model_bytes=weights_bytes(parameters.total),
        text_bytes=int(tokens * BYTES_A_TOKEN),
        shard_bytes=shards_bytes(int(tokens * BYTES_A_TOKEN)),
        expected=expected_loss(
            parameters.total,
            parameters.without_embeddings,
            tokens,
            model.vocab_size,
            tokens / train_tokens if train_tokens else 0.0,
            own,
        ),
        correction=correction[0],
        corrected_by=correction[1],
    )


def _for_gpu(device: str, *, elsewhere: bool) -> bool:
    """Whether memory is that of a GPU, as far as can be said without loading torch."""
    return device == "cuda" or (device == "auto" and (elsewhere or bool(gpu_files())))


def _offer(
    key: str, rates: Rates, config: PipelineConfig, flops: float, devices: int, mfu: float, grams: float
) -> Offer:
    hardware: Hardware = rates.device(key)
    share = mfu or hardware.mfu
    device_hours = flops / (hardware.tflops * 1e12 * share) / 3600
    return Offer(
        key=key,
        label=hardware.label,
        devices=devices,
        hours=device_hours / devices,
        mfu=share,
        bill=bill(device_hours, hardware.watts, hardware.per_hour, rates.pue, grams),
        micro_batch=largest_micro_batch(
            config.model,
            hardware.memory_gb * 1e9 * SPARE,
            bfloat16=True,
            compiled=config.train.compile,
            parts=devices if config.train.sharding == "full" else 1,
        ),
    )
