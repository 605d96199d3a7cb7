"""What a person can do wrong, or meet, one after the other, as a command line: how one comes to it, and how it ends.

`tests/unit/test_errors.py` runs them through the real command line and holds what is said against docs/errors.md;
`python -m tests.provocations` writes that page anew, for a person to read each line as a stranger.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from flows.__main__ import main
from tasks import services

ROOT = Path(__file__).resolve().parents[1]
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
_TEXTS = "--config texts.yaml"
_TINY = _TEXTS


def file(name: str) -> str:
    return f"check-data --set corpus.source.kind=files --set corpus.source.paths=['{name}']"


def url(address: str, *more: str) -> str:
    sets = [f"corpus.source.paths=['{address}']", "corpus.source.kind=http", *more]
    return "check-data " + " ".join(f'--set "{text}"' for text in sets)


_SHA = "corpus.source.sha256=['" + "0" * 64 + "']"
_PRIVATE = "corpus.source.allow_private_addresses=true"

AREAS: dict[str, list[Case]] = {
    "Command line": [
        Case("an option that there is not", "evaluate --nonsense", 2),
        Case("a command that there is not", "trian", 2),
        Case("an argument that is missing", "import", 2),
        Case("a number that is a word", "generate --top-k many hello", 2),
    ],
    "Settings": [
        Case("a setting misspelt", "run --set train.max_stepz=3", 2),
        Case("a setting without its group", "run --set max_steps=3", 2),
        Case("a setting that is like no other", "run --set zzz.y=3", 2),
        Case("not of the form a.b=value", "run --set train.max_steps", 2),
        Case("a word where a number is wanted", "run --set train.max_steps=many", 2),
        Case("a value out of its bounds", "run --set model.dropout=2", 2),
        Case("one of a few words, misspelt", "run --set train.optimizer.kind=mun", 2),
        Case("no for off", "run --set data_gates.pii=no", 2),
        Case("a text where a list is wanted", "run --set evaluate.prompts=hello", 2),
        Case("a value for a whole group", "run --set train=5", 2),
        Case("two settings that do not go together", "run --set train.batch_size=9", 2),
        Case("heads that do not divide the width", "run --set model.n_head=5", 2),
        Case("a source that lacks its paths", "run --set corpus.source.kind=files", 2),
        Case("a preset misspelt", "run --preset quikstart", 2),
        Case("a file that is not there", "run --config mine.yaml", 2),
        Case("a file with a wrong value", "run --config a.yaml", 2, files("a.yaml", "train:\n  max_steps: many\n")),
        Case("a file with a key twice", "run --config a.yaml", 2, files("a.yaml", "name: a\ntrain: {}\nname: b\n")),
        Case("a file indented with tabs", "run --config a.yaml", 2, files("a.yaml", "train:\n\tseed: 1\n")),
        Case("a file with a bracket left open", "run --config a.yaml", 2, files("a.yaml", "train: {seed: 1\n")),
        Case("an empty file", "run --config a.yaml", 2, files("a.yaml", "")),
        Case("a file that is no text", "run --config a.yaml", 2, files("a.yaml", b"\xff\xfe\x00")),
        Case("settings of nothing", "config show smok", 2),
        Case("decoding out of its bounds", "generate --temperature -1 --top-p 0 hello", 2),
    ],
    "Text": [
        Case("no file matches", file("none/*.txt"), 1),
        Case("a folder for a file", file("texts"), 1, text),
        Case("an ending that says nothing", file("a.dat"), 2, files("a.dat", "text\n")),
        Case("a file that is not UTF-8", file("a.txt"), 1, files("a.txt", b"caf\xe9\n")),
        Case("a line that is no JSON", file("a.jsonl"), 1, files("a.jsonl", '{"text": "one"}\n{"text": \n')),
        Case("a row without text", file("a.jsonl"), 1, files("a.jsonl", '{"body": "one"}\n')),
        Case("a field that is a number", file("a.jsonl"), 1, files("a.jsonl", '{"text": 5}\n')),
        Case("a gzip file cut short", file("a.txt.gz"), 1, files("a.txt.gz", gzip.compress(b"text " * 999)[:40])),
        Case("a Parquet file without that column", file("a.parquet"), 1, table("body", ["one"])),
        Case("a Parquet column of numbers", file("a.parquet"), 1, table("text", [1])),
        Case("a file that is no Parquet", file("a.parquet"), 1, files("a.parquet", "PAR1 or not")),
        Case("files of nothing", file("a.txt"), 1, files("a.txt", " \n")),
        Case("one document for two sides", file("a.txt"), 1, files("a.txt", "One letter alone.\n")),
        Case(
            "years without a speech",
            "check-data --set corpus.source.first_year=2025 --set corpus.source.last_year=2025",
            1,
        ),
        Case("an address that is none", url("ftp://a.example/b.txt", _SHA), 1),
        Case("an address on this machine", url(f"{DEAD}/a.txt", _SHA), 1),
        Case("a server that is not there", url(f"{DEAD}/a.txt", _SHA, _PRIVATE), 1),
        Case("a download without its sha256", url(f"{DEAD}/a.txt"), 2),
        Case(
            "a gate that fails",
            f"check-data {_TEXTS} --set data_gates.language=fail --set data_gates.languages=['fr']",
            1,
            text,
        ),
        Case(
            "a benchmark file that is not there",
            f"check-data {_TEXTS} --set data_gates.benchmark_files=['none.txt']",
            2,
            text,
        ),
        Case("a document of that name is not there", "trace --document nobody", 1),
        Case("text to look for that is empty", "overlap ''", 2),
    ],
    "Store": [
        Case("no model yet", "generate hello", 1, lose("model")),
        Case("nothing by that name", "generate --model checkpoint/0123abcd hello", 1),
        Case("a thing of another kind", "generate --model {shards} hello", 1),
        Case(
            "weights with a byte changed",
            "generate --model {model} hello",
            1,
            damage("model", "model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ),
        Case(
            "weights cut short",
            "generate --model {model} hello",
            1,
            damage("model", "model.safetensors", lambda b: b[:-99]),
        ),
        Case(
            "a manifest that is damaged",
            "generate --model {model} hello",
            1,
            damage("model", "manifest.json", lambda b: b[:-9]),
        ),
        Case(
            "a manifest that was edited",
            "generate --model {model} hello",
            1,
            damage("model", "manifest.json", lambda b: b.replace(b'"n_layer": 1', b'"n_layer": 2')),
        ),
        Case("the shards of a model are gone", "trace --step 1", 1, lose("shards")),
        Case("a store under a file", f"check-data {_TEXTS}", 1, text, {"GPTFLOW_STORE": "texts/0.txt/store"}),
        Case("no room on the disk", f"check-data {_TEXTS}", 1, full),
        Case("nothing to verify", "verify --all", 1, env={"GPTFLOW_STORE": "other"}),
        Case("a pin that there is not", "store unpin {model}", 1),
        Case("two things of two kinds", "diff {model} {shards}", 1),
        Case("a card of what is no model", "card {shards}", 1),
        Case("a report before an evaluation", "report {model} --local", 1),
        Case("a place that is taken", "export {model} --to texts", 1, text),
        Case("a place under a file", "export {model} --to texts/0.txt/out", 1, text),
        Case("more steps than were trained", "reproduce {model} --steps 99", 2),
        Case("steps of what takes none", "reproduce {corpus} --steps 5", 2),
        Case("two forms at once", "lineage --json --mermaid", 2),
        Case("nothing to trace by", "trace", 2),
        Case("a step before the first", "trace --step 0", 2),
        Case("another run makes the same", f"check-data {_TEXTS}", 1, held),
    ],
    "Plan": [
        Case("a plan for nothing", "plan smok --no-measure", 2),
        Case("a grid that is not in the table", "plan --no-measure --grid nowhere", 2),
        Case("hardware that is not in the table", "plan --no-measure --on abacus", 2),
        Case("no device", "plan --no-measure --devices 0", 2),
        Case("more than all of the peak", "plan --no-measure --mfu 2", 2),
        Case("a budget of a few operations", "plan --best-for 5", 2),
        Case("a picture of nothing", "plan --plot a.png", 2),
        Case("a table that is not there", "plan --no-measure --rates mine.yaml", 2),
        Case(
            "a table with a word for a number", "plan --no-measure --rates a.yaml", 2, files("a.yaml", "hardware: 5\n")
        ),
    ],
    "Rating": [
        Case("no round yet", "rate status", 1),
        Case("a sheet without a round", "rate export --rater anna --to a.csv", 1),
        Case("a requirement that is none", "rate results --require coherence", 2),
    ],
    "Champions": [
        Case("a name without a ledger", "champions nobody", 2),
        Case("what is no model", "promote {shards} --reason better", 2),
        Case("no reason", "promote {model} --name tiny", 2),
    ],
    "Servers": [
        Case("MLflow is out of reach", "verify --mlflow required", 1, env={"MLFLOW_TRACKING_URI": DEAD}),
        Case("a version, and MLflow is out of reach", "card tiny/1", 1, env={"MLFLOW_TRACKING_URI": DEAD}),
        Case("a collection, and MLflow is out of reach", "store gc --yes", 1, env={"MLFLOW_TRACKING_URI": DEAD}),
        Case("Prefect is not up", "data-arrived", 2),
        Case("Prefect is out of reach", "data-arrived", 1, env={"PREFECT_API_URL": f"{DEAD}/api"}),
        Case("a port that is taken", "make up", 2, taken, {"PREFECT_PORT": str(PORT)}),
        Case("a port that is no number", "make up", 2, files("prefect.yaml", ""), {"PREFECT_PORT": "http"}),
        Case("`make up` elsewhere", "make up", 2),
    ],
}


FLOWS: dict[str, list[Case]] = {
    "Raters": [
        Case("a round without a model", "rate start --model checkpoint/0123abcd --rater anna", 1, flow=True),
        Case("a rater named twice", "rate start --model {model} --rater anna --rater anna", 2, flow=True),
    ],
    "Training": [
        Case("too little text for one window", f"pretrain {_TINY} --set model.context_length=9000", 1, text, flow=True),
        Case("no GPU here", f"pretrain {_TINY} --set train.device=cuda", 2, text, flow=True),
        Case(
            "over the budget before it starts",
            f"pretrain {_TINY} --set train.budget.max_hours=1e-9",
            2,
            text,
            flow=True,
        ),
        Case(
            "a loss that is no number", f"pretrain {_TINY} --set train.optimizer.learning_rate=1e30", 1, text, flow=True
        ),
        Case("first weights of nobody", f"pretrain {_TINY} --set init_from=nobody@champion", 2, text, flow=True),
        Case("first weights from nowhere", f"pretrain {_TINY} --set init_from=./none", 1, text, flow=True),
    ],
    "Evaluation": [
        Case("a model that is not there", "evaluate --model checkpoint/0123abcd", 1, flow=True),
        Case(
            "a stride beyond the context",
            "evaluate --model {model} --shards {shards} --set evaluate.stride=64",
            2,
            flow=True,
        ),
        Case("what is no model", "evaluate --model {shards} --shards {shards}", 1, flow=True),
    ],
    "Weights from outside": [
        Case("a directory without weights", "import texts", 1, text, flow=True),
        Case("a directory that is not there", "import ./none", 1, flow=True),
        Case("a file", "import texts/0.txt", 1, text, flow=True),
        Case("a pickle", "import a", 1, weights(**{"model.safetensors": None, "pytorch_model.bin": b"PK"}), flow=True),
        Case("another kind of model", "import a", 1, weights(**{"config.json": b'{"model_type": "llama"}'}), flow=True),
        Case("settings that are no JSON", "import a", 1, weights(**{"config.json": b"{"}), flow=True),
        Case("weights cut short", "import a", 1, weights(**{"model.safetensors": b"\x10\0\0"}), flow=True),
        Case("a repository that is not in the cache", "import openai-community/gpt2", 1, flow=True),
        Case("a name with a slash", "import texts --name a/b", 2, text, flow=True),
        Case("a revision of a directory", "import texts --revision main", 1, text, flow=True),
    ],
}


def run(case: Case, place: Place) -> tuple[int, str]:
    """Exit code and what was said, by the command line's own entry point, without what differs between machines.

    A case with a flow uses the Prefect server and the MLflow database that the environment names.
    """
    ours = ("GPTFLOW_", "OPENLINEAGE_") if case.flow else ("PREFECT_", "MLFLOW_", "GPTFLOW_", "OPENLINEAGE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # as tasks.tracking.runs sets it when it is imported first
    env |= {"GPTFLOW_STORE": "store", "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **case.env}
    words = shlex.split(case.command.format(**place.names))
    before, told, code = Path.cwd(), io.StringIO(), 0
    try:
        os.chdir(place.folder)
        with (
            mock.patch.dict(os.environ, env, clear=True),
            case.prepare(place) or nullcontext(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(told),
            mock.patch.object(sys, "stdin", io.StringIO()),
        ):
            code = _typed(words)
    finally:
        os.chdir(before)
    return code, said(told.getvalue(), place)


def _typed(words: list[str]) -> int:
    if words == ["make", "up"]:
        return services.main(["up"])
    with mock.patch.object(sys, "argv", ["gptflow", *words]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


_NOT_SAID = r"\d\d:\d\d:\d\d|Usage: |Try |$|gptflow: .* so far$"
"""Logs, click's advice, and how far slow work is."""


