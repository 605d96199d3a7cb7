"""Addresses that something may be fetched from, and how they are shown: without what may be a secret."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit, urlunsplit

from gptmodel.errors import DataError, NetworkError

_IPV4_AT_THE_END = [ipaddress.IPv6Network(n) for n in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")]
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: a private network's own translator


def shown(url: str) -> str:
    """The URL for people and manifests: without a user, a password or a query, which may hold a token."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return url


def check_address(url: str, came_from: str, allow_private: bool) -> None:
    """DataError for one that is not http(s), or private where that is not allowed; NetworkError if it is not found."""
    where = f"{came_from} redirects to {shown(url)}, which" if came_from else shown(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"{where} is not a URL ({error}); check the address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise DataError(f"{where} is not an http(s) address; give one that begins with https:// or http://")
    if allow_private:
        return
    try:
        found = socket.getaddrinfo(host, port or parts.scheme, proto=socket.IPPROTO_TCP)
    except UnicodeError:
        raise DataError(f"{where} has no usable host name ({host}); check the address") from None
    except OSError as error:
        raise NetworkError(f"{where}: cannot find {host} ({error}); is the name right, and the network up?") from None
    if not all(is_public(str(address[0])) for *_, address in found):
        raise DataError(
            f"{where} is a private address; allow it with corpus.source.allow_private_addresses=true "
            "(import: --allow-private-addresses)"
        )


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public network, and leads to no other."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(str(inner))
        if address in _LOCAL_NAT64:
            return False
    return address.is_global and not address.is_multicast


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to this one ends up at: mapped, compatible, 6to4 or NAT64."""
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _IPV4_AT_THE_END):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
