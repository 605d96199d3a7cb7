"""Standard tasks with EleutherAI's harness itself, installed in an environment of its own beside ours: slow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OWN_TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what this one has, and the harness; nothing of ours is replaced."""
    where = tmp_path_factory.mktemp("harness") / "venv"
    venv.create(where, with_pip=True)
    found = where / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(where)})
    (Path(site) / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    command = [found, "-m", "pip", "install", "-q", "--disable-pip-version-check", *extras["harness"]]
    subprocess.run(command, check=True, stdout=sys.stderr)
    for name in ("torch", "datasets", "transformers", "mlflow", "prefect"):
        assert not (Path(site) / name).exists(), f"the harness replaced {name}"
    return found


@pytest.fixture(scope="module")
def place(workplace: Path, tmp_path_factory: pytest.TempPathFactory, tiny_sets: list[str]) -> tuple[Path, str]:
    """A folder with a trained model in its store, and the model's label. `workplace` has the Prefect server."""
    folder = tmp_path_factory.mktemp("place")
    sets = [word for text in (*tiny_sets, "model.context_length=64") for word in ("--set", text)]
    done = _gptflow(Path(sys.executable), folder, "pretrain", "--preset", "smoke", "--json", *sets)
    assert done.returncode == 0, done.stderr
    return folder, "checkpoint/" + json.loads(done.stdout)["model"]["fingerprint"][:16]


def _gptflow(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    from prefect.settings import PREFECT_API_URL

    env = {**os.environ, "PREFECT_HOME": str(folder / ".prefect"), "GPTFLOW_STORE": str(folder / "store")}
    env.pop("MLFLOW_TRACKING_URI", None)
    # A server of its own for each command would take most of the time.
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    return subprocess.run([python, "-m", "flows", *words], cwd=folder, env=env, capture_output=True, text=True)


def test_all_three_kinds_of_requests_are_answered_as_its_own_backend_does(
    python: Path, place: tuple[Path, str], tmp_path: Path
) -> None:
    folder, label = place
    script = [python, ROOT / "tests" / "harness_peer.py", tmp_path, folder / "store" / label]
    done = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["model"] for one in told] == ["random", "trained"]
    for one in told:
        assert one["loglikelihood"] < 2e-6, one
        assert one["rolling"] < 2e-6, one
        assert one["greedy"][0] == one["greedy"][1], one
        assert one["written"][0] == one["written"][1], one
        assert len(one["metrics"]) >= 8
        for name, (ours, theirs) in one["metrics"].items():
            assert math.isclose(ours, theirs, rel_tol=2e-5), (name, ours, theirs)
    assert told[0]["greedy_true"] >= 1
    assert told[0]["different_texts"] > 10


def test_the_command_a_user_types(python: Path, place: tuple[Path, str]) -> None:
    folder, label = place
    asked = ("benchmark", "--model", label, "--limit", "4", "--json")
    done = _gptflow(python, folder, *asked)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["benchmark"]
    rows = {(row["task"], row["metric"]): row for row in made["summary"]["figures"]}
    assert rows["speeches_continuation", "acc"]["n"] == 4
    assert rows["speeches_last_word", "perplexity"]["stderr"] > 0
    assert ("speeches_write_word", "exact_match (first-word)") in rows
    assert ("speeches_perplexity", "bits_per_byte") in rows
    again = _gptflow(python, folder, *asked)
    assert json.loads(again.stdout)["benchmark"]["digest"] == made["digest"]
    assert "already there" in again.stderr
    _gptflow(python, folder, "sync")
    _assert_told_once(folder, made)
    lineage = _gptflow(python, folder, "lineage", label)
    assert Path(made["path"]).name in lineage.stdout
    verified = _gptflow(python, folder, "verify", label)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _assert_told_once(folder: Path, made: dict[str, Any]) -> None:
    mlflow, name = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"), Path(made["path"]).name
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    (run,) = mlflow.search_runs(experiments, f"tags.`gptflow.benchmark.{name}` = '{made['digest']}'")
    assert run.data.tags["gptflow.harness"] == made["summary"]["harness"]
    for row in made["summary"]["figures"]:
        metric = row["metric"].replace("(", "").replace(")", "")
        key = f"benchmark/{row['task']} first 4/{metric}"
        (point,) = mlflow.get_metric_history(run.info.run_id, key)
        assert point.value == row["value"]
        errors = mlflow.get_metric_history(run.info.run_id, f"{key} stderr")
        assert [found.value for found in errors] == ([] if row["stderr"] is None else [row["stderr"]])
    kept = {Path(file.path).name for file in mlflow.list_artifacts(run.info.run_id, f"benchmark/{name}")}
    assert kept == {"results.json", "manifest.json", "figures.json"}


def test_tasks_of_ones_own_with_local_data(python: Path, place: tuple[Path, str], tmp_path: Path) -> None:
    folder, label = place
    rows = [{"country": name, "choices": [" up", " down"], "label": n % 2} for n, name in enumerate(("A", "B", "C"))]
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "capitals.yaml").write_text(OWN_TASK.format(data=data))
    asked = ("benchmark", "--model", label, "--tasks", "capitals", "--include-path", str(tmp_path), "--json")
    first = json.loads(_gptflow(python, folder, *asked).stdout)["benchmark"]
    (figure,) = first["summary"]["figures"]
    assert (figure["task"], figure["version"], figure["n"]) == ("capitals", 3.0, 3)
    data.write_text(data.read_text().replace('"B"', '"D"'))
    second = json.loads(_gptflow(python, folder, *asked).stdout)["benchmark"]
    assert second["fingerprint"] != first["fingerprint"], "other documents are another question"
    assert str(tmp_path) not in (Path(second["path"]) / "results.json").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--tasks", "speeches_last_wort"), 2, "no task 'speeches_last_wort' (did you mean speeches_last_word?)"),
        (("--tasks", "hellaswag"), 1, "cannot load hellaswag"),
        (("--gen-kwargs", "num_beams=4", "--tasks", "speeches_write_word"), 1, "asks to decode with num_beams=4"),
        (("--gen-kwargs", "max_gen_toks=64", "--tasks", "speeches_write_word"), 1, "max_gen_toks=32"),
        (("--include-path", "nowhere"), 2, "is no directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    python: Path, place: tuple[Path, str], words: tuple[str, ...], code: int, said: str
) -> None:
    folder, label = place
    done = _gptflow(python, folder, "benchmark", "--model", label, "--limit", "2", *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr.strip().splitlines()[-1]
