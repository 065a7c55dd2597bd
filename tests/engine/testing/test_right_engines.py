"""Engines that are right, and that the suites once blamed."""

from __future__ import annotations

from workloads import keyed

from holdfast.backup.testing import BackupContract
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction
from holdfast.engine.testing import EngineContract, Workload
from holdfast.replay.testing import ClusterContract, ReplayContract


class LogsOnlyChanges(MemoryEngine):
    """A put() of what is there already changes nothing, so there is nothing to log."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: bytes) -> None:
            before = dict(self.changes)
            super().put(key, value)
            if before.get(key, self._base.get(key)) == value:
                self.changes = before

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


def logs_only_changes() -> Workload:
    return keyed(LogsOnlyChanges)


class TestLogsOnlyChanges(BackupContract, ClusterContract, ReplayContract, EngineContract):
    workload = staticmethod(logs_only_changes)
