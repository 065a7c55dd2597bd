"""How far members are behind their primary, in transactions, bytes and seconds."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...engine.env import Env
from ...engine.model.records import Record

DENSE = 64
"""A lag of n batches is rounded by less than n / DENSE of them, but at least to a whole one."""


class Lag(NamedTuple):
    """How far a member is behind.

    Attributes:
        transactions: that it has not acknowledged.
        bytes: of log that it lacks, rounded up.
        seconds: since the first transaction that it lacks was made, rounded up; 0 if it lacks none.
        silent: seconds since it was last heard.
    """

    transactions: int
    bytes: int
    seconds: float
    silent: float


class _Mark(NamedTuple):
    """A batch that has become durable: its first transaction, when that was made, and the bytes that were noted before
    it."""

    first: int
    time_us: int
    before: int


class Marks:
    """When transactions became durable, and how large they are: so a lag costs no look into the log.

    There is a mark for each of the last batches, further back for every other one, then for every fourth, and so on. So
    the marks reach back far, are few, and what they round is small beside a lag that is so large. For one thread at a
    time.
    """

    def __init__(self, env: Env, beyond: Callable[[int], tuple[int, int]]) -> None:
        """`beyond`: tells bytes and time for a transaction from before the first mark, as `Log.beyond`."""
        self._env = env
        self._beyond = beyond
        self._levels: list[list[_Mark]] = [[]]  # the newest first; in each, the oldest first
        self._bytes = 0

    def note(self, records: Sequence[Record]) -> None:
        """These have become durable. O(records)."""
        first = records[0]
        for marks in self._levels:
            while marks and marks[-1].first >= first.txid:  # they were cut
                self._bytes = marks.pop().before
        self._add(_Mark(first.txid, first.time_us, self._bytes))
        for record in records:
            self._bytes += len(record.payload)
            if record.attachment is not None:
                self._bytes += record.attachment.size

    def _add(self, mark: _Mark) -> None:
        adding = [mark]
        for marks in self._levels:
            marks += adding
            if len(marks) <= 2 * DENSE:
                return
            adding = marks[:DENSE:2]
            del marks[:DENSE]
        self._levels.append(adding)

    def after(self, txid: int) -> tuple[int, float]:
        """The bytes of the transactions after `txid`, of which there must be some, and the age of the first, seconds.
        Both are rounded up. O(log marks)."""
        for marks in self._levels:
            if marks and marks[0].first <= txid + 1:
                mark = marks[bisect.bisect_right(marks, txid + 1, key=lambda mark: mark.first) - 1]
                size, time_us = self._bytes - mark.before, mark.time_us
                break
        else:
            size, time_us = self._beyond(txid)
        return size, max(0, self._env.clock.now_us() - time_us) / 1e6
