"""The line: the tickets of commits that wait for acknowledgement. No I/O.

Joining, leaving from the front, and leaving because a condition failed each cost O(k log n), for k tickets added or
removed and n in line, in whatever order they joined.

Signal safety: a signal handler may raise in the middle of any of this. So a ticket is recorded in `woken` before it is
removed from the line, and `CommitTicket.wake` may be called twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Protocol

from ..env import Lock
from ..errors import HoldfastError
from .callbacks import Outcome

_SPARE = 64
"""The heap of txids is rid of those that are gone when they are more than those still there, and this many."""


class Acknowledging(Protocol):
    """What a ticket needs of group commit."""

    def wait(self, ticket: CommitTicket) -> None: ...
    def wait_publishable(self, ticket: CommitTicket) -> None: ...
    def future(self, ticket: CommitTicket) -> Outcome: ...
    def drop(self, ticket: CommitTicket) -> None: ...


class CommitTicket:
    """What a commit gets for the record that it appended. You may wait for the acknowledgement now, later or never.
    The ticket is also the place in line.

    Attributes:
        txid: the transaction.
        thread, gate: the thread that waits, and the locked lock it waits on; or None.
        outcome: the future to resolve, or None.
        done: the ticket has left the line: it is acknowledged, or ended with `error`, or its thread must lead.
        error: why the transaction is not acknowledged, or None.
    """

    __slots__ = ("_commits", "done", "error", "gate", "outcome", "thread", "txid")

    def __init__(self, txid: int, commits: Acknowledging) -> None:
        self.txid = txid
        self._commits = commits
        self.thread: int | None = None
        self.gate: Lock | None = None
        self.outcome: Outcome | None = None
        self.error: HoldfastError | None = None
        self.done = False

    def wait(self) -> None:
        """Return when the transaction is acknowledged. This thread may do the sync, for others too.

        Raises:
            ConditionNotMet, OutcomeUnknown.
        """
        self._commits.wait(self)

    def wait_publishable(self) -> None:
        """Return when the transaction may be published. Raises as `wait`."""
        self._commits.wait_publishable(self)

    def future(self) -> Outcome:
        """A future that is done, with the txid or an error, when the transaction is acknowledged. Its callbacks run in
        the store's callback thread."""
        return self._commits.future(self)

    def drop(self) -> None:
        """Nobody will wait for it. Then nothing is kept for it, however long a condition on it stays open."""
        self._commits.drop(self)

    def wake(self) -> None:
        """Resolve the outcome and open the gate. Call it without the mutex, once `done` is set. May be called twice."""
        if self.outcome is not None and not self.outcome.done():
            if self.error is not None:
                self.outcome.set_exception(self.error)
            else:
                self.outcome.set_result(self.txid)
        if self.gate is not None:
            try:
                self.gate.release()
            except RuntimeError:
                return  # already open


def wake_all(woken: list[CommitTicket]) -> None:
    """Wake all, threads first, and empty the list. If a signal handler raises, all are woken before it propagates."""
    try:
        for ticket in woken:
            if ticket.gate is not None:
                ticket.wake()
        for ticket in woken:
            if ticket.gate is None:
                ticket.wake()
    except BaseException:
        for ticket in woken:
            ticket.wake()
        raise
    woken.clear()


class Line:
    """See the module's text. Not thread-safe: group commit's mutex guards it."""

    __slots__ = ("_at", "_gated", "_number", "_txids")

    def __init__(self) -> None:
        self._at: dict[int, list[CommitTicket]] = {}
        self._txids: list[int] = []  # a heap of the keys of `_at`; may also hold keys that were removed
        self._gated: list[tuple[int, int, CommitTicket]] = []  # a heap of tickets with threads; some may be done
        self._number = count()

    def join(self, ticket: CommitTicket) -> None:
        """Add a ticket. Call it again if the ticket gets a gate later."""
        txid = ticket.txid
        there = self._at.get(txid)
        if there is None:
            self._at[txid] = [ticket]
            heapq.heappush(self._txids, txid)
        elif ticket not in there:
            there.append(ticket)
        if ticket.gate is not None:
            heapq.heappush(self._gated, (txid, next(self._number), ticket))

    def take_upto(self, txid: int, woken: list[CommitTicket]) -> None:
        """Move the tickets for `txid` and earlier to `woken`."""
        txids = self._txids
        while txids and txids[0] <= txid:
            self._take(txids[0], None, woken)
            heapq.heappop(txids)
        gated = self._gated
        while gated and gated[0][2].done:  # `next_thread` removes them too, but may not be called for long
            heapq.heappop(gated)

    def take_between(self, first: int, last: int, why: Callable[[int], HoldfastError],
                     woken: list[CommitTicket]) -> None:
        """Move the tickets for `first` to `last` to `woken`, each with the error `why(txid)`. O(width of the range), or
        O(length of the line) if that is less."""
        at = self._at
        for txid in range(first, last + 1) if last - first < len(at) else [t for t in at if first <= t <= last]:
            self._take(txid, why, woken)
        self._thin()

    def drop(self, ticket: CommitTicket) -> None:
        """One that nobody waits for leaves."""
        self._remove(ticket)
        self._thin()

    def _thin(self) -> None:
        """Forget the txids that are gone, if they are the most."""
        if len(self._txids) > 2 * len(self._at) + _SPARE:
            txids = list(self._at)
            heapq.heapify(txids)
            self._txids = txids

    def _take(self, txid: int, why: Callable[[int], HoldfastError] | None, woken: list[CommitTicket]) -> None:
        leaving = self._at.get(txid)
        if leaving is not None:
            for ticket in leaving:
                if why is not None:
                    ticket.error = why(txid)
                ticket.done = True
            woken.extend(leaving)
            del self._at[txid]

    def next_thread(self, after: int, woken: list[CommitTicket]) -> CommitTicket | None:
        """Move the first ticket after `after` that has a thread to `woken`, and return it: its thread will lead."""
        gated = self._gated
        while gated:
            txid, _, ticket = gated[0]
            if not ticket.done and txid > after:
                ticket.done = True
                woken.append(ticket)
                self._remove(ticket)
                heapq.heappop(gated)
                return ticket
            heapq.heappop(gated)
        return None

    def leave(self, thread: int) -> None:
        """Remove the tickets of a thread whose wait was interrupted."""
        for ticket in [w for _, _, w in self._gated if w.thread == thread and not w.done]:
            ticket.done = True
            self._remove(ticket)

    def _remove(self, ticket: CommitTicket) -> None:
        there = self._at.get(ticket.txid)
        if there is not None:
            if there == [ticket]:
                del self._at[ticket.txid]
            else:
                there.remove(ticket)

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))
