"""Checks of what a target refuses: another store, another branch, another past, to be opened too early. A refusal
changes no byte of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ....engine.env import REAL
from ....engine.errors import (
    AheadOfSource,
    Damaged,
    Diverged,
    ForeignStore,
    OtherBranch,
    TargetInvalid,
    TargetPromoted,
)
from ....engine.store.layout import Layout
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.crash_images import tree
from ....engine.testing.support.raising import raises
from ....engine.testing.support.workload import Workload
from ....engine.wal.log import Log
from ....engine.wal.writer import LogOptions
from ...manifest import Manifest
from ..world import World, seen_in, world


def _names(told: str, *stores: bytes) -> None:
    for name in stores:
        assert name.hex() in told, f"the refusal does not name {name.hex()}: {told}"


class RefusalChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_foreign_store_is_refused(self, work: Workload) -> None:
        """A target takes nothing from a store that it is not a backup of; both are named, and it stays usable."""
        with world(work) as w, World(work, w.root / "foreign") as foreign:
            w.add(2)
            w.back_up()
            foreign.add(4)
            told = w.refused(ForeignStore, "a backup of another store into this target",
                             lambda: w.back_up(source=foreign.store))
            _names(told, w.store.history.store_id, foreign.store.history.store_id)
            w.add()
            w.back_up()
            w.compare_target(w.last)

    @check()
    def test_a_restored_twin_is_refused(self, work: Workload) -> None:
        """A target takes nothing from a store that was restored from it, which is on another branch; both are named. If
        it is told to accept that branch, it does, and then refuses the old one."""
        with world(work) as w:
            w.add(3)
            w.back_up()
            place, _ = w.restored()
            with w.opened(place) as twin:
                model = w.models[-1].copy()
                with twin.transaction() as tx:
                    work.run(tx, model, work.numbered(10**6))
                told = w.refused(OtherBranch, "a backup of a restored twin",
                                 lambda: w.back_up(source=twin))
                _names(told, w.store.history.branch.id, twin.history.branch.id)
                report = w.back_up(source=twin, accept_branch=twin.history.branch.id)
                assert (report.kind, report.to_txid) == ("incremental", 4), f"an accepted branch gave {report}"
            w.refused(OtherBranch, "a backup of the old branch", w.back_up)
            with seen_in("the backup that went over to another branch"):
                w.compare_closed(w.target, 4, [*w.models, model])

    @check()
    def test_a_store_with_another_past_is_refused(self, work: Workload) -> None:
        """A target takes nothing from an older copy of its store: neither while that copy is behind it, nor after the
        copy has gone on by itself and has other transactions under the same numbers."""
        with world(work) as w:
            w.add(2)
            w.store.close()
            shutil.copytree(w.path, w.root / "older")
            w.open()
            w.add(2)
            w.back_up()
            with w.opened(w.root / "older") as older:
                attempt = partial(w.back_up, source=older)
                w.refused(AheadOfSource, "a backup of a store that is behind the target", attempt)
                model = w.models[2].copy()
                for number in range(3):
                    with older.transaction() as tx:
                        work.run(tx, model, work.numbered(10**6 + number))
                w.refused(Diverged, "a backup of a store with another past", attempt)
            w.add()
            w.back_up()
            w.compare_target(w.last)

    @check()
    def test_a_target_opened_for_writing_is_a_store_of_its_own(self, work: Workload) -> None:
        """A backup opened for writing shows what was backed up, begins a branch, and is a backup no more: backups into
        it, verification and restores are refused and change nothing."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            w.back_up_busily(w.add, w.store.checkpoint, w.add)
            models = list(w.models)
            with w.opened(w.target) as booted:
                with seen_in("a backup opened for writing"), booted.snapshot() as view:
                    assert view.txid == w.last, f"it shows transaction {view.txid}, not {w.last}"
                    w.compare(view)
                assert booted.history.branch.id != w.store.history.branch.id, "it is on the store's own branch"
                model = models[-1].copy()
                with booted.transaction() as tx:
                    work.run(tx, model, work.numbered(10**6))
                models.append(model)
            attempts: dict[str, Callable[[], object]] = {
                "a backup into": w.back_up, "a verification of": w.verify,
                "a restore of": w.restored}
            for what, attempt in attempts.items():
                w.refused(TargetPromoted, f"{what} a target that was opened for writing", attempt)
            with seen_in("a backup that was opened for writing, went on and was closed"):
                w.compare_closed(w.target, len(models) - 1, models)

    @check()
    def test_a_copy_that_is_not_replayed_far_enough_does_not_open(self, work: Workload) -> None:
        """A copy counts only from the position that its source confirmed. If its log ends before that, it is refused,
        read-only and for writing. If its log reaches it, it opens as the model there, and goes on."""
        with world(work) as w:
            w.add(3)
            w.store.checkpoint()
            w.back_up()
            w.add(3)
            records = list(w.store.log.read(w.last - 3))
            generation = Layout(w.target, REAL.files).current()
            manifest = Manifest.read(REAL.files, generation)
            assert manifest is not None
            replace(manifest, consistent_from=w.store.published, moving=True, runs=()).write(REAL.files, generation)

            def cut(last: int) -> None:
                REAL.files.remove_tree(generation.log)
                log = Log.create(generation.log, manifest.history, manifest.image_position, engine=manifest.engine,
                                 options=LogOptions(preallocate=False), env=REAL)
                for record in records[: last - manifest.image_position.txid]:
                    log.writer.append_record(record)
                log.close()

            for last in (w.last - 2, w.last - 1):
                cut(last)
                for read_only in (True, False):
                    with raises(Damaged, f"opening a copy that ends at {last} and counts from {w.last}"):
                        w.opened(w.target, read_only=read_only).close()
            cut(w.last)
            w.compare_closed(w.target, w.last)
            w.recovered(w.target, w.last)

    @check()
    def test_what_is_no_backup_is_not_made_one(self, work: Workload) -> None:
        """A directory that holds something else, another store included, is not a target and stays as it is."""
        with world(work) as w:
            w.add()
            strange = w.root / "strange"
            strange.mkdir()
            (strange / "cat.txt").write_text("meow")
            w.opened(w.root / "other").close()
            for place in (strange, w.root / "other"):
                before = tree(place)
                with raises(TargetInvalid, f"a backup into {place.name}"):
                    w.back_up(place)
                assert tree(place) == before, f"a refused backup changed {place.name}"
