"""Cutting a log: the records above a position are removed, so that the log can continue as another one does.

An *intent* is synced first, a document in the log's directory. Then segments are removed, newest first. The last one
that stays is written again beside and renamed, without the records above the position. Then the intent is removed. An
opening that finds an intent does the rest, from whatever step a crash left: each step that was done is seen in the
files. All segments are sealed before the intent is written.
"""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_64_intdigest

from ..env import File, Files
from ..errors import Damaged
from ..model import document
from ..model.positions import Position
from .format import FRAME, GROUP_FIELDS, GROUP_HEADER, GROUP_MAGIC, Group
from .segment import Segment, digest_of, once, ordinals_of, segment_name, write_footer

INTENT = "CUT"
_MAGIC, _VERSION = b"HFLOGCUT", 1


def intended(files: Files, directory: Path) -> Position | None:
    """The position of a cut that was begun and not finished; None if there is none. Raises `Damaged`."""
    path = directory / INTENT
    if not files.exists(path):
        return None
    body = document.read(files, path, _MAGIC, _VERSION)
    try:
        return Position(*body["after"])
    except (KeyError, TypeError) as error:
        raise Damaged(f"lacks or garbles the position of the cut: {error}", path=str(path)) from error


def intend(files: Files, directory: Path, after: Position) -> None:
    """Durably begin to cut the log after a position. Raises `DiskFull`: nothing has changed."""
    document.write(files, directory / INTENT, _MAGIC, _VERSION, {"after": list(after)})


def finish(files: Files, directory: Path, after: Position) -> Segment:
    """Do what is left of a cut that was begun. Returns the last segment, sealed. O(bytes of that segment). May be
    called again after any failure. Raises `Damaged`, `OSError`."""
    ordinals = sorted(ordinals_of(files.list(directory)))
    held = files.open_directory(directory)
    try:
        last = Segment.load(files, directory / segment_name(ordinals[-1]))
        while len(ordinals) > 1 and last.header.base.txid >= after.txid:
            files.unlink(last.path)
            held.sync()
            ordinals.pop()
            last = Segment.load(files, directory / segment_name(ordinals[-1]))
        if last.footer is None:
            raise Damaged("is not sealed, although the log is being cut", path=str(last.path))
        if last.end.txid > after.txid or last.footer.followed:
            last = _rewritten(files, last, after)
            held.sync()
        if last.end != after:
            raise Damaged(f"ends at {last.end}, where the log was to be cut at {after}", path=str(last.path))
        files.unlink(directory / INTENT)
        held.sync()
    finally:
        held.close()
    return last


def _rewritten(files: Files, segment: Segment, after: Position) -> Segment:
    """Replace a segment's file by one without the records after a position. The rename is not synced yet."""
    short = Segment(files, segment.path, segment.header, segment.data_start)
    beside = segment.path.with_suffix(".new")
    source = files.open(segment.path)
    try:
        files.unlink(beside, missing_ok=True)
        file = files.open(beside, "create")
        try:
            file.pwrite(source.pread(segment.data_start, 0), 0)
            for group in segment.groups():
                if group.records and group.records[-1].txid > after.txid:
                    if group.records[0].txid <= after.txid:
                        _put_part(file, segment, group, after.txid, short)
                    break
                file.pwrite(source.pread(group.end - group.offset, group.offset), group.offset)
                short.note(group)
            write_footer(file, short, digest_of(file, short.data_end).digest(), once, followed=False)
            files.rename(beside, segment.path)
        finally:
            file.close()
    finally:
        source.close()
    return short


def _put_part(file: File, segment: Segment, group: Group, last: int, short: Segment) -> None:
    """Write the records of a group up to transaction `last` as a group."""
    records, seed = [record for record in group.records if record.txid <= last], segment.header.seed
    frames = b"".join(FRAME.pack(len(r.header), len(r.payload), xxh3_64_intdigest(r.header + r.payload, seed))
                      + r.header + r.payload for r in records)
    first, time_us = records[0].txid, records[-1].time_us
    fields = GROUP_FIELDS.pack(GROUP_MAGIC, len(records), len(frames), 0, first, first - 1, group.offset, time_us)
    file.pwrite(fields + xxh3_64_intdigest(fields, seed).to_bytes(8, "little") + frames, group.offset)
    short.note(Group(group.offset, group.offset + GROUP_HEADER.size + len(frames), time_us, group.offset, records))
