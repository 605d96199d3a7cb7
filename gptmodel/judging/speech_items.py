"""Items for the tasks in `gptmodel/judging/speeches/`, made from State of the Union addresses when they are asked for.

Only addresses on the validation side of the quickstart's split are used: a model that was trained with
`corpus.split_key` and `corpus.validation_fraction` as they come has not seen them. Nothing is drawn by chance, so the
items are always the same. EleutherAI's harness calls the functions at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmodel.config import CorpusConfig
from gptmodel.text.corpus import normalise, split_of
from gptmodel.text.sources import open_source

if TYPE_CHECKING:
    from datasets import DatasetDict

_ITEMS_PER_SPEECH = 8
_CHOICES = 4
_NEIGHBOURS = 3  # wrong answers come from speeches at most this many places away in time, so that style tells little
_PASSAGE_WORDS = range(40, 111)
_ANSWER_WORDS = range(8, 31)
_ROLLING_CHARS = 8_000  # several windows of a small model, and all speeches in a minute or two


@cache
def held_out() -> tuple[tuple[str, str], ...]:
    """(file name, text) of each address on the validation side, oldest first."""
    config = CorpusConfig()
    found = []
    for raw in open_source(config.source, Path()).texts():
        assert isinstance(raw.text, bytes), raw.source
        text = normalise(raw.text.decode())
        if split_of(text, config) == "validation":
            found.append((raw.source, text))
    return tuple(sorted(found))


def passages(text: str) -> list[str]:
    """Paragraphs of about a hundred words, on one line each."""
    lines = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [line for line in lines if len(line.split()) in _PASSAGE_WORDS and line[0].isalpha()]


def sentences(passage: str) -> list[str]:
    """Cut after `.`, `!` or `?` where a capital follows; an abbreviation may cut one too early."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z“\"])", passage)


def _spread(items: list[Any]) -> list[Any]:
    """At most as many as are taken of a speech, evenly over it."""
    n = min(_ITEMS_PER_SPEECH, len(items))
    return [items[place * len(items) // n] for place in range(n)]


def continuation_items() -> list[dict[str, Any]]:
    """A passage without its last sentence, that sentence, and three that end other passages: which one is real?"""
    ends: list[tuple[int, str, str, str]] = []
    for number, (name, text) in enumerate(held_out()):
        cut = [(" ".join(parts[:-1]), parts[-1]) for parts in map(sentences, passages(text)) if len(parts) > 2]
        fitting = [(before, end) for before, end in cut if len(end.split()) in _ANSWER_WORDS]
        ends += [(number, name, before, end) for before, end in _spread(fitting)]
    items: list[dict[str, Any]] = []
    for number, name, before, end in ends:
        others = [other for other in ends if 0 < abs(other[0] - number) <= _NEIGHBOURS]
        others.sort(key=lambda other: (abs(len(other[3]) - len(end)), other[1], other[3]))
        label = len(items) % _CHOICES
        choices = [other[3] for other in others[: _CHOICES - 1]]
        choices.insert(label, end)
        items.append({"speech": name, "context": before, "choices": choices, "label": label})
    return items


def last_word_items() -> list[dict[str, Any]]:
    """A passage without its last word, which stands in it once before: the reader can know it."""
    items: list[dict[str, Any]] = []
    for name, text in held_out():
        items += _spread([{"speech": name, **item} for item in _cloze(text)])
    return items


def _cloze(text: str) -> Iterator[dict[str, str]]:
    for passage in passages(text):
        found = re.fullmatch(r"(.+) ([a-z]{4,})[.!?]", passage)
        if found and re.search(rf"\b{found[2]}\b", found[1]):
            yield {"context": found[1], "word": found[2]}


def rolling_items() -> list[dict[str, Any]]:
    """The beginning of each speech, up to the end of a paragraph."""
    items = []
    for name, text in held_out():
        end = text.find("\n", _ROLLING_CHARS)
        items.append({"speech": name, "text": text if end < 0 else text[:end]})
    return items


def continuations(**_: Any) -> DatasetDict:
    return _as_test(continuation_items())


def last_words(**_: Any) -> DatasetDict:
    return _as_test(last_word_items())


def beginnings(**_: Any) -> DatasetDict:
    return _as_test(rolling_items())


def _as_test(items: list[dict[str, Any]]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(items)})
