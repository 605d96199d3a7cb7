"""MLflow's registry made to follow the ledger: aliases, tags of the gate, and versions that are retired.

The ledger is written first, so whatever dies in between is made up for by the next run or by `gptflow sync`; done twice
it leaves what it leaves once. An alias that a person moved in MLflow's pages is taken into the ledger, and not undone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gptmodel.errors import ArtifactError, TrackingError
from gptmodel.pretraining.step import run_dir_of
from gptmodel.reproduction.sides import mlflow_run_of
from gptmodel.retraining.ledger import Draft, Entry, Ledger, Named, State
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.locks import exclusive
from gptmodel.upkeep.pins import pins
from tasks.tracking.cards import load_card
from tasks.tracking.naming import find_artifact
from tasks.tracking.runs import FINGERPRINT_TAG, client

log = logging.getLogger(__name__)
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
GATE_TAG, ENTRY_TAG, PINNED_TAG = "gptflow.gate", "gptflow.gate.entry", "pinned"
_MODEL_TAG = "gptflow.model"
_TAG_CHARS = 4_000
_KEPT_CHAMPIONS = 3  # the present one, where a rollback leads, and who is `previous` after it


def follow(store: Store, name: str, keep_versions: int = 0) -> tuple[State, bool]:
    """(what the ledger says, whether the registry had to be changed for it).

    With `keep_versions` older versions than the newest so many are retired, see `_retire`. TrackingError where a model
    has no version yet, ArtifactError for an alias on a version that this store does not hold, MLflow's own errors.
    """
    ledger = Ledger(store, name)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(ledger.folder / f".{name}.registry.lock", f"the registry of {name}", wait=True):
        state = _with_moves_by_hand(store, ledger)
        if state.last is None:
            return state, False
        changed = _move_aliases(store, name, state)
        news = [entry for entry in state.entries if entry.number > ledger.last_told()]
        for entry in news:
            if entry.action == "decide":
                changed |= _tag(store, name, entry)
        if keep_versions:
            _retire(store, ledger, state, keep_versions)
        changed |= _delete_retired(name, (entry for entry in state.entries if entry.number > ledger.last_told()))
        if not ledger.is_told(state.last):
            ledger.note_told(state.last)
        return state, changed


def aliases_of(name: str) -> dict[str, str]:
    """Version number by alias; none for a name that is not registered."""
    try:
        found = client().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(number) for alias, number in found.items()}


def version_of(store: Store, name: str, model: Named) -> str:
    """The newest version of `name` that is this model, by our tag or by its run; empty if there is none."""
    found = list(client().search_model_versions(f"name = '{name}' and tags.`{_MODEL_TAG}` = '{model.digest}'"))
    with suppress(ArtifactError):
        artifact = store.at(*model.label.split("/"))
        if not found and (run_id := mlflow_run_of(store, artifact.fingerprint)):
            found = [v for v in client().search_model_versions(f"run_id = '{run_id}'") if v.name == name]
    return max((str(version.version) for version in found), key=int, default="")


def _with_moves_by_hand(store: Store, ledger: Ledger) -> State:
    """The state, after a champion that somebody named in MLflow's pages was taken into the ledger."""
    state = ledger.read()
    if state.last is not None and not ledger.is_told(state.last):
        return state  # what we have not told yet goes first
    number = aliases_of(ledger.name).get(CHAMPION, "")
    if not number:
        return state
    # An MLflow that lost the champion's version came from an older backup: nobody moved its alias.
    if state.champion is not None and version_of(store, ledger.name, state.champion) in (number, ""):
        return state
    try:
        model = find_artifact(store, f"{ledger.name}/{number}")
    except ArtifactError as error:
        raise ArtifactError(
            f"the champion of {ledger.name} is version {number}, moved there in MLflow, and this store does not "
            f"hold it ({error}); give the alias to a version that it holds, or use the store that does"
        ) from None
    if Named.of(model) == state.champion:  # another version of the same model
        return state
    reason = f"the alias was found on {ledger.name}/{number}"
    state, _ = ledger.update(lambda _: Draft("adopt", Named.of(model), reason, "somebody in MLflow"))
    return state


