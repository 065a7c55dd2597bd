"""One segment file: made, written as the open one, sealed, read.

A segment is *started*, which gives it its ordinal name, only after its header is synced. So a file of that name always
has a valid header. If segments are preallocated, the file was zero-filled and synced under a spare name before, so that
a sync of records writes no metadata. Sealing writes a footer after the records and truncates the file there.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128

from ..env import Directory, File, Files, is_disk_full
from ..errors import Damaged, DiskFull, UnsupportedFormat
from ..model.positions import Position
from ..model.records import Record, SegmentInfo
from .format import (
    GROUP_FIELDS,
    GROUP_MAGIC,
    BadBytes,
    Footer,
    Group,
    IndexEntry,
    SegmentHeader,
    read_footer,
    read_groups,
    read_header,
)

FOOTER_ROOM = 32 << 10
"""Bytes kept free at a segment's end, so that sealing it cannot run out of room."""
INDEX_EVERY = 16 << 10
MAX_INDEX = 400
"""The most entries in a segment's index; when it is full, every other one is dropped. So finding a record takes reading
16 KiB in a small segment, and 1/200 of a large one."""
JOIN_BYTES = 1 << 20
"""After an opening, the log continues in a last segment with no more data than this, so openings leave no files."""
MAX_ATTACHMENTS = 100
_ZEROS = bytes(1 << 20)
_SEGMENT = re.compile(r"(?<![^/])([0-9]{12})\.seg(?![^/])")
Patiently = Callable[..., object]
"""Does a step, called with the arguments that follow it, and retries it if memory is lacking. The step must not be a
sync: after a failed sync, the next one may succeed without having written anything."""


def once(step: Callable[..., object], *args: object) -> object:
    """A `Patiently` that does not retry, for steps before any record is numbered: a lack of memory is raised."""
    return step(*args)


def segment_name(ordinal: int) -> str:
    return f"{ordinal:012d}.seg"


def ordinals_of(names: Iterable[str]) -> list[int]:
    """The ordinals of the segments among the names of a log's directory, in the order of the names. Every opening does
    this for all of them, so it takes one pass in C."""
    return list(map(int, _SEGMENT.findall("/".join(names))))


def allocate(files: Files, path: Path, size: int) -> File:
    """Make a zero-filled file of `size` bytes, sync it, name it `path`, and return it open, so that starting a segment
    in it needs no descriptor. Raises `DiskFull`, `OSError`, and then leaves no file."""
    beside = path.with_suffix(".new")
    file = None
    try:
        files.unlink(beside, missing_ok=True)
        file = files.open(beside, "create")
        for offset in range(0, size, len(_ZEROS)):
            file.pwrite(_ZEROS[: size - offset], offset)
        file.sync()
        files.rename(beside, path)
        file.path = path
    except BaseException as error:
        if file is not None:
            file.close()
        files.unlink(beside, missing_ok=True)
        if is_disk_full(error):
            raise DiskFull(f"no room for {size:,} bytes of log in {path.parent}") from error
        raise
    return file


