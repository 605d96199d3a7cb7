"""The sorted table of keys and values (LevelDB's format) in which TensorFlow keeps the index of a checkpoint."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = 0xDB4775248B80FB57


_FOOTER_BYTES = 48


_TRAILER_BYTES = 5  # compression, CRC32C


_LONGEST_KEY = 1_000


_LARGEST_BLOCK = 64_000_000


class MalformedError(Exception):
    """What is wrong with an index, in words."""


def rows_of_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every row, keys rising."""
    if len(data) < _FOOTER_BYTES:
        raise MalformedError(f"{len(data)} bytes are less than its footer")
    footer = data[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise MalformedError("it does not end in the magic number")
    at = 0
    for _ in range(2):  # the first two numbers are of a block without use, the next two of the index block
        offset, at = varint(footer, at)
        size, at = varint(footer, at)
    last = b""
    first, past = True, 0
    for _, handle in _rows(_block(data, offset, size)):
        offset, at = varint(handle, 0)
        size, _ = varint(handle, at)
        if offset < past:  # or a small file could have a block read for ever
            raise MalformedError("its blocks overlap")
        past = offset + size + _TRAILER_BYTES
        for key, value in _rows(_block(data, offset, size)):
            if not first and key <= last:
                raise MalformedError("its keys do not rise")
            yield key, value
            last, first = key, False


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size + _TRAILER_BYTES
    if size > _LARGEST_BLOCK or end > len(data) - _FOOTER_BYTES:
        raise MalformedError(f"a block of {size:,} bytes at {offset:,} lies outside the file")
    if masked_crc(data[offset : offset + size + 1]) != struct.unpack("<I", data[end - 4 : end])[0]:
        raise MalformedError(f"the checksum of the block at {offset:,} is wrong")
    compression, raw = data[offset + size], data[offset : offset + size]
    if compression == 0:
        return raw
    if compression == 1:
        return _unsnapped(raw)
    raise MalformedError(f"a block is compressed by method {compression}")


def _unsnapped(raw: bytes) -> bytes:
    import pyarrow as pa

    size, _ = varint(raw, 0)
    if size > _LARGEST_BLOCK:
        raise MalformedError(f"a block claims {size:,} bytes")
    try:
        return bytes(pa.Codec("snappy").decompress(raw, decompressed_size=size))
    except (pa.ArrowException, OSError) as error:
        raise MalformedError(f"a block cannot be unpacked ({error})") from None


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise MalformedError("a block has no end")
    (n_restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * n_restarts
    if end < 0:
        raise MalformedError(f"a block of {len(block):,} bytes claims {n_restarts:,} restart points")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or shared + unshared > _LONGEST_KEY or at + unshared + length > end:
            raise MalformedError("a row goes beyond its block")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def taken(raw: bytes, at: int, length: int) -> bytes:
    if at + length > len(raw):
        raise MalformedError("a field goes beyond its message")
    return raw[at : at + length]


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends): seven bits a byte, lowest first, at most 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise MalformedError("it ends in the middle of a number")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    else:
        raise MalformedError("a number has more than 64 bits")
    if value >= 1 << 64:
        raise MalformedError("a number has more than 64 bits")
    return value, at


def masked_crc(raw: bytes) -> int:
    """CRC32C, rotated and shifted as LevelDB stores it, so that checksums of checksums stay good."""
    import google_crc32c

    crc = int(google_crc32c.value(raw))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
