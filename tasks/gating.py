"""A challenger and a champion in; the gate's decision in the ledger, and MLflow's aliases moved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefect import get_run_logger, task

from gptmodel.config import PipelineConfig
from gptmodel.errors import ArtifactError
from gptmodel.retraining.ledger import Draft, Entry, Ledger, Named, State
from gptmodel.store.artifacts import Artifact, Store, open_store
from tasks.operations.signals import GATE_FAILED, GATE_PASSED, announce
from tasks.pages import show_table, show_words
from tasks.policy import STEP

log = logging.getLogger(__name__)
_SHOWN = ("difference", "high", "bound")


@dataclass(frozen=True)
class Judged:
    """A model with what it scored: on the frozen validation set, and on what arrived since, if anything did."""

    model: Artifact
    frozen: Artifact
    arrivals: Artifact | None = None


@task(name="gate", task_run_name="gate {challenger.model.label}", **STEP)
def pass_gate(
    config: PipelineConfig, challenger: Judged, champion: Judged | None, facts: Mapping[str, Any] | None = None
) -> Entry:
    """Decide whether the challenger becomes champion, write it into the ledger, and have MLflow follow.

    Asked the same again, it answers from the ledger and moves nothing: a person may have moved on since. `facts` go
    into the ledger with the decision. ArtifactError if the champion changed while the challenger was trained.
    """
    entry, fresh = decide_once(open_store(), config, challenger, champion, facts or {})
    said = str(entry.facts["said"])
    get_run_logger().info("%s of %s: %s", "gate" if fresh else "the gate had decided", challenger.model.label, said)
    _show(config.name, entry)
    move_aliases(open_store(), config)
    passed = entry.outcome == "promoted"
    told = {"name": config.name, "challenger": challenger.model.label, "outcome": entry.outcome, "entry": entry.number}
    if fresh and entry.outcome != "waiting":
        announce(GATE_PASSED if passed else GATE_FAILED, config.name, f"{config.name}: {said}", **told)
    return entry


def decide_once(
    store: Store, config: PipelineConfig, challenger: Judged, champion: Judged | None, facts: Mapping[str, Any]
) -> tuple[Entry, bool]:
    """(the ledger's line, whether it was written now)."""
    from gptmodel.retraining.gate import decide
    from gptmodel.retraining.gate_facts import pair, question, ratings_on, trained_ids

    gate = config.retrain.gate
    ratings, verdicts = ratings_on(store, challenger.model, gate.ratings)
    evaluations = {
        f"{role}.{name}": getattr(judged, name) if judged else None
        for role, judged in (("challenger", challenger), ("champion", champion))
        for name in ("frozen", "arrivals")
    }
    rival = champion.model if champion else None
    key = question(gate, rival, challenger.model, evaluations, ratings)
    ledger = Ledger(store, config.name)
    if (known := ledger.read().decided(key)) is not None:
        return known, False
    frozen = arrivals = None
    if champion is not None:
        # One that was champion before documents were held out may have been trained on some of them.
        seen = trained_ids(store, champion.model) | trained_ids(store, challenger.model)
        frozen = pair(champion.frozen, challenger.frozen).without(seen)
        if champion.arrivals is not None and challenger.arrivals is not None:
            arrivals = pair(champion.arrivals, challenger.arrivals).without(seen)
    decision = decide(gate, frozen, arrivals, challenger.frozen.summary, verdicts)
    told = {
        **facts,
        **decision.plain(),
        "key": key,
        "champion": asdict(Named.of(champion.model)) if champion else None,
        "evaluations": {name: each.label for name, each in evaluations.items() if each},
        "ratings": ratings.label if ratings else "",
        "settings": asdict(gate),
    }

    def write(state: State) -> Draft | None:
        if state.decided(key) is not None:
            return None
        if (state.champion.digest if state.champion else "") != (rival.digest if rival else ""):
            now = state.champion.label if state.champion else "none"
            raise ArtifactError(
                f"the champion of {config.name} is {now} now, and {challenger.model.label} was compared with "
                f"{rival.label if rival else 'none'}; run again to compare it with the new one"
            )
        return Draft("decide", Named.of(challenger.model), by="gate", facts=told)

    state, entry = ledger.update(write)
    found = entry or state.decided(key)
    assert found is not None
    return found, entry is not None


def move_aliases(store: Store, config: PipelineConfig) -> None:
    """Have MLflow follow the ledger, without waiting for one that does not answer: the next run, or a sync, does it."""
    from tasks.tracking.aliases import follow
    from tasks.tracking.syncing import settle

    settle(lambda: follow(store, config.name, config.retrain.keep_versions), f"the registry of {config.name}")


def _show(name: str, entry: Entry) -> None:
    rows = [
        {
            "check": check["name"],
            "passed": {True: "yes", False: "NO", None: "-"}[check["passed"]],
            "said": check["said"],
            **{figure: value for figure, value in check["figures"].items() if figure in _SHOWN},
        }
        for check in entry.facts["checks"]
    ]
    show_table("gate", rows, f"{entry.facts['said']}")
    lines = "\n".join(f"- {row['passed']}: {row['said']}" for row in rows)
    where = f"Line {entry.number} of the ledger of {name}, `{entry.hash[:16]}`."
    show_words("decision", f"# {entry.outcome}\n\n{entry.facts['said']}\n\n{lines}\n\n{where}\n", entry.outcome)
