"""Token shards -> model."""

from __future__ import annotations

from prefect import flow

from flows.naming import after_settings
from gptmodel.overrides import PipelineOverrides, given
from gptmodel.presets import PresetName
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, open_store
from tasks.holding import holding
from tasks.importing import import_pretrained
from tasks.preparing import find_shards
from tasks.promoting import resolved
from tasks.training import pretrain_model


@flow(name="pretrain", flow_run_name=after_settings("pretrain"))
def pretrain(
    preset: PresetName = "quickstart",
    shards: str = "",
    overrides: PipelineOverrides | None = None,  # type: ignore[valid-type]
    wait: bool = False,
) -> dict[str, Artifact]:
    """Train on shards that are there, or resume a training that was stopped.

    Args:
        preset: The settings to start from.
        shards: The shards to train on, such as `shards/1f2e3d4c`; left out, those that the settings ask for.
        overrides: Single settings to change.
        wait: Wait for another run that trains the same, instead of refusing.
    """
    config = resolved(open_store(), load_config(preset, overrides=given(overrides)))
    with holding():
        found = find_shards(shards, config, wait)
        init = import_pretrained(config.init_from, wait=wait) if config.init_from else None
        return {"shards": found, "model": pretrain_model(config, found, init, wait)}
