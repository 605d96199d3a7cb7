"""The way from the pages of a Prefect run to the report on an evaluated model."""

from __future__ import annotations

import logging

from gptmodel.errors import TrackingError
from gptmodel.judging.surprisal import SURPRISAL_FILE
from gptmodel.lineage.walk import artifact_of
from gptmodel.store.artifacts import Artifact, Store
from tasks.pages import show_words
from tasks.tracking.mlflow_pages import briefly, is_there, page_of

log = logging.getLogger(__name__)


def show_report_links(evaluation: Artifact) -> None:
    """A page with links to the report and the surprisal map in MLflow, or with the command that writes them."""
    store = Store(evaluation.path.parent.parent)
    try:
        model = artifact_of(store, evaluation.request.inputs[0])
        words = (
            f"# Report on {model.label}\n\n{_links(store, model, evaluation)}\n\n"
            "Figures, training curve, documents, samples, and each token of a few passages in the colour of its loss. "
            f"As a file: `gptflow report {model.label} --evaluation {evaluation.label}`. Of any text: "
            f'`gptflow surprise --model {model.label} "a text"`\n'
        )
        show_words("report", words, f"How {model.label} does")
    except Exception as error:  # the pages are for people; the work stands without them
        log.warning("the report is not shown in the Prefect pages: %s", error)


def _links(store: Store, model: Artifact, evaluation: Artifact) -> str:
    """In Markdown; what is not linked has its reason."""
    from gptmodel.reproduction.sides import mlflow_run_of  # late: it takes a second to import

    run_id = mlflow_run_of(store, model.fingerprint)
    if not run_id or not is_there():
        return "MLflow does not have it yet; `gptflow sync` tells it."
    try:
        return briefly(lambda: _addresses(run_id, evaluation))
    except TrackingError as error:
        log.warning("the report is shown without links: %s", error)
        return f"It is in MLflow run `{run_id}`; MLflow did not answer."


def _addresses(run_id: str, evaluation: Artifact) -> str:
    from tasks.tracking.judgements import evaluation_tag
    from tasks.tracking.reporting import report_place, surprisal_place
    from tasks.tracking.runs import client

    run = client().get_run(run_id)
    if run.data.tags.get(evaluation_tag(evaluation)) != evaluation.digest:
        return "MLflow does not have it yet; `gptflow sync` tells it."
    places = {"The report": report_place(evaluation)}
    if SURPRISAL_FILE in evaluation.names():
        places["surprisal map"] = surprisal_place(evaluation)
    links = {title: page_of(run, place)[1] for title, place in places.items()}
    if not all(links.values()):  # a database shows no pages
        listed = " and ".join(f"`{place}`" for place in places.values())
        return f"They are the files {listed} of MLflow run `{run_id}`."
    return " · ".join(f"[{title}]({link})" for title, link in links.items())
