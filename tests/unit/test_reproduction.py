"""Made again, or refused in one line: sources gone or changed, records that disagree, stores to build in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.commands.compare import reproduce as command
from gptmodel.config import BudgetConfig, CorpusConfig, PipelineConfig, ShardsConfig, SourceConfig, recipe
from gptmodel.errors import ArtifactError, ConfigError, DataError, NetworkError
from gptmodel.pretraining.step import run_dir_of
from gptmodel.reproduction.chain import _took, plan_reproduction
from gptmodel.reproduction.freshstore import ROOM, named_store, temporary_store
from gptmodel.reproduction.rebuilding import reproduce_apart
from gptmodel.reproduction.recorded import corpus_config, machine_of, training_config
from gptmodel.reproduction.repeating import Wishes, as_recorded
from gptmodel.reproduction.verdicts import Verdict
from gptmodel.store.artifacts import Artifact, Request, Store, sha256_file
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards
from gptmodel.upkeep.verification import verify

Tiny = Callable[..., PipelineConfig]


def again(store: Store, artifact: Artifact, **how: Any) -> Verdict:
    return reproduce_apart(plan_reproduction(store, artifact, Wishes()), say=lambda _: None, **how)[0]


def shards_of(store: Store, source: SourceConfig) -> Artifact:
    corpus, _ = build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3))
    return build_shards(store, corpus, ShardsConfig(workers=1))[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve files of text."""
    made = tmp_path / "files"
    made.mkdir()
    for number in range(12):
        (made / f"{number:02d}.txt").write_text(f"Document {number} is of {'many ' * number} words.")
    return made


@pytest.fixture
def shards(store: Store, folder: Path) -> Artifact:
    return shards_of(store, SourceConfig(kind="files", paths=(f"{folder}/*.txt",)))


def test_data_is_made_again_with_the_same_bytes_and_nothing_stays(store: Store, shards: Artifact) -> None:
    found = again(store, shards)
    assert [node.equal for node in found.nodes] == [True, True]
    assert found.nodes[1].digest == shards.digest
    assert found.words == f"{shards.label} was made again with the same bytes."
    assert not (store.root / ROOM).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "03.txt").write_text("Other words."), "03.txt is changed ("),
        (lambda d: (d / "03.txt").unlink(), "03.txt is gone ("),
        (lambda d: (d / "13.txt").write_text("More."), "13.txt is new ("),
        (shutil.rmtree, "its source is gone: no file matches"),
    ],
)
def test_a_source_that_is_not_as_it_was_is_named(
    store: Store, folder: Path, shards: Artifact, change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    with pytest.raises(DataError) as told:
        again(store, shards)
    assert said in str(told.value)
    assert shards.request.inputs[0].label in str(told.value)
    assert "\n" not in str(told.value)
    assert not (store.root / ROOM).exists()


def test_with_its_corpus_gone_shards_are_made_again_only_from_a_run_that_names_the_source(
    store: Store, folder: Path, shards: Artifact
) -> None:
    shutil.rmtree(store.root / "corpus")
    with pytest.raises(DataError, match="nothing in the store tells where its text came from"):
        again(store, shards)
    checkpoint = checkpoint_on(store, shards, folder)
    plan = plan_reproduction(store, checkpoint, Wishes())
    assert [(node.kind, node.recorded is None) for node in plan.nodes] == [
        ("corpus", True),
        ("shards", False),
        ("checkpoint", False),
    ]
    (folder / "03.txt").write_text("Other words.")
    with pytest.raises(
        DataError, match="is another corpus, and its manifest, which would say what has changed, is gone"
    ):
        reproduce_apart(plan, say=lambda _: None)


def checkpoint_on(
    store: Store, shards: Artifact, folder: Path, logged: tuple[int, ...] = (1, 100), source: SourceConfig | None = None
) -> Artifact:
    """A checkpoint without weights and the job of its run: what a plan reads of one."""
    source = source or SourceConfig(kind="files", paths=(f"{folder}/*.txt",))
    config = PipelineConfig(corpus=CorpusConfig(source=source, validation_fraction=0.3))
    asked = {"model": recipe(config.model), "train": recipe(config.train)}

    def build(directory: Path) -> dict[str, Any]:
        lines = [json.dumps({"step": step, "tokens": 1, "metrics": {"train/loss": 2.0}}) + "\n" for step in logged]
        (directory / "curve.jsonl").write_text("".join(lines))
        machine = {"threads": "3", "device": "cpu", "name": "AVX9"}
        return {"steps_trained": 1000, "seconds": 5.0, "precision": "bfloat16", "machine": machine}

    made, _ = store.produce(Request("checkpoint", 1, asked, (shards.ref,)), build)
    run_dir = run_dir_of(store, made.fingerprint)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "job.json").write_text(json.dumps({"config": asdict(config), "shards": str(shards.path)}))
    return made


