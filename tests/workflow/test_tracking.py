"""Tracking that may fail without harm: a server that is gone, and one that answers late, lose and double nothing."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gptmodel.overrides import PipelineOverrides
from gptmodel.settings import merge_layers
from tasks.tracking import Card, Feed, client, find_or_create_run


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def lines(*steps: int) -> list[dict[str, Any]]:
    return [{"step": s, "tokens": s * 10, "time": 1_000 + s, "metrics": {"train/loss": float(s)}} for s in steps]


def steps_of(run_id: str, name: str = "train/loss") -> list[int]:
    return [point.step for point in MlflowClient().get_metric_history(run_id, name)]


def card(name: str) -> Card:
    return Card("tracking", name, f"fingerprint-of-{name}", {"a": 1}, {"t": "v"})


def test_a_training_without_its_tracker_completes_and_is_told_later(
    workplace: Path, tiny_sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pretrain import pretrain

    _, merged = merge_layers("smoke", None, [*tiny_sets, "name=untracked", "train.seed=3"])
    overrides = PipelineOverrides.model_validate(merged)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
        first = pretrain(preset="smoke", overrides=overrides)
    assert MlflowClient().get_experiment_by_name("untracked") is None
    again = pretrain(preset="smoke", overrides=overrides)
    assert again["model"].digest == first["model"].digest
    experiment = MlflowClient().get_experiment_by_name("untracked")
    assert experiment is not None
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert steps_of(run.info.run_id) == list(range(1, 13))
    assert run.info.status == "FINISHED"
    assert len(MlflowClient().search_model_versions("name = 'untracked'")) == 1


def test_lines_offered_twice_are_sent_once(workplace: Path) -> None:
    feed = Feed(card("twice"))
    feed.offer(lines(1, 2, 3))
    feed.offer(lines(2, 3, 4))
    another = Feed(card("twice"))  # a retry of the task, or the next run
    another.offer(lines(1, 2, 3, 4, 5))
    assert another.run_id == feed.run_id
    assert steps_of(feed.run_id) == [1, 2, 3, 4, 5]
    assert steps_of(feed.run_id, "vs_tokens/train/loss") == [10, 20, 30, 40, 50]


def test_a_call_that_timed_out_after_it_was_carried_out_is_not_repeated(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed = Feed(card("late"))
    feed.offer(lines(1))
    real = MlflowClient.log_batch

    def carried_out_but_late(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        real(self, *args, **kwargs)
        raise MlflowException("timed out")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(MlflowClient, "log_batch", carried_out_but_late)
        feed.offer(lines(2, 3))
    assert not feed.complete
    assert "the log is kept, and sent later" in caplog.text
    feed.offer(lines(4))
    assert feed.complete
    assert steps_of(feed.run_id) == [1, 2, 3, 4]


def test_not_a_number_and_infinity_arrive(workplace: Path) -> None:
    feed = Feed(card("strange"))
    strange = lines(1, 2)
    strange[0]["metrics"]["train/loss"] = float("nan")
    strange[1]["metrics"]["train/loss"] = float("inf")
    feed.offer(strange)
    assert steps_of(feed.run_id) == [1, 2]


def test_one_fingerprint_is_one_run(workplace: Path) -> None:
    first = find_or_create_run(card("one"))
    client().set_terminated(first, "FAILED")
    assert find_or_create_run(card("one")) == first
    run = client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["gptflow.fingerprint"] == "fingerprint-of-one"
    assert run.data.params == {"a": "1"}
