"""The archiver: log into the repository, piece by piece, as the store commits.

A branch has one writer at a time. A writer takes the next number (`writers/BRANCH/N`), and puts a *fence* into the
first free slot. A piece that an older writer puts at this moment is either before the fence, and counts, or finds its
slot taken; then that writer sees whose piece is there, and stops. After each piece, and before it counts, a writer
looks whether there is a higher number. So two archivers never both go on.

One slot is under way at a time. If the answer to a put is lost, the piece that is in the slot tells by its nonce whose
it is. Pieces are merged as they come, 32 into one and 32 of those again, so that a day of them is restored in some
dozens of reads. """

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgpack

from ...engine.env import Env
from ...engine.env.shown import printable
from ...engine.errors import AheadOfSource, Damaged, Diverged, HoldfastError, LogPruned
from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.source.interface import Source, SourceInfo
from . import names, pieces
from .archive import Archive, Tail
from .attached import store_attachment
from .catalog import Catalog, Decide
from .errors import Fenced, ObjectExists, ObjectMissing, StorageUnavailable
from .pieces import Batch, Piece, batches, complete_until
from .sealed import Kind, Seal
from .state import BranchLog, CatalogState, Entry, Unit
from .storage.interface import MAX_OBJECT_BYTES, ObjectStore
from .storage.putting import put_contested

logger = logging.getLogger("holdfast.repository")

FAN_IN = 32
"""Pieces in a unit, and units in the next larger one."""
LEVELS = 3
_MOST_UNIT = MAX_OBJECT_BYTES // 4
"""Bytes of parts that are merged into one object."""
_LEASE_S = 60.0
IDLE_S = 60.0
"""Seconds after which a piece says how far an idle store is complete, if nothing else is asked for."""
_MOST_SLOT_NAME = 300


def slot_name(url: str) -> str:
    """The name of the slot with which a source keeps log for the archive in a repository. For people, and to find the
    slot while the repository, whose id is the slot's, cannot be reached."""
    return printable(f"archive in {url}")[:_MOST_SLOT_NAME]


@dataclass(slots=True)
class Step:
    """What one step of an archiver did: where the archive ends, and the transactions and bytes that were put."""

    end: Position
    transactions: int = 0
    bytes: int = 0


