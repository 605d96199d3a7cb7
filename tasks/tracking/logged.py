"""What of an artifact is logged to MLflow alike, whatever its kind: done twice it leaves what it leaves once."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from mlflow.entities import Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from gptmodel.lineage.graph import as_json
from gptmodel.lineage.walk import Lineage
from gptmodel.pages.lineage import page as lineage_page
from gptmodel.pages.lineage import picture as lineage_picture
from gptmodel.pictures.style import Draw, save_all
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.mlflow_pages import LINEAGE_JSON, LINEAGE_PAGE, versions_of
from tasks.tracking.runs import client

PLOTS = "plots"


def finished_ms(artifact: Artifact) -> int:
    """When it was finished, with milliseconds of its own: MLflow takes one point of a metric for each time."""
    seconds = int(datetime.fromisoformat(artifact.provenance["finished"]).timestamp())
    return seconds * 1_000 + int(artifact.fingerprint[:8], 16) % 1_000


def is_there(run_id: str, metric: Metric) -> bool:
    points = client().get_metric_history(run_id, metric.key)  # one for each evaluation of the model
    return any((point.timestamp, str(point.value)) == (metric.timestamp, str(metric.value)) for point in points)


def log_lineage(run_id: str, model: Artifact) -> None:
    """The page and the graph of all that the model was made from, and of what its store has made of it by now."""
    store = Store(model.path.parent.parent)
    graph = Lineage(store).around(model.ref)
    graph = graph.with_versions(versions_of(store, graph))
    client().log_text(run_id, lineage_page(graph), LINEAGE_PAGE)
    client().log_text(run_id, lineage_picture(graph), f"{PLOTS}/lineage.svg")
    client().log_text(run_id, json.dumps(as_json(graph), indent=2), LINEAGE_JSON)


def log_pictures(run_id: str, pictures: dict[str, Draw], where: str) -> None:
    """Each for light and for dark pages: the same numbers leave the same bytes, so an upload may be repeated."""
    with TemporaryDirectory() as folder:
        for path in save_all(pictures, Path(folder)):
            client().log_artifact(run_id, str(path), where)


def log_table(run: Run, rows: list[dict[str, Any]], where: str) -> None:
    """A table as MLflow's pages show it. Its own `log_table` would append to what an earlier attempt left.

    The list of a run's tables is a tag, which MLflow cuts where it is too long: the oldest but the first make room.
    """
    if not rows:
        return
    run_id = run.info.run_id
    client().log_text(run_id, pd.DataFrame(rows).to_json(orient="split", index=False, date_format="iso"), where)
    listed = client().get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]")
    tables = _whole(listed)
    if (table := {"path": where, "type": "table"}) not in tables:
        tables.append(table)
    while len(told := json.dumps(tables)) > MAX_TAG_VAL_LENGTH:
        del tables[1]  # the first is of the training itself
    if told != listed:
        client().set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, told)


def _whole(listed: str) -> list[dict[str, str]]:
    """The tables of such a tag, or, where it was cut, those that stand in it whole."""
    for text in (listed, listed[: listed.rfind("}") + 1] + "]"):
        with suppress(ValueError):
            return list(json.loads(text))
    return []
