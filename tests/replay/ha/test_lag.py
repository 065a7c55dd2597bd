"""Marks of what became durable, against plain lists: bytes and seconds are never too small, and close."""

from __future__ import annotations

import random

from holdfast.engine.model.records import Attachment, Record
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.replay.ha.lag import DENSE, Marks

BEFORE = 777, 1_000_000


def record(txid: int, time_us: int, size: int, attachment: Attachment | None = None) -> Record:
    return Record(txid, 1, time_us, 1, bytes(size), attachment, b"", bytes(16))


def test_marks_against_lists() -> None:
    clock = SetClock(step_us=0)
    clock.time_us = 10**15
    marks = Marks(quiet_env(SimDisk(), clock=clock), lambda txid: BEFORE)
    draw, all_of_them, txid = random.Random(7), dict[int, Record](), 100
    for _ in range(20_000):
        batch = []
        for _ in range(draw.randint(1, 5)):
            txid, clock.time_us = txid + 1, clock.time_us + 1000
            batch.append(record(txid, clock.time_us, draw.randint(0, 500)))
        all_of_them |= {r.txid: r for r in batch}
        marks.note(batch)
    assert sum(map(len, marks._levels)) < 2000
    assert marks.after(99) == (777, (clock.time_us - 1_000_000) / 1e6)  # from before the first mark
    size = 0
    for held in range(txid - 1, 99, -1):
        after = all_of_them[held + 1]
        size, age = size + len(after.payload), (clock.time_us - after.time_us) / 1e6
        told_bytes, told_age = marks.after(held)
        # Exact to a batch at first, which has up to 5 transactions, and then in proportion.
        assert size <= told_bytes <= size * (1 + 2 / DENSE) + 2500
        assert age <= told_age <= age * (1 + 2 / DENSE) + 0.005
    assert held == 100


def test_what_was_cut_does_not_count() -> None:
    clock = SetClock(step_us=0)
    clock.time_us = 10**15
    marks = Marks(quiet_env(SimDisk(), clock=clock), lambda txid: BEFORE)
    marks.note([record(1, 10**15, 10)])
    marks.note([record(2, 10**15, 1000), record(3, 10**15, 1000)])
    marks.note([record(2, 10**15, 5, Attachment("a" * 32 + ".att", 50, bytes(16)))])
    assert marks.after(1) == (55, 0.0)
    assert marks.after(0) == (65, 0.0)
