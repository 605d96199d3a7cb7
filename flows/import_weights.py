"""Weights from outside -> weights artifact and registered model."""

from __future__ import annotations

from prefect import flow

from gptmodel.store.artifacts import Artifact
from tasks.importing import import_pretrained


@flow(name="import-weights", flow_run_name="import {source}")
def import_weights(
    source: str = "openai-community/gpt2",
    revision: str = "",
    name: str = "",
    wait: bool = False,
    allow_private_addresses: bool = False,
) -> dict[str, Artifact]:
    """Import pretrained GPT-2 weights, every tensor accounted for.

    Args:
        source: A Hugging Face repo id; a local directory in its layout, or in that of OpenAI's TensorFlow files; or the
            address that such files lie under.
        revision: Commit of the repo; left out, the newest one is resolved and recorded. Of an address: the digest that
            its first import told.
        name: Name in the model registry; left out, the last part of the source.
        wait: Wait for another run that imports the same, instead of refusing.
        allow_private_addresses: Let an address lie on this machine or a private network.
    """
    return {"model": import_pretrained(source, revision, name, wait, allow_private_addresses)}
