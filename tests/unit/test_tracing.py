"""Documents and steps: what is worked out backwards equals what reading every batch shows."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.commands.tracing import trace as command
from gptmodel.config import CorpusConfig, ModelConfig, ShardsConfig, SourceConfig, TrainConfig, recipe
from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.permutation import Permutation
from gptmodel.tokens.shards import build_shards, open_split
from gptmodel.tokens.tokenstream import Shard, TokenStream
from gptmodel.tracing.report import Asked, trace
from gptmodel.tracing.steps import Tracer
from gptmodel.tracing.trained import TracedTraining, find_unfinished, finished_training, unfinished_training
from tasks.trainings import find_training

T = 16
FORTY = "Document {0} says that {0} and {0} are two numbers, and goes on to {1}. "


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """Documents of 6 to 1,700 bytes in shards of 1,000, so that some lie over several shards; two were cut."""
    root = tmp_path_factory.mktemp("traced")
    (root / "files").mkdir()
    for n in range(30):
        text = "".join(FORTY.format(n * 1000 + k, k * 77 + n) for k in range(n * n % 9 + 30 * (n % 13 == 5)))
        (root / "files" / f"{n:02d}.txt").write_text(text + f"End {n}.")
    (root / "files" / "29.txt").write_text("cafe\u0301 " + "z " * 20)
    source = SourceConfig(kind="files", paths=(f"{root}/files/*.txt",))
    store = Store(root / "store")
    config = CorpusConfig(source=source, validation_fraction=0.2, cut_above_chars=1_700, cut_to_chars=800)
    corpus, _ = build_corpus(store, config)
    return store, build_shards(store, corpus, ShardsConfig(shard_bytes=1_000))[0]


def training(data: tuple[Store, Artifact], **changes: Any) -> TracedTraining:
    known: dict[str, Any] = {
        "label": "checkpoint/test",
        "fingerprint": "f" * 64,
        "shards": data[1],
        "seed": 5,
        "batch_size": 4,
        "context_length": T,
        "max_steps": 200,
        "eval_tokens": 64,
        "steps": 200,
        "steps_trained": 200,
        "left_out": (),
        "evaluations": 3,
        "finished": False,
        "publish": "last",
        "run_dir": data[0].root / ".runs" / "none",
    }
    return TracedTraining(**(known | changes))


def checkpoint(
    data: tuple[Store, Artifact], *, name: str = "a", init: Artifact | None = None, train: dict[str, Any] | None = None,
    recipe_version: int = 1, **summary: Any
) -> Artifact:  # fmt: skip
    """A published training as `finished_training` reads it; its weights are none."""
    config = TrainConfig(max_steps=60, batch_size=4, micro_batch_size=2, seed=5, **(train or {}))
    asked = {"model": recipe(ModelConfig(context_length=T, n_layer=1, n_head=1, n_embd=8)), "train": recipe(config)}
    inputs = (data[1].ref, init.ref) if init else (data[1].ref,)

    def build(directory: Path) -> dict[str, Any]:
        lines = [{"step": s, "tokens": s * 4 * T, "metrics": {"validation/loss": 5.0}} for s in (0, 30, 60)]
        (directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (directory / "name").write_text(name)
        return {"step": 60, "steps_trained": 60, "tokens": 60 * 4 * T, "left_out": [], **summary}

    return data[0].produce(Request("checkpoint", recipe_version, asked | {"name": name}, inputs), build)[0]


def owners(shards: Artifact) -> tuple[list[int], list[tuple[str, int]]]:
    """Token, and (document, its token's number), at each position of the train stream, read with pyarrow alone."""
    tokens: list[int] = []
    owner: list[tuple[str, int]] = []
    seen: dict[str, int] = defaultdict(int)
    for name in sorted(shards.names(prefix="train-")):
        for row in pa.ipc.open_file(shards.file(name).read_bytes()).read_all().to_pylist():
            for token in row["tokens"]:
                tokens.append(token)
                owner.append((row["document"], seen[row["document"]]))
                seen[row["document"]] += 1
    return tokens, owner


def read_rows(shards: Artifact, batch_size: int, n_steps: int, world: int) -> Iterator[tuple[int, int, list[int]]]:
    """(step, row, its T + 1 tokens) of every batch, as the ranks of a run read them."""
    stream = open_split(shards, "train")
    sizes: dict[str, Any] = {"context_length": T, "batch_size": batch_size, "seed": 5}
    ranks = [Batches(stream, **sizes, micro_batch_size=1, rank=rank, world=world) for rank in range(world)]
    for step in range(n_steps):
        rows = [part for rank in ranks for part in rank.batch(step)]
        for row, (inputs, targets) in enumerate(rows):
            assert inputs[0, 1:].tolist() == targets[0, :-1].tolist()
            yield step + 1, row, [*inputs[0].tolist(), int(targets[0, -1])]


@pytest.mark.parametrize(("batch_size", "world"), [(4, 1), (6, 2)])
def test_what_is_computed_is_what_every_batch_shows(data: tuple[Store, Artifact], batch_size: int, world: int) -> None:
    """Each row of each step is looked up in the stream by its tokens; no permutation and no index is asked."""
    tokens, owner = owners(data[1])
    stands_at = {tuple(tokens[at : at + T + 1]): at for at in range(0, len(tokens) - T, T)}
    assert len(stands_at) == (len(tokens) - 1) // T, "no two windows are alike, or this test could not tell them apart"
    per_epoch = len(stands_at)
    n_steps = int(3.4 * per_epoch / batch_size)
    by_step: dict[int, list[Any]] = defaultdict(list)
    by_document: dict[str, list[Any]] = defaultdict(list)
    for step, row, seen in read_rows(data[1], batch_size, n_steps, world):
        at, epoch = stands_at[tuple(seen)], ((step - 1) * batch_size + row) // per_epoch + 1
        parts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for offset in range(T + 1):
            document, number = owner[at + offset]
            parts[document].append((offset, number))
        by_step[step].append((row, epoch, [(d, p[0][0], p[-1][0], p[0][1], p[-1][1]) for d, p in parts.items()]))
        for document, p in parts.items():
            targets, inputs = sum(offset > 0 for offset, _ in p), sum(offset < T for offset, _ in p)
            by_document[document].append((step, epoch, row, p[0][0], p[-1][0], p[0][1], p[-1][1], inputs, targets))

    tracer = Tracer(training(data, batch_size=batch_size, steps=n_steps))
    for step in range(1, n_steps + 1):
        computed = [
            (row.row, row.epoch, [(p.id, a[0], a[1] - 1, b[0], b[1] - 1) for p, a, b in row.parts])
            for row in tracer.step(step)
        ]
        assert computed == by_step[step]
    everything = list(dict.fromkeys(document for document, _ in owner))
    assert len(everything) > 20
    for document in everything:
        place = tracer.place(document)
        assert place is not None
        found = tracer.document(place)
        computed = [
            (
                s.step,
                s.epoch,
                s.row,
                s.row_tokens[0],
                s.row_tokens[1] - 1,
                *_ends(s.document_tokens),
                s.inputs,
                s.targets,
            )
            for s in tracer.stretches(found)
        ]
        seen = by_document[document]
        assert computed == seen
        assert found.steps == tracer.steps_of([place]) == len({step for step, *_ in seen})
        for share in found.epochs:
            here = [s for s in seen if s[1] == share.epoch]
            assert (share.inputs, share.targets) == (sum(s[7] for s in here), sum(s[8] for s in here))
            assert share.steps == len({s[0] for s in here})
            if share.whole:
                assert share.targets == place.n_tokens - found.untrained_head - found.untrained_tail
    assert tracer.steps_of(tracer.places(everything)) == n_steps


def _ends(span: tuple[int, int]) -> tuple[int, int]:
    return span[0], span[1] - 1


def test_the_corpus_of_these_tests_has_the_hard_cases(data: tuple[Store, Artifact]) -> None:
    index = open_split(data[1], "train").documents()
    parts = [
        part
        for name in data[1].names(prefix="train-")
        for part in pa.ipc.open_file(data[1].file(name).read_bytes()).read_all().column("part").to_pylist()
    ]
    assert max(parts) >= 1, "a document over several shards"
    assert min(index.n_tokens) < T // 2, "several documents in a window"
    assert max(index.n_tokens) > 5 * T, "a document of several windows"


@given(
    n_windows=st.integers(1, 400),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**63),
    n_steps=st.integers(0, 40),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_sightings_are_all_windows_backwards(
    n_windows: int, batch_size: int, seed: int, n_steps: int, data: st.DataObject
) -> None:
    stream = TokenStream([Shard(None, np.zeros(n_windows * 2 + 1, np.uint16))])
    batches = Batches(stream, context_length=2, batch_size=batch_size, micro_batch_size=1, seed=seed)
    asked = set(data.draw(st.lists(st.integers(0, n_windows - 1), max_size=20)))
    expected = [
        (step, row, int(epoch), int(window))
        for step in range(n_steps)
        for row, (window, epoch) in enumerate(zip(batches.all_windows(step), batches.all_epochs(step), strict=True))
        if window in asked
    ]
    found = batches.sightings(sorted(asked), n_steps)
    columns = (found.steps, found.rows, found.epochs, found.windows)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


@given(n=st.integers(1, 2**40), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_inverse_of_a_large_permutation(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    order = Permutation(n, seed=seed, epoch=epoch)
    some = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    assert order.inverse(order.forward(some)).tolist() == some
    assert order.forward(order.inverse(some)).tolist() == some


def test_updates_left_out_are_told_and_not_counted(data: tuple[Store, Artifact]) -> None:
    plain = Tracer(training(data))
    place = plain.places([plain.index.ids[3]])[0]
    before = plain.document(place)
    steps = sorted({s.step for s in plain.stretches(before)})
    first, last = steps[1], steps[2]
    tracer = Tracer(training(data, left_out=((first, last),)))
    found = tracer.document(place)
    assert (found.steps, found.steps_left_out) == (len(steps) - 2, 2)
    assert {s.step for s in tracer.stretches(found) if s.left_out} == {first, last}
    assert before.targets - found.targets == sum(s.targets for s in plain.stretches(before) if first <= s.step <= last)
    assert [tracer.is_left_out(step) for step in (first - 1, first, last, last + 1)] == [False, True, True, False]
    assert tracer.steps_of([place]) == len(steps) - 2


def test_the_ends_of_the_stream_are_told(data: tuple[Store, Artifact]) -> None:
    tracer = Tracer(training(data))
    stop = tracer.batches.n_windows * T + 1
    assert stop < tracer.n_tokens, "tokens are left over, or this test shows nothing"
    first, last = (tracer.places([tracer.index.ids[n]])[0] for n in (0, -1))
    assert (tracer.document(first).untrained_head, tracer.document(first).untrained_tail) == (1, 0)
    found = tracer.document(last)
    assert found.untrained_tail == tracer.n_tokens - max(stop, last.start)
    whole = [share.targets for share in found.epochs if share.whole]
    assert set(whole) == {last.n_tokens - found.untrained_tail}
    beyond = replace(last, start=stop, n_tokens=tracer.n_tokens - stop)
    nowhere = tracer.document(beyond)
    assert (nowhere.steps, nowhere.epochs, nowhere.untrained_tail) == (0, (), beyond.n_tokens)


def test_documents_are_found_by_id_source_and_text(data: tuple[Store, Artifact]) -> None:
    store, shards = data
    corpus = store.input_of(shards, "corpus")
    documents = list(iter_documents(corpus))
    plain = next(d for d in documents if d.split == "train" and "#" not in d.source)

    def ids(**asked: Any) -> set[str]:
        report = trace(store, training(data), Asked(limit=0, **asked))
        assert report["documents_found"] == len(report["documents"])
        return {document["id"] for document in report["documents"]}

    assert ids(document=plain.id) == ids(document=plain.id[:20]) == ids(document=plain.source) == {plain.id}
    cut = next(d.source.split("#")[0] for d in documents if "#" in d.source)
    pieces = {d.id for d in documents if d.source.startswith(f"{cut}#")}
    assert len(pieces) > 1
    assert ids(document=cut) == pieces
    assert ids(text="goes on to 77") == {d.id for d in documents if "goes on to 77" in d.text}
    assert ids(text="GOES ON TO 77") == set()
    assert ids(text="GOES ON TO 77", ignore_case=True) == ids(text="goes on to 77") != set()
    assert ids(text="caf\u00e9") == ids(text="cafe\u0301") == {d.id for d in documents if d.source == "29.txt"}
    with pytest.raises(DataError, match=r"no document 'none\.txt'; give an id, .* such as \d\d\.txt"):
        ids(document="none.txt")
    shared = next(c for c in "0123456789abcdef" if sum(d.id.startswith(c) for d in documents) > 1)
    with pytest.raises(DataError, match=f"documents have ids that begin with {shared}; give more of one"):
        ids(document=shared)


def test_a_list_is_cut_and_says_so_while_totals_are_of_all(data: tuple[Store, Artifact]) -> None:
    everything = trace(data[0], training(data), Asked(text="End", limit=0))
    cut = trace(data[0], training(data), Asked(text="End", limit=2))
    assert everything["documents_found"] == cut["documents_found"] > 2
    assert len(cut["documents"]) == 2
    for whole, part in zip(everything["documents"], cut["documents"], strict=False):
        assert part["rows"] == whole["rows"][:2]
        assert {k: v for k, v in part.items() if k != "rows"} == {k: v for k, v in whole.items() if k != "rows"}
    assert everything["steps"] == cut["steps"] <= 200


def test_a_validation_document_was_never_trained_on(data: tuple[Store, Artifact]) -> None:
    index = open_split(data[1], "validation").documents()
    uses = {}
    for name in index.ids:
        (told,) = trace(data[0], training(data), Asked(document=name))["documents"]
        assert told["says"][0] == "it is a validation document: no step trained on it"
        assert "rows" not in told
        uses[name] = told["scored_on_the_way"]
    assert sum(uses.values()) == 64, "the windows of eval_tokens=64, each of their targets once"
    assert any(n == 0 for n in uses.values())


def test_a_finished_training_counts_up_to_the_step_that_was_published(data: tuple[Store, Artifact]) -> None:
    late = {"left_out": [[10, 12], [40, 44]], "step": 30, "stopped_early": True}
    best = finished_training(data[0], checkpoint(data, name="best", train={"publish": "best"}, **late))
    assert (best.steps, best.steps_trained, best.left_out) == (30, 60, ((10, 12),))
    report = trace(data[0], best, Asked(step=30))
    assert any("those of step 30, the best of 60" in note for note in report["notes"])
    assert any("updates of steps 10 to 12 are not in the weights" in note for note in report["notes"])
    with pytest.raises(ConfigError, match=r"step 31 is none of .* steps 1 to 30"):
        trace(data[0], best, Asked(step=31))
    assert trace(data[0], best, Asked(step=11))["left_out"]
    early = finished_training(data[0], checkpoint(data, name="early", step=40, steps_trained=40))
    assert any("stopped early, after step 40 of 60" in n for n in trace(data[0], early, Asked(step=1))["notes"])


def test_an_unfinished_run_is_traced_up_to_its_last_step(data: tuple[Store, Artifact], tmp_path: Path) -> None:
    store = data[0]
    run_dir = store.root / ".runs" / "abcdabcdabcdabcd"
    run_dir.mkdir(parents=True)
    train = {"seed": 5, "batch_size": 4, "max_steps": 60, "eval_tokens": 64, "publish": "last"}
    job = {
        "config": {"train": train, "model": {"context_length": T}},
        "shards": "/moved/away/shards/" + data[1].path.name,
        "shards_digest": data[1].digest,
        "building": str(tmp_path / "building"),
        "init_from": "",
        "init_digest": "",
    }
    (run_dir / "job.json").write_text(json.dumps(job))
    (run_dir / "mlflow.json").write_text(json.dumps({"run_id": "0123" * 8}))
    lines = [
        {"step": 0, "metrics": {"validation/loss": 9.0}},
        *({"step": s, "metrics": {"train/loss": 1.0}} for s in range(1, 20)),
        {"step": 20, "metrics": {}, "decision": {"left_out": [18, 20]}},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "me')
    for name in ("abcdabcd", "run/abcdabcdabcdabcd", "0123" * 8):
        found = find_training(store, name)
        assert (found.label, found.steps, found.left_out) == ("run/abcdabcdabcdabcd", 20, ((18, 20),))
    assert find_unfinished(store, "model/abcd") is None, "that would be a version of a registered model"
    report = trace(store, found, Asked(step=20))
    assert report["left_out"]
    assert "the run is not finished: step 20 of 60 is the last in its log" in report["notes"]
    assert report["training"]["replay"] == "", "its shards are not where the job says, so a replay would fail"
    (tmp_path / "building/.work/checkpoints/step-00000015").mkdir(parents=True)
    assert [found.replay_from(step) for step in (15, 16)] == [0, 15]
    spaced = shutil.copytree(run_dir, tmp_path / "my runs")
    (spaced / "job.json").write_text(json.dumps(job | {"shards": str(data[1].path)}))
    shown = replace(found, run_dir=spaced).replay
    assert shown == f"python -m gptmodel.pretraining.replay '{spaced}/job.json' --step"
    (run_dir / "job.json").write_text(json.dumps(job | {"shards_digest": "0" * 64}))
    with pytest.raises(ArtifactError, match="this run began with 0000000000000000"):
        unfinished_training(store, run_dir)


def test_the_trainings_before_are_named_and_traced_when_asked(data: tuple[Store, Artifact]) -> None:
    store = data[0]
    first = checkpoint(data, name="first")
    second = checkpoint(data, name="second", init=first)
    asked = Asked(document=open_split(data[1], "train").documents().ids[2])
    report = trace(store, finished_training(store, second), asked)
    assert any(f"began with the weights of {first.label}" in note for note in report["notes"])
    assert "earlier" not in report
    (earlier,) = trace(store, finished_training(store, second), asked, through_init=True)["earlier"]
    assert earlier["training"]["label"] == first.label
    assert earlier["documents"][0]["rows"] == report["documents"][0]["rows"], "the same data in the same order"


def test_what_is_not_known_is_said(data: tuple[Store, Artifact]) -> None:
    store = data[0]

    def build(directory: Path) -> dict[str, Any]:
        (directory / "config.json").write_text("{}")
        return {"source": "someone/gpt2", "revision": "abc"}

    weights, _ = store.produce(Request("weights", 1, {"source": "someone/gpt2"}, ()), build)
    with pytest.raises(ArtifactError, match=r"imported \(someone/gpt2 abc\): what it was trained on is not known here"):
        find_training(store, weights.label)
    begun = finished_training(store, checkpoint(data, name="begun", init=weights))
    report = trace(store, begun, Asked(step=1))
    assert any(f"began with {weights.label}, and what that saw is not known" in note for note in report["notes"])
    with pytest.raises(ArtifactError, match="shards, and no training; name a checkpoint or a run"):
        find_training(store, data[1].label)
    with pytest.raises(
        ArtifactError, match="trained by recipe 7, and the order of the data is known here for recipes 1 to 4"
    ):
        finished_training(store, checkpoint(data, name="new", recipe_version=7))


def test_the_command_says_the_same_to_people_and_machines(
    data: tuple[Store, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = data[0]
    model = checkpoint(data, name="told")
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    index = open_split(data[1], "train").documents()
    longest = index.ids[int(np.argmax(index.n_tokens))]
    words = [model.label, "--document", longest[:16]]
    done = CliRunner().invoke(command, [*words, "--json", "--limit", "0"], catch_exceptions=False)
    told = json.loads(done.stdout)
    (document,) = told["documents"]
    assert document["rows_found"] == len(document["rows"]) > 3
    shown = CliRunner().invoke(command, [*words, "--limit", "3"], catch_exceptions=False).stdout
    assert f"Document {longest}" in shown
    assert f"… and {document['rows_found'] - 3} more rows" in shown
    assert f"{document['rows'][0]['document_tokens'][0]}–{document['rows'][0]['document_tokens'][1] - 1}" in shown
    assert f"in {document['steps']} steps" in shown
    step = CliRunner().invoke(
        command, [model.label, "--step", str(document["rows"][0]["step"])], catch_exceptions=False
    )
    assert longest in step.stdout
    for wrong in ([], ["--step", "1", "--document", "x"], ["--step", "0"], ["--step", "1", "--ignore-case"]):
        with pytest.raises(ConfigError):
            CliRunner().invoke(command, [model.label, *wrong], catch_exceptions=False)


def test_damaged_shards_are_refused_unless_nobody_asked(data: tuple[Store, Artifact], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data[0].root, tmp_path / "store")
    store = Store(tmp_path / "store")
    shards = store.resolve(data[1].label)
    path = shards.path / "train-00000.arrow"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged"):
        trace(store, training((store, shards)), Asked(step=1))
    report = trace(store, training((store, shards)), Asked(step=1, check=False))
    assert any("hashes were not looked at" in note for note in report["notes"])
