"""What a store holds, what of it is still wanted, and taking away the rest.

Wanted are pinned artifacts, models that the registry or a ledger of champions names, what was used lately, rating
rounds whose time is not up, and what a living run holds; with each of them all that it was made from; of every model
that is kept its evaluations and people's ratings; and comparisons and scaling laws of evaluations that are all kept (a
law that a plan went by counts as used). What is half built is asked for by the name that it will have: it goes when
nothing in it was written lately, nobody pinned it, nobody is at it, and, for a training, MLflow does not know its run
as one that may go on. The rest goes: products before what they were made from, each by one rename into `.trash-…` and
then file by file, so that a kill leaves no half artifact and none without its inputs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gptmodel.errors import ArtifactError
from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS, LAW, MODELS
from gptmodel.pretraining.step import RUNS
from gptmodel.rating.journal import rounds_open
from gptmodel.reproduction.freshstore import ROOM
from gptmodel.retraining.ledger import needed_by_ledgers
from gptmodel.store.artifacts import MANIFEST, REQUEST_FILE, Store
from gptmodel.store.manifests import NAME_CHARS, SCRATCH, Ref
from gptmodel.store.uses import in_use, is_held
from gptmodel.text.corpus import DOWNLOADS, SOURCES
from gptmodel.text.following import FOLLOWED_LOCK, UNFINISHED
from gptmodel.upkeep.nodes import Node, nodes_of
from gptmodel.upkeep.pins import BUILDING, pins
from gptmodel.upkeep.records import spent_events, unnamed_provenance
from gptmodel.upkeep.sizes import mtime, newest, tree_bytes

ROUND = "rating-round"
TRASH, ASIDE = ".trash-", ".without-manifest-"
FRESH_LOCK = ".lock"  # in a temporary store of `reproduction.freshstore`; one that was kept on purpose has none
_DAY = 86_400.0


@dataclass(frozen=True)
class Rules:
    """What is kept besides what is pinned, registered or held."""

    keep_days: float = 7.0
    """Keep all that was made or reused in the last so many days; 0 keeps nothing for its age."""
    keep_newest: int = 1
    """Keep the newest so many models."""
    events_to_send: bool = False
    """Whether lineage events that were never sent are still to be."""


@dataclass(frozen=True)
class Item:
    """Something in the store that can be taken away whole."""

    path: Path
    what: str
    """artifact, building, set aside, reproduction, trash, download or record."""
    label: str
    bytes: int
    used: float
    """Seconds since 1970 when it was made or last reused."""
    inputs: tuple[str, ...] = ()
    """Labels of the artifacts that it was made from."""
    log: Path | None = None
    """The log of a model's run (of a law's: its lock), which goes with it: `gptflow sync` would take it for a run that
    failed."""


@dataclass
class Plan:
    """What goes, in the order in which it goes, and why the artifacts that stay do."""

    doomed: list[Item] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def plan(store: Store, rules: Rules, wanted: Mapping[str, str], *, clear: bool = False) -> Plan:
    """Sort the store into kept and doomed. Changes nothing, but for dead runs' entries in `.uses` if `clear`.

    `wanted` tells why a model, whole or half trained, is wanted, by its name (the first 16 digits of its fingerprint).
    ArtifactError if a
    manifest is damaged: what hangs on it cannot be told then.
    """
    # In this order: a run that ends meanwhile is seen as one that holds its inputs, or by what it published.
    held, now = in_use(store.root, clear=clear), time.time()
    buildings = list(_buildings(store))
    nodes = sound_nodes(store)
    by_label = {node.label: node for node in nodes}
    found = Plan()
    _keep(found, by_label, _roots(store, nodes, rules, wanted, held, now))
    pinned, before = pins(store), now - rules.keep_days * _DAY
    for item in buildings:
        if _is_live(store, item, held):
            why, use = "a run is at it", f"{item.label} is made from it"
        elif why := "young" if item.used >= before else _wanted_whole(item, pinned, wanted):
            use = f"{item.label} may go on"
        else:
            continue
        _keep(found, by_label, [(item.label, why), *((label, use) for label in item.inputs)])
    for node in nodes:  # a kept model's judgements, with the shards and texts that they were made on
        if node.path.parent.name in (*JUDGEMENTS, ROUND):
            judged = [ref.label for ref in _refs(node) if ref.kind in MODELS and ref.label in found.kept]
            _keep(found, by_label, [(node.label, f"judges {label}") for label in judged[:1]])
    for node in nodes:
        # Neither keeps a model alive: else each champion would keep the one that it was once measured against.
        refs = _refs(node) if node.path.parent.name in (COMPARISON, LAW) else ()
        if refs and all(ref.label in found.kept for ref in refs):
            _keep(found, by_label, [(node.label, f"judges {refs[-1].label}")])
    found.doomed = [_item(store, node) for node in reversed(nodes) if node.label not in found.kept]
    found.doomed += [item for item in buildings if item.label not in found.kept]
    found.doomed += _leftovers(store, before)
    found.doomed += [i for i in reproductions(store) if i.used < before and _is_dropped(i)]
    needed = held | set(_needed_downloads(nodes, found.kept))
    found.doomed += [i for i in _downloads(store) if _is_idle(i, needed, before)]
    found.doomed += [i for i in _unfinished_downloads(store) if i.used < before]
    if not held:  # a run that is at work names its code when it ends
        found.doomed += [i for i in _records(store, nodes, found.kept, rules) if i.used < before]
    return found


def sound_nodes(store: Store) -> list[Node]:
    """All artifacts of a store, origins first. ArtifactError at a manifest that is damaged or away from its place."""
    nodes = [node for node in nodes_of(store, store.directories()) if node.problem != "is missing"]
    for node in nodes:
        wrong = node.problem
        if node.manifest is not None:
            place = (node.manifest.request.kind, node.manifest.request.fingerprint[:NAME_CHARS])
            wrong = ", ".join(what for what, _, _ in node.manifest.disagreements())
            wrong = wrong or ("" if place == (node.path.parent.name, node.path.name) else "it is another artifact's")
        if wrong:
            raise ArtifactError(
                f"{node.path / MANIFEST} is damaged ({wrong}), so nobody can tell what hangs on it; see "
                f"`gptflow verify {node.label}`, and put it right or remove {node.path} first"
            )
    return nodes


def _refs(node: Node) -> tuple[Ref, ...]:
    return node.manifest.request.inputs if node.manifest else ()


def _roots(
    store: Store, nodes: list[Node], rules: Rules, wanted: Mapping[str, str], held: set[str], now: float
) -> Iterator[tuple[str, str]]:
    for label in pins(store):
        yield label, "pinned"
    yield from needed_by_ledgers(store).items()
    models = [node for node in nodes if node.path.parent.name in MODELS]
    for node in models:
        if node.path.name in wanted:
            yield node.label, wanted[node.path.name]
    for node in nodes:
        if (log := _log_of(store, node.label)) is not None and any(is_held(lock) for lock in log.glob("*.lock")):
            yield node.label, "MLflow is being told of it"
    for label in sorted(held):
        yield label, "a run uses it"
    for name in sorted(rounds_open(store)):
        yield f"{ROUND}/{name}", "raters are at it"
    by_age = sorted(models, key=lambda n: str(n.artifact.provenance.get("finished", "")), reverse=True)
    for node in by_age[: rules.keep_newest]:
        yield node.label, "one of the newest models"
    for node in nodes:
        days = (now - mtime(node.path)) / _DAY
        if days < rules.keep_days:
            yield node.label, f"used {max(days, 0.0):.1f} days ago"


def _keep(found: Plan, by_label: dict[str, Node], roots: Iterable[tuple[str, str]]) -> None:
    """Note the reason of each root and, for all that it was made from, that it is needed."""
    open_ = list(roots)
    while open_:
        label, why = open_.pop(0)
        if label in found.kept:
            continue
        found.kept[label] = why
        if (node := by_label.get(label)) is not None:
            open_ += [(ref.label, f"{label} was made from it") for ref in _refs(node) if ref.kind != "source"]


def _item(store: Store, node: Node) -> Item:
    inputs = tuple(ref.label for ref in _refs(node) if ref.kind != "source")
    log = _log_of(store, node.label)
    size = tree_bytes(node.path) + (tree_bytes(log) if log else 0)
    return Item(node.path, "artifact", node.label, size, mtime(node.path), inputs, log)


def _log_of(store: Store, label: str) -> Path | None:
    kind, name = label.split("/")
    path = store.root / RUNS / name.removeprefix(BUILDING)
    return path if kind in (*MODELS, LAW) and path.is_dir() else None


def _buildings(store: Store) -> Iterator[Item]:
    for path in sorted(store.root.glob(f"[!.]*/{BUILDING}*")):
        label = f"{path.parent.name}/{path.name}"
        inputs, log = tuple(_inputs_of_building(store, path)), _log_of(store, label)
        if (path.parent / path.name.removeprefix(BUILDING) / MANIFEST).exists():
            log = None  # it is that of the whole one
        size = tree_bytes(path) + (tree_bytes(log) if log else 0)
        yield Item(path, "building", label, size, newest(path), inputs, log)


def _inputs_of_building(store: Store, path: Path) -> Iterator[str]:
    """From what a half-built artifact is being made: its own note, or the job of a training of an older version."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        asked = json.loads((path / SCRATCH / REQUEST_FILE).read_text(encoding="utf-8"))
        yield from (Ref(**ref).label for ref in asked["inputs"] if ref["kind"] != "source")
        return
    with suppress(OSError, ValueError, TypeError, KeyError):
        log = store.root / RUNS / path.name.removeprefix(BUILDING)
        job = json.loads((log / "job.json").read_text(encoding="utf-8"))
        yield from ("/".join(Path(job[name]).parts[-2:]) for name in ("shards", "init_from") if job[name])


