"""The log: append-only segments in one directory, the only place where a transaction becomes durable.

A `Log` is the durable part: it is opened and recovered, looked up by transaction and by time, verified and pruned. Any
thread may do that at any time while the `writer` (`writer.py`) adds to it.

Segments are listed oldest first. The list is replaced, never changed, so rotation and pruning do not disturb a reader
that holds it. All reading of records goes through a `Cursor`. A missing segment is an error: a gap is never skipped.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..env import Env
from ..errors import AheadOfSource, Damaged, InvalidInput, LogPruned
from ..model.positions import History, Position
from ..model.records import Attachment, Record, SegmentInfo
from .attachments import NAME as ATTACHMENT_NAME
from .attachments import AttachmentWriter, verify_attachment
from .cursor import Cursor
from .cutting import INTENT, finish, intend, intended
from .following import look_further
from .format import SegmentHeader
from .listing import Listing, SegmentSet, recover
from .preallocation import SPARE
from .recovery import LogRecovery
from .segment import Segment, ordinals_of, segment_name
from .slots import Slots
from .writer import LogOptions, LogWriter

AHEAD_US = 86_400_000_000
"""If commit times are this far ahead of the clock on opening, the clock was wrong when they were made, or is now."""
FLOOR_US = 1_577_836_800_000_000
"""The start of 2020: a clock before that has not been set since the machine started."""
NEWEST, ENDS = 2, 256
"""`verify_part` reads this many segments whole, and the header and footer of this many others."""

logger = logging.getLogger("holdfast.store")


class Log:
    """See the module's text. Made by `create` or `open`.

    Attributes:
        directory: where the segments are.
        engine: the name of the engine whose payloads it holds.
        read_only: whether it was opened read-only; another process may then write it.
        recovery: what opening it found.
        slots: see `slots.py`.
        writer: appends to the log.
    """

    def __init__(self, directory: Path, segments: Listing, *, options: LogOptions | None, env: Env,
                 read_only: bool = False) -> None:
        self.directory = directory
        self.files = env.files
        self.engine = segments[-1].header.engine
        self.read_only = read_only
        self.recovery = LogRecovery()
        self._env = env
        self._set = SegmentSet(segments, env)
        self.slots = Slots(directory, self.base, env, read_only=read_only)
        self.writer = LogWriter(directory, self._set, self.slots, options=options or LogOptions(), env=env)

    # --- making, opening, closing ----------------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, history: History, base: Position, *, engine: str, epoch: int = 0,
               last_time_us: int = 0, options: LogOptions | None = None, env: Env) -> Log:
        """Make a log that begins after `base`. Its first segment, which names `history`, is durable on return.

        Raises:
            DiskFull.
        """
        env.files.make_directory(directory)
        origin = SegmentHeader(b"", 0, engine, history, epoch, base, last_time_us, env.clock.now_us(),
                               era_txid=base.txid)
        none = Listing(env.files, directory, [])
        log = cls(directory, none.with_last(Segment(env.files, directory, origin, 0)), options=options, env=env)
        log._set.listing = none
        log.writer.start_now()
        return log

    @classmethod
    def open(cls, directory: Path, *, engine_position: Position | None = None, read_only: bool = False,
             options: LogOptions | None = None, env: Env) -> Log:
        """Open a log and recover its end: a torn end is cut, damage raises. Reads the first segment's header and the
        last two segments, however many there are.

        Args:
            directory: where the segments are.
            engine_position: of the engine's durable state. The log must hold it, and agree with its chain.
            read_only: change nothing: a torn end is ignored, not cut.
            options, env: how it is written, and the environment.

        Raises:
            Damaged, UnsupportedFormat.
        """
        files = env.files
        if files.is_directory(directory) and (after := intended(files, directory)) is not None:
            if read_only:
                raise Damaged("says that the log is being cut, or that cutting it was interrupted",
                              path=str(directory / INTENT), hint="open the store for writing once, which finishes it")
            finish(files, directory, after)
        names = files.list(directory) if files.is_directory(directory) else []
        ordinals = ordinals_of(names)
        if not ordinals:
            raise Damaged("has no log segment", path=str(directory))
        engine_txid = engine_position.txid if engine_position is not None else 0
        segments, recovery = recover(files, directory, ordinals, engine_txid=engine_txid, read_only=read_only)
        log = cls(directory, segments, options=options, env=env, read_only=read_only)
        log.recovery = recovery
        if not read_only:
            log._sweep(names)
        log._look_at_attachments(sweep=not read_only)
        if engine_position is not None:
            log._match(engine_position)
        return log

    def look(self) -> Position:
        """In a log that is open read-only, find what another process has made durable since. Returns the durable end.
        O(new log). One thread at a time.

        Raises:
            LogPruned: the next segment is no longer there.
            Diverged: the directory now has a different log.
            Damaged: bytes are wrong. If the log is being written, they may have been half written: look again.
        """
        try:
            self._set.listing = look_further(self.files, self.directory, self._segments)
        except FileNotFoundError as error:
            raise self.why_gone(self._segments[-1].header.ordinal, self.end.txid + 1) from error
        self._set.end = self._segments[-1].end
        return self.end

    def _match(self, state: Position) -> None:
        """Check that the engine's state belongs to this log's history, and that the log reaches back to it."""
        if state.txid < self.base.txid:
            raise Damaged(f"the log starts after transaction {self.base.txid}, the engine's state ends at {state.txid}",
                          path=str(self.directory))
        if self.chain_at(state.txid) != state.chain:
            raise Damaged(f"the engine's state is of another history than the log at transaction {state.txid}",
                          path=str(self.directory))

    def _sweep(self, names: list[str]) -> None:
        """Remove what a crash left behind: unfinished files and used spares. A good spare is kept."""
        files = self.files
        for name in [name for name in names if name.endswith(".new") or name.startswith("spare-")]:
            if not (name.endswith(".new") or SPARE.fullmatch(name)) or files.is_directory(self.directory / name):
                continue  # not our file
            if name.endswith(".new"):
                files.unlink(self.directory / name)
            else:
                self.writer.rooms.at(self.directory / name)

    def _look_at_attachments(self, *, sweep: bool) -> None:
        """Check that every attachment that records name is there, and remove others: those of loads that were never
        logged, or of pruned segments. Reads every segment only after a crash, or if the number is not right."""
        directory = self.directory / "attachments"
        there = [name for name in self.files.list(directory) if ATTACHMENT_NAME.fullmatch(name.removesuffix(".new"))
                 ] if self.files.is_directory(directory) else []
        segments = self._segments.read_already()
        if len(there) != self._segments.attachments() or (there and not self.recovery.clean):
            segments = list(self._segments)
            named = {a[1] for s in segments for a in s.attachments}
            for name in there:
                if sweep and name not in named:
                    self.files.unlink(directory / name)
        for segment in segments:
            for txid, name, size, _ in segment.attachments:
                path = self.attachment_path(name)
                if not self.files.exists(path) or self.files.size(path) != size:
                    raise Damaged(f"the attachment of transaction {txid} is missing or truncated", path=str(path))

    def begin_era(self) -> bool:
        """Durably let commit times begin anew if a wrong clock made those in the log: they are more than a day ahead of
        the clock, and none is within a day after now. Whether that was done. Call it before anything is appended.

        If the log does have times within a day after now, it was written at about this time before. Then the clock is
        behind, and commit times continue after the log's.

        Raises `DiskFull`.
        """
        writer, now = self.writer, self._env.clock.now_us()
        if writer.last_time_us <= now + AHEAD_US:
            return False
        writer.clock_jump_us = now - writer.last_time_us
        if now < FLOOR_US or self._time_after(now) <= now + AHEAD_US:
            logger.warning("the clock is %d days behind the log in %s: until it is set, commit times follow the log's",
                           -writer.clock_jump_us // AHEAD_US, self.directory)
            return False
        logger.warning("the log in %s has commit times %d days ahead of the clock, so a wrong clock made them: from "
                       "transaction %d on, times are the clock's again; restore to earlier ones by number",
                       self.directory, -writer.clock_jump_us // AHEAD_US, writer.appended.txid + 1)
        writer.begin_era(now - 1)
        return True

    def close(self) -> None:
        """Write what is appended, and seal."""
        self.writer.close()

    def abandon(self) -> None:
        """Close the files as they are, as a crash would."""
        self.writer.abandon()

    # --- where it stands -------------------------------------------------------------------------------------------

    @property
    def _segments(self) -> Listing:
        return self._set.listing

    @property
    def end(self) -> Position:
        """The durable end."""
        return self._set.end

    @property
    def history(self) -> History:
        """The history that the last segment's header names."""
        return self._segments[-1].header.history

    @property
    def epoch(self) -> int:
        """The epoch that the last segment's header names."""
        return self._segments[-1].header.epoch

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""
        return self._segments[0].header.base

    @property
    def base_epoch(self) -> int:
        """The epoch of the record before the first that is here, or a later one before the next record's."""
        return self._segments[0].header.epoch

    @property
    def last_base(self) -> int:
        """The transaction after which the last segment begins. A reader at the end needs no earlier segment."""
        return self._segments[-1].header.base.txid

    def segments(self) -> list[SegmentInfo]:
        """All segments, oldest first. Reads the header and footer of each that was not read yet. O(segments)."""
        return [s.info() for s in self._segments]

    def oldest(self) -> Iterator[SegmentInfo]:
        """All segments except the last, oldest first. Each is read only when the iterator reaches it."""
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
        """The error for a segment file that is missing when `txid` is read from it: it was pruned, here or by the
        process that writes the log, or it was lost."""
        if self._segments[0].header.ordinal > ordinal or (self.read_only and all(
                other > ordinal for other in ordinals_of(self.files.list(self.directory)))):
            return LogPruned(f"transaction {txid} is no longer in the log: its segment was pruned")
        return Damaged(f"has disappeared, and transaction {txid} is in it",
                       path=str(self.directory / segment_name(ordinal)))

    # --- reading ---------------------------------------------------------------------------------------------------

    def cursor(self, after: int | Position) -> Cursor:
        """A cursor after a transaction. If a position is given, its chain must agree with the log's."""
        return Cursor(self, after) if isinstance(after, int) else Cursor(self, *after)

    def read(self, after: int, upto: int | None = None) -> Iterator[Record]:
        """Durable records after `after`, up to and including `upto` (None: the durable end), in order.

        Raises:
            LogPruned: the first of them is no longer here.
            AheadOfSource: `upto` is not durable yet.
            Damaged: bytes have changed.
        """
        return self.cursor(after).read(upto)

    def chain_at(self, txid: int) -> bytes:
        """The chain at `txid`. Reads part of one segment. Raises `LogPruned`, `AheadOfSource`, `Damaged`."""
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
        """The commit time of `txid`, microseconds; 0 for the base if it is unknown. Cost and errors as `chain_at`."""
        if txid == self.base.txid:
            return self._segments[0].header.base_time_us
        if txid < self.base.txid:
            raise LogPruned(f"transaction {txid} is no longer in the log, which starts after {self.base.txid}")
        for record in self.read(txid - 1, txid):
            return record.time_us
        raise AheadOfSource(f"transaction {txid} is not here, the log ends at {self.end.txid}")

    def txid_at(self, time_us: int) -> int:
        """The last durable transaction committed at or before `time_us`, microseconds; the base's txid if there is
        none. O(log segments), per era.

        If times began anew (`Log.begin_era`), the newest era is searched first, and an earlier one only if `time_us` is
        before every transaction of the later eras.
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
            found = Log._in_era(segments, start, stop, time_us)
            if found > begin:
                return found
            stop = start
        return segments[0].header.base.txid

    @staticmethod
    def _in_era(segments: Listing, start: int, stop: int, time_us: int) -> int:
        """The last transaction in these segments at or before a time, or the one before them. Times must ascend."""
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
        """The first time of a commit or heartbeat in the newest era that is later than `time_us`. There must be one."""
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
        """A time, microseconds. Every later transaction has a later commit time."""
        return max(self._segments[-1].complete_us, self._segments[-1].last_time_us)

    def verify(self) -> None:
        """Read and check every byte of every segment and attachment. Raises `Damaged`."""
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
        """Check a bounded part: every byte of the newest segments and of one other, and the headers and footers of some
        more. `number` selects which; if you count it up, all get their turn. Raises `Damaged`."""
        segments = self._segments
        older = max(0, len(segments) - NEWEST)
        for at in range(min(older, ENDS)):
            segments[(number * ENDS + at) % older]  # on first use, this reads it and checks it against the next
        for at in {number % max(1, older), *range(older, len(segments))}:
            segments[at].verify_bytes()

    def ends(self) -> Iterator[tuple[Position, int, int]]:
        """For each segment except the last, oldest first: its end, the commit time of the last transaction up to there,
        and the bytes of its records and their attachments. O(segments)."""
        segments = self._segments
        for at in range(len(segments) - 1):
            segment = segments[at]
            yield segment.end, segment.last_time_us, segment.data_end + sum(a[2] for a in segment.attachments)

    def attachments_after(self, txid: int) -> list[str]:
        """The names of the attachments of transactions after `txid`. O(segments from there on)."""
        segments = self._segments
        return [a[1] for at in range(segments.at_or_before(txid + 1), len(segments))
                for a in segments[at].attachments if a[0] > txid]

    def attached(self, after: int = 0) -> list[int]:
        """The transactions after `after` that name an attachment. O(segments from there on)."""
        segments = self._segments
        if not segments.attachments():
            return []
        return [a[0] for at in range(segments.at_or_before(after + 1), len(segments))
                for a in segments[at].attachments if a[0] > after]

    def size(self) -> int:
        """Bytes of headers and groups in all segments, without footers and preallocated room. O(1)."""
        return self._segments.bytes_from(0)

    def size_after(self, txid: int) -> int:
        """As `size`, for the segments that hold transactions after `txid`. O(log segments)."""
        return self._segments.bytes_after(txid)

    def beyond(self, txid: int) -> tuple[int, int]:
        """The bytes of log after `txid`, and the commit time of the first transaction there, microseconds; 0 and 0 if
        there is none. Rounded to an entry of the segment's index: the bytes up, the time down. No record is read:
        O(log segments)."""
        segments = self._segments
        if txid >= segments[-1].end.txid:
            return 0, 0
        try:
            at = segments.at_or_before(txid + 1)
            segment = segments[at]
        except FileNotFoundError:  # pruned by another process
            at, segment = len(segments) - 1, segments[-1]
        place = segment.place_of_txid(txid + 1)
        if place is None:
            return segments.bytes_from(at) - segment.data_start, segment.first_time_us
        return segments.bytes_from(at) - place.offset, place.time_us

    # --- pruning ---------------------------------------------------------------------------------------------------

    def prune(self, segments: list[SegmentInfo]) -> None:
        """Delete these segments, which must be the oldest, and their attachments. The last segment stays in any case.
        The caller has checked that nobody needs them."""
        files, count = self.files, min(len(segments), len(self._segments) - 1)
        gone = [self._segments[at] for at in range(count)]
        if [s.header.ordinal for s in gone] != [s.ordinal for s in segments[:count]]:
            raise InvalidInput("only the oldest segments can be pruned")
        try:
            self._set.remove_first(gone)
            held = files.open_directory(self.directory)
            try:
                for segment in gone:  # oldest first, so a crash leaves no gap
                    files.unlink(segment.path, missing_ok=True)
                    held.sync()
                    for _, name, _, _ in segment.attachments:
                        files.unlink(self.attachment_path(name), missing_ok=True)
            finally:
                held.close()
        except BaseException:
            # List the segments that are still there again: they are the oldest, and must be pruned first next time.
            self._set.remove_first(gone, [segment for segment in gone if files.exists(segment.path)])
            raise

    # --- cutting ---------------------------------------------------------------------------------------------------

    def last_epoch(self) -> int:
        """The epoch of the last record, or of the first segment's header if there is no record. Reads part of one
        segment."""
        end = self.end.txid
        return self._segments[0].header.epoch if end == self.base.txid else next(self.read(end - 1, end)).epoch

    def cut(self, after: Position) -> None:
        """Remove the records after a position of this log, and their attachments. Nothing may be waiting to be written.
        Once the intent is synced, an opening finishes what a failure has left. O(bytes of one segment). Raises
        `DiskFull`, `OSError`, `Damaged`."""
        names = self.attachments_after(after.txid)
        self.writer.pause()
        intend(self.files, self.directory, after)
        self._set.cut(finish(self.files, self.directory, after))
        self.writer.resume(self._segments[-1], self.last_epoch())
        for name in names:
            self.files.unlink(self.attachment_path(name), missing_ok=True)

    def when_full(self, hint: str) -> str:
        """The hint for a full disk: `hint`, and the slot that holds back most log. O(slots)."""
        return self.slots.when_full(hint, self._segments.bytes_after, self.writer.options.segment_bytes)

    # --- attachments -----------------------------------------------------------------------------------------------

    def attachment_path(self, name: str) -> Path:
        """The path of an attachment. Raises `InvalidInput` if `name` does not have the form that the kit makes."""
        if not ATTACHMENT_NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} is not an attachment name", hint="attachment names are made by the kit")
        return self.directory / "attachments" / name

    def new_attachment(self) -> AttachmentWriter:
        """A file to write a bulk load's data to. Raises `DiskFull`."""
        name = f"{self._env.randomness.token(16).hex()}.att"
        return AttachmentWriter(self.files, self.directory / "attachments", name)

    def import_attachment(self, attachment: Attachment) -> AttachmentWriter:
        """A file to copy another log's attachment to, byte for byte. `finish` checks it against its record."""
        return AttachmentWriter(self.files, self.directory / "attachments", attachment.name, attachment)

    def status(self) -> dict[str, Any]:
        """What `Store.status` shows of the log. O(1)."""
        last = self._segments[-1].header
        return {"segments": len(self._segments), "bytes": self.size(), "first": self.base.txid + 1,
                "last": self.end.txid, "times_since": last.era_txid + 1, "clock_jump_us": self.writer.clock_jump_us}
