"""The champion of a name: who it is, and moving its alias by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gptmodel.config import PipelineConfig
from gptmodel.errors import ArtifactError, ConfigError, TrackingError
from gptmodel.lineage.graph import MODELS
from gptmodel.pretraining.step import run_dir_of
from gptmodel.retraining.ledger import Draft, Entry, Ledger, Named, State
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.cards import load_card
from tasks.tracking.mlflow_pages import briefly, is_there
from tasks.tracking.naming import find_artifact, is_version, named_model

log = logging.getLogger(__name__)
_ALIASES = ("champion", "previous", "challenger")
_PATIENCE = 30.0  # seconds for MLflow: a version may have to be registered first


def standing(store: Store, name: str) -> State:
    """What the ledger says, with what somebody moved in MLflow's pages, if MLflow answers.

    ArtifactError for a champion that the store does not hold: who goes on without it would promote blindly.
    """
    with suppress(TrackingError):
        if is_there():
            return _follow(store, name)
    log.warning("MLflow does not answer: the champion of %s is what the ledger says", name)
    return Ledger(store, name).read()


def _follow(store: Store, name: str) -> State:
    from tasks.tracking.aliases import follow

    return briefly(lambda: follow(store, name), _PATIENCE)[0]


def held(store: Store, named: Named) -> Artifact:
    """The artifact of that name. ArtifactError where it is gone, or holds other bytes now."""
    kind, name = named.label.split("/")
    found = store.at(kind, name)
    if found.digest != named.digest:
        raise ArtifactError(
            f"{named.label} holds {found.digest[:16]}… now, and the ledger knows {named.digest[:16]}…; put the "
            "old files back, or promote another model"
        )
    return found


def resolved(store: Store, config: PipelineConfig) -> PipelineConfig:
    """With a version or alias in `init_from` replaced by the model it means now, whose digest enters the fingerprint.

    A version is `NAME/3`; an alias is `champion`, or `NAME@champion`, and so with all that MLflow has. ConfigError
    where there is none: the hub is never asked instead, where a stranger may have taken the name.
    """
    name, _, alias = config.init_from.removeprefix("models:/").rpartition("@")
    if alias not in _ALIASES:
        return _with_version(store, config)
    name = name or config.name
    found: Named | None = getattr(standing(store, name), alias)
    if found is None:
        raise ConfigError(
            f"init_from is {config.init_from}, and {name} has no {alias} yet; promote one (`gptflow promote`), or "
            "leave init_from empty for random weights"
        )
    log.info("init_from: the %s of %s is %s", alias, name, found.label)
    return replace(config, init_from=held(store, found).label)


def _with_version(store: Store, config: PipelineConfig) -> PipelineConfig:
    asked = config.init_from
    if not is_version(asked) or Path(asked).is_dir():
        return config
    try:
        found = named_model(store, asked)
    except ArtifactError as error:
        raise ConfigError(
            f"init_from is {asked}: {error}. If a repository of the hub is meant, pin it: "
            f"{asked.removeprefix('models:/').partition('@')[0]}@COMMIT"
        ) from None
    log.info("init_from: %s is %s", asked, found.label)
    return replace(config, init_from=found.label)


def promote(store: Store, target: str, name: str, reason: str) -> tuple[Ledger, Entry | None]:
    """Make a model the champion by hand: (the ledger, its new line; None where it is the champion already).

    `target` is `NAME/3`, `NAME@challenger`, or a model of the store with `name` given. ConfigError, ArtifactError or
    TrackingError where it is none, or is not registered by that name.
    """
    reason = _reasoned(reason)
    model = find_artifact(store, target)
    if model.kind not in MODELS:
        raise ConfigError(f"{target} is of kind {model.kind}, and a champion is a checkpoint or weights; name one")
    name = name or _name_in(target) or _registered_name(store, model)
    if _registered_name(store, model) != name and not _has_version(store, name, model):
        raise ConfigError(
            f"{model.label} is not registered as {name}, so its alias cannot stand on it; `gptflow sync` "
            "registers what MLflow missed"
        )
    standing(store, name)
    named = Named.of(model)
    return _written(store, name, lambda state: None if state.champion == named else Draft("promote", named, reason))


def rollback(store: Store, name: str, reason: str) -> tuple[Ledger, Entry | None]:
    """Put the previous champion back by hand. ConfigError where there is none, ArtifactError where it is gone."""
    reason = _reasoned(reason)
    standing(store, name)

    def back(state: State) -> Draft:
        if state.previous is None or state.champion is None:
            raise ConfigError(
                f"{name} has no previous champion to go back to; `gptflow champions {name}` shows them all"
            )
        to = held(store, state.previous)
        return Draft("rollback", state.champion, reason, facts={"to": asdict(Named.of(to))})

    return _written(store, name, back)


def _written(store: Store, name: str, decide: Callable[[State], Draft | None]) -> tuple[Ledger, Entry | None]:
    ledger = Ledger(store, name)
    return ledger, ledger.update(decide)[1]


def tell(store: Store, name: str) -> str:
    """Bring MLflow's aliases up to the ledger; empty, or why it could not be done now."""
    if not is_there():
        return "MLflow is not there"
    try:
        _follow(store, name)
    except (TrackingError, ArtifactError) as error:
        return str(error)
    return ""


def _reasoned(reason: str) -> str:
    if not reason.strip():
        raise ConfigError("give a reason (--reason); it stands in the ledger for those who come after")
    return reason.strip()


def _name_in(target: str) -> str:
    """NAME of `NAME/3`, `NAME@alias` or `models:/NAME/3`; empty for a name of the store."""
    plain = target.removeprefix("models:/")
    name = plain.rpartition("@")[0] or plain.rpartition("/")[0]
    return "" if name in MODELS or "/" in name else name


def _registered_name(store: Store, model: Artifact) -> str:
    with suppress(ArtifactError):
        return load_card(run_dir_of(store, model.fingerprint)).model_name
    return ""


def _has_version(store: Store, name: str, model: Artifact) -> bool:
    from tasks.tracking.aliases import version_of

    return is_there() and bool(briefly(lambda: version_of(store, name, Named.of(model))))


def rows(state: State) -> list[dict[str, Any]]:
    """A row for each line of the ledger."""
    return [
        {
            "number": entry.number,
            "at": entry.at,
            "action": entry.action if entry.action != "decide" else entry.outcome,
            "model": entry.subject.label if entry.subject else "",
            "by": entry.by,
            "why": entry.reason or str(entry.facts.get("said", "")),
        }
        for entry in state.entries
    ]
