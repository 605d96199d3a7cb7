"""Two things beside each other: what differs is found, to the bit, and what does not is not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.commands.compare import diff
from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.errors import GptflowError
from gptmodel.lineage.differences import beside, changes, curve_of, first_difference, provenance_changes, sparklines
from gptmodel.pretraining.step import RECIPE_VERSION, run_dir_of
from gptmodel.reproduction.comparing import compare
from gptmodel.reproduction.sides import count_documents, side_of, side_of_run, unfinished_run
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards

CURVE = [{"step": step, "tokens": 128 * step, "metrics": {"train/loss": 5.0 - step / 10}} for step in range(1, 13)]


def corpus_of(store: Store, folder: Path, texts: dict[str, str], split_key: str = "a") -> Artifact:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    source = SourceConfig(kind="files", paths=(f"{folder}/*.txt",))
    return build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3, split_key=split_key))[0]


def texts(count: int) -> dict[str, str]:
    return {f"{n:02d}.txt": f"Document {n} is of {'many ' * n} words." for n in range(count)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def pair(store: Store, tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Shards of two corpora: in the second 03 is changed, 05 gone and 12 new."""
    second = texts(13) | {"03.txt": "Written anew."}
    del second["05.txt"]
    corpora = corpus_of(store, tmp_path / "a", texts(12)), corpus_of(store, tmp_path / "b", second)
    made = [build_shards(store, corpus, ShardsConfig(workers=1))[0] for corpus in corpora]
    return made[0], made[1]


