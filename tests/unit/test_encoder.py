"""The fast encoder gives tiktoken's tokens or is left aside, and a shard that it gets wrong is not published."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.errors import DataError
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.encoder import CHECK_EVERY, Encoder, encoder
from gptmodel.tokens.shards import build_shards
from tests.unit.test_tokenizer import thorough, tricky_text


def ids(encode: Encoder, text: str, *, check: bool = False) -> list[int]:
    return [int(i) for part in encode.iter_encode(text, check=check) for i in part]


def test_it_is_the_fast_one():
    assert encoder().name.startswith("fastokens ")
    assert encoder("tiktoken").name.startswith("tiktoken ")


@thorough
@given(st.lists(tricky_text, max_size=6).map("".join))
def test_any_text_is_cut_as_tiktoken_cuts_it(text: str):
    assert ids(encoder(), text) == gpt2().encode(text).tolist()


@pytest.mark.parametrize("around", ["x{c} {c}{c}1{c}'s", pytest.param(" {c}\n{c}  {c}!{c}ll", marks=pytest.mark.slow)])
def test_every_character_is_of_the_same_class_to_both(around: str):
    every = (chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    text = "\n\n".join(around.replace("{c}", c) for c in every)
    assert np.array_equal(np.concatenate(list(encoder().iter_encode(text))), gpt2().encode(text))


@pytest.mark.parametrize("run", ["a", " ", "\n", "ab", "1", "!", "漢", "👩‍👩‍👧"])
def test_long_runs(run: str):
    text = run * (400_000 // len(run)) + "x"
    assert np.array_equal(np.concatenate(list(encoder().iter_encode(text))), gpt2().encode(text))


def test_what_is_no_text_is_refused_alike():
    with pytest.raises(DataError, match=r"lone surrogate '\\ud83d'"):
        ids(encoder(), "half a pair: \ud83d")
    with pytest.raises(DataError, match="a run of more than 1,048,576 characters"):
        ids(encoder(), "x" * 1_100_000)


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(3 * CHECK_EVERY):
        (folder / f"{n:03}.txt").write_text(f"Speech {n}. It's the {n}th of them, isn't it?\n" * 3)
    source = SourceConfig(kind="files", paths=(f"{folder}/*.txt",))
    return build_corpus(Store(tmp_path / "store"), CorpusConfig(source=source))[0]


def shards_with(encode: Encoder | None, corpus: Artifact, root: Path, patch: pytest.MonkeyPatch) -> Artifact:
    if encode:
        patch.setattr("gptmodel.tokens.shards.encoder", lambda _: encode)
    return build_shards(Store(root), corpus, ShardsConfig(workers=1))[0]


def test_shards_are_the_same_to_the_byte(corpus: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fast = shards_with(None, corpus, tmp_path / "fast", monkeypatch)
    store = Store(tmp_path / "slow")
    slow, _ = build_shards(store, corpus, ShardsConfig(encoder="tiktoken"))
    assert (fast.digest, fast.fingerprint) == (slow.digest, slow.fingerprint)
    assert build_shards(store, corpus, ShardsConfig())[1], "the encoder is no part of what is asked"


def test_without_the_package_tiktoken_does_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    found = encoder.__wrapped__()
    assert found.name.startswith("tiktoken ")
    assert ids(found, "every effort moves") == [16833, 3626, 6100]


def lying(about: str) -> Callable[[str], Any]:
    """An encoder that gives one more token where a text holds these words."""

    def quick(text: str) -> Any:
        found = gpt2().encode(text).astype(np.uint32)
        return np.append(found, 1) if about in text else found

    return quick


@pytest.mark.parametrize("version_of_it", ["cuts otherwise", "wants other words"])
def test_a_version_that_differs_is_left_aside(
    version_of_it: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import fastokens

    class Other:
        @staticmethod
        def from_json_str(_: str) -> Other:
            if version_of_it == "wants other words":
                raise ValueError("missing field `byte_fallbacks`")
            return Other()

        def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
            return lying("漢字")(texts[0]).astype(np.uint32).tobytes(), b""

    monkeypatch.setattr(fastokens, "Tokenizer", Other)
    with caplog.at_level(logging.WARNING):
        found = encoder.__wrapped__()
    assert found.name.startswith("tiktoken ")
    assert "tiktoken makes" in caplog.text


@pytest.mark.parametrize("number", [0, CHECK_EVERY])
def test_a_wrong_token_where_it_is_looked_at_stops_the_shards(
    number: int, corpus: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []

    def noting(text: str) -> Any:
        order.append(text)
        return gpt2().encode(text)

    shards_with(Encoder(gpt2(), noting), corpus, tmp_path / "order", monkeypatch)
    about = order[number].splitlines()[0]
    wrong = Store(tmp_path / "wrong")
    with pytest.raises(DataError, match=r"document \w+: fastokens .* cut it into different tokens.*shards.encoder=tik"):
        shards_with(Encoder(gpt2(), lying(about)), corpus, wrong.root, monkeypatch)
    assert not list(wrong.directories("shards"))


def test_both_are_asked_only_of_what_is_checked():
    assert ids(Encoder(gpt2(), lying("x")), "x") == [87, 1]
    with pytest.raises(DataError, match="different tokens"):
        ids(Encoder(gpt2(), lying("x")), "x", check=True)
