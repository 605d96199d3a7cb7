"""A tiny ladder through the flow: ordinary trainings, a law with a run of its own, reuse, and plans by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from gptmodel.config import LadderConfig
from gptmodel.errors import DataError
from gptmodel.lineage.walk import artifact_of
from gptmodel.overrides import PipelineOverrides
from gptmodel.planning.own_law import fit_evaluations, law_of
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.locks import exclusive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LADDER = LadderConfig(sizes=("1x8x1", "1x16x1", "1x32x1"), budgets=(1.3e10, 3e10, 8e10), resamples=50)


@pytest.fixture(scope="module")
def swept(
    workplace: Path, tiny_sets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, dict[str, Artifact], Any, Path]]:
    from flows.scaling_sweep import scaling_sweep

    folder = tmp_path_factory.mktemp("sweep")
    _, merged = merge_layers("smoke", None, tiny_sets)
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"preset": "smoke", **merged}))
    asked: dict[str, Any] = {"preset": "smoke", "ladder": LADDER, "overrides": PipelineOverrides.model_validate(merged)}
    asked["best_for"] = 1e13
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTFLOW_STORE", str(folder / "store"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        made = scaling_sweep(**asked)
        yield Store(folder / "store"), made, lambda: scaling_sweep(**asked), settings


def test_the_law_is_of_its_rungs_and_joins_their_runs(swept: tuple[Store, dict[str, Artifact], Any, Path]) -> None:
    from tasks.tracking.runs import find_run

    store, made, _, _ = swept
    law = made["law"]
    told = json.loads(law.file("law.json").read_text())
    assert len(told["points"]) == len(law.request.inputs) == 9
    own = find_run(law.fingerprint)
    assert own is not None
    assert own.info.status == "FINISHED"
    assert own.data.metrics["law/alpha"] == told["coefficients"]["alpha"]
    assert own.data.tags["gptflow.advice-for"] == "1e+13"
    assert "1e+13 FLOPs" in mlflow.artifacts.load_text(f"runs:/{own.info.run_id}/advice/1e+13.md")
    names = {file.path for file in MlflowClient().list_artifacts(own.info.run_id, "plots")}
    assert {"plots/isoflop.png", "plots/tokens.png"} <= names
    logged = mlflow.artifacts.load_text(f"runs:/{own.info.run_id}/law/law.json")
    assert json.loads(logged) == told
    for ref, point in zip(law.request.inputs, told["points"], strict=True):
        evaluation = artifact_of(store, ref)
        assert point["loss"] == evaluation.summary["loss"]
        model = artifact_of(store, evaluation.request.inputs[0])
        rung = find_run(model.fingerprint)
        assert rung is not None
        assert rung.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert rung.data.tags[f"gptflow.scaling-law.{law.path.name}"] == law.digest
        assert any(name.startswith("evaluation/") for name in rung.data.metrics)
        assert point["n_tokens"] == model.summary["tokens"]


def test_a_second_sweep_trains_nothing_and_the_same_fit_has_the_same_bytes(
    swept: tuple[Store, dict[str, Artifact], Any, Path], tmp_path: Path
) -> None:
    store, made, again, _ = swept
    before = {path: path.stat().st_mtime_ns for path in store.root.glob("checkpoint/*/manifest.json")}
    assert again()["law"].digest == made["law"].digest
    assert {path: path.stat().st_mtime_ns for path in store.root.glob("checkpoint/*/manifest.json")} == before
    other = Store(tmp_path / "store")
    for kind in ("corpus", "shards", "checkpoint", "evaluation"):
        shutil.copytree(store.root / kind, other.root / kind)
    evaluations = [artifact_of(other, ref) for ref in made["law"].request.inputs]
    law, reused = fit_evaluations(other, evaluations, LADDER)
    assert (reused, law.digest) == (False, made["law"].digest)
    counted, _ = fit_evaluations(other, evaluations, LadderConfig(counts="without-embeddings", resamples=50))
    assert law_of(counted).params[1] < law_of(law).params[0]
    with pytest.raises(DataError, match="too few"):
        fit_evaluations(other, evaluations[:5], LADDER)


def test_a_law_is_told_by_one_at_a_time_and_after_its_rungs(
    swept: tuple[Store, dict[str, Artifact], Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.tracking.laws import sync_law
    from tasks.tracking.runs import find_run
    from tasks.tracking.syncing import sync_store

    store, made, _, _ = swept
    law = made["law"]
    assert sync_law(store, law).what == "current"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")  # one that knows nothing yet
    models = [artifact_of(store, artifact_of(store, ref).request.inputs[0]) for ref in law.request.inputs]
    for holder in (law, models[4]):
        with exclusive(store.root / ".runs" / holder.path.name / "mlflow.lock", "another"):
            told = {outcome.label: outcome for outcome in sync_store(store)}
            assert told[law.label].what == "in use", told[law.label]
    assert sync_law(store, law).what == "sent"
    own = find_run(law.fingerprint)
    assert own is not None
    for model in models:
        rung = find_run(model.fingerprint)
        assert rung is not None
        assert rung.data.tags["mlflow.parentRunId"] == own.info.run_id
    assert (sync_law(store, law).what, sync_law(store, law, 1e13).what) == ("current", "sent")


def test_plans_go_by_the_law_where_the_text_is_the_same(swept: tuple[Store, dict[str, Artifact], Any, Path]) -> None:
    from flows.commands.plan import plan

    _, made, _, settings = swept

    def told(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(plan, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    mine, label = told(str(settings), "--no-measure"), made["law"].label
    assert mine["expected"]["own"] == label
    assert told("smoke", "--no-measure")["expected"]["own"] == "", "other text"
    assert told(str(settings), "--no-measure", "--law", "published")["expected"]["own"] == ""
    assert label in told(str(settings), "--best-for", "1e13")["law"]
    advice = told("--best-for", "1e13", "--law", str(made["law"].path / "law.json"))
    assert "extrapolated" in advice["outside"]


def test_the_chain_is_whole_and_gc_keeps_the_law(swept: tuple[Store, dict[str, Artifact], Any, Path]) -> None:
    from flows.commands.lineage import lineage
    from flows.commands.verify import verify

    _, made, _, _ = swept
    for command, rest in ((verify, ["--no-sources", "--json"]), (lineage, ["--json", "--local"])):
        done = CliRunner().invoke(command, [made["law"].label, *rest])
        assert done.exit_code == 0, done.output
        assert made["law"].path.name in done.stdout