def said(stderr: str, place: Place) -> str:
    """What speaks of the error, without this machine's folders, ports and hashes; logs are left out."""
    lines = [line for line in stderr.splitlines() if not re.match(_NOT_SAID, line)]
    found = "\n".join(line for line in lines if re.match("gptflow: |Error: ", line)) or "\n".join(lines)
    found = (
        found.replace(str(ROOT), "/…/gptflow")
        .replace(str(place.folder.resolve()), "/…")
        .replace(str(PORT), "4200")
        .replace(str(PORT + 1), "4201")
    )
    found = re.sub(r"'(/…/\S+)'", r"\1", found)  # quoted for the shell where the folder's name asks for it
    found = re.sub(r"process \d+ on \S+ since \S+;", "process 4711 on here since 2026-01-01T00:00:00+00:00;", found)
    found = re.sub(r"[\d.]+ s of train.budget", "6.3 s of train.budget", found)
    return plain(re.sub(r"line \d+ column \d+ \(char \d+\)", "line 9 column 2 (char 99)", found))


def plain(found: str) -> str:
    """Every hash as the same one."""
    return re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,64}\b", lambda m: "1f2e3d4c5b6a7980"[: len(m[0])], found)


def block(case: Case, place: Place, code: int, told: str) -> str:
    """The case as it stands on the page."""
    command = plain(case.command.format(**place.names).replace("0" * 64, "…"))
    env = "".join(f"{name}={value} " for name, value in case.env.items() if name.endswith(("_URI", "_URL", "_STORE")))
    typed = command if command == "make up" else f"gptflow {command}"
    return f"{case.how[0].upper()}{case.how[1:]} (exit code {code}):\n\n```\n$ {env}{typed}\n{told}\n```\n"


