"""TensorFlow's checkpoint files read without TensorFlow: an index of tensors, and their bytes beside it.

The index is a table of sorted keys (tensorflow/core/lib/io/format.cc): data blocks, an index block, and a footer of
48 bytes. In a block each key drops the prefix that it shares with the one before; after a block come a byte for its
compression and the masked CRC32C of both. The value under the empty key describes the bundle; each other one is a
tensor's BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto): dtype, shape, data file, offset, size, CRC32C.

Nothing in the files is trusted: each offset, size and shape is checked before it is used. Shapes: as in the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptmodel.errors import CheckpointError
from gptmodel.formats.sorted_table import MalformedError, masked_crc, rows_of_table, taken, varint

_LARGEST_INDEX = 16_000_000  # bytes: GPT-2 XL's has 30,000
_DTYPES = {1: "float32", 2: "float64", 3: "int32", 9: "int64", 14: "bfloat16", 19: "float16"}
_NUMPY = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "int64": "<i8", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True)
class BundleEntry:
    """One tensor: what it is, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    """Number of the data file."""
    offset: int
    size: int
    """Bytes."""
    crc32c: int
    """Masked CRC32C of the bytes."""


@dataclass(frozen=True)
class TensorBundle:
    """An index that was read, and its data files."""

    prefix: Path
    entries: dict[str, BundleEntry]
    n_shards: int

    def data_file(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.n_shards:05d}")

    @property
    def files(self) -> list[Path]:
        """The index and the data files that hold something."""
        shards = sorted({entry.shard for entry in self.entries.values()})
        return [_index_of(self.prefix), *(self.data_file(shard) for shard in shards)]

    def read(self, name: str) -> npt.NDArray[Any]:
        """A tensor in its own dtype, its bytes checked; bfloat16 comes as float32. CheckpointError if damaged."""
        entry = self.entries[name]
        path = self.data_file(entry.shard)
        with path.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        if len(raw) != entry.size or masked_crc(raw) != entry.crc32c:
            raise CheckpointError(f"{path}: the bytes of {name} are damaged (CRC32C); get the file again")
        values = np.frombuffer(raw, dtype=_NUMPY[entry.dtype])
        if entry.dtype == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(entry.shape)


def read_bundle(prefix: Path) -> TensorBundle:
    """The bundle `<prefix>.index` with `<prefix>.data-*`, its index checked and the sizes of its data files.

    CheckpointError in one line for anything that is missing, damaged, or not of this format.
    """
    bundle = read_index(prefix)
    _check_data(bundle)
    return bundle


def read_index(prefix: Path) -> TensorBundle:
    """The same by the index alone; the data files need not be there yet."""
    index = _index_of(prefix)
    entries: dict[str, BundleEntry] = {}
    header: dict[int, list[Any]] | None = None
    try:
        for key, value in rows_of_table(_whole(index)):
            fields = _message(value)
            if header is None:
                if key:
                    raise MalformedError("its first key is not the header's")
                header = fields
                continue
            if not (name := key.decode()).isprintable():
                raise MalformedError(f"{name[:80]!r} is no name")
            entry = _entry(name, fields)
            if entry.name in entries:
                raise MalformedError(f"{entry.name} stands twice")
            entries[entry.name] = entry
    except (MalformedError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{index} is no TensorFlow checkpoint index, or is damaged: {error}; get it again"
        ) from None
    if header is None or not entries:
        raise CheckpointError(f"{index} names no tensor; get it again")
    n_shards = _number(header, 1)
    if not 1 <= n_shards <= 99_999 or _number(header, 2) != 0:
        raise CheckpointError(
            f"{index}: {n_shards} data files, byte order {_number(header, 2)}, which is not read here; get it "
            "again, or convert it"
        )
    if stray := [e for e in entries.values() if not 0 <= e.shard < n_shards]:
        raise CheckpointError(
            f"{index}: {stray[0].name} is said to lie in data file {stray[0].shard} of {n_shards}; get it again"
        )
    return TensorBundle(prefix, entries, n_shards)


def _index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _whole(index: Path) -> bytes:
    try:
        if (size := index.stat().st_size) > _LARGEST_INDEX:
            raise CheckpointError(f"{index} has {size:,} bytes, and an index at most {_LARGEST_INDEX:,}; get it again")
        return index.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}; get all files of the checkpoint") from None


def _check_data(bundle: TensorBundle) -> None:
    sizes: dict[int, int] = {}
    taken: dict[int, list[tuple[int, int, str]]] = {}
    for entry in bundle.entries.values():
        path = bundle.data_file(entry.shard)
        if entry.shard not in sizes:
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; get all files of the checkpoint")
            sizes[entry.shard] = path.stat().st_size
        if entry.offset + entry.size > sizes[entry.shard]:
            raise CheckpointError(
                f"{path} has {sizes[entry.shard]:,} bytes, and {entry.name} ends at {entry.offset + entry.size:,}; "
                "it was cut short: get the file again"
            )
        taken.setdefault(entry.shard, []).append((entry.offset, entry.offset + entry.size, entry.name))
    for spans in taken.values():
        spans.sort()
        for (_, end, one), (start, _, other) in pairwise(spans):
            if start < end:
                raise CheckpointError(f"{bundle.prefix}: the bytes of {one} and {other} overlap; get the index again")


def _entry(name: str, fields: dict[int, list[Any]]) -> BundleEntry:
    code = _number(fields, 1)
    if code not in _DTYPES:
        raise MalformedError(f"{name} has dtype number {code}; read are {', '.join(_DTYPES.values())}")
    if 7 in fields:
        raise MalformedError(f"{name} is stored in slices, which is not read")
    shape = tuple(_number(_message(dim), 1) for dim in _message(_bytes(fields, 2)).get(2, []))
    offset, size = _number(fields, 4), _number(fields, 5)
    if any(extent < 0 for extent in shape) or offset < 0 or size < 0 or len(shape) > 16:
        raise MalformedError(f"{name}: shape {shape}, offset {offset}, size {size}")
    dtype = _DTYPES[code]
    if math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize != size:
        raise MalformedError(f"{name}: {size:,} bytes are not {dtype} of shape {shape}")
    crc = fields.get(6, [0])[-1]
    if not isinstance(crc, int):
        raise MalformedError(f"{name}: its checksum is no number")
    return BundleEntry(name, dtype, shape, _number(fields, 3), offset, size, crc)


def _message(raw: bytes) -> dict[int, list[Any]]:
    """Fields of a protocol buffer by number: whole numbers, and bytes for nested messages and strings."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(raw):
        tag, at = varint(raw, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, at = varint(raw, at)
            value -= (value >> 63) << 64  # a negative number is its two's complement
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(taken(raw, at, width), "little"), at + width
        elif kind == 2:
            length, at = varint(raw, at)
            value, at = taken(raw, at, length), at + length
        else:
            raise MalformedError(f"a field of wire type {kind}")
        fields.setdefault(number, []).append(value)
    return fields


def _number(fields: dict[int, list[Any]], number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise MalformedError(f"field {number} is no number")
    return value


def _bytes(fields: dict[int, list[Any]], number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if not isinstance(value, bytes):
        raise MalformedError(f"field {number} is no message")
    return value
