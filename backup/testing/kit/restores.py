"""Checks of restores: every point within a backup's bounds, none outside, and how a restored store continues."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

from ....engine.env import Env
from ....engine.errors import InvalidInput, StoreExists, StoreLocked
from ....engine.testing.disks.quiet import SetClock
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.crash_images import tree
from ....engine.testing.support.raising import raises
from ....engine.testing.support.workload import Workload
from ..world import Histories, World, histories, moment, seen_in, world

HOUR_US = 3600 * 1_000_000



class RestoreChecks(Contract):
    """See the module's text."""

    @check()
    def test_every_transaction_within_bounds_can_be_restored(self, work: Workload) -> None:
        """A backup restores to every transaction within its bounds, exactly as the store was then. The transactions
        just outside are refused, and nothing is made of them."""

        def claim(before: Histories, after: Histories) -> None:
            with world(work) as w:
                w.commit_all(before)
                w.store.checkpoint()
                w.add()
                full = w.back_up().to_txid
                w.commit_all(after)
                w.add()
                w.back_up()
                bounds = w.compare_points()
                assert bounds.first <= full, f"the full backup ended at {full}; it restores to {bounds}"
                assert bounds.last == w.last, f"transaction {w.last} was backed up; the backup restores to {bounds}"

        self.prove(claim, examples=4, before=histories(work), after=histories(work))

    @check()
    def test_every_time_within_bounds_can_be_restored(self, work: Workload) -> None:
        """A backup restores to a time: to the last transaction committed at or before it. Times before its first
        point and after what it knows of are refused, and so are times that do not say their zone."""
        clock = SetClock()
        times: dict[int, int] = {}
        with world(work, env=Env(clock=clock)) as w:
            for n in range(1, 6):
                clock.time_us += HOUR_US
                w.add()
                times[n] = w.store.log.time_of(n)
                if n == 2:
                    w.store.checkpoint()
                    w.back_up()
            w.back_up()
            bounds = w.bounds()
            for n in range(3, 6):
                for time_us, expected in ((times[n], n), (times[n] + HOUR_US // 2, n), (times[n] - 1, n - 1)):
                    if time_us <= bounds.complete_until_us and expected >= bounds.first:
                        found = w.compare_restored(at=moment(time_us))
                        assert found == expected, f"{moment(time_us)} was restored to {found}, not {expected}"
            assert w.compare_restored(at=moment(bounds.complete_until_us)) == 5
            for time_us in (bounds.complete_until_us + 1, (bounds.first_time_us or times[1]) - 1, 0):
                with w.refuses_point(moment(time_us), bounds):
                    w.restored(at=moment(time_us))
            with raises(InvalidInput, "a restore to a time without a zone"):
                w.restored(at=datetime.fromtimestamp(times[4] / 1e6, UTC).replace(tzinfo=None))

    @check()
    def test_an_empty_store_can_be_backed_up_and_restored(self, work: Workload) -> None:
        """A store without transactions has a backup, which goes on with its first ones and restores to before them."""
        with world(work) as w:
            assert w.back_up().to_txid == 0
            w.compare_target(0)
            w.add(2)
            report = w.back_up()
            assert (report.kind, report.from_txid, report.to_txid) == ("incremental", 0, 2), f"it was {report}"
            w.compare_points()

    @check()
    def test_a_restored_store_goes_on_beside_its_twin(self, work: Workload) -> None:
        """A restored store is on a new branch: it takes transactions, gives out no id that was given out up to its
        restore point, and neither it nor the store that it came from sees anything of the other."""

        def claim(history: Histories, more: Histories) -> None:
            with world(work) as w:
                w.store.checkpoint()
                w.back_up()
                w.commit_all(history)
                w.add()
                point = w.last
                w.add()
                w.back_up()
                place, report = w.restored(point)
                models = w.models[: point + 1]
                with w.opened(place) as twin:
                    branches = twin.history.branches
                    assert twin.history.branch.id.hex() == report.branch, "the report names another branch"
                    assert branches[:-1] == w.store.history.branches, f"the restored store is on {branches}"
                    for number, operations in enumerate([*more, work.numbered(10**6), work.numbered(10**6 + 1)]):
                        model = models[-1].copy()
                        with twin.transaction() as tx:
                            work.run(tx, model, operations)
                        if tx.txid is not None:
                            assert tx.txid == len(models), f"the restored store gave {tx.txid} after {len(models) - 1}"
                            models.append(model)
                        if number < 2:
                            w.add()
                    with seen_in("the restored store, which went on"), twin.snapshot() as view:
                        w.compare(view, models)
                    w.shows(w.last, "the store that was backed up, beside its twin,")
                with seen_in("the restored store, which went on and was closed"):
                    w.compare_closed(place, len(models) - 1, models)

        self.prove(claim, examples=6, history=histories(work), more=histories(work, 2))

    @check()
    def test_a_backup_stands_by_itself(self, work: Workload) -> None:
        """A backup needs neither the store that it was taken of, nor the place where it was made. Moved, with the store
        gone, it restores as before. What is restored from it does not need the backup."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            w.add()
            w.back_up()
            w.add()
            w.back_up()
            w.store.close()
            shutil.rmtree(w.path)
            moved = w.target.rename(w.fresh("moved"))
            w.compare_target(w.last, moved)
            place, _ = w.restored(target=moved)
            shutil.rmtree(moved)
            with seen_in("a restored store, moved elsewhere, whose backup is gone"):
                w.compare_closed(place.rename(w.fresh("moved")), w.last)

    @check()
    def test_a_restore_replaces_nothing_unasked(self, work: Workload) -> None:
        """A restore refuses to overwrite a store. When it is forced to, it replaces it whole, and only when nobody has
        it open."""
        with world(work) as w:
            w.add(2)
            w.back_up()
            with World(work, w.root / "other") as other:
                other.add(1)
                taken = other.path
                with raises(StoreLocked, "a forced restore over an open store"):
                    w.restore(taken, force=True)
                other.add(1)
            before = tree(taken)
            with raises(StoreExists, "a restore over a store"):
                w.restore(taken)
            assert tree(taken) == before, "a refused restore changed what was there"
            w.compare_target(2)
            w.restore(taken, force=True)
            with seen_in("the store that a restore replaced"):
                w.compare_closed(taken, 2)