def _wanted_whole(item: Item, pinned: Iterable[str], wanted: Mapping[str, str]) -> str:
    """Why what is half built must stay; empty where it need not, as when the whole one is there already."""
    kind, name = item.path.parent.name, item.path.name.removeprefix(BUILDING)
    if (item.path.parent / name / MANIFEST).exists():
        return ""
    return "pinned" if f"{kind}/{name}" in pinned else wanted.get(name, "") if kind in MODELS else ""


def _is_live(store: Store, item: Item, held: set[str]) -> bool:
    lock = item.path.with_name(f".{item.path.name.removeprefix(BUILDING)}.lock")
    return item.label in held or is_held(lock) or is_held(item.path / SCRATCH / "worker.lock")


def _leftovers(store: Store, before: float) -> Iterator[Item]:
    """What earlier collections did not finish, and directories that lost their manifest."""
    places = (store.root, *(p for p in sorted(store.root.glob("*")) if p.is_dir() and not p.is_symlink()))
    for place in places:
        for path in sorted(place.glob(f"{TRASH}*")):
            yield Item(path, "trash", path.relative_to(store.root).as_posix(), tree_bytes(path), 0.0)
        for path in sorted(place.glob(f"{ASIDE}*")):
            if (used := mtime(path)) < before:
                label = path.relative_to(store.root).as_posix()
                yield Item(path, "set aside", label, tree_bytes(path), used)


