"""Restore points that are kept for a period: over a compaction, and over a full backup in the place of an incremental.

Both took every earlier point away, with exit 0 and a line on standard output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import SMALL, digest, digest_at, open_store, tree, write

from holdfast import backup
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import Damaged, InvalidInput, RestorePointOutOfRange, SettingError
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.quiet import SetClock

DAY = 86_400_000_000
HOUR = 3_600_000_000


class Kept:
    """A store whose clock is set, its target, and what each of its transactions looked like and when it was made."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.root, self.target = root, root / "target"
        self.clock = SetClock()
        self.env = Env(clock=self.clock, files=files or Files())
        self.store = open_store(root / "store", MemoryEngine, Env(clock=self.clock))
        self.digests = {0: digest(self.store)}
        self.times: dict[int, int] = {}

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.time_us += 1_000_000
            write(self.store, self.store.published.txid + 1)
            txid = self.store.published.txid
            self.digests[txid], self.times[txid] = digest(self.store), self.store.log.time_of(txid)

    def back_up(self, *, full: bool = False, **policy: Any) -> backup.Report:
        return backup.run(self.store, self.target, full=full, policy=backup.Policy(**policy), env=self.env)

    def lose_log(self) -> None:
        """What the next incremental needs is gone at the source."""
        self.add()
        self.split()
        self.add()
        self.store.checkpoint()
        for slot in self.store.log.slots.list():
            self.store.log.slots.drop(slot.id)
        self.store.log.prune(self.store.log.segments()[:-1])

    def split(self) -> None:
        """A segment of the log ends here."""
        self.store.log.writer.extend_history(self.store.history, self.store.log.epoch + 1)

    def compare(self, *, at: bool = False) -> backup.Bounds:
        """Every point that the target says it restores to is what the store was; those in its gaps are refused."""
        bounds = backup.info(self.target).bounds
        for txid in range(bounds.first, bounds.last + 1):
            how: dict[str, Any] = {"at": moment(self.times[txid])} if at and txid else {"to_txid": txid}
            place = self.root / f"restored-{txid}-{at}"
            if any(low <= txid <= high for low, high in bounds.gaps):
                with pytest.raises(RestorePointOutOfRange, match="but not to"):
                    backup.restore(self.target, place, env=self.env, **how)
                continue
            assert backup.restore(self.target, place, env=self.env, **how).txid == txid
            assert digest_at(place, MemoryEngine) == self.digests[txid]
            Env().files.remove_tree(place)
        assert backup.verify(self.target, env=self.env).bounds == bounds
        return bounds


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.store.close()


def generations(target: Path) -> list[str]:
    return sorted(p.name for p in target.iterdir() if p.name.startswith("gen-"))


def test_a_full_backup_in_anothers_place_keeps_its_points(it: Kept) -> None:
    it.back_up()
    it.add(3)
    it.back_up()
    it.lose_log()
    report = it.back_up()
    assert (report.kind, report.dropped, report.lost) == ("full", (), True)
    assert (report.bounds.first, report.bounds.last, report.bounds.gaps) == (0, 5, ((4, 4),))
    assert "but not to 4" in str(report)
    it.add()
    report = it.back_up()
    assert (report.kind, report.dropped, report.lost) == ("incremental", (), False)
    bounds = it.compare()
    assert (bounds.first, bounds.last, bounds.gaps) == (0, 6, ((4, 4),))
    assert [one["last"] for one in backup.info(it.target).older] == [3]
    assert "kept     gen-000001, for transaction 0 to 3" in str(backup.info(it.target))
    with pytest.raises(RestorePointOutOfRange):
        backup.restore(it.target, it.root / "between", at=moment(it.times[4]), env=it.env)
    assert backup.restore(it.target, it.root / "old", at=moment(it.times[2]), env=it.env).txid == 2


def test_points_go_when_they_are_older_than_the_period(it: Kept) -> None:
    """And not before, by either clock: the target's own was years ahead once."""
    it.add(2)
    it.back_up()
    it.lose_log()
    it.back_up()
    it.clock.time_us += 6 * DAY
    it.add()
    ahead = SetClock()
    ahead.time_us = it.clock.time_us + 400 * DAY
    report = backup.run(it.store, it.target, env=Env(clock=ahead))
    assert (report.dropped, len(generations(it.target))) == ((), 2)
    it.clock.time_us += 2 * DAY
    it.add()
    assert not it.back_up(keep_points="for ever").dropped
    report = it.back_up()
    assert (report.dropped, report.lost) == (((0, 2),), False)
    assert "no longer restores to transaction 0 to 2" in str(report)
    assert generations(it.target) == ["gen-000002"]
    assert it.compare().first == 4


