"""Downloads that arrive whole or not at all; what is pinned by sha256 arrives as promised.

What was received before a cut is kept beside the target and asked for no more. Every address on the way, each redirect
too, must be http(s), and public unless private ones are allowed. The name is looked up for that check and again by the
connection, so a name server that changes its answer in between is not caught; the sha256 is.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from gptmodel.errors import DataError, NetworkError
from gptmodel.progress import progress
from gptmodel.store.artifacts import fsync_path, sha256_file
from gptmodel.store.locks import exclusive
from gptmodel.store.space import explained, require
from gptmodel.text.addresses import check_address, shown

if TYPE_CHECKING:
    import httpx  # else where it is used: each training process imports this module, and fetches nothing

log = logging.getLogger(__name__)
_REDIRECTS = 5
_RESUMES = 3
_WAIT_AND_SEE = (408, 425, 429, 500, 502, 503, 504)


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    timeout: float = 60.0,
    allow_private: bool = False,
) -> Path:
    """The file at `target`, fetched if it is not there; its bytes have this sha256.

    Without a sha256 the server's own framing must say that all of it came, and the caller has to check what it is.

    NetworkError for what time may heal (with the server's Retry-After), DataError for what it will not: a missing
    file, other bytes than promised (they are deleted), an address that is not allowed. `timeout` is seconds without a
    byte. Of several processes that want the same target one fetches and the others wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.with_name(f".{target.name}.lock"), f"download of {target.name}", wait=True):
        if target.exists():
            if not sha256 or sha256_file(target) == sha256:
                return target
            log.warning("%s is not what it was; fetching it again", target.name)
            target.unlink()
        part = target.with_name(f".{target.name}.part")
        old = part.exists()
        whole = _fetch_all(url, part, timeout, allow_private)
        if old and sha256 and sha256_file(part) != sha256:
            log.info("%s: what an earlier attempt left does not fit; fetching all of it", shown(url))
            part.unlink()
            whole = _fetch_all(url, part, timeout, allow_private)
        if not sha256 and not whole:
            part.unlink()
            raise NetworkError(f"{shown(url)}: the server gave no length, so it may have been cut short; deleted")
        if sha256 and (found := sha256_file(part)) != sha256:
            part.unlink()
            message = f"{shown(url)} has sha256 {found}, expected {sha256}; refused and deleted"
            if not whole:
                raise NetworkError(f"{message}. The server gave no length, so it may have been cut short")
            raise DataError(f"{message}. Check the address and the expected sha256")
        fsync_path(part)
        os.replace(part, target)
        fsync_path(target.parent)
        return target


def download_if_changed(
    url: str,
    target: Path,
    validators: dict[str, str],
    *,
    timeout: float,
    allow_private: bool,
) -> dict[str, str] | None:
    """Fetch all of it into `target`; what the server says of this version (etag, last_modified) as far as it does.

    None, and nothing fetched, if the server says that it still has the version of `validators`. Errors as above; a body
    without a length may have been cut short, and is refused.
    """
    headers = {"Accept-Encoding": "identity"}
    if "etag" in validators:
        headers["If-None-Match"] = validators["etag"]
    elif "last_modified" in validators:
        headers["If-Modified-Since"] = validators["last_modified"]
    with _open(url, headers, timeout, allow_private) as response:
        if response.status_code == 304:
            return None
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else 0
        require(total, target.parent, f"the download of {shown(url)}")
        have = _receive(response, target, 0, total, shown(url))
        if not length and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            raise NetworkError(
                f"{shown(url)}: the server gave no length, so it may have been cut short; run the same again"
            )
        if total and have != total:
            raise NetworkError(f"{shown(url)}: {have:,} of {total:,} bytes came; run the same again")
        said = {"etag": response.headers.get("ETag", ""), "last_modified": response.headers.get("Last-Modified", "")}
    return {name: value for name, value in said.items() if value}


