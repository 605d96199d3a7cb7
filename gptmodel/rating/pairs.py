"""Two texts side by side: which one raters would rather have written, asked and not derived from points.

A pair is two models' texts after the same prompt. Which of the two stands left, as A, is drawn anew for each pair and
rater, and so is the order of pairs: neither side, nor place, nor id says who wrote what. What is kept of an answer is
the text that was chosen and not the side. The planted checks are asked too: a real passage against a word salad.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from gptmodel.rating.deliveries import Comparison
from gptmodel.rating.rounds import Item, models_of
from gptmodel.rating.statistics import preference
from gptmodel.store.artifacts import Artifact

LEFT, TIE, RIGHT = "A", "tie", "B"
ANSWERS = (LEFT, TIE, RIGHT)
QUESTION = (
    "The same beginning goes on in two ways, A and B. Which would you rather have written? Say tie only if you "
    "would not mind which of the two."
)
LEAST_RIGHT = 0.75
"""Who prefers the real passage in less than this share of the planted pairs is flagged."""


@dataclass(frozen=True)
class Pair:
    """Two continuations of `prompt`; those of models in the round's order, or a real passage and then a salad."""

    id: str
    prompt: str
    first: Item
    second: Item

    @property
    def is_check(self) -> bool:
        return self.first.kind != "model"


def pairs_of(found: Artifact, items: Sequence[Item]) -> list[Pair]:
    """All pairs of a round: none with one model. Texts that are the same are not asked about."""
    if len(models_of(found)) < 2:
        return []
    written = [item for item in items if item.kind == "model"]
    both = [
        (a, b) if a.model < b.model else (b, a)
        for a, b in combinations(written, 2)
        if a.passage == b.passage and a.text.strip() != b.text.strip()
    ]
    checks = [[item for item in items if item.kind == kind] for kind in ("real", "salad")]
    both += list(zip(*checks, strict=True))  # the salad then stands after the real passage's prompt
    return [Pair(_id(found, a, b), a.prompt, a, b) for a, b in both]


def pairs_in_order(found: Artifact, rater: int, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the order of this rater: its own for each, the same every time."""
    order = sorted(pairs, key=lambda pair: pair.id)
    random.Random(f"{found.digest} pairs {rater}").shuffle(order)
    return order


def sides(found: Artifact, rater: int, pair: Pair) -> tuple[Item, Item]:
    """(A, B) as this rater sees them, the same every time."""
    swap = random.Random(f"{found.digest} sides {rater} {pair.id}").random() < 0.5
    return (pair.second, pair.first) if swap else (pair.first, pair.second)


def comparison(found: Artifact, rater: int, pair: Pair, answer: str, comment: str, channel: str) -> Comparison | None:
    """What a rater's `A`, `B` or `tie` means; None for any other word."""
    left, right = sides(found, rater, pair)
    chosen = {LEFT.lower(): left.id, RIGHT.lower(): right.id, TIE: ""}.get(answer.strip().lower())
    return None if chosen is None else Comparison(rater, pair.id, chosen, comment, channel)


def answer_of(found: Artifact, pair: Pair, said: Comparison) -> str:
    """The `A`, `B` or `tie` that this rater would have given, the other way round of `comparison`."""
    left, _ = sides(found, said.rater, pair)
    return TIE if not said.chosen else LEFT if said.chosen == left.id else RIGHT


def checks_right(comparisons: Sequence[Comparison], pairs: Mapping[str, Pair], rater: int) -> tuple[int, int]:
    """(planted pairs in which this rater preferred the real passage, planted pairs that were answered)."""
    own = [said for said in comparisons if said.rater == rater and pairs[said.pair].is_check]
    return sum(said.chosen == pairs[said.pair].first.id for said in own), len(own)


def asked_preferences(
    comparisons: Sequence[Comparison], pairs: Mapping[str, Pair], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """For each two models that were compared: prompts won, lost and tied, with a sign test, and answers.

    A prompt goes to the model that more of its raters chose, answers of `tie` on neither side; it is a tie if as many
    chose the one as the other. A prompt counts once, however many compared it, and ties are left out of the test.
    """
    told = []
    for a, b in combinations(range(len(labels)), 2):
        own = [said for said in comparisons if _models(pairs[said.pair]) == (a, b)]
        if not own:
            continue
        raters, passages = sorted({s.rater for s in own}), sorted({pairs[s.pair].first.passage for s in own})
        table_RP = np.full((len(raters), len(passages)), np.nan)
        for said in own:
            pair = pairs[said.pair]
            sign = 0 if not said.chosen else 1 if said.chosen == pair.first.id else -1
            table_RP[raters.index(said.rater), passages.index(pair.first.passage)] = sign
        answers = {f"answers_{name}": int((table_RP == sign).sum()) for name, sign in (("a", 1), ("b", -1), ("tie", 0))}
        figures = preference(table_RP, np.zeros_like(table_RP))
        told.append({"a": labels[a], "b": labels[b], **figures, **answers, "raters": len(raters)})
    return told


def _models(pair: Pair) -> tuple[int, int] | None:
    return None if pair.is_check else (pair.first.model, pair.second.model)


def _id(found: Artifact, a: Item, b: Item) -> str:
    return f"p-{hashlib.sha256(f'{found.fingerprint} {a.id} {b.id}'.encode()).hexdigest()[:10]}"
