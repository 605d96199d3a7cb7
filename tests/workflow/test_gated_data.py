"""Text that does not pass a data gate stops a run before anything is made of it, with the report in store and pages."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.commands.check_data import check_data
from gptmodel.datagates import report_of
from gptmodel.errors import DataError
from gptmodel.overrides import PipelineOverrides
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Store

FRENCH = ["corpus.split_key=gated", "data_gates.language=fail", "data_gates.languages=['fr']"]


def test_a_gate_that_fails_ends_the_run_with_its_documents(workplace: Path, tiny_sets: list[str]) -> None:
    from flows.prepare_data import prepare_data

    store = Store(workplace / "store")
    before = {kind: set(store.directories(kind)) for kind in ("shards", "data-check")}
    _, merged = merge_layers("smoke", None, [*tiny_sets, *FRENCH])
    state: Any = prepare_data(preset="smoke", overrides=PipelineOverrides.model_validate(merged), return_state=True)
    with pytest.raises(DataError, match=r"does not pass 1 data gate: language: .* in other languages than fr"):
        state.result()
    assert set(store.directories("shards")) == before["shards"]
    (made,) = set(store.directories("data-check")) - before["data-check"]
    report = report_of(store.at("data-check", made.name))
    assert [finding.gate for finding in report.failed] == ["language"]
    assert report.failed[0].offenders[0].source.endswith(".txt")

    async def pages() -> list[Any]:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        async with get_client() as client:
            return await client.read_artifacts(artifact_filter=wanted)

    page = next(each for each in asyncio.run(pages()) if each.key == "data-gates")
    assert report.failed[0].offenders[0].id in page.data


def test_the_command_says_it_too(tmp_path: Path, tiny_sets: list[str]) -> None:
    words = [word for text in [*tiny_sets, *FRENCH] for word in ("--set", text)]
    runner = CliRunner(env={"GPTFLOW_STORE": str(tmp_path / "store")})
    done = runner.invoke(check_data, ["--preset", "smoke", "--json", *words])
    assert isinstance(done.exception, DataError)
    assert done.exception.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False
    fine = runner.invoke(check_data, ["--preset", "smoke", *words[: 2 * len(tiny_sets)]], catch_exceptions=False)
    assert fine.exit_code == 0
    assert "passed  garbage" in fine.stdout
