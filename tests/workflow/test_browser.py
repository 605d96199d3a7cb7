"""A newcomer's way through both web pages in a real browser, with servers and worker as `make up` starts them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.walk import CHROMIUM, look_at_training, new_page, opened_browser, review, start_from_form, watch
from gptmodel.errors import GptflowError
from tasks.operations.processes import ask
from tests.project import REPOSITORY, Project, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium"),
]
CHANGED = {"name": "mine", "train": {"max_steps": 12, "eval_every": 4}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with opened(tmp_path_factory.mktemp("project"), (REPOSITORY / "prefect.yaml").read_text(), {}) as found:
        yield found


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with opened_browser() as browser:
        yield new_page(browser)


def test_the_form_refuses_a_setting_that_there_is_not(project: Project, page: Any) -> None:
    with pytest.raises(GptflowError, match=r"'overrides\.train'.*'max_stepps' was unexpected"):
        start_from_form(page, project.api, "smoke", {"train": {"max_stepps": 12}}, lambda page, name: None)


def test_a_run_from_the_form_is_found_in_mlflow_and_before_the_raters(
    project: Project, page: Any, tmp_path: Path
) -> None:
    seen: list[str] = []

    def keep(page: Any, name: str) -> None:
        seen.append(name)
        page.screenshot(path=tmp_path / name)  # of the page at which it stopped, where it fails

    mlflow = f"http://127.0.0.1:{project.ports['MLFLOW_PORT']}"
    run = start_from_form(page, project.api, "smoke", CHANGED, keep)
    watch(page, project.api, run, keep)
    parameters = (ask(f"{project.api}/flow_runs/{run}") or {})["parameters"]
    assert parameters["preset"] == "smoke"
    assert parameters["overrides"]["train"] == CHANGED["train"]

    (samples,) = (project.folder / "store" / "checkpoint").glob("*/samples.jsonl")
    written = json.loads(samples.read_text().splitlines()[-1])["text"]
    look_at_training(page, mlflow, "mine", max(re.findall(r"[A-Za-z]+", written), key=len), keep)

    words = ("-m", "flows", "rate", "start", "--rater", "anna", "--from-validation", "1", "--json")
    told = json.loads(project.run(*words))
    review(page, told["raters"]["anna"]["page"], keep)
    assert seen[-1] == "mlflow-review.png"
