"""TensorFlow's checkpoint files: what TensorFlow wrote is read to the bit, and nothing that is damaged gets through.

tests/data/openai_tiny was written by TensorFlow 2.21 itself (tests/tensorflow_writer.py); values.npz is what it was
given. A larger one is written anew by the slow test in tests/workflow/test_real_tensorflow.py.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmodel.errors import CheckpointError
from gptmodel.formats.tensor_bundle import TensorBundle, read_bundle

TINY = Path(__file__).parents[1] / "data" / "openai_tiny"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "tiny")
    return tmp_path / "tiny" / "model.ckpt"


def index_of(prefix: Path) -> Path:
    return prefix.with_name("model.ckpt.index")


def data_of(prefix: Path) -> Path:
    return prefix.with_name("model.ckpt.data-00000-of-00001")


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def masked(raw: bytes) -> int:
    crc = google_crc32c.value(raw)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(rows: list[tuple[bytes, bytes]]) -> bytes:
    """Rows, each with the prefix that it shares with the one before, and one restart point."""
    out, last = b"", b""
    for key, value in rows:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack("<II", 0, 1)


def table(blocks: list[list[tuple[bytes, bytes]]], compress: bool = False) -> bytes:
    out, handles = b"", []

    def put(raw: bytes, kind: int) -> bytes:
        nonlocal out
        if kind == 1:
            raw = pa.Codec("snappy").compress(raw).to_pybytes()
        handle = varint(len(out)) + varint(len(raw))
        body = raw + bytes([kind])
        out += body + struct.pack("<I", masked(body))
        return handle

    for rows in blocks:
        handles.append((rows[-1][0], put(block(rows), int(compress))))
    meta, index = put(block([]), 0), put(block(handles), 0)
    return out + (meta + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(
    size: int, offset: int = 0, shape: tuple[int, ...] = (2,), dtype: int = 1, crc: int = 0, more: bytes = b""
) -> bytes:
    dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(extent) for extent in shape))
    place = (b"\x20" + varint(offset) if offset else b"") + b"\x28" + varint(size)
    what = b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims
    return what + place + b"\x35" + struct.pack("<I", crc) + more


HEADER = (b"", b"\x08\x01")


def write(tmp_path: Path, index: bytes, data: bytes) -> TensorBundle:
    (tmp_path / "model.ckpt.index").write_bytes(index)
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(data)
    return read_bundle(tmp_path / "model.ckpt")


def test_what_tensorflow_wrote_is_read_to_the_bit(prefix: Path) -> None:
    bundle, wanted = read_bundle(prefix), np.load(TINY / "values.npz")
    assert {name.replace("/", "|") for name in bundle.entries} == {*wanted}
    for name in bundle.entries:
        found = bundle.read(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted[name.replace("/", "|")])


def test_no_flipped_bit_of_the_index_gets_through(prefix: Path) -> None:
    """Each byte once, one bit of it. The padding of the footer is nobody's: there nothing may change."""
    raw, sound = index_of(prefix).read_bytes(), read_bundle(prefix).entries
    unseen = []
    for at in range(len(raw)):
        index_of(prefix).write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        try:
            if read_bundle(prefix).entries != sound:
                unseen.append(at)
        except CheckpointError:
            continue
    assert unseen == []


def test_no_index_cut_short_gets_through(prefix: Path) -> None:
    raw = index_of(prefix).read_bytes()
    for length in range(len(raw)):
        index_of(prefix).write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read_bundle(prefix)


def test_no_flipped_byte_of_the_data_gets_through(prefix: Path) -> None:
    raw, bundle = data_of(prefix).read_bytes(), read_bundle(prefix)
    for name, found in bundle.entries.items():
        at = found.offset + found.size // 2
        data_of(prefix).write_bytes(raw[:at] + bytes([raw[at] ^ 64]) + raw[at + 1 :])
        with pytest.raises(CheckpointError, match=f"the bytes of {name} are damaged"):
            bundle.read(name)


