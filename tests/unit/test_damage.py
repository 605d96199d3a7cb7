"""A flipped bit or a cut in any file of any artifact is refused by name: when it is first used, and at every start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptmodel.config import DecodingConfig, EvaluateConfig, ModelConfig, PipelineConfig, ShardsConfig
from gptmodel.errors import ArtifactError
from gptmodel.judging.evaluation import evaluate
from gptmodel.model import GPT
from gptmodel.store.artifacts import MANIFEST, Artifact, Request, Store, load_artifact, write_atomic
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.tokens.shards import build_shards, open_split
from gptmodel.weights import load_model, save_model

Tiny = Callable[..., PipelineConfig]
JUDGE = EvaluateConfig(
    max_tokens=256, prompts=("The mill",), decodings=(DecodingConfig(temperature=0.0, max_new_tokens=2),)
)
FILES = {
    "corpus": ("documents-00000.parquet", "sources.jsonl"),
    "shards": ("train-00000.arrow", "train-00001.arrow", "validation-00000.arrow"),
    "checkpoint": ("config.json", "curve.jsonl", "model.safetensors", "samples.jsonl", "training.json"),
    "weights": ("config.json", "model.safetensors"),
    "evaluation": (
        *("documents.parquet", "evaluation.json", "repetition.json", "samples.jsonl", "sources.parquet"),
        *("surprisal.json", "units.parquet"),
    ),
}
EVERY = [(kind, name) for kind, names in FILES.items() for name in names]


def model_of(kind: str) -> Callable[[Path], dict[str, Any]]:
    """Builds the files of a published checkpoint or of imported weights."""

    def build(directory: Path) -> dict[str, Any]:
        save_model(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32), seed=1), directory)
        for name in FILES[kind]:
            if not (directory / name).exists():
                write_atomic(directory / name, json.dumps({"step": 1, "train_loss": 2.5}) + "\n")
        return {"step": 1, "train_loss": 2.5}

    return build


@pytest.fixture
def store(tmp_path: Path, tiny_data: tuple[Store, Artifact]) -> Store:
    """One artifact of every kind, each one file at least."""
    shutil.copytree(tiny_data[0].root, tmp_path / "store")
    found = Store(tmp_path / "store")
    shards = the(found, "shards")
    for kind in ("checkpoint", "weights"):
        found.produce(Request(kind, 1, {}, (shards.ref,)), model_of(kind))
    evaluate(found, the(found, "weights"), shards, JUDGE)
    return found


def the(store: Store, kind: str) -> Artifact:
    (found,) = [artifact for artifact in store.artifacts() if artifact.kind == kind]
    return found


def flip(path: Path) -> None:
    """One bit: the size stays."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


# Reads every file of every artifact and prints what is said of it.
READ_ALL = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import MANIFEST, load_artifact
from gptmodel.errors import ArtifactError

def said(path, name):
    try:
        load_artifact(path).file(name)
        return ""
    except ArtifactError as error:
        return str(error)

