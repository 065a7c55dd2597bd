"""The bytes of a segment that no writer writes, each with the right checksum: of another release, or of a fault of the
writer. What a disk does to bytes does not come so far."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from log_world import HERE, START, World
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from holdfast.engine.env import REAL
from holdfast.engine.errors import UnsupportedFormat
from holdfast.engine.model.records import Record
from holdfast.engine.wal.format import (
    FRAME,
    GROUP_FIELDS,
    GROUP_MAGIC,
    MAX_RECORD_HEADER,
    SEGMENT_VERSION,
    TRAILER,
    BadBytes,
    Group,
    read_groups,
)
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.segment import Segment

SEED = 7


def framed(header: bytes, payload: bytes) -> bytes:
    body = header + payload
    return FRAME.pack(len(header), len(payload), xxh3_64_intdigest(body, SEED)) + body


def grouped(data: bytes, length: int | None = None) -> bytes:
    """A group of one record, which says that it is `length` bytes long."""
    fields = GROUP_FIELDS.pack(GROUP_MAGIC, 1, len(data) if length is None else length, 0, 1, 0, 0, 5)
    return fields + struct.pack("<Q", xxh3_64_intdigest(fields, SEED)) + data


def read(path: Path, data: bytes, end: int | None = None) -> list[Group]:
    path.write_bytes(data)
    file = REAL.files.open(path)
    try:
        return list(read_groups(file, SEED, 0, len(data) if end is None else end, START))
    finally:
        file.close()


def test_a_record_stands_within_its_group_and_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    header, payload = Record.make(START.chain, 1, 0, 5, 1, b"payload").header, b"payload"
    good = framed(header, payload)
    [group] = read(path, grouped(good))
    assert [record.payload for record in group.records] == [payload]
    for name, data, end in (("no header", grouped(framed(b"", payload)), None),
                            ("a header of a book's length", grouped(framed(bytes(MAX_RECORD_HEADER + 1), b"")), None),
                            ("longer than its group", grouped(good, len(good) - 1) + bytes(100), None),
                            ("longer than what is there", grouped(good), len(grouped(good)) - 1),
                            ("less than a frame", grouped(good[: FRAME.size - 1]), None)):
        with pytest.raises(BadBytes) as caught:
            read(path, data, end)
        assert caught.value.reason == "no record", name


def test_a_footer_of_another_version_is_not_read() -> None:
    """It is whole, so it is not torn either: what another release wrote is not cut away."""
    world = World()
    world.commit(b"one")
    world.log.close()
    [segment] = world.log.segments()
    data = bytearray(world.disk.read(segment.path))
    magic, version, length, digest = TRAILER.unpack(data[-TRAILER.size :])
    assert version == SEGMENT_VERSION
    body = bytes(data[-TRAILER.size - length : -TRAILER.size])
    head = struct.pack("<8sII", magic, version + 1, length)
    assert xxh3_128_digest(body + struct.pack("<8sII", magic, version, length)) == digest
    data[-TRAILER.size :] = head + xxh3_128_digest(body + head)
    world.disk.inodes[world.disk._walk(segment.path)].data[:] = data
    for look in (lambda: Segment.load(world.env.files, segment.path),
                 lambda: Log.open(HERE, options=world.options, env=world.env)):
        with pytest.raises(UnsupportedFormat, match=f"segment version {version + 1}"):
            look()
    assert world.disk.read(segment.path) == data
