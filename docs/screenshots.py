"""Pictures of the web pages for README and guides, into docs/images/: `make screenshots`.

Needs the servers (`make up`), a finished run of the pipeline, and Chromium (Debian: `apt-get install chromium`). With
the path of a page that `gptflow report` wrote, only the pictures of that one are taken, and no server is needed:

    .venv/bin/gptflow report quickstart/3 && .venv/bin/python docs/screenshots.py report.html
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from gptmodel.errors import GptflowError
from tasks.operations.processes import ask
from tasks.operations.servers import environment

IMAGES = Path(__file__).resolve().parent / "images"
SIZE = {"width": 1400, "height": 900}
MOST_BYTES = 300_000
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
# MLflow opens its assistant and its GenAI menu at the first visit; a person closes the one and leaves the other.
MLFLOW_CHOICES = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


def fullest_flow_run(api: str) -> str:
    """Id of the `pipeline` flow run that took longest of the last completed ones: it did the work, and reused least."""
    wanted = {"flows": {"name": {"any_": ["pipeline"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    found = ask(f"{api}/flow_runs/filter", {**wanted, "sort": "END_TIME_DESC", "limit": 20})
    if not found:
        raise GptflowError("no completed flow run of `pipeline`; run one: prefect deployment run 'pipeline/quickstart'")
    return str(max(found, key=lambda run: run["total_run_time"])["id"])


def newest_training(mlflow: str) -> str:
    """`EXPERIMENT/runs/RUN` of the finished training run that began last."""
    experiments = (ask(f"{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 1000}) or {}).get(
        "experiments", []
    )
    wanted = {
        "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
        "filter": "metrics.`validation/loss` > 0 AND attributes.status = 'FINISHED'",
        "order_by": ["attributes.start_time DESC"],
        "max_results": 1,
    }
    found = (ask(f"{mlflow}/api/2.0/mlflow/runs/search", wanted) or {}).get("runs")
    if not found:
        raise GptflowError("no finished training run in MLflow; run one: prefect deployment run 'pipeline/quickstart'")
    info = found[0]["info"]
    return f"{info['experiment_id']}/runs/{info['run_id']}"


def keep(page: Page, name: str) -> None:
    """Take the picture once it stands still: two in a row are the same."""
    before, picture = b"", page.screenshot()
    for _ in range(40):
        if picture == before:
            break
        page.wait_for_timeout(500)
        before, picture = picture, page.screenshot()
    else:
        raise GptflowError(f"the page of {name} never stands still; is a run going on?")
    if len(picture) > MOST_BYTES:
        raise GptflowError(f"{name} has {len(picture):,} bytes, and at most {MOST_BYTES:,} are wanted")
    (IMAGES / name).write_bytes(picture)
    print(f"docs/images/{name}  {len(picture):,} bytes")


def shoot_prefect(context: BrowserContext, api: str) -> None:
    page = context.new_page()
    with page.expect_response(lambda response: "graph-v2" in response.url):
        page.goto(f"{api.removesuffix('/api')}/runs/flow-run/{fullest_flow_run(api)}")
    page.get_by_text("Task Runs", exact=True).click()
    expect(page.locator(".state-list-item").first).to_be_visible()
    keep(page, "prefect-run.png")
    page.get_by_text("Artifacts", exact=True).last.click()
    card = page.locator(".artifact-card").last
    expect(card).to_be_visible()
    card.scroll_into_view_if_needed()
    keep(page, "prefect-artifacts.png")


def shoot_mlflow(context: BrowserContext, mlflow: str) -> None:
    page = context.new_page()
    page.add_init_script(MLFLOW_CHOICES)
    run = f"{mlflow}/#/experiments/{newest_training(mlflow)}"
    page.goto(run)
    expect(page.get_by_text("validation/loss", exact=True).first).to_be_attached()
    keep(page, "mlflow-run.png")
    page.goto(f"{run}/model-metrics")
    expect(page.locator(".js-plotly-plot .scatterlayer .trace").first).to_be_visible()
    keep(page, "mlflow-metrics.png")


def shoot_report(browser: Browser, report: Path) -> None:
    """Its beginning, and where its surprisal map begins."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(report.resolve().as_uri())
    keep(page, "report.png")
    if page.locator("#surprisal").count():
        page.set_viewport_size({"width": 1100, "height": 800})
        page.evaluate("document.getElementById('surprisal').scrollIntoView()")
        keep(page, "surprisal.png")


def written_report(folder: Path) -> Path:
    """The page on the newest checkpoint of the store that is worked with here."""
    command = [sys.executable, "-m", "flows", "report", "--out", str(folder / "report.html")]
    if subprocess.run(command, check=False).returncode:
        raise GptflowError("there is no report to take a picture of; run the pipeline first")
    return folder / "report.html"


def shoot(browser: Browser, api: str, mlflow: str) -> None:
    context = browser.new_context(viewport=SIZE)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    shoot_prefect(context, api)
    shoot_mlflow(context, mlflow)


def main() -> int:
    settings, reports = environment(), [Path(word) for word in sys.argv[1:]]
    api, mlflow = settings.get("PREFECT_API_URL"), settings["MLFLOW_TRACKING_URI"]
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        if lost := [path for path in reports if not path.is_file()]:
            raise GptflowError(f"there is no page {lost[0]}; write it: .venv/bin/gptflow report")
        if not reports and (api is None or not mlflow.startswith("http")):
            raise GptflowError("the servers are not up; start them: make up")
        if chromium is None:
            raise GptflowError("Chromium is not installed; on Debian: apt-get install chromium")
        IMAGES.mkdir(exist_ok=True)
        flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])  # Chromium's sandbox refuses root
        with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            try:
                if not reports:
                    shoot(browser, str(api), mlflow)
                shoot_report(browser, reports[0] if reports else written_report(Path(folder)))
            finally:
                browser.close()
    except GptflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
