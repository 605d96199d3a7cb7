"""What the command line prints: results for people and for machines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from gptmodel.config import DecodingConfig
from gptmodel.errors import TrackingError, first_line
from gptmodel.judging.units import TOLD, resampled_words
from gptmodel.store.artifacts import Artifact, open_store

if TYPE_CHECKING:
    from gptmodel.model import GPT

_FIGURES = {
    "corpus": ("documents", "train_documents", "validation_documents", "empty_dropped", "duplicates_dropped"),
    "shards": ("train_tokens", "validation_tokens", "shards", "documents_tokenized", "documents_reused"),
    "checkpoint": ("step", "tokens", "train_loss", "best_validation_loss", "best_validation_perplexity", "seconds"),
    "weights": ("n_params", "source", "revision", "dtype"),
    "evaluation": TOLD,
}


def as_plain(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """The artifacts as one JSON-ready mapping."""
    return {
        role: {
            "kind": artifact.kind,
            "path": str(artifact.path),
            "fingerprint": artifact.fingerprint,
            "digest": artifact.digest,
            "summary": artifact.summary,
        }
        for role, artifact in artifacts.items()
    }


def show(artifacts: dict[str, Artifact]) -> None:
    """Tables of figures, a sample, where everything is, and how to see the run."""
    console = Console(highlight=False, soft_wrap=True)
    for artifact in artifacts.values():
        table = Table("", "", show_header=False, box=None, title=f"[bold]{artifact.label}", title_justify="left")
        for name in _FIGURES.get(artifact.kind, ()):
            if name in artifact.summary:
                pair = artifact.summary.get("intervals", {}).get(name)
                bounds = f"  {_number(pair[0])} to {_number(pair[1])}" if pair else ""
                table.add_row(f"  {name.replace('_', ' ')}", _number(artifact.summary[name]) + bounds)
        if "resampling" in artifact.summary:
            table.add_row("", resampled_words(artifact.summary))
        table.add_row("  directory", str(artifact.path))
        console.print(table)
        if artifact.kind == "comparison":
            console.print(_comparison_table(artifact))
        if artifact.kind == "benchmark":
            console.print(_benchmark_table(artifact))
    for sample in [s for a in artifacts.values() if a.kind == "evaluation" for s in a.summary["samples"]][1:2]:
        console.print(f"\n[bold]A sample[/bold] ({sample['decoding']})")
        console.print(f"  [bold]{escape(sample['prompt'])}[/bold]{escape(sample['text'])}")
    if "model" in artifacts:
        console.print(f"\nLet it write:  .venv/bin/gptflow generate --model {artifacts['model'].label} 'My fellow'")
    console.print(_how_to_see())


def _comparison_table(artifact: Artifact) -> Table:
    told = artifact.summary
    title = f"{told['challenger']} against {told['champion']}\n{resampled_words({'resampling': told})}"
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))  # 80 columns hold it
    for name in ("  figure", "champion", "challenger", "difference", "interval", "P(better)"):
        table.add_column(name, justify="left" if name == "  figure" else "right", no_wrap=True)
    rows = {row["name"]: row for row in told["differences"]}
    for name, row in rows.items():
        twin = rows.get(name.removeprefix("plain_"), row)
        if twin is not row and all(twin[side] == row[side] for side in ("champion", "challenger")):
            continue  # windows did not overlap, so it is the same figure
        numbers = [_number(row[side]) for side in ("champion", "challenger", "difference")]
        bounds = f"{_number(row['low'])} to {_number(row['high'])}"
        table.add_row(f"  {name.replace('_', ' ')}", *numbers, bounds, f"{row['p_better']:.3f}")
    return table


def _benchmark_table(artifact: Artifact) -> Table:
    of = f", the first {limit:,} documents of each" if (limit := artifact.summary["limit"]) else ""
    table = Table(box=None, title=f"\n[bold]Tasks[/bold] ({artifact.summary['harness']}{of})", title_justify="left")
    table.add_column("  task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("std. error", justify="right")
    for row in artifact.summary["figures"]:
        error = "" if row["stderr"] is None else f"± {_number(row['stderr'])}"
        table.add_row(f"  {row['task']}", row["metric"], _number(row["value"]), error)
    return table


def _how_to_see() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        return f"See the run:   {uri}"
    return "See the run:   make up, or .venv/bin/mlflow ui"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sync(*, as_json: bool) -> None:
    """Bring MLflow up to date with the store and say what was sent. TrackingError if something could not be."""
    from tasks.tracking.syncing import sync_store

    found = []
    for outcome in sync_store(open_store()):
        found.append(outcome)
        if not as_json:
            points = f", {outcome.points:,} points" if outcome.points else ""
            print(f"{outcome.label}: {outcome.what}{points}" + (f" ({outcome.detail})" if outcome.detail else ""))
    events, trouble = _send_events()
    if as_json:
        told = {"outcomes": [asdict(outcome) for outcome in found], "lineage_events": events}
        print(json.dumps(told, ensure_ascii=False))
    else:
        if not found:
            print("nothing in the store that MLflow should know")
        if events:
            print(f"lineage events: {events:,} sent")
    if failed := [outcome for outcome in found if outcome.what == "failed"]:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "MLflow")
        raise TrackingError(f"{uri} did not take {failed[-1].label} ({failed[-1].detail}); run `gptflow sync` again")
    if trouble:
        raise TrackingError(f"the lineage events were not taken ({trouble}); run `gptflow sync` again")


def _send_events() -> tuple[int, str]:
    """How many lineage events were sent to where OpenLineage is configured to, and what went wrong."""
    from tasks.lineage.outbox import FOLDER, configured, deliver

    folder = open_store().root / FOLDER
    if not (configured() and folder.is_dir()) or os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return 0, ""
    try:
        return deliver(folder), ""
    except Exception as error:  # the transport is the library's, and so are its errors
        return 0, first_line(error)


def write(prompts: list[str], label: str, gpt: GPT, decoding: DecodingConfig, *, as_json: bool) -> None:
    """Print a model's continuations: one as it comes, several side by side until they end."""
    from gptmodel.writing import continue_texts, stream_texts

    if as_json:
        written = zip(prompts, continue_texts(gpt, prompts, decoding), strict=True)
        texts = [{"prompt": prompt, "text": text} for prompt, text in written]
        told = texts[0] if len(texts) == 1 else {"texts": texts}
        print(json.dumps({"model": label, **told}, ensure_ascii=False))
    elif len(prompts) == 1:
        sys.stdout.write(prompts[0])
        for _, piece in stream_texts(gpt, prompts, decoding):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    else:
        _write_several(prompts, stream_texts(gpt, prompts, decoding))


def _write_several(prompts: list[str], pieces: Iterator[tuple[int, str]]) -> None:
    texts = [""] * len(prompts)
    console = Console(highlight=False, soft_wrap=True)

    def shown() -> Group:
        rows = zip(prompts, texts, strict=True)
        return Group(*(f"[dim]{n}[/dim] [bold]{escape(p)}[/bold]{escape(t)}\n" for n, (p, t) in enumerate(rows, 1)))

    if not console.is_terminal:
        for index, piece in pieces:
            texts[index] += piece
    else:
        with Live(shown(), console=console, transient=True, refresh_per_second=8) as live:
            for index, piece in pieces:
                texts[index] += piece
                live.update(shown())
    console.print(shown())
