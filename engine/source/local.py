"""The source over a store that is open in this process.

The log is pinned before the image is made: first at the checkpointed position, then, once the image exists, at the
image's own position. So the log after the image's position cannot be pruned at any moment. Every read is a *use* of the
lease. A use keeps the lease from being freed during the read, and renews it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..contract.image import Image
from ..env.shown import printable
from ..errors import (
    AheadOfSource,
    DiskFull,
    Diverged,
    HoldfastError,
    InvalidInput,
    LimitReached,
    LogPruned,
    NotFound,
    SourceUnavailable,
    Unsupported,
)
from ..model.positions import Position
from ..model.records import Record
from ..wal.attachments import NAME as ATTACHMENT_NAME
from .interface import CHUNK_BYTES, HEX_ID, Confirmation, ContentDigest, Grant, SlotState, Source, SourceInfo

if TYPE_CHECKING:
    from ..env import File
    from ..store.leases import Lease, LeaseState
    from ..store.store import Store
    from ..wal.cursor import Cursor

logger = logging.getLogger("holdfast.store")

_PUBLISH_WAIT = 30.0
_MOST_NAME = 300
_BETWEEN_S = 0.0005
"""Between two pieces of a chunk. At once, they would keep a processor busy for longer than a commit takes."""


class LocalSource(Source):
    """Leases, image and log of an open store. Any number of them may serve one store; all share its leases."""

    def __init__(self, store: Store[Any, Any], *, much_pending: int = 4 << 20, max_cursors: int = 64) -> None:
        """
        Args:
            store: the open store.
            much_pending: bytes. If more wait for a checkpoint, one is made before an image.
            max_cursors: the number of leases whose place in the log is remembered.
        """
        self._much_pending = much_pending
        self._max_cursors = max_cursors
        self._store = store
        self._leases = store.leases
        self._cursors: dict[str, Cursor] = {}
        """By lease, where the last read of the log ended. The next piece is read from there."""
        self._keeping = store.env.scheduler.lock()  # guards `_cursors`: each stream has a thread

    def info(self) -> SourceInfo:
        store = self._store
        complete = store.complete_until_us()  # before `published`, which only grows and must cover it
        return SourceInfo(instance=store.instance, history=store.history, engine=store.engine.name,
                          state_format=store.state_format, payload_version=store.payload_version,
                          durable=store.durable, published=store.published, readable=self._readable(),
                          log_base=store.log.base,
                          complete_until_us=complete, path=printable(str(store.directory)))

    def _readable(self) -> Position:
        """See `SourceInfo.readable`. Asked after `published`, it is not below it: both only grow."""
        return self._store.durable if self._store.replica is None else self._store.published

    def chain_at(self, txid: int) -> bytes:
        return self._store.log.chain_at(txid)

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        owner = printable(owner)  # it is shown: in errors, pages and logs
        if image:
            if after is not None:
                raise InvalidInput("a lease on an image begins at the image; it takes no after=")
            return self._lease_image(owner, ttl)
        if after is None:
            raise InvalidInput("a lease on log needs after=, the position it begins at")
        return self._lease_log(owner, after, ttl)

    def _lease_log(self, owner: str, after: Position, ttl: float) -> Grant:
        lease = self._leases.grant(owner, ttl, after.txid)
        try:
            self._match(after)  # after the pin: the log that matches now cannot be pruned any more
        except BaseException:
            self._leases.release(lease.id)
            raise
        return Grant(id=lease.id, instance=self._store.instance, ttl=lease.ttl, position=after,
                     time_us=self._time_of(after.txid))

    def _lease_image(self, owner: str, ttl: float) -> Grant:
        if not 0 < ttl < float("inf"):  # checked first, so that no image is made in vain
            raise InvalidInput(f"a lease cannot live for {ttl} seconds", hint="give a positive number of seconds")
        self._shorten_log()
        lease = self._pin_checkpointed(owner)
        try:
            with self._leases.using(lease.id):  # a store that closes waits until the image is made
                image = self._store.image()
                try:
                    self._leases.furnish(lease.id, ttl, image.position.txid, image)
                except BaseException:
                    image.close()
                    raise
        except BaseException:
            self._leases.release(lease.id)
            raise
        # A lease's id is never reused, so it names the image too. A resumed copy that finds another id starts anew.
        return Grant(id=lease.id, instance=self._store.instance, ttl=lease.ttl, position=image.position,
                     image_id=lease.id, files=tuple(image.files), moving=self._moving,
                     time_us=self._time_of(image.position.txid))

    def _time_of(self, txid: int) -> int:
        try:
            return self._store.log.time_of(txid)
        except LogPruned:
            return 0

    def _shorten_log(self) -> None:
        """Checkpoint first if much is not checkpointed, since every check or restore of the copy would have to replay
        it. Skipped if a checkpoint would delay commits."""
        store = self._store
        if store.read_only or store.engine.pending_bytes() <= self._much_pending:
            return
        if store.engine.abilities.background_checkpoint:
            with contextlib.suppress(DiskFull, LimitReached):  # no checkpoint, then: the log is replayed
                store.checkpoint()

    def _pin_checkpointed(self, owner: str) -> Lease:
        """A lease on the log after the checkpointed position. Tries again if a checkpoint and a prune come between
        reading that position and pinning it."""
        while True:
            txid = self._store.positions().checkpointed
            lease = self._leases.grant_longest(owner, txid)
            if self._store.log.base.txid <= txid:
                return lease
            self._leases.release(lease.id)

    @property
    def _moving(self) -> bool:
        return self._store.engine.abilities.image == "moving"

    def _match(self, position: Position) -> None:
        """Raises `AheadOfSource`, `LogPruned`, `Diverged`."""
        if position.txid > self._store.durable.txid:
            raise AheadOfSource(f"transaction {position.txid} was asked for, and the source ends at "
                                f"{self._store.durable.txid}")
        ours = self._store.log.chain_at(position.txid)
        if ours != position.chain:
            raise Diverged(f"at transaction {position.txid} the chain is {ours.hex()} at the source and "
                           f"{position.chain.hex()} in the copy")

    def renew(self, lease_id: str) -> None:
        self._leases.renew(lease_id)

    def release(self, lease_id: str) -> None:
        self._leases.release(lease_id)
        self._take_cursor(lease_id)

    def leases(self) -> list[LeaseState]:
        """All leases that hold, for people. O(leases)."""
        self._leases.sweep()
        return self._leases.list()

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        [data] = self.read_image_in_pieces(lease_id, name, offset, length, max(1, length))
        return data

    def read_image_in_pieces(self, lease_id: str, name: str, offset: int, length: int, most: int) -> list[bytes]:
        """As `read_image`, in pieces of at most `most` bytes. It waits once for all of them, and then only for a moment
        between two of them."""
        _check_length(length)
        self._store.pacing.wait(length)  # outside of the use, which a store that closes waits for
        with self._leases.using(lease_id) as lease:
            size = self._image_size(lease, name)
            if offset < 0 or offset + length > size:
                raise InvalidInput(f"{name} has {size} bytes, and {length} from {offset} on were asked for")
            image, end = lease.image, offset + length
            assert isinstance(image, Image)
            pieces: list[bytes] = []
            for at in range(offset, end, most):
                if pieces:
                    self._store.env.clock.sleep(_BETWEEN_S)
                pieces.append(image.read(name, at, min(most, end - at)))
            return pieces or [b""]

    def rest(self, size: int) -> float:
        """How long to rest after each `size` bytes that are sent, seconds; 0 if nothing commits."""
        return self._store.pacing.rest(size)

    def image_size(self, lease_id: str, name: str) -> int:
        """Bytes of one file of the image. Raises `LeaseExpired`, `NotFound`."""
        with self._leases.using(lease_id) as lease:
            return self._image_size(lease, name)

    def _image_size(self, lease: Lease, name: str) -> int:
        if isinstance(lease.image, Image):
            for file in lease.image.files:
                if file.name == name:
                    return file.size
        raise NotFound(f"the image has no file {name[:100]!r}", hint="the lease lists its files")

    def confirm(self, lease_id: str) -> Confirmation:
        with self._leases.using(lease_id) as lease:
            if not isinstance(lease.image, Image):
                consistent_from = self._store.published
            elif self._moving:
                consistent_from = self._store.handed
            else:
                consistent_from = lease.image.position
            self._wait_published(consistent_from.txid)
            complete = self._store.complete_until_us()  # before `published`, as in `info`
            published = self._store.published
            self._leases.renew(lease_id)  # it held to this moment
            return Confirmation(consistent_from=consistent_from, published=published, complete_until_us=complete)

    def content_digest(self, lease_id: str) -> ContentDigest:
        with self._leases.using(lease_id):
            published = self._store.published  # after the last transaction that a view shows there may be kit records
            with self._store.snapshot() as view:
                txid = max(view.txid, published.txid)
                return ContentDigest(position=Position(txid, self._store.log.chain_at(txid)), digest=view.digest())

    def _wait_published(self, txid: int) -> None:
        """Wait until `txid` is published. The engine gets records a moment earlier, so an image may hold one that is
        not published yet. If publication is stalled, the copy cannot be confirmed."""
        deadline = self._store.env.clock.monotonic() + _PUBLISH_WAIT
        while (published := self._store.published.txid) < txid:
            left = deadline - self._store.env.clock.monotonic()
            if left <= 0 or self._store.poisoned or self._store.closed:
                raise SourceUnavailable(f"transaction {txid} is in the image and not published yet, so the image "
                                        "cannot be confirmed", hint="run it again once the source commits again")
            self._store.wait_published(published, left)

    def read_log(self, lease_id: str, after: Position, upto: int) -> Generator[Record]:
        with self._leases.using(lease_id) as lease:
            if after.txid < lease.txid:
                raise LogPruned(f"the lease keeps the log after transaction {lease.txid}, and it is asked for after "
                                f"{after.txid}")
            cursor = self._take_cursor(lease_id)
            if cursor is None or (cursor.txid, cursor.chain) != after:
                self._match(after)
                cursor = self._store.log.cursor(after.txid)
            if upto > (readable := self._readable()).txid:
                raise AheadOfSource(f"log up to transaction {upto} is asked for, and {readable.txid} is the last one "
                                    "that can be read")
            pace = self._store.pacing.records()
            for record in cursor.read(upto):
                self._leases.renew(lease_id)
                yield record
                pace()
            self._keep_cursor(lease_id, cursor)

    def _take_cursor(self, lease_id: str) -> Cursor | None:
        """Take a lease's cursor out of the table, so that only the caller uses it."""
        with self._keeping:
            return self._cursors.pop(lease_id, None)

    def _keep_cursor(self, lease_id: str, cursor: Cursor) -> None:
        """Keep a cursor for the next piece. If there are too many, the oldest goes: its lease has probably ended."""
        with self._keeping:
            self._cursors.pop(lease_id, None)
            while len(self._cursors) >= self._max_cursors:
                del self._cursors[next(iter(self._cursors))]
            self._cursors[lease_id] = cursor

    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        _check_length(length)
        with self._leases.using(lease_id):
            file = self._open_attachment(name)
            try:
                size = file.size()
                if offset < 0 or offset + length > size:
                    raise InvalidInput(f"attachment {name} has {size} bytes, and {length} from {offset} on are asked "
                                       "for")
                return file.pread(length, offset)
            finally:
                file.close()

    def attachment_size(self, lease_id: str, name: str) -> int:
        """Bytes of an attachment. Raises `LeaseExpired`, `NotFound`."""
        with self._leases.using(lease_id):
            file = self._open_attachment(name)
            try:
                return file.size()
            finally:
                file.close()

    def _open_attachment(self, name: str) -> File:
        if ATTACHMENT_NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                return self._store.env.files.open(self._store.log.attachment_path(name))
        raise NotFound(f"the log has no attachment {name[:100]!r}", hint="records name the attachments that exist")

    def register(self, slot_id: str, name: str, position: Position) -> None:
        if not HEX_ID.fullmatch(slot_id) or not 0 < len(name) <= _MOST_NAME or not name.isprintable():
            raise InvalidInput("a slot has an id of 2 to 64 hex digits and a name of 1 to 300 printable characters")
        if self._store.read_only:
            raise Unsupported(f"{self._store.directory} is open read-only, so no slot can be registered",
                              hint="back up from the store when it is open for writing")
        self._match(position)
        self._store.log.slots.register(slot_id, name, position)

    def slots(self) -> list[SlotState]:
        log = self._store.log
        return [SlotState(id=c.id, name=c.name, position=c.position, seen_us=c.seen_us,
                          held_bytes=log.size_after(c.position.txid)) for c in log.slots.list()]

    def drop(self, slot_id: str) -> None:
        if self._store.read_only:
            raise Unsupported(f"{self._store.directory} is open read-only, so no slot of it can be dropped",
                              hint="open it for writing, or ask the process that has it open")
        if not self._store.log.slots.drop(slot_id):
            raise NotFound(f"no slot {printable(slot_id[:64])} is registered",
                           hint="the list of slots has their ids")
        if not self._store.poisoned:
            try:
                self._store.prune()  # at once: a full disk may need the room
            except (HoldfastError, OSError) as error:
                logger.warning("the log of slot %s is not pruned yet: %s", slot_id, error)

    def close(self) -> None:
        """Does nothing: the leases belong to the store."""


def _check_length(length: int) -> None:
    if not 0 <= length <= CHUNK_BYTES:
        raise InvalidInput(f"{length} bytes were asked for at once; the most is {CHUNK_BYTES}")
