"""The pages of an evaluation in MLflow: the report on its model, and the surprisal map."""

from __future__ import annotations

import logging

from gptmodel.errors import GptflowError, first_line
from gptmodel.judging.surprisal import passages_of
from gptmodel.pages.report import report_page
from gptmodel.pages.report_facts import report_facts
from gptmodel.pages.surprisal import surprisal_page
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.champions import look_up
from tasks.tracking.runs import client

log = logging.getLogger(__name__)


def folder_of(evaluation: Artifact) -> str:
    """Where what belongs to an evaluation lies among the artifacts of its model's run."""
    return f"evaluation/{evaluation.path.name}"


def report_place(evaluation: Artifact) -> str:
    return f"{folder_of(evaluation)}/report.html"


def surprisal_place(evaluation: Artifact) -> str:
    return f"{folder_of(evaluation)}/surprisal.html"


def record_pages(run_id: str, store: Store, model: Artifact, evaluation: Artifact) -> None:
    """Log both pages to a run. Damage in the store is a reason to leave a page out, and not to record nothing."""
    standing = look_up(store, model)
    try:
        facts = report_facts(
            store,
            model,
            evaluation,
            name=standing.name,
            version=standing.version,
            champion=standing.champion,
            champion_name=standing.champion_name,
        )
        pages = {report_place(evaluation): report_page(facts)}
        if passages := passages_of(evaluation):
            pages[surprisal_place(evaluation)] = surprisal_page(passages, model.label, model.digest)
    except GptflowError as error:
        log.warning("%s has no report in MLflow: %s", evaluation.label, first_line(error))
        return
    for place, page in pages.items():
        client().log_text(run_id, page, place)
