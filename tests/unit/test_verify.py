"""Any byte that differs, anywhere in the chain, is named; what is as recorded is said to be so, wherever it lies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gptmodel.config import CorpusConfig, ModelConfig, ShardsConfig, SourceConfig
from gptmodel.errors import ArtifactError, DataError, TrackingError
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights
from gptmodel.store.artifacts import Artifact, Request, Store, sha256_file, write_atomic
from gptmodel.store.manifests import MANIFEST, FileEntry, Manifest, Ref
from gptmodel.text.corpus import SOURCES, build_corpus, iter_documents
from gptmodel.text.download import content_digest
from gptmodel.text.sources import hub_digest
from gptmodel.tokens.shards import build_shards, open_split
from gptmodel.upkeep.nodes import with_evaluations
from gptmodel.upkeep.verification import Difference, Report, verify
from gptmodel.weights import save_model

DATA = Path(__file__).parents[1] / "data"


def published(directory: Path) -> dict[str, Any]:
    """The files of a checkpoint."""
    save_model(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32), seed=1), directory)
    for name in ("curve.jsonl", "samples.jsonl", "training.json"):
        write_atomic(directory / name, json.dumps({"step": 1, "train_loss": 2.5}) + "\n")
    return {"step": 1, "train_loss": 2.5}


def judged(directory: Path) -> dict[str, Any]:
    """The files of an evaluation."""
    for name in ("documents.parquet", "evaluation.json", "samples.jsonl"):
        (directory / name).write_text(f"what {name} says")
    return {"loss": 2.5, "split": "validation"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Text, and a store with one artifact of every kind that was made from it. Tests put back what they change."""
    place = tmp_path_factory.mktemp("verify")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from chaos_pipeline import write_gpt2
    finally:
        sys.path.pop(0)
    (place / "text").mkdir()
    for number in range(30):
        (place / "text" / f"{number:02d}.txt").write_text(f"Text {number} of many.\n" + "The mill mends. " * 20)
    store = Store(place / "store")
    source = SourceConfig(kind="files", paths=(f"{place}/text/*.txt",))
    corpus, _ = build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3))
    shards, _ = build_shards(store, corpus, ShardsConfig(shard_bytes=4_000, workers=1))
    write_gpt2(place / "gpt2")
    weights, _ = import_weights(store, str(place / "gpt2"))
    model, _ = store.produce(Request("checkpoint", 1, {}, (shards.ref, weights.ref)), published)
    store.produce(Request("evaluation", 1, {}, (model.ref, shards.ref)), judged)
    return store


def the(store: Store, kind: str) -> Artifact:
    (found,) = [artifact for artifact in store.artifacts() if artifact.kind == kind]
    return found


def look(store: Store, kind: str = "checkpoint", **more: Any) -> Report:
    return verify(store, with_evaluations(store, the_path(store, kind)), **more)


def the_path(store: Store, kind: str) -> Path:
    (found,) = (store.root / kind).glob("[!.]*")
    return found


def flip(path: Path, at: int | None = None) -> bytes:
    """One bit, the size and the time stay; what was there before."""
    raw, times = path.read_bytes(), path.stat()
    changed = bytearray(raw)
    changed[len(raw) // 2 if at is None else at] ^= 4
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return raw


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in (root, *root.rglob("*"))}


def test_a_sound_chain_is_sound_and_verifying_it_writes_nothing(whole: Store) -> None:
    before = snapshot(whole.root)
    report = look(whole)
    assert report.differences == []
    kinds = [label.split("/")[0] for label in report.nodes]
    assert kinds == ["corpus", "shards", "weights", "checkpoint", "evaluation"]
    sizes = [e.bytes for a in whole.artifacts() for e in a.files]
    sizes += [path.stat().st_size for path in (whole.root / ".provenance").iterdir()]
    text = [p.stat().st_size for p in (whole.root.parent / "text").iterdir()]
    assert (report.files, report.bytes) == (len(sizes) + len(text), sum(sizes) + sum(text))
    (note,) = report.notes
    assert "source of weights/" in note, "nothing in this store says from where they were imported"
    assert snapshot(whole.root) == before