HEAD = """# What can go wrong, and what it says

Every message names what failed, the value, and what to do. Exit codes: 2 for a wrong setting or argument, 1 for what
failed, 143 or 130 after a signal (saved), 0 for done. What time may heal (a server, a lock, a download) is tried again
by itself before it is told; [promises](reliability.md) says what holds then.

Made from `tests/provocations.py` by `python -m tests.provocations`; tests run all of it and hold this page.
"""


def page(blocks: dict[str, list[str]]) -> str:
    """The page: a heading for each area, and its blocks."""
    return HEAD + "".join(f"\n## {area}\n\n" + "\n".join(found) for area, found in blocks.items())


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


def outcome(case: Case, furnished: Path, names: dict[str, str], folder: Path) -> tuple[int, str]:
    """Exit code, and the block of a case that runs in a new folder with a store of its own."""
    shutil.copytree(furnished / "store", folder / "store")
    place = Place(folder, names)
    code, told = run(case, place)
    return code, block(case, place, code, told)


def _write() -> None:
    from prefect.testing.utilities import prefect_test_harness

    with tempfile.TemporaryDirectory() as base:
        names = furnish(Path(base))
        os.environ |= {"PREFECT_HOME": f"{base}/.prefect", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
        blocks: dict[str, list[str]] = {}
        with prefect_test_harness(server_startup_timeout=180):
            for area, cases in {**AREAS, **FLOWS}.items():
                for number, case in enumerate(cases):
                    code, told = outcome(case, Path(base), names, Path(base) / f"{area} {number}")
                    if code != case.code:
                        print(f"{area}: {case.how}: exit code {code}, not {case.code}", file=sys.stderr)
                    blocks.setdefault(area, []).append(told)
        (ROOT / "docs" / "errors.md").write_text(page(blocks))


if __name__ == "__main__":
    _write()