class Segment:
    """A started segment. `end`: the position of its last durable record. `data_end`: the offset after that record."""

    def __init__(self, files: Files, path: Path, header: SegmentHeader, data_start: int) -> None:
        self.files = files
        self.path = path
        self.header = header
        self.data_start = data_start
        self.first = header.base.txid + 1
        self.end = header.base
        self.data_end = data_start
        self.first_time_us = self.last_time_us = header.base_time_us
        self.complete_us = header.base_time_us
        self.index: list[IndexEntry] = []
        self._index_every = INDEX_EVERY
        self.attachments: list[tuple[int, str, int, bytes]] = []
        self.footer: Footer | None = None
        self.size = 0

    def info(self) -> SegmentInfo:
        return SegmentInfo(self.path, self.header.ordinal, self.first, self.end.txid, self.first_time_us,
                           self.last_time_us, self.complete_us, max(self.size, self.data_end), self.footer is not None,
                           self.header.epoch, self.header.history)

    @classmethod
    def load(cls, files: Files, path: Path) -> Segment:
        """Read header and footer. In an unsealed segment, `footer` is None and no records are known yet."""
        file = files.open(path)
        try:
            header, data_start = read_header(file)
            segment = cls(files, path, header, data_start)
            segment.size = file.size()
            if footer := read_footer(file):
                segment.take_footer(footer)
        finally:
            file.close()
        return segment

    def take_footer(self, footer: Footer) -> None:
        """The segment is sealed: take over what its footer says."""
        self.footer = footer
        self.end, self.data_end = footer.last, footer.data_end
        self.first_time_us, self.last_time_us = footer.first_time_us, footer.last_time_us
        self.complete_us = footer.complete_us
        self.index, self.attachments = list(footer.places), list(footer.attachments)

    def note(self, group: Group) -> None:
        """Add a durable group that follows what is known."""
        if group.records:
            first, last = group.records[0], group.records[-1]
            self.note_records(group.offset, first.txid, first.time_us, last)
            for record in group.records:
                if record.attachment is not None:
                    self.attachments.append((record.txid, *record.attachment))
        self.data_end = group.end
        self.complete_us = max(self.complete_us, group.time_us)

    def note_records(self, offset: int, first: int, first_time_us: int, last: Record) -> None:
        if first == self.first:
            self.first_time_us = first_time_us
        if not self.index or offset - self.index[-1].offset >= self._index_every:
            entry = IndexEntry(first, first_time_us, offset, self.end.chain)
            if len(self.index) < MAX_INDEX:
                self.index.append(entry)
            else:  # replace the list: others may be reading the old one, which only ever grows
                self.index, self._index_every = [*self.index[::2], entry], 2 * self._index_every
        self.last_time_us = last.time_us
        self.end = last.position

    # --- reading ---------------------------------------------------------------------------------------------------

    def groups(self, start: IndexEntry | None = None, data_end: int | None = None) -> Iterator[Group]:
        """Durable groups from `start`, or from the first. Raises `Damaged`."""
        end = self.data_end if data_end is None else data_end
        offset = start.offset if start else self.data_start
        before = Position(start.txid - 1, start.chain) if start else self.header.base
        file = self.files.open(self.path)
        try:
            for group in read_groups(file, self.header.seed, offset, end, before):
                offset = group.end
                yield group
        except BadBytes as bad:
            raise Damaged(bad.reason, path=str(self.path), offset=bad.offset) from bad
        finally:
            file.close()
        if offset != end:
            raise Damaged("zeros where records were", path=str(self.path), offset=offset)

    def place_of_txid(self, txid: int) -> IndexEntry | None:
        """The last index entry at or before `txid`, or None."""
        index = self.index
        at = bisect.bisect_right(index, txid, key=lambda e: e.txid)
        return index[at - 1] if at else None

    def place_of_time(self, time_us: int) -> IndexEntry | None:
        """The last index entry whose group begins at or before `time_us`, or None."""
        index = self.index
        at = bisect.bisect_right(index, time_us, key=lambda e: e.time_us)
        return index[at - 1] if at else None

    def verify(self) -> None:
        """Read every byte and compare with header and footer. Raises `Damaged`."""
        end, expected = self.header.base, self.end  # an open segment may grow meanwhile
        passed = end == expected
        attachments = []
        for group in self.groups():
            for record in group.records:
                end = record.position
                passed = passed or end == expected
                if record.attachment is not None:
                    attachments.append((record.txid, *record.attachment))
        if (not passed or (self.footer is not None and end != self.end)
                or attachments != [a for a in self.attachments if a[0] <= end.txid]):
            raise Damaged(f"ends at {end}, and should at {expected}", path=str(self.path))
        self.verify_bytes()

    def verify_bytes(self) -> None:
        """Read every byte and compare with the footer's checksum, if it has one. Raises `Damaged`."""
        if self.footer is None:
            return
        file = self.files.open(self.path)
        try:
            digest = digest_of(file, self.footer.data_end).digest()
        finally:
            file.close()
        if digest != self.footer.digest:
            raise Damaged("does not match its checksum", path=str(self.path))


def digest_of(file: File, end: int) -> xxh3_128:
    """xxh3-128 over the bytes before `end`. The caller may add more to it."""
    digest = xxh3_128()
    for offset in range(0, end, len(_ZEROS)):
        digest.update(file.pread(min(len(_ZEROS), end - offset), offset))
    return digest


class Batch:
    """Records that will be one group of one segment. A heartbeat has no records, and `last` is None.

    `frames`: what follows the group's header, in pieces; `length` bytes together.
    """

    __slots__ = ("first", "first_time_us", "frames", "last", "length", "time_us", "writer")

    def __init__(self, writer: SegmentWriter, first: int, time_us: int) -> None:
        self.writer = writer
        self.first = first
        self.first_time_us = self.time_us = time_us
        self.frames: list[bytes] = []
        self.length = 0
        self.last: Record | None = None


