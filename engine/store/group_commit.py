"""Group commit: the threads around the log and the watermarks.

A committing thread appends its record under the mutex. If no thread leads, it then *leads*: it takes the oldest batch,
writes and syncs it outside the mutex, moves the watermarks, and wakes the threads whose commits are now acknowledged.
Otherwise it waits in line. A record that arrives during a sync goes into the next batch. A leader leads until its own
transaction is durable, and then hands over to a thread in line. So with one thread, a commit is one sync in that
thread, without a switch. The *syncer* thread leads for commits that no thread waits for (pipelined, relaxed). It leads
for all commits if plugins hold acknowledgements; each ticket then joins the line when its record is appended, because
a condition may fail before anybody waits. A ticket that nobody will wait for leaves the line.

A write or sync that fails poisons the store. Nothing is retried, and everybody in line gets `OutcomeUnknown`.

Signal safety: a signal handler may raise in the main thread after any call and at the start of any function. So
leadership is taken inside the `try` whose handler gives it up. A ticket is recorded in `woken` before it leaves the
line, and `woken` is drained whatever happens. `CommitTicket.wake` may be called twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..contract.engine import StagingEngine
from ..env import Env
from ..errors import (
    LACKS,
    CommitPoisoned,
    ConditionNotMet,
    HoldfastError,
    OutcomeUnknown,
    RolledBack,
    StorePoisoned,
    rolled_back,
)
from ..model.positions import Position
from ..model.records import Attachment, LogRange, Record
from ..wal.log import Log
from ..wal.preallocation import RoomNeeded
from ..wal.segment import Batch
from .callbacks import Callbacks, Outcome
from .commit_queue import CommitTicket, Line, Told, wake_all
from .hooks import Hooks
from .watermarks import Watermarks


class GroupCommit:
    """See the module's text.

    Attributes:
        mutex: guards log appends, the watermarks and the line.
        moved: notified when a stage moves while somebody waits in `wait_until`.
        shown: the last transaction that new views show. It follows `watermarks.published`, which moves a moment before
            the engine publishes. Whoever looks without the mutex, and then takes a view, needs this one.
        poison: the error that poisoned the store, or None.
        member: the store is a cluster's: no heartbeats are written.
        on_synced: called after each sync if plugins hold acknowledgements, on the thread that synced.
        callbacks: runs the callbacks of outcomes.
        unheard_bytes: bytes of payload kept for plugins that listen to *logged* and have not answered yet.
    """

    def __init__(self, log: Log, watermarks: Watermarks, hooks: Hooks, env: Env, *, relaxed_s: float,
                 staging: StagingEngine[Any, Any] | None, on_fault: Callable[[BaseException], None]) -> None:
        """
        Args:
            log, watermarks, hooks, env: what it works on.
            relaxed_s: the longest time before a relaxed commit is synced, seconds.
            staging: the engine, if it stages. Its `stage` and `publish` are called under the mutex.
            on_fault: called once when the store is poisoned, on the thread that failed, without the mutex.
        """
        self.log = log
        self._writer = log.writer
        self.watermarks = watermarks
        self.mutex = env.scheduler.lock()
        self.moved = env.scheduler.condition(self.mutex)
        self.poison: BaseException | None = None
        self._unstaged: BaseException | None = None  # why the engine lacks a record of the log: publish nothing
        self.on_synced: Callable[[], None] = lambda: None
        self.member = False
        self.shown = watermarks.published.txid
        self._watchers = 0
        self._hooks = hooks
        self._env = env
        self._here = env.scheduler.here
        self._staging = staging
        self._on_fault = on_fault
        self._relaxed_s = relaxed_s
        self._direct = not hooks.logged
        self._leader: int | None = None  # the thread that leads
        self.callbacks = Callbacks(env)
        self._line = Line()
        self._urgent = 0  # the last transaction that anybody waits for
        self._unheard: deque[Record] = deque()  # appended and not yet synced; kept for listeners
        self.unheard_bytes = 0
        self._kept: deque[Record] = deque()
        self._keep = bool(hooks.published)
        self._kits: dict[int, Position] = {}  # see `told`
        self._telling = env.scheduler.lock()
        self._closing = False
        self._due: float | None = None
        self._kick = env.scheduler.condition(self.mutex)
        try:
            self._syncer = env.scheduler.spawn("holdfast-sync", self._run_syncer)
        except BaseException:  # a signal handler may raise when the thread is already running
            with self.mutex:
                self._closing = True
                self._kick.notify_all()
            raise

    # --- committing ------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, version: int, attachment: Attachment | None, tx: Any, *,
               barrier: bool) -> tuple[Record, CommitTicket]:
        """Append a record. The writer lock is held.

        Args:
            payload, version, attachment: what to log.
            tx: what to stage; None for a bulk load and for a kit record.
            barrier: the transaction is a barrier (see `watermarks`).

        Raises:
            RolledBack, InvalidInput: nothing was logged. Always raised once `close` has begun, because another process
                may already own the log.
            What the engine's `stage` raises: the record is logged, and the caller must call `fail`.
        """
        try:
            with self.mutex:
                if self.poison is not None:
                    raise self.poisoned(CommitPoisoned)
                if self._closing:
                    raise RolledBack("the store was closed meanwhile")
                try:
                    record = self._writer.append(payload, version, attachment, at_once=True)
                except LACKS as error:
                    raise rolled_back(error, "no log segment could be made") from error
                before = self.watermarks.appended
                self.watermarks.append(record.position, barrier=barrier)
                if tx is None and record.is_kit:
                    self.applied(self.told(before), record.position)
                if self._staging is not None and tx is not None:
                    # Stage under the mutex. Otherwise the leader could sync and publish the record before the engine
                    # has it.
                    try:
                        self._staging.stage(record, tx)
                    except BaseException as error:
                        self._unstaged = error
                        raise
                if self._keep:
                    self._kept.append(record)
                ticket = CommitTicket(record.txid, self)
                if not self._direct:
                    self._unheard.append(record)
                    self.unheard_bytes += len(payload)
                    self._line.join(ticket)
            return record, ticket
        except RoomNeeded as needed:
            capacity = needed.capacity
        try:  # without the mutex: zero-filling is slow, and others commit meanwhile
            self._writer.make_room(capacity)
        except LACKS as error:
            raise rolled_back(error, "no log segment could be made") from error
        return self.append(payload, version, attachment, tx, barrier=barrier)

    def heard(self, log: LogRange) -> None:
        """Every listener has answered for this range, so its records are no longer kept. The mutex is held."""
        self.unheard_bytes -= sum(len(record.payload) for record in log.records)

    def wait(self, ticket: CommitTicket) -> None:
        """Lead or wait in line until the ticket is acknowledged. Raises `ConditionNotMet`, `OutcomeUnknown`."""
        if self._direct and self.shown >= ticket.txid:  # it only ever grows
            return
        me, waits, txid = self._here(), False, ticket.txid
        try:
            with self.mutex:
                if (self._direct and self._leader is None and self.watermarks.durable.txid < txid
                        and self.poison is None):
                    self._leader = me
                    batch = self._writer.take()
                else:
                    waits, batch = self._stand_in_line(ticket, me), None
                    if not waits:
                        return
            if waits:
                self._wait_in_line(ticket)
            if self._leader == me:
                self._lead(batch, txid, me)
        except BaseException as error:  # a signal, for instance: others must not wait for a leader that has gone
            if self._leader == me and not waits:
                self.fail(error)  # a batch may have been taken, and would never be written
            self._leave(me)
            raise

    def _wait_in_line(self, ticket: CommitTicket) -> None:
        assert ticket.gate is not None
        ticket.gate.acquire()
        if ticket.error is not None:
            raise ticket.error
        if self.watermarks.acknowledged.txid < ticket.txid and self._leader != ticket.thread:
            raise self.unknown(ticket.txid)  # the thread that woke us was interrupted before it could say why

    def _leave(self, thread: int) -> None:
        """Take a thread out of the line, and hand over its lead if it leads."""
        woken: list[CommitTicket] = []
        try:
            with self.mutex:
                self._line.leave(thread)
                if self._leader == thread:
                    self._hand_over(woken)
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                wake_all(woken)
            finally:
                wake_all(woken)

    def _stand_in_line(self, ticket: CommitTicket, thread: int | None, outcome: Told | None = None) -> bool:
        """Put a thread or an outcome in line; False if there is nothing to wait for. The mutex is held. Raises
        `ConditionNotMet`, `OutcomeUnknown`."""
        txid = ticket.txid
        if ticket.error is not None:
            raise ticket.error
        if self.watermarks.acknowledged.txid >= txid:
            return False
        if self.poison is not None:
            raise self.unknown(txid)
        if outcome is None:
            gate = self._env.scheduler.lock()
            gate.acquire()
            ticket.thread, ticket.gate = thread, gate
        else:
            ticket.outcome = outcome
        self._line.join(ticket)
        if txid > self._urgent:
            self._urgent = txid
        if self._leader is None and self._log_waits():
            self._kick.notify()
        return True

    def future(self, ticket: CommitTicket) -> Outcome:
        """A future that is done, with the txid or an error, when the ticket is acknowledged."""
        outcome = Outcome(self.callbacks)
        self.tell(ticket, outcome)
        return outcome

    def tell(self, ticket: CommitTicket, outcome: Told) -> None:
        """Tell `outcome` when the ticket is acknowledged, or why it is not."""
        try:
            with self.mutex:
                waits = self._stand_in_line(ticket, None, outcome)
        except HoldfastError as error:
            outcome.set_exception(error)
        else:
            if not waits:
                outcome.set_result(ticket.txid)

    def drop(self, ticket: CommitTicket) -> None:
        """Nobody will wait for it: it is synced within the bound for relaxed commits."""
        if not self._direct:  # else it is not in line
            with self.mutex:
                self._line.drop(ticket)
        self.sync_within()

    def wait_publishable(self, ticket: CommitTicket) -> None:
        """Wait until the transaction may be published. Raises `ConditionNotMet`, `OutcomeUnknown`."""
        if self._direct:  # then whatever is durable may be published
            self.wait(ticket)
            return
        self.sync_within(0.0)
        watermarks, txid = self.watermarks, ticket.txid
        self.wait_until(lambda: watermarks.publishable.txid >= txid or ticket.done, None)
        if watermarks.publishable.txid < txid and ticket.error is not None:
            raise ticket.error

    def sync_within(self, seconds: float | None = None) -> None:
        """Have everything appended synced within `seconds`; without, within the time for relaxed commits."""
        due = self._env.clock.monotonic() + (self._relaxed_s if seconds is None else seconds)
        with self.mutex:
            if self._due is None or due < self._due:
                self._due = due
                self._kick.notify()

    def wait_until(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `reached()`, which is called under the mutex, and return what it last returned. Return early if
        the store is poisoned or closing, or after `timeout` seconds."""
        with self.mutex:
            self._watchers += 1
            try:
                self.moved.wait_for(lambda: reached() or self.poison is not None or self._closing, timeout)
                return reached()
            finally:
                self._watchers -= 1

    def _log_waits(self) -> bool:
        return self.watermarks.appended.txid > self.watermarks.durable.txid

    # --- leading ---------------------------------------------------------------------------------------------------

    def _lead(self, batch: Batch | None, until: int, me: int) -> None:
        """Write and sync batch after batch until `until` is durable, then hand over. `_leader` is `me`, this thread.
        If `batch` is None, begin with the oldest one."""
        writer, watermarks = self._writer, self.watermarks
        woken: list[CommitTicket] = []
        leads = True
        try:
            if batch is None:
                with self.mutex:
                    batch = writer.take()
            while leads:
                assert batch is not None
                end = writer.write(batch)
                with self.mutex:
                    if self._unstaged is not None:
                        raise self._unstaged
                    watermarks.synced(end, () if self._direct else _take_upto(self._unheard, end.txid))
                    self._advance(woken)
                    if end.txid < until:
                        batch = writer.take()
                    else:
                        if watermarks.appended.txid > end.txid:
                            self._hand_over(woken)
                        else:
                            self._leader = self._due = None
                            if self._closing:
                                self._kick.notify_all()
                        leads = False
                if woken:
                    wake_all(woken)
                if not self._direct:
                    self.on_synced()
        except BaseException as error:
            if self._leader == me:
                self.fail(error)
            wake_all(woken)
            if leads and isinstance(error, Exception):
                raise self.unknown(until) from error
            raise
        if self._keep:
            self._tell_published()

    def _hand_over(self, woken: list[CommitTicket]) -> None:
        """Pass the lead to a thread in line, which is added to `woken`, or to the syncer. The mutex is held."""
        if self._direct and self._log_waits():
            ticket = self._line.next_thread(woken)
            if ticket is not None:
                self._leader = ticket.thread
                return
        self._leader = None
        self._kick.notify()

    def _advance(self, woken: list[CommitTicket]) -> None:
        """After the watermarks moved: publish, and add to `woken` the tickets to wake. The mutex is held."""
        watermarks = self.watermarks
        if self._staging is not None:
            position = watermarks.published
            self._staging.publish(self.told(position) if self._kits else position)
        self.shown = watermarks.published.txid
        self._line.take_upto(watermarks.acknowledged.txid, woken)
        if self._watchers:
            self.moved.notify_all()

    def advance(self) -> None:
        """After somebody else moved the watermarks: publish, wake the acknowledged tickets, tell the plugins."""
        woken: list[CommitTicket] = []
        try:
            with self.mutex:
                self._advance(woken)
        except BaseException as error:  # from the engine or a signal: without this, nobody would wake the line
            self.fail(error)
            raise
        finally:
            if woken:
                try:  # twice, since a signal's handler may raise as the first one starts
                    wake_all(woken)
                finally:
                    wake_all(woken)
        if self._keep:
            self._tell_published()

    def applied(self, last: Position, end: Position) -> None:
        """The log between `last`, the position of a record that the engine gets, and `end` has only kit records."""
        self._kits = {txid: told for txid, told in self._kits.items() if txid >= self.watermarks.published.txid}
        if end.txid > last.txid:
            self._kits[end.txid] = last

    def told(self, position: Position) -> Position:
        """What the engine is told instead of a published or appended position. It never gets kit records, so it is told
        the position of the last record before them. O(1)."""
        return self._kits.get(position.txid, position)

    def follow(self, end: Position, applied: Position) -> None:
        """In a read-only store: show everything up to `end`, which another process has made durable. The engine got it
        up to `applied`, after which there are only kit records."""
        self.watermarks.append(end)
        self.watermarks.synced(end)
        self.applied(applied, end)
        if self._staging is not None:
            self._staging.publish(applied)
        self.shown = end.txid

    def followed(self, end: Position) -> None:
        """In a replica: the log now ends durably at `end`."""
        with self.mutex:
            self.watermarks.follow(end)
            if self._watchers:
                self.moved.notify_all()

    def show(self, applied: Position | None, records: Sequence[Record]) -> None:
        """In a replica: these durable records follow what is published, and are in the engine's state. `applied`: the
        last of them that the engine got, or None. Call `advance` after that."""
        with self.mutex:
            end = records[-1].position
            applied = self.told(self.watermarks.published) if applied is None else applied
            self.watermarks.show(end)
            self.applied(applied, end)
            if self._keep:
                self._kept.extend(records)

    @property
    def gives_up_unknown(self) -> bool:
        """Whether a commit that is not acknowledged has an unknown outcome: a cluster's store is being closed."""
        return self.member and self._closing

    def forsake(self) -> None:
        """Wake everybody in line with `OutcomeUnknown`: another member may have what is open here, or may lack it."""
        woken: list[CommitTicket] = []
        try:
            with self.mutex:
                self._line.take_between(0, 1 << 63, self.unknown, woken)
                self.moved.notify_all()
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                wake_all(woken)
            finally:
                wake_all(woken)

    def give_up(self, first: int, last: int, why: str) -> None:
        """Wake everybody in line for `first` to `last` with `ConditionNotMet`, or with `OutcomeUnknown` if the store is
        a cluster's and is being closed."""
        woken: list[CommitTicket] = []
        try:
            with self.mutex:
                self._line.take_between(first, last, self.unknown if self.gives_up_unknown else (
                    lambda txid: ConditionNotMet(f"transaction {txid} {why}", txid=txid)), woken)
                if self._watchers:
                    self.moved.notify_all()
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                wake_all(woken)
            finally:
                wake_all(woken)

    def _tell_published(self) -> None:
        with self._telling:  # so the hooks see the records in order
            with self.mutex:
                records = _take_upto(self._kept, self.watermarks.published.txid)
            if records:
                self._hooks.tell("published", records)

    # --- poison ----------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Poison the store: what is on disk is unknown, or the engine's state differs from the log."""
        woken: list[CommitTicket] = []
        try:
            with self.mutex:
                first = self.poison is None
                if first:
                    self.poison = error
                self._leader = None
                self._line.take_between(0, 1 << 63, self.unknown, woken)
                self.moved.notify_all()
                self._kick.notify_all()
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                wake_all(woken)
            finally:
                wake_all(woken)
        if first:
            self._on_fault(error)

    def unknown(self, txid: int) -> OutcomeUnknown:
        """The error for a transaction that may or may not be durable."""
        why = "the store was closed meanwhile" if self.poison is None else f"the store is poisoned ({self.poison!r})"
        error = OutcomeUnknown(f"transaction {txid} may or may not be durable: {why}", txid=txid)
        error.__cause__ = self.poison
        return error

    def poisoned(self, kind: type[StorePoisoned] = StorePoisoned) -> StorePoisoned:
        """The error for a call that a poisoned store refuses."""
        error = kind(f"the store takes no more writes, because one failed: {self.poison}")
        error.__cause__ = self.poison
        return error

    # --- background ------------------------------------------------------------------------------------------------

    def _run_syncer(self) -> None:
        """The syncer thread: lead when no committing thread does."""
        me = self._here()
        while True:
            with self.mutex:
                while not self._must_lead():
                    if self.poison is not None or (self._closing and self._leader is None):
                        return
                    self._kick.wait(self._pause())
                self._leader, self._due = me, None
                until = self.watermarks.appended.txid
                batch = self._writer.take()
            try:
                self._lead(batch, until, me)
            except OutcomeUnknown:
                return

    def _must_lead(self) -> bool:
        if self._leader is not None or self.poison is not None or not self._log_waits():
            return False
        if self._closing or self._urgent > self.watermarks.durable.txid:
            return True
        return self._due is not None and self._due <= self._env.clock.monotonic()

    def _pause(self) -> float | None:
        """Seconds until relaxed commits are due; None to wait until `_kick` is notified."""
        if self._due is None or self._leader is not None:
            return None
        if not self._log_waits():
            self._due = None
            return None
        return max(0.0, self._due - self._env.clock.monotonic())

    def heartbeat(self, *, start: bool = False) -> None:
        """Write a heartbeat if everything appended is durable and nobody is writing: it tells the log's readers that
        time has passed without a commit. `start`: also if that needs a new segment and there is room for one."""
        while not self.member and (capacity := self._beat(start)) is not None:
            try:
                self._writer.make_room(capacity)
            except (HoldfastError, OSError, MemoryError):  # no room or no descriptor: nothing was written
                return

    def _beat(self, start: bool) -> int | None:
        """Try once. Returns the capacity to make room for before the next try, or None if done."""
        me, woken = self._here(), []  # type: tuple[int, list[CommitTicket]]
        try:
            with self.mutex:
                if self._leader is not None or self._log_waits() or self._closing or self.poison is not None:
                    return None
                self._leader = me
                capacity = None
                try:
                    batch = self._writer.heartbeat(start=start, at_once=True)
                except RoomNeeded as needed:
                    batch, capacity = None, needed.capacity
                except (HoldfastError, OSError):  # the directory has moved, for instance: nothing was written
                    batch = None
                if batch is None:
                    self._leader = None
                    return capacity
            self._writer.write(batch)
            with self.mutex:
                self._hand_over(woken)
        except BaseException as error:
            if self._leader == me:
                self.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                wake_all(woken)
            finally:
                wake_all(woken)
        return None

    def runs_here(self) -> bool:
        """Whether the caller runs on the syncer thread."""
        return self._syncer.runs_here()

    def close(self) -> None:
        """Sync what is appended, and stop. The caller keeps the writer lock, so nothing more is appended."""
        with self.mutex:
            self._closing = True
            self._kick.notify_all()
            self.moved.notify_all()
        self._writer.end_preparing()
        self._syncer.join()
        with self.mutex:  # another thread may still lead: wait for it
            self._kick.wait_for(lambda: self._leader is None or self.poison is not None, 60)


def _take_upto(kept: deque[Record], txid: int) -> tuple[Record, ...]:
    """Take the records up to `txid` out of `kept`, for plugins to be told of. The mutex is held."""
    records = []
    while kept and kept[0].txid <= txid:
        records.append(kept.popleft())
    return tuple(records)