def test_a_flipped_bit_in_any_file_of_any_node_is_named(whole: Store) -> None:
    everything = [path for path in sorted(whole.root.glob("[!.]*/[!.]*/*")) if path.is_file()]
    assert {path.name for path in everything} >= {MANIFEST, SOURCES, "model.safetensors", "evaluation.json"}
    assert len({path.parent.parent.name for path in everything}) == 5
    for path in everything:
        whole_file = flip(path)
        try:
            report = verify(whole, [the_path(whole, "evaluation")])
            first = report.differences[0]
            assert (first.node, first.file) == (f"{path.parent.parent.name}/{path.parent.name}", path.name)
            if path.name != MANIFEST:
                hashes = hashlib.sha256(whole_file).hexdigest(), sha256_file(path)
                wanted = Difference(first.node, path.name, "sha256", *hashes)
                assert report.differences == [wanted]
        finally:
            path.write_bytes(whole_file)
    assert not look(whole).differences


def test_the_list_of_packages_and_the_changes_to_the_code_are_looked_at(whole: Store) -> None:
    (path,) = (whole.root / ".provenance").glob("*.packages")
    raw = flip(path)
    (difference,) = look(whole).differences
    path.write_bytes(raw)
    assert difference.file == f".provenance/{path.name}"
    assert difference.node == the(whole, "corpus").label, "told once, where it was first used"


def test_no_byte_of_a_manifest_can_differ_unseen(tmp_path: Path) -> None:
    """Each in turn; and white space, which says the same to a reader, too."""
    store, request = Store(tmp_path), Request("thing", 1, {"a": [1.5, None, True]})
    path = store.path_of(request)
    path.mkdir(parents=True)
    (path / "a").write_text("a")
    entry = FileEntry("a", 1, hashlib.sha256(b"a").hexdigest())
    (path / MANIFEST).write_text(Manifest(request, (entry,), {"figure": 0.25, "text": "é"}, {"host": "h"}).text())
    raw = (path / MANIFEST).read_bytes()
    for place in range(len(raw)):
        others = b" \t\n\r" if raw[place] in b" \n" else b""
        for changed in {raw[place] ^ 1 << place % 8, *others} - {raw[place]}:
            (path / MANIFEST).write_bytes(raw[:place] + bytes([changed]) + raw[place + 1 :])
            differences = verify(store, [path]).differences
            assert [d for d in differences if (d.node, d.file) == (f"thing/{path.name}", MANIFEST)], (place, changed)
    (path / MANIFEST).write_bytes(raw)
    assert not verify(store, [path]).differences


def test_the_first_in_chain_order_comes_first(whole: Store) -> None:
    broken = [next(the(whole, kind).path.glob("[!m]*")) for kind in ("evaluation", "shards", "checkpoint")]
    before = [flip(path) for path in broken]
    try:
        found = [difference.node.split("/")[0] for difference in look(whole).differences]
        assert found == ["shards", "checkpoint", "evaluation"]
    finally:
        for path, raw in zip(broken, before, strict=True):
            path.write_bytes(raw)


def test_what_this_process_has_read_is_read_again(whole: Store) -> None:
    corpus = the(whole, "corpus")
    path = corpus.file("documents-00000.parquet")
    raw = flip(path)
    corpus.file("documents-00000.parquet")  # remembered as right: nobody pays twice while working
    (difference,) = look(whole).differences
    path.write_bytes(raw)
    assert difference.file == path.name


def test_a_moved_store_is_sound(whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole.root, tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path)
    report = look(Store(Path("far/away")))
    assert not report.differences
    assert len(report.nodes) == 5


@pytest.fixture
def copied(whole: Store, tmp_path: Path) -> Store:
    shutil.copytree(whole.root, tmp_path / "store")
    return Store(tmp_path / "store")


