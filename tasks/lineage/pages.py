"""A model's lineage in the pages of a Prefect run, with the way to its run in MLflow."""

from __future__ import annotations

import logging
import shlex

from gptmodel.errors import TrackingError
from gptmodel.lineage.graph import MODELS, Graph, Registered
from gptmodel.lineage.text import narrow_text
from gptmodel.lineage.walk import Lineage, judged_model
from gptmodel.store.artifacts import Artifact, Store
from tasks.pages import show_words
from tasks.tracking.mlflow_pages import LINEAGE_PAGE, address, briefly, is_there, page_of, versions_of

log = logging.getLogger(__name__)


def show_lineage(artifact: Artifact) -> None:
    """A page on the lineage of a model, or of the one that a judgement is of. Others have none."""
    store = Store(artifact.path.parent.parent)
    try:
        model = judged_model(store, artifact)
        if model.kind in MODELS:
            graph = Lineage(store).around(model.ref)
            where, versions = _in_mlflow(store, model, graph)
            words = _words(model, graph.with_versions(versions), where)
            show_words("lineage", words, f"What {model.label} was made from")
    except Exception as error:  # the pages are for people; the work stands without them
        log.warning("the lineage is not shown in the Prefect pages: %s", error)


def _in_mlflow(store: Store, model: Artifact, graph: Graph) -> tuple[str, list[Registered]]:
    """Where to see the model's run, in Markdown, and its registered versions, as far as MLflow says so in time."""
    from gptmodel.reproduction.sides import mlflow_run_of  # late: it takes a second to import

    run_id = mlflow_run_of(store, model.fingerprint)
    if not run_id or not is_there():
        return "MLflow does not know of it yet; `gptflow sync` tells it.", []

    def ask() -> tuple[tuple[str, str], list[Registered]]:
        from tasks.tracking.runs import client

        return page_of(client().get_run(run_id)), versions_of(store, graph)

    try:
        (run, lineage), versions = briefly(ask)
    except TrackingError as error:
        log.warning("the lineage is shown without links: %s", error)
        return f"MLflow run `{run_id}`; MLflow did not answer, and `gptflow sync` tells it what it lacks.", []
    if run:
        return f"[MLflow run]({run}) · [its lineage, drawn]({lineage})", versions
    return (
        f"MLflow run `{run_id}` is in `{address()}`. To see it: `make up`, or "
        f"`.venv/bin/mlflow ui --backend-store-uri {shlex.quote(address())}`; among its artifacts `{LINEAGE_PAGE}` is "
        "drawn.",
        versions,
    )


def _words(model: Artifact, graph: Graph, where: str) -> str:
    # No Mermaid: of Prefect's two pages only the newer one draws it, and links to a run open the older one.
    return (
        f"# Lineage of {model.label}\n\n{where}\n\n```text\n{narrow_text(graph)}```\n\n"
        f"What was made from it: `gptflow lineage --downstream {model.label}`\n"
    )
