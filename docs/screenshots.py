"""Pictures of the web pages for README and guides, into docs/images/: `make screenshots`.

Needs the servers (`make up`) and Chromium (Debian: `apt-get install chromium`). It goes a newcomer's way, docs/walk.py:
starts the quickstart from Prefect's form with some settings changed, waits for it, looks at all of it in MLflow, and
asks two raters. `make screenshots PRESET=smoke STEPS=150` is for a busy machine. With the path of
a page that `gptflow report` wrote, only the pictures of that one are taken, and no server is needed:

    .venv/bin/gptflow report quickstart/3 && .venv/bin/python docs/screenshots.py report.html
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError

from docs.walk import look_at_training, new_page, opened_browser, review, start_from_form, watch
from gptmodel.errors import GptflowError
from tasks.operations.servers import environment

IMAGES = Path(__file__).resolve().parent / "images"
MOST_BYTES = 300_000
NAME, PROMPT = "speeches", "The state of the"


def keep(page: Page, name: str) -> None:
    """Take the picture once it stands still: two in a row are the same."""
    before, picture = b"", page.screenshot(animations="disabled")  # such as a blinking cursor
    for _ in range(40):
        if picture == before:
            break
        page.wait_for_timeout(500)
        before, picture = picture, page.screenshot(animations="disabled")
    else:
        raise GptflowError(f"the page of {name} never stands still; is a run going on?")
    if len(picture) > MOST_BYTES:
        raise GptflowError(f"{name} has {len(picture):,} bytes, and at most {MOST_BYTES:,} are wanted")
    (IMAGES / name).write_bytes(picture)
    print(f"docs/images/{name}  {len(picture):,} bytes")


def told_by(*words: str) -> str:
    """What `gptflow WORDS` prints, here; GptflowError with its last line if it fails."""
    done = subprocess.run([sys.executable, "-m", "flows", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GptflowError(f"gptflow {' '.join(words)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


def shoot_report(browser: Browser, report: Path) -> None:
    """Its beginning, and where its surprisal map begins."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(report.resolve().as_uri())
    keep(page, "report.png")
    if page.locator("#surprisal").count():
        page.set_viewport_size({"width": 1100, "height": 800})
        page.evaluate("document.getElementById('surprisal').scrollIntoView()")
        keep(page, "surprisal.png")


def shoot(browser: Browser, api: str, mlflow: str, preset: str, steps: int) -> None:
    changed = {"name": NAME, "train": {"max_steps": steps, "optimizer": {"learning_rate": 0.002}}}
    page = new_page(browser)
    watch(page, api, start_from_form(page, api, preset, changed, keep), keep)
    look_at_training(page, mlflow, NAME, PROMPT, keep)
    asked = told_by("rate", "start", "--rater", "anna", "--rater", "ben", "--from-validation", "3", "--json")
    review(page, json.loads(asked)["raters"]["anna"]["page"], keep)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        told_by("report", "--out", str(report))
        shoot_report(browser, report)


def main() -> int:
    parser = argparse.ArgumentParser(prog="docs/screenshots.py")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT")
    said = parser.parse_args()
    settings, reports = environment(), said.reports
    api, mlflow = settings.get("PREFECT_API_URL"), settings["MLFLOW_TRACKING_URI"]
    try:
        if lost := [path for path in reports if not path.is_file()]:
            raise GptflowError(f"there is no page {lost[0]}; write it: .venv/bin/gptflow report")
        if not reports and (api is None or not mlflow.startswith("http")):
            raise GptflowError("the servers are not up; start them: make up")
        IMAGES.mkdir(exist_ok=True)
        with opened_browser() as browser:
            if reports:
                shoot_report(browser, reports[0])
            else:
                shoot(browser, str(api), mlflow, said.preset, said.steps)
    except GptflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (AssertionError, PlaywrightError) as error:  # the page does not show what it should, or not in time
        print(f"{' '.join(str(error).split())[:300]}; is the machine busy, or has the page changed?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