asked = [(Path(path), name) for path, name in json.loads(sys.argv[1])]
print(json.dumps([said(*one) for one in asked]))
"""


def at_a_new_start(asked: list[tuple[Path, str]]) -> list[str]:
    command = [sys.executable, "-c", READ_ALL, json.dumps([[str(path), name] for path, name in asked])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_the_table_names_every_file(store: Store) -> None:
    assert {a.kind: tuple(a.names()) for a in store.artifacts()} == FILES


def test_a_flipped_bit_in_any_file_is_refused_by_name_on_first_use_and_at_every_start(store: Store) -> None:
    asked = [(the(store, kind).path, name) for kind, name in EVERY]
    assert at_a_new_start(asked) == [""] * len(asked)
    for path, name in asked:
        flip(path / name)
    for found in (at_a_new_start(asked), at_a_new_start(asked)):
        for (path, name), said in zip(asked, found, strict=True):
            assert said.startswith(f"{path.parent.name}/{path.name}: {name} is damaged: sha256 is "), name
            assert said.endswith(f"remove {path} and run the step again")


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_cut_file_is_refused_by_name_even_on_reuse(store: Store, kind: str, name: str) -> None:
    found = the(store, kind)
    os.truncate(found.path / name, (found.path / name).stat().st_size - 1)
    for use in (lambda: found.file(name), lambda: load_artifact(found.path), lambda: store.find(found.request)):
        for _ in range(2):
            with pytest.raises(ArtifactError, match=rf"^{found.label}: {name} is damaged: [\d,]+ bytes, expected"):
                use()


def use_corpus(store: Store) -> object:
    return build_shards(store, the(store, "corpus"), ShardsConfig(shard_bytes=9_000, workers=1))


def use_shards(store: Store) -> object:
    return open_split(the(store, "shards"), "train")


def use_model(kind: str) -> Callable[[Store], object]:
    return lambda store: evaluate(store, the(store, kind), the(store, "shards"), EvaluateConfig(max_tokens=64))


def reuse_evaluation(store: Store) -> object:
    return evaluate(store, the(store, "weights"), the(store, "shards"), JUDGE)


@pytest.mark.parametrize(
    ("kind", "name", "use"),
    [
        ("corpus", "documents-00000.parquet", use_corpus),
        ("shards", "train-00000.arrow", use_shards),
        ("checkpoint", "model.safetensors", use_model("checkpoint")),
        ("checkpoint", "config.json", use_model("checkpoint")),
        ("weights", "model.safetensors", use_model("weights")),
        ("weights", "config.json", use_model("weights")),
        ("evaluation", "evaluation.json", reuse_evaluation),  # no step reads it, so its reuse does
        ("evaluation", "documents.parquet", reuse_evaluation),
        ("evaluation", "samples.jsonl", reuse_evaluation),
    ],
)
def test_the_step_that_reads_a_flipped_bit_refuses_and_publishes_nothing(
    store: Store, kind: str, name: str, use: Callable[[Store], object]
) -> None:
    found = the(store, kind)
    before = {artifact.label for artifact in store.artifacts()}
    flip(found.path / name)
    assert store.produce(found.request, lambda _: pytest.fail("it is there"))[1], "reuse alone looks at sizes"
    for _ in range(2):
        with pytest.raises(ArtifactError, match=rf"^{found.label}: {name} is damaged: sha256 is "):
            use(store)
    assert {artifact.label for artifact in store.artifacts()} == before


def test_a_reused_corpus_with_a_flipped_bit_is_refused_by_the_next_step(store: Store, tiny: Tiny) -> None:
    corpus, reused = build_corpus(store, tiny().corpus)
    assert reused
    flip(corpus.path / "documents-00000.parquet")
    again, reused = build_corpus(store, tiny().corpus)
    assert reused
    with pytest.raises(ArtifactError, match=r"documents-00000\.parquet is damaged"):
        list(iter_documents(again))


def test_no_bit_of_a_manifest_can_flip_unseen(store: Store) -> None:
    """Each byte of it in turn: it is refused, or it says the same."""
    path = the(store, "checkpoint").path
    sound, raw = load_artifact(path), (path / MANIFEST).read_bytes()
    unseen = []
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        (path / MANIFEST).write_bytes(flipped)
        try:
            found = load_artifact(path)
        except ArtifactError:
            continue
        if found != sound:
            unseen.append((place, bytes(flipped[place - 20 : place + 20])))
    assert not unseen


MAPPED = """
import sys
from pathlib import Path
from gptmodel.store.artifacts import load_artifact
from gptmodel.errors import ArtifactError
from gptmodel.tokens.tokenstream import open_split
from gptmodel.weights import load_model

shards, weights, plain = (Path(word) for word in sys.argv[1:])
opened = load_artifact(shards), load_artifact(weights)
for path in (shards / "train-00000.arrow", weights / "model.safetensors", plain / "model.safetensors"):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
for use in (lambda: open_split(opened[0], "train"), lambda: load_model(opened[1]), lambda: load_model(plain)):
    try:
        use()
    except ArtifactError as error:
        print(error)
"""


def test_a_file_that_was_cut_after_its_artifact_was_opened_does_not_kill_the_process(
    store: Store, tmp_path: Path
) -> None:
    """A cut file that is mapped ends in SIGBUS: so its size is looked at again right before."""
    weights = the(store, "weights")
    shutil.copytree(weights.path, tmp_path / "plain")
    command = [sys.executable, "-c", MAPPED, str(the(store, "shards").path), str(weights.path), str(tmp_path / "plain")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert "train-00000.arrow is damaged" in told[0]
    assert "model.safetensors is damaged" in told[1]
    assert "is not a whole safetensors file" in told[2]
    assert load_model(the_sound(tmp_path)) is not None


def the_sound(tmp_path: Path) -> Path:
    (tmp_path / "sound").mkdir()
    save_model(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32), seed=1), tmp_path / "sound")
    return tmp_path / "sound"
