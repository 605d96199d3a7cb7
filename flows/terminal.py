"""What the command line prints: results for people and for machines."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptmodel.artifacts import Artifact, find_model, open_store
from gptmodel.config import DecodingConfig
from gptmodel.errors import TrackingError

_FIGURES = {
    "corpus": ("documents", "train_documents", "validation_documents", "empty_dropped", "duplicates_dropped"),
    "shards": ("train_tokens", "validation_tokens", "shards"),
    "checkpoint": ("step", "tokens", "train_loss", "best_validation_loss", "best_validation_perplexity", "seconds"),
    "weights": ("n_params", "source", "revision", "dtype"),
    "evaluation": ("loss", "perplexity", "bits_per_byte", "unigram_loss", "unigram_perplexity", "tokens"),
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
                table.add_row(f"  {name.replace('_', ' ')}", _number(artifact.summary[name]))
        table.add_row("  directory", str(artifact.path))
        console.print(table)
    for sample in [s for a in artifacts.values() if a.kind == "evaluation" for s in a.summary["samples"]][1:2]:
        console.print(f"\n[bold]A sample[/bold] ({sample['decoding']})")
        console.print(f"  [bold]{escape(sample['prompt'])}[/bold]{escape(sample['text'])}")
    if "model" in artifacts:
        console.print(f"\nLet it write:  .venv/bin/gptflow generate --model {artifacts['model'].label} 'My fellow'")
    console.print(_how_to_see())


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
    from tasks.syncing import sync_store

    found = []
    for outcome in sync_store(open_store()):
        found.append(outcome)
        if not as_json:
            points = f", {outcome.points:,} points" if outcome.points else ""
            print(f"{outcome.label}: {outcome.what}{points}" + (f" ({outcome.detail})" if outcome.detail else ""))
    if as_json:
        print(json.dumps({"outcomes": [asdict(outcome) for outcome in found]}, ensure_ascii=False))
    elif not found:
        print("nothing in the store that MLflow should know")
    if failed := [outcome for outcome in found if outcome.what == "failed"]:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "MLflow")
        raise TrackingError(f"{uri} did not take {failed[-1].label} ({failed[-1].detail}); run `gptflow sync` again")


def write(prompt: str, model: str, decoding: DecodingConfig, *, as_json: bool) -> None:
    """Load a model of the store and print its continuation, as it comes."""
    from gptmodel.generate import stream
    from gptmodel.tokenizer import gpt2
    from gptmodel.weights import load_model

    artifact = find_model(open_store(), model)
    gpt, tokenizer = load_model(artifact).eval(), gpt2()
    ids = tokenizer.encode(prompt).tolist()
    if as_json:
        text = tokenizer.decode(list(stream(gpt, ids, decoding=decoding)))
        print(json.dumps({"model": artifact.label, "prompt": prompt, "text": text}, ensure_ascii=False))
        return
    sys.stdout.write(prompt)
    pending = b""
    for token in stream(gpt, ids, decoding=decoding):
        pending += tokenizer.token_bytes(token)
        try:  # a character may be spread over several tokens
            text, pending = pending.decode(), b""
        except UnicodeDecodeError:
            continue
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write(pending.decode(errors="replace") + "\n")
