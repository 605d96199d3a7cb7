"""Every number once in a real MLflow server, whatever its answers: lost, late, failed, cut short, or none at all."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import tasks.tracking.feed
from benchmarks.mlflow_server import Answer, Forward, Proxy, Server, plainly
from gptmodel.errors import Interrupted, LockHeldError
from gptmodel.store.locks import exclusive
from gptmodel.training.metrics_log import MetricsLog
from tasks.tracking.cards import Card
from tasks.tracking.feed import LOCK_FILE, Feed, followed, noted_state
from tasks.tracking.runs import find_or_create_run, find_run


@pytest.fixture
def proxy(mlflow_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(mlflow_server.port) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        yield proxy


@pytest.fixture
def card(request: pytest.FixtureRequest) -> Card:
    name = request.node.name
    return Card("tracking", name, f"fingerprint of {name}", {"a": 1}, {"t": "v"})


def write(run_dir: Path, steps: range, after: int = -1, scale: float = 1.0) -> None:
    """Log lines as a training writes them: two for every third step."""
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.start(after)
    for step in steps:
        log.log(step, tokens=step * 10, metrics={"train/loss": step * scale, "train/grad_norm": 1.0 / step})
        if step % 3 == 0:
            log.log(step, tokens=step * 10, metrics={"validation/loss": step * scale})
    log.close()


def points(card: Card, name: str) -> list[tuple[int, float]]:
    run = find_run(card.fingerprint)
    assert run is not None
    return sorted((p.step, p.value) for p in MlflowClient().get_metric_history(run.info.run_id, name))


def assert_each_once(card: Card, last: int) -> None:
    steps = list(range(1, last + 1))
    assert [step for step, _ in points(card, "train/loss")] == steps
    assert [step for step, _ in points(card, "train/grad_norm")] == steps
    assert [step for step, _ in points(card, "vs_tokens/train/loss")] == [step * 10 for step in steps]
    assert [step for step, _ in points(card, "validation/loss")] == steps[2::3]


def carried_out_but_lost(part: str) -> Callable[..., Answer]:
    """A rule: requests whose path holds `part` are carried out, and answered with 500."""

    def rule(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        status, answer = forward(body)
        return (500, b"{}") if part in path else (status, answer)

    return rule


def every_second_stored(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    """A rule: of a batch of metrics every second one is stored, and the answer is 500."""
    if "log-batch" not in path or not (told := json.loads(body)).get("metrics"):
        return forward(body)
    forward(json.dumps({**told, "metrics": told["metrics"][::2]}).encode())
    return 500, b"{}"


def test_a_second_feed_sends_only_what_is_new(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 5))
    assert Feed(card, tmp_path).push() > 0
    assert Feed(card, tmp_path).push() == 0
    write(tmp_path, range(5, 8), after=4)
    Feed(card, tmp_path).push()
    assert_each_once(card, 7)


def test_steps_that_a_resumed_run_makes_again_are_not_sent_again(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    live = Feed(card, tmp_path)
    live.push()
    write(tmp_path, range(4, 11), after=3)  # with other times than before
    live.push()
    Feed(card, tmp_path).push()
    assert_each_once(card, 10)


def test_without_its_journal_a_feed_takes_the_servers_word(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    Feed(card, tmp_path).push()
    (tmp_path / "mlflow.json").unlink()
    write(tmp_path, range(4, 11), after=3)
    Feed(card, tmp_path).push()
    assert_each_once(card, 10)


@pytest.mark.parametrize("rule", [carried_out_but_lost("log-batch"), every_second_stored], ids=["all", "a part"])
@pytest.mark.parametrize("same", [True, False], ids=["same process", "next process"])
def test_a_failed_batch_that_was_stored_is_made_whole(
    proxy: Proxy, card: Card, tmp_path: Path, rule: Callable[..., Answer], same: bool
) -> None:
    write(tmp_path, range(1, 5))
    feed = Feed(card, tmp_path)
    feed.push()
    write(tmp_path, range(5, 12), after=4)
    proxy.rule = rule
    with pytest.raises(MlflowException):
        feed.push()
    proxy.rule = plainly
    write(tmp_path, range(7, 15), after=6)  # and meanwhile the training was killed, and made steps again
    (feed if same else Feed(card, tmp_path)).push()
    assert_each_once(card, 14)


def test_the_first_batch_of_a_run_may_be_the_one_that_fails(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 9))
    find_or_create_run(card)
    Feed(card, tmp_path).connect()
    proxy.rule = every_second_stored
    with pytest.raises(MlflowException):
        Feed(card, tmp_path).push()
    proxy.rule = plainly
    write(tmp_path, range(3, 9), after=2)
    Feed(card, tmp_path).push()
    assert_each_once(card, 8)


def test_a_step_that_is_spread_over_batches(
    proxy: Proxy, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.tracking.feed, "_BATCH", 2)  # a training line has three numbers
    write(tmp_path, range(1, 7))
    batches = 0

    def fail_late(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        nonlocal batches
        batches += b'"metrics"' in body
        return forward(body) if batches < 4 else every_second_stored(method, path, body, forward)

    proxy.rule = fail_late
    with pytest.raises(MlflowException):
        Feed(card, tmp_path).push()
    proxy.rule = plainly
    Feed(card, tmp_path).push()
    assert_each_once(card, 6)


@pytest.mark.parametrize("lost", ["runs/create", "log-inputs", "log-batch", "experiments/create"])
def test_a_lost_answer_makes_no_second_run(proxy: Proxy, card: Card, tmp_path: Path, lost: str) -> None:
    proxy.rule = carried_out_but_lost(lost)
    plain = dict.fromkeys(("source", "schema", "profile"), "{}")
    datasets = [{"name": "d", "digest": "1", "source_type": "s", "context": "train", **plain}]
    own = Card(f"lost {lost}", "run", card.fingerprint, {"a": 1, "b": 2}, {}, datasets)
    with pytest.raises(MlflowException):
        find_or_create_run(own)
    proxy.rule = plainly
    run, _ = find_or_create_run(own)
    assert len(MlflowClient().search_runs([run.info.experiment_id])) == 1
    run = MlflowClient().get_run(run.info.run_id)
    assert run.data.params == {"a": "1", "b": "2"}
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["d"]


def test_a_run_that_was_created_late_is_dropped(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    feed = Feed(card, tmp_path)
    feed.push()
    tags = {"gptflow.fingerprint": card.fingerprint}
    experiment = MlflowClient().get_run(feed.run_id).info.experiment_id
    MlflowClient().create_run(experiment, start_time=1, tags=tags)  # its request waited in the net
    Feed(card, tmp_path).push()
    (run,) = MlflowClient().search_runs([experiment], f"tags.`gptflow.fingerprint` = '{card.fingerprint}'")
    assert run.info.run_id == feed.run_id
    assert_each_once(card, 3)


def test_not_a_number_and_infinity_survive(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.start(-1)
    for step, value in enumerate([1.5, math.nan, math.inf, -math.inf]):
        log.log(step, tokens=step, metrics={"train/loss": value})
    log.close()
    Feed(card, tmp_path).push()
    Feed(card, tmp_path).push()
    (_, plain), (_, nan), (_, up), (_, down) = points(card, "train/loss")
    assert plain == 1.5
    assert math.isnan(nan)
    assert (up, down) == (1.7976931348623157e308, -1.7976931348623157e308), "as MLflow's database keeps infinities"


def test_connecting_reads_little_however_long_the_run_is(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 1_001))
    Feed(card, tmp_path).push()
    write(tmp_path, range(1_001, 1_011), after=1_000)
    read: list[int] = []

    def count(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        status, answer = forward(body)
        if "get-history" in path:
            read.append(len(json.loads(answer).get("metrics", [])))
        return status, answer

    proxy.rule = count
    Feed(card, tmp_path).connect()
    assert read == [], "nothing was uncertain"
    proxy.rule = carried_out_but_lost("log-batch")
    with pytest.raises(MlflowException):
        Feed(card, tmp_path).push()
    proxy.rule = count
    assert Feed(card, tmp_path).push() == 0
    assert 0 < sum(read) < 6 * 200, "of more than 4,000 points"
    assert_each_once(card, 1_010)


def test_only_one_process_feeds_a_run(proxy: Proxy, card: Card, tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    with exclusive(tmp_path / LOCK_FILE, "the feed"), followed(card, tmp_path):
        pass
    assert find_run(card.fingerprint) is None
    connected, free = threading.Event(), threading.Event()

    def hold_back(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        connected.set()
        assert free.wait(60)
        return forward(body)

    proxy.rule = hold_back
    with followed(card, tmp_path):
        assert connected.wait(60)
        with pytest.raises(LockHeldError, match="the MLflow run"), exclusive(tmp_path / LOCK_FILE, "the MLflow run"):
            pass
        free.set()
    assert_each_once(card, 3)


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError(), "FAILED"), (Interrupted("", 15), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_end_of_a_run_is_told(proxy: Proxy, card: Card, tmp_path: Path, error: BaseException, status: str) -> None:
    write(tmp_path, range(1, 4))
    with pytest.raises(type(error)), followed(card, tmp_path):
        raise error
    assert noted_state(tmp_path) == status
    run = find_run(card.fingerprint)
    assert run is not None
    assert run.info.status == status
    assert_each_once(card, 3)


def test_a_server_that_never_answers_holds_nobody_up(
    proxy: Proxy, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(tasks.tracking.feed, "FLUSH_SECONDS", 0.1)
    asked, free = threading.Event(), threading.Event()

    def never(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        asked.set()
        free.wait(60)
        return 500, b"{}"

    proxy.rule = never
    write(tmp_path, range(1, 4))
    with followed(card, tmp_path):
        assert asked.wait(60)
    assert not free.is_set(), "the body ended although no answer came"
    free.set()
    proxy.rule = plainly
    with exclusive(tmp_path / LOCK_FILE, "the feed", wait=True):
        Feed(card, tmp_path).push()
    assert_each_once(card, 3)