def test_no_points_are_kept_if_told(it: Kept) -> None:
    it.add(2)
    it.back_up()
    it.add(2)
    it.store.checkpoint()
    report = it.back_up(full=True, keep_points="none")
    assert (report.dropped, report.lost) == (((0, 2),), True)
    assert len(generations(it.target)) == 1
    for wrong in ("", "7", "seven days", "-1 days", "1 fortnight", 7, None):
        with pytest.raises((SettingError, InvalidInput), match="keep_points"):
            it.back_up(keep_points=wrong)


def _five_days(it: Kept) -> None:
    """A transaction a day, each day in a segment of its own."""
    it.add()
    it.store.checkpoint()
    it.back_up()
    for _ in range(5):
        it.add(2)
        it.split()
        it.clock.time_us += DAY
        it.back_up(compact=None)
    it.add()


@pytest.mark.parametrize("links", [True, False])
def test_a_compact_takes_only_what_is_older_than_the_period(tmp_path: Path,
                                                            links: bool) -> None:
    class NoLinks(Files):
        def link(self, old: Path, new: Path) -> None:
            raise PermissionError("no links here")

    it = Kept(tmp_path, Files() if links else NoLinks())
    _five_days(it)
    was = it.back_up(compact=None).bounds
    assert not it.back_up(compact=0.0, compact_floor=0).compacted, "nothing is 7 days old"
    report = it.back_up(compact=0.0, compact_floor=0, keep_points="60 hours")
    assert report.compacted
    assert was.first < report.bounds.first
    assert it.times[report.bounds.first] < it.clock.time_us - 2.5 * DAY <= it.times[report.bounds.first + 1]
    assert report.dropped == ((was.first, report.bounds.first - 1),)
    assert not report.lost
    assert generations(it.target) == ["gen-000002"]
    it.compare()
    it.compare(at=True)
    it.add(2)
    it.split()
    report = it.back_up(compact=0.0, compact_floor=0, keep_points="60 hours")
    assert (report.kind, report.transactions, report.compacted) == ("incremental", 2, False)
    it.compare()
    assert it.back_up(compact=0.0, compact_floor=0, keep_points="none").bounds.first == report.bounds.last
    it.store.close()


def test_a_damaged_generation_stays_and_is_named(it: Kept) -> None:
    """What can still be had of it can be had; it does not count, and `verify` says that it did not look at it."""
    it.add(3)
    it.back_up()
    it.add(2)
    it.back_up()
    image = next((it.target / "gen-000001" / "state").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    with pytest.raises(Damaged):
        it.back_up()
    it.store.checkpoint()
    report = it.back_up(full=True)
    assert "gen-000001, which was in force, is damaged" in str(report)
    assert (report.dropped, report.lost) == (((0, 4),), True)
    assert report.bounds.gaps == ()
    assert "was not verified" in str(backup.verify(it.target, env=it.env))
    assert "damaged: " in str(backup.info(it.target))
    with pytest.raises(Damaged):
        backup.restore(it.target, it.root / "restored", to_txid=3, env=it.env)
    image.write_bytes(whole)
    assert backup.restore(it.target, it.root / "restored", to_txid=3, env=it.env).txid == 3


def test_an_opening_that_fails_costs_no_points(it: Kept) -> None:
    """A backup that is opened for writing is none any more; one that could not be opened is."""
    it.add(2)
    it.back_up()
    it.lose_log()
    it.back_up()
    before = tree(it.target)
    with pytest.raises(InvalidInput):
        Store.open(it.target, MemoryEngine, options={"no": "such option"}, settings=SMALL)
    assert {**tree(it.target), "LOCK": before["LOCK"]} == before
    Store.open(it.target, MemoryEngine, settings=SMALL).close()
    assert generations(it.target) == ["gen-000002"]


@pytest.mark.parametrize("reopen", [False, True], ids=["running", "reopened"])
def test_a_time_means_the_same_in_every_later_backup(tmp_path: Path, reopen: bool) -> None:
    """The source's clock was put back after a backup, and what came next was committed at times up to which that backup
    had said that it was complete: the same time was another transaction before the next incremental and after it."""
    clock = SetClock()
    env = Env(clock=clock)
    store = open_store(tmp_path / "store", env=env)
    write(store, 1)
    clock.time_us += HOUR
    complete = backup.run(store, tmp_path / "target", env=env).bounds.complete_until_us
    assert complete >= store.log.time_of(1) + HOUR, "up to now, and not only to the last transaction"
    at = moment(complete)
    clock.time_us -= 2 * HOUR
    if reopen:
        store.close()
        store = open_store(tmp_path / "store", env=env)
    write(store, 2, count=3)
    assert backup.restore(tmp_path / "target", tmp_path / "before", at=at).txid == 1
    assert backup.run(store, tmp_path / "target", env=env).to_txid == 4
    assert backup.restore(tmp_path / "target", tmp_path / "after", at=at).txid == 1
    store.close()
