"""`BackupContract`: what backups of an engine must be, check by check.

    class TestMine(BackupContract):
        workload = KeyValues(MyEngine, put=..., items=...)
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from ...engine.contract.engine import BulkEngine
from ...engine.source.local import LocalSource
from ...engine.testing.support.contract import BULK, STABLE_IMAGE, Contract, check
from ...engine.testing.support.machine import machine_for
from ...engine.testing.support.workload import Operation, Workload
from .machine import BackupMachine
from .world import Histories, histories, world


class BackupContract(Contract):
    """Properties of backups: full and incremental, verified, restored to any point, while the store runs on.

    Subclass it and set `workload`, or pass it to `check_engine`.
    """

    @check()
    def test_a_backup_during_writes_is_of_the_position_it_names(self, work: Workload) -> None:
        """What is committed and checkpointed while the image is copied is in the backup, which is exactly of the
        transaction that it names. Transactions that come later are not in it."""

        def claim(before: Histories, during: Histories) -> None:
            with world(work) as w:
                w.commit_all(before)
                w.add(2)
                w.store.checkpoint()
                w.add()

                def change() -> None:
                    w.commit_all(during)
                    w.add()
                    w.store.checkpoint()
                    w.add()

                report = w.back_up_busily(change, change, w.add, w.store.checkpoint)
                last = w.last
                assert report.to_txid == last, f"{last} was committed during the copy, which ends at {report.to_txid}"
                w.add()
                w.compare_target(last)
                w.compare_restored(w.bounds().first)

        self.prove(claim, examples=5, before=histories(work), during=histories(work, 3))

    @check()
    def test_a_repository_restores_every_point(self, work: Workload) -> None:
        """Two images are taken while the store changes, the second compared with the first, and the log between and
        after them is archived. Every transaction from the first image on can be restored."""

        def claim(during: Histories) -> None:
            with world(work) as w, w.repository() as repository:
                w.add(3)
                w.store.checkpoint()

                def change() -> None:
                    w.commit_all(during)
                    w.add()
                    w.store.checkpoint()

                first = repository.backup(w.busy_source(change, w.add)).consistent_from
                archiver = repository.archiver(LocalSource(w.store))
                load = w.load if issubclass(work.engine, BulkEngine) else w.add
                for step in (w.add, w.store.checkpoint, load, w.add):
                    step()
                    archiver.step()
                repository.backup(w.busy_source(w.add, w.store.checkpoint))
                w.add()
                archiver.step()
                archiver.close()
                for txid in range(first, w.last + 1):
                    w.compare_repository(repository, txid)
                report = repository.verify()
                assert not report.damaged, f"the repository is damaged: {report.damaged[0]}"

        self.prove(claim, examples=2, during=histories(work, 2))

    @check(STABLE_IMAGE)
    def test_a_stable_image_restores_to_its_own_position(self, work: Workload) -> None:
        """Every byte of a stable image is of one position, whatever is checkpointed while it is copied. A backup
        restores to that position, and to every transaction after it."""
        with world(work) as w:
            w.add(3)
            first = w.store.checkpoint().txid
            w.add(2)

            def change() -> None:
                w.add()
                w.store.checkpoint()

            w.back_up_busily(change, change, change)
            bounds = w.bounds()
            assert bounds.first == first, f"the image was made at transaction {first}; the backup restores to {bounds}"
            w.compare_points()

    @check()
    def test_two_backups_at_once_do_not_disturb_each_other(self, work: Workload) -> None:
        """Images of two positions that are read at the same time do not change each other; both backups are whole."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            second = w.root / "second"
            ends = []

            def another() -> None:
                w.add(2)
                w.store.checkpoint()
                ends.append(w.back_up(second).to_txid)
                w.add()
                w.store.checkpoint()

            w.back_up_busily(another)
            w.compare_target(ends[0], second)
            w.compare_target(w.last)

    @check(BULK)
    def test_bulk_loads_are_in_backups(self, work: Workload) -> None:
        """To backups, a bulk load is a transaction like any other. One before the image, one during the copy and one in
        an incremental are each there whole, from their own transaction on and not before, restored or compacted."""
        with world(work) as w:
            w.add()
            w.load()
            w.store.checkpoint()
            w.add()
            w.back_up_busily(w.load, w.add)
            w.compare_target(w.last)
            w.load()
            w.add()
            w.back_up()
            w.compare_target(w.last)
            w.compare_points()
            w.load()
            w.compact()
            w.compare_target(w.last)

    @check()
    def test_a_whole_life_with_backups(self, work: Workload) -> None:
        """Whatever the content: transactions, backups during writes, restores to any point, crashes, pruned log, and
        going on in a restored store or in a backup, one after the other, show nothing but what was committed."""

        def claim(data: st.DataObject) -> None:
            machine = machine_for(work, BackupMachine)()
            assert isinstance(machine, BackupMachine)
            _live(machine, lambda: data.draw(work.operations()))

        self.prove(claim, examples=2, data=st.data())

    @check()
    def test_any_history_of_a_store_and_its_backups(self, work: Workload) -> None:
        """In any order of transactions, views, checkpoints, crashes, backups and restores, everything that a store,
        a backup or a restored store shows is the model at the transaction that it names."""
        self.prove_machine(machine_for(work, BackupMachine), examples=12)


def _live(m: BackupMachine, some: Callable[[], list[Operation]]) -> None:
    """Each rule of the machine, in one order in which each has something to do."""
    try:
        m.create("1 transactions")
        m.commit_several([some(), some(), some()], "synced")
        m.look(unsynced=False)
        m.checkpoint()
        m.roll_back(some())
        m.commit_several([some(), some()], "relaxed")
        m.look(unsynced=True)
        m.back_up([some(), None, some()], compact=False)
        m.verify()
        m.look_again(0)
        m.commit_several([some(), some()], "pipelined")
        m.commit_nothing("synced")
        m.wait()
        if issubclass(m.work.engine, BulkEngine):
            m.load_in_bulk()
        m.back_up([], compact=False)
        m.verify()
        for share in (0.0, 0.5, 1.0):
            m.restore(share, by_time=False, go_on=False)
            m.restore(share, by_time=True, go_on=False)
        m.restore_outside(1)
        m.restore_outside(-1)
        m.commit_several([some(), some()], "synced")
        m.back_up([], compact=True)
        m.verify()
        m.crash("as it is", b"!", 0.0)
        m.commit_several([some(), some()], "synced")
        m.crash("noise behind", b"noise" * 20, 0.0)
        m.commit_several([some(), some()], "synced")
        m.crash("torn", b"!", 0.6)
        m.reopen()
        m.lose_the_target_s_log(some())
        m.back_up([some()], compact=False)
        m.verify()
        m.restore(0.5, by_time=False, go_on=True)
        m.commit_several([some(), some()], "synced")
        m.back_up([None, some()], compact=False)
        m.boot_a_copy_of_the_target()
        m.commit_several([some(), some()], "synced")
        m.reopen()
    finally:
        m.teardown()
