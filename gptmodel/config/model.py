"""Settings of the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check

GPT2_VOCAB_SIZE = 50_257
_MOST = {"vocab_size": 2**24, "context_length": 2**20, "n_layer": 10_000, "n_head": 2**20, "n_embd": 2**20}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a GPT-2: pre-norm blocks, learned positions, tied output head (Radford et al. 2019)."""

    __pydantic_config__: ClassVar[Any] = STRICT

    vocab_size: int = GPT2_VOCAB_SIZE
    """Tokens in the vocabulary."""
    context_length: int = 1024
    """Positions the model can attend over, in tokens."""
    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads in each block; divides n_embd."""
    n_embd: int = 768
    """Width of the residual stream."""
    dropout: float = 0.0
    """Share dropped after embeddings, attention weights and residual branches while training."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """Feed-forward non-linearity; GPT-2 uses the tanh approximation."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norm."""

    def __post_init__(self) -> None:
        check(
            self,
            [
                *(
                    (getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give a whole number of at least 1")
                    for name in _MOST
                ),
                *(
                    (getattr(self, name) > most, f"{name} is {getattr(self, name):,}; give at most {most:,}")
                    for name, most in _MOST.items()
                ),
                (
                    self.n_head >= 1 and self.n_embd % self.n_head != 0,
                    f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; change one of them",
                ),
                (not 0 <= self.dropout < 1, f"dropout is {self.dropout}; give a share from 0 up to, not including, 1"),
                (self.layer_norm_eps <= 0, f"layer_norm_eps is {self.layer_norm_eps}; give a number above 0"),
            ],
        )
