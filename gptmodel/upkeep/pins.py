"""Pins: small files in `<store>/.pins/` that keep an artifact, and all that it was made from, from being collected.

What is half built can be pinned too, by the name that it will have.
"""

from __future__ import annotations

import getpass
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from gptmodel.errors import ArtifactError
from gptmodel.store.artifacts import MANIFEST, Store, write_atomic
from gptmodel.store.space import storage_errors
from gptmodel.store.uses import no_collection

PINS, BUILDING = ".pins", ".building-"


def pin(store: Store, label: str, note: str = "") -> None:
    """Keep `kind/name` of this store, whole or half built. Pinned again it gets the new note.

    ArtifactError if it is not there any more: it may have been collected since somebody looked.
    """
    by = "unknown"
    with suppress(OSError, KeyError, ImportError):
        by = getpass.getuser()
    told = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "by": by, "note": note}
    kind, name = label.split("/")
    # In this order: what is published between the two looks is seen by the second.
    places = (store.root / kind / f"{BUILDING}{name}", store.root / kind / name / MANIFEST)
    with storage_errors("the pin", store.root), no_collection(store.root):
        if not any(place.exists() for place in places):
            raise ArtifactError(f"{label} was collected just now and is not pinned; run the step that makes it again")
        (store.root / PINS).mkdir(exist_ok=True)
        write_atomic(store.root / PINS / label.replace("/", "."), json.dumps(told) + "\n")


def unpin(store: Store, label: str) -> None:
    """Take a pin away. ArtifactError if there is none; the artifact need not be there any more."""
    with storage_errors("the pin", store.root):
        try:
            (store.root / PINS / label.replace("/", ".")).unlink()
        except FileNotFoundError:
            pinned = ", ".join(pins(store)) or "nothing"
            raise ArtifactError(f"{label} is not pinned; pinned: {pinned}") from None


def pins(store: Store) -> dict[str, dict[str, Any]]:
    """since, by and note of each pin by the label of what it keeps. A pin that cannot be read still keeps."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((store.root / PINS).glob("[!.]*")):
        told: Any = {}
        with suppress(OSError, ValueError):
            told = json.loads(path.read_text(encoding="utf-8"))
        found[path.name.replace(".", "/", 1)] = told if isinstance(told, dict) else {}
    return found
