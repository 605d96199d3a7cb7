"""What `gptflow reproduce` and `gptflow diff` print for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptmodel.lineage.differences import Change, DocumentDifferences, Listing, sparklines
from gptmodel.reproduction.chain import Plan
from gptmodel.reproduction.comparing import Comparison
from gptmodel.reproduction.sides import Side
from gptmodel.reproduction.verdicts import NodeVerdict, Verdict
from gptmodel.words import duration, size

LISTED = 10
_VALUE_CHARS = 40
_HASH_CHARS = 12
_MARKS = {True: "[green]✓[/green]", False: "[red]≠[/red]", None: "·"}


def show_cost(plan: Plan) -> None:
    """On standard error: what is going to be made, how long it took then, and what this machine lacks."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    kinds = ", ".join(node.name for node in plan.nodes)
    steps = f" ({plan.wishes.steps:,} of {plan.all_steps:,} steps)" if plan.wishes.steps else ""
    console.print(f"to be made again: {kinds}{steps}")
    console.print(f"it took {duration(plan.seconds)} then, and needs about {size(plan.bytes)} on disk")
    for note in plan.notes:
        console.print(f"note: {escape(note)}")


def show_verdict(verdict: Verdict, kept: Path | None) -> None:
    """The nodes, the verdict in words, and what differs in what it was made with."""
    console = _console()
    table = Table("", "node", "recorded", "now", box=None, header_style="dim")
    for node in verdict.nodes:
        table.add_row(_MARKS[node.equal], node.name, _digest(node.recorded_digest), _digest(node.digest))
    console.print(table)
    for node in verdict.nodes:
        if about := _about(node):
            console.print(f"   {node.name}: {about}")
    console.print(f"\n[bold]{escape(verdict.words)}[/bold]  ({duration(verdict.seconds)})")
    title = "Made with" if verdict.equal else "What differs beside it"
    _changes(console, f"{title} (recorded → now)", [*verdict.code, *verdict.environment])
    if not verdict.equal and not verdict.code and not verdict.environment:
        console.print("Nothing that is recorded of code, versions and machine differs.")
    if kept:
        console.print(f"Kept in {kept}")


def _about(node: NodeVerdict) -> str:
    files = f"other bytes: {', '.join(node.files)}" if node.files else ""
    return escape("; ".join(part for part in (files, node.said) if part))


def _digest(digest: str) -> str:
    return digest[:_HASH_CHARS] or "–"


def as_json_text(found: Comparison) -> str:
    return json.dumps(asdict(found), ensure_ascii=False, default=str)


def show_comparison(found: Comparison, a: Side, b: Side) -> None:
    """All that differs, section by section; a section without a difference is one line."""
    console = _console()
    console.print(f"[bold]a[/bold] {found.a}  {_digest(a.digest)}\n[bold]b[/bold] {found.b}  {_digest(b.digest)}")
    for note in found.notes:
        console.print(f"note: {escape(note)}")
    _show_data(console, found)
    _changes(console, "Settings", found.config, none="Settings: the same")
    recorded = bool(a.provenance and b.provenance)
    nothing = "the same" if recorded else "not recorded of both"
    _changes(console, "Code", found.code, none=f"Code: {nothing}")
    _changes(console, "Environment", found.environment, none=f"Environment: {nothing}")
    _show_results(console, found.results)
    _show_curves(console, found, a, b)
    console.print("\n[bold]The same bytes.[/bold]" if found.same else "\n[bold]They differ.[/bold]")


def _show_data(console: Console, found: Comparison) -> None:
    _changes(console, "Content digests", found.digests, none="Content digests: the same")
    if (documents := found.documents) is None:
        return
    console.print(f"\n[bold]Documents[/bold]  {documents.same:,} in both" + _changed(documents))
    for sign, what, listing in (
        ("+", "only in b", documents.added),
        ("-", "only in a", documents.removed),
        ("~", "on another side of the split", documents.moved),
    ):
        if listing.documents:
            console.print(f"  {listing.documents:,} {what}, {listing.bytes:,} bytes")
            _list(console, sign, listing)


def _changed(documents: DocumentDifferences) -> str:
    return f"; {documents.changed:,} sources have other text under the same name" if documents.changed else ""


def _list(console: Console, sign: str, listing: Listing) -> None:
    for row in listing.first[:LISTED]:
        console.print(f"    {sign} {row['id'][:12]}  {escape(row['source'])}  {row['bytes']:,} bytes, {row['split']}")
    if (more := listing.documents - LISTED) > 0:
        console.print(f"      and {more:,} more (--json lists the first 1,000)")


def _show_results(console: Console, results: Iterable[Change]) -> None:
    table = Table("", "a", "b", "b - a", box=None, header_style="dim")
    for change in results:
        table.add_row(f"  {change.name}", _value(change.a), _value(change.b), _minus(change))
    if table.row_count:
        console.print("\n[bold]Figures[/bold]")
        console.print(table)


def _minus(change: Change) -> str:
    both = [v for v in (change.a, change.b) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(both) < 2 or both[0] == both[1]:
        return ""
    return f"{both[1] - both[0]:+,}" if all(isinstance(v, int) for v in both) else f"{both[1] - both[0]:+,.6g}"


def _show_curves(console: Console, found: Comparison, a: Side, b: Side) -> None:
    if not found.curves:
        return
    console.print("\n[bold]Loss[/bold]")
    table = Table("step", "train a", "train b", "validation a", "validation b", box=None, header_style="dim")
    for row in found.curves:
        cells = (row.train_a, row.train_b, row.validation_a, row.validation_b)
        table.add_row(f"{row.step:,}", *("" if cell is None else f"{cell:.6f}" for cell in cells))
    console.print(table)
    lines = sparklines(a.curve, b.curve)
    console.print(f"  a {lines[0]}\n  b {lines[1]}")
    if (first := found.first_difference) is None:
        console.print("  the same to the bit at every step that both have")
    else:
        console.print(f"  first differs at step {first.step:,}: {first.metric} {first.a!r} and {first.b!r}")


def _changes(console: Console, title: str, found: list[Change], none: str = "") -> None:
    if not found:
        if none:
            console.print(none)
        return
    console.print(f"\n[bold]{title}[/bold]")
    table = Table("", "", "", box=None, show_header=False)
    for column in table.columns[:2]:
        column.no_wrap = True
    for change in found:
        table.add_row(f"  {change.name}", _value(change.a), f"→ {_value(change.b)}")
    console.print(table)


def _value(value: Any) -> str:
    """A value in a cell: figures in their usual form, and long ones cut, with their length."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    if re.fullmatch(r"[0-9a-f]{32,64}", text):
        return text[:_HASH_CHARS]
    return escape(text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}… ({len(text):,} characters)")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
