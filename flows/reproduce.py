"""A model -> the same model again, and whether it is."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.naming import after
from tasks.reproducing import reproduce_model


@flow(name="reproduce", flow_run_name=after("reproduce", "model", "the newest model"))
def reproduce(model: str = "", steps: int = 0, threads: int = 0, cached: bool = False) -> dict[str, Any]:
    """Make a model again from its recorded settings in a fresh store, and compare byte by byte. Fails where it differs.

    Args:
        model: A checkpoint of the store, an MLflow run or a registered version; left out, the newest checkpoint.
        steps: Train only so many first steps, with the schedule of the whole run; 0 trains all.
        threads: CPU threads; 0 is the recorded number.
        cached: Take downloads from the store instead of fetching them again, as where a followed source has changed.
    """
    return reproduce_model(model, steps, threads, cached)
