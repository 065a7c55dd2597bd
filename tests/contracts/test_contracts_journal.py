"""The contract suites on an engine whose workload compares everything that a transaction answers with the model."""

from __future__ import annotations

from workloads import FEWER_IN_CI, JournalWorkload

from holdfast.backup.testing import BackupContract
from holdfast.backup.testing.kit import KitContract
from holdfast.engine.testing import EngineContract
from holdfast.replay.testing import ClusterContract, ReplayContract


class TestJournal(KitContract, BackupContract, ClusterContract, ReplayContract, EngineContract):
    workload = JournalWorkload
    profile = FEWER_IN_CI
