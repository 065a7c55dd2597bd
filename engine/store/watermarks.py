"""The watermarks of a store: how far its transactions have come, as a state machine without threads or I/O.

    appended ≥ durable ≥ acknowledged, publishable ≥ published ≥ checkpointed

Each watermark is a position that only moves forward. Events come in (`append`, `synced`, `answered`, `met`, `expired`,
`lift`, `checkpoint`), and the watermarks move as far as they may. Group commit does the waiting.

If no plugin listens to *logged*, a durable transaction is acknowledged and publishable at once. Otherwise each synced
range waits until every listener has answered, with a condition or without. Acknowledgement then waits for all
conditions, and publication for those that gate it. Meeting a condition meets all earlier ones of the same listener.

So each listener holds back everything from its first open condition on, and only that one need be looked at. An event
costs O(listeners + conditions it opens or closes), however many conditions are open.

A *barrier* is a transaction that must be applied to the engine after it has become publishable: a bulk load, or any
transaction of an engine that does not stage. Nothing may be appended after it until it is lifted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.positions import Position
from ..model.records import LogRange, Record


@dataclass(frozen=True, slots=True)
class Positions:
    """The watermarks of a store, as txids."""

    appended: int
    durable: int
    acknowledged: int
    published: int
    checkpointed: int


class Watermarks:
    """See the module's text. All attributes are read-only to others.

    `barrier`: the transaction at the barrier, or None.
    """

    __slots__ = ("_answered", "_gating", "_open", "_unacknowledged", "_unanswered", "_unpublished", "acknowledged",
                 "appended", "barrier", "checkpointed", "durable", "listeners", "publishable", "published")

    def __init__(self, end: Position, checkpointed: Position, listeners: int = 0,
                 shown: Position | None = None) -> None:
        """`shown`: how much of what is durable is published; None: all."""
        self.appended = self.durable = end
        self.acknowledged = self.publishable = self.published = end if shown is None else shown
        self.checkpointed = checkpointed
        self.listeners = listeners
        self.barrier: int | None = None
        self._unanswered: deque[LogRange] = deque()
        self._answered = self.published.txid  # every listener has answered up to here
        self._unacknowledged: deque[Position] = deque()  # ends of synced ranges
        self._unpublished: deque[Position] = deque()
        # Per listener, ascending: the last transaction of each range with an open condition, and with a gating one.
        self._open: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(listeners)]
        self._gating: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(listeners)]

    def positions(self) -> Positions:
        """All watermarks, consistent with one another. Needs no lock."""
        # Read from the last to the first. They only move forward, so an earlier one never lags a later one.
        checkpointed, published, acknowledged = self.checkpointed.txid, self.published.txid, self.acknowledged.txid
        return Positions(durable=self.durable.txid, appended=self.appended.txid, acknowledged=acknowledged,
                         published=published, checkpointed=checkpointed)

    def append(self, position: Position, *, barrier: bool = False) -> None:
        """A record was appended."""
        assert self.barrier is None, "appended behind a barrier"
        self.appended = position
        if barrier:
            self.barrier = position.txid

    def synced(self, position: Position, records: tuple[Record, ...] = ()) -> None:
        """Everything up to `position` is on stable storage. `records`: the new ones, for the listeners."""
        first = self.durable.txid + 1
        self.durable = position
        if not self.listeners:
            self.acknowledged = self.publishable = position
            if self.barrier is None or position.txid < self.barrier:
                self.published = position
        elif position.txid >= first:
            self._unanswered.append(LogRange(first, position.txid, records))
            self._unacknowledged.append(position)
            self._unpublished.append(position)

    def next_unanswered(self) -> LogRange | None:
        """The oldest synced range that the listeners have not been asked about, or None. Each is returned once."""
        return self._unanswered.popleft() if self._unanswered else None

    def answered(self, last: int, conditions: Sequence[tuple[int, bool]]) -> None:
        """Every listener has answered for the range that ends with `last`. `conditions`: (listener, whether it gates
        publication) for each one that gave a condition. Ranges must be answered in order."""
        for listener, gates in conditions:
            self._open[listener][last] = None
            if gates:
                self._gating[listener][last] = None
        self._answered = last
        self._advance()

    def met(self, listener: int, last: int) -> None:
        """A listener's condition for everything up to `last` is met."""
        for held in (self._open[listener], self._gating[listener]):
            while held and next(iter(held)) <= last:
                held.popitem(last=False)
        self._advance()

    def expired(self, listener: int, last: int) -> None:
        """A listener's condition on a range timed out or failed. It stays open if it gates publication."""
        if last not in self._gating[listener]:
            self._open[listener].pop(last, None)
        self._advance()

    def is_open(self, listener: int, last: int) -> bool:
        """Whether a listener's condition on the range that ends with `last` is still open."""
        return last in self._open[listener]

    def open_conditions(self) -> int:
        """How many conditions are still open."""
        return sum(map(len, self._open))

    def lift(self, position: Position) -> None:
        """The transaction at the barrier is in the engine's state."""
        assert self.barrier == position.txid
        assert self.publishable.txid >= position.txid
        self.barrier = None
        self.published = self.publishable

    def follow(self, end: Position) -> None:
        """In a replica: the durable end is here now, and not published by that."""
        self.appended = self.durable = end

    def show(self, position: Position) -> None:
        """In a replica: everything up to `position`, which is durable, is in the engine's state."""
        self.acknowledged = self.publishable = self.published = position
        self._answered = position.txid

    def checkpoint(self, position: Position) -> None:
        """The engine's durable state reached `position`."""
        if position.txid > self.checkpointed.txid:
            self.checkpointed = position

    def _advance(self) -> None:
        self.publishable = self._passed(self._unpublished, self._gating, self.publishable)
        self.acknowledged = self._passed(self._unacknowledged, self._open, self.acknowledged)
        if self.barrier is None or self.publishable.txid < self.barrier:
            self.published = self.publishable
        # Removed last: a signal's handler may raise anywhere here, and whoever does this again finds what is needed.
        for ends, reached in ((self._unpublished, self.publishable), (self._unacknowledged, self.acknowledged)):
            while ends and ends[0].txid <= reached.txid:
                ends.popleft()

    def _passed(self, ends: deque[Position], held: list[OrderedDict[int, None]], before: Position) -> Position:
        """The last of `ends` that was answered and comes before the first that is held, or `before`."""
        upto = self._answered
        for of_listener in held:
            if of_listener:
                upto = min(upto, next(iter(of_listener)) - 1)
        for end in ends:
            if end.txid > upto:
                break
            if end.txid > before.txid:
                before = end
        return before
