"""Small real parts that many tests use: text of our own, shards of it, and the smallest models that can be trained."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptmodel.config import CorpusConfig, PipelineConfig, ShardsConfig
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store

# Small tensors gain nothing from a second thread, and on a busy machine threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in the background of a shell, for every child too, and then none would end at Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in [name for name in os.environ if name.startswith("OPENLINEAGE_")]:
    del os.environ[_name]  # a developer's own server is not told of tests

_SUBJECTS = ("the harbour", "our council", "a careful clerk", "the old river", "every farmer", "the new mill")
_VERBS = ("keeps", "measures", "remembers", "sells", "mends", "follows")
_OBJECTS = ("the long road", "its own books", "seven bridges", "a quiet winter", "the price of salt", "many letters")


def write_text(directory: Path, documents: int = 40, sentences: int = 30) -> Path:
    """Text files of made-up sentences, always the same ones."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for number in range(documents):
        said = [f"{draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}." for _ in range(sentences)]
        (directory / f"{number:03d}.txt").write_text(f"Document {number}.\n" + " ".join(said) + "\n")
    return directory


# Files that take long, the longest first: one that is begun last leaves the other process without work.
_LONG = (
    *("test_chaos.py", "test_services.py", "test_pretraining.py", "test_cli.py", "test_sync.py", "test_resume.py"),
    *(
        "test_pipeline.py",
        "test_fencing.py",
        "test_signals.py",
        "test_numerics.py",
        "test_verify.py",
        "test_reproduce.py",
    ),
    *("test_disk.py", "test_serving.py", "test_tracking.py", "test_model_card.py", "test_mlflow_lineage.py"),
)
_WITH_TRANSFORMERS = ("test_model.py", "test_pretrained.py", "test_hf_export.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file to one process, as ever, and those that import transformers, which takes seconds, to the same one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "transformers" if file.endswith(_WITH_TRANSFORMERS) else file

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # it would begin with the files of most tests
    return Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where two processes share the tests, the long files come first; within a file the order stays."""
    if hasattr(config, "workerinput"):
        place = {name: number for number, name in enumerate(_LONG)}
        items.sort(key=lambda item: place.get(item.path.name, len(_LONG)))


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "files")


@pytest.fixture(scope="session")
def tiny_sets(text_dir: Path) -> list[str]:
    """`--set` values that turn the smoke preset into seconds of work on the made-up text."""
    return [
        "name=tiny",
        "corpus.source.kind=files",
        f"corpus.source.paths=['{text_dir}/*.txt']",
        "corpus.validation_fraction=0.2",
        "shards.shard_bytes=20000",
        "model.n_layer=1",
        "model.n_embd=16",
        "model.context_length=32",
        "model.dropout=0.1",
        "train.max_steps=12",
        "train.batch_size=4",
        "train.micro_batch_size=2",
        "train.eval_every=6",
        "train.eval_tokens=512",
        "train.checkpoint_every=3",
        "train.precision=float32",
        "train.threads=1",
        "train.sample.max_new_tokens=4",
        "evaluate.max_tokens=1024",
        "evaluate.surprisal_tokens=40",
    ]


@pytest.fixture(scope="session")
def tiny(tiny_sets: list[str]) -> Callable[..., PipelineConfig]:
    """A config of the tiny pipeline; arguments are more `--set` values."""

    def make(*sets: str) -> PipelineConfig:
        return load_config("smoke", sets=[*tiny_sets, *sets])

    return make


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., PipelineConfig]) -> tuple[Store, Artifact]:
    """A store with the tiny corpus and its shards."""
    from gptmodel.text.corpus import build_corpus
    from gptmodel.tokens.shards import build_shards

    store = Store(tmp_path_factory.mktemp("data") / "store")
    config = tiny()
    assert isinstance(config.corpus, CorpusConfig)
    assert isinstance(config.shards, ShardsConfig)
    corpus, _ = build_corpus(store, config.corpus)
    shards, _ = build_shards(store, corpus, config.shards)
    return store, shards


@pytest.fixture
def data(tiny_data: tuple[Store, Artifact], tmp_path: Path) -> tuple[Store, Artifact]:
    """A store of its own for each test, with the shared data in it."""
    store, shards = tiny_data
    shutil.copytree(store.root, tmp_path / "store")
    own = Store(tmp_path / "store")
    return own, own.resolve(shards.label)


@pytest.fixture(scope="session")
def undisturbed(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The tiny model of a training that nothing disturbed, in a store of its own that tests only read."""
    from gptmodel.pretraining.step import plan_training, pretrain

    store = Store(tmp_path_factory.mktemp("undisturbed") / "store")
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, store.root / kind)
    training = plan_training(store, tiny(), store.resolve(tiny_data[1].label))
    return pretrain(store, training, on_line=lambda _: None)[0]
