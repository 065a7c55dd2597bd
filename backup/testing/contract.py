"""`BackupContract`: what backups of an engine must be, check by check.

    class TestMine(BackupContract):
        workload = KeyValues(MyEngine, put=..., items=...)

What an engine's image makes of a backup is in `copies.py`. Here is what tries everything together.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from ...engine.contract.engine import BulkEngine
from ...engine.testing.support.contract import check
from ...engine.testing.support.machine import machine_for
from ...engine.testing.support.workload import Operation, Workload
from .copies import ImageChecks
from .machine import BackupMachine


class BackupContract(ImageChecks):
    """Properties of backups: full and incremental, verified, restored to any point, of a store that goes on meanwhile.

    Subclass it and set `workload`, or pass it to `check_engine`.
    """

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
