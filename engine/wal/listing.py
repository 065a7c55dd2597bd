"""The segments of a log, oldest first, each read on first use; and how the end of the log is found on opening.

Opening a log reads its last two segments, and the first one to know where the log begins. The others are known by name
only until they are used, so an opening costs the same however many there are. The ordinals in the names show that none
is missing in the middle. Damage *in* a segment in the middle is found when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from ..env import Env, Files
from ..errors import Damaged
from .recovery import LogRecovery, recover_segment
from .segment import Segment, note_followed, segment_name


class Listing:
    """Immutable, except that segments are read on first use. Any number of threads may hold and use it."""

    def __init__(self, files: Files, directory: Path, slots: list[Segment | int]) -> None:
        """`slots`: segments, or ordinals of segments that were not read yet. The last one must have been read."""
        self._files = files
        self._directory = directory
        self._slots = slots

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Segment]:
        for at in range(len(self._slots)):
            yield self[at]

    def __getitem__(self, at: int) -> Segment:
        """Raises `Damaged`; `FileNotFoundError` if another process has pruned the segment."""
        slot = self._slots[at]
        if isinstance(slot, int):
            slot = self._slots[at] = self._load(slot, self._slots[at + 1])
        return slot

    def _load(self, ordinal: int, following: Segment | int) -> Segment:
        segment = Segment.load(self._files, self._directory / segment_name(ordinal))
        if segment.header.ordinal != ordinal:
            raise Damaged(f"says it is segment {segment.header.ordinal}", path=str(segment.path), offset=0)
        if isinstance(following, int) and segment.footer is None:
            following = Segment.load(self._files, self._directory / segment_name(following))
        if isinstance(following, Segment):
            if segment.footer is None:  # its footer is damaged: read the records without it
                recover_segment(self._files, segment, durable=following.header.base.txid, hold=False, read_only=True)
            check_followed(segment, following)
        return segment

    @property
    def first_ordinal(self) -> int:
        slot = self._slots[0]
        return slot if isinstance(slot, int) else slot.header.ordinal

    def read_already(self) -> list[Segment]:
        return [slot for slot in self._slots if isinstance(slot, Segment)]

    def with_last(self, segment: Segment) -> Listing:
        return Listing(self._files, self._directory, [*self._slots, segment])

    def with_first(self, segments: list[Segment]) -> Listing:
        return Listing(self._files, self._directory, [*segments, *self._slots])

    def without_first(self, count: int) -> Listing:
        return Listing(self._files, self._directory, self._slots[count:])

    def up_to(self, last: Segment) -> Listing:
        """The segments up to one that was cut. Who holds its object sees the cut one from now on."""
        at = last.header.ordinal - self.first_ordinal
        known = self._slots[at]
        if isinstance(known, Segment):
            vars(known).update(vars(last))  # one step for other threads
            last = known
        return Listing(self._files, self._directory, [*self._slots[:at], last])

    def at_or_before(self, txid: int) -> int:
        """The index of the last segment that starts at or before `txid`, or 0. O(log segments)."""
        low, high = 0, len(self) - 1
        while low < high:
            middle = (low + high + 1) // 2
            try:
                before = self[middle].first <= txid
            except FileNotFoundError:
                before = True  # pruned by another process; if it was lost, reading up to it will raise
            low, high = (middle, high) if before else (low, middle - 1)
        return low

    def bytes_from(self, at: int) -> int:
        """Bytes of the segments from index `at` on, without their footers. O(1)."""
        last = self[-1]
        return last.header.bytes_before + last.data_end - self[at].header.bytes_before

    def bytes_after(self, txid: int) -> int:
        """Bytes of the segments that hold transactions after `txid`, without their footers. O(log segments)."""
        if txid >= self[-1].end.txid:
            return 0
        try:
            return self.bytes_from(self.at_or_before(txid + 1))
        except FileNotFoundError:  # pruned by another process
            return self.bytes_from(0)

    def attachments(self) -> int:
        """How many attachments the records name. O(1)."""
        last = self[-1]
        return last.header.attachments_before + len(last.attachments) - self[0].header.attachments_before


class SegmentSet:
    """The present segments of a log. The writer adds some, and pruning removes some, by replacing the listing. A reader
    that took a listing keeps it unchanged.

    Attributes:
        listing: the segments.
        end: the durable end.
    """

    def __init__(self, listing: Listing, env: Env) -> None:
        self.listing = listing
        self.end = listing[-1].end
        self._lock = env.scheduler.lock()  # around each replacement: rotation and pruning run on different threads

    def add(self, segment: Segment) -> None:
        """Append a segment to the listing."""
        with self._lock:
            self.listing = self.listing.with_last(segment)

    def cut(self, last: Segment) -> None:
        """`last`, which was cut, is the last segment now."""
        with self._lock:
            self.end = last.end
            self.listing = self.listing.up_to(last)

    def remove_first(self, gone: Sequence[Segment], but: Sequence[Segment] = ()) -> None:
        """Remove the oldest segments, `gone`, except those in `but`. May be called again with the same `gone`."""
        with self._lock:
            listing = self.listing
            if gone and listing.first_ordinal == gone[0].header.ordinal:
                listing = listing.without_first(len(gone))
            self.listing = listing.with_first([*but])


def check_followed(segment: Segment, following: Segment) -> None:
    """Raises `Damaged` unless `following` begins where `segment` ends."""
    same = following.header.history.store_id == segment.header.history.store_id
    if following.header.base != segment.end or not same:
        raise Damaged(f"starts after {following.header.base}, and the one before ends at {segment.end}",
                      path=str(following.path))


def recover(files: Files, directory: Path, ordinals: list[int], *, engine_txid: int,
            read_only: bool) -> tuple[Listing, LogRecovery]:
    """Recover the end of the log in `directory`.

    Args:
        files, directory: where it is.
        ordinals: of the segments that are there, ascending; at least one.
        engine_txid: the engine's durable state holds this transaction, so the log must hold it too.
        read_only: change nothing, and ignore the last group if it is not known to be durable.

    Raises:
        Damaged, UnsupportedFormat.
    """
    if ordinals[-1] - ordinals[0] != len(ordinals) - 1:
        after = next(b for a, b in pairwise(ordinals) if b != a + 1)
        raise Damaged("the segment before this one is missing", path=str(directory / segment_name(after)))
    ends = [Segment.load(files, directory / segment_name(ordinal)) for ordinal in ordinals[-2:]]
    for segment in ends:
        if segment.path.name != segment_name(segment.header.ordinal):
            raise Damaged(f"says it is segment {segment.header.ordinal}", path=str(segment.path), offset=0)
    last = ends[-1]
    if len(ends) == 2:
        _recover_followed(files, *ends, read_only=read_only)
    recovery = LogRecovery()
    if last.footer is None:
        recovery = recover_segment(files, last, hold=read_only, durable=engine_txid, read_only=read_only)
    elif last.footer.followed:
        missing = directory / segment_name(last.header.ordinal + 1)
        raise Damaged(f"is missing, although {last.path.name} says that it was begun: the transactions after "
                      f"{last.end.txid} are lost", path=str(missing))
    if last.end.txid < engine_txid:
        raise Damaged(f"the log ends at transaction {last.end.txid}, the engine's state holds {engine_txid}",
                      path=str(last.path))
    return Listing(files, directory, [*ordinals[:-2], *ends]), recovery


def _recover_followed(files: Files, segment: Segment, last: Segment, *, read_only: bool) -> None:
    """Finish what a crash may have cut off after `last` had begun: sealing `segment`, or marking it as followed."""
    if segment.footer is None:
        recover_segment(files, segment, hold=False, durable=last.header.base.txid, read_only=read_only, followed=True)
    check_followed(segment, last)
    if segment.footer is not None and not segment.footer.followed and not read_only:
        file = files.open(segment.path, "write")
        try:
            note_followed(file, segment)
        finally:
            file.close()
