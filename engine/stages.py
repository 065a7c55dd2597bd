"""The stages of transactions, as a state machine without threads or I/O.

    appended ≥ durable ≥ acknowledged, publishable ≥ published ≥ checkpointed

Each is a position that only moves forward. Events come in (`append`, `synced`, `answered`, `met`, `expired`, `lift`,
`checkpoint`), and the stages move as far as they may. Who waits for what is the store's business.

With no plugin that listens to *logged*, durable is acknowledged and publishable at once. With listeners, each synced
range waits until every one of them has answered, with a condition or without; then acknowledgement waits for all its
conditions, publication for those that gate it. Meeting a condition meets all earlier ones of the same listener.

A *barrier* is a transaction that somebody must still apply to the engine after it has become publishable (a bulk load,
or any transaction of an engine that does not stage). Nothing is appended behind it until it is lifted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .history import Position
from .plugins import LogRange


@dataclass(slots=True)
class _Range:
    """A synced range on its way. `open` has the listeners whose condition is not met, None before all have answered;
    `gating` those of them that gate publication."""

    log: LogRange
    end: Position
    open: set[int] | None = None
    gating: set[int] = field(default_factory=set)


class Stages:
    """See the module's text. All attributes are read-only to others."""

    __slots__ = ("_barrier", "_ranges", "_unanswered", "acknowledged", "appended", "checkpointed", "durable",
                 "listeners", "publishable", "published")

    def __init__(self, end: Position, checkpointed: Position, listeners: int = 0) -> None:
        self.appended = self.durable = self.acknowledged = self.publishable = self.published = end
        self.checkpointed = checkpointed
        self.listeners = listeners
        self._barrier: int | None = None
        self._ranges: deque[_Range] = deque()
        self._unanswered: deque[_Range] = deque()

    def append(self, position: Position, *, barrier: bool = False) -> None:
        """A record was appended."""
        assert self._barrier is None, "appended behind a barrier"
        self.appended = position
        if barrier:
            self._barrier = position.txid

    def synced(self, position: Position) -> None:
        """Everything up to `position` is on stable storage."""
        first = self.durable.txid + 1
        self.durable = position
        if not self.listeners:
            self.acknowledged = self.publishable = position
            if self._barrier is None or position.txid < self._barrier:
                self.published = position
        elif position.txid >= first:
            held = _Range(LogRange(first, position.txid), position)
            self._ranges.append(held)
            self._unanswered.append(held)

    def next_unanswered(self) -> LogRange | None:
        """The oldest synced range that the listeners have not been asked about; it counts as asked now."""
        return self._unanswered.popleft().log if self._unanswered else None

    def answered(self, log: LogRange, conditions: Sequence[tuple[int, bool]]) -> None:
        """Every listener has answered for a range: (listener, whether it gates publication), if with a condition."""
        for held in self._ranges:
            if held.log is log:
                held.open = {listener for listener, _ in conditions}
                held.gating = {listener for listener, gates in conditions if gates}
        self._advance()

    def met(self, listener: int, txid: int) -> None:
        """A listener's condition for everything up to `txid` is met."""
        for held in self._ranges:
            if held.log.last > txid:
                break
            if held.open is not None:
                held.open.discard(listener)
                held.gating.discard(listener)
        self._advance()

    def expired(self, listener: int, log: LogRange) -> None:
        """The time for a listener's condition on a range is over. One that gates publication stays open."""
        for held in self._ranges:
            if held.log is log and held.open is not None and listener not in held.gating:
                held.open.discard(listener)
        self._advance()

    def is_open(self, listener: int, log: LogRange) -> bool:
        """Whether a listener's condition on a range is still waited for."""
        return any(h.log is log and h.open is not None and listener in h.open for h in self._ranges)

    def lift(self, position: Position) -> None:
        """The transaction at the barrier is in the engine's state."""
        assert self._barrier == position.txid
        assert self.publishable.txid >= position.txid
        self._barrier = None
        self.published = self.publishable

    def checkpoint(self, position: Position) -> None:
        """The engine's durable state reached `position`."""
        if position.txid > self.checkpointed.txid:
            self.checkpointed = position

    def _advance(self) -> None:
        ranges = self._ranges
        for held in ranges:
            if held.open is None or held.gating:
                break
            if held.end.txid > self.publishable.txid:
                self.publishable = held.end
        while ranges and ranges[0].open is not None and not ranges[0].open:
            self.acknowledged = ranges.popleft().end
        if self._barrier is None or self.publishable.txid < self._barrier:
            self.published = self.publishable


