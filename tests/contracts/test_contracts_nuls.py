"""The suites on right engines whose payloads end in bytes that look like nothing.

A segment of the log is filled with zeros before it is written. A check that took the last byte that is none for the
log's end overwrote the end of a payload that ended in NULs, and blamed the engine for what it had lost.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from staging_memory import StagingMemory
from workloads import NUMBERED, TYPES, GraphWorkload, JournalWorkload, RecordsWorkload, keyed

from holdfast.backup.testing.kit import KitContract
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.testing import PROFILES, Operation, Workload

CHECK = "test_what_is_committed_is_in_every_crash_image"


def _ending(number: int, nuls: int) -> bytes:
    return b"number %d" % number + bytes(nuls)


def _keyed(nuls: int, engine: type, **more: bool) -> Workload:
    return keyed(engine, number=lambda n: (b"number %d" % n, _ending(n, nuls)), **more)


class _Records(RecordsWorkload):
    nuls = 0

    def numbered(self, number: int) -> list[Operation]:
        return [("insert", _ending(number, self.nuls))]

    def shows(self, content: dict[int, bytes], number: int) -> bool:
        return _ending(number, self.nuls) in content.values()


class _Journal(JournalWorkload):
    nuls = 0

    def numbered(self, number: int) -> list[Operation]:
        return [("append", _ending(number, self.nuls))]

    def shows(self, content: dict[int, bytes], number: int) -> bool:
        return _ending(number, self.nuls) in content.values()


class _Graph(GraphWorkload):
    nuls = 0

    def numbered(self, number: int) -> list[Operation]:
        props = {"n": number, "q": bytes(self.nuls)}
        return [("add_node", (NUMBERED,), props), ("add_edge", -1, TYPES[0], -1, props)]


def _with(work: type[_Records | _Journal | _Graph], nuls: int) -> Workload:
    made = work()
    made.nuls = nuls
    return made


MADE: dict[str, Callable[[int], Workload]] = {
    "memory": lambda nuls: _keyed(nuls, MemoryEngine),
    "staging": lambda nuls: _keyed(nuls, StagingMemory),
    "sqlite": lambda nuls: _keyed(nuls, SqliteEngine, above_env=False),
    "rocksdb": lambda nuls: _keyed(nuls, RocksEngine, above_env=False),
    "records": lambda nuls: _with(_Records, nuls),
    "journal": lambda nuls: _with(_Journal, nuls),
    "graph": lambda nuls: _with(_Graph, nuls),
}


@pytest.mark.parametrize("nuls", [2, 4096])
@pytest.mark.parametrize("engine", MADE)
def test_a_payload_may_end_in_nuls(engine: str, nuls: int) -> None:
    """What the last payload ends in is the engine's own, and no check takes it for room that is not yet written."""
    suite = type("TestNuls", (KitContract,), {"workload": MADE[engine](nuls), "quiet": True,
                                                 "profile": PROFILES["default"]})()
    getattr(suite, CHECK)()
