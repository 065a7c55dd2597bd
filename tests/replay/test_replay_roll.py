"""A copy of a log: what the source announced is what it must send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from log_world import HISTORY, START, World

from holdfast.engine.errors import Diverged, SourceUnavailable
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.wal.log import Log
from holdfast.replay.roll import fetch

HERE = Path("/copy")


class Sending:
    """A source that sends these records, whatever it is asked for."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        return iter(self.records)


def copied(records: list[Record], upto: Position) -> Log:
    """The log of a copy of what a source sends that has said that it ends at `upto`."""
    log = Log.create(HERE, HISTORY, START, engine="memory", env=quiet_env(SimDisk()))
    source: Any = Sending(records)
    try:
        fetch(source, "a lease", log, upto, HISTORY)
    finally:
        assert log.end == (records[-1].position if records else START), "what came is kept"
    return log


def test_what_was_said_is_taken() -> None:
    records = World().commit(b"one", b"two", b"three")
    assert [r.txid for r in copied(records, records[-1].position).read(0)] == [1, 2, 3]


def test_another_end_than_was_said_is_refused() -> None:
    """The same number with another chain, or more than was said: a source that has become another one meanwhile."""
    records = World().commit(b"one", b"two", b"three")
    for said in (Position(3, bytes(16)), records[1].position):
        with pytest.raises(Diverged, match="the source announced"):
            copied(records, said)
    with pytest.raises(SourceUnavailable, match="stopped at transaction 2"):
        copied(records[:2], records[2].position)
