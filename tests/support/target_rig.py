"""A source and a target on two simulated disks: what is done to the target's, and what must be there after a crash. The
expected state is the source's model, which is on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast import backup
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.env import Env, Task
from holdfast.engine.errors import HoldfastError, TargetInvalid
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store
from holdfast.engine.testing import Workload, current_profile
from holdfast.engine.testing.disks.quiet import QuietScheduler, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import Dropped, power_cuts
from holdfast.engine.testing.disks.simfaults import DiskFault, Injected, faults_of
from holdfast.engine.testing.support.counters import count
from holdfast.engine.testing.support.simulated_run import SETTINGS, Run

TARGET, DEST = Path("/backups/target"), Path("/stores/restored")


class TargetScheduler(QuietScheduler):
    """Only what a copy cannot do without runs: who reads ahead does so in a thread, which touches no target; a sync
    that would run beside the next write is done at once; nobody renews leases, since no time passes."""

    def condition(self, lock: Any = None) -> Any:
        return super(QuietScheduler, self).condition(lock)

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        if name == "holdfast-read-ahead":
            return super(QuietScheduler, self).spawn(name, work)
        if name == "holdfast-copy-sync":
            work()
            return Task(None)
        return super().spawn(name, work)


class KeptLeases(LocalSource):
    """A source that still knows the leases of a run that died: `died` are kept."""

    def __init__(self, store: Store[Any, Any]) -> None:
        super().__init__(store)
        self.died: set[str] = set()
        self.dying = False

    def release(self, lease_id: str) -> None:
        if self.dying:
            self.died.add(lease_id)
        if lease_id not in self.died:
            super().release(lease_id)

    def forget(self) -> None:
        """Release the leases of those who died."""
        for lease_id in self.died:
            super().release(lease_id)
        self.died.clear()


class World:
    """A source store that is written to, and a target.

    Attributes:
        source: the run of the source, with the models of its transactions.
        disk: the target's.
        limits: the image has several chunks: that of the records grows by 64 KiB, others by little.
        keep: how long restore points are kept, unless a run is told otherwise.
        acked: the transaction that the last backup run that returned ended at; None before the first.
    """

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.source = Run(work)
        self.source.do(("open",))
        self.follow()
        self.disk = SimDisk()
        self.acked: int | None = None
        self.keep = "none"
        self.limits = backup.Limits(chunk_bytes=50_000 if issubclass(work.engine, RecordsEngine) else 100)
        self._number = 0

    def follow(self) -> None:
        """The source's store was opened."""
        self.local = KeptLeases(self.source.store)

    def env(self, disk: SimDisk) -> Env:
        return replace(quiet_env(disk, seed=7), scheduler=TargetScheduler())

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            self._number += 1
            self.source.do(("commit", self.work.numbered(self._number)))

    def back_up(self, disk: SimDisk | None = None, **policy: Any) -> backup.Report:
        """A run to its end; on this world's disk, without another."""
        report = backup.run(self.local, TARGET, engine=self.work.engine, env=self.env(disk or self.disk),
                            policy=backup.Policy(**{"keep_points": self.keep, "limits": self.limits, **policy}))
        if disk is None:
            self.acked = report.to_txid
        return report

    def restore(self, disk: SimDisk, **how: Any) -> backup.RestoreReport:
        return backup.restore(TARGET, DEST, engine=self.work.engine, env=self.env(disk), **how)

    # --- what is there ---------------------------------------------------------------------------------------------

    def is_whole(self, disk: SimDisk, least: int | None) -> int | None:
        """The target is a backup, is verified, and shows the model at its end, which is returned; or none is there,
        which is right only where no run has returned."""
        try:
            report = backup.verify(TARGET, engine=self.work.engine, env=self.env(disk))
        except TargetInvalid:
            if least is None:
                return None
            raise
        last = report.bounds.last
        assert last >= (least or 0), f"the backup ends at transaction {last}, and a run to {least} had returned"
        self.shows(disk, TARGET, last, read_only=True)
        return last

    def shows(self, disk: SimDisk, path: Path, txid: int, **how: Any) -> Store[Any, Any]:
        """A store there is at `txid` and shows its model."""
        store: Store[Any, Any] = Store.open(path, self.work.engine, create=False, settings=SETTINGS,
                                            env=self.env(disk), **how)
        assert store.published.txid == txid, f"{path} ends at transaction {store.published.txid}, not {txid}"
        with store.snapshot() as view:
            expected = self.work.expected(self.source.models[txid])
            assert self.work.content(view) == expected, f"{path} at transaction {txid} is not what was written"
            assert list(view.check()) == []
        return store

    def is_tidy(self, disk: SimDisk) -> None:
        assert disk.list(TARGET.parent) == [TARGET.name], "something is left beside the target"
        names = [name for name in disk.list(TARGET) if name.startswith("gen-")]
        assert len(names) <= (1 if self.keep == "none" else 2), f"the target holds {names}"
        assert not any(name.endswith(".partial") for name in names), f"the target holds {names}"

    # --- crashes ---------------------------------------------------------------------------------------------------

    def crashes(self, what: Callable[[SimDisk], object], tries: int, *,
                thinned: bool = False) -> Iterator[tuple[SimDisk, bool]]:
        """Every disk, once, that a power cut may leave while `what` is done, and whether it had been done by then. If
        `thinned`, after as many of the operations as the profile wants."""
        recording = self.disk.copy()
        self.local.dying = True
        what(recording)
        self.local.dying = False
        seen: set[tuple[bytes, bool]] = set()
        points = enumerate(self.disk.points(recording.ops))
        for ops, at in current_profile().some(points) if thinned else points:
            done = ops == len(recording.ops)
            for left in (at.killed(), *power_cuts(at, tries=tries, salt=ops)):
                key = left.digest(), done
                if key not in seen:
                    seen.add(key)
                    yield left, done
        count("crash states", "target", len(seen))
        self.local.forget()

    def faults(self, what: Callable[[SimDisk], object]) -> Iterator[tuple[DiskFault, SimDisk, bool]]:
        """As many faults of the disk as the profile wants, while `what` is done. Each with what it leaves, to the next
        process and after a power cut, and whether it was done all the same."""
        clean = self.disk.copy()
        what(clean)
        for fault in current_profile().some(faults_of(clean.ops)):
            disk = self.disk.copy()
            injected = Injected(disk, fault)
            done = True
            try:
                what(disk)
            except (HoldfastError, OSError):
                done = False
            injected.heal()
            for left in (disk.crashed(Dropped()), disk.killed()):
                yield fault, left, done