def checkpoint(
    store: Store, shards: Artifact, seed: int, lines: list[dict[str, Any]], machine: dict[str, str] | None = None
) -> Artifact:
    """A checkpoint with a curve and no weights: what a comparison reads of one."""
    asked = {"model": {"n_layer": 1}, "train": {"seed": seed, "optimizer": {"eps": 1e-8}}}

    def build(directory: Path) -> dict[str, Any]:
        (directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        told = {"threads": "1", "peak_flops": str(seed), **(machine or {})}
        return {"train_loss": lines[-1]["metrics"]["train/loss"], "step": lines[-1]["step"], "machine": told}

    return store.produce(Request("checkpoint", RECIPE_VERSION, asked, (shards.ref,)), build)[0]


def with_one_bit_from(step: int) -> list[dict[str, Any]]:
    changed = []
    for line in CURVE:
        loss = line["metrics"]["train/loss"]
        loss = math.nextafter(loss, 9) if line["step"] >= step else loss
        changed.append({**line, "metrics": {"train/loss": loss}})
    return changed


def test_one_bit_of_a_loss_is_found_at_its_step() -> None:
    first = first_difference(curve_of(CURVE), curve_of(with_one_bit_from(7)))
    assert first is not None
    assert (first.step, first.metric) == (7, "train/loss")
    assert first.a_hex != first.b_hex
    assert float.fromhex(first.b_hex) == first.b
    assert first_difference(curve_of(CURVE), curve_of(CURVE)) is None


def test_a_setting_that_came_later_differs_only_where_it_was_set(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    def trained(sample: dict[str, Any], step: int) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            (directory / "curve.jsonl").write_text(json.dumps({**CURVE[0], "step": step}) + "\n")
            return {"step": step}

        asked = {"model": {}, "train": {"max_steps": 1, "sample": sample}}
        return store.produce(Request("checkpoint", RECIPE_VERSION, asked, (pair[0].ref,)), build)[0]

    earlier, at_default, changed = (
        side_of(store, trained(s, n)) for n, s in enumerate(({}, {"min_p": 0.0}, {"min_p": 0.2}))
    )
    assert compare(earlier, at_default).config == []
    assert [(c.name, c.a, c.b) for c in compare(earlier, changed).config] == [("train.sample.min_p", 0.0, 0.2)]


def test_a_loss_goes_before_other_figures_and_what_is_not_a_number_is_itself() -> None:
    a = {1: {"train/loss": math.nan, "train/grad_norm": 1.0}, 2: {"train/loss": 4.0, "train/grad_norm": 1.0}}
    b = {1: {"train/loss": math.nan, "train/grad_norm": 2.0}, 2: {"train/loss": 4.5, "train/grad_norm": 1.0}}
    first = first_difference(a, b)
    assert first is not None
    assert (first.step, first.metric) == (2, "train/loss")
    b[2]["train/loss"] = 4.0
    first = first_difference(a, b)
    assert first is not None
    assert (first.step, first.metric) == (1, "train/grad_norm")


def test_a_missing_step_differs_only_where_all_must_be_there() -> None:
    cut = {step: figures for step, figures in curve_of(CURVE).items() if step < 10}
    assert first_difference(curve_of(CURVE), cut) is None
    first = first_difference(curve_of(CURVE), cut, whole=True)
    assert first is not None
    assert (first.step, first.b) == (10, None)


def test_rows_are_of_steps_that_both_have_with_the_first_and_the_last() -> None:
    rows = beside(
        {s: {"train/loss": 1.0} for s in range(0, 201, 2)}, {s: {"train/loss": 2.0} for s in range(0, 300, 3)}
    )
    steps = [row.step for row in rows]
    assert (len(steps), steps[0], steps[-1]) == (10, 0, 198)
    assert all(step % 6 == 0 for step in steps)
    assert {(row.train_a, row.train_b) for row in rows} == {(1.0, 2.0)}


def test_sparklines_share_one_scale() -> None:
    lines = sparklines({s: {"train/loss": 9.0 - s} for s in range(8)}, {s: {"train/loss": 2.0} for s in range(4)})
    assert lines == ("█▇▆▅▄▃▂▁", "▁▁▁▁    ")


def test_names_of_tomorrow_are_compared_too() -> None:
    a = {
        "git_commit": "1",
        "threads": 1,
        "started": "now",
        "versions": {"torch": "2.11"},
        "machine": {"peak_flops": "1"},
    }
    b = a | {"git_commit": "2", "started": "later", "versions": {"torch": "2.12"}, "machine": {"peak_flops": "2"}}
    code, environment = provenance_changes(a, b | {"code_colour": "red", "humidity": 4})
    assert [(c.name, c.a, c.b) for c in code] == [("code_colour", None, "red"), ("git_commit", "1", "2")]
    assert [(c.name, c.a, c.b) for c in environment] == [("humidity", None, 4), ("versions.torch", "2.11", "2.12")]
    assert changes({"x": [1]}, {"x": (1,)}) == []


def test_documents_are_told_by_what_they_hold(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    found = compare(side_of(store, pair[0]), side_of(store, pair[1]))
    assert found.documents is not None
    assert [row["source"] for row in found.documents.added.first] == ["03.txt", "12.txt"]
    assert [row["source"] for row in found.documents.removed.first] == ["03.txt", "05.txt"]
    assert found.documents.added.bytes == len("Written anew.") + len(texts(13)["12.txt"])
    assert (found.documents.changed, found.documents.same, found.documents.moved.documents) == (1, 10, 0)
    assert {change.name for change in found.digests} == {"corpus", "shards"}
    assert not found.same


def test_documents_on_another_side_of_the_split(store: Store, tmp_path: Path) -> None:
    one, other = corpus_of(store, tmp_path / "a", texts(40)), corpus_of(store, tmp_path / "b", texts(40), split_key="b")
    found = compare(side_of(store, one), side_of(store, other))
    assert found.documents is not None
    moved = found.documents.moved
    assert 5 < moved.documents < 30
    assert found.documents.added.documents == found.documents.removed.documents == 0
    assert [(c.name, c.a, c.b) for c in found.config] == [("corpus.split_key", "a", "b")]
    assert count_documents(one, other) == (0, 0, moved.documents)


def test_counts_alone_are_those_of_the_listing(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    one, other = (store.input_of(shards, "corpus") for shards in pair)
    assert count_documents(one, other) == (2, 2, 0)
    assert count_documents(one, one) == (0, 0, 0)


def test_the_same_is_the_same(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    found = compare(side_of(store, pair[0]), side_of(store, pair[0]))
    assert found.same
    assert [found.digests, found.config, found.code, found.environment, found.notes] == [[]] * 5
    assert found.documents is None


def test_where_corpora_are_gone_the_shards_still_name_documents(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    before = compare(side_of(store, pair[0]), side_of(store, pair[1])).documents
    shutil.rmtree(store.root / "corpus")
    found = compare(side_of(store, pair[0]), side_of(store, pair[1]))
    assert found.documents is not None
    assert before is not None
    assert {row["id"] for row in found.documents.added.first} == {row["id"] for row in before.added.first}
    assert sum("is not there any more" in note for note in found.notes) == 2
    assert "by the ids in the shards" in found.notes[-1]


def test_two_runs_beside_each_other(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    a = checkpoint(store, pair[0], 1, CURVE)
    b = checkpoint(store, pair[1], 2, with_one_bit_from(7), {"threads": "2"})
    found = compare(side_of(store, a, "one"), side_of(store, b))
    assert (found.a, found.b) == ("one", b.label)
    assert [(c.name, c.a, c.b) for c in found.config] == [("train.seed", 1, 2)]
    assert [(c.name, c.a, c.b) for c in found.environment] == [("machine.threads", "1", "2")]
    assert {c.name for c in found.digests} == {"corpus", "shards", "checkpoint"}
    assert found.first_difference is not None
    assert found.first_difference.step == 7
    assert [(c.name, c.a) for c in found.results] == [("step", 12), ("train_loss", 3.8)]
    shutil.rmtree(pair[1].path)
    found = compare(side_of(store, a), side_of(store, b))
    assert found.documents is None
    assert found.notes[-1] == "the data of one side is gone: documents cannot be compared"
    assert found.first_difference is not None


def test_a_run_that_published_nothing_is_compared_by_its_log(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    a = checkpoint(store, pair[0], 1, CURVE)
    run_dir = run_dir_of(store, "f" * 64)
    run_dir.mkdir(parents=True)
    job = {
        "config": {"train": {"seed": 3}},
        "shards": str(pair[0].path),
        "shards_digest": pair[0].digest,
        "init_from": "",
    }
    (run_dir / "job.json").write_text(json.dumps(job))
    (run_dir / "mlflow.json").write_text(json.dumps({"run_id": "0" * 31 + "1"}))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in with_one_bit_from(4)[:6]))
    for name in ("ffff", "0" * 31 + "1"):
        assert unfinished_run(store, name) == run_dir
    found = compare(side_of(store, a), side_of_run(store, run_dir, "ffff"))
    assert found.first_difference is not None
    assert found.first_difference.step == 4
    assert "ffff has published no model; its log ends at step 6" in found.notes[0]
    assert "nothing is recorded of its code" in found.notes[0]
    assert ("train.seed", 1, 3) in [(c.name, c.a, c.b) for c in found.config]
    then = {**a.provenance, "code_digest": "0" * 64, "python": "3.0"}
    (run_dir / "job.json").write_text(json.dumps(job | {"provenance": then}))
    found = compare(side_of(store, a), side_of_run(store, run_dir, "ffff"))
    assert found.notes[0].endswith("its log ends at step 6")
    assert [(c.name, c.b) for c in found.code] == [("code_digest", "0" * 64)]
    assert ("python", "3.0") in [(c.name, c.b) for c in found.environment]


def test_kinds_that_have_nothing_in_common_are_refused(store: Store, pair: tuple[Artifact, Artifact]) -> None:
    corpus = store.input_of(pair[0], "corpus")
    with pytest.raises(GptflowError, match=r"is a corpus and .* a shards; give two of a kind"):
        compare(side_of(store, corpus), side_of(store, pair[0]))


def test_the_command(store: Store, pair: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    a, b = checkpoint(store, pair[0], 1, CURVE), checkpoint(store, pair[1], 2, CURVE[:9])
    runner = CliRunner(env={"GPTFLOW_STORE": str(store.root)})
    page = tmp_path / "page.html"
    shown = runner.invoke(diff, [a.label, b.label, "--html", str(page)], catch_exceptions=False)
    assert shown.exit_code == 0
    for said in (
        "+ ",
        "12.txt",
        "05.txt",
        "1 sources have other text",
        "train.seed",
        "the same to the bit",
        "They differ.",
    ):
        assert said in shown.output
    assert page.read_text().count("<polyline") == 2
    told = json.loads(runner.invoke(diff, [a.label, b.label, "--json"], catch_exceptions=False).stdout)
    assert told["documents"]["added"]["documents"] == 2
    assert told["same"] is False
    assert runner.invoke(diff, [a.label, b.label, "--exit-code"]).exit_code == 1
    assert runner.invoke(diff, [a.label, a.label, "--exit-code"]).exit_code == 0
    elsewhere = CliRunner(env={"GPTFLOW_STORE": str(tmp_path / "elsewhere")})  # a path brings its own inputs
    told = json.loads(elsewhere.invoke(diff, [str(a.path), str(b.path), "--json"], catch_exceptions=False).stdout)
    assert told["documents"]["added"]["documents"] == 2
    missing = runner.invoke(diff, [a.label, "abcdef"])
    assert isinstance(missing.exception, GptflowError)
    assert "no artifact in" in str(missing.exception)