def _fetch_all(url: str, part: Path, timeout: float, allow_private: bool) -> bool:
    """Fetch into `part`, going on after a cut. True if the server's own framing says that it is whole."""
    for attempt in range(_RESUMES + 1):
        before = _size(part)
        try:
            return _fetch(url, part, timeout, allow_private)
        except NetworkError as error:
            # Going on at once pays only where bytes arrive; a server that refuses is left to the caller's patience.
            if attempt == _RESUMES or error.retry_after is not None or _size(part) <= before:
                raise
            log.info("%s; going on at byte %d", error, _size(part))
    raise AssertionError("unreachable")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, timeout: float, allow_private: bool) -> bool:
    have = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with _open(url, headers, timeout, allow_private) as response:
        if response.status_code == 416 and have:  # nothing after what we have
            return _is_all(response, part, have, shown(url))
        if response.status_code == 206 and have:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink()
                raise DataError(
                    f"{shown(url)}: the server sent another part of the file than was asked for; deleted, run the "
                    "same again"
                )
        else:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else 0
        framed = bool(length) or "chunked" in response.headers.get("Transfer-Encoding", "")
        require(total - have, part.parent, f"the download of {shown(url)}")
        have = _receive(response, part, have, total, shown(url))
    if total and have != total:
        raise NetworkError(f"{shown(url)}: {have:,} of {total:,} bytes came; run the same again")
    return framed


def _is_all(response: httpx.Response, part: Path, have: int, name: str) -> bool:
    """Whether the server says that the file is as long as what we have; what is longer is of another version."""
    length: str = response.headers.get("Content-Range", "").removeprefix("bytes */")
    if length.isdigit() and int(length) != have:
        part.unlink()
        raise NetworkError(
            f"{name}: what came earlier is not of this file ({have:,} bytes of {length}); deleted, run the same again"
        )
    return length.isdigit()


def _receive(response: httpx.Response, part: Path, have: int, total: int, name: str) -> int:
    """Append the body to the `have` bytes of `part`; how many bytes it holds then."""
    import httpx

    try:
        with part.open("ab" if have else "wb") as file, progress(f"download of {name}", total, "bytes") as meter:
            meter.go_on_from(have)
            for chunk in response.iter_raw():
                file.write(chunk)
                have += len(chunk)
                meter(have)
    except httpx.HTTPError as error:
        raise NetworkError(
            f"{name}: cut off after {have:,} bytes ({type(error).__name__}); run the same again, it goes on from there"
        ) from None
    except OSError as error:
        told = explained(error, f"the download of {name}", part.parent, total)
        raise told or DataError(
            f"{name}: cannot write {part}: {error.strerror}; is GPTFLOW_STORE a place that may be written to?"
        ) from None
    return have


@contextmanager
def _open(url: str, headers: dict[str, str], timeout: float, allow_private: bool) -> Iterator[httpx.Response]:
    """The answer behind all redirects, each hop checked."""
    import httpx

    asked = shown(url)
    with httpx.Client(timeout=timeout, follow_redirects=False) as client:
        for hop in range(_REDIRECTS + 1):
            check_address(url, asked if hop else "", allow_private)
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if not response.has_redirect_location:
                        _check_status(response, asked)
                        yield response
                        return
                    url = urljoin(url, response.headers["Location"])
            except (httpx.InvalidURL, ValueError) as error:
                raise DataError(f"{asked}: not a URL ({error}); check the address") from None
            except httpx.TransportError as error:
                raise NetworkError(
                    f"{asked}: no answer ({type(error).__name__}: {error}); is the network up?"
                ) from None
    raise DataError(f"{asked}: more than {_REDIRECTS} redirects; check the address")


def _check_status(response: httpx.Response, name: str) -> None:
    code = response.status_code
    asked = response.request.headers
    if code in (200, 206) or (code == 416 and "Range" in asked):
        return
    if code == 304 and ("If-None-Match" in asked or "If-Modified-Since" in asked):
        return
    message = f"{name}: the server answered {code} {response.reason_phrase}"
    if code in _WAIT_AND_SEE:
        raise NetworkError(f"{message}; try again later", retry_after(response.headers.get("Retry-After", "")))
    raise DataError(f"{message}; check the address")


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date; None for anything else."""
    if value.isdigit():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def content_digest(names_and_hashes: list[tuple[str, str]]) -> str:
    """Hex sha256 over sorted `sha256 name` lines: what a set of files holds."""
    return hashlib.sha256(
        "\n".join(sorted(f"{digest} {name}" for name, digest in names_and_hashes)).encode()
    ).hexdigest()