def test_of_two_folders_with_the_same_names_each_corpus_keeps_its_own(
    store: Store, folder: Path, shards: Artifact, tmp_path: Path
) -> None:
    """Jobs and corpora of two runs that differ in the folder alone, which no manifest's settings hold."""
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "03.txt").write_text("Other words.")
    theirs = shards_of(store, SourceConfig(kind="files", paths=(f"{other}/*.txt",)))
    # Each run names its folder in another way than the manifest, so that one can see which of them was taken.
    for of, place in ((shards, folder), (theirs, other)):
        checkpoint_on(store, of, place, source=SourceConfig(kind="files", paths=(f"{place}/[0-9]*.txt",)))
    for of, place in ((shards, folder), (theirs, other)):
        corpus = store.input_of(of, "corpus")
        found = corpus_config(store, corpus, None)
        assert found is not None
        assert found.source.paths == (f"{place}/[0-9]*.txt",)
        assert again(store, corpus).equal
        assert verify(store, [of.path]).differences == []
    # With its shards gone a run does not tell what it was on, and the manifest decides.
    shutil.rmtree(store.root / "shards")
    for place, of in ((folder, shards), (other, theirs)):
        found = corpus_config(store, store.input_of(of, "corpus"), None)
        assert found is not None
        assert found.source.paths == (f"{place}/*.txt",)


def test_a_job_that_was_changed_after_the_training_is_refused(store: Store, folder: Path, shards: Artifact) -> None:
    checkpoint = checkpoint_on(store, shards, folder)
    job = run_dir_of(store, checkpoint.fingerprint) / "job.json"
    whole = job.read_text()
    assert '"seed": 1337' in whole
    job.write_text(whole.replace('"seed": 1337', '"seed": 1338'))
    with pytest.raises(ArtifactError, match=r"job.json and the manifest of .* differ in train.seed"):
        plan_reproduction(store, checkpoint, Wishes())
    job.write_text(whole.replace('"min_p": 0.0', '"min_p": 0.5'))  # the manifest leaves this out: it came later
    with pytest.raises(ArtifactError, match=r"differ in train.sample.min_p"):
        plan_reproduction(store, checkpoint, Wishes())
    earlier = json.loads(whole)
    del earlier["config"]["train"]["sample"]["min_p"]
    job.write_text(json.dumps(earlier))
    assert training_config(store, checkpoint).train.sample.min_p == 0
    job.write_text("{")
    with pytest.raises(ArtifactError, match=r"job.json cannot be read"):
        plan_reproduction(store, checkpoint, Wishes())
    job.unlink()
    assert training_config(store, checkpoint).train.seed == 1337


def test_the_recorded_threads_and_process_go_before_the_settings(store: Store, folder: Path, shards: Artifact) -> None:
    checkpoint = checkpoint_on(store, shards, folder)
    config, machine = training_config(store, checkpoint), machine_of(checkpoint)
    assert (config.train.threads, machine.threads, machine.precision) == (0, 3, "bfloat16")
    repeated = as_recorded(config, machine, Wishes()).train
    assert (repeated.threads, repeated.processes) == (3, 1)
    assert as_recorded(config, machine, Wishes(threads=2)).train.threads == 2
    bound = replace(config, train=replace(config.train, budget=BudgetConfig(max_hours=1, rates="gone.yaml")))
    assert not as_recorded(bound, machine, Wishes()).train.budget.is_set
    assert as_recorded(bound, machine, Wishes()).train.budget.rates == ""
    plan = plan_reproduction(store, checkpoint, Wishes(threads=2))
    assert "2 threads as asked, 3 as recorded: results may differ by rounding" in plan.notes
    assert any(note.startswith("trained with AVX9, and this processor does") for note in plan.notes)
    if (os.cpu_count() or 1) < 3:
        assert any(
            note.startswith("3 threads, as recorded, on")
            for note in plan_reproduction(store, checkpoint, Wishes()).notes
        )


