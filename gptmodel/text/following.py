"""Addresses whose content changes: fetched when the server says that it has, and then known by its hash.

What came lies in `<cache>/<sha256>/<name>` like any download. `<cache>/.followed.json` holds for each address what its
server said of the version that we have (ETag, or the date of the last change) and the hash; the next look asks with
these (RFC 9110, 13.1), and a server that answers 304 sends nothing. A server that gives neither is asked for all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmodel.errors import NetworkError
from gptmodel.store.artifacts import fsync_path, sha256_file, write_atomic
from gptmodel.store.locks import exclusive
from gptmodel.text.download import download_if_changed

FOLLOWED = ".followed.json"
FOLLOWED_LOCK = ".followed.lock"
UNFINISHED = ".following-"  # what is being fetched by the holder of the lock


def newest(url: str, cache: Path, name: str, *, timeout: float, allow_private: bool) -> tuple[Path, str]:
    """(file, sha256) of what an address gives now. NetworkError and DataError as of a download."""
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / FOLLOWED_LOCK, "the list of followed addresses", wait=True):
        known = _read(cache)
        before = known.get(_key(url), {})
        there = cache / before.get("sha256", "-") / before.get("name", "-")
        told = {k: v for k, v in before.items() if k in ("etag", "last_modified")}
        validators = told if _is_whole(there, before) else {}
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=cache) as folder:
            part = Path(folder) / name
            said = download_if_changed(url, part, validators, timeout=timeout, allow_private=allow_private)
            if said is None:
                return there, before["sha256"]
            digest = sha256_file(part)
            target = cache / digest / name
            target.parent.mkdir(exist_ok=True)
            fsync_path(part)
            os.replace(part, target)
            fsync_path(target.parent)
        write_atomic(cache / FOLLOWED, json.dumps({**known, _key(url): {**said, "sha256": digest, "name": name}}))
        return target, digest


def newest_here(urls: Sequence[str], cache: Path) -> list[tuple[str, Path]]:
    """(name, path) of what was fetched last of these addresses, as far as it is here."""
    known = _read(cache)
    found = [known[_key(url)] for url in urls if _key(url) in known]
    places = [(each["name"], cache / each["sha256"] / each["name"]) for each in found]
    return [(name, path) for name, path in places if path.is_file()]


def _key(url: str) -> str:
    """Not the address itself, which may hold a token."""
    return hashlib.sha256(url.encode()).hexdigest()


def _is_whole(path: Path, known: dict[str, Any]) -> bool:
    with suppress(OSError):
        return bool(known) and sha256_file(path) == known["sha256"]
    return False


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((cache / FOLLOWED).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NetworkError(
            f"{cache / FOLLOWED} cannot be read ({error}); remove it, and all is fetched again"
        ) from None
    return found if isinstance(found, dict) else {}
