"""Making an artifact again in a store with nothing in it, and comparing what comes out with what came out then.

Origins first, by content digest. The first node that differs ends it: what is made from other bytes is another thing
anyway, and the reason lies where the bytes first differ.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError, StorageError
from gptmodel.lineage.differences import Change, Curve, FirstDifference, changes, first_difference, provenance_changes
from gptmodel.progress import progress
from gptmodel.reproduction.chain import Node, Plan
from gptmodel.reproduction.freshstore import already_made, named_store, temporary_store
from gptmodel.reproduction.recorded import machine_of, recorded_curve
from gptmodel.reproduction.repeating import Trained, Wishes, train_again
from gptmodel.reproduction.sides import count_documents
from gptmodel.reproduction.sourcecheck import check_corpus_source, has_downloads, import_again, take_downloads
from gptmodel.reproduction.verdicts import NodeVerdict, Verdict
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.space import require, used_bytes
from gptmodel.store.uses import using
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards

log = logging.getLogger(__name__)
Say = Callable[[str], None]


def reproduce_apart(
    plan: Plan, where: Path | None = None, *, keep: bool = False, cached: bool = False, say: Say = log.info
) -> tuple[Verdict, Path | None]:
    """`reproduce` in a store at `where`, or in a temporary one; and that store's directory if it is still there."""
    artifact = plan.target.recorded
    assert artifact is not None
    with ExitStack() as held:
        with suppress(OSError):  # a store that is read-only: nobody collects what is in it
            held.enter_context(using(plan.store.root, [node.name for node in plan.nodes]))
        if where is not None:
            how = {"threads": plan.wishes.threads, "precision": plan.wishes.precision}
            fresh = held.enter_context(named_store(where, plan.store, artifact, how))
        else:
            fresh = held.enter_context(temporary_store(plan.store, artifact, keep=keep))
        return reproduce(plan, fresh, say, cached=cached), fresh.root if where or keep else None


def reproduce(plan: Plan, fresh: Store, say: Say = log.info, *, cached: bool = False) -> Verdict:
    """Make it all again in `fresh` and compare. `cached` takes downloads from the store instead of fetching them.

    What `fresh` has already of an earlier attempt is hashed again, and reused. ConfigError if that is all; DataError
    or NetworkError before anything is trained, if a source is gone or holds other bytes; StorageError if there is no
    room; else the errors of the steps.
    """
    started = time.monotonic()
    _require_room(plan, fresh)
    made = _check_sources(plan, fresh, say, cached)
    nodes: list[NodeVerdict] = []
    first: FirstDifference | None = None
    logged: list[int] = []
    code: list[Change] = []
    environment: list[Change] = []
    for node in plan.nodes:
        if any(done.equal is False for done in nodes):
            nodes.append(NodeVerdict(node.name, None, said="not made: what comes before it differs"))
            continue
        began = time.monotonic()
        made_now = _make(plan, node, fresh, made, say)
        found, first = _judge(plan, node, made_now, round(time.monotonic() - began, 1))
        nodes.append(found)
        code, environment = _records_differ(node, made_now)
        if made_now.artifact is None:
            logged = sorted(step for step in _recorded(plan.store, node, plan.wishes.steps) if step > 0)
    return Verdict(
        artifact=plan.target.name,
        equal=not any(node.equal is False for node in nodes),
        steps=(plan.wishes.steps or plan.all_steps) if nodes[-1].equal is not None else 0,
        of_steps=plan.all_steps,
        logged=len(logged),
        last_logged=max(logged, default=0),
        nodes=nodes,
        first_difference=first,
        code=code,
        environment=environment,
        notes=plan.notes,
        seconds=round(time.monotonic() - started, 1),
    )


def _require_room(plan: Plan, fresh: Store) -> None:
    try:
        require(plan.bytes - used_bytes(fresh.root), fresh.root, "the reproduction")
    except StorageError as error:
        told = str(error).replace("set GPTFLOW_STORE to another place", "name another place with --store")
        raise StorageError(told) from None


@dataclass(frozen=True)
class _Made:
    """What became of a node: an artifact, or of the first steps of a training only figures."""

    artifact: Artifact | None
    trained: Trained | None = None
    reused: bool = False


def _check_sources(plan: Plan, fresh: Store, say: Say, cached: bool) -> dict[str, _Made]:
    """Look at every source. Imported weights are made by that, and returned."""
    made = {}
    for node in plan.nodes:
        if node.kind == "corpus":
            say(f"looking at the source of {node.name}")
            if cached:
                take_downloads(plan.store, fresh, node.recipe)
            kept = not cached and has_downloads(plan.store, node.recipe)
            advice = "; `gptflow reproduce --cached` takes what the store kept" if kept else ""
            check_corpus_source(fresh, node.recipe, node.expected, node.recorded, advice)
        elif node.kind == "weights" and node.expected is not None:
            say(f"importing {node.name} again")
            artifact, reused = import_again(fresh, node.recipe, node.expected, node.recorded)
            made[node.name] = _Made(artifact, None, reused)
    return made


def _make(plan: Plan, node: Node, fresh: Store, made: dict[str, _Made], say: Say) -> _Made:
    """Make a node from those made before, and put it among them. What was there already is hashed again.

    ConfigError if the target itself was there; ArtifactError if what was there is damaged.
    """
    say(f"making {node.name} again")
    found = made.get(node.name) or _built(plan, node, fresh, made, say)
    made[node.name] = found
    if found.reused and found.artifact is not None:
        if node is plan.target:
            raise already_made(fresh.root, node.name)
        found.artifact.verify()
        say(f"{node.name} is reused from an earlier attempt; its files were hashed again")
    return found


