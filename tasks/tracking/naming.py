"""What a person may call an artifact by: its name in the store, an MLflow run, or a registered version."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gptmodel.errors import ArtifactError, TrackingError
from gptmodel.pretraining.step import RUNS
from gptmodel.store.artifacts import Artifact, Store, find_model
from tasks.tracking.mlflow_pages import is_there

Found = TypeVar("Found")
_VERSION = r"(models:/)?[^/:@]+(/[0-9]+|@[A-Za-z0-9_-]+)"


def find_artifact(store: Store, name: str, kind: str = "") -> Artifact:
    """The artifact of a store name (`checkpoint/1f2e…`, `1f2e`, a path), an MLflow run id, or a registered version.

    A version is `quickstart/3`, `quickstart@champion` or `models:/…`. ArtifactError if nothing bears that name,
    TrackingError if MLflow has to be asked and does not answer.
    """
    return _found(store, name, lambda known: store.resolve(known, kind))


def named_model(store: Store, name: str = "") -> Artifact:
    """The checkpoint or weights by any such name; left out, the checkpoint that was finished last. Errors alike."""
    return find_model(store, str(find_artifact(store, name).path) if name else "")


def find_place(store: Store, name: str) -> Path:
    """Where that artifact lies, without a look at it: it may be damaged. Names and errors as in `find_artifact`."""
    return _found(store, name, store.locate)


def is_version(name: str) -> bool:
    """Whether it has the form of a registered version, and not that of a label, of `repo@commit`, or of `~/3`."""
    other = r"(checkpoint|weights)/[0-9a-f]+|[^/]+@[0-9a-f]{7,40}|~.*"
    return re.fullmatch(_VERSION, name) is not None and re.fullmatch(other, name) is None


def _found(store: Store, name: str, look: Callable[[str], Found]) -> Found:
    if re.fullmatch(r"[0-9a-f]{32}", name) and (fingerprint := _known_run(store, name)):
        return look(_label(store, fingerprint))
    try:
        return look(name)
    except ArtifactError as error:
        if not _may_be_mlflows(name):
            raise
        if not is_there():
            uri = os.environ["MLFLOW_TRACKING_URI"]
            raise ArtifactError(
                f"{error}; MLflow could not be asked: {uri} (MLFLOW_TRACKING_URI) is not there"
            ) from None
        fingerprint = _ask_mlflow(name)
        if not fingerprint:
            raise ArtifactError(
                f"{error}; nor does MLflow know a run or version of ours by that name (a version is name/number or "
                "name@alias)"
            ) from None
        return look(_label(store, fingerprint))


def _label(store: Store, fingerprint: str) -> str:
    place = store.locate(fingerprint)
    return f"{place.parent.name}/{place.name}"


def _known_run(store: Store, run_id: str) -> str:
    """The fingerprint of a run that this store told MLflow of; so MLflow need not be asked."""
    for journal in (store.root / RUNS).glob("*/mlflow.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(journal.read_text())["run_id"] == run_id:
                return journal.parent.name
    return ""


def _may_be_mlflows(name: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{32}}|{_VERSION}", name) is not None


def _ask_mlflow(name: str) -> str:
    """The fingerprint that the run or the registered version is tagged with."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    from gptmodel.errors import first_line
    from tasks.tracking.runs import FAILURES, FINGERPRINT_TAG, client

    try:
        run_id = name
        if not re.fullmatch(r"[0-9a-f]{32}", name):
            model = name.removeprefix("models:/")
            if "@" in model:
                version = client().get_model_version_by_alias(*model.split("@"))
            else:
                version = client().get_model_version(*model.rsplit("/", 1))
            if fingerprint := version.tags.get(FINGERPRINT_TAG, ""):
                return str(fingerprint)
            run_id = version.run_id or ""  # registered by hand, in MLflow's pages
        return str(client().get_run(run_id).data.tags.get(FINGERPRINT_TAG, "")) if run_id else ""
    except FAILURES as error:
        # An alias that nobody gave is called an invalid parameter.
        code = error.error_code if isinstance(error, MlflowException) else ""
        if isinstance(error, UnsupportedModelRegistryStoreURIException):  # an invalid parameter too
            uri = os.environ.get("MLFLOW_TRACKING_URI", "")
            raise TrackingError(
                f"MLflow could not be asked for {name}: MLFLOW_TRACKING_URI is {uri!r}; give an address such as "
                "http://127.0.0.1:5000"
            ) from None
        if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return ""
        raise TrackingError(
            f"MLflow was asked for {name} and does not answer ({first_line(error)}); is it up? (`make up`)"
        ) from None
