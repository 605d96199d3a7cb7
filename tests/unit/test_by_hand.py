"""`gptflow tokens`, `next` and `loss`: the numbers that the tutorial walks through."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from flows.__main__ import cli
from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.generate import generate
from gptmodel.judging.by_hand import loss_of, next_choices
from gptmodel.loss import cross_entropy
from gptmodel.model import GPT
from gptmodel.sampling import sample
from gptmodel.store.artifacts import Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.weights import save_model

TEXTS = ("every effort moves you", "I really like chocolate")


@pytest.fixture(scope="module")
def model() -> GPT:
    made = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=16, dropout=0.5), seed=1)
    with torch.no_grad():
        made.wte.weight.mul_(20)  # else all tokens are about equally likely
    return made


def typed(*words: str, text: str = "") -> Result:
    return CliRunner().invoke(cli, list(words), input=text)


def draw_words(draw: torch.Generator, count: int) -> list[str]:
    """Words of one token each."""
    words = ("every", "effort", "you", "like", "chocolate", "moves", "the", "of")
    return [words[i] for i in torch.randint(len(words), (count,), generator=draw).tolist()]


def test_the_loss_is_the_mean_over_the_shifted_targets_of_all_texts(model: GPT) -> None:
    found = loss_of(model.train(), TEXTS)  # dropout is off all the same
    ids = torch.tensor([gpt2().encode(text).tolist() for text in TEXTS])
    assert ids.tolist() == [[16833, 3626, 6100, 345], [40, 1107, 588, 11311]]
    with torch.no_grad():
        logits = model.eval()(ids[:, :-1])
    assert found.loss == pytest.approx(cross_entropy(logits, ids[:, 1:]).item(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert [[each.after for each in row] for row in found.predictions] == ids[:, :-1].tolist()
    assert [[each.target for each in row] for row in found.predictions] == ids[:, 1:].tolist()
    products = math.prod(each.probability for row in found.predictions for each in row)
    assert math.log(products) / 6 == pytest.approx(found.mean_log_probability)


def test_texts_that_make_no_prediction_or_do_not_fit_are_refused(model: GPT) -> None:
    assert len(loss_of(model, [" you" * 17]).predictions[0]) == 16
    with pytest.raises(DataError, match="18 tokens and the model reads 16"):
        loss_of(model, [" you" * 18])
    for text, said in (("every", "has 1 token; give two"), ("", "has 0 tokens; give two")):
        with pytest.raises(ConfigError, match=said):
            loss_of(model, [text])
    with pytest.raises(ConfigError, match="the model knows 100 tokens"):
        loss_of(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=100), seed=1), TEXTS)


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(temperature=0.0),
        DecodingConfig(temperature=0.7, top_k=3),
        DecodingConfig(top_p=0.6),
    ],
)
def test_next_shows_what_is_drawn(model: GPT, decoding: DecodingConfig) -> None:
    found, kept = next_choices(model, TEXTS[0], decoding)
    assert [c.logit for c in found] == sorted((c.logit for c in found), reverse=True)
    assert math.fsum(c.probability for c in found) == pytest.approx(1)
    assert math.fsum(c.drawn_with for c in found) == pytest.approx(1)
    assert kept == sum(c.drawn_with > 0 for c in found)
    shares = {c.token: c.drawn_with for c in found}
    with torch.no_grad():
        logits = model.eval()(torch.tensor([gpt2().encode(TEXTS[0]).tolist()]))[0, -1]
    generator = torch.Generator().manual_seed(1)
    drawn = [sample(logits, decoding, generator) for _ in range(200)]
    assert all(shares[token] > 0 for token in drawn)
    likeliest = max(shares, key=lambda token: shares[token])
    share = drawn.count(likeliest) / 200
    assert abs(share - shares[likeliest]) < 4 * math.sqrt(0.25 / 200)


@pytest.mark.parametrize("n_tokens", [8, 16, 17, 30])
def test_next_reads_what_generate_reads(n_tokens: int) -> None:
    """Beyond the context of 16 too, where writing keeps the last 8 tokens."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=16), seed=1)
    with torch.no_grad():
        model.wpe.weight.mul_(20)  # else the place of a token matters little
    draw = torch.Generator().manual_seed(n_tokens)
    for _ in range(5):
        text = "".join(f" {word}" for word in draw_words(draw, n_tokens))
        ids = gpt2().encode(text).tolist()
        assert len(ids) == n_tokens
        greedy = DecodingConfig(temperature=0.0, max_new_tokens=1)
        assert next_choices(model, text, greedy)[0][0].token == generate(model, ids, decoding=greedy)[0]


