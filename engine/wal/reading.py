"""The reading half of a log: what is durable, looked up by transaction and by time, and verified.

Segments are listed oldest first, and the list is replaced, never changed, so a reader that holds it is not disturbed by
rotation or pruning. All reading of records is a `Cursor`'s. That a segment is gone is an error of its own: a gap is
never skipped.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path

from ..env import Files
from ..errors import AheadOfSource, Damaged, InvalidInput, LogPruned
from ..model.positions import Position
from ..model.records import Attachment, Record, SegmentInfo
from .attachments import NAME as ATTACHMENT_NAME
from .attachments import verify_attachment
from .cursor import Cursor
from .listing import Listing
from .segment import Segment, is_segment, segment_name

NEWEST, ENDS = 2, 256
"""Of a log that is looked at: how many segments are read whole, and of how many others beginning and end."""


class LogReading:
    """See the module's text. `Log` is made of this and of what writes; it sets these attributes. Everything here may be
    called from any thread at any time."""

    directory: Path
    files: Files
    read_only: bool
    """Whether another process may write it meanwhile."""
    end: Position
    """The durable end."""
    _segments: Listing

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""
        return self._segments[0].header.base

    @property
    def last_base(self) -> int:
        """The transaction after which the last segment begins: who is at the end needs no segment before that."""
        return self._segments[-1].header.base.txid

    def segments(self) -> list[SegmentInfo]:
        """All segments, oldest first. Reads the header and footer of each that was not read yet."""
        return [s.info() for s in self._segments]

    def oldest(self) -> Iterator[SegmentInfo]:
        """All segments but the last, the oldest first, each read when it is asked for."""
        segments = self._segments
        return (segments[at].info() for at in range(len(segments) - 1))

    def segment_of(self, txid: int) -> Segment:
        """The segment that holds `txid`, which is at or below the durable end and above the base. Raises `LogPruned`,
        `Damaged`."""
        segments = self._segments
        at = segments.at_or_before(txid)
        try:
            return segments[at]
        except FileNotFoundError as error:
            raise self.why_gone(segments[-1].header.ordinal - len(segments) + 1 + at, txid) from error

    def why_gone(self, ordinal: int, txid: int) -> LogPruned | Damaged:
        """A segment's file is not there when `txid` is to be read from it: it was pruned, here or by another process
        that writes the log meanwhile, or it was lost."""
        if self._segments[0].header.ordinal > ordinal or (self.read_only and all(
                int(name[:12]) > ordinal for name in self.files.list(self.directory) if is_segment(name))):
            return LogPruned(f"transaction {txid} is no longer in the log: its segment was pruned")
        return Damaged(f"has disappeared, and transaction {txid} is in it",
                       path=str(self.directory / segment_name(ordinal)))

    def cursor(self, after: int | Position) -> Cursor:
        """A place in the log that moves forward: see `Cursor`. With a position, its chain must be the log's."""
        return Cursor(self, after) if isinstance(after, int) else Cursor(self, *after)

    def read(self, after: int, upto: int | None = None) -> Iterator[Record]:
        """Durable records after `after`, up to and with `upto` (the durable end, without), in order: a new cursor's.

        Raises:
            LogPruned: the first of them is no longer here.
            AheadOfSource: `upto` is not durable yet.
            Damaged: bytes have changed.
        """
        return self.cursor(after).read(upto)

    def chain_at(self, txid: int) -> bytes:
        """The chain at `txid`. Raises `LogPruned`, `AheadOfSource`, `Damaged`."""
        if txid == self.end.txid:
            return self.end.chain
        if txid == self.base.txid:
            return self.base.chain
        if txid > self.end.txid:
            raise AheadOfSource(f"transaction {txid} is not here, the log ends at {self.end.txid}")
        if txid < self.base.txid:
            raise LogPruned(f"the chain at transaction {txid} is not known; the log starts after {self.base.txid}")
        return next(self.read(txid - 1, txid)).chain

    def time_of(self, txid: int) -> int:
        """The commit time of `txid`, microseconds; for the base, 0 where it is not known. Raises as `chain_at`."""
        if txid == self.base.txid:
            return self._segments[0].header.base_time_us
        if txid < self.base.txid:
            raise LogPruned(f"transaction {txid} is no longer in the log, which starts after {self.base.txid}")
        for record in self.read(txid - 1, txid):
            return record.time_us
        raise AheadOfSource(f"transaction {txid} is not here, the log ends at {self.end.txid}")

    def txid_at(self, time_us: int) -> int:
        """The last durable transaction committed at or before `time_us`; the base's where there is none.

        Where times began anew (`Log.begin_era`), a time is looked for in the newest era first, and in an earlier one
        only if it is before every transaction of those after.
        """
        while True:
            segments = self._segments
            try:
                return self._txid_at(segments, time_us)
            except FileNotFoundError as error:
                if self._segments[0] is segments[0]:
                    raise Damaged("a segment has disappeared", path=str(self.directory)) from error

    @staticmethod
    def _txid_at(segments: Listing, time_us: int) -> int:
        stop = len(segments)
        while stop:
            begin = segments[stop - 1].header.era_txid
            start = min(segments.at_or_before(begin + 1), stop - 1)
            found = LogReading._in_era(segments, start, stop, time_us)
            if found > begin:
                return found
            stop = start
        return segments[0].header.base.txid

    @staticmethod
    def _in_era(segments: Listing, start: int, stop: int, time_us: int) -> int:
        """The last transaction in these segments at or before a time, or the one before them. Their times only grow."""
        at = bisect.bisect_right(range(start, stop), time_us, key=lambda at: segments[at].last_time_us) + start
        if at == stop:
            return segments[stop - 1].end.txid
        segment = segments[at]  # the first that holds a later transaction, or comes after a later heartbeat
        found = segment.header.base.txid
        for group in segment.groups(segment.place_of_time(time_us), segment.data_end):
            for record in group.records:
                if record.time_us > time_us:
                    return found
                found = record.txid
        return found

    def _time_after(self, time_us: int) -> int:
        """The first time in the newest era that is later than this one, of a commit or of a heartbeat; one is."""
        segments = self._segments
        start = segments.at_or_before(segments[-1].header.era_txid + 1)
        at = bisect.bisect_right(range(start, len(segments)), time_us,
                                 key=lambda at: max(segments[at].last_time_us, segments[at].complete_us)) + start
        segment = segments[at]
        if segment.header.base_time_us > time_us:
            return segment.header.base_time_us
        return next(t for group in segment.groups(segment.place_of_time(time_us), segment.data_end)
                    for t in (*(r.time_us for r in group.records), group.time_us) if t > time_us)

    @property
    def complete_us(self) -> int:
        """Every later transaction has a later commit time."""
        return max(self._segments[-1].complete_us, self._segments[-1].last_time_us)

    def verify(self) -> None:
        """Read every byte of every segment and attachment. Raises `Damaged`."""
        before: Segment | None = None
        for segment in self._segments:
            segment.verify()
            if before is not None and before.end != segment.header.base:
                raise Damaged(f"starts after {segment.header.base}, and {before.path.name} ends at {before.end}",
                              path=str(segment.path))
            for _, name, size, digest in segment.attachments:
                verify_attachment(self.files, self.attachment_path(name), Attachment(name, size, digest))
            before = segment

    def verify_part(self, number: int) -> None:
        """Read a bounded part: the bytes of the newest segments and of one other, and of some more what they say at
        their beginning and end. Which, follows from `number`; as it grows, all come round. Raises `Damaged`."""
        segments = self._segments
        older = max(0, len(segments) - NEWEST)
        for at in range(min(older, ENDS)):
            segments[(number * ENDS + at) % older]  # read, and compared with its neighbour, if it was not yet
        for at in {number % max(1, older), *range(older, len(segments))}:
            segments[at].verify_bytes()

    def ends(self) -> Iterator[tuple[Position, int, int]]:
        """Of each segment but the last, oldest first: where it ends, when the last transaction up to there was
        committed, and the bytes of its records and their attachments. Costs the number of segments."""
        segments = self._segments
        for at in range(len(segments) - 1):
            segment = segments[at]
            yield segment.end, segment.last_time_us, segment.data_end + sum(a[2] for a in segment.attachments)

    def attachments_after(self, txid: int) -> list[str]:
        """The names of the attachments of later transactions. Costs the segments from there on."""
        segments = self._segments
        return [a[1] for at in range(segments.at_or_before(txid + 1), len(segments))
                for a in segments[at].attachments if a[0] > txid]

    def attached(self, after: int = 0) -> list[int]:
        """The transactions after `after` that name an attachment. Costs the segments from there on."""
        segments = self._segments
        if not segments.attachments():
            return []
        return [a[0] for at in range(segments.at_or_before(after + 1), len(segments))
                for a in segments[at].attachments if a[0] > after]

    def size(self) -> int:
        """Bytes of log in all segments: headers and groups, without footers and room taken in advance."""
        return self._segments.bytes_from(0)

    def size_after(self, txid: int) -> int:
        """As `size`, of the segments that hold transactions after `txid`. Costs the logarithm of their number."""
        segments = self._segments
        if txid >= segments[-1].end.txid:
            return 0
        try:
            return segments.bytes_from(segments.at_or_before(txid + 1))
        except FileNotFoundError:  # pruned by another process
            return self.size()

    def attachment_path(self, name: str) -> Path:
        """Raises `InvalidInput` where `name` is not of the form that the kit gives."""
        if not ATTACHMENT_NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} is not an attachment name", hint="attachment names are made by the kit")
        return self.directory / "attachments" / name
