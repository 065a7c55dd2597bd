"""A script for a log on a simulated disk, and what must be found of it after a crash."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from holdfast.engine.env import Env
from holdfast.engine.model.positions import Branch, History, origin
from holdfast.engine.model.records import Record
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.writer import LogOptions

DIRECTORY = Path("/log")
STORE_ID = b"store id 16bytes"
START = origin(STORE_ID)
HISTORY = History(STORE_ID, (Branch(b"branch id 16 byt", START),))
SMALL = LogOptions(segment_bytes=128 << 10, group_bytes=64 << 10)
GROWING = LogOptions(segment_bytes=128 << 10, preallocate=False)


@dataclass
class Script:
    """A run on a disk: its operations, and how many of them had been done when each transaction was acknowledged."""

    disk: SimDisk
    log: Log
    env: Env
    records: list[Record] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)  # operations done, txid
    pruned: list[tuple[int, int]] = field(default_factory=list)  # operations done before a pruning, new base

    def append(self, *payloads: bytes) -> None:
        """One group."""
        for payload in payloads:
            self.records.append(self.log.writer.append(payload, 1))
        self.log.writer.sync()
        self.acknowledged.append((len(self.disk.ops), self.records[-1].txid))

    def prune(self, count: int) -> None:
        doomed = self.log.segments()[:count]
        self.pruned.append((len(self.disk.ops), doomed[-1].last))
        self.log.prune(doomed)

    def acked_at(self, ops: int) -> int:
        return max((txid for done, txid in self.acknowledged if done <= ops), default=0)

    def base_at(self, ops: int) -> int:
        """The latest base that the log may have when cut off after so many operations."""
        return max((base for done, base in self.pruned if done < ops), default=0)


def begin(options: LogOptions = SMALL, disk: SimDisk | None = None) -> Script:
    disk = disk or SimDisk()
    env = quiet_env(disk)
    return Script(disk, Log.create(DIRECTORY, HISTORY, START, engine="memory", options=options, env=env), env)


@cache
def payload(n: int, size: int) -> bytes:
    return bytes((n * 37 + i * (i // 5 + 1)) % 251 + 1 for i in range(size))


def everything(options: LogOptions) -> Script:
    script = begin(options)
    go_through(script, options)
    return script


def go_through(script: Script, options: LogOptions) -> None:
    """Groups of one and of many, a spare, rotations, an oversized record, a heartbeat, a seal, a reopening, a new
    branch, a pruning, two openings that go on in the last segment."""
    script.append(b"one")
    script.append(b"two", b"three", payload(4, 3000))
    if options.preallocate:
        script.log.writer.prepare_spare()
    beat = script.log.writer.heartbeat()
    assert beat is not None
    script.log.writer.write(beat)
    script.append(payload(5, 40_000))
    script.append(payload(6, 60_000), b"seven")
    script.append(payload(8, 30_000))
    script.append(payload(9, 200_000), b"ten")
    script.log.close()
    script.log = Log.open(DIRECTORY, options=options, env=script.env)
    script.append(b"eleven")
    script.log.writer.extend_history(script.log.history.extended(b"another branch 1", script.log.end))
    script.append(b"twelve", payload(13, 700))
    script.prune(2)
    script.append(b"fourteen")
    script.log.close()
    for n in (15, 16):  # in the last segment, which is small
        script.log = Log.open(DIRECTORY, options=options, env=script.env)
        script.append(payload(n, 300))
        script.log.close()
    assert [s.last for s in script.log.segments()][-2:] == [11, 16]


def opened(disk: SimDisk, options: LogOptions, seed: int = 1) -> Log:
    env = quiet_env(disk, clock=SetClock(1_800_000_000_000_000), seed=seed)
    return Log.open(DIRECTORY, options=options, env=env)


def assert_prefix(log: Log, script: Script, ops: int, *, grown: bytes | None = None) -> int:
    """The log holds base+1..n of the script (and perhaps one record more, `grown`); n."""
    held = list(log.read(log.base.txid))
    n = held[-1].txid if held else log.base.txid
    assert log.end == (held[-1].position if held else log.base)
    if grown is not None:
        assert held.pop().payload == grown
        n -= 1
    assert log.base.txid <= script.base_at(ops)
    assert n >= script.acked_at(ops)
    for record in held:
        original = script.records[record.txid - 1]
        assert (record.header, record.payload, record.chain) == (original.header, original.payload, original.chain)
    assert log.history.branches[0] == HISTORY.branches[0]
    return n


def made_at(script: Script) -> int:
    """How many operations it took to create the log: before that a store is not one yet."""
    return next(i for i, op in enumerate(script.disk.ops) if op.kind == "sync names" and op.label == "log") + 1
