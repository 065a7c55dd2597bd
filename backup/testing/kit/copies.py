"""Checks of copies: a full backup while the store is written, incrementals after it, and the compaction of their
log."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ....engine.contract.view import View
from ....engine.errors import Inconsistent, LogPruned
from ....engine.source.http.service import BackupService
from ....engine.source.local import LocalSource
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.crash_images import tree
from ....engine.testing.support.interleave import Beside
from ....engine.testing.support.leak_detection import descriptors
from ....engine.testing.support.raising import raises
from ....engine.testing.support.workload import Workload
from ...connection import Connection
from ...info import info, transactions
from ..world import Histories, histories, seen_in, world

MOMENT_S = 0.5
BETWEEN = ("nothing", "checkpoint", "reopen", "compact")
"""What may happen before an incremental."""


class CopyChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_backup_over_http_while_threads_write(self, work: Workload) -> None:
        """A backup over HTTP, taken while threads commit and checkpoint, is exactly of the transaction that it names,
        which is no earlier than the last one acknowledged before it began; and so is an incremental after it."""
        token = "a token for one check"
        service = BackupService(online_backup_server="127.0.0.1:0", token=token.replace(" ", "-"))
        with world(work, plugins=[service]) as w:
            w.add(3)
            w.store.checkpoint()
            uri = w.store.backup_uri
            stop = False

            def write(numbers: range) -> None:
                for n in numbers:
                    if stop:
                        return
                    with w.store.transaction() as tx:
                        model = w.models[-1].copy()
                        work.run(tx, model, work.numbered(n))
                        w.models.append(model)  # in the order of the log, since the writer lock is held
                    if n % 5 == 0:
                        w.store.checkpoint()

            writers = [Beside(0), Beside(0)]
            ends = []
            try:
                for writer, start in zip(writers, (1000, 2000), strict=True):
                    writer.run(partial(write, range(start, start + 60)))
                for _ in range(3):
                    acknowledged = w.store.published.txid
                    report = w.back_up(source=uri, connection=Connection(token=token.replace(" ", "-")))
                    assert report.to_txid >= acknowledged, (
                        f"{acknowledged} was acknowledged before the backup, which ends at {report.to_txid}")
                    ends.append(report.to_txid)
            finally:
                stop = True
                for writer in writers:
                    writer.finish()
            for end in sorted({w.bounds().first, *ends}):
                place, _ = w.restored(end)
                with seen_in(f"the store that was restored to transaction {end}"):
                    w.compare_closed(place, end)

    @check()
    def test_incrementals_make_what_a_full_backup_makes(self, work: Workload) -> None:
        """A full backup and any chain of incrementals, with reopenings, checkpoints and compactions between them, equal
        a
        fresh full backup: the same content, the same digest."""

        def claim(chain: list[tuple[str, Histories]]) -> None:
            with world(work) as w:
                w.add()
                w.back_up()
                for between, history in chain:
                    w.commit_all(history)
                    if between == "reopen":
                        w.reopen()
                    elif between == "checkpoint":
                        w.store.checkpoint()
                    report = w.compact() if between == "compact" else w.back_up()
                    assert report.kind == "incremental", f"it was {report}"
                    assert report.to_txid == w.last, f"the incremental ends at {report.to_txid}, not {w.last}"
                fresh = w.root / "fresh"
                assert w.back_up(fresh).kind == "full"
                w.compare_target(w.last, fresh)
                w.compare_target(w.last)

        link = st.tuples(st.sampled_from(BETWEEN), histories(work, 2))
        self.prove(claim, examples=4, chain=st.lists(link, min_size=1, max_size=4))

    @check()
    def test_a_compacted_backup_equals_the_store(self, work: Workload) -> None:
        """Compacting the log into the image changes only the first restore point, which is then the compaction's. What
        comes after it can be restored as before."""
        with world(work) as w:
            w.add()
            w.store.checkpoint()
            w.back_up()
            w.add(2)
            report = w.compact()
            assert report.compacted, "the log was not compacted"
            assert (report.bounds.first, report.bounds.last) == (w.last, w.last), f"it restores to {report.bounds}"
            w.compare_target(w.last)
            w.add(2)
            assert w.back_up().kind == "incremental"
            w.compare_points()

    @check()
    def test_an_inconsistent_copy_is_no_backup(self, work: Workload) -> None:
        """A copy in which the engine's own check finds something does not become the backup. If it was the first one,
        there is no backup. If it was a later one, the backup in force stays so."""
        suspicious = _suspicious(work)
        with world(work) as w:
            w.add()
            with raises(Inconsistent, "a backup of what the engine's check finds wrong"):
                w.back_up(engine=suspicious)
            left = [path.name for path in w.target.iterdir() if path.name != "LOCK"]
            assert not left, f"a backup that was found inconsistent left {left}"
            w.back_up()
            w.lose_log()
            w.refused(Inconsistent, "a full backup of what the engine's check finds wrong",
                      lambda: w.back_up(engine=suspicious))
            w.compare_target(1)

    @check()
    def test_looking_at_a_backup_changes_no_byte(self, work: Workload) -> None:
        """Verify, info, a listing of its transactions, a read-only opening and a restore leave a backup as it is, to
        the byte, and leave nothing beside it."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            w.back_up_busily(w.add, w.store.checkpoint, w.add)
            w.add()
            w.back_up()
            before, beside = _stamped(w.target), sorted(os.listdir(w.root))
            w.compare_target(w.last)
            info(w.target)
            listed = [record.txid for record in transactions(w.target)]
            assert listed[-1:] == [w.last], f"the backup lists transactions {listed}, and {w.last} was the last"
            after = _stamped(w.target)
            changed = sorted(name for name in before | after if before.get(name) != after.get(name))
            assert not changed, f"looking at the backup changed {changed}"
            assert sorted(os.listdir(w.root)) == beside, f"looking left {sorted(os.listdir(w.root))} beside it"

    @check()
    def test_a_backup_leaves_nothing_held(self, work: Workload) -> None:
        """After a backup, a verification and a restore, no lease is held and no file is open that was not before."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            w.back_up(w.root / "first")
            before = set(descriptors().values())
            w.add()
            w.back_up_busily(w.add, w.store.checkpoint)
            w.compact()
            w.compare_target(w.last)
            leases = LocalSource(w.store).leases()
            assert not leases, f"leases are still held: {leases}"
            w.reopen()  # so that the log's own files are those of a store that was just opened
            w.store.checkpoint()
            own = f"{w.store.directory}/"  # what an engine has open there by now may have other names than before
            leaked = _left_open(w.root, before, own)
            assert not leaked, f"these were left open: {sorted(leaked)}"

    @check()
    def test_pruning_keeps_what_a_running_backup_needs(self, work: Workload) -> None:
        """While a backup runs, pruning takes none of the log that it needs, even if nobody else needs it. Once it is
        over, that log can be pruned, except for what the next incremental needs."""
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()

            def prune() -> None:
                for _ in range(3):
                    w.add(2)
                    w.seal()
                w.add()
                w.store.checkpoint()
                w.forget_target()

            w.back_up_busily(prune)
            w.compare_target(w.last)
            w.store.prune()
            base = w.store.log.base.txid
            assert base > 2, f"the backup is over, and the log that it needed is still kept, from {base + 1} on"
            end = w.last
            for _ in range(3):
                w.add(2)
                w.seal()
            w.add()
            w.store.checkpoint()
            w.store.prune()
            assert w.store.log.base.txid <= end, "the log after the backup was pruned, although its target registered"
            assert w.back_up().kind == "incremental"
            w.compare_restored()

    @check()
    def test_where_log_was_pruned_the_backup_is_a_new_full_one(self, work: Workload) -> None:
        """If the store no longer has the log for an incremental, a full backup takes its place, and says why; with the
        fallback turned off it is an error, and the target stays as it was."""
        with world(work) as w:
            w.add()
            before = w.back_up()
            w.lose_log()
            w.refused(LogPruned, "an incremental whose log is gone", lambda: w.back_up(fallback=False))
            w.compare_target(1)
            report = w.back_up()
            assert (report.kind, report.target_id) == ("full", before.target_id), f"it was {report}"
            assert report.why, "a full backup instead of an incremental does not say why"
            w.compare_target(w.last)
            generations = [path.name for path in w.target.iterdir() if path.name.startswith("gen-")]
            assert len(generations) == 1, f"old generations are left: {generations}"

def _suspicious(work: Workload) -> type[Any]:
    """The workload's engine, with a check that always finds something."""

    class Suspicious(View):
        def __init__(self, view: View) -> None:
            self._view = view

        @property
        def txid(self) -> int:
            return self._view.txid

        def digest(self) -> bytes:
            return self._view.digest()

        def check(self) -> Any:
            yield "the check was told to find something"

        def close(self) -> None:
            self._view.close()

    def view(self: Any) -> View:
        return Suspicious(work.engine.view(self))

    return type("SuspiciousEngine", (work.engine,), {"view": view})


def _stamped(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a directory: its bytes, and when it was last written."""
    return {name: (content, (path / name).stat().st_mtime_ns) for name, content in tree(path).items()}


def _left_open(root: Path, before: set[str], own: str) -> set[str]:
    """The files below a directory that this process has open and had not `before`. Of the store's `own`, only those
    that are deleted count; what its maintenance has open for a moment does not."""

    def left() -> set[str]:
        return {name for name in descriptors().values() if name.startswith(f"{root}/") and name not in before
                and (not name.startswith(own) or name.endswith(" (deleted)"))}

    deadline = time.monotonic() + MOMENT_S
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    return left()
