"""Settings of writing: how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the next token is chosen (greedy when temperature is 0), and when to stop."""

    __pydantic_config__: ClassVar[Any] = STRICT

    max_new_tokens: int = 64
    """Stop after this many new tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 is greedy, the most likely token each time."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach p; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest; 0 keeps all (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and of what was written less likely; 1 does nothing, 1.2 is usual (CTRL, 2019)."""
    stop_at_end_token: bool = True
    """Stop when the model writes its end-of-text token."""
    stop: tuple[str, ...] = ()
    """Stop before the first of these texts in what it writes; the text itself is left out."""
    seed: int = 0
    """Seed of the draws; the same seed gives the same text."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products and the cache: bfloat16 is faster and rounds, so a text may go another way."""

    LATER: ClassVar[Mapping[str, Any]] = {"min_p": 0.0, "repetition_penalty": 1.0, "precision": "float32"}

    def __post_init__(self) -> None:
        check(
            self,
            [
                (self.max_new_tokens < 1, f"max_new_tokens is {self.max_new_tokens}; give at least 1"),
                (
                    not 0 <= self.temperature < float("inf"),
                    f"temperature is {self.temperature}; give 0 for greedy, or a positive number",
                ),
                (self.top_k < 0, f"top_k is {self.top_k}; give 0 for all, or a positive number"),
                (not 0 < self.top_p <= 1, f"top_p is {self.top_p}; give a share above 0 and up to 1"),
                (not 0 <= self.min_p <= 1, f"min_p is {self.min_p}; give 0 for all, or a share up to 1, such as 0.1"),
                (
                    not 1e-6 <= self.repetition_penalty <= 1e6,  # far beyond, logits are infinite or all the same
                    f"repetition_penalty is {self.repetition_penalty}; give 1 for none, or a number from 1e-6 to 1e6",
                ),
                ("" in self.stop, "stop holds an empty text, which is everywhere; leave it out"),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
            ],
        )