def test_files_too_many_too_few_too_long_and_links(copied: Store) -> None:
    model, shards, corpus, weights = (the_path(copied, k) for k in ("checkpoint", "shards", "corpus", "weights"))
    (model / "zz-note.txt").write_text("by hand")
    (model / "sub").mkdir()
    (model / "sub" / "link").symlink_to("/etc/hostname")
    (model / ".curve.jsonl.7.tmp").write_text("of a killed run")
    (shards / "train-00000.arrow").unlink()
    with (corpus / "documents-00000.parquet").open("ab") as file:
        file.write(b"\0")
    (weights / "model.safetensors").rename(weights.parent / "aside")
    (weights / "model.safetensors").symlink_to(weights.parent / "aside")
    report = look(copied)
    found = [(d.node.split("/")[0], d.file, d.found) for d in report.differences]
    size = (corpus / "documents-00000.parquet").stat().st_size
    assert found == [
        ("corpus", "documents-00000.parquet", f"{size:,} bytes"),
        ("shards", "train-00000.arrow", "is missing"),
        ("weights", "model.safetensors", "is a link; an artifact holds its files itself"),
        ("checkpoint", "zz-note.txt", "7 bytes"),
        ("checkpoint", "sub/link", "a link"),
    ]
    assert any(".curve.jsonl.7.tmp" in note for note in report.notes)


def test_an_input_that_is_gone_and_one_that_is_another_now(copied: Store) -> None:
    shards = the(copied, "shards")
    shutil.rmtree(the_path(copied, "corpus"))
    first, *others = look(copied).differences
    assert (first.node.split("/")[0], first.file, first.found) == ("corpus", MANIFEST, "is missing")
    assert not others
    shutil.rmtree(shards.path)
    made, _ = copied.produce(shards.request, lambda directory: {"n": (directory / "a").write_text("others")})
    first = look(copied).differences[1]
    assert (first.node.split("/")[0], first.file) == ("checkpoint", MANIFEST)
    assert first.what == f"digest of input {made.label}"
    assert (first.expected, first.found) == (shards.digest, made.digest)


def test_two_runs_that_share_shards(copied: Store) -> None:
    shards = the(copied, "shards")
    copied.produce(Request("checkpoint", 1, {"seed": 2}, (shards.ref,)), published)
    everything = verify(copied, copied.directories())
    assert not everything.differences
    assert sorted(everything.nodes) == sorted(artifact.label for artifact in copied.artifacts())
    flip(shards.path / "train-00000.arrow")
    (difference,) = verify(copied, copied.directories()).differences
    assert difference.node == shards.label
    for model in (copied.root / "checkpoint").glob("[!.]*"):
        assert verify(copied, [model]).differences == [difference]


def test_a_changed_source_comes_before_all_else_and_a_lost_one_is_no_fault(whole: Store) -> None:
    file = whole.root.parent / "text" / "07.txt"
    raw = flip(file)
    flipped = the_path(whole, "corpus") / "documents-00000.parquet"
    parquet = flip(flipped)
    try:
        source, corpus = look(whole).differences
        assert (source.node, source.file) == (f"source of {corpus.node}", "07.txt")
        assert (source.expected, source.found) == (hashlib.sha256(raw).hexdigest(), sha256_file(file))
        assert len(look(whole, sources=False).differences) == 1
        flipped.write_bytes(parquet)
        file.unlink()
        report = look(whole)
        assert not report.differences
        assert any("1 of 30 files are not here: 07.txt" in note for note in report.notes)
        (file.parent / "99.txt").write_text("New.")
        assert any("1 files are there that were not" in note for note in look(whole).notes)
    finally:
        file.write_bytes(raw)
        flipped.write_bytes(parquet)
        (file.parent / "99.txt").unlink(missing_ok=True)


