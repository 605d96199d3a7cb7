"""The surprisal map: losses as worked out by hand, every character in its place, and no text that becomes code."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from flows.commands.surprise import surprise
from gptmodel.config import ModelConfig
from gptmodel.errors import ConfigError, DataError, StorageError
from gptmodel.judging.pieces import label_of, pieces, whole
from gptmodel.judging.surprisal import as_json, from_json, read_documents, read_text, read_tokens
from gptmodel.model import GPT
from gptmodel.pages.surprisal import DARK, INK_ON_DARK, INK_ON_LIGHT, LIGHT, surprisal_page
from gptmodel.store.artifacts import Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.weights import save_model
from tests.unit.test_evaluation import stream_of

TEXTS = [
    "Plain words,\n\n  two spaces\tand a tab.\r\n",
    "naïve café €5 😀 👨‍👩‍👧 日本語のテキスト 한국어 شكرا",
    "Zero\u200bwidth \x00 \x1b[2J \u202eabc\u202c nbsp\u00a0x \U000e0067 \ue000",
    "</script><script>alert(1)</script> & \"quotes\" 'x' <!-- ]]> &lt; </div></body>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8), seed=3).eval()


def test_each_token_is_scored_once_from_the_end_token_on_and_in_windows_that_overlap(model: GPT) -> None:
    ids = gpt2().encode("The harbour keeps its own books, and the old river follows the long road. So").tolist()
    found = read_tokens(model, ids)
    read = [50_256, *ids]
    assert len(ids) == 17
    starts = {n: max(0, 4 * ((n - 8) // 4 + 1)) if n >= 8 else 0 for n in range(len(ids))}  # half of 8 at a time
    for n, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([read[starts[n] : n + 1]]))[0, -1].double()
        assert n + 1 - starts[n] <= 8
        probabilities = torch.softmax(logits, -1)
        assert found.nats[n] == pytest.approx(-math.log(probabilities[token]), abs=1e-4)
        assert found.ranks[n] == pytest.approx(int((logits >= logits[token]).sum()), abs=1), "but for rounding"
        likeliest, p = found.candidates[n][0]
        assert (likeliest, p) == (int(logits.argmax()), pytest.approx(float(probabilities.max()), rel=1e-3))
    assert len(found.nats) == len(found.ranks) == len(found.candidates) == len(ids)
    figures = found.figures
    assert figures.loss == pytest.approx(sum(found.nats) / 17)
    assert figures.perplexity == pytest.approx(math.exp(figures.loss))
    assert figures.bits_per_byte == pytest.approx(sum(found.nats) / math.log(2) / 76)


def test_what_the_model_would_write_itself_is_its_first_guess() -> None:
    loud = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8), seed=3).eval()
    with torch.no_grad():
        loud.wte.weight.mul_(20)  # no two logits are next to each other then
        written = [50_256]
        while len(written) < 8:
            written.append(int(loud(torch.tensor([written]))[0, -1].argmax()))
    found = read_tokens(loud, written[1:])
    assert found.ranks == [1] * 7
    assert [row[0][0] for row in found.candidates] == written[1:]
    other = read_tokens(loud, [*written[1:7], found.candidates[6][1][0]])
    assert other.ranks == [1] * 6 + [2]
    assert other.figures.accuracy == pytest.approx(6 / 7)


def test_ids_of_a_padded_table_are_no_candidates() -> None:
    padded = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=50_304), seed=1).eval()
    with torch.no_grad():
        padded.wte.weight[50_257:] *= 100  # some of them are then likelier than any token
        logits = padded(torch.tensor([[50_256]]))[0, -1]
        assert int(logits.argmax()) >= 50_257
    found = read_tokens(padded, [int(logits[:50_257].argmax())])
    assert found.ranks == [1]
    assert found.candidates[0][0][0] == found.tokens[0]
    assert max(token for token, _ in found.candidates[0]) < 50_257
    share = float(logits.double().softmax(-1)[found.tokens[0]])
    assert found.candidates[0][0][1] == pytest.approx(share, rel=1e-3), "what they hold is lost all the same"


def test_documents_are_the_same_for_every_model_and_cut_at_characters(model: GPT) -> None:
    smile = gpt2().encode("well 😀").tolist()
    stream = stream_of([5, 50_256], *([n, n + 1, 50_256] for n in range(9)), [*smile, 50_256])
    found = read_documents(model, stream, {"d5": "five.txt"}, passages=3, max_tokens=2)
    assert [passage.document for passage in found] == ["d0", "d5", "d10"]
    assert [passage.tokens for passage in found] == [[5, 50_256], [4, 5], smile[:1]], "no half characters"
    assert [passage.source for passage in found] == ["", "five.txt", ""]
    assert [passage.is_cut for passage in found] == [False, True, True]
    assert len(read_documents(model, stream, {"d5": "five.txt"}, passages=1, max_tokens=9)) == 1
    assert read_documents(model, stream, {"d5": "five.txt"}, passages=0, max_tokens=9) == []
    assert read_documents(model, stream_of(), {}, passages=2, max_tokens=9) == []


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_pieces_are_the_text_and_hold_each_token_once(text: str) -> None:
    tokens = [*gpt2().encode(text).tolist(), 50_256]
    found = pieces(tokens)
    assert "".join(piece.text for piece in found) == text
    assert [n for piece in found for n in range(piece.first, piece.first + piece.count)] == [*range(len(tokens))]
    assert found[-1].text == ""
    assert "\N{REPLACEMENT CHARACTER}" not in {piece.text for piece in found}


def test_a_text_that_ends_within_a_character_is_cut_before_it() -> None:
    tokens = gpt2().encode("well 😀").tolist()
    assert len(tokens) == 3
    assert whole(tokens) == tokens
    assert whole(tokens[:2]) == tokens[:1]
    assert [piece.text for piece in pieces(tokens[:2])] == ["well", " \N{REPLACEMENT CHARACTER}"]
    assert [label_of(t) for t in (*tokens, 628, 50_256)] == [
        "well",
        "bytes 20 F0 9F 98",
        "bytes 80",
        "↵↵",
        "end of text",
    ]


class Reader(HTMLParser):
    """What a browser would see: tags with their attributes, the tiles' text, and what scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.tiles: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        is_tile = tag == "span" and (dict(attrs).get("class") or "").startswith("t ")
        self._open.append("tile" if is_tile else tag)
        self.tiles += [""] if is_tile else []
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["tile"]:
            self.tiles[-1] += data
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_page_holds_the_text_as_text(model: GPT, text: str) -> None:
    plain = Reader(surprisal_page([read_text(model, "Plain words\n€")], "m", "d"))
    page = surprisal_page([replace(read_text(model, text), document=text, source=text)], text, text)
    found = Reader(page)
    assert set(found.tags) <= {*plain.tags}
    assert found.attributes <= plain.attributes
    assert not {a for a in found.attributes if a.startswith("on")} | (found.attributes & {"src", "href"})
    seen = "".join(found.tiles)
    assert seen == "".join(c for c in text if c.isprintable() or c in "\n\t\u00a0\u200d"), "what is not seen is named"
    assert not re.search("[\x00\x1b\u202e\u200b]", seen)

    data, script = found.scripts
    told = json.loads(data)
    ids = [token[1] for passage in told for piece in passage for token in piece]
    assert ids == gpt2().encode(text).tolist()
    assert len(told[0]) == len(found.tiles), "the script finds a tile's figures by its number"
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert f"content=\"{allowed}; script-src 'sha256-{seal}'\">" in page


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize(("colours", "inks"), [(LIGHT, INK_ON_LIGHT), (DARK, INK_ON_DARK)])
def test_colours_keep_their_order_without_hue_and_text_can_be_read(colours: Any, inks: Any) -> None:
    steps = [luminance(colour) for colour in colours]
    assert steps in (sorted(steps), sorted(steps, reverse=True))
    assert all(abs(b - a) > 0.15 * min(a, b) for a, b in pairwise(steps))
    for colour, ink in zip(steps, map(luminance, inks), strict=True):
        assert (max(colour, ink) + 0.05) / (min(colour, ink) + 0.05) >= 4.5


