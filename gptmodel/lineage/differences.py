"""What differs between two things, to the bit: settings, provenance, documents, and loss curves beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_WHEN = frozenset({"started", "finished"})
_CODE = ("git", "code", "dirty", "patch", "lock", "recipe", "gptflow")
# Measured anew in each process, or the reason for what is compared anyway.
_OF_THE_HOUR = frozenset({"peak_flops", "peak_source", "choice"})
_BARS = "▁▂▃▄▅▆▇█"
Curve = dict[int, dict[str, float]]
"""Step to the figures of that step, by name."""


@dataclass(frozen=True)
class Change:
    """One name with its value on either side; None where a side does not have it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class FirstDifference:
    """The first step at which two curves are not the same to the bit, and one figure that shows it."""

    step: int
    metric: str
    a: float | None
    """None where the first curve has no such figure."""
    b: float | None
    a_hex: str
    b_hex: str


@dataclass(frozen=True)
class CurveRow:
    """Two curves at one step."""

    step: int
    train_a: float | None
    train_b: float | None
    validation_a: float | None
    validation_b: float | None


@dataclass(frozen=True)
class Document:
    """What is known of a document besides its id. A source of "" and 0 bytes are not known."""

    source: str
    n_bytes: int
    split: str


@dataclass(frozen=True)
class Listing:
    """Documents that differ: how many, their bytes, and the first of them as {id, source, bytes, split}."""

    documents: int
    bytes: int
    first: list[dict[str, Any]]


@dataclass(frozen=True)
class DocumentDifferences:
    """Documents by id, that is, by their text."""

    same: int
    added: Listing
    removed: Listing
    changed: int
    """Names of sources among both the added and the removed: there the text was changed."""
    moved: Listing
    """In both, on another side of the split; `split` is that of the second."""


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return found


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """The names whose values differ, at any depth, in order."""
    ours, theirs = flat(a), flat(b)
    names = sorted(ours.keys() | theirs.keys())
    return [
        Change(name, ours.get(name), theirs.get(name)) for name in names if not _same(ours.get(name), theirs.get(name))
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool((list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b))


def provenance_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[Change]]:
    """(code, environment): what two records of provenance or of a machine differ in, times and measurements aside.

    Every name that either side has is compared, so what is recorded one day needs no word here.
    """
    kept = [{name: v for name, v in flat(record).items() if _lasting(name)} for record in (a, b)]
    found = changes(*kept)
    code = [c for c in found if c.name.removeprefix("versions.").startswith(_CODE)]
    return code, [c for c in found if c not in code]


def _lasting(name: str) -> bool:
    return name not in _WHEN and name.rsplit(".", 1)[-1] not in _OF_THE_HOUR


def curve_of(lines: Iterable[Mapping[str, Any]]) -> Curve:
    """The lines of a log or of a `curve.jsonl` by step: training and validation have one each."""
    found: Curve = {}
    for line in lines:
        found.setdefault(line["step"], {}).update(line.get("metrics", {}))
    return found


def first_difference(a: Curve, b: Curve, *, whole: bool = False) -> FirstDifference | None:
    """The first step at which a loss differs; where none does, the first at which any figure does.

    Only figures that both have are compared, unless `whole`: then one that is missing is a difference too.
    """
    for wanted in ("/loss", ""):
        for step in sorted(a.keys() | b.keys() if whole else a.keys() & b.keys()):
            ours, theirs = a.get(step, {}), b.get(step, {})
            names = ours.keys() | theirs.keys() if whole else ours.keys() & theirs.keys()
            for name in sorted(name for name in names if name.endswith(wanted)):
                hexes = [_hex(side.get(name)) for side in (ours, theirs)]
                if hexes[0] != hexes[1]:
                    return FirstDifference(step, name, ours.get(name), theirs.get(name), *hexes)
    return None


def _hex(value: float | None) -> str:
    return "" if value is None else float(value).hex()


def beside(a: Curve, b: Curve, rows: int = 10) -> list[CurveRow]:
    """Both curves at some steps that both have, the first and the last among them: where both were validated, if they
    often were."""
    matching = sorted(a.keys() & b.keys())
    validated = [step for step in matching if "validation/loss" in a[step] and "validation/loss" in b[step]]
    steps = _evenly(validated if len(validated) > 3 else matching, rows)
    names = ("train/loss", "validation/loss")
    return [CurveRow(step, *(side[step].get(name) for name in names for side in (a, b))) for step in steps]


def _evenly(steps: list[int], rows: int) -> list[int]:
    if len(steps) <= rows:
        return steps
    return [steps[round(i * (len(steps) - 1) / (rows - 1))] for i in range(rows)]


def sparklines(a: Curve, b: Curve, width: int = 60, name: str = "train/loss") -> tuple[str, str]:
    """Both curves in a line of bars each, on one scale of steps and losses; a blank where a curve has no point."""
    points = [{step: m[name] for step, m in side.items() if math.isfinite(m.get(name, math.nan))} for side in (a, b)]
    steps = sorted(points[0].keys() | points[1].keys())
    if not steps:
        return "", ""
    values = [value for side in points for value in side.values()]
    low, span = min(values), max(values) - min(values)
    first, reach = steps[0], max(1, steps[-1] - steps[0] + 1)

    def line(side: dict[int, float]) -> str:
        cells: list[list[float]] = [[] for _ in range(min(width, reach))]
        for step, value in side.items():
            cells[(step - first) * len(cells) // reach].append(value)
        means = [sum(cell) / len(cell) if cell else None for cell in cells]
        top = len(_BARS) - 1
        return "".join(" " if m is None else _BARS[round((m - low) / span * top) if span else 0] for m in means)

    return line(points[0]), line(points[1])


def compare_documents(a: Mapping[str, Document], b: Mapping[str, Document], listed: int = 1_000) -> DocumentDifferences:
    """Which documents only one side has, and which stand on another side of the split. `listed` caps each listing."""
    added, removed = b.keys() - a.keys(), a.keys() - b.keys()
    both = a.keys() & b.keys()
    names = [{side[i].source for i in ids} - {""} for side, ids in ((a, removed), (b, added))]
    return DocumentDifferences(
        same=len(both),
        added=_listing(b, added, listed),
        removed=_listing(a, removed, listed),
        changed=len(names[0] & names[1]),
        moved=_listing(b, {i for i in both if a[i].split != b[i].split}, listed),
    )


def _listing(documents: Mapping[str, Document], ids: Iterable[str], listed: int) -> Listing:
    found = sorted((documents[i].source, i) for i in ids)
    first = [
        {"id": i, "source": source, "bytes": documents[i].n_bytes, "split": documents[i].split}
        for source, i in found[:listed]
    ]
    return Listing(len(found), sum(documents[i].n_bytes for _, i in found), first)
