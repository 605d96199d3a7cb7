"""What it takes to make an artifact again: its chain of recorded settings, origins first, with sources and costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from gptmodel.config import PipelineConfig
from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.lineage.walk import artifact_of
from gptmodel.pretraining.step import run_dir_of
from gptmodel.reproduction.recorded import (
    corpus_config,
    machine_of,
    read_job,
    recorded_curve,
    shards_config,
    training_config,
    weights_source,
)
from gptmodel.reproduction.repeating import Wishes, lacking
from gptmodel.store.artifacts import Artifact, Ref, Store
from gptmodel.store.space import training_bytes


@dataclass(frozen=True)
class Node:
    """One artifact that is to be made again."""

    kind: str
    name: str
    expected: Ref | None
    """None for a corpus that is gone, and so are the shards that named it."""
    recorded: Artifact | None
    """None where it is gone from the store, and only what was made from it names it."""
    recipe: Any
    """Its settings: CorpusConfig, ShardsConfig, PipelineConfig, or (source, revision) of weights."""
    needs: tuple[str, ...] = ()
    """Names of the nodes that it is made from."""


@dataclass(frozen=True)
class Plan:
    """What is to be made, origins first, and what that will take."""

    store: Store
    wishes: Wishes
    nodes: list[Node]
    seconds: float
    """That it took then, as far as recorded."""
    bytes: int
    """On disk, about."""
    notes: list[str]
    """What this machine cannot do as the first one did."""

    @property
    def target(self) -> Node:
        """The one that was asked for."""
        return self.nodes[-1]

    @property
    def all_steps(self) -> int:
        """Steps that the target trained; 0 where it is no training."""
        return steps_of(self.target.recorded) if self.target.kind == "checkpoint" and self.target.recorded else 0


def plan_reproduction(store: Store, artifact: Artifact, wishes: Wishes) -> Plan:
    """What must be made to make this again. ArtifactError or DataError where the store cannot tell how."""
    nodes = _plan(store, artifact.ref, None)
    last = steps_of(artifact) if artifact.kind == "checkpoint" else 0
    if wishes.steps and not last:
        raise ConfigError(f"--steps is for a training, and {artifact.label} is a {artifact.kind}; leave it out")
    if wishes.steps > last:
        raise ConfigError(
            f"--steps is {wishes.steps:,}, and {artifact.label} trained {last:,}; give fewer, or 0 for all"
        )
    if wishes.steps == last:
        wishes = replace(wishes, steps=0)
    logged = sorted(step for step in recorded_curve(store, artifact) if step > 0) if wishes.steps else []
    if wishes.steps and (not logged or logged[0] > wishes.steps):
        first = f"the first is {logged[0]:,}" if logged else "there is none"
        raise ConfigError(
            f"--steps is {wishes.steps:,}, and no step of {artifact.label} up to there was logged ({first}); "
            "give more, or 0 for all"
        )
    seconds, n_bytes = 0.0, 0
    notes: dict[str, None] = {}
    for node in nodes:
        if node.recorded is None:
            continue
        n_bytes += sum(entry.bytes for entry in node.recorded.files)
        if not isinstance(node.recipe, PipelineConfig):
            seconds += _took(node.recorded)
            continue
        n_bytes += training_bytes(node.recipe.model, node.recipe.train)
        share = wishes.steps / last if node is nodes[-1] and wishes.steps else 1.0
        # Steps alone without start and validation, or all of the last attempt: what is more.
        seconds += share * max(float(node.recorded.summary.get("seconds", 0.0)), _took(node.recorded))
        notes |= dict.fromkeys(lacking(node.recipe, machine_of(node.recorded), wishes))
    return Plan(store, wishes, nodes, seconds, n_bytes, list(notes))


def steps_of(checkpoint: Artifact) -> int:
    return int(checkpoint.summary.get("steps_trained", checkpoint.summary.get("step", 0)))


def _took(artifact: Artifact) -> float:
    try:
        started, finished = (datetime.fromisoformat(artifact.provenance[name]) for name in ("started", "finished"))
        return max(0.0, (finished - started).total_seconds())
    except (KeyError, ValueError, TypeError):  # no time, or one with a zone and one without
        return 0.0


def _plan(store: Store, ref: Ref, own: PipelineConfig | None, above: tuple[str, ...] = ()) -> list[Node]:
    """The nodes that make `ref`, itself last. `own` is the config of the run that it was made for."""
    name = f"{ref.kind}/{ref.fingerprint[:16]}"
    if name in above:  # no honest manifest says so
        raise ArtifactError(f"{name} is made from itself, as its manifests say; it cannot be made again")
    recorded: Artifact | None = None
    reason = "it holds other bytes now"
    try:
        recorded = artifact_of(store, ref)
    except ArtifactError as error:
        reason = str(error)
    if recorded is not None and recorded.digest != ref.digest:
        recorded = None  # made anew with other bytes since: not what this was made from
    if ref.kind == "weights":
        return [Node(ref.kind, name, ref, recorded, weights_source(store, ref.digest, recorded))]
    if ref.kind == "corpus":
        return _plan_corpus(store, name, ref, recorded, own, (*above, name))
    if ref.kind == "shards":
        return _plan_shards(store, name, ref, recorded, own)
    if ref.kind == "checkpoint" and recorded is not None:
        return _plan_training(store, name, ref, recorded, (*above, name))
    if recorded is not None:
        raise ArtifactError(f"{name} cannot be made again alone: give the model that it judges")
    raise ArtifactError(f"{name} cannot be made again, since its record is gone: {reason}")


def _plan_corpus(
    store: Store, name: str, ref: Ref, recorded: Artifact | None, own: PipelineConfig | None, above: tuple[str, ...]
) -> list[Node]:
    """The corpus, after the one whose validation documents it was kept away from, if there is one."""
    node = _corpus_node(store, name, ref, recorded, own)
    before = [r for r in recorded.request.inputs if r.kind == "corpus"] if recorded is not None else []
    held = [_plan(store, each, None, above) for each in before]
    return [*(each for nodes in held for each in nodes), replace(node, needs=tuple(nodes[-1].name for nodes in held))]


def _corpus_node(
    store: Store, name: str, ref: Ref | None, recorded: Artifact | None, own: PipelineConfig | None
) -> Node:
    config = corpus_config(store, recorded, own)
    if config is None:
        raise DataError(f"{name} cannot be made again: nothing in the store tells where its text came from")
    return Node("corpus", name, ref, recorded, config)


def _plan_shards(
    store: Store, name: str, ref: Ref, recorded: Artifact | None, own: PipelineConfig | None
) -> list[Node]:
    if recorded is not None:
        before = _plan(store, recorded.request.inputs[0], own)
        return [*before, Node("shards", name, ref, recorded, shards_config(recorded), (before[-1].name,))]
    if own is None:
        raise ArtifactError(f"{name} is gone from the store, and no run tells of its settings; it cannot be made again")
    corpus = _corpus_node(store, f"corpus of {name}", None, None, own)
    return [corpus, Node("shards", name, ref, None, own.shards, (corpus.name,))]


def _plan_training(store: Store, name: str, ref: Ref, recorded: Artifact, above: tuple[str, ...]) -> list[Node]:
    config = training_config(store, recorded)
    own = config if read_job(run_dir_of(store, recorded.fingerprint)) else None
    nodes: dict[str, Node] = {}
    needs = []
    for made_from in recorded.request.inputs:
        before = _plan(store, made_from, own, above)
        nodes |= {node.name: node for node in before}
        needs.append(before[-1].name)
    return [*nodes.values(), Node("checkpoint", name, ref, recorded, config, tuple(needs))]
