"""A disk that is full, too small or read-only: one line, nothing half published, and the next run goes on.

On real small file systems in memory, so these tests need the right to mount.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from gptmodel.config import CorpusConfig, EvaluateConfig, ModelConfig, PipelineConfig, ShardsConfig, SourceConfig
from gptmodel.errors import StorageError, TransientError
from gptmodel.formats import hf_format
from gptmodel.judging.evaluation import evaluate
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Request, Store, sha256_file, write_atomic
from gptmodel.store.space import storage_errors, training_bytes, used_bytes
from gptmodel.text.corpus import build_corpus
from gptmodel.text.download import download
from gptmodel.tokens.shards import build_shards
from gptmodel.weights import save_model

Tiny = Callable[..., PipelineConfig]
Progress = Callable[[int, int, str], None]
MEGABYTE = 1_000_000


@dataclass
class Disk:
    """A file system of its own, with a store on it."""

    path: Path

    @property
    def store(self) -> Store:
        return Store(self.path / "store")

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        with (self.path / "ballast").open("ab") as file:
            while self.free > leave:
                with suppress(OSError):  # somebody else took the room meanwhile
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + self.free - leave)

    def clear(self) -> None:
        (self.path / "ballast").unlink()

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@contextmanager
def mounted(path: Path, n_bytes: int) -> Iterator[Disk]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path, tiny_data: tuple[Store, Artifact]) -> Iterator[Disk]:
    """20 MB, with the tiny corpus, its shards, and weights."""
    with mounted(tmp_path / "disk", 20 * MEGABYTE) as found:
        shutil.copytree(tiny_data[0].root, found.store.root)
        found.store.produce(Request("weights", 1, {}), write_weights)
        yield found


def write_weights(directory: Path) -> dict[str, Any]:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32), seed=1)
    save_model(model, directory)
    return {}


def the(store: Store, kind: str) -> Artifact:
    (found,) = [artifact for artifact in store.artifacts() if artifact.kind == kind]
    return found


def make_corpus(store: Store, text_dir: Path, progress: Progress | None) -> tuple[Artifact, bool]:
    source = SourceConfig(kind="files", paths=(f"{text_dir}/*.txt",))
    return build_corpus(store, CorpusConfig(source=source, validation_fraction=0.3), progress=progress)


def make_shards(store: Store, text_dir: Path, progress: Progress | None) -> tuple[Artifact, bool]:
    return build_shards(store, the(store, "corpus"), ShardsConfig(shard_bytes=5_000, workers=1), progress=progress)


def make_evaluation(store: Store, text_dir: Path, progress: Progress | None) -> tuple[Artifact, bool]:
    config = EvaluateConfig(max_tokens=512, prompts=())
    return evaluate(store, the(store, "weights"), the(store, "shards"), config, progress=progress)


def make_import(store: Store, text_dir: Path, progress: Progress | None) -> tuple[Artifact, bool]:
    where = text_dir.parent / "theirs"
    where.mkdir(exist_ok=True)
    shape = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=16)
    ours = dict(GPT(shape, seed=1).named_parameters())
    wanted = {theirs: entry for theirs, entry in hf_format._table(1).items() if entry is not None}
    tensors = {k: ours[name].detach().T.contiguous() if t else ours[name].detach() for k, (name, t) in wanted.items()}
    save_file(tensors, where / "model.safetensors")
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 16, "vocab_size": 50_257}
    (where / "config.json").write_text(json.dumps(config))
    return import_weights(store, str(where), progress=progress)


def make_training(store: Store, text_dir: Path, progress: Progress | None) -> tuple[Artifact, bool]:
    from gptmodel.settings import load_config

    config = load_config("smoke", sets=["model.n_layer=1", "model.n_embd=8", "train.precision=float32"])
    return pretrain(store, plan_training(store, config, the(store, "shards")), on_line=lambda _: None)


STEPS = {
    "corpus": make_corpus,
    "shards": make_shards,
    "checkpoint": make_training,
    "evaluation": make_evaluation,
    "weights": make_import,
}


def state(store: Store) -> dict[str, list[str]]:
    """Hashes of all that is published, read from the disk again."""
    found = {a.label: [sha256_file(a.path / e.name) for e in a.files] for a in store.artifacts()}
    assert all(found[a.label] == [e.sha256 for e in a.files] for a in store.artifacts())
    return found


def leftovers(store: Store) -> list[Path]:
    return [p for p in store.root.rglob("*") if p.is_file() and ".tmp" in p.name]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_will_not_fit_is_refused_before_it_starts(disk: Disk, text_dir: Path, step: str) -> None:
    before = state(disk.store)
    disk.fill(leave=MEGABYTE // 2)
    with pytest.raises(StorageError) as told:
        STEPS[step](disk.store, text_dir, None)
    assert not isinstance(told.value, TransientError), "a retry cannot help"
    found = str(told.value)
    assert found.startswith(f"not enough disk space for {step} ")
    assert re.search(rf"{disk.store.root} has (4\d\d|500) kB free; free ", found)
    assert "\n" not in found
    assert state(disk.store) == before
    assert not list(disk.store.root.glob("*/.building-*")), "nothing was begun"


@pytest.mark.parametrize("step", ["corpus", "shards", "evaluation"])
def test_a_disk_that_fills_up_stops_the_step_and_the_next_run_goes_on(
    disk: Disk, text_dir: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptmodel.text.documents._GROUP_BYTES", 4_000)
    before = state(disk.store)

    def fill(done: int, total: int, unit: str) -> None:
        if not (disk.path / "ballast").exists():
            disk.fill()

    said = rf"^the disk is full: {step} [0-9a-f]{{16}} could not be written to .*it needs about .*finished is kept"
    with pytest.raises(StorageError, match=said):
        STEPS[step](disk.store, text_dir, fill)
    assert state(disk.store) == before
    assert not leftovers(disk.store)
    if step == "corpus":
        assert not list(disk.store.root.rglob(".building-*/documents-*"))
    disk.clear()
    artifact, reused = STEPS[step](disk.store, text_dir, None)
    assert not reused
    assert state(disk.store).keys() == {*before, artifact.label}


def parquet(directory: Path) -> None:
    with pq.ParquetWriter(directory / "a.parquet", pa.schema([("a", pa.binary())])) as writer:
        writer.write_table(pa.table({"a": [os.urandom(MEGABYTE)]}))


def arrow(directory: Path) -> None:
    table = pa.table({"a": [os.urandom(MEGABYTE)]})
    with pa.OSFile(str(directory / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def plain(directory: Path) -> None:
    write_atomic(directory / "a", os.urandom(MEGABYTE))


@pytest.mark.parametrize("write", [parquet, arrow, plain, write_weights])
@pytest.mark.parametrize("leave", [0, MEGABYTE // 2])
def test_every_library_that_writes_is_understood(tmp_path: Path, write: Callable[[Path], Any], leave: int) -> None:
    with mounted(tmp_path / "disk", 5 * MEGABYTE) as disk:

        def build(directory: Path) -> dict[str, Any]:
            disk.fill(leave)
            write(directory)
            return {}

        with pytest.raises(StorageError, match=r"^the disk is full: thing"):
            disk.store.produce(Request("thing", 1, {}), build)
        assert not list(disk.store.artifacts())


@pytest.mark.slow
def test_the_room_asked_for_a_training_is_enough_and_a_full_disk_stops_it(
    tmp_path: Path, tiny_data: tuple[Store, Artifact], tiny: Tiny
) -> None:
    config = tiny("train.max_steps=30", "train.publish=best", "train.sample_prompts=[]", "train.eval_every=3")
    needed = training_bytes(config.model, config.train)
    with mounted(tmp_path / "disk", used_bytes(tiny_data[0].root) + needed + MEGABYTE) as disk:
        shutil.copytree(tiny_data[0].root, disk.store.root)
        training = plan_training(disk.store, config, the(disk.store, "shards"))
        checkpoints = disk.store.building_path(training.request) / ".work" / "checkpoints"
        for leave in (MEGABYTE, 0):  # room for the log but not for a checkpoint, and room for nothing

            def fill(line: str, leave: int = leave) -> None:
                if "validation loss" in line and list(checkpoints.glob("step-*[1-9]*")):
                    disk.fill(leave)

            with pytest.raises(StorageError, match=r"^the disk is full: the training could not be written") as told:
                pretrain(disk.store, training, on_line=fill)
            assert "\n" not in str(told.value)
            assert list(checkpoints.glob("step-*"))
            assert not list(checkpoints.glob(".*.tmp")), "what was half written is removed"
            state(disk.store)
            disk.clear()
        lines: list[str] = []
        artifact, _ = pretrain(disk.store, training, on_line=lines.append)
        assert any(line.startswith("going on from the checkpoint of step") for line in lines)
        assert artifact.summary["steps_trained"] == 30
        state(disk.store)


@pytest.mark.parametrize("step", STEPS)
def test_a_read_only_store_is_told_and_what_is_there_is_still_reused(disk: Disk, text_dir: Path, step: str) -> None:
    corpus = the(disk.store, "corpus")
    before = state(disk.store)
    disk.make_read_only()
    with pytest.raises(StorageError, match=r"cannot write .* is on a read-only file system; set GPTFLOW_STORE"):
        STEPS[step](disk.store, text_dir, None)
    assert state(disk.store) == before
    assert disk.store.produce(corpus.request, lambda _: pytest.fail("it is there"))[1]


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """For the time of the body root may write only where its owner may: CAP_DAC_OVERRIDE is put aside."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~(1 << 1)
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def test_a_store_that_is_closed_to_us_is_told_and_what_is_there_is_still_reused(
    tmp_path: Path, tiny_data: tuple[Store, Artifact], text_dir: Path
) -> None:
    store = Store(shutil.copytree(tiny_data[0].root, tmp_path / "store"))
    store.produce(Request("weights", 1, {}), write_weights)
    corpus, before = the(store, "corpus"), state(store)
    for directory in (store.root, *(path for path in store.root.rglob("*") if path.is_dir())):
        directory.chmod(0o555)
    with bound_by_permissions():
        for step, make in STEPS.items():
            with pytest.raises(StorageError) as told:
                make(store, text_dir, None)
            found = rf"cannot write {step}.*: .*: permission denied; give this user the right, or set GPTFLOW_STORE"
            assert re.match(found, str(told.value))
            assert "\n" not in str(told.value)
        assert store.produce(corpus.request, lambda _: pytest.fail("it is there"))[1]
    assert state(store) == before


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EPERM])
def test_what_cannot_be_had_on_every_machine(tmp_path: Path, code: int) -> None:
    """A quota, and a file that is sealed: the kernel's own errors, but raised here."""
    said = {
        errno.EDQUOT: r"^the disk quota is used up: it could not be written",
        errno.EPERM: "operation not permitted",
    }
    with pytest.raises(StorageError, match=said[code]), storage_errors("it", tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = b'{"text": "a line of it"}\n' * 80_000


class Hub(BaseHTTPRequestHandler):
    """A model and a dataset of 2 MB each."""

    def do_GET(self) -> None:
        path, body, status = self.path.partition("?")[0], LINES, 200
        name, is_there = "train.jsonl" if "datasets" in path else "model.safetensors", True
        headers = {"Content-Type": "application/json"}
        if "/resolve/" in path:
            is_there = path.endswith(name)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        elif "/tree/" in path or "/paths-info/" in path:
            body = json.dumps([{"type": "file", "path": name, "size": len(body), "oid": "1"}]).encode()
        else:
            siblings = [{"rfilename": name}]
            body = json.dumps({"id": "ORG/it", "sha": COMMIT, "siblings": siblings, "private": False}).encode()
        if not is_there:
            body, status, headers = b"", 404, {"X-Error-Code": "EntryNotFound"}
        self.send_response(status)
        for field, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(field, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        pytest.param(["import", "ORG/it"], "the download of ORG/it", marks=pytest.mark.slow),
        pytest.param(
            ["prepare", "--set", "corpus.source.kind=huggingface", "--set", "corpus.source.dataset=ORG/it"],
            "the cache of ORG/it",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_full_hub_cache_ends_the_command_with_1_and_one_line(
    workplace: Path, tmp_path: Path, hub: str, words: list[str], what: str
) -> None:
    from prefect.settings import PREFECT_API_URL

    with mounted(tmp_path / "disk", MEGABYTE) as disk:
        env = os.environ | {"HF_HOME": str(disk.path), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
        env |= {"GPTFLOW_STORE": str(tmp_path / "store"), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        command = [sys.executable, "-m", "flows", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("gptflow: ")]
    assert done.stderr.rstrip().endswith(told)
    assert told.startswith(f"gptflow: the disk is full: {what} could not be written to {disk.path}, ")
    assert told.endswith("or set HF_HOME to another place")
    assert not list((tmp_path / "store").glob("[!.]*/[!.]*"))


BODY = bytes(range(256)) * 8_000


class Handler(BaseHTTPRequestHandler):
    """Sends BODY, with its length or without."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        if self.path == "/measured":
            self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        with suppress(ConnectionError):  # the other side had no room
            self.wfile.write(BODY[start:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("path", "said"), [("/measured", "not enough disk space"), ("/endless", "the disk is full")])
def test_a_download_that_does_not_fit(tmp_path: Path, url: str, path: str, said: str) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    with mounted(tmp_path / "disk", 3 * MEGABYTE) as disk:
        target = disk.path / "got"
        disk.fill(MEGABYTE)
        with pytest.raises(StorageError, match=rf"^{said}.* the download of {url}{path}[ :].*\d M?B\b"):
            download(url + path, target, sha256=digest, allow_private=True)
        assert not target.exists()
        arrived = used_bytes(disk.path) - (disk.path / "ballast").stat().st_size
        assert (arrived > MEGABYTE // 2) == (path == "/endless"), "what arrived is kept, and is asked for no more"
        disk.clear()
        assert download(url + path, target, sha256=digest, allow_private=True).read_bytes() == BODY
        disk.make_read_only()
        source = SourceConfig(kind="http", paths=(url + path,), sha256=("0" * 64,), allow_private_addresses=True)
        with pytest.raises(StorageError, match="read-only file system"):
            build_corpus(disk.store, CorpusConfig(source=source))


def test_a_flow_on_a_full_disk_fails_with_that_line(
    workplace: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.prepare_data import prepare_data

    monkeypatch.setenv("GPTFLOW_STORE", str(disk.path / "store"))
    disk.fill(MEGABYTE // 2)
    flow_state = prepare_data(preset="smoke", return_state=True)
    with pytest.raises(StorageError, match=r"^not enough disk space for corpus"):
        flow_state.result()