class SegmentWriter:
    """The open end of a segment. `reserved` exceeds `segment.data_end` by the bytes appended and not yet written.

    With `joins`, it continues a sealed segment: the content is written again to another file, which then replaces the
    old one. So after a crash the segment is either sealed or open, and a reader sees the same bytes in both files.
    """

    def __init__(self, segment: Segment, file: File, path: Path, capacity: int, joins: bytes | None = None) -> None:
        """
        Args:
            segment: the segment to begin or to continue.
            file, path: an open spare or empty file to write to. It takes the segment's name in `start`.
            capacity: bytes of room in it, including the footer's.
            joins: the present content of `segment`, to continue it; None to begin it.
        """
        self.segment = segment
        self.seed, self.epoch, self.era_txid = segment.header.seed, segment.header.epoch, segment.header.era_txid
        self.limit = capacity - FOOTER_ROOM
        self.reserved = segment.data_end
        self.attachments = len(segment.attachments)
        self.started = False
        self._file = file
        self._path = path
        self._joins = joins
        self._digest = xxh3_128()

    def start(self, directory: Directory, patiently: Patiently) -> None:
        """Write and sync the beginning of the file, then durably give it the segment's name in the log's directory.

        It opens nothing and uses no path: numbered records belong to this log even if its directory has moved.
        """
        segment = self.segment
        data = segment.header.encode() if self._joins is None else self._joins
        patiently(lambda: self._file.pwrite(data, 0))
        self._file.sync()
        patiently(lambda: directory.rename(self._path.name, segment.path.name))
        self._path = self._file.path = segment.path
        directory.sync()
        self._joins = None
        self._digest.update(data)
        segment.footer = None
        segment.size = self._file.size()
        self.started = True

    def put_group(self, batch: Batch, patiently: Patiently) -> bytes:
        """Write a batch as one group, and return its bytes. Retrying is safe: the same bytes go to the same place, and
        nothing was reported as written yet."""
        offset, first, last = self.segment.data_end, batch.first, batch.last
        fields = GROUP_FIELDS.pack(GROUP_MAGIC, 0 if last is None else last.txid - first + 1, batch.length, 0, first,
                                   first - 1, offset, batch.time_us)
        data = b"".join((fields, xxh3_64_intdigest(fields, self.seed).to_bytes(8, "little"), *batch.frames))
        patiently(self._file.pwrite, data, offset)
        return data

    def sync_group(self, data: bytes, batch: Batch) -> None:
        """Sync the group that `put_group` wrote. When this returns, the group is durable."""
        segment = self.segment
        offset = segment.data_end
        self._file.datasync()
        self._digest.update(data)
        if batch.last is not None:
            segment.note_records(offset, batch.first, batch.first_time_us, batch.last)
        segment.data_end = offset + len(data)
        segment.complete_us = batch.time_us

    def seal(self, patiently: Patiently, *, followed: bool) -> None:
        """Write the footer, truncate the file after it, sync, close. `followed`: the next segment has begun."""
        write_footer(self._file, self.segment, self._digest.digest(), patiently, followed=followed)
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is. If it does not have the segment's name yet, the next opening removes it."""
        self._file.close()


def write_footer(file: File, segment: Segment, digest: bytes, patiently: Patiently, *, followed: bool) -> None:
    """Seal `segment` as it is known now. Its data before `data_end` must already be durable."""
    footer = Footer(segment.end, segment.end.txid - segment.header.base.txid, segment.first_time_us,
                    segment.last_time_us, segment.complete_us, segment.data_end, digest, tuple(segment.index),
                    tuple(segment.attachments), followed)
    data = footer.encode()
    patiently(lambda: file.pwrite(data, segment.data_end))
    patiently(lambda: file.truncate(segment.data_end + len(data)))
    file.sync()
    segment.footer = footer
    segment.size = segment.data_end + len(data)


def note_followed(file: File, segment: Segment, patiently: Patiently = once) -> None:
    """Record in the footer of a sealed segment that the next has begun. A torn footer counts as none."""
    assert segment.footer is not None
    write_footer(file, segment, segment.footer.digest, patiently, followed=True)


def holds_records(files: Files, directory: Path) -> bool:
    """Whether the log in a directory has records. The directory need not exist, and the log need not be whole."""
    if not files.is_directory(directory):
        return False
    for ordinal in ordinals_of(files.list(directory)):
        try:
            segment = Segment.load(files, directory / segment_name(ordinal))
        except (Damaged, UnsupportedFormat):
            return True
        if segment.footer is not None:
            if segment.end != segment.header.base:
                return True
            continue
        file = files.open(segment.path)
        try:
            if file.pread(len(GROUP_MAGIC), segment.data_start) == GROUP_MAGIC:
                return True
        finally:
            file.close()
    return False
