"""The line: who waits for the acknowledgement of which transaction, each by the ticket of its commit. No I/O.

Joining, leaving from the front, and leaving because a condition failed cost what is added or taken, and the logarithm
of the line's length, however long it is and in whatever order its members came.

A signal's handler may raise in the middle of any of this. So whoever leaves is noted in `woken` before the line forgets
him, and waking somebody twice does no harm.
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
    """What can be done with a ticket; group commit does it."""

    def wait(self, ticket: CommitTicket) -> None: ...
    def wait_publishable(self, ticket: CommitTicket) -> None: ...
    def future(self, ticket: CommitTicket) -> Outcome: ...
    def drop(self, ticket: CommitTicket) -> None: ...


class CommitTicket:
    """What a commit gets for the record that it appended. The acknowledgement can be waited for, now, later or never.
    The ticket is also the place in line for that.

    Attributes:
        txid: the transaction.
        thread, gate: who waits there, and at what, which is locked; or None.
        outcome: a future to be resolved, or None.
        done: it has left the line: it is acknowledged, or ended with `error`, or its thread must lead.
        error: why it is not acknowledged.
    """

    thread: int | None = None
    gate: Lock | None = None
    outcome: Outcome | None = None
    error: HoldfastError | None = None
    done = False

    def __init__(self, txid: int, commits: Acknowledging) -> None:
        self.txid = txid
        self._commits = commits

    def wait(self) -> None:
        """Return when the transaction is acknowledged. This thread may sync it.

        Raises:
            ConditionNotMet, OutcomeUnknown.
        """
        self._commits.wait(self)

    def wait_publishable(self) -> None:
        """Return when the transaction may be published. Raises as `wait`."""
        self._commits.wait_publishable(self)

    def future(self) -> Outcome:
        """A future that is done, with the txid or an error, when the transaction is acknowledged."""
        return self._commits.future(self)

    def drop(self) -> None:
        """Nobody will wait for it. Then nothing is kept for it, however long a condition on it stays open."""
        self._commits.drop(self)

    def wake(self) -> None:
        """Called without the mutex, once the end is known or the thread must lead. Fine to call again."""
        if self.outcome is not None and not self.outcome.done():
            if self.error is not None:
                self.outcome.set_exception(self.error)
            else:
                self.outcome.set_result(self.txid)
        if self.gate is not None:
            try:
                self.gate.release()
            except RuntimeError:
                return  # it is open already


def wake_all(woken: list[CommitTicket]) -> None:
    """Wake them all, threads first, even if a signal interrupts, and empty the list."""
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
    """See the module's text. Not thread-safe: the group commit's mutex guards it."""

    __slots__ = ("_at", "_gated", "_number", "_txids")

    def __init__(self) -> None:
        self._at: dict[int, list[CommitTicket]] = {}
        self._txids: list[int] = []  # a heap of the keys of `_at`, and of some that are gone
        self._gated: list[tuple[int, int, CommitTicket]] = []  # a heap of threads, and of some that are gone
        self._number = count()

    def join(self, ticket: CommitTicket) -> None:
        """Fine to call again, once the ticket has a gate."""
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
        """Those for `txid` and earlier leave."""
        txids = self._txids
        while txids and txids[0] <= txid:
            self._take(txids[0], None, woken)
            heapq.heappop(txids)
        gated = self._gated
        while gated and gated[0][2].done:  # else they would stay for as long as nobody is to lead
            heapq.heappop(gated)

    def take_between(self, first: int, last: int, why: Callable[[int], HoldfastError],
                     woken: list[CommitTicket]) -> None:
        """Those for `first` to `last` leave, each with the error that `why` gives for its txid. Costs the width of the
        range, or the length of the line where that is less."""
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
        """The first thread in line for a transaction after `after` leaves, to lead."""
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
        """A thread, interrupted, stands in line no more."""
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
