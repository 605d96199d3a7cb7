"""prefect.yaml: every entry loads for real and its parameters are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint

PROJECT = Path(__file__).parents[2]
ENTRIES: list[dict[str, Any]] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]


def flow_of(entry: dict[str, Any]) -> Flow[Any, Any]:
    return load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['entrypoint'].rsplit('.', 1)[-1]}-{e['name']}")
def test_entry_loads_strictly_and_its_parameters_are_valid(entry: dict[str, Any]) -> None:
    flow = flow_of(entry)
    flow.validate_parameters(entry["parameters"])
    with pytest.raises(Exception, match="no_such_parameter"):
        flow.validate_parameters({**entry["parameters"], "no_such_parameter": 1})


def test_the_promised_deployments_are_there() -> None:
    found = {f"{flow_of(entry).name}/{entry['name']}" for entry in ENTRIES}
    promised = {
        "pipeline/quickstart",
        "pipeline/nightly-retrain",
        "prepare-data/quickstart",
        "pretrain/gpt2-124m",
        "evaluate/newest",
        "benchmark/newest",
        "human-eval/newest",
        "import-weights/gpt2",
        "reproduce/newest",
        "scaling-sweep/small",
    }
    assert promised <= found


def test_the_schedule_is_shipped_inactive() -> None:
    (entry,) = [entry for entry in ENTRIES if "schedules" in entry]
    assert [(s["cron"], s["active"]) for s in entry["schedules"]] == [("0 2 * * *", False)]


def test_flows_describe_every_parameter_in_their_form() -> None:
    from prefect.utilities.callables import parameter_schema

    for entry in ENTRIES:
        for name, described in parameter_schema(flow_of(entry).fn).properties.items():
            assert described.get("description"), f"{entry['entrypoint']}: {name} has no description"


def test_a_partial_override_leaves_the_preset_alone() -> None:
    from gptmodel.overrides import given
    from gptmodel.presets import quickstart
    from gptmodel.settings import load_config

    entry = next(e for e in ENTRIES if e["entrypoint"] == "flows.pipeline.pipeline")
    parameters = flow_of(entry).validate_parameters({"preset": "quickstart", "overrides": {"train": {"max_steps": 5}}})
    config = load_config(parameters["preset"], overrides=given(parameters["overrides"]))
    assert config.model == quickstart().model
    assert config.train.max_steps == 5


def test_no_deployment_is_named_in_the_readme_that_is_not_there() -> None:
    named = set(re.findall(r"deployment run '([a-z-]+/[a-z0-9-]+)'", (PROJECT / "README.md").read_text()))
    found = {f"{flow_of(entry).name}/{entry['name']}" for entry in ENTRIES}
    assert named <= found
