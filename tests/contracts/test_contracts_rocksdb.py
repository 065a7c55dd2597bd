"""The contract suites on the RocksDB engine."""

from __future__ import annotations

from workloads import WORKLOADS

from holdfast.backup.testing import BackupContract
from holdfast.backup.testing.kit import KitContract
from holdfast.engine.testing import EngineContract
from holdfast.replay.testing import ReplayContract


class TestRocksdb(KitContract, BackupContract, ReplayContract, EngineContract):
    workload = staticmethod(WORKLOADS["rocksdb"])
