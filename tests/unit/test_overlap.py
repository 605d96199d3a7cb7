"""The longest passages that texts share with a corpus, against looking everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptmodel.judging.overlap import END, Longest, Passage, all_passages, longest_passages

LETTERS = "ab é好"  # one, two and three bytes: few, so that much is in common, and cuts fall within characters
WORDS = st.lists(st.sampled_from(["the ", "old ", "river ", "ö", "好的", "x" * 20, "ab" * 30]), max_size=30).map(
    "".join
)
TEXT = st.one_of(st.text(LETTERS, max_size=40), WORDS)


def cut(documents: list[str], at: list[int]) -> list[np.ndarray]:
    """The corpus as a stream of blocks, cut at these places."""
    data = np.frombuffer(b"".join(d.encode() + bytes([END]) for d in documents), np.uint8)
    return np.split(data, sorted(place % (len(data) + 1) for place in at))


def everywhere(text: str) -> Iterator[str]:
    """All passages of a text, longest in bytes first."""
    passages = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    yield from sorted(passages, key=lambda p: -len(p.encode()))


def longest(text: str, documents: list[str], prompt: str) -> tuple[int, int]:
    """Bytes of the longest passage that the prompt lacks, and of the longest that it has."""
    found = [p for p in everywhere(text) if any(p in d for d in documents)]
    new, old = ([len(p.encode()) for p in found if (p in prompt) is same] for same in (False, True))
    return max(new, default=0), max(old, default=0)


def shown(text: str, passage: Passage | None) -> str:
    return text.encode()[passage.start : passage.start + passage.length].decode() if passage else ""


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(TEXT, max_size=4),
    documents=st.lists(TEXT, max_size=4),
    at=st.lists(st.integers(0, 400), max_size=4),
    prompt=st.text(LETTERS, max_size=6),
)
@example(texts=["ab" * 200], documents=["b" + "ab" * 150, "ab" * 200], at=[], prompt="")
@example(texts=["aéb"], documents=["xéb"], at=[2], prompt="")
def test_it_is_the_longest_wherever_the_corpus_is_cut(
    texts: list[str], documents: list[str], at: list[int], prompt: str
) -> None:
    found = longest_passages([t.encode() for t in texts], cut(documents, at), [prompt.encode()] * len(texts))
    for text, result in zip(texts, found, strict=True):
        new, old = longest(text, documents, prompt)
        passage = shown(text, result.passage)  # `decode` holds that it is whole characters
        assert len(passage.encode()) == new
        if result.passage:
            assert passage in documents[result.passage.documents[0]]
            assert passage not in prompt
        if old > new:
            assert len(shown(text, result.prompted).encode()) == old


@settings(max_examples=40, deadline=None)
@given(
    text=TEXT,
    documents=st.lists(TEXT, max_size=4),
    at=st.lists(st.integers(0, 400), max_size=4),
    least=st.integers(1, 40),
)
@example(text="ab" * 100, documents=["ab" * 60 + "c", "b" + "ab" * 100], at=[50, 51], least=33)
def test_all_passages_are_all_that_cannot_be_made_longer(
    text: str, documents: list[str], at: list[int], least: int
) -> None:
    wanted: dict[tuple[int, int], set[int]] = {}
    for number, document in enumerate(documents):
        for i in range(len(text)):
            for k in range(len(document)):
                if i and k and text[i - 1] == document[k - 1]:
                    continue  # could begin earlier
                n = 0
                while i + n < len(text) and k + n < len(document) and text[i + n] == document[k + n]:
                    n += 1
                if (length := len(text[i : i + n].encode())) >= least:
                    wanted.setdefault((len(text[:i].encode()), length), set()).add(number)
    found = all_passages(text.encode(), cut(documents, at), least)
    assert {(p.start, p.length): set(p.documents) for p in found} == wanted


def test_no_passage_goes_over_the_end_of_a_document() -> None:
    (found,) = longest_passages([b"one two three four"], cut(["zero one two", " three four five"], []))
    assert found == Longest(Passage(7, 11, (1,)))


@pytest.mark.parametrize("size", [8, 9, 15, 16, 17, 33, 64, 129, 257, 300])
def test_a_passage_of_any_length_is_found_in_much_text(size: int) -> None:
    draw = np.random.default_rng(size)
    corpus = draw.integers(97, 123, 200_000).astype(np.uint8)
    text = draw.integers(97, 123, 1_000).astype(np.uint8)
    text[100 : 100 + size] = corpus[150_001 : 150_001 + size]
    text[99], text[100 + size] = b"!!"
    (found,) = longest_passages([text.tobytes()], np.split(corpus, [70_000, 150_010]))
    assert found.passage == Passage(100, size, (0,))
    assert found == longest_passages([text.tobytes()], [corpus])[0]
