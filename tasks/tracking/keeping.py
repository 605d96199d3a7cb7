"""What MLflow wants kept of a store: the models that are registered, and those that it was not told all of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass

from mlflow.entities import ViewType

from gptmodel.errors import ArtifactError, TrackingError, first_line
from gptmodel.lineage.graph import MODELS
from gptmodel.pretraining.step import KIND
from gptmodel.store.artifacts import Store
from gptmodel.store.manifests import NAME_CHARS
from gptmodel.upkeep.pins import BUILDING
from tasks.tracking.agreement import answers, told_run
from tasks.tracking.runs import COMPLETE_TAG, FAILURES, FINGERPRINT_TAG, client


@dataclass(frozen=True)
class _Run:
    """What MLflow has of a run."""

    name: str
    """That of the model in the store: the first digits of the fingerprint that the run is tagged with."""
    state: str
    """deleted, told or open."""
    status: str


_RANK = {"deleted": 0, "told": 1, "open": 2}


def wanted_by_mlflow(store: Store) -> dict[str, str]:
    """Why MLflow's word keeps a model: by its name in the store, for all models that it wants kept or cannot speak for.

    Registered versions, by hand or by us; runs that were not told all yet; and models of this store of which this
    MLflow knows no run. Free are those whose run it was told whole, with no version (any more), and those whose run
    was deleted in it. A model that is half trained is wanted while its run is there and not FINISHED, whether RUNNING,
    FAILED or KILLED: it can go on. It is free when that run was deleted, or when MLflow was never told of one.
    TrackingError if it cannot be asked, ArtifactError if it is not the MLflow of this store.
    """
    answers()
    try:
        by_id = _all_runs()
        kept = _registered(by_id)
    except FAILURES as error:
        raise TrackingError(f"MLflow stopped answering ({first_line(error)}); run the same again") from None
    runs: dict[str, _Run] = {}
    for run in by_id.values():  # of two with one name the one that asks for more
        runs[run.name] = max(runs.get(run.name, run), run, key=lambda each: _RANK[each.state])
    whole = [path.name for path in store.directories() if path.parent.name in MODELS]
    half = [path.name.removeprefix(BUILDING) for path in store.root.glob(f"{KIND}/{BUILDING}*")]
    _refuse_another(store, {*whole, *half}, runs.keys() | kept.keys())
    for name in half:
        if name in runs:
            if runs[name].state != "deleted" and runs[name].status != "FINISHED":
                kept.setdefault(name, f"its run in MLflow is {runs[name].status} and may go on")
        elif told_run(store, name):
            kept.setdefault(name, "MLflow knows no run of it")
    for name in whole:
        if name not in runs:
            kept.setdefault(name, "MLflow knows no run of it")
        elif runs[name].state == "open":
            kept.setdefault(name, "its run is not told all yet; `gptflow sync` does it")
    return kept


def _refuse_another(store: Store, names: Set[str], known: Set[str]) -> None:
    told = [name for name in names if told_run(store, name)]
    if told and not known & names:
        raise ArtifactError(
            f"MLflow at {os.environ.get('MLFLOW_TRACKING_URI', '')} knows none of the {len(told):,} runs of this "
            "store; set MLFLOW_TRACKING_URI to the one that does, or go by pins alone with --pins-only"
        )


def _registered(by_id: Mapping[str, _Run]) -> dict[str, str]:
    """name/version of each registered version by its model: that of the tag that we gave it, and that of its run."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client().search_model_versions(max_results=1_000, page_token=token)
        for version in page:
            names = {version.tags.get(FINGERPRINT_TAG, "")[:NAME_CHARS]}
            if (run := by_id.get(version.run_id or "")) is not None:
                names.add(run.name)
            found |= dict.fromkeys(names - {""}, f"registered as {version.name}/{version.version}")
        if not (token := page.token):
            return found


def _all_runs() -> dict[str, _Run]:
    """Every run with a fingerprint, by its id."""
    found: dict[str, _Run] = {}
    experiments = [e.experiment_id for e in client().search_experiments(view_type=ViewType.ALL)]
    token = None
    while experiments:
        page = client().search_runs(experiments, "", ViewType.ALL, max_results=1_000, page_token=token)
        for run in page:
            if not (fingerprint := run.data.tags.get(FINGERPRINT_TAG, "")):
                continue
            told = "told" if run.data.tags.get(COMPLETE_TAG) else "open"
            state = "deleted" if run.info.lifecycle_stage == "deleted" else told
            found[run.info.run_id] = _Run(fingerprint[:NAME_CHARS], state, str(run.info.status))
        if not (token := page.token):
            break
    return found
