"""People's ratings from `gptflow rate start` to a gate, with a real Prefect server and a real MLflow database."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource

from gptmodel.config import DecodingConfig, PipelineConfig
from gptmodel.criteria import CRITERIA, NAMES
from gptmodel.errors import ConfigError, DataError
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.rating.journal import Journal, Opening
from gptmodel.rating.rounds import RoundConfig, build_round, find_round, read_items
from gptmodel.store.artifacts import Artifact, Store
from tasks.rating import await_ratings, progress_of
from tasks.tracking.cards import save_card, training_card
from tasks.tracking.review_queue import put_before, read_back
from tasks.tracking.runs import find_run
from tasks.tracking.syncing import sync_store

Tiny = Callable[..., PipelineConfig]
POINTS = {"real": 5, "salad": 1, "model": 2}
SMALL = RoundConfig(from_validation=1, prompt_words=6, checks=1, decoding=DecodingConfig(max_new_tokens=8))


@pytest.fixture(scope="module")
def model(
    workplace: Path, tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """A model in a store of its own."""
    store = Store(tmp_path_factory.mktemp("people") / "store")
    for kind in ("corpus", "shards"):
        shutil.copytree(tiny_data[0].root / kind, store.root / kind)
    shards = store.resolve(tiny_data[1].label)
    training = plan_training(store, tiny("train.max_steps=3", "name=rated"), shards)
    save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
    return pretrain(store, training, on_line=lambda _: None)[0]


@pytest.fixture
def store(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store(model.path.parent.parent)
    monkeypatch.setenv("GPTFLOW_STORE", str(found.root))
    monkeypatch.setattr("tasks.console.quiet_prefect", lambda: None)  # it would quieten the tests after this one
    return found


def rate(*words: str) -> Result:
    from flows.commands.rate import rate

    return CliRunner().invoke(rate, words)


def told(*words: str) -> Any:
    done = rate(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def filled(store: Store, rater: str, folder: Path) -> Path:
    """A sheet, out of the store and filled in by a careful reader."""
    sheet, kinds = folder / f"{rater}.csv", {item.id: item.kind for item in read_items(find_round(store))}
    assert rate("export", "--rater", rater, "--to", str(sheet)).exit_code == 0
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows({**row, **dict.fromkeys(NAMES, POINTS[kinds[row["text_id"]]])} for row in rows)
    return sheet


def answer(round_name: str, item: str, n_questions: int) -> None:
    """What MLflow's Review page leaves when somebody answers so many of the questions with 4."""
    experiment = MlflowClient().get_experiment_by_name(f"human-eval/{round_name[:8]}")
    assert experiment is not None
    (trace,) = MlflowClient().search_traces(
        locations=[experiment.experiment_id], filter_string=f"tags.`gptflow.item` = '{item}'"
    )
    for criterion in CRITERIA[:n_questions]:
        source = AssessmentSource("HUMAN", "default")
        mlflow.log_feedback(trace_id=trace.info.trace_id, name=criterion.title, value="4", source=source)


