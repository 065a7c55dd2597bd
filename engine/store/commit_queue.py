"""The line: the tickets of commits that wait for acknowledgement. No I/O.

Joining costs O(1). Leaving from the front costs O(transactions that are acknowledged by it), and each transaction is
passed once, so that is O(1) per transaction too, in whatever order the tickets joined.

Signal safety: a signal handler may raise in the middle of any of this. So a ticket is recorded in `woken` before it is
removed from the line, and `CommitTicket.wake` may be called twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..env import Lock
from ..errors import HoldfastError
from .callbacks import Outcome


class Told(Protocol):
    """Who is told how a commit ended, by quick calls on the thread that learned it. For instance an `Outcome`."""

    def done(self) -> bool: ...
    def set_result(self, txid: int, /) -> None: ...
    def set_exception(self, error: HoldfastError, /) -> None: ...


class Acknowledging(Protocol):
    """What a ticket needs of group commit."""

    def wait(self, ticket: CommitTicket) -> None: ...
    def wait_publishable(self, ticket: CommitTicket) -> None: ...
    def future(self, ticket: CommitTicket) -> Outcome: ...
    def tell(self, ticket: CommitTicket, outcome: Told) -> None: ...
    def drop(self, ticket: CommitTicket) -> None: ...


class CommitTicket:
    """What a commit gets for the record that it appended. You may wait for the acknowledgement now, later or never.
    The ticket is also the place in line.

    Attributes:
        txid: the transaction.
        thread, gate: the thread that waits, and the locked lock it waits on; or None.
        outcome: who is to be told, or None.
        done: the ticket has left the line: it is acknowledged, or ended with `error`, or its thread must lead.
        error: why the transaction is not acknowledged, or None.
    """

    __slots__ = ("_commits", "done", "error", "gate", "outcome", "thread", "txid")

    def __init__(self, txid: int, commits: Acknowledging) -> None:
        self.txid = txid
        self._commits = commits
        self.thread: int | None = None
        self.gate: Lock | None = None
        self.outcome: Told | None = None
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

    def tell(self, outcome: Told) -> None:
        """Tell `outcome` when the transaction is acknowledged, or why it is not. Perhaps at once."""
        self._commits.tell(self, outcome)

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
    """See the module's text. A transaction has at most one ticket. Not thread-safe: group commit's mutex guards it."""

    __slots__ = ("_at", "_first", "_gated")

    def __init__(self) -> None:
        self._at: dict[int, CommitTicket] = {}
        self._first = 0  # no ticket is for an earlier transaction
        self._gated: dict[int, CommitTicket] = {}  # those with threads, in the order in which they joined

    def join(self, ticket: CommitTicket) -> None:
        """Add a ticket. Call it again if the ticket gets a gate later."""
        txid = ticket.txid
        if txid < self._first or not self._at:
            self._first = txid
        self._at[txid] = ticket
        if ticket.gate is not None:
            self._gated[txid] = ticket

    def take_upto(self, txid: int, woken: list[CommitTicket]) -> None:
        """Move the tickets for `txid` and earlier to `woken`, in the order of their transactions."""
        at = self._at
        if at:
            for number in range(self._first, txid + 1):
                if number in at:
                    self._take(at[number], woken)
            if txid >= self._first:
                self._first = txid + 1

    def take_between(self, first: int, last: int, why: Callable[[int], HoldfastError],
                     woken: list[CommitTicket]) -> None:
        """Move the tickets for `first` to `last` to `woken`, each with the error `why(txid)`. O(width of the range), or
        O(length of the line) if that is less."""
        at = self._at
        for txid in range(first, last + 1) if last - first < len(at) else [t for t in at if first <= t <= last]:
            if txid in at:
                at[txid].error = why(txid)
                self._take(at[txid], woken)

    def _take(self, ticket: CommitTicket, woken: list[CommitTicket]) -> None:
        ticket.done = True
        woken.append(ticket)
        self.drop(ticket)

    def next_thread(self, woken: list[CommitTicket]) -> CommitTicket | None:
        """Move the first ticket that has a thread to `woken`, and return it: its thread will lead."""
        for ticket in self._gated.values():
            self._take(ticket, woken)
            return ticket
        return None

    def leave(self, thread: int) -> None:
        """Remove the tickets of a thread whose wait was interrupted."""
        for ticket in [ticket for ticket in self._gated.values() if ticket.thread == thread]:
            ticket.done = True
            self.drop(ticket)

    def drop(self, ticket: CommitTicket) -> None:
        """One that nobody waits for leaves."""
        self._gated.pop(ticket.txid, None)  # first: if a signal's handler raises between, it is still in line
        self._at.pop(ticket.txid, None)

    def __len__(self) -> int:
        return len(self._at)
