"""The bytes of a segment file: header, groups of records, footer.

    header block   document (magic HFSEGMNT), zero-padded to a multiple of 512 bytes
    group          56-byte group header, then its records; a group without records is a heartbeat
    …              the next group; in an open segment zeros follow to the end of the file
    footer         in a sealed segment only: msgpack map, then a 32-byte trailer, which ends the file

A group is what one sync made durable. Its header has the durable end before it. So any valid group header says that
every byte before that end was on stable storage. A bad byte below any such end is damage; above them all, it is a torn
tail.

The checksums of group headers and records are xxh3-64 seeded with the segment's random id, so stale bytes of another
file never pass for records. The disk is assumed to keep the first bytes of a sector unchanged if the sector is written
again with the same first bytes, even if the power fails.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ..env import File
from ..errors import Damaged, InvalidInput, UnsupportedFormat
from ..model import document
from ..model.positions import History, Position
from ..model.records import Record

SEGMENT_MAGIC, SEGMENT_VERSION = b"HFSEGMNT", 2
FOOTER_MAGIC = b"HFSEALED"
GROUP_MAGIC = b"HFG1"
SECTOR = 512
GROUP_HEADER = struct.Struct("<4sIIIQQQQQ")
"""magic, records, bytes of records, 0, first txid, durable txid before, durable end before (offset in this file), time
(us) before which nothing more is committed, xxh3-64 of the preceding fields. In a heartbeat the first txid is the next
one."""
GROUP_FIELDS = struct.Struct("<4sIIIQQQQ")
FRAME = struct.Struct("<IIQ")
"""header length, payload length, xxh3-64 of header and payload; header and payload follow."""
TRAILER = struct.Struct("<8sII16s")
MAX_HEADER_BLOCK = 1 << 20
MAX_RECORD_HEADER = 4096
_READ_BYTES, _FIRST_READ = 1 << 20, 16 << 10


class SegmentHeader(NamedTuple):
    """What the header block of a segment says.

    `base` is the position before its first record. No record here is committed before `base_time_us`: the commit time
    at `base`, or the time of a heartbeat after it; 0 if there is none. Commit times ascend since `era_txid`.
    `bytes_before` and `attachments_before` count what all earlier segments hold, pruned ones included. So the totals of
    a log are known from its first and last segment.
    """

    segment_id: bytes
    ordinal: int
    engine: str
    history: History
    epoch: int
    base: Position
    base_time_us: int
    created_us: int
    bytes_before: int = 0
    attachments_before: int = 0
    era_txid: int = 0

    def encode(self) -> bytes:
        data = document.encode(SEGMENT_MAGIC, SEGMENT_VERSION, {
            "segment_id": self.segment_id, "ordinal": self.ordinal, "engine": self.engine,
            "history": self.history.to_wire(), "epoch": self.epoch, "base": list(self.base),
            "base_time_us": self.base_time_us, "created_us": self.created_us, "bytes_before": self.bytes_before,
            "attachments_before": self.attachments_before, "era_txid": self.era_txid})
        if len(data) > MAX_HEADER_BLOCK:
            raise InvalidInput("this history has too many branches for a segment header",
                               hint="start a new store from a restore")
        return data + bytes(-len(data) % SECTOR)

    @property
    def seed(self) -> int:
        return int.from_bytes(self.segment_id[:8], "little")


def read_header(file: File) -> tuple[SegmentHeader, int]:
    """The header and where the groups start. Raises `Damaged` or `UnsupportedFormat`."""
    start = file.pread(16, 0)
    length = 32 + int.from_bytes(start[12:16], "little")
    if len(start) < 16 or length > MAX_HEADER_BLOCK:
        raise Damaged("is not a segment", path=str(file.path), offset=0)
    body = document.decode(file.pread(length, 0), SEGMENT_MAGIC, SEGMENT_VERSION, file.path)
    try:
        header = SegmentHeader(body["segment_id"], body["ordinal"], body["engine"],
                               History.from_wire(body["history"]), body["epoch"], Position(*body["base"]),
                               body["base_time_us"], body["created_us"], body["bytes_before"],
                               body["attachments_before"], body["era_txid"])
    except (KeyError, TypeError, InvalidInput) as error:
        raise Damaged(f"has a header that lacks or garbles a field: {error}", path=str(file.path)) from error
    start_of_groups = length + (-length % SECTOR)
    if file.size() < start_of_groups:  # it got its name after all of this was synced
        raise Damaged("was cut within its header", path=str(file.path), offset=file.size())
    return header, start_of_groups


class IndexEntry(NamedTuple):
    """A place to start reading: the group at `offset` begins with `txid`, committed at `time_us`, after `chain`."""

    txid: int
    time_us: int
    offset: int
    chain: bytes


class Footer(NamedTuple):
    """The footer of a sealed segment.

    Attributes:
        last: position after its last record.
        records: how many; the first is base.txid + 1.
        first_time_us, last_time_us: commit times; both base_time_us if there is no record.
        complete_us: time of the last group: every later transaction has a later commit time.
        data_end: where the groups end and the footer begins.
        digest: xxh3-128 of every byte before `data_end`.
        places: sparse index, ascending.
        attachments: (txid, name, size, digest) of those that its records name.
        followed: the next segment was begun. If it is not there, it was lost.
    """

    last: Position
    records: int
    first_time_us: int
    last_time_us: int
    complete_us: int
    data_end: int
    digest: bytes
    places: tuple[IndexEntry, ...]
    attachments: tuple[tuple[int, str, int, bytes], ...]
    followed: bool

    def encode(self) -> bytes:
        body = msgpack.packb({
            "last": list(self.last), "records": self.records, "first_time_us": self.first_time_us,
            "last_time_us": self.last_time_us, "complete_us": self.complete_us, "data_end": self.data_end,
            "digest": self.digest, "index": [list(e) for e in self.places],
            "attachments": [list(a) for a in self.attachments], "followed": self.followed})
        head = struct.pack("<8sII", FOOTER_MAGIC, SEGMENT_VERSION, len(body))
        return bytes(body + head + xxh3_128_digest(body + head))


def read_footer(file: File) -> Footer | None:
    """The footer, or None if the file does not end in a valid one."""
    size = file.size()
    if size < TRAILER.size:
        return None
    trailer = file.pread(TRAILER.size, size - TRAILER.size)
    if len(trailer) < TRAILER.size:
        return None  # its writer has truncated it since `size`
    magic, version, length, digest = TRAILER.unpack(trailer)
    if magic != FOOTER_MAGIC or length > size - TRAILER.size:
        return None
    data = file.pread(length + 16, size - TRAILER.size - length)
    if xxh3_128_digest(data) != digest:
        return None
    if version != SEGMENT_VERSION:
        raise UnsupportedFormat(f"{file.path} has segment version {version}; this release reads {SEGMENT_VERSION}")
    body: dict[str, Any] = msgpack.unpackb(data[:length])
    footer = Footer(Position(*body["last"]), body["records"], body["first_time_us"], body["last_time_us"],
                    body["complete_us"], body["data_end"], body["digest"],
                    tuple(IndexEntry(*e) for e in body["index"]),
                    tuple((n, a, s, d) for n, a, s, d in body["attachments"]), body["followed"])
    return footer if footer.data_end == size - TRAILER.size - length else None


class Group(NamedTuple):
    """A group as read: its offset and end in the file, its header's fields, its records."""

    offset: int
    end: int
    time_us: int
    durable_end: int
    records: list[Record]


