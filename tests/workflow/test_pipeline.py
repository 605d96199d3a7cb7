"""The whole pipeline on a real Prefect server with a real MLflow: what it leaves, and what it reuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_dict
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from gptmodel.config import PipelineConfig
from gptmodel.overrides import PipelineOverrides
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Artifact

Tiny = Callable[..., PipelineConfig]


PICTURES = ("loss", "optimizer", "throughput", "corpus-lengths", "corpus-sources")


@pytest.fixture(scope="module")
def made(workplace: Path, tiny_sets: list[str]) -> tuple[dict[str, Artifact], Any]:
    """The artifacts of one tiny run, and its final Prefect state."""
    from flows.pipeline import pipeline

    _, merged = merge_layers("smoke", None, tiny_sets)
    overrides = PipelineOverrides.model_validate(merged)
    state = pipeline(preset="smoke", overrides=overrides, return_state=True)
    return state.result(), state


@pytest.fixture(scope="module")
def run(made: tuple[dict[str, Artifact], Any]) -> Any:
    """The MLflow run of its model."""
    model = made[0]["model"]
    experiment = MlflowClient().get_experiment_by_name("tiny")
    assert experiment is not None
    found = MlflowClient().search_runs([experiment.experiment_id])
    assert len(found) == 1
    assert found[0].data.tags["gptflow.fingerprint"] == model.fingerprint
    return found[0]


def test_the_chain_is_bound_by_digests(made: tuple[dict[str, Artifact], Any]) -> None:
    artifacts = made[0]
    model, evaluation = artifacts["model"], artifacts["evaluation"]
    assert [ref.digest for ref in artifacts["shards"].request.inputs] == [artifacts["corpus"].digest]
    assert [ref.digest for ref in model.request.inputs] == [artifacts["shards"].digest]
    assert [ref.digest for ref in evaluation.request.inputs] == [model.digest, artifacts["shards"].digest]


def test_every_step_is_in_mlflow_once(run: Any) -> None:
    history = MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    vs_tokens = MlflowClient().get_metric_history(run.info.run_id, "vs_tokens/train/loss")
    assert [point.step for point in vs_tokens] == [step * 4 * 32 for step in range(1, 13)]
    assert [point.value for point in vs_tokens] == [point.value for point in history]
    validation = MlflowClient().get_metric_history(run.info.run_id, "validation/perplexity")
    assert [point.step for point in validation] == [0, 6, 12]
    wanted = {"train/perplexity", "train/bits_per_byte", "train/learning_rate", "train/grad_norm", "train/tokens"}
    wanted |= {"speed/tokens_per_second", "speed/mfu", "speed/peak_memory_bytes"}
    assert wanted <= set(run.data.metrics)
    assert run.info.status == "FINISHED"


def test_the_run_names_its_bytes(run: Any, made: tuple[dict[str, Artifact], Any]) -> None:
    artifacts = made[0]
    for kind in ("corpus", "shards", "model"):
        assert run.data.tags[f"gptflow.{kind}"] == artifacts[kind].digest
    assert run.data.params["model.n_embd"] == "16"
    assert run.data.params["train.optimizer.schedule"] == "cosine"
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == {"train", "validation", "evaluation"}
    assert inputs["train"].digest == artifacts["shards"].digest[:32]
    assert json.loads(inputs["train"].profile)["tokens"] == artifacts["shards"].summary["train_tokens"]
    client = MlflowClient()
    kept = {f.path for f in client.list_artifacts(run.info.run_id, "lineage")}
    assert len(kept - {"lineage/code.patch"}) == 5  # the patch is there if this code is not committed
    names = {f"{name}{dark}" for name in PICTURES for dark in ("", "-dark")}
    assert {f.path for f in client.list_artifacts(run.info.run_id, "plots")} == {
        "plots/lineage.svg",
        *(f"plots/{n}.png" for n in names),
    }
    samples = client.load_table(run.info.experiment_id, "samples/training.json", run_ids=[run.info.run_id])
    assert list(samples["step"]) == [0, 6, 12]


def test_the_run_holds_its_forecasts_beside_what_it_took(run: Any, made: tuple[dict[str, Artifact], Any]) -> None:
    summary, told = made[0]["model"].summary, run.data.metrics
    found = {name: told[f"plan/{name}/actual"] for name in ("loss", "disk_bytes", "counted/peak_memory_bytes")}
    found |= {name: told[f"plan/first_steps/{name}/actual"] for name in ("seconds", "tokens_per_second")}
    names = ("best_validation_loss", "disk_bytes", "peak_memory_bytes", "elapsed_seconds", "tokens_per_second")
    assert list(found.values()) == [summary[name] for name in names]
    for name in ("loss", "first_steps/seconds"):
        forecast, actual, error = (told[f"plan/{name}/{part}"] for part in ("forecast", "actual", "error"))
        assert error == pytest.approx(actual / forecast - 1)
    # Other tests may have left runs of this shape in the store; without one nothing is said of time before the start.
    from_nothing = run.data.tags["gptflow.plan.before_start"] == "from the settings alone"
    assert ("plan/seconds/forecast" in told) != from_nothing
    assert run.data.tags["gptflow.plan.first_steps"] == "after step 3 of 12"


def test_the_registered_model_writes_what_the_checkpoint_writes(made: tuple[dict[str, Artifact], Any]) -> None:
    from gptmodel.config import DecodingConfig
    from gptmodel.generate import generate
    from gptmodel.tokenizer import gpt2
    from gptmodel.weights import load_model

    model = load_model(made[0]["model"])
    ids = gpt2().encode("The harbour").tolist()
    expected = gpt2().decode(generate(model, ids, decoding=DecodingConfig(temperature=0.0, max_new_tokens=5)))
    served = mlflow.pyfunc.load_model("models:/tiny/1")
    answer = served.predict(pd.DataFrame({"prompt": ["The harbour"]}), {"temperature": 0.0, "max_new_tokens": 5})
    assert answer["text"][0] == expected
    assert MlflowClient().get_model_version("tiny", "1").tags["gptflow.model"] == made[0]["model"].digest


def test_no_pickle_is_in_the_registered_model(run: Any) -> None:
    client = MlflowClient()
    output = client.get_run(run.info.run_id).outputs.model_outputs[0]
    where = Path(str(client.get_logged_model(output.model_id).artifact_location).removeprefix("file://"))
    names = {path.name for path in where.rglob("*") if path.is_file()}
    assert "model.safetensors" in names
    assert not {n for n in names if n.endswith((".pkl", ".pickle", ".pt", ".bin", ".pth"))}


def test_the_evaluation_adds_up_and_is_tied_to_model_and_data(run: Any, made: tuple[dict[str, Artifact], Any]) -> None:
    evaluation = made[0]["evaluation"]
    table = pq.read_table(evaluation.file("documents.parquet")).to_pydict()
    assert sum(table["n_tokens"]) == evaluation.summary["tokens"] == 1024
    assert sum(table["nats"]) / 1024 == pytest.approx(evaluation.summary["loss"], rel=1e-6)
    history = MlflowClient().get_metric_history(run.info.run_id, "evaluation/validation/loss")
    assert history[0].value == evaluation.summary["loss"]
    model = MlflowClient().get_logged_model(run.outputs.model_outputs[0].model_id)
    (scored,) = [metric for metric in model.metrics if metric.key == "evaluation/validation/loss"]
    assert (scored.value, scored.dataset_digest) == (evaluation.summary["loss"], made[0]["shards"].digest[:32])


async def _run_of(flow_run_id: Any) -> Any:
    async with get_client() as client:
        return await client.read_flow_run(flow_run_id)


async def _artifacts_of(flow_run_id: Any) -> list[Any]:
    async with get_client() as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        return await client.read_artifacts(artifact_filter=wanted)


def test_the_prefect_pages_show_each_step(made: tuple[dict[str, Artifact], Any]) -> None:
    import asyncio

    shown = asyncio.run(_artifacts_of(made[1].state_details.flow_run_id))
    keys = {artifact.key for artifact in shown}
    assert {"corpus", "shards", "plan", "checkpoint", "evaluation", "samples"} <= keys
    assert "### Expected loss" in next(artifact.data for artifact in shown if artifact.key == "plan")
    words = next(artifact.data for artifact in shown if artifact.key == "checkpoint")
    assert made[0]["model"].digest in words
    assert asyncio.run(_run_of(made[1].state_details.flow_run_id)).name == "pipeline tiny"


def test_the_lineage_is_in_mlflow_and_in_the_prefect_pages(run: Any, made: tuple[dict[str, Artifact], Any]) -> None:
    import asyncio

    model, evaluation, run_id = made[0]["model"], made[0]["evaluation"], run.info.run_id
    graph = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/lineage/lineage.json"))
    kinds = [node["kind"] for node in graph["nodes"]]
    assert kinds == ["source", "corpus", "shards", "checkpoint", "evaluation", "version"]
    assert {"from": model.label, "to": evaluation.label} in graph["edges"]
    assert (graph["focus"], graph["nodes"][-1]["name"]) == (model.label, "tiny/1")
    page = mlflow.artifacts.load_text(f"runs:/{run_id}/lineage/lineage.html")
    assert evaluation.digest in page
    shown = [a for a in asyncio.run(_artifacts_of(made[1].state_details.flow_run_id)) if a.key == "lineage"]
    assert len(shown) == 2, "of the training, and of the evaluation"
    for words in (artifact.data for artifact in shown):
        assert f"MLflow run `{run_id}` is in `sqlite:///" in words
        assert f"{model.label}  {model.digest[:16]}" in words
        assert f"train loss {model.summary['train_loss']:.4f}" in words
    assert any(f"evaluation/{evaluation.path.name}" in artifact.data for artifact in shown)


def test_a_second_run_reuses_everything_and_logs_nothing_twice(
    made: tuple[dict[str, Artifact], Any], tiny_sets: list[str], run: Any
) -> None:
    from flows.pipeline import pipeline

    _, merged = merge_layers("smoke", None, tiny_sets)
    before = {a.label: (a.path / "manifest.json").stat().st_mtime_ns for a in made[0].values()}
    again = pipeline(preset="smoke", overrides=PipelineOverrides.model_validate(merged))
    assert {a.label: (a.path / "manifest.json").stat().st_mtime_ns for a in again.values()} == before
    client = MlflowClient()
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 12
    assert len(client.get_metric_history(run.info.run_id, "evaluation/validation/loss")) == 1
    assert client.get_run(run.info.run_id).info.end_time == run.info.end_time
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_any_name_of_a_model_is_judged(made: tuple[dict[str, Artifact], Any], tiny_sets: list[str]) -> None:
    from flows.evaluate import evaluate

    _, merged = merge_layers("smoke", None, tiny_sets)
    found = evaluate(model="tiny/1", preset="smoke", overrides=PipelineOverrides.model_validate(merged))
    assert found["evaluation"].digest == made[0]["evaluation"].digest


def test_a_killed_child_is_retried_and_goes_on_in_the_same_run(
    workplace: Path, tiny_sets: list[str], made: tuple[dict[str, Artifact], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal
    import subprocess

    import tasks.training
    from flows.pretrain import pretrain
    from gptmodel.pretraining.step import pretrain as real

    killed: list[int] = []

    def kill_once(line: str) -> None:
        if line.startswith("step 6 ") and not killed:
            found = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "gptmodel.pretraining.worker"], capture_output=True
            )
            killed.append(int(found.stdout.split()[0]))
            os.kill(killed[0], signal.SIGKILL)

    def watched(*args: Any, on_line: Callable[[str], None], **kwargs: Any) -> Any:
        def both(line: str) -> None:
            on_line(line)
            kill_once(line)

        return real(*args, on_line=both, **kwargs)

    monkeypatch.setattr(tasks.training, "pretrain", watched)
    monkeypatch.setattr(tasks.training.pretrain_model, "retry_delay_seconds", 0)
    _, merged = merge_layers("smoke", None, [*tiny_sets, "name=killed", "train.seed=2"])
    state = pretrain(preset="smoke", overrides=PipelineOverrides.model_validate(merged), return_state=True)
    assert killed
    assert state.is_completed()
    experiment = MlflowClient().get_experiment_by_name("killed")
    assert experiment is not None
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    history = MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    assert run.info.status == "FINISHED"


def test_what_a_person_must_fix_is_not_retried(workplace: Path, tiny_sets: list[str]) -> None:
    from flows.prepare_data import prepare_data
    from gptmodel.errors import DataError

    _, merged = merge_layers("smoke", None, [*tiny_sets, "corpus.source.paths=['/nowhere/*.txt']"])
    state = prepare_data(preset="smoke", overrides=PipelineOverrides.model_validate(merged), return_state=True)
    assert state.is_failed()
    with pytest.raises(DataError, match="no file matches"):
        state.result()
    import asyncio

    async def task_runs() -> list[Any]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        async with get_client() as client:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
            return await client.read_task_runs(flow_run_filter=wanted)

    (task_run,) = asyncio.run(task_runs())
    assert task_run.run_count == 1


def test_a_server_that_asks_to_wait_is_left_alone_so_long(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import hashlib
    import threading
    import time
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from prefect.states import Failed

    import tasks.preparing
    from flows.prepare_data import prepare_data
    from gptmodel.errors import NetworkError
    from tasks.policy import PATIENCE, can_heal

    body = json.dumps({"text": "The mill keeps its books. " * 40}).encode()
    asked: list[float] = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(time.monotonic())
            self.send_response(429 if len(asked) == 1 else 200)
            self.send_header("Retry-After", "2")
            self.send_header("Content-Length", "0" if len(asked) == 1 else str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if len(asked) == 1 else body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(tasks.preparing.fetch_corpus, "retry_delay_seconds", 0)
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        source = {
            "kind": "http",
            "paths": [f"http://127.0.0.1:{server.server_address[1]}/a.jsonl"],
            "sha256": [hashlib.sha256(body).hexdigest()],
            "allow_private_addresses": True,
        }
        overrides = PipelineOverrides.model_validate({"corpus": {"source": source}})
        state = prepare_data(preset="smoke", overrides=overrides, return_state=True)
        server.shutdown()
    assert "one side of the split" in str(state.message), "it was fetched: one document is no corpus"
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 2
    too_long = Failed(data=NetworkError("busy", PATIENCE + 1))
    assert asyncio.run(can_heal(None, None, too_long)) is False  # type: ignore[arg-type]


def test_the_pipeline_starts_from_imported_weights(workplace: Path, tiny_sets: list[str], tmp_path: Path) -> None:
    """A Hugging Face directory in, its loss before the first step, and its digest in the lineage."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from flows.pipeline import pipeline
    from gptmodel.config import EvaluateConfig
    from gptmodel.judging.evaluation import score_tokens
    from gptmodel.store.artifacts import Store
    from gptmodel.tokens.tokenstream import open_split
    from gptmodel.weights import load_model

    torch.manual_seed(5)
    shape = GPT2Config(n_layer=2, n_head=2, n_embd=24, n_positions=48, initializer_range=0.1)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "theirs")
    _, merged = merge_layers("smoke", None, [*tiny_sets, "name=started", f"init_from={tmp_path / 'theirs'}"])
    made = pipeline(
        preset="smoke",
        overrides=PipelineOverrides.model_validate(merged | {"train": {**merged["train"], "eval_tokens": 0}}),
    )
    weights = next(a for a in Store(workplace / "store").artifacts() if a.kind == "weights")
    assert [ref.digest for ref in made["model"].request.inputs] == [made["shards"].digest, weights.digest]
    assert made["model"].request.config["model"]["n_embd"] == 24
    experiment = MlflowClient().get_experiment_by_name("started")
    assert experiment is not None
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert run.data.params["init_from"] == weights.label
    before = MlflowClient().get_metric_history(run.info.run_id, "validation/loss")[0]
    scores = score_tokens(load_model(weights), open_split(made["shards"], "validation"), EvaluateConfig())
    whole = len(scores.nats) // 48 * 48
    assert before.step == 0
    assert before.value == pytest.approx(float(scores.nats[:whole].mean()), abs=1e-4)
    (gain,) = MlflowClient().get_metric_history(run.info.run_id, "evaluation/training_gain")
    assert gain.value == pytest.approx(before.value - made["model"].summary["best_validation_loss"])
    (version,) = MlflowClient().search_model_versions("name = 'theirs'")
    certificate = load_dict(f"runs:/{version.run_id}/certificate.json")
    assert certificate["transformers"]["largest_difference"] < 1e-4
    assert len(certificate["tensors"]) == 28
