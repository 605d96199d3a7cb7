"""What raters are asked, in the words that they see: four criteria from 1 to 5, and a comment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOWEST, HIGHEST = 1, 5
COMMENT_CHARS = 2_000


@dataclass(frozen=True)
class Criterion:
    """One question. `anchors` say what 1, 3 and 5 mean; 2 and 4 lie between them."""

    name: str
    """As a column of a table and a name of a metric."""
    title: str
    question: str
    anchors: tuple[str, str, str]

    @property
    def instruction(self) -> str:
        """Question and anchors in one line."""
        low, middle, high = self.anchors
        return f"{self.question} 1: {low}. 3: {middle}. 5: {high}."


CRITERIA = (
    Criterion(
        "coherence",
        "coherence",
        "Do the sentences of the continuation belong together and lead somewhere?",
        (
            "no two parts belong together",
            "one subject can be made out, but it jumps or goes round in circles",
            "each sentence follows from those before it",
        ),
    ),
    Criterion(
        "fluency",
        "fluency",
        "Is each sentence good English by itself, whatever it says?",
        (
            "not sentences at all, or words over and over",
            "readable, with mistakes that make you stop",
            "as a careful writer would put it",
        ),
    ),
    Criterion(
        "relevance",
        "relevance",
        "Does it go on from the given beginning, in subject and manner?",
        (
            "it has nothing to do with the beginning",
            "it keeps the general subject, but not the thought that was begun",
            "it takes up just what was begun",
        ),
    ),
    Criterion(
        "factual_accuracy",
        "factual accuracy",
        "As far as you know, is what it states true, and free of contradictions?",
        (
            "false or contradicts itself, or states nothing that could be true",
            "some of it is right and some is wrong, or it cannot be told",
            "nothing in it is wrong as far as you know",
        ),
    ),
)
NAMES = tuple(criterion.name for criterion in CRITERIA)
OVERALL = "overall"  # the mean of them

COMMENT = "If you like: what struck you? Comments are kept with the ratings; write nothing that tells who you are."
INTRODUCTION = (
    "You will see the beginning of a text and a continuation of it. The beginning is given and not to be rated. Rate "
    "the continuation on four questions from 1 (worst) to 5 (best). It is cut off at a fixed length: do not mind "
    "that its last sentence may be unfinished. Rate each text for itself and not against the one before; use the whole "
    "scale; do not look anything up. There are no right answers, but some texts are there to see whether they "
    "are read. In the results you are a number; your name stays with whoever runs the round."
)


def check_scores(scores: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """(the four scores as whole numbers, what is wrong with them in words). Takes 4, '4' and '4.0'."""
    found: dict[str, int] = {}
    wrong = []
    for name in NAMES:
        value = scores.get(name)
        number = _whole(value)
        if number is None or not LOWEST <= number <= HIGHEST:
            what = "is missing" if value in (None, "") else f"is {str(value)[:40]!r}"
            wrong.append(f"{name} {what}; give a whole number from {LOWEST} to {HIGHEST}")
        else:
            found[name] = number
    return found, wrong


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
