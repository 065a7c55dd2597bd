"""A store through sequences of events: closings, read-only openings, failed checkpoints, pruning, syncs."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ...contract.engine import Engine
from ...contract.transaction import Durability
from ...env import Env
from ...errors import DiskFull, LogPruned, StorePoisoned
from ...model.positions import Position
from ..disks.faulty import FaultyFiles, is_log
from ..support.contract import Contract, check, scratch
from ..support.crash_images import tree
from ..support.modelled import DURABILITIES, PATIENCE_S, SETTINGS, Modelled, kept_with
from ..support.raising import raises
from ..support.workload import Operation, Workload

ONE_KEPT = replace(SETTINGS, keep_logs="1 transactions")


class HistoryChecks(Contract):
    """What a store keeps, through any sequence of events."""

    @check()
    def test_reading_only_changes_nothing(self, work: Workload) -> None:
        """A read-only opening of a store that was closed shows everything, one of a crash image everything that is
        known to be durable; neither changes a byte."""
        def claim(several: list[list[Operation]], checkpointed: bool) -> None:
            with kept_with(work, several[0]) as kept:
                if checkpointed:
                    kept.store.checkpoint()
                for number, operations in enumerate(several, 1):
                    kept.transact(operations)
                    kept.write(number)
                image = kept.crash_image()
                before = tree(image)
                with kept.opened(image, read_only=True) as store, store.snapshot() as view:
                    # A reader cannot know that the last group is durable.
                    assert view.txid in (kept.last, kept.last - 1), f"{view.txid} of {kept.last} are shown"
                    kept.compare(view)
                assert tree(image) == before, "a read-only opening of a crash image changed files"
                kept.store.close()
                kept.compare_closed(kept.path, kept.last)

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=1, max_size=3),
                   checkpointed=st.booleans())

    @check()
    def test_a_checkpoint_that_fails_loses_nothing(self, work: Workload) -> None:
        """A checkpoint without room raises `DiskFull`, and a later one succeeds. Any other error in it poisons the
        store. Either way views go on, and nothing that was committed is lost."""
        def claim(before: list[Operation], after: list[Operation], how: str, late: bool) -> None:
            trouble: list[Exception] = []
            with scratch() as root:
                kept = Modelled(work, root)
                kept.engine = _troubled(work.engine, trouble, late and how != "no room")
                with kept:
                    kept.write(0)
                    kept.transact(before)
                    kept.store.checkpoint()
                    kept.transact(after)
                    kept.write(1)
                    view = kept.store.snapshot()
                    trouble.append(DiskFull("injected") if how == "no room" else
                                   OSError(errno.EIO, "injected") if how == "broken disk" else RuntimeError("injected"))
                    with raises(DiskFull if how == "no room" else StorePoisoned, f"a checkpoint that fails ({how})"):
                        kept.store.checkpoint()
                    trouble.clear()
                    kept.shows(kept.last, "after a checkpoint that failed, the store")
                    kept.compare(view)
                    kept.recovered(kept.crash_image(), kept.last)
                    poisoned = kept.store.poisoned
                    assert poisoned == (how != "no room"), f"after {how} in a checkpoint, poisoned is {poisoned}"
                    if how == "no room":
                        kept.write(2)
                        assert kept.store.checkpoint().txid == kept.last
                        kept.recovered(kept.crash_image(), kept.last)
                    else:
                        with raises(StorePoisoned, "a commit to a poisoned store"):
                            kept.write(2)
                    kept.compare(view)
                    view.close()
                    kept.reopen()
                    kept.write(3)

        self.prove(claim, examples=6, before=work.operations(), after=work.operations(),
                   how=st.sampled_from(("no room", "broken disk", "bug")), late=st.booleans())

    @check()
    def test_pruning_takes_nothing_that_is_needed(self, work: Workload) -> None:
        """When old log is pruned, views go on, the rest is enough after a crash, and asking for what is gone is an
        error."""
        def claim(several: list[list[Operation]]) -> None:
            with kept_with(work, several[0], settings=ONE_KEPT) as kept:
                views = [kept.store.snapshot()]
                for number, operations in enumerate(several, 1):
                    kept.transact(operations)
                    kept.write(number)
                    for view in views:
                        view.close()
                    kept.reopen()
                    kept.seal()
                    views = [kept.store.snapshot()]
                    kept.write(number + 100)
                    kept.store.checkpoint()
                    kept.write(number + 200)
                    kept.seal()  # what is not checkpointed, too
                    kept.write(number + 300)
                    kept.store.prune()
                    base = kept.store.log.base.txid
                    assert 0 < base <= kept.store.positions().checkpointed, f"the log was pruned to {base}"
                    kept.recovered(kept.crash_image(), kept.last)
                    for view in views:
                        kept.compare(view)
                    with raises(LogPruned, "reading log that was pruned"):
                        list(kept.store.log.read(base - 1))
                for view in views:
                    view.close()

        self.prove(claim, examples=3, several=st.lists(work.operations(), min_size=1, max_size=2))

    @check()
    def test_nothing_is_acknowledged_before_it_is_synced(self, work: Workload) -> None:
        """When a commit returns, its future is done, or a wait for it ends, no written byte of the log is left
        unsynced; and hooks are told of a transaction's publication only then."""
        def claim(several: list[tuple[list[Operation], Durability]]) -> None:
            files = FaultyFiles()
            with kept_with(work, [], env=Env(files)) as kept:
                for number, (operations, durability) in enumerate(several, 1):
                    kept.transact(operations, durability)
                    tx = kept.write(number, durability)
                    if durability == "pipelined":
                        tx.outcome.result(PATIENCE_S)
                    elif durability == "relaxed":
                        kept.store.wait(kept.last, PATIENCE_S)
                    unsynced = [path.name for path in files.unsynced if is_log(path)]
                    assert not unsynced, f"{durability}: transaction {kept.last} was acknowledged before {unsynced}"

        steps = st.tuples(work.operations(), st.sampled_from(DURABILITIES))
        self.prove(claim, examples=5, several=st.lists(steps, min_size=1, max_size=3))


def _troubled(engine: type[Engine[Any, Any]], trouble: list[Exception], late: bool) -> type[Engine[Any, Any]]:
    """The engine, with a checkpoint that raises the error in `trouble`, if any: before it begins or, if `late`, after
    it is done."""
    def checkpoint(self: Any, upto: Position) -> Position:
        if trouble and not late:
            raise trouble[0]
        reached: Position = engine.checkpoint(self, upto)
        if trouble:
            raise trouble[0]
        return reached

    return type(engine.__name__, (engine,), {"checkpoint": checkpoint, "__module__": engine.__module__})