def _built(plan: Plan, node: Node, fresh: Store, made: dict[str, _Made], say: Say) -> _Made:
    before = [artifact for name in node.needs if (artifact := made[name].artifact) is not None]
    if node.kind == "corpus":
        with progress("reading text") as meter:
            corpus, reused = build_corpus(fresh, node.recipe, progress=meter)
        return _Made(corpus, None, reused)
    if node.kind == "shards":
        with progress("tokenizing") as meter:
            shards, reused = build_shards(fresh, before[0], node.recipe, progress=meter)
        return _Made(shards, None, reused)
    assert node.recorded is not None  # or no plan would have been made
    wishes = plan.wishes
    if node is not plan.target:  # what the target starts from is trained to its end
        wishes = Wishes(threads=wishes.threads, precision=wishes.precision)
    init = before[1] if len(before) > 1 else None
    trained = train_again(fresh, node.recipe, before[0], init, machine_of(node.recorded), wishes, say)
    return _Made(trained.artifact, trained, trained.reused)


def _judge(plan: Plan, node: Node, found: _Made, seconds: float) -> tuple[NodeVerdict, FirstDifference | None]:
    """The node's verdict, and where a training's curve first differs."""
    expected, made, trained = node.expected, found.artifact, found.trained
    told: dict[str, Any] = {"name": node.name, "seconds": seconds, "reused": found.reused}
    if expected is not None:
        told |= {"recorded_fingerprint": expected.fingerprint, "recorded_digest": expected.digest}
    if made is None:  # the first steps of a training leave figures, and no bytes
        assert trained is not None
        first = _curves_differ(plan.store, node, trained, plan.wishes.steps)
        said = _with_attempts(found, f"{plan.wishes.steps:,} of {plan.all_steps:,} steps, by their figures")
        return NodeVerdict(equal=first is None, said=said, **told), first
    told |= {"fingerprint": made.fingerprint, "digest": made.digest}
    if expected is None:
        said = _with_attempts(found, "its record is gone; the shards made from it decide")
        return NodeVerdict(equal=None, said=said, **told), None
    equal = made.digest == expected.digest
    first = _curves_differ(plan.store, node, trained, 0) if trained is not None and not equal else None
    files = [] if equal or node.recorded is None else _files_differ(node.recorded, made)
    said = _with_attempts(found, _said(node, made, equal))
    if files and node is not plan.target and _only_more_or_fewer(node, made):
        said = f"{said}; the files that both recipes make are equal, so what is made from them decides"
        return NodeVerdict(equal=None, files=files, said=said, **told), None
    return NodeVerdict(equal=equal, files=files, said=said, **told), first


def _with_attempts(found: _Made, said: str) -> str:
    """With what an earlier attempt in the same store has to do with it."""
    went_on = found.trained is not None and found.trained.went_on
    earlier = "reused from an earlier attempt" if found.reused else "went on with an earlier attempt" if went_on else ""
    return "; ".join(part for part in (said, earlier) if part)


def _only_more_or_fewer(node: Node, made: Artifact) -> bool:
    """Whether another recipe made other files besides the same ones."""
    if node.recorded is None or node.recorded.request.recipe_version == made.request.recipe_version:
        return False
    was, now = _hashes(node.recorded), _hashes(made)
    return bool(was.keys() & now.keys()) and all(was[name] == now[name] for name in was.keys() & now.keys())


def _recorded(store: Store, node: Node, steps: int) -> Curve:
    """The recorded figures of the first `steps` steps, or of all (0)."""
    assert node.recorded is not None
    return _up_to(recorded_curve(store, node.recorded), steps)


def _up_to(curve: Curve, steps: int) -> Curve:
    return {step: figures for step, figures in curve.items() if not steps or step <= steps}


def _curves_differ(store: Store, node: Node, trained: Trained, steps: int) -> FirstDifference | None:
    """Where the recorded curve and the new one part, in the first `steps` steps, or in all."""
    return first_difference(_recorded(store, node, steps), _up_to(trained.curve, steps), whole=True)


def _files_differ(recorded: Artifact, made: Artifact) -> list[str]:
    was, now = _hashes(recorded), _hashes(made)
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))


def _hashes(artifact: Artifact) -> dict[str, str]:
    return {entry.name: entry.sha256 for entry in artifact.files}


def _said(node: Node, made: Artifact, equal: bool) -> str:
    """What was asked otherwise than then, and which documents came out otherwise."""
    if node.recorded is None:
        return "its record is gone; compared by digest alone"
    said = []
    asked = [{"recipe version": a.request.recipe_version, **a.request.config} for a in (node.recorded, made)]
    if node.recorded.fingerprint != made.fingerprint and (found := changes(*asked)):
        said.append("asked otherwise: " + ", ".join(f"{c.name} {c.a} → {c.b}" for c in found[:3]))
    if node.kind == "corpus" and not equal:
        try:
            more, fewer, moved = count_documents(node.recorded, made)
        except ArtifactError as error:
            return "; ".join([*said, str(error)])
        said.append(f"{more:,} documents more, {fewer:,} fewer, {moved:,} on the other side of the split")
    return "; ".join(said)


def _records_differ(node: Node, found: _Made) -> tuple[list[Change], list[Change]]:
    """(code, environment) of a node, recorded and now."""
    trained = found.trained
    if node.recorded is None:
        return [], []
    was = dict(node.recorded.provenance)
    if trained is not None:
        was["machine"] = node.recorded.summary.get("machine", {})
        return provenance_changes(was, {**trained.provenance, "machine": trained.machine})
    assert found.artifact is not None
    return provenance_changes(was, found.artifact.provenance)
