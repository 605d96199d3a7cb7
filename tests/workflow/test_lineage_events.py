"""OpenLineage events of a real flow run: who its parent is, and one run for each attempt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptmodel.errors import LockHeldError
from gptmodel.overrides import PipelineOverrides
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Artifact


def test_each_attempt_is_a_run_of_its_own_under_the_flow_run(
    workplace: Path, tiny_sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptmodel.text.corpus
    import tasks.preparing
    from flows.prepare_data import prepare_data

    real, tries = gptmodel.text.corpus.build_corpus, 0

    def held_once(*args: Any, **kwargs: Any) -> tuple[Artifact, bool]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LockHeldError("another run makes it")
        return real(*args, **kwargs)

    monkeypatch.setattr(gptmodel.text.corpus, "build_corpus", held_once)
    monkeypatch.setattr(tasks.preparing.fetch_corpus, "retry_delay_seconds", 0)
    _, merged = merge_layers("smoke", None, [*tiny_sets, "corpus.split_key=events"])
    state = prepare_data(preset="smoke", overrides=PipelineOverrides.model_validate(merged), return_state=True)
    made = state.result()
    flow_run = str(state.state_details.flow_run_id)
    (file,) = (workplace / "store" / ".lineage").glob(f"*-{flow_run}.jsonl")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(e["job"]["name"], e["eventType"]) for e in events] == [
        *(("fetch-corpus", "START"), ("fetch-corpus", "FAIL")),
        *(("fetch-corpus", "START"), ("fetch-corpus", "COMPLETE")),
        *(("check-data", "START"), ("check-data", "COMPLETE")),
        *(("tokenize", "START"), ("tokenize", "COMPLETE")),
    ]
    runs = [event["run"] for event in events]
    assert len({run["runId"] for run in runs}) == 4
    assert [run["facets"]["gptflow_step"]["attempt"] for run in runs] == [1, 1, 2, 2, 1, 1, 1, 1]
    assert runs[0]["facets"]["gptflow_step"]["prefectTaskRun"] == runs[2]["facets"]["gptflow_step"]["prefectTaskRun"]
    assert runs[1]["facets"]["errorMessage"]["message"] == "another run makes it"
    for run in runs:
        assert run["facets"]["parent"]["run"]["runId"] == flow_run
        assert run["facets"]["parent"]["job"]["name"] == "prepare-data"
        assert "nominalTime" not in run["facets"]
    assert events[7]["outputs"][0]["name"] == made["shards"].label
    assert events[7]["run"]["facets"]["gptflow_step"]["reused"] is False
