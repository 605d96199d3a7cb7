"""Weights from outside -> weights artifact and registered model."""

from __future__ import annotations

from prefect import flow

from gptmodel.artifacts import Artifact
from tasks.importing import import_pretrained


@flow(name="import-weights", flow_run_name="import {source}")
def import_weights(
    source: str = "openai-community/gpt2", revision: str = "", name: str = "", wait: bool = False
) -> dict[str, Artifact]:
    """Import pretrained GPT-2 weights, every tensor accounted for.

    Args:
        source: A Hugging Face repo id, or a local directory with config.json and safetensors.
        revision: Commit of the repo; left out, the newest one is resolved and recorded.
        name: Name in the model registry; left out, the last part of the source.
        wait: Wait for another run that imports the same, instead of refusing.
    """
    return {"model": import_pretrained(source, revision, name, wait)}
