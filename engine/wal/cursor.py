"""A place in a log that moves forward: reading costs what is new.

A cursor knows its segment, the offset of the next group and the chain before it. So reading again reads only what was
added since, however long the log is. A new cursor finds its place once, through the segments' sparse indexes.

It works on any log: one that a store in this process writes, where the durable end is known at once, and one that is
open read-only while another process writes it, where `Log.look` finds what is new.
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
    """What a cursor needs of a log."""

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""

    @property
    def end(self) -> Position:
        """The durable end."""

    def segment_of(self, txid: int) -> Segment:
        """The segment that holds a transaction. Raises `LogPruned`, `Damaged`."""

    def why_gone(self, ordinal: int, txid: int) -> HoldfastError:
        """The error for a segment file that is missing."""


class Cursor:
    """See the module's text. For one thread at a time.

    Attributes:
        txid: the last transaction that was passed.
        chain: the chain there; None if it was not given and nothing has been read.
    """

    def __init__(self, log: Segments, txid: int, chain: bytes | None = None) -> None:
        """A cursor after transaction `txid`. If `chain` is given, the log must have this chain there."""
        self.txid = txid
        self.chain = chain
        self._log = log
        self._segment: Segment | None = None
        self._place: IndexEntry | None = None  # of the group to read next, in that segment

    def read(self, upto: int | None = None) -> Iterator[Record]:
        """Durable records after the cursor, up to and including `upto` (None: the durable end), in order. The cursor
        moves past each record that is yielded, so you may stop at any record and continue with another call.

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
        """Find the segment of the next record, and the place in it. None if it was just pruned."""
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
            if txid >= upto:  # what comes after it may be cut off now
                return

    def _pass(self, txid: int, chain: bytes, segment: Segment) -> None:
        """Compare the log's chain at the cursor, now known, with the cursor's."""
        if self.chain is None:
            self.chain = chain
        elif self.chain != chain and self._segment is not None and self._segment is not segment:
            raise Damaged(f"starts after transaction {txid} of another history than the segment before",
                          path=str(segment.path))
        elif self.chain != chain:
            raise Diverged(f"at transaction {txid} the chain in {segment.path} is {chain.hex()}, and the cursor's is "
                           f"{self.chain.hex()}")
