"""What must be refused: each with one line that names file and place, nothing left behind, and bounded memory."""

from __future__ import annotations

import ast
import gzip
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

import gptmodel
from gptmodel.config import CorpusConfig, ModelConfig, PipelineConfig, SourceConfig
from gptmodel.errors import ArtifactError, CheckpointError, ConfigError, DataError, GptflowError
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights, load_pretrained
from gptmodel.pretraining.step import plan_training
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.tokenstream import open_split
from gptmodel.weights import load_model, save_model

Tiny = Callable[..., PipelineConfig]
ROOT = Path(gptmodel.__file__).parents[1]


def refused(tmp_path: Path, path: Path, **source: Any) -> str:
    """The one line with which a corpus of this file is refused; nothing of it is in the store."""
    store = Store(tmp_path / "store")
    settings = SourceConfig(kind="files", paths=(str(path),), **source)
    with pytest.raises(GptflowError) as told:
        build_corpus(store, CorpusConfig(source=settings, validation_fraction=0.3))
    assert not list(store.artifacts())
    assert not [p for p in store.root.rglob("*") if p.is_file() and p.suffix == ".parquet"]
    assert "\n" not in str(told.value)
    return str(told.value)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(path: Path, texts: list[bytes | None]) -> Path:
    """A Parquet file whose text column holds these bytes, valid or not."""
    raw = pa.array(texts, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
    pq.write_table(pa.table({"text": text}), path)
    return path


GOOD = [f"line {n}".encode() for n in range(30)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_bad_utf8_is_named_by_file_and_row(tmp_path: Path, name: str) -> None:
    rows = [*GOOD, b"bad \xff byte"]
    if name.endswith(".parquet"):
        file, where = table(tmp_path / name, rows), "a.parquet#30"
    else:
        lines = b"".join(b'{"text": "%s"}\n' % row for row in rows)
        file, where = (
            put(tmp_path / name, gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines),
            f"{name}:31",
        )
    assert refused(tmp_path, file).startswith(f"{where} is not valid UTF-8 at byte 4 of its text; ")


@pytest.mark.parametrize(
    ("name", "content", "counted"),
    [
        ("a.txt", b"", "1 empty"),
        ("a.txt", b" \r\n\t\xc2\xa0", "1 empty"),
        ("a.jsonl", b"", "of 0 texts"),
        ("a.jsonl", b"\n \n", "of 0 texts"),
        ("a.jsonl", b'{"text": null}\n{"text": ""}\n', "1 empty, 1 null"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "1 empty"),
        ("a.parquet", [], "of 0 texts"),
        ("a.parquet", [None, b"", b" "], "2 empty, 1 null"),
    ],
)
def test_nothing_but_empty_or_null_is_refused(tmp_path: Path, name: str, content: Any, counted: str) -> None:
    file = table(tmp_path / name, content) if name == "a.parquet" else put(tmp_path / name, content)
    said = refused(tmp_path, file)
    assert said.startswith("no document is left of ")
    assert counted in said


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_one_text_beyond_the_limit_is_refused_where_it_stands(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptmodel.text.reading.LONGEST_TEXT_BYTES", 1_000)
    long = b"word " * 201
    if name == "a.parquet":
        file, where = table(tmp_path / name, [*GOOD, long]), "a.parquet#30"
    elif "jsonl" in name:
        lines = b"".join(b'{"text": "%s"}\n' % row for row in [*GOOD, long])
        file, where = (
            put(tmp_path / name, gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines),
            f"{name}:31",
        )
    else:
        file, where = put(tmp_path / name, gzip.compress(long, mtime=0) if name.endswith(".gz") else long), name
    assert refused(tmp_path, file).startswith(f"{where} is one text of more than 1,000 bytes")


# Builds a corpus and prints what came of it, and by how many bytes the largest size of this process grew.
BUILD = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.config import CorpusConfig, SourceConfig
from gptmodel.text.corpus import build_corpus
from gptmodel.errors import GptflowError
import pyarrow.parquet

def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

source = SourceConfig(kind="files", paths=(sys.argv[2],))
before = peak()
try:
    said = build_corpus(Store(Path(sys.argv[1])), CorpusConfig(source=source))[0].summary
except GptflowError as error:
    said = str(error)
print(json.dumps([said, peak() - before]))
"""


def in_child(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def numbers(n_bytes: int) -> bytes:
    return " ".join(map(str, range(n_bytes // 8))).encode()


def test_one_line_of_64_mb_takes_bounded_memory(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", b'{"text": "' + numbers(64_000_000) + b'"}\n')
    said, grown = in_child(BUILD, str(tmp_path / "store"), str(file))
    assert said["cut_documents"] == 1
    assert said["train_bytes"] + said["validation_bytes"] == file.stat().st_size - len('{"text": ""}\n')
    print(f"{grown / 1e6:.0f} MB for one line of {file.stat().st_size / 1e6:.0f} MB")
    assert grown < 5 * 64_000_000


def test_a_line_of_one_repeated_character_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", b'{"text": "' + b"x" * 16_000_000 + b'"}\n')
    said, grown = in_child(BUILD, str(tmp_path / "store"), str(file))
    assert said.startswith("all 1 documents fall on one side of the split")  # its pieces are all the same
    assert grown < 8 * 16_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_one_line_of_1_gb_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with file.open("wb") as opened:
        opened.truncate(1_000_000_000)  # zeros, and no room on disk
    said, grown = in_child(BUILD, str(tmp_path / "store"), str(file))
    assert f"{name}" in said
    assert "is one text of more than 256,000,000 bytes" in said
    print(f"{grown / 1e6:.0f} MB")
    assert grown < 600_000_000


@pytest.mark.slow
def test_the_longest_line_that_is_taken_takes_bounded_memory(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", b'{"text": "' + numbers(255_000_000)[:255_000_000] + b'"}\n')
    said, grown = in_child(BUILD, str(tmp_path / "store"), str(file))
    assert said["cut_documents"] == 1
    print(f"{grown / 1e6:.0f} MB for one line of {file.stat().st_size / 1e6:.0f} MB")
    assert grown < 5 * 256_000_000


@pytest.mark.parametrize(("split", "advice"), [("train", "lower"), ("validation", "raise")])
def test_a_split_shorter_than_one_window_says_how_many_tokens_are_needed(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, split: str, advice: str
) -> None:
    store, shards = tiny_data
    found = shards.summary[f"{split}_tokens"]
    said = rf"the {split} split has {found:,} tokens and one window of context {found} .* {advice} corpus.validation_f"
    with pytest.raises(DataError, match=said):
        plan_training(store, tiny(f"model.context_length={found}"), shards)


def test_a_model_of_a_smaller_vocabulary_than_the_shards_is_refused(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path
) -> None:
    small = GPT(ModelConfig(vocab_size=300, context_length=32, n_layer=1, n_head=1, n_embd=8))
    init, _ = Store(tmp_path).produce(Request("weights", 1, {}), lambda d: save_model(small, d) or {})
    with pytest.raises(ConfigError, match=r"tokenizer has 50,257 tokens and the model only 300"):
        plan_training(tiny_data[0], tiny(f"init_from={init.path}"), tiny_data[1], init)


def test_ids_beyond_the_vocabulary_are_refused_before_a_model_meets_them(tmp_path: Path) -> None:
    def build(directory: Path) -> dict[str, Any]:
        columns = {
            "document": pa.array(["d"]),
            "part": pa.array([0], pa.int32()),
            "tokens": pa.LargeListArray.from_arrays(
                pa.array([0, 3], pa.int64()), pa.array([1, 50_257, 2], pa.uint16())
            ),
        }
        batch = pa.record_batch(columns).replace_schema_metadata({"vocab_size": "50257"})
        with pa.OSFile(str(directory / "train-00000.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as out:
            out.write_batch(batch)
        return {}

    shards, _ = Store(tmp_path).produce(Request("shards", 1, {}), build)
    for _ in range(2):
        with pytest.raises(
            ArtifactError, match=r"train-00000\.arrow holds token 50,257, and its vocabulary has 50,257"
        ):
            open_split(shards, "train")


def test_archives_are_not_unpacked_and_a_gzip_name_is_not_followed(tmp_path: Path) -> None:
    """The one packed format that is read is gzip, which holds one stream: no member can lead outside."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as packed:
        packed.writestr("../../escaped.txt", "text")
    zipped = put(tmp_path / "a.zip", memory.getvalue())
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped.txt"))
    for file in (zipped, tmp_path / "a.tar.gz"):
        assert refused(tmp_path, file).startswith(f"cannot tell what {file.name} is by its ending")
    assert "is not valid UTF-8" in refused(tmp_path, zipped, format="text")
    inner = io.BytesIO()
    with gzip.GzipFile("../../escaped.txt", "wb", fileobj=inner) as stream:
        stream.write(b"\n".join(b'{"text": "%s"}' % row for row in GOOD))
    source = SourceConfig(kind="files", paths=(str(put(tmp_path / "a.jsonl.gz", inner.getvalue())),))
    build_corpus(Store(tmp_path / "store"), CorpusConfig(source=source, validation_fraction=0.3))
    assert not list(tmp_path.rglob("escaped*"))
    assert not list(tmp_path.parent.parent.glob("escaped*"))


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(kind: str, canary: Path) -> bytes:
    if kind == "plain":
        return pickle.dumps(Canary(canary))
    memory = io.BytesIO()
    torch.save({"wte.weight": Canary(canary)}, memory, _use_new_zipfile_serialization=kind == "zip")
    return memory.getvalue()


HF_CONFIG = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 50, "n_positions": 16}
OURS = {
    **{"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 50, "context_length": 16},
    **{"dropout": 0.0, "activation": "gelu_tanh", "layer_norm_eps": 1e-5},
}


def model_directory(tmp_path: Path, config: dict[str, Any], weights: bytes, name: str = "model.safetensors") -> Path:
    directory = tmp_path / "model"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    put(directory / name, weights)
    return directory


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])
@pytest.mark.parametrize("config", [HF_CONFIG, OURS], ids=["theirs", "ours"])
def test_a_pickle_under_any_name_is_never_loaded(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    canary = tmp_path / "canary"
    raw = pickled(kind, canary)
    directory = model_directory(tmp_path, config, raw)
    for read in (load_pretrained, lambda d: import_weights(Store(tmp_path / "store"), str(d))):
        with pytest.raises(GptflowError) as told:
            read(directory)
        assert "\n" not in str(told.value)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_pretrained(directory)
    assert not canary.exists()
    torch.load(io.BytesIO(raw), weights_only=False) if kind != "plain" else pickle.loads(raw)  # noqa: S301
    assert canary.exists(), "it would have run"


def test_no_module_unpickles() -> None:
    """Readers that can run code stand nowhere in the craft."""
    forbidden = {"pickle", "torch.load", "joblib", "dill", "marshal", "np.load", "numpy.load", "yaml.load", "shelve"}
    found = []
    for file in sorted(Path(gptmodel.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            found += [f"{file.name}: {name}" for name in names if name in forbidden]
    assert not found


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start: int, stop: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def malformed() -> dict[str, bytes]:
    one, two = tensor(0, 8, [2]), tensor(8, 16, [2])
    many = b",".join(b'"%x":0' % n for n in range(90_000))
    return {
        "empty file": b"",
        "seven bytes": b"\0" * 7,
        "no header": safetensors(b""),
        "a header longer than the file": safetensors({"a": one}, b"\0" * 8, length=5_000),
        "a header of eight exabytes": safetensors({}, length=1 << 63),
        "a header of 20 MB": safetensors(b'{"a":' + b" " * 20_000_000 + b"1}"),
        "no JSON": safetensors(b"{no"),
        "not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
        "JSON, but a list": safetensors([1]),
        "nested a million deep": safetensors(b"[" * 999_000),
        "many names, the last one twice": safetensors(b"{" + many + b',"0":0}'),
        "a million numbers for a shape": safetensors({"a": tensor(0, 8, [9] * 300_000)}, b"\0" * 8),
        "a number of a million digits": safetensors(b'{"a":' + b"9" * 999_000 + b"}"),
        "a name twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(one).encode(),) * 2), b"\0" * 8),
        "overlapping": safetensors({"a": one, "b": tensor(4, 12, [2])}, b"\0" * 12),
        "the same place": safetensors({"a": one, "b": one}, b"\0" * 8),
        "beyond the end": safetensors({"a": one, "b": two}, b"\0" * 12),
        "a gap": safetensors({"a": one, "b": tensor(12, 20, [2])}, b"\0" * 20),
        "not from the start": safetensors({"b": two}, b"\0" * 16),
        "bytes that are no tensor's": safetensors({"a": one}, b"\0" * 9),
        "backwards": safetensors({"a": tensor(8, 0, [2])}, b"\0" * 8),
        "negative": safetensors({"a": tensor(-8, 0, [2])}, b"\0" * 8),
        "offsets that are no whole numbers": safetensors({"a": tensor(0, 8.0, [2])}, b"\0" * 8),  # type: ignore[arg-type]
        "a shape of truth": safetensors({"a": tensor(0, 4, [True])}, b"\0" * 4),
        "a negative shape": safetensors({"a": tensor(0, 8, [-1, -2])}, b"\0" * 8),
        "a shape beyond memory": safetensors({"a": tensor(0, 8, [1 << 62, 1 << 62])}, b"\0" * 8),
        "a shape of another size": safetensors({"a": tensor(0, 8, [3])}, b"\0" * 8),
        "an unknown dtype": safetensors({"a": tensor(0, 8, [2], "F33")}, b"\0" * 8),
        "a dtype of another size": safetensors({"a": tensor(0, 8, [2], "F64")}, b"\0" * 8),
        "a dtype that is a list": safetensors({"a": tensor(0, 8, [2], ["F32"])}, b"\0" * 8),
        "no offsets": safetensors({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
        "three offsets": safetensors({"a": {**one, "data_offsets": [0, 4, 8]}}, b"\0" * 8),
    }


READ = """
import json, sys, time
from pathlib import Path
import torch, safetensors.torch
from gptmodel.store.artifacts import Store
from gptmodel.errors import CheckpointError
from gptmodel.pretrained import import_weights
from gptmodel.weights import load_model

def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

folder, found = Path(sys.argv[1]), {}
for kind in ("theirs", "ours"):
    for case in sorted((folder / kind).iterdir()):
        before, started = peak(), time.perf_counter()
        try:
            load_model(case) if kind == "ours" else import_weights(Store(folder / "store"), str(case))
            said = "taken"
        except CheckpointError as error:
            said = str(error)
        found[f"{kind}: {case.name}"] = [said, peak() - before, time.perf_counter() - started]
print(json.dumps(found))
"""


def test_malformed_safetensors_are_refused_in_little_memory(tmp_path: Path) -> None:
    cases = malformed()
    for kind, config in (("theirs", HF_CONFIG), ("ours", OURS)):
        for name, raw in cases.items():
            (tmp_path / kind / name).mkdir(parents=True)
            model_directory(tmp_path / kind / name, config, raw).rename(tmp_path / "moved")
            (tmp_path / kind / name).rmdir()
            (tmp_path / "moved").rename(tmp_path / kind / name)
    found = in_child(READ, str(tmp_path))
    assert len(found) == 2 * len(cases)
    print(max((entry[1] / 1e6, name) for name, entry in found.items()))
    print(max((entry[2], name) for name, entry in found.items()))
    for name, (said, grown, _) in found.items():
        assert "model.safetensors is not a whole safetensors file" in said, name
        assert "\n" not in said, name
        assert len(said) < 1_000, name
        assert grown < 50_000_000, name


def test_a_sound_file_is_not_among_the_malformed(tmp_path: Path) -> None:
    model = GPT(ModelConfig(vocab_size=50, context_length=16, n_layer=1, n_head=1, n_embd=8), seed=1)
    weights = save({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert torch.equal(load_model(model_directory(tmp_path, OURS, weights)).wte.weight, model.wte.weight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 10**4}, "n_layer 10,000, and the weights 16 tensors"),
        ({"vocab_size": 1 << 24}, r"wte\.weight"),
        ({"n_embd": 10**6, "n_head": 10}, r"cannot be made|of another shape"),
    ],
)
@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_a_config_that_claims_a_huge_model_costs_nothing(
    tmp_path: Path, kind: str, changes: dict[str, int], said: str
) -> None:
    model = GPT(ModelConfig(vocab_size=50, context_length=16, n_layer=1, n_head=1, n_embd=8), seed=1)
    weights = save({name: parameter.detach() for name, parameter in model.named_parameters()})
    directory = model_directory(tmp_path, {**(OURS if kind == "ours" else HF_CONFIG), **changes}, weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=said if kind == "ours" else "n_layer|cannot be made|does not fit"):
        load_pretrained(directory)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    (directory / "config.json").write_text(" " * 5_000_000 + "{}")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON: it has 5,000,002 bytes"):
        load_pretrained(directory)
