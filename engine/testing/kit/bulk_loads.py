"""Bulk loads on a real store: one transaction like any other, whose data is in a file beside the log.

A load is all there or not at all: when it returns, when there is no room for its file, when its record cannot be
written, when the process ends between logging and applying. Files that no record names are removed.
"""

from __future__ import annotations

import errno
from pathlib import Path

from hypothesis import strategies as st

from ...errors import CommitDiskFull, OutcomeUnknown, RolledBack
from ..disks.faulty import FaultyFiles, is_log
from ..disks.quiet import quiet_env
from ..support.contract import BULK, Contract, check
from ..support.modelled import kept_with
from ..support.raising import raises
from ..support.workload import Operation, Workload
from .commit_outcomes import Vetoing, is_undone


def _is_attachment(path: Path) -> bool:
    return path.parent.name == "attachments"


class BulkChecks(Contract):
    """Bulk loads on a store."""

    @check(BULK)
    def test_a_veto_keeps_a_bulk_load_out(self, work: Workload) -> None:
        """Plugins are asked about a bulk load as about any transaction, and are given the load itself. A load that is
        refused, before or after the last addition, raises `RolledBack` and leaves nothing, not even a file."""
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
                assert kept.attachments() == 0, "the file of a load that was refused is there"
                kept.bulk(5)
                kept.shows(kept.last)

        self.prove(claim, examples=2, before=work.operations(), moment=st.sampled_from(("committing", "final")))

    @check(BULK)
    def test_a_bulk_load_without_room_leaves_nothing(self, work: Workload) -> None:
        """A bulk load whose file cannot be written raises `DiskFull`, leaves nothing, and may be tried again."""
        def claim(before: list[Operation], what: str) -> None:
            files = FaultyFiles()
            with kept_with(work, before, env=quiet_env(files)) as kept:
                def attempt() -> None:
                    files.fail(what, code=errno.ENOSPC, only=_is_attachment)
                    kept.bulk(1)

                is_undone(kept, attempt, CommitDiskFull, "a bulk load without room", files.heal)
                assert kept.attachments() == 0, "the file of a load that never was is still there"
                kept.bulk(5)
                kept.shows(kept.last)

        self.prove(claim, examples=3, before=work.operations(), what=st.sampled_from(("create", "pwrite", "sync")))

    @check(BULK)
    def test_a_bulk_load_of_unknown_outcome_is_all_or_nothing(self, work: Workload) -> None:
        """A bulk load whose record cannot be written or synced raises `OutcomeUnknown`. Reopening shows all of it or
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
                assert last <= found <= kept.last, f"{found} of {kept.last} are there; {last} were acknowledged"
                del kept.models[found + 1 :]
                kept.digests.clear()
                kept.found(found)
                assert kept.attachments() == found - last, "the files beside the log are not those that it names"
                kept.bulk(2)
                kept.shows(found + 1)

        self.prove(claim, examples=4, before=work.operations(), what=st.sampled_from(("pwrite", "datasync")))
