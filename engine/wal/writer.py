"""The writer of a log: it numbers records, groups them, and writes the groups to disk, segment after segment.

Data flows one way. `append` numbers, chains and encodes a record and adds it to the batch that is filling; nothing is
written. `take` returns the oldest batch, and `write` writes it to the file as one group and syncs once. `append`,
`take` and `heartbeat` must be called under one lock (the store's); `write` by one thread at a time, without that lock.

A batch belongs to one segment. If a record does not fit, `append` continues in the next segment at once; its room was
made before the lock was taken (`make_room`). When everything in the old segment is written, `write` starts the next
one, and then seals the old one with a footer that says that it is followed. So a segment under its own name always has
a valid header, and a segment takes records only after the one before is sealed. If a segment with records is lost, even
the last one, the footer before it shows that it is missing.

After an opening, the log continues in its last segment if that is small, so openings do not each leave a segment.
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
from .segment import (
    FOOTER_ROOM,
    JOIN_BYTES,
    MAX_ATTACHMENTS,
    Batch,
    Segment,
    SegmentWriter,
    note_followed,
    segment_name,
)
from .slots import Slots

_frame = FRAME.pack
_FRAME, _GROUP = FRAME.size, GROUP_HEADER.size

logger = logging.getLogger("holdfast.store")

PATIENCE_S = 60.0
"""How long a write waits for memory, seconds. After that, the log has failed."""
MIN_SEGMENT, MAX_SEGMENT = 128 << 10, 64 << 20


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a log is written.

    Attributes:
        segment_bytes: size of a segment, 128 KiB to 64 MiB. The first ones after an opening are smaller, unless
            `preallocate` is false. A larger record gets a larger segment.
        preallocate: zero-fill segments before they are needed. False for a backup target's log.
        group_bytes: about the largest size of a group, bytes.
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


class LogWriter:
    """See the module's text. A `Log` has one.

    Attributes:
        appended: the position of the last appended record.
        history, epoch: go into the next segment's header.
        last_time_us: commit time of the last appended record, or of a later heartbeat; the next one is later.
        clock_jump_us: by how much the clock was behind the log when that was last noticed; negative.
        waiting_bytes: bytes appended and not yet taken to be written.
        on_sealed: called with each segment that was sealed, on the thread that writes.
        rooms: room for the next segments.
    """

    def __init__(self, directory: Path, segments: SegmentSet, slots: Slots, *, options: LogOptions,
                 env: Env) -> None:
        """
        Args:
            directory: the log's.
            segments: the writer continues after the last of them, and adds new ones.
            slots: what may hold back log, to be named in the hint of `DiskFull`.
            options, env: how it is written, and the environment.
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
        self._writer: SegmentWriter | None = None  # the segment that `append` fills
        self._written: SegmentWriter | None = None  # the segment that `write` writes
        self._unfollowed: File | None = None  # the last segment, sealed: its footer must say so once it is followed
        self._joinable: bytes | None = None  # the content of that segment, if the log may continue in it
        self._held: Directory | None = None  # the log's directory, open from the first write on
        self._opening = env.scheduler.lock()  # guards the opening of the last three
        self._waiting = env.scheduler.condition()

    # --- appending -------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, payload_version: int, attachment: Attachment | None = None, *,
               at_once: bool = False) -> Record:
        """Number and chain a new record, and add it to the batch that is filling. O(payload).

        Args:
            payload, payload_version, attachment: what to log.
            at_once: do not make room for a next segment here, because that is slow and the lock is held.

        Raises, and nothing was logged:
            RoomNeeded: only with `at_once`: call `make_room` without the lock, and then this again.
            DiskFull, DirectoryMoved, OSError: no next segment could be made.
            InvalidInput: the payload is too large.
        """
        if len(payload) > self.options.max_record_bytes:
            raise InvalidInput(f"a payload of {len(payload):,} bytes is over max_record_bytes "
                               f"({self.options.max_record_bytes:,})", hint="use smaller transactions, or a bulk load")
        now, before = self._now(), self.last_time_us
        if now <= before:
            if now < before:
                self.clock_jump_us = now - before
            now = before + 1  # strictly increasing: once a copy is complete up to a time, it stays so
        txid, chain = self.appended
        record = Record.make(chain, txid + 1, self.epoch, now, payload_version, payload, attachment)
        self._enqueue(record, at_once)
        return record

    def append_record(self, record: Record) -> None:
        """Add another log's record, byte for byte, to the batch that is filling.

        Raises:
            InvalidInput: it does not follow the last record here.
            DiskFull.
        """
        if record.txid != self.appended.txid + 1:
            raise InvalidInput(f"transaction {record.txid} cannot follow {self.appended.txid}",
                               hint="send the log without gaps")
        again = Record.decode(self.appended.chain, record.header, record.payload)
        if again.chain != record.chain or record.epoch < self.epoch:
            raise InvalidInput(f"transaction {record.txid} does not belong to this log's history",
                               hint="compare store ids and branches first")
        if record.epoch > self.epoch:
            self.epoch = record.epoch
        if record.time_us < self.last_time_us:  # the other log's times began anew here
            self._era, self.last_time_us = self.appended.txid, record.time_us - 1
        self._enqueue(record, at_once=False)

    def _enqueue(self, record: Record, at_once: bool) -> None:
        header = record.header
        body = header + record.payload
        length = len(body)
        size = _FRAME + length
        writer = self._writer
        if (writer is None or writer.reserved + _GROUP + size > writer.limit
                or writer.epoch != record.epoch or writer.era_txid != self._era
                or (record.attachment is not None and writer.attachments >= MAX_ATTACHMENTS)):
            writer = self._next_writer(_GROUP + size, at_once)
        batches = self._batches
        batch = batches[-1] if batches else None
        frame = _frame(len(header), length - len(header), xxh3_64_intdigest(body, writer.seed))
        fresh = batch is None or batch.writer is not writer or batch.length + size > self.options.group_bytes
        if fresh:
            batch = Batch(writer, record.txid, record.time_us)
        assert batch is not None
        # Signal safety: from here on, no call is made except the last ones, so a signal handler cannot raise in
        # between. If it did, two records could get the same place, or a segment could be skipped.
        batch.frames += (frame, body)
        batch.length += size
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
        """A writer for the next segment, or for the last one if the log continues in that. Its room is taken, and every
        file needed to start it is open. Raises as `append`."""
        self.files.look(self.directory)  # now, because the room may be ready and the file is only named later
        before, open_end = None, self._writer
        if open_end is not None:
            before, size = open_end.segment, open_end.reserved
        elif len(self._segments.listing):
            before = self._segments.listing[-1]
            size = before.data_end
        if open_end is None and before is not None and self._joinable is not None and self._joins(before, need):
            segment, joined = before, self._joinable
            capacity = before.data_end + need + FOOTER_ROOM
        else:
            counts = (0, 0) if before is None else (before.header.bytes_before + size,
                                                    before.header.attachments_before + len(before.attachments))
            header = SegmentHeader(self._env.randomness.token(16), 1 if before is None else before.header.ordinal + 1,
                                   self.engine, self.history, self.epoch, self.appended, self.last_time_us, self._now(),
                                   *counts, self._era)
            data_start, joined = len(header.encode()), None
            segment = Segment(self.files, self.directory / segment_name(header.ordinal), header, data_start)
            capacity = data_start + need + FOOTER_ROOM
        opened = self._held is not None and (before is None or open_end is not None or self._unfollowed is not None)
        room = self.rooms.take(capacity) if opened else None
        if room is not None:
            return SegmentWriter(segment, *room, joined)
        if joined is not None and 2 * capacity > self.rooms.ordinary:  # so that it is not full again at once
            capacity += self.rooms.ordinary
        if at_once:
            raise RoomNeeded(capacity)
        self.make_room(capacity)
        return self._next_writer(need, at_once)  # which may need more now, to continue in the last segment

    def _joins(self, last: Segment, need: int) -> bool:
        """Whether the log can continue in the last segment, which was sealed before this opening."""
        footer, header = last.footer, last.header
        return (footer is not None and footer.data_end <= min(JOIN_BYTES, self.options.segment_bytes // 2)
                and footer.data_end + need + FOOTER_ROOM <= self.options.segment_bytes
                and (header.history, header.epoch, header.era_txid) == (self.history, self.epoch, self._era)
                and max(footer.last_time_us, footer.complete_us) <= self.last_time_us)

    def make_room(self, capacity: int = 0) -> None:
        """Prepare everything to begin a next segment of `capacity` bytes, or of the ordinary size: zero-fill and sync
        its file, and open all files. Slow: O(capacity). From any thread, without the lock of `append`.

        Raises:
            DiskFull, DirectoryMoved, OSError: nothing has changed.
            RolledBack: `end_preparing` was called.
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
                        if xxh3_128_digest(data) == last.footer.digest:  # do not copy damaged bytes
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
        """Make the spare segment, if spares are used and there is none. Slow: call it in the background. Raises
        `DiskFull`, `OSError`."""
        if self.wants_spare:
            self._make_room(0)

    def end_preparing(self) -> None:
        """Make no more room. Waits for a thread that is making some, because another process may own the directory
        next."""
        self.rooms.end()

    # --- writing ---------------------------------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """The oldest batch, to be passed to `write`; None if there is nothing to write."""
        if not self._batches:
            return None
        batch = self._batches.popleft()
        self.waiting_bytes -= batch.length
        return batch

    def write(self, batch: Batch) -> Position:
        """Write a batch as one group, and sync once. Returns the durable end, which now includes the batch.

        Raises:
            OSError: what is on disk is unknown. Only read from the log after that.
        """
        writer, last = batch.writer, batch.last
        if writer is not self._written:
            self._start(writer)
        writer.sync_group(writer.put_group(batch, self._patiently), batch)
        if last is not None:
            self._segments.end = last.position
        return self._segments.end

    def _start(self, writer: SegmentWriter) -> None:
        """Start a segment. Then seal the one before it, or note in its footer that it is followed. The new segment
        takes no records before that is durable."""
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

    def _patiently(self, step: Callable[..., object], *args: object) -> object:
        """Do a step, and retry it while memory is lacking: a numbered record cannot be taken back, so it must wait. No
        descriptor can be lacking, because all are opened before a record is numbered. Never pass a sync."""
        pause, deadline = 0.01, 0.0
        while True:
            try:
                return step(*args)
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
        """A group without records, to be passed to `write`. It promises that no later commit gets a time up to now,
        whatever happens to the clock. Call it like `append`, while no batch is waiting or being written.

        Returns None if it would promise nothing new, or if no open segment has room and `start` is false. With `start`,
        a new segment is begun if need be; this raises as `append`.
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
        """Write and sync everything appended. For a log with a single user, such as a backup target's.

        Raises:
            DiskFull: close the log and open it again: recovery finds how far the writing got.
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
        """Continue on a new branch or in a new epoch: start a segment whose header names it, durable on return.

        No batch may be waiting. Raises `DiskFull`.
        """
        known, end = len(self.history.branches), self._segments.end
        if (history.store_id != self.history.store_id or history.branches[:known] != self.history.branches
                or any(b.start != self.appended for b in history.branches[known:]) or self.appended != end
                or (epoch is not None and epoch < self.epoch)):
            raise InvalidInput("this log cannot continue with that history", hint="start the branch where the log ends")
        before = self.history, self.epoch
        self.history, self.epoch = history, self.epoch if epoch is None else epoch
        try:
            self.start_now()
        except BaseException:
            self.history, self.epoch = before
            raise

    def begin_era(self, time_us: int) -> None:
        """Durably let commit times begin anew after `time_us`. Raises `DiskFull`."""
        before = self._era, self.last_time_us
        self._era, self.last_time_us = self.appended.txid, time_us
        try:
            self.start_now()
        except BaseException:
            self._era, self.last_time_us = before
            raise

    def start_now(self) -> None:
        """Start a segment now, which makes the history and epoch in its header durable. Raises `DiskFull`."""
        self._writer = self._next_writer(0, at_once=False)
        try:
            self._start(self._writer)
        except BaseException as error:
            self._writer.abandon()
            self._writer = None
            if is_disk_full(error):
                raise DiskFull(f"no room for a log segment in {self.directory}") from error
            raise

    # --- cutting ---------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Seal the open segment. The next record continues after the last segment, as after an opening."""
        assert not self._batches, "records are waiting to be written"
        self._seal(followed=False)
        if self._writer is not None and not self._writer.started:
            self._writer.abandon()
        self._writer = None
        self._forget_unfollowed()

    def resume(self, last: Segment, epoch: int) -> None:
        """After a cut: continue after `last`, in the epoch of its last record."""
        self.history, self.epoch, self._era = last.header.history, epoch, last.header.era_txid
        self.appended, self.last_time_us = last.end, max(last.last_time_us, last.complete_us)

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what is appended and seal."""
        if self._written is not None or self._batches:
            self.sync()
            self._seal(followed=False)
        self.abandon()

    def abandon(self) -> None:
        """Close the files as they are, as a crash would."""
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