class BadBytes(Exception):
    """Bytes that are not a valid group: where, and why."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset
        self.reason = reason


class _Window:
    """A sliding window over a file. Reads little at first, for a caller that wants one group, then up to 1 MiB."""

    def __init__(self, file: File, end: int) -> None:
        self.file = file
        self.end = end
        self.start = 0
        self.data = b""
        self._step = _FIRST_READ

    def get(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, or fewer at the end."""
        at = offset - self.start
        if at < 0 or at + length > len(self.data):
            want = min(max(length, self._step), self.end - offset)
            self._step = min(4 * self._step, _READ_BYTES)
            self.data = self.file.pread(want, offset) if want > 0 else b""
            self.start, at = offset, 0
        return self.data[at : at + length]


def parse_group_header(data: bytes, seed: int) -> tuple[int, int, int, int, int] | None:
    """(records, length, first txid, durable end before, time) of a group header, or None if it is not valid."""
    if len(data) < GROUP_HEADER.size:
        return None
    magic, records, length, _, first, _, durable_end, time_us, checksum = GROUP_HEADER.unpack(data)
    if magic != GROUP_MAGIC or xxh3_64_intdigest(data[:-8], seed) != checksum:
        return None
    return records, length, first, durable_end, time_us


def read_groups(file: File, seed: int, start: int, end: int, before: Position) -> Iterator[Group]:
    """Every group from offset `start` on, until `end` or, before that, zeros. `before`: the position at `start`. Raises
    `BadBytes` if there is anything else."""
    window = _Window(file, end)
    txid, chain = before
    offset = start
    while offset < end:
        head = window.get(offset, GROUP_HEADER.size)
        parsed = parse_group_header(head, seed)
        if parsed is None:
            if not any(head):
                return
            raise BadBytes(offset, "no group header")
        count, length, first, durable_end, time_us = parsed
        if first != txid + 1:
            raise BadBytes(offset, f"a group that starts with transaction {first} after {txid}")
        at, stop = offset + GROUP_HEADER.size, offset + GROUP_HEADER.size + length
        records: list[Record] = []
        for _ in range(count):
            frame = window.get(at, FRAME.size)
            header_length, payload_length, checksum = FRAME.unpack(frame) if len(frame) == FRAME.size else (0, 0, 0)
            size = header_length + payload_length
            if not 0 < header_length <= MAX_RECORD_HEADER or at + FRAME.size + size > min(stop, end):
                raise BadBytes(at, "no record")
            body = window.get(at + FRAME.size, size)
            if len(body) != size or xxh3_64_intdigest(body, seed) != checksum:
                raise BadBytes(at, "a record that does not match its checksum")
            try:
                record = Record.decode(chain, body[:header_length], body[header_length:])
            except Damaged as error:
                raise BadBytes(at, error.message) from error
            if record.txid != txid + 1:
                raise BadBytes(at, f"transaction {record.txid} after {txid}")
            txid, chain = record.txid, record.chain
            records.append(record)
            at += FRAME.size + size
        if at != stop:
            raise BadBytes(at, "a group that is longer than its records")
        yield Group(offset, stop, time_us, durable_end, records)
        offset = stop


def later_watermark(file: File, seed: int, offset: int) -> int | None:
    """The offset of a valid group header after `offset` that says that bytes beyond `offset` were durable, or None.

    After a torn group there is none, because a group is written only after the one before it is synced.
    """
    end = file.size()
    at = offset + 1
    keep = GROUP_HEADER.size
    while at < end:
        data = file.pread(_READ_BYTES + keep, at)
        found = data.find(GROUP_MAGIC)
        while found >= 0:
            parsed = parse_group_header(data[found : found + keep], seed)
            if parsed is not None and parsed[3] > offset:
                return at + found
            found = data.find(GROUP_MAGIC, found + 1)
        at += _READ_BYTES
    return None