def test_a_source_with_a_strange_name_hides_no_change(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number:02d}.txt").write_text(f"Text {number}. " * 20)
    strange = [tmp_path / "text" / name for name in ("a\\b.txt", "c\x1b[1m\n.txt")]
    for path in strange:
        path.write_text(f"A text in {path.name!r}.")
    store = Store(tmp_path / "store")
    source = SourceConfig(kind="files", paths=(f"{tmp_path}/text/*.txt",))
    made, _ = build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3))
    assert (look(store, "corpus").differences, look(store, "corpus").notes) == ([], [])
    for path in (tmp_path / "text" / "07.txt", *strange):
        flip(path)
    found = look(store, "corpus").differences
    assert [d.node for d in found] == [f"source of {made.label}"] * 3
    assert [d.file for d in found] == ["07.txt", "a\\b.txt", r"'c\x1b[1m\n.txt'"], "no terminal shall obey a name"
    strange[1].unlink()
    (note,) = look(store, "corpus").notes
    assert r"1 of 22 files are not here: 'c\x1b[1m\n.txt'" in note


@pytest.mark.parametrize(("name", "sha256"), [("../../outside", "{}"), ("a.txt", "../../outside"), ("a\\b", "{}")])
def test_a_download_is_looked_for_in_its_own_folder_alone(tmp_path: Path, name: str, sha256: str) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "outside").write_text("outside")
    digest = sha256.format(hashlib.sha256(b"inside").hexdigest())
    line = {"name": name, "bytes": 6, "sha256": digest}

    def build(directory: Path) -> dict[str, Any]:
        (directory / SOURCES).write_text(json.dumps(line) + "\n")
        return {}

    source = Ref("source", "0" * 64, content_digest([(name, digest)]))
    made, _ = store.produce(Request("corpus", 2, {"source": {"kind": "http"}}, (source,)), build)
    report = verify(store, [made.path])
    assert not report.differences
    assert any("cannot be looked at: ValueError: it names a file outside" in note for note in report.notes)


def test_the_list_of_sources_names_each_file_without_a_path(whole: Store) -> None:
    corpus = the(whole, "corpus")
    lines = [json.loads(line) for line in corpus.file(SOURCES).read_text().splitlines()]
    files = sorted((whole.root.parent / "text").iterdir())
    assert lines == [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files]


