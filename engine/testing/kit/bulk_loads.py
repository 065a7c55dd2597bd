"""Bulk loads on a real store: one transaction like any other, whose data stands in a file beside the log.

A load is all there or not at all: when it returns, when there is no room for its file, when its record cannot be
written, when the process ends between the logging and the applying. Files that no record names go.
"""

from __future__ import annotations

import errno
from pathlib import Path

from hypothesis import strategies as st

from ...errors import CommitDiskFull, ConditionNotMet, OutcomeUnknown, RolledBack
from ..disks.faulty import FaultyFiles, is_log
from ..disks.quiet import quiet_env
from ..support.contract import BULK, Contract, check
from ..support.crash_images import log_of
from ..support.modelled import PATIENCE_S, Modelled
from ..support.raising import raises
from ..support.workload import Operation, Workload
from .commit_outcomes import Holding, Vetoing, is_undone, kept_with


def _attachments(kept: Modelled) -> int:
    directory = log_of(kept.path) / "attachments"
    return len(list(directory.iterdir())) if directory.exists() else 0


def _is_attachment(path: Path) -> bool:
    return path.parent.name == "attachments"


class BulkChecks(Contract):
    """What bulk loads are to a store."""

    @check(BULK)
    def test_a_bulk_load_is_one_transaction_in_its_place(self, work: Workload) -> None:
        """A bulk load is there whole when it returns, and after every crash from then on; views made before do not show
        it, and transactions before and after it stand."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            with kept_with(work, before) as kept:
                last, view = kept.last, kept.store.snapshot()
                txid = kept.bulk(1)
                kept.shows(txid)
                assert kept.store.positions().checkpointed >= txid, "a bulk load is not in the durable state"
                kept.compare(view)
                kept.recovered(kept.crash_image(), txid)
                kept.transact([*after, *work.numbered(2)])
                kept.bulk(3)
                kept.transact(after)
                kept.recovered(kept.crash_image(), kept.last)
                kept.compare(view)
                assert view.txid == last
                view.close()
                assert _attachments(kept) == 2
                kept.reopen()
                kept.write(4)
                kept.shows(kept.last)

        self.prove(claim, examples=4, before=work.operations(), after=work.operations())

    @check(BULK)
    def test_a_veto_keeps_a_bulk_load_out(self, work: Workload) -> None:
        """Plugins are asked of a bulk load as of any transaction, and are shown the load itself. One that is refused,
        before or after the last addition, ends `RolledBack` and leaves nothing, no file either."""
        def claim(before: list[Operation], moment: str) -> None:
            veto = Vetoing(moment)
            with kept_with(work, before, plugins=[veto]) as kept:
                def attempt() -> None:
                    veto.refuses = True
                    try:
                        kept.bulk(1)
                    finally:
                        veto.refuses = False

                is_undone(kept, attempt, RolledBack, f"a bulk load that was refused in {moment!r}")
                assert veto.bulk is not None, "the plugin was asked, and not shown the load"
                assert _attachments(kept) == 0, "the file of a load that was refused is there"
                kept.bulk(5)
                kept.shows(kept.last)

        self.prove(claim, examples=2, before=work.operations(), moment=st.sampled_from(("committing", "final")))

    @check(BULK)
    def test_a_bulk_load_without_room_leaves_nothing(self, work: Workload) -> None:
        """A bulk load whose file cannot be written ends `DiskFull`, leaves nothing, and may be tried again."""
        def claim(before: list[Operation], what: str) -> None:
            files = FaultyFiles()
            with kept_with(work, before, env=quiet_env(files)) as kept:
                def attempt() -> None:
                    files.fail(what, code=errno.ENOSPC, only=_is_attachment)
                    kept.bulk(1)

                is_undone(kept, attempt, CommitDiskFull, "a bulk load without room", files.heal)
                assert _attachments(kept) == 0, "the file of a load that never was is still there"
                kept.bulk(5)
                kept.shows(kept.last)

        self.prove(claim, examples=3, before=work.operations(), what=st.sampled_from(("create", "pwrite", "sync")))

    @check(BULK)
    def test_a_bulk_load_of_unknown_outcome_is_all_or_nothing(self, work: Workload) -> None:
        """A bulk load whose record cannot be written or synced ends `OutcomeUnknown`; reopening shows all of it or
        none, and no file of a load that never was stays."""
        def claim(before: list[Operation], what: str) -> None:
            files = FaultyFiles()
            with kept_with(work, before, env=quiet_env(files)) as kept:
                last = kept.last
                files.fail(what, only=is_log)
                with raises(OutcomeUnknown, f"a bulk load whose record could not be written ({what})"):
                    kept.bulk(1)
                files.heal()
                kept.models.append(kept.tried)
                kept.shows(last, "a poisoned store")
                kept.recovered(kept.crash_image(), last, kept.last)
                kept.store.close()
                kept.open()
                found = kept.store.published.txid
                assert last <= found <= kept.last, f"{found} are there; {last} were acknowledged, {kept.last} tried"
                del kept.models[found + 1 :]
                kept.digests.clear()
                kept.found(found)
                assert _attachments(kept) == found - last, "the files beside the log are not those that it names"
                kept.bulk(2)
                kept.shows(found + 1)

        self.prove(claim, examples=4, before=work.operations(), what=st.sampled_from(("pwrite", "datasync")))

    @check(BULK)
    def test_a_bulk_load_that_is_logged_is_there_after_a_crash(self, work: Workload) -> None:
        """A bulk load that is logged and not yet applied is nowhere to be seen, and is applied, whole, when its
        condition is met, or when the store is opened after a crash."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            plugin = Holding(gates=True)
            with kept_with(work, before, plugins=[plugin]) as kept, plugin:
                last, view = kept.last, kept.store.snapshot()
                plugin.answer = "open"
                with raises(ConditionNotMet, "a bulk load whose condition is open"):
                    kept.bulk(1)
                kept.models.append(kept.tried)
                kept.shows(last, "before the condition is met, the store")
                kept.recovered(kept.crash_image(), kept.last)
                plugin.let_go()
                kept.store.wait_published(last, PATIENCE_S)
                kept.shows(kept.last)
                kept.compare(view)
                view.close()
                kept.transact([*after, *work.numbered(2)])
                kept.reopen()

        self.prove(claim, examples=3, before=work.operations(), after=work.operations())