def _move_aliases(store: Store, name: str, state: State) -> bool:
    """In this order, so that a death in between leaves a champion in place. A previous one may be gone for good."""
    there, changed = aliases_of(name), False
    for alias in (PREVIOUS, CHAMPION, CHALLENGER):
        wanted: Named | None = getattr(state, alias)
        number = ""
        try:
            number = _registered(store, name, wanted) if wanted is not None else ""
        except (ArtifactError, TrackingError) as error:
            if alias != PREVIOUS:
                raise
            log.info("%s has no alias %s: %s", name, alias, error)
        if number and there.get(alias) != number:
            client().set_registered_model_alias(name, alias, number)
            changed = True
        elif not number and alias in there and alias != CHAMPION:
            client().delete_registered_model_alias(name, alias)
            changed = True
    return changed


def _registered(store: Store, name: str, model: Named) -> str:
    """The number of its version, registered now if that was missed, or its version was deleted since.

    TrackingError if there is none.
    """
    from tasks.tracking.syncing import sync_run

    if number := version_of(store, name, model):
        return number
    artifact = _held(store, model)
    run_dir = run_dir_of(store, artifact.fingerprint) if artifact else None
    if run_dir is not None and run_dir.is_dir():
        sync_run(store, run_dir, again=load_card(run_dir).model_name == name)
    if number := version_of(store, name, model):
        return number
    raise TrackingError(f"{model.label} has no version of {name} in MLflow; `gptflow sync` registers what it missed")


def _held(store: Store, model: Named) -> Artifact | None:
    with suppress(ArtifactError):
        return store.at(*model.label.split("/"))
    return None


def _tag(store: Store, name: str, entry: Entry) -> bool:
    """The decision on both versions, in words, and where the ledger has it."""
    champion = entry.facts.get("champion")
    sides = [(CHALLENGER, entry.subject), (CHAMPION, Named(**champion) if champion else None)]
    for role, model in sides:
        if model is None or not (number := version_of(store, name, model)):
            continue
        said = f"{entry.at}, as {role}: {entry.facts.get('said', entry.outcome)}"
        client().set_model_version_tag(name, number, GATE_TAG, said[:_TAG_CHARS])
        client().set_model_version_tag(name, number, ENTRY_TAG, f"{entry.number} {entry.hash}")
    return True


def _retire(store: Store, ledger: Ledger, state: State, keep: int) -> None:
    """Write down which versions go: ours, older than the newest `keep`, without alias, pin or tag `pinned`, and of
    none of the last champions."""
    doomed = to_retire(store, ledger.name, keep, state.champions[-_KEPT_CHAMPIONS:])
    if not doomed:
        return
    facts = {"versions": [{"version": str(v.version), "model": v.tags.get(_MODEL_TAG, "")} for v in doomed]}
    numbers = ", ".join(str(version.version) for version in doomed)
    draft = Draft("retire", None, f"versions {numbers}: older than the newest {keep}", "policy", facts)
    _, entry = ledger.update(lambda _: draft)
    if entry is not None:
        state.take(entry)


def to_retire(store: Store, name: str, keep: int, kept: Iterable[Named]) -> list[ModelVersion]:
    """The versions that the policy lets go, the oldest first; none of the models that are `kept`."""
    digests = {model.digest for model in kept}
    aliased = set(aliases_of(name).values())
    pinned = {label.split("/")[1] for label in pins(store)}
    found = [v for v in client().search_model_versions(f"name = '{name}'") if FINGERPRINT_TAG in v.tags]
    found.sort(key=lambda v: int(v.version))
    return [
        version
        for version in found[: -keep or None]
        if str(version.version) not in aliased
        and version.tags.get(PINNED_TAG, "false").strip().lower() in ("false", "no", "0")
        and version.tags[FINGERPRINT_TAG][:16] not in pinned
        and version.tags.get(_MODEL_TAG) not in digests
    ]


def _delete_retired(name: str, entries: Iterable[Entry]) -> bool:
    changed, aliased = False, set(aliases_of(name).values())
    for entry in entries:
        for retired in entry.facts.get("versions", []) if entry.action == "retire" else []:
            if retired["version"] in aliased:
                continue  # somebody gave it a name meanwhile
            try:
                client().delete_model_version(name, retired["version"])
                changed = True
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
    return changed


def told_as(state: State) -> dict[str, object]:
    """The names of a ledger's state, for people and machines."""
    roles = (CHAMPION, PREVIOUS, CHALLENGER, "frozen")
    return {role: asdict(named) if (named := getattr(state, role)) else None for role in roles}
