"""The archived log of a repository, as readers see it: where each branch ends, and its records from any position on.

A branch's log lies in slots, one piece in each. The catalog knows the runs of slots without a gap, and the units that
hold several pieces. What came since the last unit is found by looking: a list says which slots there probably are, and
reading one after the other says which one is the last. So a list that is old does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...engine.errors import Damaged
from ...engine.model.positions import Position
from ...engine.model.records import Record
from . import names, pieces
from .errors import ObjectMissing
from .pieces import Piece
from .sealed import Seal
from .state import BranchLog, CatalogState, Run, Unit
from .storage.interface import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Where the archived log of a branch ends now.

    Attributes:
        slot: of the last piece.
        end: its position.
        last_time_us: commit time of the last record; 0 if it is not known.
        complete_until_us: every transaction committed up to this time is at or below `end`.
        writer: number of the writer that put the last piece; 0 if only a unit has it any more.
    """

    slot: int
    end: Position
    last_time_us: int
    complete_until_us: int
    writer: int = 0


class Archive:
    """See the module's text. `state` is the catalog's, as of now. With `refresh`, which reads what came since, what was
    merged and deleted while it is read is read from where it is now."""

    def __init__(self, store: ObjectStore, seal: Seal, state: CatalogState,
                 refresh: Callable[[], CatalogState] | None = None) -> None:
        self._store, self._seal, self.state, self._refresh = store, seal, state, refresh
        self._number = state.number

    def piece(self, branch: str, slot: int) -> tuple[Piece, Iterator[Record]]:
        """One piece. Raises `ObjectMissing`, `Damaged`."""
        name = names.piece(branch, slot)
        return pieces.decode(self._seal, name, self._store.get(name), self._store)

    def tail(self, branch: str, damaged: list[Damaged] | None = None) -> Tail | None:
        """Where the newest run of a branch ends; None if there is none. A list and a few reads.

        Raises:
            Damaged: its last piece. With `damaged` it is noted there instead, and this is where the archive ends before
                it.
        """
        log = self.state.branches[branch]
        if not log.runs or log.runs[-1].last is not None:
            return None
        run = log.runs[-1]
        units = [unit for unit in log.units if unit.first >= run.first]
        newest = max(units, key=lambda unit: unit.last, default=None)
        last = max(run.first - 1, newest.last if newest else 0)
        folder = (last + 1) // 10_000
        while True:  # the folders that there are; usually one
            listed = list(self._store.list(f"{names.LOG}/{branch}/{folder:06d}/"))
            last = max([last, *(names.number_of(one.name) for one in listed)])
            if not listed or last % 10_000 != 9_999:
                break
            folder += 1
        found: Piece | None = None
        while True:
            try:
                found = self._noted(branch, last + 1, damaged)
            except ObjectMissing:
                break
            last += 1
        least = newest.last if newest else run.first - 1
        while found is None and last > least:
            found = self._noted(branch, last, damaged)
            last -= found is None
        if found is not None:
            return Tail(slot=last, end=found.end, last_time_us=found.last_time_us,
                        complete_until_us=found.complete_until_us, writer=found.writer)
        if newest is None:  # its pieces were dropped, or it has none yet
            return Tail(slot=run.first - 1, end=run.after, last_time_us=0, complete_until_us=0)
        return Tail(slot=newest.last, end=newest.end, last_time_us=newest.last_time_us,
                    complete_until_us=newest.complete_until_us)

    def _noted(self, branch: str, slot: int, damaged: list[Damaged] | None) -> Piece | None:
        """What a piece says; None if it is damaged, which is noted."""
        try:
            return self.piece(branch, slot)[0]
        except Damaged as error:
            if damaged is None:
                raise
            if str(error) not in map(str, damaged):
                damaged.append(error)
            return None

    def read(self, branch: str, after: int, upto: int) -> Iterator[tuple[Piece, Iterator[Record]]]:
        """Pieces and units of a branch from the one that has the transaction after `after` to the one that has `upto`,
        which must be archived. Whoever takes the next one must have read the records of the one before.

        Raises:
            Damaged: one that is needed is missing, or does not follow.
        """
        log = self.state.branches[branch]
        run = run_with(log, after)
        if run is None:
            return
        at, slot = run.after, run.first
        for unit in log.largest():
            if unit.first < run.first or (run.last is not None and unit.first > run.last):
                continue
            if unit.first == slot:
                slot, at = unit.last + 1, unit.end
                if unit.end.txid > after:
                    try:
                        found = self.unit(unit)
                    except Damaged:
                        if not self.went_on():
                            raise
                        yield from self.read(branch, max(after, unit.after.txid), upto)
                        return
                    yield found
                    if unit.end.txid >= upto:
                        return
        unread: Damaged | None = None
        while (run.last is None or slot <= run.last) and at.txid < upto:
            where = f"{self._store.url}/{names.piece(branch, slot)}"
            try:
                piece, records = self.piece(branch, slot)
            except ObjectMissing as error:
                if self.went_on():
                    yield from self.read(branch, max(after, at.txid), upto)
                    return
                if unread is not None:
                    raise unread from error
                unread = Damaged(f"is missing: the archived log of branch {branch[:8]} goes on to transaction {upto}",
                                 path=where)
                slot += 1
                continue
            except Damaged as error:
                unread, slot = unread or error, slot + 1
                continue
            known = max(after, at.txid)
            if unread is not None and piece.after.txid > known:
                raise unread
            if unread is None and piece.after != at and piece.end.txid > after:
                raise Damaged(f"begins after {piece.after}, and the piece before it ends at {at}", path=where)
            slot, at, unread = slot + 1, piece.end, None
            if piece.end.txid > known:
                yield piece, records
        if unread is not None:
            raise unread

    def went_on(self) -> bool:
        """Look whether the catalog has entries that were not known. They are from now on."""
        if self._refresh is None:
            return False
        self.state, before = self._refresh(), self._number
        self._number = self.state.number
        return self._number != before

    def unit_with(self, branch: str, slot: int) -> Unit | None:
        """The largest unit that has a slot; None: only its piece has it. O(units)."""
        return next((u for u in self.state.branches[branch].largest() if u.first <= slot <= u.last), None)

    def unit(self, unit: Unit) -> tuple[Piece, Iterator[Record]]:
        """One unit. Raises `Damaged`."""
        try:
            piece, records = pieces.decode(self._seal, unit.name, self._store.get(unit.name), self._store)
        except ObjectMissing as error:
            raise Damaged(f"is missing: it has the transactions {unit.after.txid + 1} to {unit.end.txid}",
                          path=f"{self._store.url}/{unit.name}") from error
        if (piece.after, piece.end) != (unit.after, unit.end):
            raise Damaged("is another unit than the catalog says", path=f"{self._store.url}/{unit.name}")
        return piece, records


def run_with(log: BranchLog, txid: int) -> Run | None:
    """The run that has the record after `txid`, or would go on with it."""
    for run in reversed(log.runs):
        if run.after.txid <= txid and (run.end is None or txid < run.end.txid):
            return run
    return None
