"""Finding what another process has added to a log that is open read-only, at the cost of what it has added.

Reading resumes where the last known segment ended: new groups there, then its footer, then the next segment, and so on.
The last group of an open segment is ignored, because only the next group, a heartbeat or the footer shows that it is
durable. What was known to be durable stays durable: if the writer crashes, its recovery cuts only what was never shown.
"""

from __future__ import annotations

from pathlib import Path

from ..env import Files
from ..errors import Damaged, Diverged
from .format import BadBytes, Group, later_watermark, read_footer, read_groups, read_header
from .listing import Listing, check_followed
from .segment import Segment, segment_name


def look_further(files: Files, directory: Path, segments: Listing) -> Listing:
    """The listing as it is now. Updates the last segment of `segments` in place.

    Raises:
        FileNotFoundError: a segment is no longer there.
        Diverged: the directory now has a different log.
        Damaged: bytes are wrong. If the log is being written, they may have been half written.
    """
    while True:
        last = segments[-1]
        _look_at(files, last)
        if last.footer is None or not last.footer.followed:
            return segments
        following = Segment.load(files, directory / segment_name(last.header.ordinal + 1))
        check_followed(last, following)
        segments = segments.with_last(following)


def _look_at(files: Files, segment: Segment) -> None:
    file = files.open(segment.path)
    try:
        if read_header(file)[0] != segment.header:
            raise Diverged(f"{segment.path} is no longer the segment that was opened", hint="open the store again")
        footer = read_footer(file)
        if footer is not None and footer == segment.footer:
            return
        end = file.size() if footer is None else footer.data_end
        held: Group | None = None
        try:
            for group in read_groups(file, segment.header.seed, segment.data_end, end, segment.end):
                if held is not None:
                    segment.note(held)
                held = group
        except BadBytes as bad:  # torn or half written, unless a later group says that this was durable
            if footer is not None or later_watermark(file, segment.header.seed, bad.offset) is not None:
                raise Damaged(bad.reason, path=str(segment.path), offset=bad.offset) from bad
        segment.size = file.size()
        if footer is None:
            segment.footer = None  # the writer has continued this sealed segment
            return
        if held is not None:
            segment.note(held)
        if (segment.end, segment.data_end) != (footer.last, footer.data_end):
            raise Damaged(f"ends after transaction {segment.end.txid}, and says {footer.last.txid}",
                          path=str(segment.path), offset=segment.data_end)
        segment.take_footer(footer)
    finally:
        file.close()
