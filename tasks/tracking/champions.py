"""Where a model stands in MLflow's registry: its name and version, and the champion of that name."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gptmodel.errors import ArtifactError, TrackingError
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.mlflow_pages import briefly, is_there
from tasks.tracking.naming import find_artifact

log = logging.getLogger(__name__)
CHAMPION = "champion"
"""The alias of the version that others are compared with."""


@dataclass(frozen=True)
class Standing:
    """All empty for a model that is not registered."""

    name: str = ""
    version: str = ""
    champion: Artifact | None = None
    """None too where the model is the champion itself, or the store does not hold it."""
    champion_name: str = ""


def standing_of(store: Store, model: Artifact) -> Standing:
    """What MLflow says, if it does so in a few seconds; else nothing, and a line in the log."""
    if not is_there():
        return Standing()
    try:
        return briefly(lambda: look_up(store, model))
    except TrackingError as error:
        log.warning("%s is reported without its place in the registry: %s", model.label, error)
        return Standing()


def look_up(store: Store, model: Artifact) -> Standing:
    """The same, in this thread, and with MLflow's own errors."""
    from tasks.tracking.runs import FINGERPRINT_TAG, client

    found = client().search_model_versions(f"tags.`{FINGERPRINT_TAG}` = '{model.fingerprint}'")
    if not found:
        return Standing()
    own = max(found, key=lambda version: (version.creation_timestamp, int(version.version)))
    name, version = str(own.name), str(own.version)
    number = client().get_registered_model(name).aliases.get(CHAMPION, "")
    if not number or str(number) == version:
        return Standing(name, version)
    try:
        champion = find_artifact(store, f"{name}/{number}")
    except ArtifactError as error:
        log.warning("the champion %s/%s is not compared with: %s", name, number, error)
        return Standing(name, version)
    return Standing(name, version, champion, f"{name}/{number}")
