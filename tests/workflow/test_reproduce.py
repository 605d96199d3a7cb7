"""Trainings made again for real: the same bytes, the same first steps, and the step from which changed code differs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError
from gptmodel.pretraining.step import Training, plan_training, pretrain, run_dir_of
from gptmodel.reproduction.chain import plan_reproduction
from gptmodel.reproduction.freshstore import ROOM
from gptmodel.reproduction.rebuilding import reproduce_apart
from gptmodel.reproduction.repeating import Wishes
from gptmodel.store.artifacts import SCRATCH, Artifact, Store
from tests.chaos_pipeline import write_gpt2

PROJECT = Path(__file__).parents[2]


@contextmanager
def chosen(store: Store, training: Training, precision: str) -> Iterator[None]:
    """As if the first attempt of a run had measured this precision to be the better one."""
    work = store.building_path(training.request) / SCRATCH
    work.mkdir(parents=True, exist_ok=True)
    (work / "machine.json").write_text(json.dumps({"precision": precision}))
    yield


@pytest.fixture(scope="module")
def made(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Artifact]:
    """A training from imported weights, with dropout, whose precision was chosen."""
    from gptmodel.device import set_up
    from gptmodel.pretrained import import_weights

    root = tmp_path_factory.mktemp("reproduce")
    shutil.copytree(tiny_data[0].root, root / "store")
    store = Store(root / "store")
    shards = store.resolve(tiny_data[1].label)
    write_gpt2(root / "theirs")
    weights, _ = import_weights(store, str(root / "theirs"))
    config = tiny("train.precision=auto", f"init_from={root / 'theirs'}")
    other = "float32" if set_up(config.train).precision == "bfloat16" else "bfloat16"
    training = plan_training(store, config, shards, weights)
    made, _ = pretrain(store, training, watch=lambda t: chosen(store, t, other))
    job = run_dir_of(store, made.fingerprint) / "job.json"
    # What no fingerprint knows may be otherwise today; the record of what was done counts, and no bound on it.
    told = job.read_text().replace('"threads": 1', '"threads": 2').replace('"max_hours": 0.0', '"max_hours": 1e-06')
    assert "1e-06" in told
    job.write_text(told)
    return store, made


@pytest.mark.slow
def test_a_chain_of_two_trainings_is_made_again_to_the_byte(
    made: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    store, one = made
    config = tiny(
        "train.seed=5", "train.max_steps=6", "train.log_every=3", "train.checkpoint_every=2", f"init_from={one.label}"
    )
    two, _ = pretrain(store, plan_training(store, config, store.input_of(one, "shards"), one))
    said: list[str] = []
    verdict, kept = reproduce_apart(plan_reproduction(store, two, Wishes()), keep=True, say=said.append)
    assert [node.name.split("/")[0] for node in verdict.nodes] == ["corpus", "shards", "weights", *["checkpoint"] * 2]
    assert [node.equal for node in verdict.nodes] == [True] * 5
    assert verdict.words == f"{two.label} was made again with the same bytes."
    assert kept is not None
    again = Store(kept).resolve(one.label)
    assert (again.digest, again.fingerprint) == (one.digest, one.fingerprint)
    for name in ("precision", "threads"):
        assert again.summary["machine"][name] == one.summary["machine"][name]
    assert sum("as an earlier attempt of this run" in line for line in said) == 2
    prefix, _ = reproduce_apart(plan_reproduction(store, two, Wishes(steps=4)), tmp_path / "new")
    assert (prefix.equal, prefix.steps, prefix.of_steps) == (True, 4, 6)
    assert prefix.words == (
        "The 2 logged of the first 4 of 6 steps, the last of them step 3, give the same figures again, to the bit."
    )
    with pytest.raises(ConfigError, match=r"--steps is 4, and --store .* already has 4 of an earlier attempt"):
        reproduce_apart(plan_reproduction(store, two, Wishes(steps=4)), tmp_path / "new")
    more, _ = reproduce_apart(plan_reproduction(store, two, Wishes(steps=5)), tmp_path / "new")
    assert (more.equal, more.steps, more.logged) == (True, 5, 2)
    assert [node.reused for node in more.nodes] == [True] * 4 + [False]
    assert more.nodes[-1].said == "5 of 6 steps, by their figures; went on with an earlier attempt"


def test_the_deployed_flow_tells_page_and_mlflow_that_the_bytes_are_the_same(
    workplace: Path, made: tuple[Store, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.reproduce import reproduce

    store, one = made
    told_child = json.loads((run_dir_of(store, one.fingerprint) / "job.json").read_text())
    assert told_child["provenance"]["code_digest"] == one.provenance["code_digest"]  # of a run that never publishes
    client = MlflowClient()
    run = client.create_run(client.create_experiment("reproduced"))
    journal = run_dir_of(store, one.fingerprint) / "mlflow.json"
    journal.write_text(json.dumps({"run_id": run.info.run_id}))
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    state = reproduce(model=run.info.run_id, cached=True, return_state=True)
    journal.unlink()
    told = state.result()
    assert (told["equal"], told["steps"], told["of_steps"]) == (True, 12, 12)
    assert [node["equal"] for node in told["nodes"]] == [True] * 4
    assert told["nodes"][-1]["digest"] == one.digest
    tags = client.get_run(run.info.run_id).data.tags
    assert (tags["gptflow.reproduced"], tags["gptflow.reproduced_steps"]) == ("equal", "12 of 12")

    async def pages() -> list[Any]:
        async with get_client() as prefect:
            wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
            return await prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))

    (page,) = [artifact for artifact in asyncio.run(pages()) if artifact.key == "reproduction"]
    assert f"{one.label} was made again with the same bytes" in str(page.data)


@pytest.mark.slow
def test_changed_code_is_seen_from_the_step_on_at_which_it_acts(made: tuple[Store, Artifact], tmp_path: Path) -> None:
    store, one = made
    for package in ("gptmodel", "tasks", "flows"):
        shutil.copytree(PROJECT / package, tmp_path / package)
    changed = tmp_path / "gptmodel" / "training" / "optimizer.py"
    text = changed.read_text()
    line = "    peak = config.learning_rate\n"
    assert text.count(line) == 1
    changed.write_text(text.replace(line, "    peak = config.learning_rate * (1.0001 if step >= 6 else 1)\n"))
    before = list((store.root / ROOM).glob("[!.]*"))  # what another test kept
    env = {**os.environ, "GPTFLOW_STORE": str(store.root)}
    command = [sys.executable, "-m", "flows", "reproduce", one.label, "--steps", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    # Update 7 is the first with the other rate, so step 8 is the first whose loss is of other weights. The steps before
    # it are equal: a schedule of 8 steps instead of 12 would differ from step 2 on.
    assert f"{one.label} differs from step 8 on: train/loss was" in done.stdout
    assert "8 of 12 steps, by their figures" in done.stdout
    assert "code_digest" in done.stdout
    assert list((store.root / ROOM).glob("[!.]*")) == before
    assert "Traceback" not in done.stderr
