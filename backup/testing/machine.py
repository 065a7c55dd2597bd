"""The store's state machine with backups: taken while it runs, verified, compacted, restored and continued.

`backed_up` is what the target must be able to show: the models up to the transaction that its last run named. A
restored store, or a copy of the target that is opened for writing, is a twin of the store as of one of these; the
machine may go on in it, on its branch, and leave the target behind, which must refuse it then.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ...engine.errors import OtherBranch, RestorePointOutOfRange
from ...engine.source.local import LocalSource
from ...engine.testing.support.crash_images import tree
from ...engine.testing.support.machine import OPERATIONS, StoreMachine
from ...engine.testing.support.raising import raises
from ...engine.testing.support.workload import Operation
from ..info import info, transactions
from ..policy import Policy
from ..restore import restore
from ..run import run
from ..verify import verify
from .fault_injection import BusySource
from .world import moment


class BackupMachine(StoreMachine):
    """See the module's text.

    Attributes:
        target: where backups go at present, None before the first.
        backed_up: the models that the target must be able to show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.target: Path | None = None
        self.backed_up: list[Any] = []

    def known_outside(self) -> int:
        return max(super().known_outside(), len(self.backed_up) - 1)

    @property
    def _target(self) -> Path:
        assert self.target is not None
        return self.target

    @property
    def _how(self) -> dict[str, Any]:
        """What every call of the kit is told about the engine."""
        return {"engine": self.engine, "options": self.work.opened_with}

    # --- taking them -----------------------------------------------------------------------------------------------

    @rule(during=st.lists(st.one_of(st.none(), OPERATIONS), max_size=4), compact=st.booleans())
    def back_up(self, during: list[list[Operation] | None], compact: bool) -> None:
        """Full or incremental, as the target has it, while transactions and checkpoints (None) go on."""
        left = list(during)

        def step() -> None:
            if left:
                operations = left.pop()
                if operations is None:
                    self.checkpoint()
                else:
                    self.commit(operations, "synced")

        self.note_promises()
        at_least, first, base = self.acknowledged, self.target is None, self.store.log.base.txid
        self.target = self.target or self.fresh("backup")
        policy = Policy(compact=0.0 if compact else None, compact_floor=0, keep_points="none")
        with BusySource(LocalSource(self.store), step) as source:
            report = run(source, self.target, policy=policy, **self._how)
        pruned = len(self.backed_up) - 1 < base
        kind = "full" if first or pruned else "incremental"
        assert report.kind == kind, f"the backup was {report.kind}, and should be {kind}: {report}"
        assert bool(report.why) == (pruned and not first), f"a {kind} backup, because of {report.why!r}"
        assert at_least <= report.to_txid < len(self.models), (
            f"transaction {at_least} was acknowledged before the backup, which ends at {report.to_txid}")
        assert report.bounds.last == report.to_txid, f"a backup to {report.to_txid} restores to {report.bounds}"
        self.backed_up = self.models[: report.to_txid + 1]

    @precondition(lambda self: self.target)
    @rule()
    def forget_target(self) -> None:
        self.target, self.backed_up = None, []

    @precondition(lambda self: self.target)
    @rule(operations=OPERATIONS)
    def lose_the_target_s_log(self, operations: list[Operation]) -> None:
        """What is kept for the target goes, if its registration does; the next backup may have to be a full one."""
        self.reopen()
        self.seal()
        self.commit(operations, "synced")
        self.checkpoint()
        for slot in self.store.log.slots.list():
            self.store.log.slots.drop(slot.id)
        self.prune()

    # --- looking at them -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.target)
    @rule()
    def verify(self) -> None:
        last = len(self.backed_up) - 1
        report = verify(self._target, **self._how)
        assert report.bounds.last == last, f"verify finds a backup that ends at {report.bounds.last}, not {last}"
        digest = bytes.fromhex(report.digest)
        assert self.digests.setdefault(last, digest) == digest, f"verify finds another digest at transaction {last}"
        self.compare_closed(self._target, last, self.backed_up)

    @precondition(lambda self: self.target)
    @rule(share=st.floats(0, 1), by_time=st.booleans(), go_on=st.booleans())
    def restore(self, share: float, by_time: bool, go_on: bool) -> None:
        bounds = info(self._target).bounds
        assert bounds.last == len(self.backed_up) - 1, f"the backup to {len(self.backed_up) - 1} restores to {bounds}"
        txid = bounds.first + round(share * (bounds.last - bounds.first))
        at = None
        if by_time and txid > bounds.first:  # the last transaction of that microsecond is meant
            times = {record.txid: record.time_us for record in transactions(self._target)}
            at = moment(times[txid])
            txid = max(n for n, time in times.items() if time <= times[txid])
        place = self.fresh("restored")
        report = restore(self._target, place, to_txid=None if at else txid, at=at, **self._how)
        assert report.txid == txid, f"asked for transaction {txid}, restored to {report.txid}"
        self.compare_closed(place, txid, self.backed_up)
        if go_on:
            self.go_on_in(place, txid)

    @precondition(lambda self: self.target)
    @rule(outside=st.sampled_from((-1, 1)))
    def restore_outside(self, outside: int) -> None:
        bounds = info(self._target).bounds
        txid = bounds.last + 1 if outside > 0 else bounds.first - 1
        place = self.fresh("restored")
        with raises(RestorePointOutOfRange, f"a restore to transaction {txid} of a backup that restores to {bounds}"):
            restore(self._target, place, to_txid=txid, **self._how)
        assert not place.exists(), "a refused restore made something"

    # --- going on in them ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.target)
    @rule()
    def boot_a_copy_of_the_target(self) -> None:
        """A backup is a store: open it for writing, and go on there."""
        place = self.fresh("booted")
        shutil.copytree(self._target, place)
        self.go_on_in(place, len(self.backed_up) - 1)

    def go_on_in(self, place: Path, txid: int) -> None:
        """`place`, a twin of the store as of `txid`, is the store from now on, on a branch of its own."""
        self.close()
        branch = self.store.history.branch.id
        self.models = list(self.backed_up)
        self.move(place, txid)
        self.open()
        assert self.store.history.branch.id != branch, "a twin of the store is on the same branch"
        self.found(txid)
        before = tree(self._target)
        with raises(OtherBranch, "a backup of a twin of the store"):
            run(self.store, self._target, **self._how)
        assert tree(self._target) == before, "a refused backup changed the target"
        self.forget_target()
