"""A member whose power is cut at every point of what a follower does: it opens, shows a prefix, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from staging_memory import StagingMemory
from workloads import WORKLOADS

from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.store.replica import Replica
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import power_cuts

HERE = Path("/store")
SETTINGS = Settings(segment_bytes=128 << 10, heartbeat_s=0)
TRIES = current_profile().crash_states


class Script:
    """What a member did on a simulated disk, and after which operation of the disk each step had ended.

    Attributes:
        records: the history of the cluster: what the member appends, in order.
        steps: (operations done, step) for each step that had ended.
    """

    def __init__(self, kind: str) -> None:
        self.work = WORKLOADS[kind]()
        self.disk = SimDisk()
        self.open(self.disk, None).close()
        primary = self.open(self.disk.copy(), None)
        self.expected: dict[int, Any] = {0: self.shown(primary)}
        for n in range(1, 10):
            if n in (3, 6):
                primary.write_path.mark()
            else:
                with primary.transaction() as tx:
                    self.write(tx, n)
            self.expected[n] = self.shown(primary)
        self.records: list[Record] = list(primary.log.read(0))
        self.began = len(self.disk.ops)
        self.steps: list[tuple[int, str]] = []

    def write(self, tx: Any, n: int) -> None:
        if hasattr(tx, "put"):
            tx.put(b"key%d" % (n % 4), b"%d" % n * 3000)
        else:
            tx.insert(b"%d" % n * 100)

    def open(self, disk: SimDisk, replica: int | None, seed: int = 1) -> Store[Any, Any]:
        return Store.open(HERE, self.work.engine, options=self.work.options, settings=SETTINGS,
                          env=quiet_env(disk, seed=seed), replica=replica)

    def shown(self, store: Store[Any, Any]) -> Any:
        with store.snapshot() as view:
            assert list(view.check()) == []
            return view.digest()

    def run(self) -> None:
        store = self.open(self.disk, 0)
        replica = store.replica
        assert replica is not None
        self.aside: list[int] = []
        self.note("open")
        replica.append(self.records[:4])
        self.note("append 4")
        replica.publish(2)
        self.note("publish 2")
        store.checkpoint()
        self.note("checkpoint")
        replica.publish(3)
        replica.append(self.records[4:7])
        self.note("append 7")
        replica.start_epoch(5, b"n" * 16)
        self.note("epoch")
        replica.cut(self.records[4].position, lambda record: self.aside.append(record.txid))
        self.note("cut 5")
        assert len(store.history.branches) == 1
        replica.append(self.records[5:])
        self.note("append 9")
        replica.publish(9)
        self.note("publish 9")
        store.close()
        self.note("close")

    def note(self, step: str) -> None:
        self.steps.append((len(self.disk.ops), step))

    def least(self, ops: int) -> int:
        """The transaction up to which the member must be durable after so many operations."""
        kept = {"append 4": 4, "append 7": 5, "cut 5": 5, "append 9": 9}  # of 7, the cut may leave 5
        return max([kept.get(step, 0) for at, step in self.steps if at <= ops], default=0)


@pytest.mark.parametrize("kind", ["memory", "staging", "records"])
def test_a_member_opens_after_a_power_cut_at_every_point(kind: str) -> None:
    script = Script(kind)
    script.run()
    ends = dict(script.steps)
    assert script.aside == [6, 7, 8]
    tried: set[bytes] = set()
    cut_after = 0
    chains = {record.txid: record.chain for record in script.records}
    for ops, at in enumerate(SimDisk().points(script.disk.ops)):
        if ops < script.began:
            continue
        for left in power_cuts(at, tries=TRIES, salt=ops):
            if (key := left.digest()) in tried:
                continue
            tried.add(key)
            store = script.open(left, 0, seed=3)
            replica = store.replica
            assert isinstance(replica, Replica)
            assert not left.exists(store.log.directory / "CUT")
            store.log.verify()
            durable, published = store.durable.txid, store.published.txid
            assert durable >= script.least(ops), f"after {ops} operations, {ends}"
            assert script.shown(store) == script.expected[published]
            same = [record.txid for record in store.log.read(0) if chains.get(record.txid) == record.chain]
            assert same == list(range(1, len(same) + 1))
            if durable > len(same):
                assert [r.epoch for r in store.log.read(len(same))] == [5]  # the epoch that is cut
                assert replica.last_epoch == 5
                cut_after += 1
                replica.cut(Position(len(same), store.log.chain_at(len(same))), lambda record: None)
            replica.append(script.records[len(same):])
            replica.publish(9)
            assert script.shown(store) == script.expected[9]
            assert [record.chain for record in store.log.read(0)] == list(chains.values())
    assert cut_after
    assert len(tried) > 50


@pytest.mark.parametrize("after", [0, 4, 5, 6, 12])
def test_a_cut_is_finished_from_every_point_of_its_own(after: int) -> None:
    """Cuts over several segments, at a segment's end and in the middle of a group; and what finishes them is cut off at
    each point too."""
    disk = SimDisk()

    def opened(on: SimDisk, seed: int = 1) -> Store[Any, Any]:
        return Store.open(HERE, StagingMemory, settings=SETTINGS, env=quiet_env(on, seed=seed), replica=0)

    store = opened(disk)
    store.close()
    primary = Store.open(HERE, StagingMemory, settings=SETTINGS, env=quiet_env(disk.copy(), seed=2))
    for n in range(14):
        with primary.transaction() as tx:
            tx.put(b"%d" % n, b"%d" % n * 9000)
    records = list(primary.log.read(0))
    store = opened(disk, 4)
    assert store.replica is not None
    store.replica.append(records[:5])
    store.replica.append(records[5:])
    assert len(store.log.segments()) > 1
    place = Position(after, store.log.chain_at(after))
    began = len(disk.ops)
    store.replica.cut(place, lambda record: None)
    tried: set[bytes] = set()
    intended = False
    for ops, at in enumerate(SimDisk().points(list(disk.ops))):
        if ops < began:
            continue
        for left in power_cuts(at, tries=TRIES, salt=ops):
            if (key := left.digest()) in tried:
                continue
            tried.add(key)
            begun = left.exists(store.log.directory / "CUT")
            intended |= begun
            recovering = left.copy()
            again = opened(recovering, 5)
            assert again.durable in ({place} if begun else {place, records[-1].position})
            again.log.verify()
            if not begun:
                continue
            assert again.replica is not None
            for middle in left.points(recovering.ops):
                for lefter in power_cuts(middle, tries=2, salt=ops):
                    if (key := lefter.digest()) not in tried:
                        tried.add(key)
                        assert opened(lefter, 6).durable == place
    assert intended