class Archiver:
    """Archives one branch of one source. For one thread; its attributes can be read from any.

    What is archived is what the source calls readable: log that is never cut off again, published or not, since
    publication may wait for the archive.

    Attributes:
        writer: its number.
        end: where the archive ends.
        complete_until_us: every transaction committed up to this time is archived.
        put_us: when the last piece was put, or this archiver began.
    """

    def __init__(self, store: ObjectStore, seal: Seal, catalog: Catalog, source: Source, info: SourceInfo, who: str,
                 slot_id: str, env: Env, *, idle: float = IDLE_S, skip: bool = False,
                 piece_bytes: int = pieces.PIECE_BYTES) -> None:
        """`skip`: the log up to what is published now was given up, and is not archived even if it is still there."""
        self._store, self._seal, self._catalog, self._source, self._env = store, seal, catalog, source, env
        self._idle, self._skip = idle, skip
        self._history, self._who, self._slot_id = info.history, who, slot_id
        self._branch = info.history.branch.id.hex()
        self._piece_bytes = piece_bytes
        self.writer = 0
        self._slot = 0
        self._said_at = float("-inf")
        self._lease: str | None = None
        self._leased_at = 0.0
        self.end = Position(0, b"")
        self.complete_until_us = self.put_us = 0

    # --- beginning ------------------------------------------------------------------------------------------------

    def begin(self, info: SourceInfo) -> None:
        """Become the branch's writer, and find out where to go on.

        Raises:
            Fenced: another archiver became the writer at this moment.
            Diverged: the archive has another past than the source.
            Damaged, SourceUnavailable, StorageUnavailable.
        """
        self.writer = self._claim()
        tail = self._place(info)
        while True:
            batch = Batch(tail.end, [])
            fence = batch.piece(self._history, tail.complete_until_us, self.writer, self._env, fence=True)
            if self._put(tail.slot + 1, fence, batch):
                break
            found = self._in_slot(tail.slot + 1)
            if found.writer > self.writer:
                raise self._fenced(found.writer)
            # A piece of the writer before, which came at this moment. One of the two had begun a run here.
            if found.after != tail.end:
                tail = self._begin_run(tail.slot + 1, found.after, tail)
            tail = Tail(slot=tail.slot + 1, end=found.end, last_time_us=found.last_time_us,
                        complete_until_us=found.complete_until_us, writer=found.writer)
        self._slot, self.end = tail.slot + 1, tail.end
        self.complete_until_us = fence.complete_until_us
        self.put_us = self._env.clock.now_us()
        self._register()
        logger.info("archiving branch %s as writer %d from transaction %d on", self._branch[:8], self.writer,
                    self.end.txid)

    @property
    def proved_us(self) -> int | None:
        """When the newest proof of an image was left, as far as the catalog was read; None: there is none."""
        proofs = self._catalog.state.proofs.values()
        return max((proof["time_us"] for proof in proofs if proof["good"]), default=None)

    def _archive(self) -> Archive:
        return Archive(self._store, self._seal, self._catalog.state)

    def _place(self, info: SourceInfo) -> Tail:
        """The slot and the position after which this writer goes on. The catalog has an entry then that the writer
        before did not know, so what that one is about to say of a run comes too late."""
        damaged: list[Damaged] = []
        while True:
            tail = self._catalog.settled(lambda state: self._tail(damaged))
            self._check_alone()  # else what was read may come after the fence of a later writer, who would not see ours
            after = self._goes_on(tail, info)
            if tail is None or after != tail.end or damaged:
                for error in damaged:
                    logger.warning("the archive goes on after a damaged piece: %s", error)
                return self._begin_run((1 if tail is None else tail.slot + 1) + len(damaged), after, tail)
            if self._goes_on_in_run(tail):
                return tail

    def _tail(self, damaged: list[Damaged]) -> Tail | None:
        """Where the archive ends, but for its last pieces that are `damaged`, which are still in their slots."""
        damaged.clear()
        return self._archive().tail(self._branch, damaged)

    def _claim(self) -> int:
        """The next writer's number."""
        listed = self._store.list(f"{names.WRITERS}/{self._branch}/")
        number = max((names.number_of(one.name) for one in listed), default=0)
        nonce = self._env.randomness.token(16)
        body = msgpack.packb({"who": self._who, "time_us": self._env.clock.now_us(), "nonce": nonce},
                             use_bin_type=True)
        while True:
            number += 1
            name = names.writer(self._branch, number)
            data = self._seal.seal(Kind.WRITER, name, body)
            try:
                self._store.put(name, data)
                return number
            except ObjectExists:
                pass
            except StorageUnavailable as error:
                try:
                    self._told(number)
                except ObjectMissing:
                    raise error from None
            if self._told(number)["nonce"] == nonce:
                return number

    def _told(self, number: int) -> Entry:
        name = names.writer(self._branch, number)
        told: Entry = msgpack.unpackb(self._seal.open(Kind.WRITER, name, self._store.get(name)))
        return told

    def _check_alone(self) -> None:
        """Raise `Fenced` if there is a later writer."""
        try:
            self._told(self.writer + 1)
        except ObjectMissing:
            return
        raise self._fenced(self.writer + 1)

    def _fenced(self, number: int) -> Fenced:
        told = self._told(number)
        return Fenced(f"branch {self._branch[:8]} is archived by writer {number} by now, {told['who']}; this one was "
                      f"writer {self.writer}")

    def _goes_on(self, tail: Tail | None, info: SourceInfo) -> Position:
        """The position after which the archive goes on: where it ends, if the source still has the log from there. Else
        where the newest image of this branch ends, or where the branch left the one before it, whose past leads there.
        Else what is published now: then only a later image makes use of the archive."""
        if tail is not None:
            if self._reaches(tail.end) and (not self._skip or tail.end.txid >= info.published.txid):
                return tail.end
            logger.warning("%s the log after transaction %d: the archive has a gap, and the points after it need a new "
                           "image", "it was given up to archive" if self._skip else "the source no longer has",
                           tail.end.txid)
        if self._skip:
            return info.published
        for image in reversed(self._catalog.state.images.values()):
            if image.history == self._history and (tail is None or image.end.txid > tail.end.txid) and (
                    self._reaches(image.end)):
                return image.end
        if tail is None and len(self._history.branches) > 1 and self._reaches(self._history.branch.start):
            return self._history.branch.start
        return info.published

    def _reaches(self, position: Position) -> bool:
        """Whether the source has the log after a position. Raises `Diverged` if it has another past."""
        try:
            chain = self._source.chain_at(position.txid)
        except LogPruned:
            return False
        except AheadOfSource as error:
            raise Diverged(f"the archive of branch {self._branch[:8]} ends at transaction {position.txid}, which the "
                           "source does not have") from error
        if chain != position.chain:
            raise Diverged(f"the archive of branch {self._branch[:8]} has another transaction {position.txid} than the "
                           "source")
        return True

    def _begin_run(self, slot: int, after: Position, tail: Tail | None) -> Tail:
        """Say in the catalog that the log begins anew here."""
        self._say(lambda _: {"do": "run", "branch": self._branch, "slot": slot, "after": list(after),
                             "ended": None if tail is None else list(tail.end),
                             "until_us": 0 if tail is None else tail.complete_until_us})
        return Tail(slot=slot - 1, end=after, last_time_us=0, complete_until_us=0)

    def _goes_on_in_run(self, tail: Tail) -> bool:
        """Say again where the newest run begins. False: another one was begun after `tail` at this moment."""
        goes_on = False

        def decide(state: CatalogState) -> Entry | None:
            nonlocal goes_on
            run = state.branches[self._branch].runs[-1]
            goes_on = run.first <= tail.slot or run.after == tail.end
            return {"do": "run", "branch": self._branch, "slot": run.first, "after": list(run.after), "ended": None,
                    "until_us": 0} if goes_on else None

        self._say(decide)
        return goes_on

    def _say(self, decide: Decide) -> None:
        """Add an entry. Raises `Fenced`: what a later writer says stands."""
        def alone(state: CatalogState) -> Entry | None:
            self._check_alone()
            return decide(state)

        self._catalog.append(alone)

    # --- going on -------------------------------------------------------------------------------------------------

    def step(self, told: Callable[[Archiver], None] | None = None) -> Step:
        """Archive what can be read of the source's log since. An idle store costs nothing but the question, and a piece
        now and then that says how far it is complete. O(new log).

        Args:
            told: called after each piece, with this archiver. What it raises ends the step; the piece counts.

        Raises:
            Fenced: another archiver has taken over. This one must not be used any more.
            LogPruned: the source no longer has the log: `begin` again.
            SourceUnavailable, SourceRestarted, LeaseExpired, StorageUnavailable: the same can be tried again.
        """
        info = self._source.info()
        if info.history.branch.id != self._history.branch.id:
            raise Diverged(f"the source is on branch {info.history.branch.id.hex()[:8]} now")
        done = Step(self.end)
        now = self._env.clock.monotonic()
        if info.readable.txid > self.end.txid:
            for batch in batches(self.end, self._records(info.readable.txid), self._piece_bytes):
                ours = self._store_batch(batch, info, done)
                if told is not None:
                    told(self)
                if not ours:
                    break
            self._said_at = now
            self._register()
        elif info.complete_until_us > self.complete_until_us and now - self._said_at >= self._idle:
            self._store_batch(Batch(self.end, []), info, done)
            self._said_at = now
        done.end = self.end
        return done

    def _records(self, upto: int) -> Iterator[Record]:
        now = self._env.clock.monotonic()
        if self._lease is None or now - self._leased_at >= _LEASE_S:  # it keeps all log after its position
            self.close()
            self._lease = self._source.lease(self._who, image=False, after=self.end, ttl=5 * _LEASE_S).id
            self._leased_at = now
        try:
            yield from self._source.read_log(self._lease, self.end, upto)
        except HoldfastError:
            self.close()
            raise

    def _store_batch(self, batch: Batch, info: SourceInfo, done: Step) -> bool:
        """Put a batch as the next piece. False: an earlier piece of this writer is there, whose answer was lost; the
        archive goes on after it."""
        for record in batch.records:
            if record.attachment is not None:
                assert self._lease is not None
                done.bytes += store_attachment(self._store, self._seal, self._source, self._lease, record.attachment,
                                               names.branch_files(self._branch))
        is_last = not batch.records or batch.end == info.readable
        said = max(info.complete_until_us, self.complete_until_us)  # what is not published is later than what is said
        piece = batch.piece(info.history, complete_until(batch, is_last, said), self.writer, self._env)
        ours = self._put(self._slot + 1, piece, batch)
        if not ours:
            piece = self._in_slot(self._slot + 1)
            if piece.writer != self.writer:
                raise self._fenced(piece.writer)
        self._check_alone()
        self._slot += 1
        self.end, self.complete_until_us = piece.end, piece.complete_until_us
        self.put_us = self._env.clock.now_us()
        done.transactions += piece.records
        done.bytes += batch.bytes if ours else 0
        self._merge()
        return ours

    def _put(self, slot: int, piece: Piece, batch: Batch) -> bool:
        """Put a piece into a slot. Whether it is there, and not somebody else's."""
        name = names.piece(self._branch, slot)
        pieces.store_payloads(self._store, self._seal, name, batch.records)
        data = pieces.encode(self._seal, name, piece, batch.records)
        return put_contested(self._store, name, data, lambda: self._in_slot(slot).nonce == piece.nonce, self._env)

    def _in_slot(self, slot: int) -> Piece:
        """The piece in a slot that is taken. Raises `Fenced` if a later writer has merged it, so that it has gone."""
        try:
            return self._archive().piece(self._branch, slot)[0]
        except ObjectMissing:
            self._check_alone()
            raise

    def _register(self) -> None:
        """Have the source keep its log from here on. If that fails, the log is asked for in time, or there is a gap."""
        try:
            self._source.register(self._slot_id, slot_name(self._store.url), self.end)
        except HoldfastError as error:
            logger.warning("the source was not told to keep its log for the archive: %s", error)

    # --- merging --------------------------------------------------------------------------------------------------

    def _merge(self) -> None:
        """Merge what has become enough. A failure costs nothing but reads: it is tried again with the next ones."""
        try:
            for level in range(1, LEVELS + 1):
                merge_due(self._store, self._seal, self._catalog, self._branch, self._slot, level, self._env)
        except HoldfastError as error:
            logger.info("pieces of branch %s were not merged: %s", self._branch[:8], error)

    def close(self) -> None:
        """Give the lease back. What is archived stays, and so does the slot at the source."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                self._source.release(lease)
            except HoldfastError as error:
                logger.info("the archiver's lease was not given back: %s", error)


def merge_due(store: ObjectStore, seal: Seal, catalog: Catalog, branch: str, slot: int, level: int, env: Env) -> None:
    """Make the next unit of a level, if its parts are there up to `slot`, and fit into one object. O(its bytes)."""
    log = catalog.state.branches[branch]
    if not log.runs or (parts := _parts(log, branch, slot, level)) is None:
        return
    found: list[Piece] = []
    records: list[Record] = []
    size, last = 0, 0
    for part in parts:
        data = store.get(part.name)
        piece, content = pieces.decode(seal, part.name, data, store)
        bytes_here = len(data) + piece.large_bytes
        if found and size + bytes_here > _MOST_UNIT:
            break
        if found and piece.after != found[-1].end:
            raise Damaged(f"begins after {piece.after}, and what is merged with it ends at {found[-1].end}",
                          path=f"{store.url}/{part.name}")
        size, last = size + bytes_here, part.last
        found.append(piece)
        records += content
    first = parts[0].first
    name = names.merged(branch, level, first, last, env.randomness.token(4).hex())
    whole = pieces.merged_piece(found, env)
    data = pieces.encode(seal, name, whole, records)
    store.put(name, data)
    unit = Unit(name=name, level=level, first=first, last=last, after=whole.after, end=whole.end,
                first_time_us=whole.first_time_us, last_time_us=whole.last_time_us,
                complete_until_us=whole.complete_until_us, bytes=len(data) + whole.large_bytes,
                attachments=tuple(one.name for one in whole.attachments))

    def decide(state: CatalogState) -> Entry | None:
        log = state.branches[branch]
        if log.reached.get(level, 0) >= first:
            return None  # another archiver was faster, and nobody names this object
        if not any(run.first <= first and (run.last is None or last <= run.last) for run in log.runs):
            return None  # an expiry dropped some of its parts, and those that stay must not go with it
        return {"do": "merge", "branch": branch, **unit.to_wire()}

    catalog.append(decide)


class _Part(NamedTuple):
    """A piece or a unit that is merged."""

    name: str
    first: int
    last: int


def _parts(log: BranchLog, branch: str, slot: int, level: int) -> list[_Part] | None:
    """What the next unit is made of: pieces, or units of the level below. None: there are too few yet. A unit that is
    too large to be joined with the next one stays as it is; such a piece becomes a unit by itself."""
    begin = max(log.runs[-1].first, log.reached.get(level, 0) + 1)
    if level == 1:
        parts = [_Part(names.piece(branch, n), n, n) for n in range(begin, begin + FAN_IN)]
        return parts if parts[-1].last <= slot else None
    below: list[Unit] = []
    for unit in sorted((u for u in log.units if u.level == level - 1 and u.first >= begin), key=lambda u: u.first):
        if below and (unit.first != below[-1].last + 1
                      or (len(below) == 1 and below[0].bytes + unit.bytes > _MOST_UNIT)):
            below = []
        below.append(unit)
        if len(below) == FAN_IN:
            return [_Part(u.name, u.first, u.last) for u in below]
    return None
