"""Finding the end of a log after whatever happened.

All segments except the last two are sealed. The order is: a segment is begun; the one before it is sealed with a footer
that says that it is followed; then the new segment takes records. So a lost last segment is noticed.

The last segment may be torn. It is read group by group until the bytes make no sense. If any later valid group header
says that these bytes were durable, they are damaged, and that is an error. Otherwise they were never acknowledged, and
are cut. The engine's own position is such a watermark too, and so is the base of the next segment.

Groups above the last watermark may be in the page cache only, if the process died but not the machine. So they are
written again and synced before anything counts as durable. Then the segment is sealed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..env import File, Files
from ..errors import Damaged
from .format import BadBytes, Group, later_watermark, read_groups
from .segment import Segment, digest_of, once, write_footer

_STEP = 1 << 20
_ZEROS = bytes(_STEP)


@dataclass(frozen=True, slots=True)
class LogRecovery:
    """What recovery did. `clean`: the log had been sealed. `cut_bytes` at `cut_offset` of `path` were a torn end, and
    were cut. `rewritten_bytes` were not known to be durable, and now are."""

    clean: bool = True
    path: str | None = None
    cut_offset: int = 0
    cut_bytes: int = 0
    rewritten_bytes: int = 0


def recover_segment(files: Files, segment: Segment, *, hold: bool, durable: int, read_only: bool,
                    followed: bool = False) -> LogRecovery:
    """Read an unsealed segment to its end and, unless `read_only`, make that end durable, cut and seal it.

    Args:
        files, segment: the segment.
        hold: ignore the last group, unless it is known to have been durable.
        durable: a transaction that is known, from outside the segment, to have been durable.
        read_only: change nothing.
        followed: the next segment has begun.
    """
    file = files.open(segment.path, "read" if read_only else "write")
    try:
        size, seed = file.size(), segment.header.seed
        watermark = segment.data_start
        held: Group | None = None
        stopped = "zeros"
        try:
            for group in read_groups(file, seed, segment.data_start, size, segment.header.base):
                watermark = group.durable_end
                if held is not None:
                    segment.note(held)
                held = group
            at = held.end if held is not None else segment.data_end
        except BadBytes as bad:
            # A torn group is cut as a whole: none of its transactions was acknowledged.
            stopped, at = bad.reason, bad.offset
        if held is not None and not (hold and held.records and held.records[0].txid > durable):
            segment.note(held)
        rest = _used(file, at, size)
        later = later_watermark(file, seed, at) if rest else None
        if later is not None:
            raise Damaged(f"{stopped}, although the group at byte {later} shows that this was durable",
                          path=str(segment.path), offset=at)
        if segment.end.txid < durable:
            raise Damaged(f"{stopped} after transaction {segment.end.txid}, although {durable} was durable",
                          path=str(segment.path), offset=at)
        data_end = segment.data_end
        cut = _used(file, data_end, size)
        if read_only:
            return LogRecovery(False, str(segment.path), data_end, cut, 0)
        for offset in range(watermark, data_end, _STEP):
            file.pwrite(file.pread(min(_STEP, data_end - offset), offset), offset)
        file.datasync()
        write_footer(file, segment, digest_of(file, data_end).digest(), once, followed=followed)
        return LogRecovery(False, str(segment.path), data_end, cut, data_end - watermark)
    finally:
        file.close()


def _used(file: File, start: int, size: int) -> int:
    """How many bytes from `start` on are used: the zeros at the end are preallocated room."""
    used = 0
    for offset in range(start, size, _STEP):
        data = file.pread(min(_STEP, size - offset), offset)
        if data != _ZEROS[:len(data)]:  # a hundred times as fast as to strip them, and most of a segment is room
            used = offset - start + len(data.rstrip(b"\0"))
    return used
