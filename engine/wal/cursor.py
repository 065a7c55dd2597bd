"""A place in a log that moves forward: what is new costs what is new.

A cursor knows its segment, the offset of the next group and the chain before it, so that asking again for what has
come since reads that and nothing else, however much stands before it and however many segments there are. A new one
finds its place once, by the segments' sparse indexes.

It works on any log: the one that a store in this process writes, where what is durable is known at once, and one that
is open read-only beside another process, where `Log.look` finds out what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..errors import AheadOfSource, Damaged, Diverged, HoldfastError, LogPruned
from ..model.positions import Position
from ..model.records import Record
from .format import IndexEntry
from .segment import Segment


class Segments(Protocol):
    """What a cursor asks a log for; the log has it."""

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""

    @property
    def end(self) -> Position:
        """The durable end."""

    def segment_of(self, txid: int) -> Segment:
        """The segment that holds a transaction. Raises `LogPruned`, `Damaged`."""

    def why_gone(self, ordinal: int, txid: int) -> HoldfastError:
        """Why the file of a segment is not there."""


class Cursor:
    """See the module's text. For one thread at a time.

    Attributes:
        txid: the last transaction that was passed.
        chain: the chain there; None before anything was read, if it was not given.
    """

    def __init__(self, log: Segments, txid: int, chain: bytes | None = None) -> None:
        """After transaction `txid`. With `chain`, what is read must follow on that."""
        self.txid = txid
        self.chain = chain
        self._log = log
        self._segment: Segment | None = None
        self._place: IndexEntry | None = None  # of the group to read next, in that segment

    def read(self, upto: int | None = None) -> Iterator[Record]:
        """Durable records after the cursor, up to and with `upto` (the durable end, without), in order. The cursor is
        behind each that was yielded, so a reading may be left at any of them, and gone on with by another call.

        Raises:
            LogPruned: the first of them is no longer here.
            AheadOfSource: `upto` is not durable yet.
            Diverged: the log has another chain at the cursor.
            Damaged: bytes have changed.
        """
        log = self._log
        end = log.end.txid
        upto = end if upto is None else upto
        if upto > end:
            raise AheadOfSource(f"transaction {upto} is asked for, the log ends at {end}",
                                hint="ask for what is durable")
        while self.txid < upto:
            segment = self._seek()
            if segment is None:
                continue  # pruned since
            data_end, last = segment.data_end, segment.end.txid
            if last <= self.txid:
                raise Damaged(f"transaction {self.txid + 1} is missing", path=str(segment.path))
            try:
                yield from self._through(segment, data_end, upto)
            except FileNotFoundError as error:
                self._segment = None
                raise log.why_gone(segment.header.ordinal, self.txid + 1) from error
            if self.txid < min(last, upto):
                raise Damaged(f"transaction {self.txid + 1} is missing", path=str(segment.path))

    def _seek(self) -> Segment | None:
        """The segment of the next record, with the place in it; None where it was pruned just now."""
        log, segment = self._log, self._segment
        if segment is not None and segment.first <= self.txid + 1 <= segment.end.txid:
            return segment
        if self.txid < log.base.txid:
            raise LogPruned(f"transaction {self.txid + 1} is no longer in the log, which starts after {log.base.txid}")
        segment = log.segment_of(self.txid + 1)
        base = segment.header.base
        if self.txid < base.txid:
            return None
        if self.txid == base.txid:
            self._pass(base.txid, base.chain, segment)
        self._segment, self._place = segment, segment.place_of_txid(self.txid + 1)
        return segment

    def _through(self, segment: Segment, data_end: int, upto: int) -> Iterator[Record]:
        place = self._place
        txid, chain = segment.header.base if place is None else (place.txid - 1, place.chain)
        for group in segment.groups(place, data_end):
            self._place = IndexEntry(txid + 1, group.time_us, group.offset, chain)
            for record in group.records:
                if record.txid > upto:
                    return
                txid, chain = record.position
                if txid == self.txid:
                    self._pass(txid, chain, segment)
                elif txid > self.txid:
                    self.txid, self.chain = txid, chain
                    yield record
            self._place = IndexEntry(txid + 1, group.time_us, group.end, chain)

    def _pass(self, txid: int, chain: bytes, segment: Segment) -> None:
        """The log's own chain at the cursor is known."""
        if self.chain is None:
            self.chain = chain
        elif self.chain != chain and self._segment is not None and self._segment is not segment:
            raise Damaged(f"starts after transaction {txid} of another history than the segment before",
                          path=str(segment.path))
        elif self.chain != chain:
            raise Diverged(f"at transaction {txid} the chain in {segment.path} is {chain.hex()}, and the cursor's is "
                           f"{self.chain.hex()}")
