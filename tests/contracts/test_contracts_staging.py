"""The contract suites on the staging engine."""

from __future__ import annotations

from workloads import FEWER_IN_CI, WORKLOADS

from holdfast.backup.testing import BackupContract
from holdfast.backup.testing.kit import KitContract
from holdfast.engine.testing import EngineContract
from holdfast.replay.testing import ClusterContract, ReplayContract


class TestStaging(KitContract, BackupContract, ClusterContract, ReplayContract, EngineContract):
    workload = staticmethod(WORKLOADS["staging"])
    profile = FEWER_IN_CI