def test_steps_that_cannot_be_are_refused(store: Store, folder: Path, shards: Artifact) -> None:
    checkpoint = checkpoint_on(store, shards, folder)
    with pytest.raises(ConfigError, match=r"--steps is 1,001, and .* trained 1,000"):
        plan_reproduction(store, checkpoint, Wishes(steps=1001))
    with pytest.raises(ConfigError, match="is a shards; leave it out"):
        plan_reproduction(store, shards, Wishes(steps=1))
    with pytest.raises(ConfigError, match="--steps is -1"):
        Wishes(steps=-1)
    assert plan_reproduction(store, checkpoint, Wishes(steps=1000)).wishes.steps == 0
    half = plan_reproduction(store, checkpoint, Wishes(steps=500))
    assert half.seconds == pytest.approx(2.5, abs=2)


def test_steps_of_which_none_was_logged_are_refused_before_any_training(
    store: Store, folder: Path, shards: Artifact
) -> None:
    checkpoint = checkpoint_on(store, shards, folder, logged=(0, 100, 200))
    with pytest.raises(
        ConfigError, match=r"--steps is 99, and no step of .* was logged \(the first is 100\); give more"
    ):
        plan_reproduction(store, checkpoint, Wishes(steps=99))
    assert plan_reproduction(store, checkpoint, Wishes(steps=100)).wishes.steps == 100


def test_words_count_the_steps_that_were_logged() -> None:
    def words(logged: int, last: int) -> str:
        return Verdict("checkpoint/a", True, 40, 200, logged, last, [], None, [], [], [], 0.0).words

    assert words(40, 40) == "The first 40 of 200 steps give the same figures again, to the bit."
    assert words(4, 31) == (
        "The 4 logged of the first 40 of 200 steps, the last of them step 31, give the same figures again, to the bit."
    )


@pytest.mark.parametrize("started", [7, None, "2026-01-01T00:00:00", "soon"])
def test_a_time_that_is_none_costs_no_plan(store: Store, shards: Artifact, started: Any) -> None:
    manifest = store.input_of(shards, "corpus").path / "manifest.json"
    told = json.loads(manifest.read_text())
    corpus = replace(store.input_of(shards, "corpus"), provenance=told["provenance"] | {"started": started})
    assert plan_reproduction(store, corpus, Wishes()).nodes[-1].name == corpus.label
    assert _took(corpus) == 0.0


