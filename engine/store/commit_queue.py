"""The line: who waits for the acknowledgement of which transaction. No threads, no I/O.

Joining, leaving from the front, and leaving because a condition failed cost what is added or taken, and the logarithm
of the line's length, however long it is and in whatever order its members came.

A signal's handler may raise in the middle of any of this. So whoever leaves is noted in `woken` before the line forgets
him, and waking somebody twice does no harm.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from ..env import Lock
from ..errors import HoldfastError
from .callbacks import Outcome


class Waiter:
    """Somebody in line for a transaction's acknowledgement: a `thread` (whose `gate` is locked), or an `outcome`."""

    __slots__ = ("done", "error", "gate", "outcome", "thread", "txid")

    def __init__(self, txid: int, thread: int | None = None, gate: Lock | None = None,
                 outcome: Outcome | None = None) -> None:
        self.txid = txid
        self.gate = gate
        self.thread = thread
        self.outcome = outcome
        self.error: HoldfastError | None = None
        self.done = False
        """It has left the line: it is acknowledged, or ended with `error`."""

    def wake(self) -> None:
        """Called without the mutex, once the end is known or the waiter must lead. Fine to call again."""
        if self.gate is not None:
            try:
                self.gate.release()
            except RuntimeError:
                return  # it is open already
        elif self.outcome is not None and not self.outcome.done():
            if self.error is not None:
                self.outcome.set_exception(self.error)
            else:
                self.outcome.set_result(self.txid)


def wake_all(woken: list[Waiter]) -> None:
    """Wake them all, threads first, even if a signal interrupts, and empty the list."""
    try:
        for waiter in woken:
            if waiter.gate is not None:
                waiter.wake()
        for waiter in woken:
            if waiter.gate is None:
                waiter.wake()
    except BaseException:
        for waiter in woken:
            waiter.wake()
        raise
    woken.clear()


class Line:
    """See the module's text. Not thread-safe: the group commit's mutex guards it."""

    __slots__ = ("_at", "_gated", "_number", "_txids", "last")

    def __init__(self) -> None:
        self._at: dict[int, list[Waiter]] = {}
        self._txids: list[int] = []  # a heap of the keys of `_at`, and of some that are gone
        self._gated: list[tuple[int, int, Waiter]] = []  # a heap of threads, and of some that are gone
        self._number = count()
        self.last = 0
        """The last transaction that anybody ever stood in line for."""

    def join(self, waiter: Waiter) -> None:
        txid = waiter.txid
        there = self._at.get(txid)
        if there is None:
            self._at[txid] = [waiter]
            heapq.heappush(self._txids, txid)
        else:
            there.append(waiter)
        if waiter.gate is not None:
            heapq.heappush(self._gated, (txid, next(self._number), waiter))
        if txid > self.last:
            self.last = txid

    def take_upto(self, txid: int, woken: list[Waiter]) -> None:
        """Those for `txid` and earlier leave."""
        txids = self._txids
        while txids and txids[0] <= txid:
            self._take(txids[0], None, woken)
            heapq.heappop(txids)
        gated = self._gated
        while gated and gated[0][2].done:  # else they would stay for as long as nobody is to lead
            heapq.heappop(gated)

    def take_between(self, first: int, last: int, why: Callable[[int], HoldfastError], woken: list[Waiter]) -> None:
        """Those for `first` to `last` leave, each with the error that `why` gives for its txid. Costs the width of the
        range, or the length of the line where that is less."""
        at = self._at
        for txid in range(first, last + 1) if last - first < len(at) else [t for t in at if first <= t <= last]:
            self._take(txid, why, woken)

    def _take(self, txid: int, why: Callable[[int], HoldfastError] | None, woken: list[Waiter]) -> None:
        leaving = self._at.get(txid)
        if leaving is not None:
            for waiter in leaving:
                if why is not None:
                    waiter.error = why(txid)
                waiter.done = True
            woken.extend(leaving)
            del self._at[txid]

    def next_thread(self, after: int, woken: list[Waiter]) -> Waiter | None:
        """The first thread in line for a transaction after `after` leaves, to lead."""
        gated = self._gated
        while gated:
            txid, _, waiter = gated[0]
            if not waiter.done and txid > after:
                waiter.done = True
                woken.append(waiter)
                self._remove(waiter)
                heapq.heappop(gated)
                return waiter
            heapq.heappop(gated)
        return None

    def leave(self, thread: int) -> None:
        """A thread, interrupted, stands in line no more."""
        for waiter in [w for _, _, w in self._gated if w.thread == thread and not w.done]:
            waiter.done = True
            self._remove(waiter)

    def _remove(self, waiter: Waiter) -> None:
        there = self._at.get(waiter.txid)
        if there is not None:
            if there == [waiter]:
                del self._at[waiter.txid]
            else:
                there.remove(waiter)

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))
