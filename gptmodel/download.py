"""Pinned downloads: a file of known sha256 arrives whole, or not at all.

What was received before a cut is kept beside the target and asked for no more. Every address on the way, each redirect
too, must be http(s), and public unless private ones are allowed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from gptmodel.artifacts import fsync_path, sha256_file
from gptmodel.errors import DataError, NetworkError

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
_REDIRECTS = 5
_RESUMES = 3
_WAIT_AND_SEE = (408, 425, 429, 500, 502, 503, 504)


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    timeout: float = 60.0,
    allow_private: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file at `target`, fetched if it is not there; its bytes have this sha256.

    NetworkError for what time may heal (with the server's Retry-After), DataError for what it will not: a missing
    file, other bytes than promised (they are deleted), an address that is not allowed. `timeout` is seconds without a
    byte.
    """
    if target.exists():
        if sha256_file(target) == sha256:
            return target
        log.warning("%s is not what it was; fetching it again", target.name)
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    for attempt in range(_RESUMES + 1):
        try:
            _fetch(url, part, timeout, allow_private, progress)
            break
        except NetworkError as error:
            # Going on at once pays only where bytes arrive; a server that refuses is left to the caller's patience.
            if attempt == _RESUMES or error.retry_after is not None or not part.exists():
                raise
            log.info("%s; going on at byte %d", error, part.stat().st_size)
    if (found := sha256_file(part)) != sha256:
        part.unlink()
        raise DataError(f"{url} has sha256 {found}, expected {sha256}; refused and deleted. Check the source")
    fsync_path(part)
    os.replace(part, target)
    fsync_path(target.parent)
    return target


def _fetch(url: str, part: Path, timeout: float, allow_private: bool, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with _open(url, headers, timeout, allow_private) as response:
        if response.status_code == 416:  # nothing after what we have
            return
        if response.status_code != 206:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else 0
        with part.open("ab" if have else "wb") as file:
            try:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    have += len(chunk)
                    if progress:
                        progress(have, total, "bytes")
            except httpx.HTTPError as error:
                raise NetworkError(f"{url}: cut off after {have:,} bytes ({type(error).__name__})") from None
    if total and have != total:
        raise NetworkError(f"{url}: {have:,} of {total:,} bytes came")


@contextmanager
def _open(url: str, headers: dict[str, str], timeout: float, allow_private: bool) -> Iterator[httpx.Response]:
    """The answer behind all redirects, each hop checked."""
    asked = url
    with httpx.Client(timeout=timeout, follow_redirects=False) as client:
        for _ in range(_REDIRECTS + 1):
            _check_address(url, asked, allow_private)
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if not response.has_redirect_location:
                        _check_status(response, asked)
                        yield response
                        return
                    url = urljoin(url, response.headers["Location"])
            except httpx.InvalidURL as error:
                raise DataError(f"{asked}: not a URL ({error})") from None
            except httpx.TransportError as error:
                raise NetworkError(f"{asked}: no answer ({type(error).__name__}: {error})") from None
    raise DataError(f"{asked}: more than {_REDIRECTS} redirects")


def _check_status(response: httpx.Response, url: str) -> None:
    code = response.status_code
    if code in (200, 206, 416):
        return
    message = f"{url}: the server answered {code} {response.reason_phrase}"
    if code in _WAIT_AND_SEE:
        wait = response.headers.get("Retry-After", "")
        raise NetworkError(f"{message}; try again later", float(wait) if wait.isdigit() else None)
    raise DataError(f"{message}; check the address")


def _check_address(url: str, asked: str, allow_private: bool) -> None:
    parts = urlsplit(url)
    where = url if url == asked else f"{asked} redirects to {url}, which"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{where} is not an http(s) address")
    if allow_private:
        return
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, proto=socket.IPPROTO_TCP)
    except OSError as error:
        raise NetworkError(f"{url}: cannot find {parts.hostname} ({error})") from None
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise DataError(f"{where} is a private address; set corpus.source.allow_private_addresses=true to allow it")


def content_digest(names_and_hashes: list[tuple[str, str]]) -> str:
    """Hex sha256 over sorted `sha256 name` lines: what a set of files holds."""
    return hashlib.sha256(
        "\n".join(sorted(f"{digest} {name}" for name, digest in names_and_hashes)).encode()
    ).hexdigest()