# MLflow's tracer warns of its own type hints when it is first used.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
def test_from_texts_to_a_gate(store: Store, model: Artifact, tmp_path: Path) -> None:
    asked = ("--from-validation", "1", "--checks", "1", "--set", "prompt_words=6", "--set", "decoding.max_new_tokens=8")
    made = told("start", "--rater", "anna", *asked)
    found = find_round(store)
    assert made["round"] == found.label
    assert made["raters"]["anna"]["rater"] == 1
    assert told("start", "--rater", "ben", "--no-queue", *asked)["digest"] == found.digest
    refused = rate("results")
    assert isinstance(refused.exception, DataError)

    own, check, other = sorted(read_items(found), key=lambda item: item.kind != "model")
    answer(found.path.name, own.id, len(CRITERIA))
    answer(found.path.name, check.id, 2)  # not all four: it does not count
    assert told("status")["raters"] == {"anna": {"rater": 1, "rated": 1}, "ben": {"rater": 2, "rated": 0}}

    sheet = filled(store, "ben", tmp_path)
    assert "3 ratings read, 3 of them new" in rate("import", str(sheet)).output
    assert "3 ratings read, 0 of them new" in rate("import", str(sheet)).output
    damaged = tmp_path / "damaged.csv"
    damaged.write_text(sheet.read_text().replace(";5;5;5;5;", ";5;6;5;5;"))
    assert "fluency is '6'" in str(rate("import", str(damaged)).exception)
    assert other.id != check.id

    met = told("results", "--require", "coherence>=3.0")
    assert met["gate"][0]["mean"] == 3.0  # 4 in the queue, 2 on the sheet
    assert met["summary"]["raters"] == 2
    assert rate("results", "--require", "coherence>=3.0", "--require", "overall.low>=3.5").exit_code == 1
    (ratings,) = [store.at("ratings", path.name) for path in store.directories("ratings")]
    assert met["ratings"] == ratings.label

    list(sync_store(store))  # what a busy machine was too slow for
    run = find_run(model.fingerprint)
    assert run is not None
    for name in (f"ratings/{each}/mean" for each in NAMES):
        assert [p.value for p in MlflowClient().get_metric_history(run.info.run_id, name)] == [3.0], name
    from flows.commands.verify import verify

    agreed = CliRunner().invoke(verify, [model.label, "--mlflow", "required", "--json"])
    assert agreed.exit_code == 0, agreed.output
    assert {ratings.label, found.label} <= set(json.loads(agreed.stdout.splitlines()[-1])["nodes"])


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
def test_a_round_whose_experiment_was_deleted_gets_its_queues_back(
    store: Store, model: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = store.input_of(store.input_of(model, "shards"), "corpus")
    found, _ = build_round(store, [model], corpus, replace(SMALL, checks=0))
    put_before(found, read_items(found), [1])
    experiment = MlflowClient().get_experiment_by_name(f"human-eval/{found.path.name[:8]}")
    assert experiment is not None
    MlflowClient().delete_experiment(experiment.experiment_id)
    with caplog.at_level(logging.WARNING):
        put_before(found, read_items(found), [1])
    assert "was deleted in MLflow" in caplog.text
    answer(found.path.name, read_items(found)[0].id, len(CRITERIA))
    assert len(read_back(found).ratings) == 1


@pytest.mark.slow
def test_a_run_of_a_deployment_rests_and_the_same_run_goes_on(store: Store, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import FlowRun
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow_sync
    from prefect.states import Pending

    from flows.human_eval import human_eval

    asked = {"raters": ["carl"], "settings": {"seed": 5, **_as_json(SMALL)}, "queue": False, "look_every": 3}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(human_eval), "waits")
        run_id = client.create_flow_run_from_deployment(deployment, parameters=asked).id

        def look() -> FlowRun:
            """As a worker does with a run that is due."""
            client.set_flow_run_state(run_id, Pending())
            return client.read_flow_run(run_id)

        begun = datetime.now(UTC)
        with pytest.raises(Pause):
            run_flow_sync(human_eval, flow_run=look(), parameters=asked)
        resting = client.read_flow_run(run_id).state
        assert resting is not None
        assert (resting.type.value, resting.name) == ("SCHEDULED", "AwaitingRatings")
        assert str(resting.message).startswith("0 of 3 ratings are in")
        due = resting.state_details.scheduled_time
        assert due is not None
        assert due > begun + timedelta(seconds=3)
        ways = [state.name for state in client.read_flow_run_states(run_id)]
        assert ways[-2:] == ["Running", "AwaitingRatings"], "nothing between at which a kill would strand it"

        waited_for = find_round(store)
        assert rate("import", str(filled(store, "carl", tmp_path))).exit_code == 0
        run_flow_sync(human_eval, flow_run=look(), parameters=asked)
        done = client.read_flow_run(run_id).state
        assert done is not None
        assert done.is_completed()
    assert find_round(store).label == waited_for.label
    assert waited_for.ref in {
        ref for path in store.directories("ratings") for ref in store.at("ratings", path.name).request.inputs
    }


def test_when_time_is_up_what_is_rated_must_do(store: Store, tmp_path: Path) -> None:
    from flows.human_eval import human_eval

    texts = RoundConfig(prompts=("The harbour",), from_validation=0, checks=0, decoding=SMALL.decoding)
    asked: dict[str, Any] = {"raters": ["dora"], "settings": texts, "queue": False, "days": 1e-6, "needed": 9}
    with pytest.raises(DataError, match="is rated yet"):
        human_eval(**asked)
    assert rate("import", str(filled(store, "dora", tmp_path))).exit_code == 0
    assert human_eval(**asked)["ratings"].summary["ratings"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"days": float("nan")}, "days is nan; give more than 0"),
        ({"days": 1e300}, "days is 1e+300; give more than 0 and at most 3,650"),
        ({"days": -1.0}, "days is -1; give"),
        ({"look_every": float("nan")}, "look_every is nan; give seconds"),
        ({"look_every": float("inf")}, "look_every is inf; give seconds"),
        ({"needed": -1}, "needed is -1; give"),
    ],
)
def test_a_wrong_wish_is_named_before_a_round_is_made(store: Store, wrong: dict[str, Any], said: str) -> None:
    from flows.human_eval import human_eval

    before = store.directories("rating-round")
    asked: dict[str, Any] = {"raters": ["eve"], "settings": replace(SMALL, seed=9), "queue": False, **wrong}
    with pytest.raises(ConfigError) as told:
        human_eval(**asked)
    assert len(told.value.problems) == 1
    assert str(told.value).startswith(said)
    assert store.directories("rating-round") == before


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
@pytest.mark.parametrize(
    ("hours_left", "looks_without", "given"), [(24, 2, 1), (-0.001, 1, 1), (-2, 9, 0)], ids=["before", "at", "after"]
)
def test_an_mlflow_that_is_away_is_waited_for_and_at_the_deadline_once(
    undisturbed: Artifact,
    fresh_mlflow: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    hours_left: float,
    looks_without: int,
    given: int,
) -> None:
    there, rests = fresh_mlflow(tmp_path / "mlflow.db"), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    mlflow.tracing.reset()  # its tracer stays with the database that it saw first
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    shutil.copytree(undisturbed.path.parents[1], tmp_path / "store")
    store = Store(tmp_path / "store")
    texts = RoundConfig(prompts=("The harbour",), from_validation=0, checks=0, decoding=SMALL.decoding)
    found, _ = build_round(store, [store.resolve(undisturbed.label)], None, texts)
    put_before(found, read_items(found), [1])
    answer(found.path.name, read_items(found)[0].id, len(CRITERIA))
    deadline = datetime.now(UTC) + timedelta(hours=hours_left)
    Journal(store, found.path.name).open(Opening(deadline.isoformat(), deadline.isoformat(), 1))

    def rest(seconds: float, why: str) -> None:
        rests.append(seconds)
        if len(rests) == looks_without:
            os.environ["MLFLOW_TRACKING_URI"] = there

    monkeypatch.setattr("tasks.rating.rest", rest)
    monkeypatch.setattr("tasks.rating.get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mlflow.tracing.reset()
    await_ratings(found, 300.0)
    assert rests == [300.0] * (looks_without if given else 0)
    assert progress_of(store, found).given == given
    assert caplog.text.count("does not answer") == 1, "once for each outage"


def _as_json(config: RoundConfig) -> dict[str, Any]:
    kept = {name: getattr(config, name) for name in ("from_validation", "prompt_words", "checks")}
    return {**kept, "decoding": {"max_new_tokens": config.decoding.max_new_tokens}}
