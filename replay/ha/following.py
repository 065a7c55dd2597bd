"""What a follower does: it finds where its log and the leader's part, cuts its own there, and streams.

The driver runs one thread for each stream (`node.py`). It appends and syncs what arrives, tells the state machine,
which acknowledges, and shows what the leader says is published. If the stream breaks, it is begun again after a moment,
until the state machine asks for another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ...engine.env import Env
from ...engine.errors import Diverged, HoldfastError, LogPruned, SourceUnavailable
from ...engine.model.positions import Branch, History, Position
from ...engine.store.store import Store
from ...engine.wal.cursor import Cursor
from .errors import NotPrimary

RETRY_S, MOST_RETRY_S = 0.05, 1.0
"""How soon a broken stream is begun again, at first and at most."""


class MustSeed(HoldfastError):
    """The leader no longer has the log that this member lacks, or this member has shown what the leader does not have:
    its state must be copied anew. `branched`: the latter."""

    def __init__(self, message: str, *, branched: bool) -> None:
        super().__init__(message)
        self.branched = branched


class Comparable(Protocol):
    """The log here, for comparing it."""

    def end(self) -> Position: ...
    def published(self) -> int: ...
    def base(self) -> int: ...
    def chain_at(self, txid: int) -> bytes: ...


class Log(Comparable, Protocol):
    """What is needed of the store here. `Follower` calls it from one thread at a time."""

    def cut(self, after: Position) -> None: ...
    def adopt(self, history: History) -> None: ...


class OtherLog(Protocol):
    """A log that is compared with the one here."""

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes: ...


class Peer(OtherLog, Protocol):
    """What is needed of the leader."""

    def status(self) -> dict[str, Any]: ...


class PeerLog(NamedTuple):
    """The log of another member: where it ends, and its branches."""

    end: int
    history: History


def leader_log(peer: Peer, epoch: int) -> PeerLog:
    """The log of the leader of `epoch`. Raises `NotPrimary` if it does not serve that epoch: before it does, its log
    may end below what was published, and a follower that believed it would cut what it holds for others."""
    status = peer.status()  # it looks at its epoch first, and at its log then
    if status["serving"] != epoch:
        raise NotPrimary(f"{status['name']} does not serve epoch {epoch}", hint="try again in a moment")
    return PeerLog(int(status["durable"]), history_of(status))


def history_of(status: dict[str, Any]) -> History:
    """The branches of a member's log, from its status."""
    try:
        branches = tuple(Branch(bytes.fromhex(id), Position(int(txid), bytes.fromhex(chain)))
                         for id, txid, chain in status["branches"])
        return History(bytes.fromhex(status["store_id"]), branches)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnavailable(f"a member's status lacks or garbles its branches: {error}") from error


def common_position(log: Comparable, peer: OtherLog, peer_end: int, epoch: int | None = None) -> Position:
    """The last position that the log here and the peer's have in common, by comparing chains. O(log n) requests, and
    one if the peer's log continues the one here.

    Args:
        log, peer, peer_end: the log here, and the peer, whose log ends at `peer_end`.
        epoch: compare only while the peer serves this epoch. A leader that does not yet serve may lack what it has yet
            to inherit. `peer_end` must have been read while it served: see `leader_log`.

    Raises:
        MustSeed: there is none that is at or above what is published here.
        SourceUnavailable: the peer has gone.
    """
    end = log.end()
    try:
        if end.txid <= peer_end and peer.chain_at(end.txid, epoch) == log.chain_at(end.txid):
            return end
        low, high = max(log.published(), log.base()), min(end.txid, peer_end)
        if low > high:
            peer.chain_at(high, epoch)  # if it does not serve any more, its end may be that of another log
        if low > high or peer.chain_at(low, epoch) != log.chain_at(low):
            raise MustSeed(f"transaction {low} was shown here, and the leader has another one or none",
                           branched=True)
        return _last_common(log, peer, low, high, epoch)
    except LogPruned as error:
        raise MustSeed(f"the leader no longer has the log from here on: {error.message}", branched=False) from error


def _last_common(log: Comparable, peer: OtherLog, low: int, high: int, epoch: int | None) -> Position:
    """The last position in common, of those from `low`, which is one, to `high`."""
    while low < high:
        middle = (low + high + 1) // 2
        if peer.chain_at(middle, epoch) == log.chain_at(middle):
            low = middle
        else:
            high = middle - 1
    return Position(low, log.chain_at(low))


def parting(log: Log, peer: Peer, peer_end: int) -> Position:
    """Where a log that has branched left the peer's: the last position in common, or the first one here if the logs
    have none. Everything after it is only here, as far as can be told. Raises `SourceUnavailable`."""
    low, high = log.base(), min(log.end().txid, peer_end)
    try:
        if low <= high and peer.chain_at(low) == log.chain_at(low):
            return _last_common(log, peer, low, high, None)
    except LogPruned:
        pass
    return Position(low, log.chain_at(low))


def make_equal(log: Log, peer: Peer, theirs: PeerLog, epoch: int | None = None) -> Position:
    """Cut the log here above the last position that it has in common with the peer's, and continue on its branches.
    Returns that position. See `common_position`."""
    common = common_position(log, peer, theirs.end, epoch)
    if log.end().txid > common.txid:
        log.cut(common)
    try:
        log.adopt(theirs.history)
    except Diverged as error:
        raise MustSeed(error.message, branched=False) from error
    return common


class Pacing:
    """How long to wait before a stream is begun again."""

    def __init__(self, env: Env, stopped: Callable[[], bool]) -> None:
        self._wait = env.scheduler.event()
        self._stopped = stopped
        self._next = RETRY_S

    def worked(self) -> None:
        """Begin with the shortest wait again."""
        self._next = RETRY_S

    def wait(self) -> bool:
        """Wait, and say whether to go on. At once, once `stop` was called."""
        self._wait.wait(self._next)
        self._next = min(2 * self._next, MOST_RETRY_S)
        return not self._stopped()

    def stop(self) -> None:
        self._wait.set()



class Delay:
    """Which transactions are old enough to be shown by a follower that lags on purpose. From any thread."""

    def __init__(self, seconds: float, env: Env, store: Callable[[], Store[Any, Any]]) -> None:
        """`store`: the member's, which is another one after it was opened anew."""
        self._us = int(seconds * 1e6)
        self._env = env
        self._lock = env.scheduler.lock()
        self._current = store
        self._store: Store[Any, Any] | None = None
        self._cursor: Cursor | None = None
        self._next: tuple[int, int] | None = None  # the first one that is too young, and its time

    def upto(self, txid: int) -> int:
        """The last transaction up to `txid`, which is published by the cluster, that is old enough; 0 if that is not
        above what is shown. Reads each record of the log once."""
        with self._lock:
            return self._look(txid)

    def forget(self) -> None:
        """The log was cut: begin again after what is shown."""
        with self._lock:
            self._store = None

    def _look(self, txid: int) -> int:
        store, latest = self._current(), self._env.clock.now_us() - self._us
        if store is not self._store:
            self._store, self._next, self._cursor = store, None, store.log.cursor(store.published)
        assert self._cursor is not None
        txid, old = min(txid, store.durable.txid), 0
        if self._next is not None:
            if self._next[0] > txid or self._next[1] > latest:
                return 0
            old, self._next = self._next[0], None
        for record in self._cursor.read(txid):
            if record.time_us > latest:
                self._next = record.txid, record.time_us
                break
            old = record.txid
        return old
