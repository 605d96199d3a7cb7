"""MLflow's Review page in a real browser: a rater answers, and all of it is read back."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.mlflow_server import Server
from gptmodel.criteria import CRITERIA, NAMES
from gptmodel.rating.journal import Journal, Opening
from gptmodel.rating.pairs import pairs_in_order, pairs_of, sides
from gptmodel.rating.results import comments_of, publish
from gptmodel.rating.rounds import Item, in_order, read_items
from gptmodel.store.artifacts import Artifact, Request, Store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred"),
]
COMMENT = 'It *goes* round, "so" to say;\nand <twice>.'
# MLflow opens its assistant, which has a field for text too, at the first visit.
SETTLED = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu"] + (["--no-sandbox"] if os.geteuid() == 0 else [])  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(60_000)
            page.add_init_script(SETTLED)
            yield page
        finally:
            browser.close()


@pytest.fixture
def found(tmp_path: Path) -> Artifact:
    """A round of two models, with marks that mean something to Markdown and HTML."""
    store = Store(tmp_path / "store")

    def weights(number: int) -> Artifact:
        def build(folder: Path) -> dict[str, Any]:
            (folder / "model.txt").write_text(f"model {number}")
            return {}

        return store.produce(Request("weights", 1, {"seed": number}), build)[0]

    items = [Item(f"t-{n}", "The *harbour*", f" went <b>on</b> {n}. and", "model", n, 0, "") for n in (0, 1)]

    def build(folder: Path) -> dict[str, Any]:
        (folder / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
        return {"texts": 2}

    inputs = tuple(weights(number).ref for number in (0, 1))
    return store.produce(Request("rating-round", 1, {"seed": 0}, inputs), build)[0]


def choose(page: Any, question: str, answer: str) -> None:
    page.get_by_role("combobox", name=question).click()
    page.get_by_role("option", name=answer, exact=True).click()


def submit(page: Any) -> None:
    with page.expect_response(lambda answer: "review-queue" in answer.url and answer.request.method != "GET") as done:
        page.get_by_role("button", name="Submit").click()
    assert done.value.ok


def test_points_comment_and_preference_are_read_back_from_the_page(
    found: Artifact, page: Any, mlflow_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    from flows.commands.rate import rate
    from tasks.rating import collect
    from tasks.tracking.review_queue import put_before

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    store = Store(found.path.parent.parent)
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    items = read_items(found)
    pairs, journal = pairs_of(found, items), Journal(store, found.path.name)
    assert journal.number_of("anna") == 1
    journal.open(Opening("2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", 9, (), True))
    texts_page, pairs_page = put_before(found, items, [1], pairs)[1]

    page.goto(texts_page)
    page.get_by_text("Start review").first.click()
    first, _ = in_order(found, 1, items)
    expect(page.get_by_text(first.text.strip(), exact=True)).to_be_visible()
    given = dict(zip(NAMES, (5, 4, 3, 2), strict=True))
    for criterion in CRITERIA:
        choose(page, criterion.title, str(given[criterion.name]))
    page.locator("textarea").first.fill(COMMENT)
    submit(page)

    page.goto(pairs_page)
    page.reload()
    page.get_by_text("Start review").first.click()
    (pair,) = pairs_in_order(found, 1, pairs)
    expect(page.get_by_text(sides(found, 1, pair)[1].text.strip(), exact=True)).to_be_visible()
    choose(page, "preference", "B")
    page.locator("textarea").first.fill("B is dry")
    submit(page)

    assert collect(store, found) == 2
    (rating,) = journal.ratings().values()
    assert (rating.rater, rating.item, rating.scores, rating.channel) == (1, first.id, given, "queue")
    assert rating.comment == COMMENT
    (said,) = journal.comparisons().values()
    assert (said.chosen, said.comment, said.channel) == (sides(found, 1, pair)[1].id, "B is dry", "queue")

    ratings, _ = publish(store, found, [rating], [said])
    assert comments_of(ratings) == [COMMENT, "B is dry"]
    sheet = tmp_path / "anna.csv"
    done = CliRunner().invoke(rate, ["export", "--rater", "anna", "--to", str(sheet)])
    assert done.exit_code == 0, done.output
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        assert [row["comment"] for row in csv.DictReader(file)] == [COMMENT, ""]
