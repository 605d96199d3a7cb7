"""What a store keeps beside its artifacts, and what of it nobody needs any more.

`.provenance/` holds changes of the code and lists of packages, by hash: they stay while a manifest, or the log of a
training, names them. `.lineage/` holds the events of the steps, a file for each flow run: it stays while it is to be
sent, or while one of its runs goes on, and as long as something is there that was made in it. A run that only reused
made nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmodel.pretraining.step import RUNS
from gptmodel.store.artifacts import Store
from gptmodel.store.provenance import FOLDER as PROVENANCE
from gptmodel.upkeep.nodes import Node

EVENTS = ".lineage"
OPEN = ".open-"  # the mark of a step that goes on, in the folder of events


def sent_note(file: Path) -> Path:
    """Where it stands how many bytes of an event file were sent."""
    return file.with_name(f".{file.name}.sent")


def unnamed_provenance(store: Store, nodes: Iterable[Node]) -> Iterator[Path]:
    """Patches and lists that no artifact and no training of the store names."""
    told = [node.manifest.provenance for node in nodes if node.manifest is not None]
    for job in (store.root / RUNS).glob("*/job.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            told.append(json.loads(job.read_text(encoding="utf-8"))["provenance"])
    named = {name for each in told for name in _names(each)}
    for path in sorted((store.root / PROVENANCE).glob("[!.]*")):
        if path.name not in named:
            yield path


def _names(told: Any) -> Iterator[str]:
    """File names of what a record of provenance points to."""
    if isinstance(told, dict):
        patch = told.get("code_patch")
        yield f"{patch.get('sha256')}.patch" if isinstance(patch, dict) else ""
        yield f"{told.get('packages_digest')}.packages"


def spent_events(store: Store, kept: Collection[str], *, to_send: bool) -> Iterator[Path]:
    """Event files in which nothing was made that is kept, by label; `to_send`: and that nobody is still to be told."""
    folder = store.root / EVENTS
    going_on = set(_going_on(folder))
    for path in sorted(folder.glob("[!.]*.jsonl")):
        if path.name not in going_on and not _waits(path, to_send=to_send) and not _made(path) & set(kept):
            yield path


def _going_on(folder: Path) -> Iterator[str]:
    for mark in folder.glob(f"{OPEN}*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            yield str(json.loads(mark.read_text(encoding="utf-8"))["file"])


def _waits(file: Path, *, to_send: bool) -> bool:
    note = sent_note(file)
    with suppress(OSError, ValueError):
        return int(note.read_text()) < file.stat().st_size
    return to_send or note.exists()


def _made(file: Path) -> set[str]:
    """`kind/name` of each artifact that a step of this file made."""
    found: set[str] = set()
    with suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                told = json.loads(line)
                if told["eventType"] == "COMPLETE" and not told["run"]["facets"]["gptflow_step"].get("reused"):
                    found |= {_label(output["name"]) for output in told["outputs"]}
    return found


def _label(name: str) -> str:
    """A dataset is named `kind/fingerprint`, and an artifact lies under the first digits of it."""
    match = re.fullmatch(r"([a-z-]+)/([0-9a-f]{16})[0-9a-f]*", name)
    return f"{match[1]}/{match[2]}" if match else ""
