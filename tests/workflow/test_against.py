"""One model judged against another by the flow, while MLflow is away and told later; and a real champion's report."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from benchmarks.mlflow_server import free_port
from gptmodel.config import ModelConfig
from gptmodel.formats.hf_export import export_hf
from gptmodel.model import GPT
from gptmodel.overrides import PipelineOverrides
from gptmodel.pretrained import import_weights
from gptmodel.pretraining.step import run_dir_of
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Artifact, Store
from tests.unit.test_surprisal import Reader

SHAPE = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32)


@dataclass
class Judged:
    """What the flow made with no MLflow at hand, and what `gptflow sync` then told one."""

    store: Store
    made: dict[str, Artifact]
    old: Artifact
    outcomes: dict[str, str]
    again: Callable[[], Any]
    """Runs the flow once more; its final Prefect state."""

    @property
    def run(self) -> Run:
        """The MLflow run of the challenger."""
        return _run_of(self.made["model"])

    def logged(self, place: str) -> str:
        return str(mlflow.artifacts.load_text(f"runs:/{self.run.info.run_id}/{place}"))


def _run_of(model: Artifact) -> Run:
    from tasks.tracking.runs import find_run

    run = find_run(model.fingerprint)
    assert run is not None
    return run


def _synced() -> dict[str, str]:
    from tasks.tracking.syncing import sync_store

    return {outcome.label: outcome.what for outcome in sync_store(_store())}


def _store() -> Store:
    from gptmodel.store.artifacts import open_store

    return open_store()


@pytest.fixture(scope="module")
def judged(
    workplace: Path,
    tiny_data: tuple[Store, Artifact],
    tiny_sets: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Judged]:
    from flows.evaluate import evaluate
    from tasks.tracking.cards import model_card, save_card

    folder = tmp_path_factory.mktemp("against")
    store = Store(folder / "store")
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, store.root / kind)
    models = []
    for seed in (1, 2):
        export_hf(GPT(SHAPE, seed=seed), folder / f"theirs{seed}")
        models.append(import_weights(store, str(folder / f"theirs{seed}"))[0])
        # Registered by the name of the other, as two trainings of one pipeline are.
        save_card(run_dir_of(store, models[-1].fingerprint), model_card(models[-1], "rivals"))
    old, new = models
    _, merged = merge_layers("smoke", None, [*tiny_sets, "evaluate.surprisal_passages=1"])
    asked: dict[str, Any] = {"model": new.label, "against": old.label, "shards": tiny_data[1].label, "preset": "smoke"}
    asked["overrides"] = PipelineOverrides.model_validate(merged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTFLOW_STORE", str(store.root))
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        made = evaluate(**asked)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        outcomes = _synced()
        yield Judged(store, made, old, outcomes, lambda: evaluate(**asked, return_state=True))


def test_the_flow_compares_and_mlflow_is_told_later(judged: Judged) -> None:
    comparison, evaluation = judged.made["comparison"], judged.made["evaluation"]
    champions = judged.store.input_of(comparison, "evaluation")
    assert [ref.digest for ref in comparison.request.inputs] == [champions.digest, evaluation.digest]
    assert champions.request.inputs[0].digest == judged.old.digest
    first, second = ((made.path / "manifest.json").stat().st_mtime_ns for made in (champions, evaluation))
    assert first < second, "else the report on the challenger is logged before there is a champion to show"
    assert judged.outcomes == dict.fromkeys(
        (judged.old.label, judged.made["model"].label, champions.label, evaluation.label, comparison.label), "sent"
    )
    run = judged.run
    assert run.data.tags[f"gptflow.comparison.{comparison.path.name}"] == comparison.digest
    told = {row["name"]: row for row in comparison.summary["differences"]}
    assert told["loss"]["difference"] == pytest.approx(evaluation.summary["loss"] - champions.summary["loss"])
    where = f"evaluation/validation/against/{judged.old.path.name[:8]}"
    for name, row in told.items():
        for suffix, key in (("", "difference"), ("_low", "low"), ("_high", "high"), ("_p_better", "p_better")):
            assert run.data.metrics[f"{where}/{name}{suffix}"] == row[key]
    assert json.loads(judged.logged(f"comparison/{comparison.path.name}/comparison.json"))["units"] > 1
    other = _run_of(judged.old).data
    assert not [key for key in (*other.metrics, *other.tags) if "against" in key or "comparison" in key]


def test_card_and_lineage_of_the_challenger_hold_the_comparison(judged: Judged) -> None:
    comparison = judged.made["comparison"]
    card = judged.logged("model_card.md")
    assert "Against other models" in card
    assert comparison.digest in card
    (version,) = MlflowClient().search_model_versions(f"run_id = '{judged.run.info.run_id}'")
    assert f"| `{judged.old.label}` on validation |" in str(version.description)
    graph = json.loads(judged.logged("lineage/lineage.json"))
    assert comparison.label in {node["id"] for node in graph["nodes"]}
    assert comparison.digest in judged.logged("lineage/lineage.html")


def test_report_and_surprisal_map_are_artifacts_of_the_run(judged: Judged) -> None:
    evaluation = judged.made["evaluation"]
    report = judged.logged(f"evaluation/{evaluation.path.name}/report.html")
    assert f"{evaluation.summary['loss']:.4f}" in report
    assert evaluation.digest in report
    assert 'id="against-the-champion"' not in report, "no version has the alias yet"
    page = judged.logged(f"evaluation/{evaluation.path.name}/surprisal.html")
    assert judged.made["model"].digest in page
    assert len(Reader(page).tiles) == 40, "one for each token of the passage"


def test_told_once_and_again_after_an_attempt_that_was_killed(judged: Judged) -> None:
    comparison, run_id = judged.made["comparison"], judged.run.info.run_id
    assert set(_synced().values()) == {"current"}
    MlflowClient().delete_tag(run_id, f"gptflow.comparison.{comparison.path.name}")
    assert [label for label, what in _synced().items() if what == "sent"] == [comparison.label]
    metric = f"evaluation/validation/against/{judged.old.path.name[:8]}/loss"
    assert len(MlflowClient().get_metric_history(run_id, metric)) == 1


def test_verify_reads_the_comparison_in_mlflow(judged: Judged) -> None:
    from flows.commands.verify import verify

    model, comparison, run = judged.made["model"], judged.made["comparison"], judged.run

    def look() -> dict[str, Any]:
        done = CliRunner().invoke(verify, [model.label, "--no-sources", "--mlflow", "required", "--json"])
        return dict(json.loads(done.stdout))

    told = look()
    assert (told["differences"], told["mlflow"]) == ([], "agrees")
    assert comparison.label in told["nodes"]
    place = f"comparison/{comparison.path.name}/comparison.json"
    logged = Path(str(run.info.artifact_uri)) / place
    whole = logged.read_bytes()
    logged.write_bytes(whole[:-2] + b" \n")
    (difference,) = look()["differences"]
    logged.write_bytes(whole)
    assert (difference["node"], difference["file"]) == (f"MLflow run {run.info.run_id}", place)
    tag = f"gptflow.comparison.{comparison.path.name}"
    MlflowClient().set_tag(run.info.run_id, tag, "0" * 64)
    (difference,) = look()["differences"]
    assert difference["what"] == f"tag {tag}"
    MlflowClient().delete_tag(run.info.run_id, tag)
    assert any(comparison.label in note and "gptflow sync" in note for note in look()["notes"])
    assert _synced()[comparison.label] == "sent"


def test_a_second_run_reuses_all_and_its_pages_say_where_the_report_is(judged: Judged) -> None:
    state = judged.again()
    made = state.result()
    assert {role: a.digest for role, a in made.items()} == {role: a.digest for role, a in judged.made.items()}

    async def read() -> Any:
        async with get_client() as client:
            wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            return await client.read_artifacts(artifact_filter=wanted)

    shown = asyncio.run(read())
    places = [f"evaluation/{made['evaluation'].path.name}/{name}.html" for name in ("report", "surprisal")]
    reports = [artifact.data for artifact in shown if artifact.key == "report"]
    assert any(all(place in words for place in places) for words in reports), "a database has no pages to link to"
    (table,) = [
        json.loads(artifact.data) for artifact in shown if artifact.key == "comparison" and artifact.type == "table"
    ]
    assert {row["name"] for row in table} == {row["name"] for row in made["comparison"].summary["differences"]}


def test_the_report_stands_beside_the_version_with_the_alias_champion(judged: Judged, tmp_path: Path) -> None:
    from flows.commands.report import report as command

    mlflow_client, new, evaluation = MlflowClient(), judged.made["model"], judged.made["evaluation"]
    number = {v.run_id: v.version for v in mlflow_client.search_model_versions("name = 'rivals'")}
    champion = number[_run_of(judged.old).info.run_id]
    mlflow_client.set_registered_model_alias("rivals", "champion", champion)
    done = CliRunner().invoke(command, [new.label, "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    section = page.split('<h2 id="against-the-champion">')[1].split("<h2")[0]
    assert f"rivals/{champion} is the champion" in section
    loss = next(row for row in judged.made["comparison"].summary["differences"] if row["name"] == "loss")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section.split("cross-entropy</td>")[1].split("</tr>")[0])
    assert cells == [
        f"{evaluation.summary['loss']:.4f}",
        f"{loss['champion']:.4f}",
        f"{loss['difference']:+.4f}",
        f"{loss['low']:+.4f} to {loss['high']:+.4f}",
        f"{loss['p_better']:.1%}",
    ]
    itself = CliRunner().invoke(command, [judged.old.label, "--out", str(tmp_path / "own.html")])
    assert itself.exit_code == 0, itself.output
    assert "against-the-champion" not in (tmp_path / "own.html").read_text(), "it is the champion"
    # what is recorded from now on has the champion beside it in MLflow too
    mlflow_client.delete_tag(judged.run.info.run_id, f"gptflow.evaluation.{evaluation.path.name}")
    assert _synced()[evaluation.label] == "sent"
    assert section in judged.logged(f"evaluation/{evaluation.path.name}/report.html")
