"""How low the loss will go: published scaling laws, with what they were fitted on, and what they advise.

L(N, D) is the loss in nats per token after training N parameters on D tokens, each seen once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptmodel.planning.own_law import OwnLaw

ASPECTS = (1600 / 48, 768 / 12)
"""Width over layers of GPT-2's largest and smallest model."""


@dataclass(frozen=True)
class Additive:
    """L = E + A / N^alpha + B / D^beta; N counts all parameters, or leaves the embeddings out.

    A token costs 6 operations for each parameter, embeddings too, whatever N counts.
    """

    name: str
    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    rows: float = field(default=0, kw_only=True)
    """Of the tables of tokens and positions, where N leaves them out; 0 where it counts them."""

    def loss(self, n_params: float, n_tokens: float) -> float:
        return float(self.E + self.A / n_params**self.alpha + self.B / n_tokens**self.beta)

    def embeddings(self, n_params: float) -> float:
        """What N leaves out: rows of the width that so many parameters in blocks have, about 12 L C^2 (as in Pearce and
        Song 2024, arXiv:2406.12907), in the narrowest of GPT-2's forms, which leaves most to the blocks."""
        return float(self.rows * (n_params * ASPECTS[0] / 12) ** (1 / 3))

    def tokens(self, n_params: float, flops: float) -> float:
        """D of a training of N on a budget."""
        return flops / 6 / (n_params + self.embeddings(n_params))

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) with the lowest loss among those that cost so much (Hoffmann et al. 2022, equation 4)."""
        if self.rows:
            n_params = self._beside_embeddings(flops)
            return n_params, self.tokens(n_params, flops)
        share = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / share)
        n_params = ratio * (flops / 6) ** (self.beta / share)
        return n_params, flops / 6 / n_params

    def _beside_embeddings(self, flops: float) -> float:
        """The N from which on a larger one costs more in tokens than it brings: the loss is convex in log N."""
        low, high = -50.0, 100.0  # of log N
        for _ in range(60):
            middle = (low + high) / 2
            n_params = math.exp(middle)
            apart = self.embeddings(n_params)
            grows = (n_params + apart / 3) / (n_params + apart)  # of the cost, in percent for one percent of N
            brings = math.log(self.alpha * self.A) - self.alpha * middle
            costs = math.log(self.beta * self.B * grows) - self.beta * math.log(self.tokens(n_params, flops))
            low, high = (middle, high) if brings > costs else (low, middle)
        return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Kaplan:
    """L = [(Nc / N)^(aN / aD) + Dc / D]^aD; N leaves the embeddings out (Kaplan et al. 2020, equation 1.5)."""

    name: str = "Kaplan et al. 2020"
    source: str = "arXiv:2001.08361, table 2"
    n_c: float = 6.4e13
    d_c: float = 1.8e13
    alpha_n: float = 0.076
    alpha_d: float = 0.103

    def loss(self, n_params: float, n_tokens: float) -> float:
        return float(((self.n_c / n_params) ** (self.alpha_n / self.alpha_d) + self.d_c / n_tokens) ** self.alpha_d)


HOFFMANN = Additive("Hoffmann et al. 2022", "arXiv:2203.15556, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = Additive("Besiroglu et al. 2024", "arXiv:2404.10102", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)
KAPLAN = Kaplan()
FITTED_PARAMS, FITTED_TOKENS = 70e6, 5e9  # the least that Hoffmann et al. trained, and Besiroglu et al. fitted again
_HOFFMANN_MODELS = "70 M to 16 B parameters, 5 B to 500 B tokens"


@dataclass(frozen=True)
class Expected:
    """Losses by the laws, the interval that they span, and what to think of it."""

    losses: dict[str, float]
    low: float
    high: float
    outside: str
    """Why the laws say little here; empty where they were fitted on the like."""
    own: str = ""
    """Whose interval it is, where it is that of a law of one's own."""

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def perplexities(self) -> tuple[float, float]:
        return math.exp(self.low), math.exp(self.high)


def expected_loss(
    n_params: int, n_blocks: int, n_tokens: int, vocab_size: int, epochs: float = 0.0, own: OwnLaw | None = None
) -> Expected:
    """The interval is what three published fits span: between their corpora and vocabularies, not an error of one.

    `n_blocks` is N without embeddings. No loss is above that of guessing: ln(vocabulary). `epochs` is how often the
    data is repeated, where that is known: repeated tokens teach less than the laws count. With a law of one's `own`
    the interval is that one's, and the published ones stand beside it.
    """
    guess = math.log(vocab_size)
    found = {law.name: min(guess, law.loss(n_params, n_tokens)) for law in (HOFFMANN, BESIROGLU)}
    found[KAPLAN.name] = min(guess, KAPLAN.loss(n_blocks, n_tokens))
    spanned = (min(found.values()), max(found.values()))
    outside = []
    if own is not None:
        n = own.of(n_params, n_blocks)
        spanned = own.interval(lambda law: min(guess, law.loss(n, n_tokens)))
        found = {own.law.name: min(guess, own.law.loss(n, n_tokens)), **found}
        outside = [told] if (told := own.outside(n, n_tokens)) else []
    elif n_params < FITTED_PARAMS or n_tokens < FITTED_TOKENS:
        outside.append(f"they were fitted on {_HOFFMANN_MODELS}, and this run is smaller: it may well end elsewhere")
    if epochs > 4:  # up to 4 repetitions cost almost nothing (Muennighoff et al. 2023)
        outside.append(f"the data is read {epochs:.1f} times, and they count each token as new")
    return Expected(found, *spanned, "; ".join(outside), own.label if own else "")


@dataclass(frozen=True)
class Advice:
    """The best division of a budget, and how loss changes around it."""

    flops: float
    n_params: float
    n_tokens: float
    loss: float
    curve: list[tuple[float, float, float]]
    """(N, D, loss) along the budget: an IsoFLOP curve."""
    bands: list[tuple[float, float]] = field(default_factory=list)
    """Between what the losses of the curve lie; none for a published law, which has no intervals here."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of n_params, n_tokens and loss."""
    outside: str = ""
    """By how much it is beyond what the law was fitted to."""


def advise(flops: float, law: Additive = BESIROGLU) -> Advice:
    """Model size and tokens for a budget of operations, with the curve over a factor of 30 to either side."""
    n_params, n_tokens = law.optimum(flops)
    outside = ""
    if n_params < FITTED_PARAMS or n_tokens < FITTED_TOKENS:
        outside = f"extrapolated: fitted on {_HOFFMANN_MODELS}"
    return Advice(flops, n_params, n_tokens, law.loss(n_params, n_tokens), budget_curve(law, flops), outside=outside)


def budget_curve(law: Additive, flops: float, points: int = 41, width: float = 30) -> list[tuple[float, float, float]]:
    """(N, D, loss) for sizes up to `width` times smaller and larger than the best."""
    best, _ = law.optimum(flops)
    sizes = [best * width ** (2 * place / (points - 1) - 1) for place in range(points)]
    return [(size, law.tokens(size, flops), law.loss(size, law.tokens(size, flops))) for size in sizes]