def test_a_source_of_more_files_than_a_manifest_can_name_is_refused_before_any_work(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptmodel.text.corpus.LONGEST_MANIFEST", 30 * 20)
    source = SourceConfig(kind="files", paths=(f"{whole.root.parent}/text/*.txt",))
    with pytest.raises(DataError, match=r"the source has 30 files.*put many texts into one file"):
        build_corpus(Store(tmp_path / "none"), CorpusConfig(source=source))
    assert not (tmp_path / "none").exists()


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that gptflow at commit c055041 wrote, whose corpora had no list of sources, and its text."""
    with tarfile.open(DATA / "store_recipe_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Store(Path("store"))


def test_a_store_of_an_earlier_recipe_is_sound_and_usable(old: Store) -> None:
    report = verify(old, [the_path(old, "shards")])
    assert (report.differences, report.notes) == ([], [])
    corpus, shards = the(old, "corpus"), the(old, "shards")
    assert corpus.request.recipe_version == 1
    assert SOURCES not in corpus.names()
    assert len(list(iter_documents(corpus))) == 24
    assert open_split(shards, "train").n_tokens == shards.summary["train_tokens"]
    again, reused = build_shards(old, corpus, ShardsConfig(shard_bytes=4_000, workers=1))
    assert (reused, again.digest) == (True, shards.digest)
    _, reused = build_shards(old, corpus, ShardsConfig(shard_bytes=5_000, workers=1))
    assert not reused
    source = SourceConfig(kind="files", paths=("text/*.txt",))
    renewed, reused = build_corpus(old, CorpusConfig(source=source, validation_fraction=0.3))
    assert (reused, renewed.request.recipe_version) == (False, 2)
    assert list(iter_documents(renewed)) == list(iter_documents(corpus))


def test_damage_and_a_changed_source_are_named_in_a_store_of_an_earlier_recipe(old: Store) -> None:
    raw = flip(Path("text/11.txt"))
    (difference,) = verify(old, [the_path(old, "shards")]).differences
    assert (difference.node, difference.what) == (f"source of {the(old, 'corpus').label}", "digest of all its files")
    Path("text/11.txt").write_bytes(raw)
    flip(the_path(old, "corpus") / "documents-00000.parquet")
    (difference,) = verify(old, [the_path(old, "shards")]).differences
    assert difference.file == "documents-00000.parquet"


def test_the_command_tells_people_and_machines(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.commands.verify import verify as command

    monkeypatch.setenv("GPTFLOW_STORE", str(copied.root))
    shards, runner = the_path(copied, "shards"), CliRunner()
    asked = [the_path(copied, "checkpoint").name, "--mlflow", "off"]
    sound = runner.invoke(command, asked)
    assert (sound.exit_code, "all as recorded" in sound.stdout) == (0, True)
    flip(shards / "train-00000.arrow")
    broken = runner.invoke(command, [*asked, "--json"])
    told = json.loads(broken.stdout)
    assert (broken.exit_code, told["ok"], told["first"]["file"]) == (1, False, "train-00000.arrow")
    assert told["bytes"] > 0
    assert told["gigabytes_per_second"] > 0
    in_words = runner.invoke(command, ["--all", "--mlflow", "off", "--no-sources"])
    assert in_words.exit_code == 1
    assert f"first difference: shards/{shards.name}: train-00000.arrow: sha256: expected " in in_words.stdout
    (shards / MANIFEST).write_text("{")
    by_name = runner.invoke(command, [f"shards/{shards.name[:8]}", "--mlflow", "off", "--json"])
    assert (by_name.exit_code, json.loads(by_name.stdout)["first"]["file"]) == (1, MANIFEST)
    assert runner.invoke(command, [shards.name, "--all"]).exit_code == 2


@pytest.fixture
def gptflow(copied: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`gptflow verify` in a copy of the store."""
    from flows.commands.verify import verify as command

    monkeypatch.setenv("GPTFLOW_STORE", str(copied.root))
    return lambda *words: CliRunner().invoke(command, words)


def test_an_artifact_of_another_store_is_held_against_its_own_inputs(
    whole: Store, copied: Store, gptflow: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(the_path(copied, "shards") / "train-00000.arrow")
    there = the_path(whole, "checkpoint")
    monkeypatch.chdir(there)
    for name in (str(there), "."):
        found = gptflow(name, "--mlflow", "off", "--no-sources")
        assert found.exit_code == 0, found.output
        assert "shards/" in found.stdout, "its inputs were looked at"
    monkeypatch.setenv("GPTFLOW_STORE", str(whole.root))
    assert gptflow(str(the_path(copied, "checkpoint")), "--mlflow", "off", "--no-sources").exit_code == 1


def test_where_there_is_nothing_to_look_at_nothing_is_said_to_be_sound(
    copied: Store, gptflow: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (the_path(copied, "evaluation") / MANIFEST).unlink()
    found = gptflow("--all", "--mlflow", "off", "--no-sources")
    assert f"note: evaluation/{the_path(copied, 'evaluation').name}: has no manifest.json" in found.stdout
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "empty"))
    refused = gptflow("--all", "--mlflow", "off")
    assert refused.exit_code == 1
    assert isinstance(refused.exception, ArtifactError)
    assert str(refused.exception) == f"nothing in {tmp_path / 'empty'} to verify; is GPTFLOW_STORE right?"


def test_without_a_name_damage_elsewhere_does_not_stop_the_look(copied: Store, gptflow: Callable[..., Result]) -> None:
    model = the_path(copied, "checkpoint")
    damaged, _ = copied.produce(Request("checkpoint", 1, {"seed": 7}), published)
    (damaged.path / MANIFEST).write_text("{")
    (the_path(copied, "weights") / "model.safetensors").unlink()
    told = json.loads(gptflow("--mlflow", "off", "--no-sources", "--json").stdout)
    assert [d["file"] for d in told["differences"]] == ["model.safetensors"]
    assert f"checkpoint/{model.name}" in told["nodes"]
    assert any(note.startswith(f"{damaged.label}: left out") for note in told["notes"])
    (model / MANIFEST).write_text("{")
    refused = gptflow("--mlflow", "off").exception
    assert isinstance(refused, ArtifactError)
    assert "none of the 2 checkpoints" in str(refused)


def test_mlflow_is_not_said_to_agree_on_what_it_does_not_know(
    copied: Store, gptflow: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to make
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"file:{tmp_path / 'mlruns'}")
    MlflowClient().search_experiments()
    for name in (the(copied, "shards").label, the(copied, "checkpoint").label):
        assert "MLflow: nothing to compare\n" in gptflow(name, "--no-sources").stdout
        refused = gptflow(name, "--no-sources", "--mlflow", "required")
        assert refused.exit_code == 1
        assert isinstance(refused.exception, TrackingError)


class _Hub(BaseHTTPRequestHandler):
    """Knows one commit of one dataset; answers with the status that its server has for all others."""

    def do_GET(self) -> None:
        told: Any = self.server
        known = self.path.split("?")[0] == f"/api/datasets/some/text/revision/{told.commit}"
        body = json.dumps({"id": "some/text", "sha": told.says}).encode() if known else b"{}"
        self.send_response(200 if known else told.status)
        if not known:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_hub_is_asked_for_the_commit_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "c" * 40
    store = Store(tmp_path / "store")

    def build(directory: Path) -> dict[str, Any]:
        (directory / SOURCES).write_text(json.dumps({"dataset": "some/text", "commit": commit}) + "\n")
        return {}

    source = Ref("source", "0" * 64, hub_digest("some/text", commit))
    made, _ = store.produce(Request("corpus", 2, {"source": {"kind": "huggingface"}}, (source,)), build)

    def looked() -> tuple[list[str], list[str]]:
        report = verify(store, [made.path])
        return [f"{d.what} {d.found}" for d in report.differences], [n for n in report.notes if "source of" in n]

    served: Any = HTTPServer(("127.0.0.1", 0), _Hub)
    served.commit, served.says, served.status = commit, commit, 404
    thread = threading.Thread(target=served.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    try:
        assert looked() == ([], []), "it has the commit"
        served.says = "d" * 40
        assert looked() == ([f"commit on the hub {served.says}"], [])
        served.commit = "e" * 40
        (differences, (note,)) = looked()
        assert (differences, "no more, or not for us" in note) == ([], True)
        served.status = 503
        assert "not checked: some/text: the hub does not answer" in looked()[1][0]
    finally:
        served.shutdown()
        thread.join()
        served.server_close()
    assert "not checked: some/text: the hub does not answer" in looked()[1][0], "nobody listens there any more"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away and become another user")
def test_what_is_closed_to_us_is_a_difference(copied: Store) -> None:
    for folder in (copied.root, *copied.root.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    the_path(copied, "shards").chmod(0o700)
    targets = copied.directories()
    verify(copied, targets, sources=False)  # what it imports may be closed too
    os.seteuid(65534)
    try:
        (closed,) = verify(copied, copied.directories(), sources=False).differences
    finally:
        os.seteuid(0)
    assert (closed.node, closed.file) == (f"shards/{the_path(copied, 'shards').name}", MANIFEST)
    assert "cannot be read: Permission denied" in closed.found


def test_the_list_of_sources_is_read_in_its_own_encoding(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"ä{number}.txt").write_text(f"Text {number} with a name. " * 20)
    store = Store(tmp_path / "store")
    source = SourceConfig(kind="files", paths=(f"{tmp_path}/text/*.txt",))
    build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3))
    program = "import sys; from pathlib import Path; from gptmodel.upkeep.verification import verify; "
    program += (
        "from gptmodel.store.artifacts import Store; s = Store(Path(sys.argv[1])); r = verify(s, s.directories()); "
    )
    program += "print(len(r.differences), r.notes)"
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:gptmodel.upkeep.origins"]
    command = [sys.executable, *strict, "-c", program, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 []\n"), done.stderr