def reproductions(store: Store) -> Iterator[Item]:
    """The temporary stores of reproductions: of living ones, of killed ones, and those that were kept on purpose."""
    for path in sorted((store.root / ROOM).glob("[!.]*")):
        yield Item(path, "reproduction", f"{ROOM}/{path.name}", tree_bytes(path), newest(path))


def _is_dropped(item: Item) -> bool:
    """Whether its run was killed: one that lives holds the lock, and one that kept its store took the lock away."""
    return (item.path / FRESH_LOCK).exists() and not is_held(item.path / FRESH_LOCK)


def _downloads(store: Store) -> Iterator[Item]:
    for path in sorted((store.root / DOWNLOADS).glob("[!.]*")):
        yield Item(path, "download", f"{DOWNLOADS}/{path.name}", tree_bytes(path), newest(path))


def _unfinished_downloads(store: Store) -> Iterator[Item]:
    """What killed runs had fetched of addresses that they followed; nothing while a living one is at it."""
    cache = store.root / DOWNLOADS
    for path in [] if is_held(cache / FOLLOWED_LOCK) else sorted(cache.glob(f"{UNFINISHED}*")):
        yield Item(path, "download", f"{DOWNLOADS}/{path.name}", tree_bytes(path), newest(path))


def _records(store: Store, nodes: list[Node], kept: Mapping[str, str], rules: Rules) -> Iterator[Item]:
    """What is kept beside the artifacts and named by none: see `gptmodel.upkeep.records`."""
    for path in (*unnamed_provenance(store, nodes), *spent_events(store, kept, to_send=rules.events_to_send)):
        yield Item(path, "record", path.relative_to(store.root).as_posix(), tree_bytes(path), mtime(path))


def _is_idle(item: Item, needed: set[str], before: float) -> bool:
    by_name = {f"{DOWNLOADS}/{path.name}" for path in item.path.glob("[!.]*")}  # of corpora without a list of files
    locked = any(is_held(lock) for lock in item.path.glob(".*.lock"))
    return not locked and item.used < before and item.label not in needed and not by_name & needed


def _needed_downloads(nodes: list[Node], kept: Mapping[str, str]) -> Iterator[str]:
    """`.downloads/…` of the files that kept corpora and weights came from; by name where no hash was recorded."""
    for node in nodes:
        if node.label not in kept or node.manifest is None:
            continue
        if (node.path / SOURCES).is_file():
            with suppress(ValueError, OSError):
                lines = (node.path / SOURCES).read_text(encoding="utf-8").split("\n")
                yield from (f"{DOWNLOADS}/{json.loads(line).get('sha256', '')}" for line in lines if line)
            continue
        source = node.manifest.request.config.get("source")
        if isinstance(source, dict) and isinstance(source.get("paths"), list):
            yield from (f"{DOWNLOADS}/{name}" for name in source["paths"])
        elif isinstance(source, str):  # the address of weights
            yield f"{DOWNLOADS}/{hashlib.sha256(source.encode()).hexdigest()[:NAME_CHARS]}"
