"""Settings of judgement: evaluation, and standard tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check
from gptmodel.config.decoding import DecodingConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a model is judged: on every token of a split, and by samples."""

    __pydantic_config__: ClassVar[Any] = STRICT

    split: Literal["train", "validation"] = "validation"
    """Which side of the shards to score."""
    batch_size: int = 8
    """Windows scored at once."""
    max_tokens: int = 0
    """Score about this many tokens, in windows spread evenly over the split; 0 is all."""
    stride: int = 0
    """Tokens from one window to the next, at most the model's context; 0 is the context: windows that do not overlap.
    A smaller one gives each token more context and a lower loss, and costs context / stride times as much."""
    surprisal_passages: int = 3
    """Documents, spread evenly over the split, whose beginnings are kept token by token for the surprisal map."""
    surprisal_tokens: int = 300
    """Tokens of each of them."""
    resamples: int = 2000
    """Times that the documents are drawn anew for the interval of every figure; 0 gives no intervals."""
    confidence: float = 0.95
    """Share of such intervals that should hold the true figure."""
    bootstrap_seed: int = 0
    """Seed of these draws; the same seed gives the same intervals."""
    calibration_bins: int = 15
    """Bins of equal width that the calibration error sorts the tokens into by the model's sureness."""
    prompts: tuple[str, ...] = ("The state of the Union is", "My fellow citizens,")
    """Continued by every decoding below."""
    decodings: tuple[DecodingConfig, ...] = (
        DecodingConfig(temperature=0.0),
        DecodingConfig(temperature=0.8),
        DecodingConfig(temperature=1.0, top_k=50),
        DecodingConfig(temperature=1.0, top_p=0.9),
    )
    """Greedy, temperature, top-k and top-p, unless you say otherwise."""
    samples_per_prompt: int = 1
    """Texts for each prompt and decoding, each with draws of its own; greedy ones are all the same."""
    memorised_tokens: int = 16
    """A sample with a passage of so many tokens that stands in the training text to the byte counts as memorised."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    LATER: ClassVar[Mapping[str, Any]] = {"samples_per_prompt": 1}

    def __post_init__(self) -> None:
        check(
            self,
            [
                *(
                    (getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give at least 1")
                    for name in ("samples_per_prompt", "memorised_tokens")
                ),
                (self.batch_size < 1, f"batch_size is {self.batch_size}; give at least 1"),
                (self.max_tokens < 0, f"max_tokens is {self.max_tokens}; use 0 for all, or a positive number"),
                *(
                    (not 0 <= getattr(self, name) <= most, f"{name} is {getattr(self, name)}; give 0 to {most:,}")
                    for name, most in (("surprisal_passages", 100), ("surprisal_tokens", 10_000))
                ),
                (
                    self.resamples != 0 and not 100 <= self.resamples <= 1_000_000,
                    f"resamples is {self.resamples}; use 0 for no intervals, or 100 to 1,000,000, such as 2000",
                ),
                (
                    not 0.5 <= self.confidence < 1,
                    f"confidence is {self.confidence}; give a share from 0.5 up to, not including, 1, such as 0.95",
                ),
                (self.bootstrap_seed < 0, f"bootstrap_seed is {self.bootstrap_seed}; give 0 or more"),
                (
                    not 1 <= self.calibration_bins <= 100,
                    f"calibration_bins is {self.calibration_bins}; give 1 to 100, such as 15",
                ),
                (self.stride < 0, f"stride is {self.stride}; use 0 for the model's context, or a positive number"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Standard tasks through EleutherAI's harness."""

    __pydantic_config__: ClassVar[Any] = STRICT

    tasks: tuple[str, ...] = ("speeches",)
    """Tasks, groups or tags of the harness, or patterns such as `blimp_*`."""
    limit: int = 0
    """Only the first documents of each task, as many as this; 0 is all."""
    fewshot: int | None = None
    """Worked examples before each question; left out, what each task says."""
    include_path: str = ""
    """A directory with tasks of your own, as the harness reads them."""
    gen_kwargs: str = ""
    """Overrides how tasks decode: `temperature=0.8,max_gen_toks=64`."""
    seed: int = 0
    """Seed of what is sampled. Examples are drawn with the harness's own seed, as in published figures."""
    bootstrap_iters: int = 1_000
    """Resamples for the standard error of metrics that have no formula for it."""
    batch_size: int = 8
    """Requests answered at once."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    def __post_init__(self) -> None:
        check(
            self,
            [
                (not self.tasks, "tasks names none; give at least one, such as speeches"),
                (self.limit < 0, f"limit is {self.limit}; use 0 for all, or a positive number"),
                ((self.fewshot or 0) < 0, f"fewshot is {self.fewshot}; give 0 or more"),
                (self.batch_size < 1, f"batch_size is {self.batch_size}; give at least 1"),
                (self.bootstrap_iters < 0, f"bootstrap_iters is {self.bootstrap_iters}; use 0 for none, or more"),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
            ],
        )