def test_a_penalty_takes_from_tokens_that_were_read(model: GPT) -> None:
    plain, bent = (
        {c.token: c.drawn_with for c in next_choices(model, TEXTS[0], DecodingConfig(repetition_penalty=p))[0]}
        for p in (1.0, 2.0)
    )
    read = gpt2().encode(TEXTS[0]).tolist()
    assert all(bent[token] < plain[token] for token in read)


def test_tokens_go_both_ways() -> None:
    assert json.loads(typed("tokens", "--json", TEXTS[0]).stdout)["ids"] == [16833, 3626, 6100, 345]
    assert typed("tokens", text="every effort\n").stdout.splitlines()[1:] == [
        " 16833  every   ",
        "  3626  ␣effort ",
        "2 tokens, 12 bytes",
    ]
    assert typed("tokens", "--ids", "[16833, 3626, 6100]").stdout == "every effort moves\n"


def test_a_text_beside_ids_is_refused() -> None:
    assert str(typed("tokens", "--ids", "5", "text").exception) == "give TEXT or --ids, not both"


@pytest.mark.parametrize("word", ["x", "²", "-1", "9" * 5000])
def test_what_is_no_token_id_is_told(word: str) -> None:
    error = typed("tokens", "--ids", f"3 {word}").exception
    assert isinstance(error, ConfigError)
    assert f"{word[:20]!r}, which is no token id" in str(error)


@pytest.mark.parametrize(
    "command",
    [
        *("tokens", "next", "loss", "surprise", "overlap", "generate", "generate x --stop"),
        *("trace --containing", "trace --document", "run --set", "plan --set", "check-data --set"),
    ],
)
def test_a_text_that_is_not_utf8_is_refused(command: str) -> None:
    done = typed(*command.split(), "caf\udce9")  # as Python hands on the byte E9
    assert isinstance(done.exception, ConfigError)
    assert "is not UTF-8 at byte 3; convert it first" in str(done.exception)
    assert not done.stdout


def test_the_commands_read_a_model_of_the_store_and_one_before_training(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(directory: Path) -> dict[str, Any]:
        save_model(model, directory)
        return {}

    made, _ = Store(tmp_path / "store").produce(Request("checkpoint", 1, {}), build)
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    told = json.loads(typed("loss", "--json", *TEXTS).stdout)
    assert told["model"] == made.label
    assert told["loss"] == pytest.approx(loss_of(model, TEXTS).loss)
    best = json.loads(typed("next", "--json", "--show", "2", TEXTS[0]).stdout)
    assert [c["token"] for c in best["choices"]] == [
        c.token for c in next_choices(model, TEXTS[0], DecodingConfig())[0][:2]
    ]
    assert json.loads(typed("loss", "--json", "-", TEXTS[1], text=f"{TEXTS[0]}\n").stdout) == told
    assert "give one `-`" in str(typed("loss", "-", "-", text="a text").exception)
    for words in ((), ("-",)):
        assert json.loads(typed("generate", "--json", *words, text="one\n\n").stdout)["prompt"] == "one\n"
    (tmp_path / "afile").touch()
    assert str(typed("pictures", "--out", "afile/x").exception).endswith("; set --out to another place")
    fresh = json.loads(typed("loss", "--json", "--untrained", "smoke", *TEXTS).stdout)
    assert fresh["model"] == "smoke before training"
    assert fresh["loss"] == pytest.approx(math.log(50_257), abs=0.5), "it knows nothing"
    greedy = ("--temperature", "0", "--max-new-tokens", "1", "--json")
    written = json.loads(typed("generate", "--untrained", "smoke", *greedy, TEXTS[0]).stdout)["text"]
    first = json.loads(typed("next", "--untrained", "smoke", "--json", TEXTS[0]).stdout)["choices"][0]
    assert gpt2().encode(written).tolist() == [first["token"]]
    assert "leave one out" in str(typed("loss", "--untrained", "smoke", "--model", "x", *TEXTS).exception)


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////nope/x.db"])
def test_a_version_whose_registry_cannot_be_asked_says_so(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = str(typed("generate", "--model", "smoke/1", "hi").exception)
    assert "MLflow could not be asked" in said
    assert uri in said
