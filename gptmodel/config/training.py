"""Settings of a training run and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check
from gptmodel.config.budget import BudgetConfig
from gptmodel.config.decoding import DecodingConfig

_MOST = 10**12  # of anything that is counted
_MOST_SEQUENCES = 10**9


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) or Muon, with decay on matrices only, and the learning-rate schedule."""

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: the blocks' matrices by Muon (Jordan et al. 2024), with updates as large as AdamW's (Liu et al. 2025,
    arXiv:2502.16982), so that learning rate and decay keep their meaning; all else stays with AdamW."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Last learning rate as a share of the peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine: warm-up, then a half cosine; wsd: warm-up, stable, linear decay; constant: warm-up, then flat."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    decay_steps: int = 0
    """wsd: steps of decay at the end, which warmup_steps must leave; 0 is a fifth of all steps."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; vectors (biases, norms) are not decayed."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""

    LATER: ClassVar[Mapping[str, Any]] = {"kind": "adamw"}

    def __post_init__(self) -> None:
        steps = ("warmup_steps", "decay_steps")
        check(
            self,
            [
                (
                    self.learning_rate <= 0,
                    f"learning_rate is {self.learning_rate}; give a number above 0, such as 6e-4",
                ),
                (
                    not 0 <= self.min_learning_rate_ratio <= 1,
                    f"min_learning_rate_ratio is {self.min_learning_rate_ratio}; give a share from 0 to 1",
                ),
                *((getattr(self, n) < 0, f"{n} is {getattr(self, n)}; give 0 or more") for n in steps),
                *((getattr(self, n) > _MOST, f"{n} is {getattr(self, n):,}; give at most {_MOST:,}") for n in steps),
                *(
                    (not 0 <= getattr(self, b) < 1, f"{b} is {getattr(self, b)}; give 0 up to, not including, 1")
                    for b in ("beta1", "beta2")
                ),
                (self.eps <= 0, f"eps is {self.eps}; give a number above 0"),
                (self.weight_decay < 0, f"weight_decay is {self.weight_decay}; give 0 or more"),
                (self.grad_clip < 0, f"grad_clip is {self.grad_clip}; give 0 for none, or a positive norm"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run: how long, in what batches, and what is kept and watched on the way."""

    __pydantic_config__: ClassVar[Any] = STRICT

    max_steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences in each optimizer step, over all devices together; the data order depends on it alone."""
    micro_batch_size: int = 16
    """Sequences in one forward and backward pass on one device; batch_size is reached by accumulation."""
    seed: int = 1337
    """Seed of initial weights, dropout, and the order of the data."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning-rate schedule."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; float32 is TF32 on a GPU. auto measures it against bfloat16 autocast once and records its
    choice."""
    compile: bool = False
    """Compile the model with torch.compile; seldom worth its time on a processor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda where there is one."""
    processes: int = 0
    """Training processes; 0 is one for each GPU, or one on a processor."""
    sharding: Literal["none", "full"] = "none"
    """Of several processes: with none each holds all weights, gradients and moments; with full each holds its part of
    them (FSDP2), for models that do not fit otherwise. Results differ by rounding; one process has nothing to cut."""
    threads: int = 0
    """CPU threads for each process; 0 is one for each core. Another number gives results that differ by rounding."""
    deterministic: bool = False
    """On a GPU, use only deterministic kernels; slower. A processor is deterministic anyway."""
    log_every: int = 1
    """Steps between metric points."""
    eval_every: int = 100
    """Steps between evaluations on validation data; the first and the last step are always evaluated."""
    eval_tokens: int = 65_536
    """Validation tokens for each of these evaluations; 0 is all of them."""
    sample_prompts: tuple[str, ...] = ("The state of the",)
    """At each evaluation each prompt is continued, so that progress can be read."""
    sample: DecodingConfig = DecodingConfig()  # noqa: RUF009 - frozen
    """How these samples are decoded."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept while training, besides the best one."""
    publish: Literal["last", "best"] = "last"
    """Which weights become the result: the last step's, or those with the lowest validation loss."""
    early_stop_evals: int = 0
    """Stop after this many evaluations without a better validation loss; 0 never stops early."""
    on_spike: Literal["stop", "skip", "rollback"] = "stop"
    """At a spike (always: a loss or gradient that is not finite) stop before the update, leave that update out, or go
    back to the newest checkpoint and leave out all updates from there to the spike. Data and schedule go on."""
    spike_threshold: float = 0.0
    """A loss more than this many nats above the median of the last ones is a spike; 0 does not look at finite ones."""
    spike_window: int = 50
    """How many last losses that median is taken of; until there are as many, no finite loss is a spike."""
    max_spikes: int = 10
    """With skip or rollback, the spike after this many stops the run."""
    budget: BudgetConfig = BudgetConfig()  # noqa: RUF009 - frozen
    """What it may take; without bounds unless they are given."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        {"processes", "sharding", "threads", "keep_checkpoints", "max_spikes", "budget"}
    )

    def __post_init__(self) -> None:
        at_least_one = (
            "max_steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "spike_window",
            "max_spikes",
        )
        at_least_zero = ("processes", "threads", "eval_tokens", "early_stop_evals")
        most = dict.fromkeys((*at_least_one, *at_least_zero), _MOST) | {"batch_size": _MOST_SEQUENCES}
        warmup = self.optimizer.warmup_steps
        check(
            self,
            [
                *(
                    (getattr(self, n) < 1, f"{n} is {getattr(self, n)}; give a whole number of at least 1")
                    for n in at_least_one
                ),
                *((getattr(self, n) < 0, f"{n} is {getattr(self, n)}; give 0 or more") for n in at_least_zero),
                *((getattr(self, n) > m, f"{n} is {getattr(self, n):,}; give at most {m:,}") for n, m in most.items()),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
                (
                    not 0 <= self.spike_threshold < float("inf"),
                    f"spike_threshold is {self.spike_threshold}; give 0 for none, or nats such as 2.0",
                ),
                (
                    self.micro_batch_size >= 1 and self.batch_size % self.micro_batch_size != 0,
                    f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}",
                ),
                (
                    self.processes > 0 and self.batch_size % (self.micro_batch_size * self.processes or 1) != 0,
                    f"batch_size {self.batch_size} is not a multiple of micro_batch_size x processes "
                    f"({self.micro_batch_size} x {self.processes})",
                ),
                (
                    self.optimizer.schedule == "wsd" and 0 < self.optimizer.decay_steps > self.max_steps - warmup,
                    f"max_steps {self.max_steps} is less than optimizer.warmup_steps {warmup} and "
                    f"optimizer.decay_steps {self.optimizer.decay_steps} together, so the learning rate would jump; "
                    "lower one of them, or set decay_steps=0 for a fifth of the steps",
                ),
            ],
        )
