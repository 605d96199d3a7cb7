"""Weights from outside in, a weights artifact out."""

from __future__ import annotations

import re
from pathlib import Path

from prefect import task

from gptmodel.errors import ConfigError
from gptmodel.pretraining.step import run_dir_of
from gptmodel.store.artifacts import MANIFEST, Artifact, find_model, open_store
from tasks.holding import hold
from tasks.lineage.events import with_events
from tasks.pages import progress
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tracking.cards import model_card, save_card


@task(name="import-weights", task_run_name="import {source}", **STEP)
@with_events
def import_pretrained(
    source: str, revision: str = "", name: str = "", wait: bool = False, allow_private_addresses: bool = False
) -> Artifact:
    """Import GPT-2 weights from outside, or take a model that the store already has."""
    from gptmodel.pretrained import import_weights
    from tasks.tracking.syncing import settle, size_of, sync_run

    store = open_store()
    if re.fullmatch(r"(checkpoint|weights)/[0-9a-f]{4,64}", source) or (Path(source) / MANIFEST).exists():
        return hold(find_model(store, source))
    registered = _registered_name(source, name)
    with progress("importing weights") as update:
        artifact, reused = import_weights(
            store, source, revision=revision, wait=wait, allow_private=allow_private_addresses, progress=update
        )
    hold(artifact)  # before MLflow is told: that may take minutes
    run_dir = run_dir_of(store, artifact.fingerprint)
    save_card(run_dir, model_card(artifact, registered), anew=bool(name))
    settle(lambda: sync_run(store, run_dir), artifact.label, size_of(artifact))
    compared = artifact.summary.get("certificate", {}).get("transformers", {}).get("largest_difference")
    figures = figures_of(artifact, "source", "revision", "n_params", "dtype")
    figures |= {"largest logit difference from transformers": f"{compared:.1e}"} if compared is not None else {}
    return report(artifact, reused, figures)


def _registered_name(source: str, name: str) -> str:
    """What it is called in the registry, whose names hold no / and no :. ConfigError before anything is fetched."""
    if name and (re.search(r"[/:]", name) or name in (".", "..")):
        raise ConfigError(f"name is {name!r}; the name of a registered model holds no / and no :, such as gpt2-small")
    return (
        name or re.sub(r"[^\w.-]+", "-", source.rstrip("/").rsplit("/", 1)[-1].split("@")[0]).strip(".-") or "imported"
    )
