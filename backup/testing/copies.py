"""Backups of a store that goes on: what an engine's image makes of them."""

from __future__ import annotations

from ...engine.testing.support.contract import BULK, STABLE_IMAGE, Contract, check
from ...engine.testing.support.workload import Workload
from .world import Histories, histories, world


class ImageChecks(Contract):
    """See the module's text."""

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
                assert report.to_txid == last, f"{last} was there before the copy was whole; it is to {report.to_txid}"
                w.add()
                w.compare_target(last)
                w.compare_restored(w.bounds().first)

        self.prove(claim, examples=5, before=histories(work), during=histories(work, 3))

    @check(STABLE_IMAGE)
    def test_a_stable_image_restores_to_its_own_position(self, work: Workload) -> None:
        """A stable image is of one position, every byte, whatever is checkpointed while it is copied: a backup restores
        to it, and to every transaction after it."""
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
        """Images of two positions, read at the same time, are each what they were; both backups are whole."""
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
        """A bulk load is a transaction like any other to backups: one before the image, one during the copy, one in an
        incremental are there whole, from their own transaction on and not before, restored or compacted."""
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