def test_passages_survive_their_file(model: GPT, tmp_path: Path) -> None:
    found = [read_text(model, text) for text in TEXTS[:2]]
    (tmp_path / "p.json").write_text(as_json(found))
    assert from_json(tmp_path / "p.json") == found
    (tmp_path / "p.json").write_text(as_json(found).replace('"ranks":[', '"ranks":[1,', 1))
    with pytest.raises(DataError, match="lists of different lengths"):
        from_json(tmp_path / "p.json")


def test_what_cannot_be_scored_is_said(model: GPT) -> None:
    with pytest.raises(ConfigError, match="the text is empty"):
        read_text(model, "")
    with pytest.raises(DataError, match="lone surrogate"):
        read_text(model, "\udcff")
    small = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=100), seed=1)
    with pytest.raises(ConfigError, match="the model knows 100 tokens and GPT-2's vocabulary has 50,257"):
        read_text(small, "text")


@pytest.fixture
def in_a_store(model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def build(directory: Path) -> dict[str, object]:
        save_model(model, directory)
        return {}

    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store").produce(Request("weights", 1, {}, ()), build)[0].label


def test_the_command_writes_a_page_of_a_text_or_of_standard_input(in_a_store: str, tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(surprise, ["--model", in_a_store, "The old river"])
    assert done.exit_code == 0, done.output
    assert re.match(r"3 tokens, mean loss \d+\.\d{4} nats \(\d+\.\d{4} bits\), perplexity [\d,]+\.\d\n", done.output)
    page = (tmp_path / "surprisal.html").read_text()
    assert "".join(Reader(page).tiles) == "The old river"
    told = json.loads(run.invoke(surprise, ["--model", in_a_store, "--json"], input=b"The old river\n").stdout)
    assert told["model"] == in_a_store
    assert told["perplexity"] == pytest.approx(math.exp(told["loss"]))
    assert len(told["passage"]["candidates"]) == told["tokens"] == 3
    cut = run.invoke(surprise, ["--model", in_a_store, "--max-tokens", "2", "--out", "b.html", "The old river"])
    assert "(the first 2 tokens; --max-tokens 0 takes all)" in cut.output
    assert "the text goes on" in (tmp_path / "b.html").read_text()
    lost = run.invoke(surprise, ["--model", in_a_store, "--out", "no/where.html", "The old river"])
    assert isinstance(lost.exception, StorageError)
    assert str(lost.exception) == "cannot write no/where.html: no such file or directory; name another place"
