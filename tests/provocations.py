"""What a person can do wrong, or meet, one after the other, as a command line: how one comes to it, and how it ends.

`tests/unit/test_errors.py` runs them through the real command line and holds what is said against docs/errors.md;
`python -m tests.provocations` writes that page anew, for a person to read each line as a stranger.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from pathlib import Path

from tests.mishaps import DEAD, PORT, Case, damage, files, full, furnish, held, lose, table, taken, text, weights
from tests.provoked import ROOT, outcome, page

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
        Case(
            "a decay longer than what warm-up leaves",
            "run --set train.optimizer.schedule=wsd --set train.optimizer.decay_steps=400",
            2,
        ),
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
        Case("a benchmark of nothing", "benchmark --tasks , --limit -1", 2),
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
        Case("standard input that is not UTF-8", "generate --model {model}", 2, given=b"caf\xe9"),
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
        Case("Prefect at what is no address", "data-arrived", 2, env={"PREFECT_API_URL": "nonsense"}),
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
        Case("first weights of no version", f"pretrain {_TINY} --set init_from=nobody/1", 2, text, flow=True),
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
