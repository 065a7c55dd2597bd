"""What a follower does: it finds where its log and the leader's part, cuts its own there, and streams.

The driver runs one thread for each stream (`node.py`). It appends and syncs what arrives, tells the state machine,
which acknowledges, and shows what the leader says is published. If the stream breaks, it is begun again after a moment,
until the state machine asks for another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...engine.env import Env
from ...engine.errors import HoldfastError, LogPruned
from ...engine.model.positions import Position
from .errors import NotPrimary

RETRY_S, MOST_RETRY_S = 0.05, 1.0
"""How soon a broken stream is begun again, at first and at most."""


class MustSeed(HoldfastError):
    """The leader no longer has the log that this member lacks, or this member has shown what the leader does not have:
    its state must be copied anew. `branched`: the latter."""

    def __init__(self, message: str, *, branched: bool) -> None:
        super().__init__(message)
        self.branched = branched


class Log(Protocol):
    """What is needed of the store here. `Follower` calls it from one thread at a time."""

    def end(self) -> Position: ...
    def published(self) -> int: ...
    def base(self) -> int: ...
    def chain_at(self, txid: int) -> bytes: ...
    def cut(self, after: Position) -> None: ...


class Peer(Protocol):
    """What is needed of the leader."""

    def status(self) -> dict[str, Any]: ...
    def chain_at(self, txid: int, epoch: int | None = None) -> bytes: ...


def common_position(log: Log, peer: Peer, peer_end: int, epoch: int | None = None) -> Position:
    """The last position that the log here and the peer's have in common, by comparing chains. O(log n) requests, and
    one if the peer's log continues the one here.

    Args:
        log, peer, peer_end: the log here, and the peer, whose log ends at `peer_end`.
        epoch: compare only while the peer serves this epoch. A leader that does not yet serve may lack what it has yet
            to inherit. `peer_end` must have been read while it served: see `leader_end`.

    Raises:
        MustSeed: there is none that is at or above what is published here.
        SourceUnavailable: the peer has gone.
    """
    end = log.end()

    def agrees(txid: int) -> bool:
        return peer.chain_at(txid, epoch) == log.chain_at(txid)

    try:
        if end.txid <= peer_end and agrees(end.txid):
            return end
        low, high = max(log.published(), log.base()), min(end.txid, peer_end)
        if low > high:
            peer.chain_at(high, epoch)  # if it does not serve any more, its end may be that of another log
        if low > high or not agrees(low):
            raise MustSeed(f"transaction {low} was shown here, and the leader has another one or none",
                           branched=True)
        while low < high:
            middle = (low + high + 1) // 2
            if agrees(middle):
                low = middle
            else:
                high = middle - 1
    except LogPruned as error:
        raise MustSeed(f"the leader no longer has the log from here on: {error.message}", branched=False) from error
    return Position(low, log.chain_at(low))


def leader_end(peer: Peer, epoch: int) -> int:
    """Where the log of the leader of `epoch` ends. Raises `NotPrimary` if it does not serve that epoch: before it does,
    its log may end below what was published, and a follower that believed it would cut what it holds for others."""
    status = peer.status()  # it looks at its epoch first, and at its log then
    if status["serving"] != epoch:
        raise NotPrimary(f"{status['name']} does not serve epoch {epoch}", hint="try again in a moment")
    return int(status["durable"])


def make_equal(log: Log, peer: Peer, peer_end: int, epoch: int | None = None) -> Position:
    """Cut the log here above the last position that it has in common with the peer's. Returns that position. See
    `common_position`."""
    common = common_position(log, peer, peer_end, epoch)
    if log.end().txid > common.txid:
        log.cut(common)
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

