"""Trainings whose size and cost were published: to see what the formulas say of them, and what they do not.

`hours` and `cost` are None where they were not told. The formula for operations is PaLM's (Chowdhery et al. 2022,
appendix B), so that models of other shapes than GPT-2's can stand here too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Example:
    """One published training."""

    label: str
    source: str
    n_params: int
    n_lookup: int
    """Parameters that are only looked up: positions, and the input table where the head has its own."""
    n_layer: int
    n_embd: int
    context_length: int
    n_tokens: float
    hardware: str = ""
    """Its key in the table of rates; empty where the table has none of the kind."""
    device_hours: float | None = None
    cost: float | None = None
    """US dollars, as told."""

    @property
    def flops(self) -> float:
        """Of the whole training: (6N + 12 L C T) D."""
        n = self.n_params - self.n_lookup
        return (6 * n + 12 * self.n_layer * self.n_embd * self.context_length) * self.n_tokens

    @property
    def flops_by_rule(self) -> float:
        """6ND."""
        return 6 * self.n_params * self.n_tokens

    @property
    def price(self) -> float | None:
        """Dollars for a device-hour, as the two told figures imply."""
        return self.cost / self.device_hours if self.cost and self.device_hours else None

    def mfu(self, peak_flops: float, flops: float) -> float | None:
        """Share of the peak that the told hours imply for so many operations."""
        return flops / (peak_flops * self.device_hours * 3600) if self.device_hours else None


_GPT2_124M = {"n_params": 124_439_808, "n_lookup": 786_432, "n_layer": 12, "n_embd": 768, "context_length": 1024}
_GPT2_1558M = {"n_params": 1_557_611_200, "n_lookup": 1_638_400, "n_layer": 48, "n_embd": 1600, "context_length": 1024}

EXAMPLES = {
    "llama-2-7b": Example(
        label="Llama 2 7B",
        source="Touvron et al. 2023, arXiv:2307.09288, table 2: 184,320 A100 hours; about $690,000 as usually told",
        n_params=6_738_415_616,
        n_lookup=32_000 * 4096,
        n_layer=32,
        n_embd=4096,
        context_length=4096,
        n_tokens=2e12,
        hardware="a100",
        device_hours=184_320,
        cost=690_000,
    ),
    "gpt2-124m-llmc": Example(
        label="GPT-2 124M by llm.c",
        source="llm.c, discussion 481: 10 B tokens in 90 minutes on 8 A100, about $20",
        **_GPT2_124M,
        n_tokens=10e9,
        hardware="a100",
        device_hours=8 * 1.5,
        cost=20,
    ),
    "gpt2-124m-nanogpt": Example(
        label="GPT-2 124M by nanoGPT",
        source="nanoGPT's README: 600,000 steps of 0.5 M tokens, about 4 days on 8 A100",
        **_GPT2_124M,
        n_tokens=600_000 * 491_520,
        hardware="a100",
        device_hours=8 * 96,
    ),
    "gpt2-1558m-llmc": Example(
        label="GPT-2 1558M by llm.c",
        source="llm.c, discussion 677: 32,000 steps of 1 M tokens, 24 hours on 8 H100, $672",
        **_GPT2_1558M,
        n_tokens=32_000 * 1_048_576,
        hardware="h100",
        device_hours=8 * 24,
        cost=672,
    ),
    "chinchilla-70b": Example(
        label="Chinchilla 70B",
        source="Hoffmann et al. 2022, arXiv:2203.15556, table 1: 1.4 T tokens; hours not told",
        n_params=70_000_000_000,
        n_lookup=32_000 * 8192,
        n_layer=80,
        n_embd=8192,
        context_length=2048,
        n_tokens=1.4e12,
    ),
}
