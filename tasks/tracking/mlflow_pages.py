"""Where MLflow shows a run, and which versions of a model it has registered: asked briefly, since people wait."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from gptmodel.errors import TrackingError
from gptmodel.lineage.graph import MODELS, Graph, Registered
from gptmodel.store.artifacts import Store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
T = TypeVar("T")
SECONDS = 5.0
_MOST_MODELS = 100  # of one lineage, whose versions are asked for
LINEAGE_PAGE, LINEAGE_JSON = "lineage/lineage.html", "lineage/lineage.json"


def is_there() -> bool:
    """Whether there is a tracking server or database to ask: asking for a database that is not there would make it."""
    where = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return where.scheme != "sqlite" or Path(unquote(where.path)[1:]).exists()


def briefly(ask: Callable[[], T], seconds: float = SECONDS) -> T:
    """What MLflow answers; TrackingError if that fails or takes longer. The call goes on in a thread of its own."""
    from gptmodel.errors import first_line
    from tasks.tracking.runs import FAILURES

    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(ask())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="question to MLflow")
    thread.start()
    thread.join(seconds)
    if answer:
        return answer[0]
    if failure and not isinstance(failure[0], FAILURES):
        raise failure[0]
    said = first_line(failure[0]) if failure else f"nothing in {seconds:g} s"
    raise TrackingError(
        f"MLflow at {address() or 'its default place'} does not answer ({said}); is it up (`make up`), and "
        "MLFLOW_TRACKING_URI right?"
    )


def versions_of(store: Store, graph: Graph) -> list[Registered]:
    """The registered versions of the models of a lineage, as MLflow has them now.

    Found by the tag that each step gives them, or, where a person registered them in MLflow's pages, by their run.
    """
    from gptmodel.reproduction.sides import mlflow_run_of  # late: it takes a second to import
    from tasks.tracking.runs import FINGERPRINT_TAG, client

    models = list(dict.fromkeys(node.fingerprint for node in graph.nodes if node.kind in MODELS))
    found: dict[tuple[str, str], Registered] = {}
    aliases: dict[str, dict[str, str]] = {}  # of each registered model, as alias: version; a search leaves them out
    for fingerprint in models[:_MOST_MODELS]:
        wanted = [f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"]
        if run_id := mlflow_run_of(store, fingerprint):
            wanted.append(f"run_id = '{run_id}'")
        for version in (version for each in wanted for version in client().search_model_versions(each)):
            if version.name not in aliases:
                aliases[version.name] = client().get_registered_model(version.name).aliases
            found[version.name, version.version] = _registered(version, fingerprint, aliases[version.name])
    if len(models) > _MOST_MODELS:
        log.warning("registered versions are shown for %d of %d models", _MOST_MODELS, len(models))
    return list(found.values())


def _registered(version: ModelVersion, fingerprint: str, aliases: dict[str, str]) -> Registered:
    made = datetime.fromtimestamp(version.creation_timestamp / 1_000, UTC).isoformat(timespec="seconds")
    digest = version.tags.get("gptflow.model", "")
    own = tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)))
    return Registered(version.name, str(version.version), fingerprint, digest, own, made)


def page_of(run: Run, file: str = LINEAGE_PAGE) -> tuple[str, str]:
    """Addresses of a run and of a file of it, its lineage, in MLflow's pages; empty where no server shows them."""
    if not (server := address()).startswith(("http://", "https://")):
        return "", ""
    page = f"{server.rstrip('/')}/#/experiments/{quote(run.info.experiment_id)}/runs/{quote(run.info.run_id)}"
    # Else MLflow shows a training as if it were an agent, with traces first, to whoever has not chosen otherwise.
    view = "?workflowType=machine_learning"
    return f"{page}{view}", f"{page}/artifacts/{file}{view}"


def address() -> str:
    """The tracking server's or database's address without name and password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    where = urlsplit(uri)
    return urlunsplit(where._replace(netloc=where.netloc.rsplit("@", 1)[-1])) if "@" in where.netloc else uri
