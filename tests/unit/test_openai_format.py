"""OpenAI's own files: by directory and by address, named by what they hold, refused where they are not whole."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptmodel.errors import CheckpointError, ConfigError, DataError, NetworkError
from gptmodel.pretrained import import_weights, load_pretrained
from gptmodel.store.artifacts import Store
from gptmodel.tokenizer import data_files
from gptmodel.weights import load_model

TINY = Path(__file__).parents[1] / "data" / "openai_tiny"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "theirs", ignore=shutil.ignore_patterns("values.npz"))
    return tmp_path / "theirs"


class Site:
    """Serves a directory, cuts each first answer for a data file in the middle, and says what was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[tuple[str, str]] = []
        self.cut: set[str] = set()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.rsplit("/", 1)[-1], handler.headers.get("Range", "")
        self.asked.append((name, wanted))
        path = self.directory / name
        if not path.is_file():
            handler.send_error(404)
            return
        raw = path.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        handler.send_response(206 if wanted else 200)
        handler.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        handler.send_header("Content-Length", str(len(raw) - start))
        handler.end_headers()
        end = len(raw) // 2 if name in self.cut and not wanted else len(raw)
        handler.wfile.write(raw[start:end])


@contextmanager
def served(directory: Path) -> Iterator[Site]:
    site = Site(directory)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/gpt-2/models/tiny"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def edit_hparams(directory: Path, **changes: object) -> None:
    path = directory / "hparams.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_directory_becomes_weights_with_a_certificate(theirs: Path, tmp_path: Path) -> None:
    artifact, reused = import_weights(Store(tmp_path / "store"), str(theirs))
    assert not reused
    model, wanted = load_model(artifact), np.load(TINY / "values.npz")
    assert torch.equal(model.wte.weight, torch.from_numpy(wanted["model|wte"]))
    turned = torch.from_numpy(wanted["model|h1|mlp|c_fc|w"][0].T)
    assert torch.equal(dict(model.named_parameters())["blocks.1.mlp.up.weight"], turned)
    certificate = artifact.summary["certificate"]
    assert certificate["n_params"] == sum(value.size for value in wanted.values())
    assert len(certificate["tensors"]) == len(wanted.files)
    assert certificate["transformers"]["largest_difference"] < 1e-4
    assert {*artifact.summary["files"]} >= {"hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"}
    assert artifact.request.config == {"source": "local", "revision": "", "format": "openai"}


