"""What writes a log: it numbers records, groups them, and brings the groups to the disk, segment after segment.

Data flows one way. `append` numbers, chains and encodes a record and puts it into the batch that is filling; nothing is
written. `take` hands the oldest batch to whoever syncs, and `write` puts it into the file as one group and syncs once.
`append`, `take` and `heartbeat` must be called under one lock (the store's), `write` by one thread at a time, outside
of it.

A batch belongs to one segment. When a record does not fit, `append` goes on in the next segment at once, whose room was
made before that lock was taken (`make_room`); `write`, when everything in the one before is written, starts the next,
and seals the one before, whose footer then says that it is followed. So a segment under its own name always has a valid
header, a segment takes records only where the one before is sealed, and one that took records and is gone is missed,
the last one too.

After an opening the log goes on in its last segment, if that is small, and not in a new one each time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ..env import Directory, Env, File, is_disk_full
from ..env.shown import shown
from ..env.system import is_limit
from ..errors import DiskFull, InvalidInput, SettingError
from ..model.positions import History, Position
from ..model.records import Attachment, Record, SegmentInfo
from .format import FRAME, GROUP_HEADER, SegmentHeader
from .listing import SegmentSet
from .preallocation import RoomNeeded, Rooms
from .segment import FOOTER_ROOM, JOIN_BYTES, MAX_ATTACHMENTS, Segment, SegmentWriter, note_followed, segment_name
from .slots import Slots

_frame = FRAME.pack
_FRAME, _GROUP = FRAME.size, GROUP_HEADER.size

logger = logging.getLogger("holdfast.store")

PATIENCE_S = 60.0
"""For so long what is on its way to the disk waits for memory. A log that lacks it for longer counts as failed."""
MIN_SEGMENT, MAX_SEGMENT = 128 << 10, 64 << 20


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a log is written.

    Attributes:
        segment_bytes: size of a segment, 128 KiB to 64 MiB. A record that is larger gets a segment of its own size.
        preallocate: zero-fill segments before they are needed. A backup target's log does not.
        group_bytes: a group is at most about this large.
        max_record_bytes: larger payloads are refused.
    """

    segment_bytes: int = 16 << 20
    preallocate: bool = True
    group_bytes: int = 4 << 20
    max_record_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not MIN_SEGMENT <= self.segment_bytes <= MAX_SEGMENT:
            raise SettingError(f"segment_bytes must be {MIN_SEGMENT:,} to {MAX_SEGMENT:,}, "
                               f"not {shown(self.segment_bytes)}")


class Batch:
    """Records on their way into one group of one segment. A heartbeat has none, and `last` is None."""

    __slots__ = ("first", "first_time_us", "frames", "last", "length", "records", "time_us", "writer")

    def __init__(self, writer: SegmentWriter, first: int, time_us: int) -> None:
        self.writer = writer
        self.first = first
        self.first_time_us = self.time_us = time_us
        self.frames: list[bytes] = []
        self.length = 0
        self.records = 0
        self.last: Record | None = None