def test_a_path_into_another_store_finds_its_inputs_there(store: Store, shards: Artifact, tmp_path: Path) -> None:
    runner = CliRunner(env={"GPTFLOW_STORE": str(tmp_path / "elsewhere")})
    done = runner.invoke(command, [str(shards.path), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["equal"]
    assert not (tmp_path / "elsewhere").exists()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_downloads_are_fetched_again_and_one_that_is_gone_is_named(store: Store, folder: Path, served: str) -> None:
    (folder / "all.jsonl").write_text("".join(json.dumps({"text": p.read_text()}) + "\n" for p in folder.glob("*.txt")))
    url, digest = f"{served}/all.jsonl?token=secret", sha256_file(folder / "all.jsonl")
    source = SourceConfig(kind="http", paths=(url,), sha256=(digest,), allow_private_addresses=True)
    shards = shards_of(store, source)
    config = CorpusConfig(source=source, validation_fraction=0.3)
    checkpoint_run = run_dir_of(store, "a" * 64)
    checkpoint_run.mkdir(parents=True)
    told = {"config": {**asdict(PipelineConfig()), "corpus": asdict(config)}}
    (checkpoint_run / "job.json").write_text(json.dumps(told))
    assert again(store, shards).equal
    (folder / "all.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"its source is gone: http://127.*/all.jsonl: the server answered 404"
    ) as told_:
        again(store, shards)
    assert "secret" not in str(told_.value)
    assert again(store, shards, cached=True).equal
    source_gone = told["config"]["corpus"]
    source_gone["source"]["paths"] = ["http://127.0.0.1:9/all.jsonl"]
    (checkpoint_run / "job.json").write_text(json.dumps(told))
    with pytest.raises(NetworkError, match=r"its source is gone: http://127\.0\.0\.1:9/all\.jsonl: no answer"):
        again(store, shards)


def test_of_two_downloads_with_the_same_name_each_corpus_keeps_its_own(store: Store, folder: Path, served: str) -> None:
    found = []
    for place, word in (("a", "one"), ("b", "other")):
        (folder / place).mkdir()
        lines = [json.dumps({"text": f"{word} {n}"}) + "\n" for n in range(12)]
        (folder / place / "all.jsonl").write_text("".join(lines))
        url, digest = f"{served}/{place}/all.jsonl", sha256_file(folder / place / "all.jsonl")
        source = SourceConfig(kind="http", paths=(url,), sha256=(digest,), allow_private_addresses=True)
        config = CorpusConfig(source=source, validation_fraction=0.3)
        corpus, _ = build_corpus(store, config)
        run_dir = run_dir_of(store, place * 64)
        run_dir.mkdir(parents=True)
        told = {"config": {**asdict(PipelineConfig()), "corpus": asdict(config)}, "shards": "/gone/shards/0000"}
        (run_dir / "job.json").write_text(json.dumps(told))
        found.append((corpus, url))
    for corpus, url in found:
        config_ = corpus_config(store, corpus, None)
        assert config_ is not None
        assert config_.source.paths == (url,)


def test_what_a_followed_address_gave_then_is_asked_for_and_not_what_it_gives_now(
    store: Store, folder: Path, served: str
) -> None:
    def grow_to(documents: int) -> None:
        (folder / "all.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(documents)))

    grow_to(20)
    source = SourceConfig(kind="http", paths=(f"{served}/all.jsonl",), follow=True, allow_private_addresses=True)
    shards = shards_of(store, source)
    checkpoint_on(store, shards, folder, source=source)
    assert again(store, shards).equal
    grow_to(30)
    kept = r"cannot be made again, its source is gone: .*/all.jsonl has sha256 .* --cached` takes what the store kept"
    with pytest.raises(DataError, match=kept):
        again(store, shards)
    assert again(store, shards, cached=True).equal
    shutil.rmtree(store.root / ".downloads")
    with pytest.raises(DataError, match=r"sha256$"):
        again(store, shards, cached=True)


def test_a_corpus_that_came_out_otherwise_ends_it(
    store: Store, shards: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptmodel.text.corpus

    monkeypatch.setattr(gptmodel.text.corpus, "normalise", lambda text: text + " ")
    found = again(store, shards)
    assert [node.equal for node in found.nodes] == [False, None]
    assert found.nodes[0].files == ["documents-00000.parquet"]
    assert found.nodes[0].said == "12 documents more, 12 fewer, 0 on the other side of the split"
    assert found.nodes[1].said == "not made: what comes before it differs"
    assert found.words.startswith(f"{found.nodes[0].name} came out with other bytes: 12 documents more")


def test_a_recipe_that_only_adds_a_file_leaves_the_verdict_to_what_is_made_from_it(
    store: Store, shards: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptmodel.text.corpus as module

    real = module.write_documents

    def with_more(documents: Any, directory: Path, *rest: Any) -> None:
        real(documents, directory, *rest)
        (directory / "notes.txt").write_text("new in this recipe")

    monkeypatch.setattr(module, "write_documents", with_more)
    monkeypatch.setattr(module, "_recipe_version", lambda _: module.RECIPE_VERSION)
    found = again(store, shards)
    assert [node.equal for node in found.nodes] == [None, True]
    assert found.equal
    assert "recipe version 2 → 3" in found.nodes[0].said
    assert again(store, store.input_of(shards, "corpus")).equal is False


def test_the_command_tells_a_verdict_for_machines(store: Store, folder: Path, shards: Artifact) -> None:
    runner = CliRunner(env={"GPTFLOW_STORE": str(store.root)})
    done = runner.invoke(command, [shards.label, "--json", "--keep"], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["equal"], [node["equal"] for node in told["nodes"]]) == (True, [True, True])
    assert Store(Path(told["store"])).resolve(shards.label).digest == shards.digest
    assert "it took" in done.stderr
    shown = runner.invoke(command, [shards.label], catch_exceptions=False)
    assert "✓" in shown.stdout
    assert "was made again with the same bytes" in shown.stdout


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_stop_says_what_becomes_of_the_store(
    store: Store, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptmodel.reproduction.rebuilding
    from gptmodel.errors import Interrupted

    def stopped(*_: Any, **__: Any) -> None:
        assert len(list((store.root / ROOM).glob("[!.]*"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(gptmodel.reproduction.rebuilding, "build_shards", stopped)
    done = CliRunner(env={"GPTFLOW_STORE": str(store.root)}).invoke(command, [shards.label])
    assert isinstance(done.exception, Interrupted)
    assert done.exception.exit_code == 130
    assert "the temporary store is removed" in str(done.exception)
    assert not (store.root / ROOM).exists()
    monkeypatch.setattr(gptmodel.reproduction.rebuilding, "build_shards", interrupted)
    told = [
        str(CliRunner(env={"GPTFLOW_STORE": str(store.root)}).invoke(command, [shards.label, *more]).exception)
        for more in (["--keep"], ["--store", str(tmp_path / "new")])
    ]
    assert f"kept in {store.root / ROOM}; another call makes it all again" in told[0]
    assert "give the same --store to go on" in told[1]


_HOLDER = """
import os, signal, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.reproduction.freshstore import temporary_store
store = Store(Path(sys.argv[1]))
with temporary_store(store, store.resolve(sys.argv[2])) as fresh:
    print(fresh.root, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_reproduction_left_is_swept_and_a_living_one_is_not(store: Store, shards: Artifact) -> None:
    def holder() -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", _HOLDER, str(store.root), shards.label]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    dead, left = holder()
    dead.kill()
    dead.communicate()
    assert left.is_dir()
    living, used = holder()
    assert not left.exists()
    with temporary_store(store, shards) as fresh:
        assert fresh.root.is_dir()
        assert used.is_dir()
    assert not fresh.root.exists()
    living.communicate()
    assert not used.exists()
    with temporary_store(store, shards, keep=True) as kept:
        pass
    with temporary_store(store, shards):
        assert kept.root.is_dir()


def test_what_lies_in_a_named_store_is_told_checked_and_never_taken_for_made_again(
    store: Store, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptmodel.reproduction.rebuilding

    new, runner = tmp_path / "new", CliRunner(env={"GPTFLOW_STORE": str(store.root)})

    def called(*more: str) -> Any:
        return runner.invoke(command, [shards.label, "--store", str(new), "--json", *more])

    with monkeypatch.context() as patch:
        patch.setattr(gptmodel.reproduction.rebuilding, "build_shards", interrupted)
        assert called().exit_code != 0
    for pattern in ("documents-*.parquet", "sources.jsonl"):  # no later step reads the second
        (file,) = (new / "corpus").glob(f"*/{pattern}")
        whole = file.read_bytes()
        file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        refused = called().exception
        assert isinstance(refused, ArtifactError)
        assert f"{file.name} is damaged" in str(refused)
        file.write_bytes(whole)
    refused = called("--threads", "2").exception
    assert isinstance(refused, ConfigError)
    assert "was begun with other --threads or --precision, and" in str(refused)
    mark = new / "reproduction.json"
    begun = mark.read_text()
    for name, said in (("code", "other code"), ("versions", "other versions of libraries")):
        mark.write_text(json.dumps(json.loads(begun) | {name: "another"}))
        refused = called().exception
        assert isinstance(refused, ConfigError)
        assert f"was begun with {said}, and what lies there would be reused" in str(refused)
    mark.write_text(begun)
    done = called()
    assert done.exit_code == 0
    nodes = json.loads(done.stdout)["nodes"]
    assert [(node["reused"], node["said"]) for node in nodes] == [(True, "reused from an earlier attempt"), (False, "")]
    once_more = called()
    assert "looking at" not in once_more.stderr  # refused before anything is read again
    refused = once_more.exception
    assert isinstance(refused, ConfigError)
    assert f"{shards.label} is already made again in --store {new}; give an empty directory" in str(refused)
    # The same where another recipe gives it another name, which only making it tells.
    monkeypatch.setattr("gptmodel.tokens.shards._RECIPE_VERSION", 99)
    fresh = tmp_path / "newer"
    assert runner.invoke(command, [shards.label, "--store", str(fresh)]).exception is None
    assert "is already made again" in str(runner.invoke(command, [shards.label, "--store", str(fresh)]).exception)


def test_a_named_store_must_be_empty_or_its_own(store: Store, shards: Artifact, tmp_path: Path) -> None:
    with named_store(tmp_path / "new", store, shards, {}) as fresh:
        (fresh.root / "half").mkdir()
    with named_store(tmp_path / "new", store, shards, {}):
        pass
    for path, other, said in (
        (tmp_path / "new", store.input_of(shards, "corpus"), "is not empty"),
        (store.root, shards, "is the store that holds the original"),
        (Path(__file__), shards, "is a file"),
    ):
        with pytest.raises(ConfigError, match=said), named_store(path, store, other, {}):
            pass


def test_a_run_without_a_model_is_refused_with_what_can_be_done(store: Store, folder: Path, shards: Artifact) -> None:
    made = checkpoint_on(store, shards, folder)
    shutil.rmtree(made.path)
    moved = shutil.copytree(store.root, folder / "my store")
    done = CliRunner(env={"GPTFLOW_STORE": str(moved)}).invoke(command, [made.path.name])
    assert isinstance(done.exception, ArtifactError)
    assert f"run {made.path.name} has published no model to compare with" in str(done.exception)
    job = moved / ".runs" / made.path.name / "job.json"
    assert f"`python -m gptmodel.pretraining.replay '{job}' --step N`" in str(done.exception)