def test_data_cut_short_is_named_before_anything_is_read(prefix: Path) -> None:
    data_of(prefix).write_bytes(data_of(prefix).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it was cut short"):
        read_bundle(prefix)
    data_of(prefix).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_bundle(prefix)


@pytest.mark.parametrize("compress", [False, True])
def test_several_blocks_and_all_kinds_of_numbers(tmp_path: Path, compress: bool) -> None:
    arrays = {
        "a/one": np.array([1.5, -2.0], np.float32),
        "a/only": np.array([3.25], np.float16),
        "b": np.array([[7, 8, 9]], np.int64),
        "c": np.float64(0.1),
    }
    codes, rows, data = {"float32": 1, "float64": 2, "int64": 9, "float16": 19}, [HEADER], b""
    for name, value in arrays.items():
        raw = value.tobytes()
        told = entry(len(raw), len(data), value.shape, codes[str(value.dtype)], masked(raw))
        rows.append((name.encode(), told))
        data += raw
    bundle = write(tmp_path, table([rows[:2], rows[2:3], rows[3:]], compress), data)
    assert {n: bundle.read(n).tolist() for n in arrays} == {n: np.asarray(v).tolist() for n, v in arrays.items()}


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    raw = struct.pack("<HH", 0x3FC0, 0xC000)  # 1.5 and -2
    bundle = write(tmp_path, table([[HEADER, (b"x", entry(4, shape=(2,), dtype=14, crc=masked(raw)))]]), raw)
    assert bundle.read("x").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(b"x", entry(8))], "its first key is not the header's"),
        ([HEADER], "names no tensor"),
        ([(b"", b"\x08\x00"), (b"x", entry(8))], "0 data files"),
        ([(b"", b"\x08\x01\x10\x01"), (b"x", entry(8))], "byte order 1"),
        ([HEADER, (b"x", entry(8, dtype=7))], "x has dtype number 7"),
        ([HEADER, (b"x", entry(8, shape=(3,)))], "8 bytes are not float32 of shape"),
        ([HEADER, (b"x", entry(8, shape=(1 << 62, 8)))], "are not float32 of shape"),
        ([HEADER, (b"x", entry(8, offset=1 << 63))], "offset -9223372036854775808"),
        ([HEADER, (b"x", entry(8, offset=1 << 40))], "it was cut short"),
        ([HEADER, (b"x", entry(8, more=b"\x18\x05"))], "is said to lie in data file 5 of 1"),
        ([HEADER, (b"x", entry(8, more=b"\x3a\x00"))], "stored in slices"),
        ([HEADER, (b"x", entry(8)), (b"y", entry(8, offset=4))], "the bytes of x and y overlap"),
        ([HEADER, (b"y", entry(8)), (b"x", entry(8, offset=8))], "its keys do not rise"),
        ([HEADER, (b"x", entry(8)), (b"x", entry(8, offset=8))], "its keys do not rise"),
        ([HEADER, (b"\xff", entry(8))], "is no TensorFlow checkpoint index"),
        ([HEADER, (b"x", b"\x0b")], "wire type 3"),
        ([HEADER, (b"x", b"\x12\x7f")], "a field goes beyond its message"),
        ([HEADER, (b"x", b"\x08" + b"\xff" * 11)], "more than 64 bits"),
        ([HEADER, (b"x\n\x1b[2J", entry(8))], "is no name"),
        ([HEADER, *((b"k" * 2_000 + b"%06d" % n, entry(8, 8 * n)) for n in range(3))], "a row goes beyond its block"),
    ],
)
def test_sealed_nonsense_is_refused_in_one_line(tmp_path: Path, rows: list[tuple[bytes, bytes]], said: str) -> None:
    """Indexes whose checksums are all right."""
    with pytest.raises(CheckpointError, match=said) as caught:
        write(tmp_path, table([rows]), bytes(16))
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_have_a_block_read_for_ever(tmp_path: Path) -> None:
    one = block([HEADER, (b"x", entry(8))])
    body = one + b"\0"
    out = body + struct.pack("<I", masked(body))
    index = block([(b"x%06d" % n, varint(0) + varint(len(one))) for n in range(500)]) + b"\0"
    handle = varint(len(out)) + varint(len(index) - 1)
    out += index + struct.pack("<I", masked(index)) + (handle + handle).ljust(40, b"\0")
    with pytest.raises(CheckpointError, match=r"overlap|rise"):
        write(tmp_path, out + struct.pack("<Q", 0xDB4775248B80FB57), bytes(16))


@settings(max_examples=60)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_at_all_bring_it_down(raw: bytes, framed: bool) -> None:
    """Any bytes as the file, or as a row of a table that is sound otherwise."""
    with tempfile.TemporaryDirectory() as directory, suppress(CheckpointError):
        write(Path(directory), table([[HEADER, (b"x", raw)]]) if framed else raw, bytes(16))


def test_a_huge_index_is_not_read(prefix: Path) -> None:
    with index_of(prefix).open("r+b") as file:
        file.truncate(300_000_000)  # sparse
    with pytest.raises(CheckpointError, match="300,000,000 bytes"):
        read_bundle(prefix)
