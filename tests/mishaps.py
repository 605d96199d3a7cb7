"""How a person comes to an error: the place that each of `tests.provocations` starts from, and what is wrong there."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens there


@dataclass(frozen=True)
class Place:
    """The current folder of a case: `texts/`, and a store with a corpus, shards of it and a model trained on "
    "nothing."""

    folder: Path
    names: dict[str, str]
    """corpus, shards, model: `kind/fingerprint`."""

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def artifact(self, what: str) -> Path:
        return self.folder / "store" / self.names[what]


Prepare = Callable[[Place], "AbstractContextManager[None] | None"]


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong."""

    how: str
    """In a few words, for the page."""
    command: str
    """After `gptflow`; {corpus}, {shards} and {model} are names in the store."""
    code: int
    prepare: Prepare = lambda _: None
    env: dict[str, str] = field(default_factory=dict)
    given: bytes = b""
    """On standard input."""
    flow: bool = False
    """Runs a flow, which takes a Prefect server and seconds."""


_SETTINGS = """\
preset: smoke
corpus: {source: {kind: files, paths: ["texts/*.txt"]}, validation_fraction: 0.4}
train: {threads: 1, precision: float32}
"""


def text(place: Place, count: int = 12) -> None:
    for number in range(count):
        place.write(f"texts/{number}.txt", f"Letter {number}. The mill keeps its books, and the harbour sells salt.\n")
    place.write("texts.yaml", _SETTINGS)


def files(name: str, content: str | bytes) -> Prepare:
    """Some good texts, and one file beside them."""

    def prepare(place: Place) -> None:
        place.write(name, content)

    return prepare


def table(column: str, values: list[object]) -> Prepare:
    def prepare(place: Place) -> None:
        pq.write_table(pa.table({column: values}), place.folder / "a.parquet")

    return prepare


def damage(what: str, name: str, change: Callable[[bytes], bytes]) -> Prepare:
    def prepare(place: Place) -> None:
        path = place.artifact(what) / name
        path.chmod(0o644)
        path.write_bytes(change(path.read_bytes()))

    return prepare


def lose(what: str) -> Prepare:
    return lambda place: shutil.rmtree(place.artifact(what))


def weights(**changes: bytes | None) -> Prepare:
    """GPT-2 weights in `a/`, as Hugging Face lays them out, with some files changed or left out."""

    def prepare(place: Place) -> None:
        config = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
        there = {"config.json": json.dumps(config).encode(), "model.safetensors": b"", **changes}
        for name, content in there.items():
            if content is not None:
                place.write(f"a/{name}", content)

    return prepare


@contextmanager
def held(place: Place) -> Iterator[None]:
    """The corpus that the texts would give is being made by another."""
    from gptmodel.settings import load_config
    from gptmodel.store.artifacts import Store
    from gptmodel.store.locks import exclusive
    from gptmodel.text.corpus import build_corpus

    text(place)
    there = Store(place.folder / "elsewhere")
    made, _ = build_corpus(there, load_config(file=place.folder / "texts.yaml").corpus)
    lock = place.folder / "store" / "corpus" / f".{made.path.name}.lock"
    with exclusive(lock, "the same"):
        yield


@contextmanager
def full(place: Place) -> Iterator[None]:
    """No room on the disk, as the system says. On disks that are really full: tests/workflow/test_disk.py."""
    text(place)
    there = list(os.statvfs(place.folder))
    there[4] = 0  # f_bavail
    with mock.patch.object(os, "statvfs", return_value=os.statvfs_result(there)):
        yield


@contextmanager
def taken(place: Place) -> Iterator[None]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", PORT))
        other.listen()
        place.write("prefect.yaml", "")
        yield


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


PORT = _free_port()


def furnish(folder: Path) -> dict[str, str]:
    """A small store in `folder/store`, and the names of what is in it."""
    from gptmodel.config import recipe
    from gptmodel.model import GPT
    from gptmodel.settings import load_config
    from gptmodel.store.artifacts import Request, Store
    from gptmodel.text.corpus import build_corpus
    from gptmodel.tokens.shards import build_shards
    from gptmodel.weights import save_model
    from tests.conftest import write_text

    write_text(folder / "source", documents=12, sentences=12)
    source = ["corpus.source.kind=files", f"corpus.source.paths=['{folder}/source/*.txt']"]
    shape = ["model.n_layer=1", "model.n_embd=4", "model.context_length=8"]
    config = load_config("smoke", sets=[*source, "corpus.validation_fraction=0.3", *shape])
    store = Store(folder / "store")
    corpus, _ = build_corpus(store, config.corpus)
    shards, _ = build_shards(store, corpus, config.shards)

    def build(directory: Path) -> dict[str, object]:
        save_model(GPT(config.model, seed=0), directory)
        lines = [{"step": step, "tokens": step * 32, "metrics": {"train/loss": 10.8}} for step in (1, 20)]
        (directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {"step": 20, "steps_trained": 20}

    asked = {"model": recipe(config.model), "train": recipe(config.train)}
    model, _ = store.produce(Request("checkpoint", 3, asked, (shards.ref,)), build)
    return {"corpus": corpus.label, "shards": shards.label, "model": model.label}