class LogWriter:
    """See the module's text. A `Log` has one.

    Attributes:
        appended: the position of the last record that was appended.
        history, epoch: what the next segment's header names.
        last_time_us: commit time of the last record that was appended, or what was promised since; the next is later.
        clock_jump_us: how far commit times were held back or found to have jumped, last time it happened.
        waiting_bytes: what is appended and not yet taken to be written.
        on_sealed: called with each segment that was sealed.
        rooms: for the next segments.
    """

    def __init__(self, directory: Path, segments: SegmentSet, slots: Slots, *, options: LogOptions,
                 env: Env) -> None:
        """
        Args:
            directory: the log's.
            segments: goes on after the last of them, and adds to them.
            slots: who may hold back log, to be named when there is no room.
            options, env: as usual.
        """
        last = segments.listing[-1]
        self.directory = directory
        self.files = env.files
        self.options = options
        self.engine = last.header.engine
        self.history = last.header.history
        self.epoch = last.header.epoch
        self.appended = last.end
        self.last_time_us = max(last.last_time_us, last.complete_us)  # a heartbeat's promise binds later openings too
        self.clock_jump_us = 0
        self.waiting_bytes = 0
        self.on_sealed: Callable[[SegmentInfo], None] = lambda info: None
        self.rooms = Rooms(directory, segment_bytes=options.segment_bytes, preallocate=options.preallocate, env=env)
        self._env = env
        self._now = env.clock.now_us
        self._segments = segments
        self._slots = slots
        self._era = last.header.era_txid
        self._batches: deque[Batch] = deque()
        self._writer: SegmentWriter | None = None  # where append goes on
        self._written: SegmentWriter | None = None  # where write is
        self._unfollowed: File | None = None  # the last segment, sealed, to be written to when it is followed
        self._joinable: bytes | None = None  # what stands in it, if the log may go on in it
        self._held: Directory | None = None  # the log's directory, open from the first writing on
        self._opening = env.scheduler.lock()  # around the opening of these
        self._waiting = env.scheduler.condition()

    # --- appending -------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, payload_version: int, attachment: Attachment | None = None, *,
               at_once: bool = False) -> Record:
        """Number and chain a new record, and put it into the batch that is filling.

        Args:
            payload, payload_version, attachment: what to log.
            at_once: make no room for a next segment here: the lock is held, and that may take long.

        Raises, and nothing was logged:
            RoomNeeded: with `at_once`; call `make_room` without the lock, and then this again.
            DiskFull, DirectoryMoved, OSError: there is no next segment.
            InvalidInput: the payload is too large.
        """
        if len(payload) > self.options.max_record_bytes:
            raise InvalidInput(f"a payload of {len(payload):,} bytes is over max_record_bytes "
                               f"({self.options.max_record_bytes:,})", hint="use smaller transactions, or a bulk load")
        now, before = self._now(), self.last_time_us
        if now <= before:
            if now < before:
                self.clock_jump_us = now - before
            now = before + 1  # always later, so that a time up to which a copy is complete stays that
        txid, chain = self.appended
        record = Record.make(chain, txid + 1, self.epoch, now, payload_version, payload, attachment)
        self._enqueue(record, at_once)
        return record

    def append_record(self, record: Record) -> None:
        """Put a copy of another log's record, byte for byte, into the batch that is filling.

        Raises:
            InvalidInput: it does not follow on what is there.
            DiskFull.
        """
        if record.txid != self.appended.txid + 1:
            raise InvalidInput(f"transaction {record.txid} cannot follow {self.appended.txid}",
                               hint="send the log without gaps")
        again = Record.decode(self.appended.chain, record.header, record.payload)
        if again.chain != record.chain or record.epoch < self.epoch:
            raise InvalidInput(f"transaction {record.txid} is not of the history that this log holds",
                               hint="compare store ids and branches first")
        if record.epoch > self.epoch:
            self.epoch = record.epoch
        if record.time_us < self.last_time_us:  # the other log's times began anew here
            self._era, self.last_time_us = self.appended.txid, record.time_us - 1
        self._enqueue(record, at_once=False)

    def _enqueue(self, record: Record, at_once: bool) -> None:
        header, payload = record.header, record.payload
        body = header + payload
        size = _FRAME + len(body)
        writer = self._writer
        if (writer is None or writer.reserved + _GROUP + size > writer.limit
                or writer.segment.header.epoch != record.epoch or writer.segment.header.era_txid != self._era
                or (record.attachment is not None and writer.attachments >= MAX_ATTACHMENTS)):
            writer = self._next_writer(_GROUP + size, at_once)
        batches = self._batches
        batch = batches[-1] if batches else None
        frame = _frame(len(header), len(payload), xxh3_64_intdigest(body, writer.seed))
        fresh = batch is None or batch.writer is not writer or batch.length + size > self.options.group_bytes
        if fresh:
            batch = Batch(writer, record.txid, record.time_us)
        assert batch is not None
        # From here to where it counts as appended, no call is made but the last: a signal's handler that raised in
        # between would leave a record that the next one takes for its own place, or a segment that is never begun.
        batch.frames += (frame, body)
        batch.length += size
        batch.records += 1
        batch.last = record
        batch.time_us = record.time_us
        writer.reserved += size + _GROUP if fresh else size
        self.waiting_bytes += size
        self._writer = writer
        self.appended, self.last_time_us = record.position, record.time_us
        if fresh:
            batches.append(batch)
        if record.attachment is not None:
            writer.attachments += 1
            writer.segment.attachments.append((record.txid, *record.attachment))

    def _next_writer(self, need: int, at_once: bool) -> SegmentWriter:
        """A writer for the segment after the present one, or for the last one if the log goes on in that: its room
        taken, and every file open that it takes to start it. Raises as `append`."""
        self.files.look(self.directory)  # the room may be made already; the name is given when it is written
        before, open_end, capacity = None, self._writer, self.options.segment_bytes
        if open_end is not None:
            before, size = open_end.segment, open_end.reserved
        elif len(self._segments.listing):
            before = self._segments.listing[-1]
            size = before.data_end
        if open_end is None and before is not None and self._joinable is not None and self._joins(before, need):
            segment, joined = before, self._joinable
        else:
            counts = (0, 0) if before is None else (before.header.bytes_before + size,
                                                    before.header.attachments_before + len(before.attachments))
            header = SegmentHeader(self._env.randomness.token(16), 1 if before is None else before.header.ordinal + 1,
                                   self.engine, self.history, self.epoch, self.appended, self.last_time_us, self._now(),
                                   *counts, self._era)
            data_start, joined = len(header.encode()), None
            segment = Segment(self.files, self.directory / segment_name(header.ordinal), header, data_start)
            capacity = max(capacity, data_start + need + FOOTER_ROOM)
        opened = self._held is not None and (before is None or open_end is not None or self._unfollowed is not None)
        room = self.rooms.take(capacity) if opened else None
        if room is not None:
            return SegmentWriter(segment, *room, joined)
        if at_once:
            raise RoomNeeded(capacity)
        self.make_room(capacity)
        return self._next_writer(need, at_once=True)

    def _joins(self, last: Segment, need: int) -> bool:
        """Whether the log can go on in the last segment, sealed before an opening."""
        footer, header = last.footer, last.header
        return (footer is not None and footer.data_end <= min(JOIN_BYTES, self.options.segment_bytes // 2)
                and footer.data_end + need + FOOTER_ROOM <= self.options.segment_bytes
                and (header.history, header.epoch, header.era_txid) == (self.history, self.epoch, self._era)
                and max(footer.last_time_us, footer.complete_us) <= self.last_time_us)

    def make_room(self, capacity: int = 0) -> None:
        """Have everything ready that it takes to begin a next segment of `capacity` bytes (an ordinary one, without):
        its room, zero-filled and synced, and all files open. Slow. By any thread, not under the lock of `append`.

        Raises:
            DiskFull, DirectoryMoved, OSError: nothing has changed.
            RolledBack: after `end_preparing`.
        """
        self._make_room(capacity)
        with self._opening:
            if self._held is None:
                self._held = self.files.open_directory(self.directory)
            if self._writer is None and self._unfollowed is None and len(self._segments.listing):
                last = self._segments.listing[-1]
                file = self.files.open(last.path, "write")
                try:
                    if self._joins(last, 0):
                        assert last.footer is not None
                        data = file.pread(last.footer.data_end, 0)
                        if xxh3_128_digest(data) == last.footer.digest:  # what is damaged is not copied
                            self._joinable = data
                except BaseException:
                    file.close()
                    raise
                self._unfollowed = file

    def _make_room(self, capacity: int) -> None:
        try:
            self.rooms.make(capacity)
        except DiskFull as error:
            error.hint = self._slots.when_full(error.hint, self._segments.listing.bytes_after,
                                               self.options.segment_bytes)
            raise

    @property
    def wants_spare(self) -> bool:
        return self.rooms.wants_spare

    def prepare_spare(self) -> None:
        """Make room for an ordinary next segment, if room is taken in advance and there is none. Called in the
        background. Raises `DiskFull`, `OSError`."""
        if self.wants_spare:
            self._make_room(0)

    def end_preparing(self) -> None:
        """No room is made from here on. Waits for who makes some: another process may have the directory next."""
        self.rooms.end()

    # --- writing ---------------------------------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """The oldest batch, to be passed to `write`; None where there is nothing to write."""
        if not self._batches:
            return None
        batch = self._batches.popleft()
        self.waiting_bytes -= batch.length
        return batch

    def write(self, batch: Batch) -> Position:
        """Write a batch as one group and sync it once; return the durable end, which now includes it.

        Raises:
            OSError: what is on disk is not known any more. The log must not be used again, but for reading.
        """
        writer, last = batch.writer, batch.last
        if writer is not self._written:
            self._start(writer)
        data = writer.put_group(batch.frames, batch.length, batch.records, batch.first, batch.time_us, self._patiently)
        writer.sync_group(data, batch.first, batch.first_time_us, last, batch.time_us)
        if last is not None:
            self._segments.end = last.position
        return self._segments.end

    def _start(self, writer: SegmentWriter) -> None:
        """Start a segment, and only then seal the one that was being written, or say in its footer that it is followed:
        before that is durable, the new one takes no records."""
        held, unfollowed = self._held, self._unfollowed
        assert held is not None
        joined = len(self._segments.listing) > 0 and self._segments.listing[-1] is writer.segment
        writer.start(held, self._patiently)
        if unfollowed is not None:
            if not joined:
                note_followed(unfollowed, self._segments.listing[-1], self._patiently)
            self._forget_unfollowed()
        self._seal(followed=True)
        self._written = writer
        if joined:
            return
        self._segments.add(writer.segment)

    def _seal(self, *, followed: bool) -> None:
        written = self._written
        if written is not None:
            written.seal(self._patiently, followed=followed)
            info = written.segment.info()
            self._written = None
            self.on_sealed(info)

    def _patiently(self, step: Callable[[], object]) -> object:
        """Do what may be done again if memory is lacking: what is numbered cannot be taken back, so it waits. No
        descriptor can be lacking here, since all are taken before a record is numbered. A sync is never done again."""
        pause, deadline = 0.01, 0.0
        while True:
            try:
                return step()
            except (OSError, MemoryError) as error:
                now = self._env.clock.monotonic()
                deadline = deadline or now + PATIENCE_S
                if not is_limit(error) or now >= deadline:
                    raise
                logger.warning("the log in %s waits: %r", self.directory, error)
            with self._waiting:
                self._waiting.wait(pause)
            pause = min(2 * pause, 1.0)

    def heartbeat(self, *, start: bool = False, at_once: bool = False) -> Batch | None:
        """A group without records, to be passed to `write`: a promise that nothing will be committed with the present
        time or an earlier one, whatever happens to the clock. Call it as `append`, with no batch waiting and none being
        written.

        None where it would promise nothing new; and without an open segment that has room, unless `start` says to begin
        one. Raises as `append` then, with `at_once` too.
        """
        now, writer = self._now(), self._writer
        if now <= self.last_time_us:
            return None
        if writer is None or writer is not self._written or writer.reserved + _GROUP > writer.limit:
            if not start or self._batches:
                return None
            writer = self._next_writer(_GROUP, at_once)
        batch = Batch(writer, self.appended.txid + 1, now)
        self._writer, self.last_time_us = writer, now
        writer.reserved += _GROUP
        return batch

    def sync(self) -> None:
        """Write and sync everything appended. For a log with one user, such as a backup target's.

        Raises:
            DiskFull: close the log and open it again, which finds how far it came.
        """
        try:
            while (batch := self.take()) is not None:
                self.write(batch)
        except OSError as error:
            self.abandon()
            if is_disk_full(error):
                raise DiskFull(f"no room for the log in {self.directory}") from error
            raise

    # --- a new beginning -------------------------------------------------------------------------------------------

    def extend_history(self, history: History, epoch: int | None = None) -> None:
        """Continue on a new branch, or in a new epoch: a new segment whose header names it, durable on return.

        Nothing may be waiting to be written. Raises `DiskFull`.
        """
        known, end = len(self.history.branches), self._segments.end
        if (history.store_id != self.history.store_id or history.branches[:known] != self.history.branches
                or any(b.start != self.appended for b in history.branches[known:]) or self.appended != end
                or (epoch is not None and epoch < self.epoch)):
            raise InvalidInput("a history that this log cannot go on with", hint="a branch starts where the log ends")
        before = self.history, self.epoch
        self.history, self.epoch = history, self.epoch if epoch is None else epoch
        try:
            self.start_now()
        except BaseException:
            self.history, self.epoch = before
            raise

    def begin_era(self, time_us: int) -> None:
        """Let commit times begin anew after `time_us`, durably. Raises `DiskFull`."""
        before = self._era, self.last_time_us
        self._era, self.last_time_us = self.appended.txid, time_us
        try:
            self.start_now()
        except BaseException:
            self._era, self.last_time_us = before
            raise

    def start_now(self) -> None:
        """Start a segment at once, so that its header's history and epoch are durable. Raises `DiskFull`."""
        self._writer = self._next_writer(0, at_once=False)
        try:
            self._start(self._writer)
        except BaseException as error:
            self._writer.abandon()
            self._writer = None
            if is_disk_full(error):
                raise DiskFull(f"no room for a log segment in {self.directory}") from error
            raise

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what is appended and seal."""
        if self._written is not None or self._batches:
            self.sync()
            self._seal(followed=False)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the files as they are, as a crash would."""
        writers = {id(w): w for w in (self._written, self._writer, *(batch.writer for batch in self._batches)) if w}
        self._batches.clear()
        self._written = self._writer = None
        for writer in writers.values():
            writer.abandon()
        self.rooms.abandon()
        self._forget_unfollowed()
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _forget_unfollowed(self) -> None:
        file, self._unfollowed, self._joinable = self._unfollowed, None, None
        if file is not None:
            file.close()
