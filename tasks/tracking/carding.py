"""The model card in MLflow: a file of the run, and the description of each version that was registered from it."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import replace

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from gptmodel.pages.card import CARD_FILE, DESCRIPTION_CHARS, LOSS_PICTURE, card_text, description_text
from gptmodel.pages.card_facts import facts_of
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.runs import client, set_tags

log = logging.getLogger(__name__)
CARD_TAG = "gptflow.card"
"""Of a run: the sha256 of the card that it has."""
_SEAL = "\n\nWritten by gptflow, seal {}\n"
_SEALED = re.compile(r"\A(?P<text>.*)\n\nWritten by gptflow, seal (?P<seal>[0-9a-f]{16})\s*\Z", re.DOTALL)


def record_card(store: Store, run: Run, model: Artifact) -> None:
    """Write the card of a model to its run and its registered versions, where they do not have it already.

    A description that a person wrote, or changed, is left as it is.
    """
    run_id = run.info.run_id
    versions = sorted(client().search_model_versions(f"run_id = '{run_id}'"), key=lambda v: (v.name, int(v.version)))
    first = next(iter(versions), None)
    facts = facts_of(store, model, name=first.name if first else "", version=str(first.version) if first else "")
    text = card_text(facts, picture=LOSS_PICTURE)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if run.data.tags.get(CARD_TAG) != digest:
        client().log_text(run_id, text, CARD_FILE)
    for version in versions:
        own = replace(facts, name=version.name, version=str(version.version))
        where = f"The whole card is `{CARD_FILE}` among the artifacts of MLflow run `{run_id}`."
        room = DESCRIPTION_CHARS - len(_SEAL) - 16
        _describe(version, description_text(own, where, room).rstrip("\n"))
    if run.data.tags.get(CARD_TAG) != digest:
        set_tags(run_id, {CARD_TAG: digest})  # last: a call that fails is made up for


def _describe(version: ModelVersion, text: str) -> None:
    wanted, found = text + _SEAL.format(_seal(text)), version.description or ""
    if found.strip() == wanted.strip():
        return
    if found.strip() and not _is_ours(found):
        log.info("%s/%s has a description of its own, which is left as it is", version.name, version.version)
        return
    client().update_model_version(version.name, version.version, description=wanted)


def _is_ours(description: str) -> bool:
    """Whether it is as it was written here: the seal is that of the text before it."""
    found = _SEALED.match(description)
    return found is not None and _seal(found["text"]) == found["seal"]


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