def test_the_same_by_address_going_on_after_a_cut(theirs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    here, _ = import_weights(store, str(theirs))
    with served(theirs) as site:
        site.cut = {"model.ckpt.data-00000-of-00001"}
        there, _ = import_weights(store, site.url, allow_private=True)
        assert there.digest == here.digest
        assert there.summary["source"] == site.url
        ranges = [wanted for name, wanted in site.asked if name == "model.ckpt.data-00000-of-00001"]
        assert ranges == ["", f"bytes={(theirs / 'model.ckpt.data-00000-of-00001').stat().st_size // 2}-"]
        before = [name for name, _ in site.asked]
        again, reused = import_weights(store, f"{site.url}/", revision=there.summary["revision"], allow_private=True)
        assert (again.digest, reused) == (there.digest, True)
        fetched = [name for name, _ in site.asked[len(before) :]]
        assert not {*fetched} & {"hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"}


def test_another_digest_than_was_asked_for_is_refused_and_deleted(theirs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with served(theirs) as site:
        with pytest.raises(DataError, match="was asked for; deleted"):
            import_weights(store, site.url, revision="0" * 64, allow_private=True)
        assert not [path for path in store.root.rglob("*") if path.is_file() and "model" in path.name]
        with pytest.raises(DataError, match="private address"):
            import_weights(store, site.url)
    with pytest.raises(NetworkError):
        import_weights(store, site.url, allow_private=True)


def test_an_address_with_a_damaged_index_leaves_nothing_that_the_next_try_would_take(
    theirs: Path, tmp_path: Path
) -> None:
    sound = (theirs / "model.ckpt.index").read_bytes()
    (theirs / "model.ckpt.index").write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    store = Store(tmp_path / "store")
    with served(theirs) as site:
        with pytest.raises(CheckpointError, match=r"checksum|damaged"):
            import_weights(store, site.url, allow_private=True)
        (theirs / "model.ckpt.index").write_bytes(sound)
        import_weights(store, site.url, allow_private=True)


def test_what_an_address_sent_damaged_is_asked_for_again(theirs: Path, tmp_path: Path) -> None:
    store, data = Store(tmp_path / "store"), theirs / "model.ckpt.data-00000-of-00001"
    for path, bad in ((data, b"x" * data.stat().st_size), (theirs / "hparams.json", b"<html>log in first</html>")):
        sound = path.read_bytes()
        path.write_bytes(bad)
        with served(theirs) as site:
            with pytest.raises((CheckpointError, DataError)):
                import_weights(store, site.url, allow_private=True)
            path.write_bytes(sound)
            import_weights(store, site.url, allow_private=True)


@pytest.mark.parametrize(
    ("address", "revision", "said"),
    [
        ("https://example.com/124M", "main", "revision is 'main'; that of an address is the digest"),
        ("https://me:secret@example.com/124M", "", "without a password"),
        ("https://example.com/124M?token=secret", "", "without a password"),
    ],
)
def test_an_address_is_refused_before_anything_is_asked(tmp_path: Path, address: str, revision: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        import_weights(Store(tmp_path / "store"), address, revision=revision)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_damaged_tensors_make_no_artifact(theirs: Path, tmp_path: Path) -> None:
    data = theirs / "model.ckpt.data-00000-of-00001"
    raw = data.read_bytes()
    data.write_bytes(raw[:-3] + b"abc")
    store = Store(tmp_path / "store")
    with pytest.raises(CheckpointError, match="CRC32C"):
        import_weights(store, str(theirs))
    assert list(store.artifacts()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 3}, r"12 missing: model/h2/"),
        ({"n_layer": 1}, r"12 unknown: model/h1/"),
        ({"n_embd": 16}, "of another shape"),
        ({"n_head": 3}, "n_embd 8 is not divisible by n_head 3"),
        ({"n_layer": 10**4}, "and the weights 28 tensors"),
        ({"activation": "relu"}, "activation is not known, and may change the computation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(theirs: Path, changes: dict[str, object], said: str) -> None:
    edit_hparams(theirs, **changes)
    with pytest.raises((DataError, CheckpointError), match=said) as caught:
        load_pretrained(theirs)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_beside_the_weights_must_be_gpt2s(theirs: Path) -> None:
    for name, path in data_files().items():
        shutil.copy(path, theirs / name)
    load_pretrained(theirs)
    with (theirs / "vocab.bpe").open("a") as file:
        file.write("x y\n")
    with pytest.raises(DataError, match=r"vocab\.bpe is not GPT-2's"):
        load_pretrained(theirs)


@pytest.mark.parametrize(
    "state", ['model_checkpoint_path: "/old/place/model.ckpt"\n', 'all: "x"\nmodel_checkpoint_path: "model.ckpt"', None]
)
def test_the_prefix_is_found(theirs: Path, state: str | None) -> None:
    (theirs / "checkpoint").unlink()
    if state is not None:
        (theirs / "checkpoint").write_text(state)
    assert load_pretrained(theirs).config.n_layer == 2


@pytest.mark.parametrize("state", ["", 'model_checkpoint_path: ""', 'model_checkpoint_path: "a/.."', "x" * 200_000])
def test_a_state_file_that_names_nothing_is_refused(theirs: Path, state: str) -> None:
    (theirs / "checkpoint").write_text(state)
    with pytest.raises(CheckpointError):
        load_pretrained(theirs)
