"""The OpenLineage events of steps: what they say, how they end, and that they never harm the step."""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import openlineage.client.generated as generated
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openlineage.client import event_v2
from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from gptmodel.config import PipelineConfig
from gptmodel.errors import DataError, Interrupted
from gptmodel.store.artifacts import Artifact, Ref, Request, Store, open_store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards
from tasks.lineage import events as lineage_events
from tasks.lineage.events import append, note_reused, with_events
from tasks.lineage.facets import Attempt, event

Tiny = Callable[..., PipelineConfig]
ROOT = Path(__file__).resolve().parents[2]


def events_of(root: Path) -> list[dict[str, Any]]:
    """All that a store holds, each checked, in the order of time."""
    lines = [line for file in (root / ".lineage").glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted((checked(json.loads(line)) for line in lines), key=lambda event: str(event["eventTime"]))


def checked(event: dict[str, Any]) -> dict[str, Any]:
    """The event, which the library's own classes take, with each facet as the class that its schema names."""
    assert set(event) <= {"eventTime", "eventType", "inputs", "job", "outputs", "producer", "run", "schemaURL"}
    UUID(event["run"]["runId"])
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    rebuilt = event_v2.RunEvent(
        eventTime=event["eventTime"],
        producer=event["producer"],
        eventType=event_v2.RunState(event["eventType"]),
        run=event_v2.Run(event["run"]["runId"]),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"]),
        inputs=[event_v2.InputDataset(**{**d, "facets": {}}) for d in event["inputs"]],
        outputs=[event_v2.OutputDataset(**{**d, "facets": {}}) for d in event["outputs"]],
    )
    assert rebuilt.schemaURL == event["schemaURL"]
    datasets = [*event["inputs"], *event["outputs"]]
    for holder in (event["run"], event["job"], *datasets):
        for name, facet in holder["facets"].items():
            check_facet(name, facet)
    for dataset in event["outputs"]:
        for name, facet in dataset["outputFacets"].items():
            check_facet(name, facet)
    return event


def facet_classes() -> dict[str, type]:
    modules = [
        importlib.import_module(f"{generated.__name__}.{m.name}") for m in pkgutil.iter_modules(generated.__path__)
    ]
    found = [c for m in modules for c in vars(m).values() if hasattr(c, "_get_schema")]
    return {c._get_schema(): c for c in found}


def check_facet(name: str, facet: dict[str, Any]) -> None:
    of = facet_classes()[facet["_schemaURL"]]
    assert facet["_producer"].startswith("urn:gptflow:")
    values = {k: v for k, v in facet.items() if not k.startswith("_")}
    if name.startswith("gptflow_"):
        assert of.__name__ in ("RunFacet", "DatasetFacet")
    else:
        of(**values)


@pytest.fixture(scope="module")
def told(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], dict[str, Artifact], Path]:
    """A corpus, its shards, and the shards again."""
    root = tmp_path_factory.mktemp("told") / "store"
    config = tiny()

    @with_events
    def fetch_corpus() -> Artifact:
        artifact, reused = build_corpus(open_store(), config.corpus)
        note_reused(reused)
        return artifact

    @with_events
    def tokenize(corpus: Artifact, *, bound: int) -> Artifact:
        """Turn documents into tokens."""
        artifact, reused = build_shards(open_store(), corpus, config.shards)
        note_reused(reused)
        return artifact

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTFLOW_STORE", str(root))
        corpus = fetch_corpus()
        shards = tokenize(corpus, bound=1)
        tokenize(corpus=corpus, bound=1)
    return events_of(root), {"corpus": corpus, "shards": shards}, root


def test_each_step_tells_its_start_and_its_end(told: tuple[Any, ...]) -> None:
    events, _, root = told
    assert [(e["job"]["name"], e["eventType"]) for e in events] == [
        *(("fetch_corpus", "START"), ("fetch_corpus", "COMPLETE")),
        *(("tokenize", "START"), ("tokenize", "COMPLETE")) * 2,
    ]
    runs = [e["run"]["runId"] for e in events]
    assert runs[::2] == runs[1::2]
    assert len(set(runs)) == 3
    assert {e["job"]["namespace"] for e in events} == {"gptflow"}
    assert events[2]["job"]["facets"]["documentation"]["description"] == "Turn documents into tokens."
    assert not list((root / ".lineage").glob(".*open*"))


