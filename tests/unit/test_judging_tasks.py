"""What standard tasks ask of a model, without the harness: likelihoods, writing up to a stop, and our own items."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.generate import generate
from gptmodel.judging.benchmark import check_installed, figures_of, portable
from gptmodel.judging.likelihood import Continuation, Likelihood, score_continuations
from gptmodel.judging.speech_items import continuation_items, held_out, last_word_items, rolling_items, sentences
from gptmodel.judging.until import cut_before, decoding_of, write_until
from gptmodel.lineage.walk import Lineage
from gptmodel.model import GPT
from gptmodel.pages.card_facts import facts_of
from gptmodel.pages.card_sections import evaluation as evaluation_section
from gptmodel.reproduction.sides import side_of
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from gptmodel.tokenizer import END_TOKEN, gpt2
from gptmodel.upkeep.collection import Rules, plan
from gptmodel.upkeep.nodes import with_evaluations

CONTEXT = 16


@pytest.fixture(scope="module")
def model() -> GPT:
    """Small, and sure of what it says: its logits are far from flat."""
    gpt = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=CONTEXT), seed=5).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(8)
    return gpt


def plainly(model: GPT, wanted: Continuation) -> Likelihood:
    """By the definition: one row, all logits, no sharing."""
    read = [*wanted.context, *wanted.ids][:-1][-CONTEXT:]
    with torch.no_grad():
        log_probs = functional.log_softmax(model(torch.tensor([read]))[0].double(), dim=-1)[-len(wanted.ids) :]
    greedy = log_probs.argmax(1).tolist() == list(wanted.ids)
    return Likelihood(sum(float(log_probs[n, token]) for n, token in enumerate(wanted.ids)), greedy)


def ids(draw: random.Random, n: int) -> tuple[int, ...]:
    return tuple(draw.randrange(50_257) for _ in range(n))


def test_each_continuation_is_scored_as_if_it_were_alone(model: GPT) -> None:
    draw = random.Random(1)
    shared = ids(draw, 6)
    wanted = [
        Continuation(ids(draw, draw.choice([1, 3, 9, 30])), ids(draw, draw.choice([1, 2, 7, 16]))) for _ in "a" * 12
    ]
    wanted += [Continuation(shared, ids(draw, 1)) for _ in "abc"]  # choices of one token
    wanted += [Continuation(shared[:3], (*shared[3:], 7)), Continuation(shared, (7,))]  # read alike, scored differently
    wanted += [
        Continuation(shared, tuple(generate(model, shared, decoding=DecodingConfig(temperature=0, max_new_tokens=4))))
    ]
    for batch_size in (1, 5, 100):
        found = score_continuations(model, wanted, batch_size=batch_size)
        for got, one in zip(found, wanted, strict=True):
            right = plainly(model, one)
            assert math.isclose(got.log_probability, right.log_probability, rel_tol=1e-6, abs_tol=1e-4)
            assert got.greedy is right.greedy
        assert found[-1].greedy
        assert not found[0].greedy


def test_greedy_is_what_is_written_greedily_to_its_last_token(model: GPT) -> None:
    written = [5, 6]
    with torch.no_grad():
        for _ in range(3):
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
    context, greedy = tuple(written[:2]), tuple(written[2:])
    other = (greedy[-1] + 1) % model.config.vocab_size
    wanted = [Continuation(context, ids) for ids in (greedy, (*greedy[:2], other), (other, *greedy[1:]))]
    assert [found.greedy for found in score_continuations(model, wanted, batch_size=2)] == [True, False, False]


def test_choices_that_are_read_alike_are_read_once(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    hidden = GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda self, ids_BT: (rows.append(len(ids_BT)), hidden(self, ids_BT))[1])
    score_continuations(model, [Continuation((1, 2), (token,)) for token in range(8)], batch_size=3)
    assert rows == [1]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Continuation((1,), ()), "a continuation without tokens"),
        (Continuation((), (1,)), "a context without tokens"),
        (Continuation((1,), (2,) * (CONTEXT + 1)), "a continuation of 17 tokens, and the model reads 16"),
    ],
)
def test_what_cannot_be_scored_whole_is_refused(model: GPT, wanted: Continuation, said: str) -> None:
    with pytest.raises(DataError, match=said):
        score_continuations(model, [wanted], batch_size=1)


def test_it_writes_what_greedy_decoding_writes_up_to_the_stop(model: GPT) -> None:
    greedy = decoding_of({"max_gen_toks": 6, "do_sample": False}, seed=0)
    prompts = [list(ids(random.Random(n), n)) for n in (1, 5, 40)]
    whole = [gpt2().decode(generate(model, prompt[-10:], decoding=greedy)) for prompt in prompts]
    assert write_until(model, prompts, greedy, [], batch_size=2) == whole
    stop = whole[1][3:6]
    expected = [text.split(stop)[0] for text in whole]
    assert write_until(model, prompts, greedy, ["", stop], batch_size=3) == expected
    assert expected != whole


def test_the_end_token_stops_and_is_not_written(model: GPT) -> None:
    ends = GPT(model.config, seed=5).eval()
    with torch.no_grad():
        for parameter in ends.parameters():
            parameter.zero_()
        ends.ln_f.bias.fill_(1.0)
        ends.wte.weight[END_TOKEN] = 1.0  # the likeliest, whatever stands before
    assert write_until(ends, [[1], [2, 3]], decoding_of({"max_gen_toks": 4}, 0), [], batch_size=2) == ["", ""]


def test_what_is_sampled_does_not_depend_on_batches_but_on_the_row(model: GPT) -> None:
    sampled = decoding_of({"max_gen_toks": 6, "do_sample": True, "temperature": 3.0, "top_k": 0}, seed=3)
    one = write_until(model, [[7]] * 5, sampled, [], batch_size=1)
    assert write_until(model, [[7]] * 5, sampled, [], batch_size=4) == one
    assert len(set(one)) > 1


def test_generation_settings_are_read_as_transformers_reads_them() -> None:
    asked = {"max_gen_toks": 9, "until": ["x"], "num_beams": 1}
    assert decoding_of({**asked, "do_sample": False, "temperature": 0.0, "top_p": 0.5}, 0) == DecodingConfig(
        max_new_tokens=9, temperature=0.0
    )
    sampled = {**asked, "do_sample": True, "temperature": 0.7}
    assert decoding_of(sampled, 4) == DecodingConfig(max_new_tokens=9, temperature=0.7, top_k=50, seed=4)
    assert decoding_of({**sampled, "top_k": 5, "top_p": 0.9}, 4).top_k == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_beams": 4}, "decode with num_beams=4"),
        ({"do_sample": True}, "gives no temperature"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 7.0}, "top_p is 7.0"),
    ],
)
def test_settings_that_are_not_followed_are_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        decoding_of({"max_gen_toks": 4, **asked}, 0)


def test_a_prompt_must_have_room(model: GPT) -> None:
    with pytest.raises(DataError, match=r"asks for 16 new tokens.*max_gen_toks=8"):
        write_until(model, [[1]], decoding_of({"max_gen_toks": CONTEXT}, 0), [], batch_size=1)


def test_text_is_cut_before_the_first_stop() -> None:
    assert cut_before("one, two. three", [".", ","]) == "one"
    assert cut_before("one", ["", "x"]) == "one"


def test_our_items_are_of_addresses_that_the_quickstart_does_not_train_on() -> None:
    texts = dict(held_out())
    assert len(texts) == 35
    items = continuation_items()
    assert len(items) > 200
    for item in items:
        text = " ".join(texts[item["speech"]].split())
        assert f"{item['context']} {item['choices'][item['label']]}" in text
        others = [choice for place, choice in enumerate(item["choices"]) if place != item["label"]]
        assert len({*others}) == 3
        assert not any(choice in text for choice in others)
    assert {sum(item["label"] == label for item in items) for label in range(4)} == {len(items) // 4}
    for item in last_word_items():
        assert item["word"] in item["context"]
        assert f"{item['context']} {item['word']}" in " ".join(texts[item["speech"]].split())
    assert all(item["text"] == texts[item["speech"]][: len(item["text"])] for item in rolling_items())


def test_sentences_end_before_a_capital() -> None:
    assert sentences("It is so. Is it? “Yes,” he said. 3 more! Then e.g. this.") == [
        "It is so.",
        "Is it?",
        "“Yes,” he said. 3 more!",
        "Then e.g. this.",
    ]


def test_figures_keep_the_harness_names_and_its_errors() -> None:
    results = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.2, "f1_stderr,strict": "N/A"}
        },
        "groups": {"g": {"acc,none": float("nan")}},
        "versions": {"a": 2.0},
        "n-shot": {"a": 3},
    }
    first, second = figures_of(results, {"a": {"n": 7}})
    assert first == {"task": "a", "version": 2.0, "fewshot": 3, "n": 7, "metric": "acc", "value": 0.5, "stderr": 0.1}
    assert (second["metric"], second["value"], second["stderr"]) == ("f1 (strict)", 0.2, None)


def test_where_a_task_lies_is_no_part_of_what_was_asked() -> None:
    told = {"task": "a", "dataset_kwargs": {"data_files": "/here/a.jsonl"}, "output_type": "multiple_choice"}
    told |= {"metadata": {"version": 1.0, "config_source": "/here/a.yaml"}}
    wanted = {"task": "a", "output_type": "multiple_choice", "metadata": {"version": 1.0}}
    assert portable(told) == wanted
    assert "dataset_kwargs" in told, "the task itself keeps it"
    assert portable({"task": "a", "metadata": None}) == {"task": "a", "metadata": None}


def test_a_benchmark_hangs_on_its_model(tmp_path: Path) -> None:
    """In lineage, verification, collection, card and diff, as an evaluation does."""
    store = Store(tmp_path / "store")

    def make(kind: str, name: str, summary: dict[str, Any], *inputs: Ref, **config: Any) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            (directory / "data").write_text(name)
            return summary

        return store.produce(Request(kind, 1, {"name": name, **config}, inputs), build)[0]

    row = {"task": "hellaswag", "version": 1.0, "fewshot": 5, "n": 9, "metric": "acc", "value": 0.25, "stderr": 0.125}
    told = {"harness": "lm-eval 0.4.13", "tasks": ["hellaswag"], "limit": 9, "figures": [row]}
    asked = {"fewshot": 5, "limit": 9, "gen_kwargs": ""}
    corpus = make("corpus", "c", {})
    models = [make("checkpoint", name, {"step": 1}, corpus.ref) for name in "ab"]
    first, second = (make("benchmark", model.path.name, told, model.ref, **asked) for model in models)
    assert first.label in {node.id for node in Lineage(store).around(models[0].ref).nodes}
    assert second.label not in {node.id for node in Lineage(store).around(models[0].ref).nodes}
    assert set(with_evaluations(store, models[0].path)) == {models[0].path, first.path}
    found = plan(store, Rules(keep_days=0, keep_newest=0), {models[0].path.name: "registered"})
    assert found.kept[first.label] == f"judges {models[0].label}"
    assert second.label in {item.label for item in found.doomed}
    card = evaluation_section(facts_of(store, models[0]))
    assert "| hellaswag 5-shot first 9 | acc | 0.2500 | 0.1250 | lm-eval 0.4.13 |" in card
    assert side_of(store, models[0]).results["benchmark.hellaswag 5-shot first 9.acc"] == 0.25


def test_without_the_harness_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"lm-eval is not installed; install it: .*pip install 'lm-eval>=0.4.13,<0.5'"
    ):
        check_installed()
