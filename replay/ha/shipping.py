"""What a primary sends: its log to the followers, as it becomes durable, and how far it is published.

`Shipping` is a plugin of the store. The kit tells it what is durable here; it sends that to every follower that is up
to date, and holds publication until the state machine says that enough voters have it. A follower that is behind gets
the log from a cursor, in a thread of its own, until it has caught up.

A transaction costs each follower one call, whatever else waits. What a slow follower has not taken is not kept in
memory: it is read from the log again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ...engine.contract.plugin import Condition, Plugin
from ...engine.env import Env
from ...engine.errors import HoldfastError, LogPruned
from ...engine.model.positions import Position
from ...engine.model.records import Attachment, LogRange, Record
from ...engine.store.store import Store
from ...engine.wal.slots import Slot
from .lag import Lag, Marks

logger = logging.getLogger("holdfast.cluster")

BURST_BYTES = 256 << 10
"""About how much of the log is read and sent at a time to a follower that is behind."""
ROOM_S = 1.0
MOST_SLOTS = 50
"""How many slots one heartbeat tells of."""
NEVER_S = 1e9
"""A condition of the cluster is never late: a transaction stays open until the cluster has it."""


class LogStream(Protocol):
    """A response to a follower. All calls from any thread; none waits, but for `wait_room`. What sends returns False,
    and takes nothing, if too much waits; it raises a `HoldfastError` if the stream has ended. `closed`: why it has."""

    closed: str | None

    def send_records(self, records: Sequence[Record]) -> bool: ...
    def heartbeat(self, beat: dict[str, Any]) -> bool: ...
    def wait_room(self, timeout: float) -> bool: ...
    def close(self, reason: str | BaseException) -> None: ...


def _sent(stream: LogStream, records: Sequence[Record]) -> bool:
    """Whether a stream takes these records now."""
    try:
        return stream.send_records(records)
    except HoldfastError:
        return False


class _Follower:
    """One stream. `live`: it gets each record at once. `sent`: the last transaction sent. Both under the lock."""

    __slots__ = ("epoch", "knows_all", "live", "name", "position", "sent", "slots", "stream")

    def __init__(self, name: str, epoch: int, after: Position, stream: LogStream) -> None:
        self.name = name
        self.epoch = epoch
        self.position = after
        self.sent = after.txid
        self.stream = stream
        self.live = False
        self.slots: dict[str, tuple[int, int]] = {}  # those that it was told of, with transaction and time
        self.knows_all = False  # it was told which slots there are: others were dropped while it was away

    def news_of(self, slots: Sequence[Slot]) -> dict[str, Any]:
        """What a heartbeat says of slots that have registered or gone since this follower was told. O(slots)."""
        moved = [s for s in slots if self.slots.get(s.id) != (s.position.txid, s.seen_us)][:MOST_SLOTS]
        gone = [] if moved else list(self.slots.keys() - {s.id for s in slots})[:MOST_SLOTS]
        told: dict[str, Any] = {}
        if not self.knows_all:
            told["all_slots"] = [s.id for s in slots]
        if moved:
            told["slots"] = [[s.id, s.name, *s.position, s.seen_us] for s in moved]
        if gone:
            told["gone"] = gone
        return told

    def told(self, news: dict[str, Any]) -> None:
        """The follower was told of this."""
        self.knows_all = True
        self.slots |= {id: (txid, seen_us) for id, _, txid, _, seen_us in news.get("slots", ())}
        for id in news.get("gone", ()):
            del self.slots[id]


class Shipping(Plugin):
    """See the module's text."""

    def __init__(self, env: Env, serving: Callable[[], int], on_durable: Callable[[], None],
                 on_fault: Callable[[BaseException], None], spread: Callable[[Attachment], None]) -> None:
        """
        Args:
            env: the environment.
            serving: the epoch that this member serves now, 0 for none. From any thread.
            on_durable: called when records have become durable, before they are published, in the store's thread for
                conditions.
            on_fault: called if the store is poisoned, in a thread of its own.
            spread: has enough voters store a bulk load's file before its record is logged. On the loading thread.
        """
        self._spread = spread
        self._offered: Attachment | None = None
        self._on_fault = on_fault
        self._env = env
        self._serving = serving
        self._on_durable = on_durable
        self._lock = env.scheduler.lock()
        self._followers: list[_Follower] = []
        self._waiting: deque[tuple[int, Future[Any]]] = deque()  # conditions, by their last transaction
        self._held = env.scheduler.lock()  # guards `_waiting` and `_marks`
        self._published = 0
        self._store: Store[Any, Any] | None = None
        self._marks: Marks | None = None
        self._beat = 0

    # --- the store's moments --------------------------------------------------------------------------------------

    def opened(self, store: Any) -> None:
        self._store = store
        self._marks = Marks(self._env, store.log.beyond)

    def closing(self, store: Any) -> None:
        self._store = None
        self.end("the primary has stepped down")

    def fault(self, error: BaseException) -> None:
        self._env.scheduler.spawn("holdfast-fault", lambda: self._on_fault(error))

    def attached(self, attachment: Attachment) -> None:
        self._spread(attachment)

    def offer(self, attachment: Attachment | None) -> None:
        """From now on, have heartbeats tell followers to copy this file; None ends that."""
        self._offered = attachment

    def logged(self, batch: LogRange) -> Condition:
        met: Future[Any] = Future()
        condition = Condition(met=met, timeout=NEVER_S, gates_publication=True, name="the cluster")
        if not self._serving():  # it is stepping down: whether the cluster has these is for the next primary to say
            return condition
        with self._held:
            if batch.records and self._marks is not None:
                self._marks.note(batch.records)
            if batch.last <= self._published:
                met.set_result(None)
            else:
                self._waiting.append((batch.last, met))
        self._send(batch.records)
        self._on_durable()
        return condition

    # --- to the followers -----------------------------------------------------------------------------------------

    def _send(self, records: Sequence[Record]) -> None:
        if not records:
            return
        behind = []
        with self._lock:
            for follower in self._followers:
                if not follower.live:
                    continue
                if follower.sent == records[0].txid - 1 and _sent(follower.stream, records):
                    follower.sent, follower.position = records[-1].txid, records[-1].position
                else:
                    follower.live = False
                    behind.append(follower)
        for follower in behind:
            self._spawn(follower)

    def add(self, name: str, epoch: int, after: Position, stream: LogStream) -> None:
        """Begin to send to a follower what comes after a position of this log. An older stream to it ends."""
        follower = _Follower(name, epoch, after, stream)
        with self._lock:
            old = [f for f in self._followers if f.name == name]
            self._followers = [f for f in self._followers if f.name != name]
            self._followers.append(follower)
        for other in old:
            other.stream.close("another stream to this follower has begun")
        self._spawn(follower)

    def _spawn(self, follower: _Follower) -> None:
        self._env.scheduler.spawn("holdfast-ship", lambda: self._catch_up(follower))

    def _catch_up(self, follower: _Follower) -> None:
        """Send what a follower lacks from the log, until it is up to date."""
        try:
            self._read_and_send(follower)
        except LogPruned as error:
            logger.warning("%s cannot keep up, and is dropped: %s; it copies the state anew", follower.name,
                           error.message)
            self._drop(follower, error.message)
        except HoldfastError as error:
            logger.warning("the log for %s cannot be read: %s", follower.name, error)
            self._drop(follower, error.message)
        except Exception as error:
            logger.exception("sending to %s failed", follower.name)
            self._drop(follower, repr(error))

    def _read_and_send(self, follower: _Follower) -> None:
        store, stream = self._store, follower.stream
        if store is None:
            return
        cursor = store.log.cursor(follower.position)
        while not stream.closed and self._serving() == follower.epoch:
            burst: list[Record] = []
            size = 0
            for record in cursor.read():
                burst.append(record)
                size += len(record.payload)
                if size >= BURST_BYTES:
                    self._pass_on(follower, burst)
                    burst, size = [], 0
                    if stream.closed or self._serving() != follower.epoch:
                        return
            if burst:
                self._pass_on(follower, burst)
            with self._lock:
                if store.log.end.txid == follower.sent:  # whatever becomes durable next is told to `logged`
                    follower.live = True
                    return

    def _pass_on(self, follower: _Follower, records: list[Record]) -> None:
        while not follower.stream.send_records(records):
            follower.stream.wait_room(ROOM_S)
        with self._lock:
            follower.sent, follower.position = records[-1].txid, records[-1].position

    def _drop(self, follower: _Follower, why: str) -> None:
        with self._lock:
            self._followers = [f for f in self._followers if f is not follower]
        follower.stream.close(why)

    def lag(self, txid: int, end: int, silent: float) -> Lag:
        """The lag of a member that holds the log up to `txid`, if it ends at `end`, and was heard `silent` seconds ago.
        """
        if txid >= end or self._marks is None:
            return Lag(0, 0, 0.0, silent)
        with self._held:
            return Lag(end - txid, *self._marks.after(txid), silent)

    def beat(self, epoch: int, watermark: int, *, count: bool = False, slots: Sequence[Slot] | None = None,
             lags: Mapping[str, Lag] | None = None) -> int:
        """Tell every follower how far this epoch's log is published. With `count`, under a new number, which the
        followers echo. With `slots`, tell them of those that are new to them, because any of them may have to serve a
        slot's owner next. With `lags`, tell them how far each member is behind. Returns the number of the last
        heartbeat. O(followers), and O(slots + members) for each."""
        with self._lock:
            if count:
                self._beat += 1
            message: dict[str, Any] = {"epoch": epoch, "watermark": watermark, "beat": self._beat,
                       "time_us": self._env.clock.now_us()}
            offered = self._offered
            if offered is not None:
                message["attachment"] = list(offered)
            if lags is not None:
                message["lags"] = {name: list(lag) for name, lag in lags.items()}
            self._followers = [f for f in self._followers if not f.stream.closed]
            for follower in self._followers:
                if follower.epoch == epoch:
                    news = {} if slots is None else follower.news_of(slots)
                    with contextlib.suppress(HoldfastError):  # it has just ended
                        if follower.stream.heartbeat({**message, **news}) and news:
                            follower.told(news)
            return self._beat

    def followers(self) -> dict[str, int]:
        """The last transaction sent to each follower, by name."""
        with self._lock:
            return {f.name: f.sent for f in self._followers if not f.stream.closed}

    # --- publication ----------------------------------------------------------------------------------------------

    def publish(self, upto: int) -> None:
        """Enough voters hold everything up to `upto`: meet the conditions. Callbacks run in this thread."""
        met = []
        with self._held:
            self._published = max(self._published, upto)
            while self._waiting and self._waiting[0][0] <= upto:
                met.append(self._waiting.popleft()[1])
        for future in met:
            future.set_result(None)

    def end(self, why: str) -> None:
        """End all streams. Conditions stay open: what becomes of these transactions is not known here."""
        with self._lock:
            followers, self._followers = self._followers, []
        for follower in followers:
            follower.stream.close(why)
        with self._held:
            self._waiting.clear()
