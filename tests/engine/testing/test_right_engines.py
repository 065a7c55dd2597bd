"""Engines that are right, and that the suites once blamed."""

from __future__ import annotations

from collections.abc import Mapping

from workloads import FEWER_IN_CI, keyed

from holdfast.backup.testing import BackupContract
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction
from holdfast.engine.env.system import system_errors
from holdfast.engine.testing import EngineContract, Workload
from holdfast.engine.testing.engine.power_cuts import PowerCutChecks
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
    profile = FEWER_IN_CI


class ReadsItsFile(MemoryEngine):
    """A transaction reads the state's file, as one of an engine does that has no copy in memory. If it may not open it,
    it says why, and is dropped."""

    class Tx(MemoryTransaction):
        def __init__(self, state: Mapping[bytes, bytes], engine: MemoryEngine) -> None:
            super().__init__(state)
            self.engine = engine

        def put(self, key: bytes, value: bytes) -> None:
            with system_errors("cannot read the state"):
                self.engine._env.files.open(self.engine._directory / "state").close()
            super().put(key, value)

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state, self)


def reads_its_file() -> Workload:
    return keyed(ReadsItsFile)


class TestReadsItsFile(PowerCutChecks):
    workload = staticmethod(reads_its_file)
