"""A newcomer's way through both web pages, step by step in a browser: form, run, what MLflow shows of it, a review.

Every step fails where the page does not show what a person came for. `keep(page, name)` is called where a picture is
due. The pictures of the guides (docs/screenshots.py) and a test go this same way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from gptmodel.criteria import CRITERIA
from gptmodel.errors import GptflowError
from tasks.operations.processes import ask

Keep = Callable[[Page, str], None]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZE = {"width": 1400, "height": 900}
_FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_WAIT_MS = 60_000
# MLflow opens its assistant and its GenAI menu at the first visit; a person closes the one and leaves the other.
_MLFLOW_CHOICES = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Chromium without a window. GptflowError if it is not installed."""
    if CHROMIUM is None:
        raise GptflowError("Chromium is not installed; on Debian: apt-get install chromium")
    flags = _FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser) -> Page:
    page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
    page.set_default_timeout(_WAIT_MS)
    expect.set_options(timeout=_WAIT_MS)
    page.add_init_script(_MLFLOW_CHOICES)
    return page


def start_from_form(page: Page, api: str, preset: str, overrides: dict[str, Any], keep: Keep) -> str:
    """Fill in the form of the deployment `pipeline/quickstart`, submit it; the id of the flow run that came of it."""
    deployment = ask(f"{api}/deployments/name/pipeline/quickstart")
    if not deployment:
        raise GptflowError("the deployment pipeline/quickstart is not registered; `make up` does that")
    page.goto(f"{api.removesuffix('/api')}/deployments/deployment/{deployment['id']}/run")
    page.get_by_role("button", name="quickstart", exact=True).press("ArrowDown")
    page.locator(".p-select-option", has_text=preset).first.click()
    page.get_by_role("button", name="PipelineOverrides").click()
    changed = page.locator(".schema-form-property", has_text="Single settings to change").first
    changed.locator("button.p-button--ghost").first.click()
    page.get_by_text("Use JSON input").first.click()
    expect(changed).to_contain_text('"retrain": null')  # the form offers every part by its name
    changed.locator("textarea").fill(json.dumps(overrides, indent=2))
    keep(page, "prefect-form.png")
    for _ in range(3):  # Prefect answers 503 while its database is busy; a person presses again
        with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as made:
            page.get_by_role("button", name="Submit").click()
        if made.value.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
        page.wait_for_timeout(5000)
    if not made.value.ok:
        raise GptflowError(f"the form was refused: {made.value.text()}")
    return str(made.value.json()["id"])


def watch(page: Page, api: str, flow_run: str, keep: Keep, minutes: float = 20) -> None:
    """See the run begin, come back when it is over, see its parts. GptflowError if it is not Completed by then."""
    address = f"{api.removesuffix('/api')}/runs/flow-run/{flow_run}"
    page.goto(address)
    heading = page.locator(".page-heading-flow-run")
    expect(heading.get_by_text("Running", exact=True).or_(heading.get_by_text("Completed", exact=True))).to_be_visible()
    page.goto("about:blank")  # the page draws without end, and half a core is what the training would miss
    deadline, state = time.monotonic() + minutes * 60, {"type": "?"}
    while state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") and time.monotonic() < deadline:
        time.sleep(1)
        state = (ask(f"{api}/flow_runs/{flow_run}") or {}).get("state") or state
    if state["type"] != "COMPLETED":
        raise GptflowError(f"after {minutes:g} minutes at most, the run is {state.get('name')}: {state.get('message')}")
    with page.expect_response(lambda response: "graph-v2" in response.url):
        page.goto(address)
    expect(heading.get_by_text("Completed", exact=True)).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    expect(page.locator(".state-list-item").first).to_be_visible()
    keep(page, "prefect-run.png")
    page.get_by_text("Artifacts", exact=True).last.click()
    card = page.locator(".artifact-card").last
    expect(card).to_be_visible()
    card.scroll_into_view_if_needed()
    keep(page, "prefect-artifacts.png")


def training_of(mlflow: str) -> tuple[str, str]:
    """Experiment and id of the finished training run that began last. GptflowError if there is none."""
    found = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 1000}) or {}
    wanted = {
        "experiment_ids": [experiment["experiment_id"] for experiment in found.get("experiments", [])],
        "filter": "metrics.`validation/loss` > 0 AND attributes.status = 'FINISHED'",
        "order_by": ["attributes.start_time DESC"],
        "max_results": 1,
    }
    runs = (ask(f"{mlflow}/api/2.0/mlflow/runs/search", wanted) or {}).get("runs")
    if not runs:
        raise GptflowError("no finished training run in MLflow; run one: prefect deployment run 'pipeline/quickstart'")
    return runs[0]["info"]["experiment_id"], runs[0]["info"]["run_id"]


def look_at_training(page: Page, mlflow: str, name: str, sample: str, keep: Keep) -> None:
    """The MLflow run of the newest training: figures, datasets, model, curves, and `sample` in the samples."""
    experiment, run_id = training_of(mlflow)
    run = f"{mlflow}/#/experiments/{experiment}/runs/{run_id}"
    page.goto(run)
    for said in ("validation/loss", "train tokens (", "Registered models"):
        expect(page.get_by_text(said).first).to_be_attached()
    expect(page.locator(f"a[href*='#/models/{name}/']").first).to_be_visible()
    keep(page, "mlflow-run.png")
    page.goto(f"{run}/model-metrics")
    charts = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(charts.first).to_be_visible()
    # Groups stand in alphabetical order, and the evaluation's bars first; a person searches, and so do we.
    page.get_by_placeholder("Search metric charts").fill("^(train|validation)/(loss|perplexity)$")
    for metric in ("train/loss", "validation/loss"):
        line = charts.filter(has_text=f"({metric})").locator(".js-line").first
        expect(line).to_have_attribute("d", re.compile("M.*L"))  # a line, and not a dot
    keep(page, "mlflow-metrics.png")
    page.goto(f"{run}/artifacts")
    page.get_by_text("samples", exact=True).first.click()
    page.get_by_text("training.json", exact=True).first.click()
    expect(page.get_by_text(sample).first).to_be_visible()
    keep(page, "mlflow-artifacts.png")
    page.goto(f"{mlflow}/#/models/{name}")
    expect(page.get_by_role("link", name="Version 1", exact=True)).to_be_visible()
    keep(page, "mlflow-model.png")


def review(page: Page, address: str, keep: Keep) -> None:
    """The queue of a rater: its first text and the four questions."""
    page.goto(address)
    page.get_by_text("Start review").first.click()
    for criterion in CRITERIA:
        expect(page.get_by_role("combobox", name=criterion.title)).to_be_visible()
    keep(page, "mlflow-review.png")
