"""A log on a simulated disk, which serves as a fast one here, with a clock that moves a step each time it is asked."""

from __future__ import annotations

from pathlib import Path

from holdfast.engine.env import Env
from holdfast.engine.model.positions import Branch, History, origin
from holdfast.engine.model.records import Record
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.writer import LogOptions

HERE = Path("/log")
STORE_ID = b"store id 16bytes"
START = origin(STORE_ID)
HISTORY = History(STORE_ID, (Branch(b"branch id 16 byt", START),))
SMALL = LogOptions(segment_bytes=128 << 10, group_bytes=64 << 10)
GROWING = LogOptions(segment_bytes=128 << 10, preallocate=False)


class World:
    """A disk, a clock, and a log on them that may be closed and opened."""

    def __init__(self, options: LogOptions = SMALL, *, step_us: int = 1000) -> None:
        self.disk = SimDisk()
        self.clock = SetClock(step_us=step_us)
        self.env: Env = quiet_env(self.disk, clock=self.clock)
        self.options = options
        self.log = Log.create(HERE, HISTORY, START, engine="memory", options=options, env=self.env)

    def reopen(self, *, close: bool = True) -> Log:
        if close:
            self.log.close()
        self.log = Log.open(HERE, options=self.options, env=self.env)
        return self.log

    def commit(self, *payloads: bytes) -> list[Record]:
        records = [self.log.writer.append(p, 1) for p in payloads]
        self.log.writer.sync()
        return records

    def fill(self, count: int, size: int = 20_000) -> list[Record]:
        return [self.commit(b"%d" % i * (size // len(b"%d" % i)))[0] for i in range(count)]

    def names(self) -> list[str]:
        return self.disk.list(HERE)


def contents(log: Log, after: int = 0, upto: int | None = None) -> list[tuple[int, bytes]]:
    return [(r.txid, r.payload) for r in log.read(after, upto)]