def test_datasets_are_bound_by_name_and_digest(told: tuple[Any, ...]) -> None:
    events, made, _ = told
    (source,) = events[1]["inputs"]
    (corpus,) = events[1]["outputs"]
    assert source["facets"]["version"]["datasetVersion"] == made["corpus"].request.inputs[0].digest
    assert source["name"] == f"source/{made['corpus'].request.inputs[0].fingerprint[:16]}"
    assert source["facets"]["dataSource"]["name"] == "files"
    for known in events[2:4]:  # from the start
        (given,) = known["inputs"]
        assert (given["namespace"], given["name"]) == (corpus["namespace"], corpus["name"])
        assert given["name"] == made["corpus"].label
        assert given["facets"]["version"]["datasetVersion"] == made["corpus"].digest
    (shards,) = events[3]["outputs"]
    assert shards["facets"]["version"]["datasetVersion"] == made["shards"].digest


def test_tables_have_their_columns_and_sizes(told: tuple[Any, ...]) -> None:
    events, made, _ = told
    corpus, shards = events[1]["outputs"][0], events[3]["outputs"][0]
    table = pq.read_table(next(made["corpus"].path.glob("*.parquet")))
    stated = [(f["name"], f["type"]) for f in corpus["facets"]["schema"]["fields"]]
    assert stated == [(c.name, str(c.type)) for c in table.schema]
    with pa.memory_map(str(next(made["shards"].path.glob("*.arrow")))) as file:
        columns = [(c.name, str(c.type)) for c in pa.ipc.open_file(file).schema]
    assert [(f["name"], f["type"]) for f in shards["facets"]["schema"]["fields"]] == columns
    written = corpus["outputFacets"]["outputStatistics"]
    files = [f for f in made["corpus"].path.iterdir() if f.name != "manifest.json"]
    assert written["rowCount"] == table.num_rows
    assert (written["fileCount"], written["size"]) == (len(files), sum(f.stat().st_size for f in files))
    assert shards["facets"]["gptflow_figures"]["train_tokens"] == made["shards"].summary["train_tokens"]


def test_what_was_there_already_is_said_to_be_reused(told: tuple[Any, ...]) -> None:
    events, made, _ = told
    first, again = events[3], events[5]
    assert first["run"]["facets"]["gptflow_step"]["reused"] is False
    assert again["run"]["facets"]["gptflow_step"]["reused"] is True
    assert again["outputs"][0]["name"] == first["outputs"][0]["name"] == made["shards"].label
    assert "lifecycleStateChange" in first["outputs"][0]["facets"]
    assert "lifecycleStateChange" not in again["outputs"][0]["facets"]
    assert not again["outputs"][0]["outputFacets"]


def test_events_name_the_code_and_no_folder(told: tuple[Any, ...], text_dir: Path) -> None:
    events, made, root = told
    code = events[0]["run"]["facets"]["gptflow_code"]
    assert code["digest"] == made["corpus"].provenance["code_digest"]
    assert code.get("commit", "") == made["corpus"].provenance["git_commit"]
    text = json.dumps(events)
    assert str(root.parent) not in text
    assert str(text_dir) not in text


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("GPTFLOW_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def make(name: str = "a") -> Artifact:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "file").write_text(name)
        return {"tokens": 3}

    artifact, reused = open_store().produce(Request("weights", 1, {"name": name}), build)
    note_reused(reused)
    return artifact


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("no file matches"), "FAIL"),
        (DataError("cannot read caf\udce9.txt"), "FAIL"),  # a file name that is no UTF-8
        (ZeroDivisionError("division by zero"), "FAIL"),
        (Interrupted("stopped", 15), "ABORT"),
        (KeyboardInterrupt(), "ABORT"),
    ],
)
def test_a_step_that_fails_or_is_stopped_says_so(store: Store, error: BaseException, kind: str) -> None:
    @with_events
    def step() -> Artifact:
        raise error

    with pytest.raises(type(error)):
        step()
    start, end = events_of(store.root)
    assert (start["eventType"], end["eventType"]) == ("START", kind)
    assert start["run"]["runId"] == end["run"]["runId"]
    told = end["run"]["facets"]["errorMessage"]
    assert told["message"] == (str(error).replace("\udce9", "?") or "KeyboardInterrupt")
    assert ("stackTrace" in told) == (not isinstance(error, DataError | Interrupted))
    assert not list((store.root / ".lineage").glob(".*open*"))


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_run_of_a_flow_names_its_parent_and_when_it_was_due(scheduled: bool) -> None:
    due = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
    run = FlowRun(flow_id=uuid4(), auto_scheduled=scheduled, expected_start_time=due)
    with FlowRunContext.model_construct(flow=Flow(lambda: None, name="nightly"), flow_run=run):
        attempt = lineage_events._attempt_at(make, [])
    facets = checked(json.loads(event(attempt, "START")))["run"]["facets"]
    assert facets["parent"]["run"]["runId"] == str(run.id)
    assert facets["parent"]["job"]["name"] == "nightly"
    assert facets.get("nominalTime", {}).get("nominalStartTime") == (due.isoformat() if scheduled else None)


