"""An engine under a real store: histories, snapshots, ids, closing, threads, and one history for one seed.

Each check here opens stores in a scratch directory, with a model beside them (`support/modelled.py`).
`StoreChecks` adds those of the kit.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ...contract.engine import BulkEngine, Context, Engine
from ...contract.transaction import Durability
from ...env import Env, Files
from ...errors import DiskFull, LogPruned, StorePoisoned
from ...model.positions import Position
from ...model.records import Record
from ..disks.faulty import FaultyFiles, is_log
from ..disks.quiet import quiet_env
from ..kit.bulk_loads import BulkChecks
from ..kit.commit_outcomes import OutcomeChecks, Refused, kept_with
from ..kit.corruption import CorruptionChecks
from ..kit.hooks import HookChecks
from ..kit.places import PlaceChecks
from ..support.concurrency import Crowd
from ..support.contract import Contract, check, scratch
from ..support.crash_images import log_of, state_of, tree
from ..support.machine import machine_for
from ..support.modelled import DURABILITIES, PATIENCE_S, SETTINGS, Modelled
from ..support.raising import raises
from ..support.workload import Operation, Workload

COMPARED = 8
"""Of the states that threads have seen, each so-manieth is compared by its content too."""
ONE_KEPT = replace(SETTINGS, keep_logs="1 transactions")


class HistoryChecks(Contract):
    """What a store shows, through whatever happens to it in order."""

    @check()
    def test_any_history_of_a_store(self, work: Workload) -> None:
        """Through any history of transactions of each durability, roll-backs, bulk loads, views held open, checkpoints,
        pruning, reopenings and crashes, a store shows what was written, and nothing else."""
        self.prove_machine(machine_for(work), examples=10)

    @check()
    def test_a_whole_life_of_a_store(self, work: Workload) -> None:
        """The same through one fixed history that leaves nothing out, with any content."""
        machine = machine_for(work)

        def claim(data: st.DataObject) -> None:
            def some() -> list[Operation]:
                return data.draw(machine.drawn)

            m = machine()
            try:
                m.create("1 transactions")
                m.commit_several([some(), some(), some()], "synced")
                m.look(unsynced=False)
                m.hold(unsynced=False)
                m.checkpoint()
                m.roll_back(some())
                m.commit_several([some(), some()], "relaxed")
                m.look(unsynced=True)
                m.look_beside()
                m.look_again(1)
                m.look_again(0)
                m.commit_several([some(), some()], "pipelined")
                m.commit_nothing("synced")
                m.wait()
                m.crash("as it is", b"!", 0.0)
                m.commit_several([some(), some()], "synced")
                m.crash("noise behind", b"noise" * 20, 0.0)
                if issubclass(work.engine, BulkEngine):
                    m.load_in_bulk()
                m.commit_several([some(), some()], "synced")
                m.crash("torn", b"!", 0.6)
                m.reopen()
                m.commit(some(), "relaxed")
                m.reopen()
                m.look(unsynced=False)
                m.commit(some(), "synced")
                m.checkpoint()
                m.prune()
                m.look_again(0)
                m.crash("as it is", b"!", 0.0)
                m.stages_are_in_order()
            finally:
                m.teardown()

        self.prove(claim, examples=5, data=st.data())

    @check()
    def test_a_snapshot_stays_as_it_is(self, work: Workload) -> None:
        """A snapshot shows the content at its transaction, and shows the same after any later transactions and
        checkpoints, however many snapshots are held, until it is closed."""
        def claim(several: list[tuple[list[Operation], bool]]) -> None:
            with kept_with(work, []) as kept:
                held, passing = [kept.store.snapshot()], kept.store.snapshot()
                for number, (operations, checkpointed) in enumerate(several, 1):
                    kept.write(number)
                    held += [kept.store.snapshot(), kept.store.snapshot()]
                    kept.transact(operations)
                    if checkpointed:
                        kept.store.checkpoint()
                    passing.close()
                    passing = kept.store.snapshot()
                    for view in [*held, passing]:
                        kept.compare(view)
                passing.close()
                for _ in range(2):
                    kept.write(0)
                    kept.store.checkpoint()
                while held:
                    for view in held:
                        kept.compare(view)
                    held.pop().close()

        steps = st.tuples(work.operations(), st.booleans())
        self.prove(claim, examples=6, several=st.lists(steps, min_size=3, max_size=5))

    @check()
    def test_what_is_closed_is_clean(self, work: Workload) -> None:
        """A store that was closed opens clean, whatever was not yet synced or checkpointed: everything is there,
        nothing was cut, and nothing has to be replayed."""
        def claim(several: list[list[Operation]], durability: Durability) -> None:
            with kept_with(work, []) as kept:
                for operations in several:
                    kept.transact(operations, durability)
                    kept.write(kept.last, durability)
                    kept.reopen()
                    recovery = kept.store.recovery
                    assert recovery.clean, f"it was closed, and is not clean: {recovery}"
                    assert not recovery.cut_bytes, f"it was closed, and its log was cut: {recovery}"
                    assert not recovery.replayed, f"it was closed, and {recovery.replayed} had to be replayed"

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=1, max_size=3),
                   durability=st.sampled_from(DURABILITIES))

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
                    # The last group is not known to be durable to one who only reads.
                    assert view.txid in (kept.last, kept.last - 1), f"{view.txid} of {kept.last} are shown"
                    kept.compare(view)
                assert tree(image) == before, "a read-only opening of a crash image changed files"
                kept.store.close()
                kept.compare_closed(kept.path, kept.last)

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=1, max_size=3),
                   checkpointed=st.booleans())

    @check()
    def test_no_id_returns(self, work: Workload) -> None:
        """No id that a durable transaction was given is given out again: not after its thing was deleted, not after
        reopening, not after a crash, with or without a checkpoint in between."""
        def claim(several: list[tuple[list[Operation], str]]) -> None:
            with kept_with(work, []) as kept:
                for number, (operations, then) in enumerate(several, 1):
                    kept.write(number)
                    kept.transact(operations)
                    with raises(Refused, "a block"), kept.store.transaction() as tx:
                        work.run(tx, kept.models[-1].copy(), work.numbered(number + 100))
                        raise Refused
                    if "checkpoint" in then:
                        kept.store.checkpoint()
                    if "crash" in then:
                        image = kept.crash_image()
                        kept.store.close()
                        kept.path = image
                        kept.open()
                    else:
                        kept.reopen()
                    kept.found(kept.last)
                kept.write(0)

        steps = st.tuples(work.operations(), st.sampled_from(("crash", "checkpoint and crash", "close")))
        self.prove(claim, examples=12, several=st.lists(steps, min_size=2, max_size=4))

    @check()
    def test_a_checkpoint_that_fails_loses_nothing(self, work: Workload) -> None:
        """A checkpoint without room ends `DiskFull`, and a later one makes up for it; any other error in it poisons the
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
        """When old log is pruned, views go on, what is left suffices after a crash, and asking for what is gone is an
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
    def test_many_threads_see_one_history(self, work: Workload) -> None:
        """While several threads write, read and checkpoint, each view shows the state that the log up to its
        transaction gives when it is replayed into a new store, and after reopening everything is there."""
        def claim(before: list[Operation], durability: Durability) -> None:
            with scratch() as root, Modelled(work, root) as kept:
                kept.transact(before)
                kept.write(0)
                Crowd(kept, durability).run()
                kept.store.wait(kept.last, PATIENCE_S)
                records = list(kept.store.log.read(0))
                kept.shows(kept.last)
                self._replay(kept, records, root / "replayed")
                kept.reopen()

        for durability in DURABILITIES:
            self.prove(claim, examples=1, before=work.operations(), durability=st.just(durability))

    @staticmethod
    def _replay(kept: Modelled, records: list[Record], directory: Path) -> None:
        """Into a new state, which must be, at each transaction that a view has shown, what that view has shown."""
        seen = sorted(txid for txid in kept.digests if txid)
        start = kept.store.history.branches[0].start
        context = Context(Env(), kept.work.options)
        directory.mkdir()
        kept.engine.create(directory, start, context)
        engine = kept.engine.open(directory, context)
        try:
            applied = 0
            for number, txid in enumerate(seen):
                engine.apply(records[applied:txid])
                with engine.view() as view:
                    assert view.txid == txid, f"after replay up to {txid} a view shows {view.txid}"
                    (kept.note if number % COMPARED else kept.compare)(view)
                applied = txid
        finally:
            engine.close()

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

    @check()
    def test_one_seed_one_history(self, work: Workload) -> None:
        """The same operations, clock and randomness give the same log, byte for byte, and the same digests; and the
        same state files, where the engine writes through the environment."""
        def claim(several: list[tuple[list[Operation], bool]], reopened: bool) -> None:
            def live(root: Path) -> tuple[dict[str, bytes], dict[str, bytes], bytes]:
                with Modelled(work, root, env=quiet_env(Files())) as kept:
                    for number, (operations, relaxed) in enumerate(several):
                        kept.transact(operations, "relaxed" if relaxed and kept.watermarks else "synced")
                        kept.write(number)
                        if number == 1:
                            kept.store.checkpoint()
                    if reopened:
                        kept.reopen()
                        kept.write(99)
                    with kept.store.snapshot() as view:
                        digest = view.digest()
                return tree(log_of(kept.path)), tree(state_of(kept.path)), digest

            with scratch() as one, scratch() as other:
                (log, state, digest), (log2, state2, digest2) = live(one), live(other)
            assert digest == digest2, "two runs of the same history end with two digests"
            assert log.keys() == log2.keys(), f"two runs of the same history have other logs: {set(log) ^ set(log2)}"
            for name, data in log.items():
                at = _first_difference(data, log2[name])
                assert at is None, f"two runs of the same history differ from byte {at} of the log's {name} on"
            if work.above_env:
                assert state == state2, "two runs of the same history leave other state files: " + ", ".join(
                    name for name in {**state, **state2} if state.get(name) != state2.get(name))

        steps = st.tuples(work.operations(), st.booleans())
        self.prove(claim, examples=5, several=st.lists(steps, min_size=1, max_size=4), reopened=st.booleans())


def _first_difference(one: bytes, other: bytes) -> int | None:
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _troubled(engine: type[Engine[Any, Any]], trouble: list[Exception], late: bool) -> type[Engine[Any, Any]]:
    """The engine, whose checkpoint raises the error in `trouble` while there is one: before it began or, `late`, when
    all was done."""
    def checkpoint(self: Any, upto: Position) -> Position:
        if trouble and not late:
            raise trouble[0]
        reached: Position = engine.checkpoint(self, upto)
        if trouble:
            raise trouble[0]
        return reached

    return type(engine.__name__, (engine,), {"checkpoint": checkpoint, "__module__": engine.__module__})


class StoreChecks(HistoryChecks, OutcomeChecks, HookChecks, BulkChecks, PlaceChecks, CorruptionChecks):
    """Everything that is checked of an engine under a real store."""
