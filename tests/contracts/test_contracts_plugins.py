"""The plugin contract on the backup service, and on one plugin of each kind: it looks, adds, refuses, holds, keeps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from workloads import JournalWorkload, staging

from holdfast.engine import BackupService
from holdfast.engine.builtin.memory import MemoryTransaction
from holdfast.engine.contract.plugin import Condition, Plugin, StoreHandle
from holdfast.engine.contract.transaction import Transaction
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange, Record, SegmentInfo
from holdfast.engine.testing.plugin import PluginContract
from holdfast.engine.testing.plugin.maps import memory_map
from holdfast.engine.testing.support.workload import Operation


class Gauge(Plugin):
    """Observes: how far the store got."""

    def __init__(self) -> None:
        self.published_txid = self.checkpointed_txid = 0
        self.faults: list[BaseException] = []

    def published(self, records: Sequence[Record]) -> None:
        self.published_txid = records[-1].txid

    def checkpointed(self, position: Position) -> None:
        self.checkpointed_txid = position.txid

    def fault(self, error: BaseException) -> None:
        self.faults.append(error)


class Stamp(Plugin):
    """Adds: each transaction says how many keys it sets."""

    def committing(self, tx: Transaction) -> None:
        assert isinstance(tx, MemoryTransaction)
        if tx.changes:
            tx.put(b"keys of the last transaction", b"%d" % len(tx.changes))


class Unique(Plugin):
    """Refuses transactions and loads that set a key twice as long as others."""

    def final(self, tx: Transaction) -> None:
        assert isinstance(tx, MemoryTransaction)
        for key in tx.changes if tx.bulk is None else tx.bulk:
            if len(key) > 100:
                raise ValueError(f"{key[:10]!r}… is too long for us")


class Replica(Plugin):
    """Holds: a thread stands for the other side, which has each range some time after it is asked to."""

    def __init__(self) -> None:
        self._ranges: queue.SimpleQueue[tuple[LogRange, Future[None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def opened(self, store: StoreHandle) -> None:
        self._thread = threading.Thread(target=self._acknowledge, name="replica", daemon=True)
        self._thread.start()

    def _acknowledge(self) -> None:
        while (asked := self._ranges.get()) is not None:
            asked[1].set_result(None)

    def logged(self, batch: LogRange) -> Condition | None:
        met: Future[None] = Future()
        self._ranges.put((batch, met))
        return Condition(met=met, timeout=30.0, gates_publication=True, name="the replica")

    def closing(self, store: StoreHandle) -> None:
        self._ranges.put(None)
        assert self._thread is not None
        self._thread.join()


class Archive(Plugin):
    """Vetoes: keeps the log until it was told that it is somewhere else."""

    def __init__(self) -> None:
        self.archived = False

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        return None if self.archived else f"{len(segments)} segments are not archived yet"


class TestBackupService(PluginContract):
    plugin = BackupService


class TestGauge(PluginContract):
    plugin = Gauge


class TestStamp(PluginContract):
    plugin = Stamp
    workload = staticmethod(memory_map)
    adds = True


class TestUnique(PluginContract):
    plugin = Unique
    workload = staticmethod(memory_map)
    refuses = True

    def refused(self) -> list[Operation]:
        return [("put", b"k" * 101, b"")]


class TestUniqueOfLoads(TestUnique):
    workload = staticmethod(staging)

    def refused_load(self) -> dict[bytes, bytes]:
        return {b"k" * 101: b""}


class TestReplica(PluginContract):
    plugin = Replica
    holds = gates = True


class TestReplicaOfAJournal(PluginContract):
    plugin = Replica
    workload = JournalWorkload
    holds = gates = True


class TestArchive(PluginContract):
    plugin = Archive
    vetoes = True

    def end_veto(self, plugin: Plugin) -> None:
        assert isinstance(plugin, Archive)
        plugin.archived = True