@pytest.mark.parametrize(
    ("source", "revision", "name", "address"),
    [
        ("local", "", "local", None),
        ("openai-community/gpt2", "607a30d7", "huggingface", "hf://openai-community/gpt2@607a30d7"),
        ("https://weights.example/gpt2", "aa11", "http", "https://weights.example/gpt2"),
    ],
)
def test_weights_say_where_they_are_from(
    source: str, revision: str, name: str, address: str | None, store: Store
) -> None:
    config = {"source": source, "revision": revision, "format": "hf"}
    request = Request("weights", 1, config, (Ref("source", "d" * 64, "d" * 64),))
    made, _ = store.produce(request, lambda folder: {"n": (folder / "a").write_text("a")})
    told = checked(json.loads(event(Attempt("0193d0c0-7b5c-7000-8000-000000000000", "step"), "COMPLETE", made)))
    found = told["inputs"][0]["facets"]["dataSource"]
    assert (found["name"], found.get("uri")) == (name, address)


def test_a_figure_that_json_does_not_know_is_left_out(store: Store) -> None:
    old = replace(with_events(make)(), summary={"loss": float("nan"), "best": math.inf, "tokens": 3, "a b": 1})
    told = checked(json.loads(event(Attempt("0193d0c0-7b5c-7000-8000-000000000000", "step"), "COMPLETE", old)))
    figures = told["outputs"][0]["facets"]["gptflow_figures"]
    assert {k: v for k, v in figures.items() if not k.startswith("_")} == {"tokens": 3}


_KILLED = """
import sys, time
from gptmodel.store.artifacts import Artifact
from tasks.lineage.events import with_events

@with_events
def killed() -> Artifact:
    print("going", flush=True)
    time.sleep(120)

killed()
"""


def test_the_next_step_ends_what_a_killed_process_left_open(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    with_events(make)()
    assert [e["eventType"] for e in events_of(store.root) if e["job"]["name"] == "killed"] == ["START"]  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(2):
        with_events(make)()
    start, end = (e for e in events_of(store.root) if e["job"]["name"] == "killed")
    assert (start["eventType"], end["eventType"]) == ("START", "ABORT")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert "killed" in end["run"]["facets"]["errorMessage"]["message"]
    assert not list((store.root / ".lineage").glob(".*open*"))


def test_a_run_that_was_killed_after_its_end_has_one_end(store: Store) -> None:
    with_events(make)()
    folder = store.root / ".lineage"
    (file,) = folder.glob("*.jsonl")
    start = file.read_text().splitlines(keepends=True)[0]
    (folder / ".open-x").write_text(json.dumps({"file": file.name, "start": start}))
    with_events(make)()
    run = json.loads(start)["run"]["runId"]
    assert [e["eventType"] for e in events_of(store.root) if e["run"]["runId"] == run] == ["START", "COMPLETE"]


def test_no_fault_of_the_events_is_one_of_the_step(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lineage_events, "_told", set())
    store.root.mkdir()
    (store.root / ".lineage").write_text("in the way")
    assert with_events(make)().label == with_events(make)().label
    assert len([r for r in caplog.records if "OpenLineage" in r.getMessage()]) == 1


def test_a_mark_that_cannot_be_read_stops_no_other_event(store: Store) -> None:
    folder = store.root / ".lineage"
    folder.mkdir(parents=True)
    (folder / ".open-x").write_text("half a ma")
    with_events(make)()
    assert [e["eventType"] for e in events_of(store.root)] == ["START", "COMPLETE"]


def test_disabled_means_no_event_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "True")
    with_events(make)()
    assert not (store.root / ".lineage").exists()


def test_a_line_that_does_not_fit_on_the_disk_leaves_none_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append(file, "x" * 100_000 + "\n")
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            append(file, "y" * 100 + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    append(file, "z\n")
    assert file.read_bytes() == before + b"z\n"


def test_events_cost_a_step_little(store: Store) -> None:
    """And the step needs no network: nothing is configured."""
    with_events(make)()
    before = time.monotonic()
    for _ in range(20):
        with_events(make)()
    assert (time.monotonic() - before) / 20 < 0.5  # 0.01 s when nothing else runs
    assert not list((store.root / ".lineage").glob("*.sen*"))
    assert "OPENLINEAGE__TRANSPORT__TRANSPORTS__DEFAULT_HTTP__URL" not in os.environ
