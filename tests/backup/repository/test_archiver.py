"""The archiver: one writer at a time, no transaction left out or there twice, whatever is lost on the way; and what it
costs to read what it wrote."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from repository_rig import Fate, Objects, Rig, World, world

from holdfast.backup.repository import archiver as archiving
from holdfast.backup.repository.archive import Archive
from holdfast.backup.repository.archiver import IDLE_S, Archiver
from holdfast.backup.repository.errors import Fenced
from holdfast.backup.testing.world import moment
from holdfast.engine.errors import HoldfastError, RestorePointOutOfRange
from holdfast.engine.model.positions import Position
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings

HOUR_US = 3600 * 1_000_000


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        yield made


def archive_of(rig: Rig) -> Archive:
    return rig.opened()._archive()


def assert_archived(rig: Rig, here: World, upto: int | None = None) -> None:
    """Each transaction from the first archived one on is there once, as the store's log has it, and in one run."""
    archive, branch = archive_of(rig), here.store.history.branch.id.hex()
    [run] = archive.state.branches[branch].runs
    last = here.txid if upto is None else upto
    tail = archive.tail(branch)
    assert tail is not None
    assert tail.end.txid == last
    found = [record for _, records in archive.read(branch, run.after.txid, last) for record in records]
    ours = list(here.store.log.cursor(run.after.txid).read(last))
    assert [(r.txid, r.chain) for r in found] == [(r.txid, r.chain) for r in ours]
    assert rig.opened().verify().damaged == ()


def lasting(archiver: Archiver, piece_bytes: int = 1) -> Archiver:
    """A piece for each transaction."""
    archiver._piece_bytes = piece_bytes
    return archiver


# --- one writer ---------------------------------------------------------------------------------------------------


def test_a_second_archiver_ends_the_first(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(2)
    rig.repository.backup(here.source)
    first = here.archiver(rig.repository)
    here.write(3)
    first.step()
    other = rig.opened()
    second = here.archiver(other)
    assert second.end == first.end
    here.write(3)
    with pytest.raises(Fenced, match=r"archived by writer 2 by now, archive on .*; this one was writer 1"):
        first.step()
    second.step()
    with pytest.raises(Fenced):
        first.step()
    assert_archived(rig, here)
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)


def test_a_piece_that_is_put_at_the_moment_of_a_takeover_counts(rig: Rig, here: World) -> None:
    """The new one has read where the archive ends, and then the old one puts its last piece there."""
    first = here.archiver(rig.repository)
    here.write(2)
    first.step()
    storage = Objects(rig.clock, rig.objects)

    def late(what: str, name: str) -> None:
        if what == "put" and name.startswith("log/"):
            storage.fate = lambda what, name: None
            here.write(1)
            with pytest.raises(Fenced):
                first.step()

    storage.fate = late
    second = here.archiver(rig.opened(storage))
    assert second.end == here.store.published
    here.write(1)
    second.step()
    assert_archived(rig, here)


def requests(rig: Rig, work: Callable[[Rig], None]) -> int:
    copy = rig.copied()
    work(copy)
    return len(copy.storage.asked)


@pytest.mark.parametrize("begun", ["never", "before"])
def test_two_that_begin_at_once_leave_one_archive(rig: Rig, here: World, begun: str) -> None:
    """The second one begins and takes a step at each request of the first one's. The store is written to all along, so
    each of the two would begin elsewhere."""
    here.write(2)
    if begun == "before":
        here.archiver(rig.repository).step()

    def first(rig: Rig) -> None:
        archiver = here.archiver(rig.repository)
        here.write(1)
        try:
            archiver.step()
        finally:
            archiver.close()

    for number in range(requests(rig, first)):
        copy = rig.copied()
        others: list[Archiver] = []

        def second(what: str, name: str, copy: Rig = copy, number: int = number, others: list[Archiver] = others
                   ) -> None:
            if len(copy.storage.asked) == number + 1:
                here.write(1)
                others.append(here.archiver(copy.opened(Objects(rig.clock, copy.objects))))
                here.write(1)
                others[0].step()

        copy.storage.fate = second
        try:
            first(copy)
        except Fenced:
            others[0].step()
        else:
            with pytest.raises(Fenced):
                here.write(1)
                others[0].step()
            first(copy)
        others[0].close()
        assert_archived(copy, here)


# --- lost answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["lost", "gone"])
@pytest.mark.parametrize("times", [1, 9], ids=["once", "for long"])
def test_lost_answers_leave_out_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, times: int) -> None:
    """At each request in turn. "For long": longer than it is tried again, so the archiver begins anew or goes on."""
    monkeypatch.setattr(archiving, "FAN_IN", 2)
    for number in count():
        rig = Rig()
        with world(tmp_path / str(number), rig.env) as here:
            here.write(1)
            archives_whatever_happens(rig, here, lambda what, name, rig=rig, number=number: (  # type: ignore[misc]
                fate if number < len(rig.storage.asked) <= number + times else None))
            asked = len(rig.storage.asked)
            rig.storage.fate = lambda what, name: None
            assert_archived(rig, here)
        shutil.rmtree(tmp_path / str(number))
        if asked <= number:
            break


def archives_whatever_happens(rig: Rig, here: World, fate: Fate) -> None:
    rig.storage.fate = fate
    archiver: Archiver | None = None
    for transactions in (2, 1):
        here.write(transactions)
        for _ in range(25):
            try:
                if archiver is None:
                    archiver = lasting(here.archiver(rig.repository))
                archiver.step()
                break
            except HoldfastError:
                if archiver is not None and len(rig.storage.asked) % 2:  # now and then it is the same one that goes on
                    archiver.close()
                    archiver = None
        else:
            raise AssertionError("it never went on")
    assert archiver is not None
    archiver.close()


def test_a_crash_before_the_source_is_told_loses_nothing(rig: Rig, here: World, tmp_path: Path) -> None:
    class Dies(LocalSource):
        def register(self, slot_id: str, name: str, position: Position) -> None:
            if self.slots():
                raise KeyboardInterrupt
            super().register(slot_id, name, position)

    rig.repository.backup(here.source)
    here.write(5)
    dying = rig.opened().archiver(Dies(here.store))
    begun = dying.end
    with pytest.raises(KeyboardInterrupt):
        dying.step()
    [slot] = here.source.slots()
    assert (slot.id, slot.position) == (rig.repository.id, begun)
    assert begun.txid == here.txid - 5  # the log after it is kept from the first moment on
    here.write(5)
    after = here.archiver(rig.repository)
    assert after.end.txid == here.txid - 5
    after.step()
    assert_archived(rig, here)
    [slot] = here.source.slots()
    assert (slot.id, slot.position) == (rig.repository.id, here.store.published)
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)


# --- time ---------------------------------------------------------------------------------------------------------


def test_an_idle_store_says_how_far_it_is_complete(rig: Rig, here: World, tmp_path: Path) -> None:
    """Now and then, and not at each step."""
    here.write(2)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    here.write(2)
    archiver.step()
    pieces = len(rig.objects)
    archiver.step()
    assert len(rig.objects) == pieces
    rig.clock.time_us += HOUR_US
    rig.clock.seconds += IDLE_S
    archiver.step()
    archiver.step()
    assert len(rig.objects) == pieces + 1
    later = here.time_us(here.txid) + HOUR_US // 2
    assert here.restored(rig.repository, tmp_path / "r", at=moment(later)) == here.content(here.txid)
    [bounds] = rig.repository.info().branches[0].restores_to
    assert (bounds.last, bounds.last_time_us) == (here.txid, None)
    assert bounds.complete_until_us == archiver.complete_until_us > later
    again = here.archiver(rig.opened())
    assert (again.end, again.complete_until_us) == (archiver.end, archiver.complete_until_us)


# --- gaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [False, True], ids=["no image before it", "an image in the gap"])
def test_a_gap_is_told_and_its_points_are_refused(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                  image: bool) -> None:
    """The source was told not to keep its log for the archive any more, and pruned it."""
    settings = Settings(segment_bytes=128 << 10, heartbeat_s=0, keep_logs="1 transactions")
    with world(tmp_path / "store", rig.env, settings=settings) as here:
        here.write(3)
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        here.write(3)
        archiver.step()
        archiver.close()
        ends = here.txid
        here.source.drop(rig.repository.id)
        here.write(90, size=6000)
        here.store.checkpoint()
        here.store.prune()
        assert here.store.log.base.txid > ends
        if image:
            here.write(3)
            rig.repository.backup(here.source)
        with caplog.at_level(logging.WARNING, "holdfast.repository"):
            after = here.archiver(rig.opened())
        assert f"no longer has the log after transaction {ends}: the archive has a gap" in caplog.text
        here.write(3)
        after.step()
        if not image:
            assert [b.last for b in rig.repository.info().branches[0].restores_to] == [ends]
            rig.repository.backup(here.source)
        here.write(3)
        after.step()
        [before, behind] = rig.repository.info().branches[0].restores_to
        assert (before.last, behind.last) == (ends, here.txid)
        for txid in (before.first, before.last, behind.first, behind.last):
            assert here.restored(rig.repository, tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)
        for txid in (ends + 1, behind.first - 1):
            with pytest.raises(RestorePointOutOfRange, match=f"transaction {txid} is not in the repository, which "
                               rf"restores to transaction .* to {ends} .*; or transaction {behind.first}"):
                rig.repository.plan(to_txid=txid)
        assert rig.repository.verify().damaged == ()


# --- merging ------------------------------------------------------------------------------------------------------


def test_two_thousand_pieces_are_read_in_some_dozens_of_reads(rig: Rig, here: World, tmp_path: Path) -> None:
    rig.repository.backup(here.source)
    archiver = lasting(here.archiver(rig.repository))
    for _ in range(20):
        for n in range(100):
            with here.store.transaction("relaxed" if n < 99 else "synced") as tx:
                tx.put(b"key %d" % (n % 7), b"%d" % n)
        archiver.step()
    last = here.txid
    units = archive_of(rig).state.branches[here.store.history.branch.id.hex()].units
    assert {unit.level for unit in units} == {1, 2}
    reader = Objects(rig.clock, rig.objects)
    with here.store.snapshot() as view:
        assert here.restored(rig.opened(reader), tmp_path / "r", to_txid=last) == dict(view.items())
    assert reader.gets("log/") + reader.gets("merged/") <= 3 * 32
    assert reader.gets("") <= 3 * 32 + 150  # the catalog, from its last checkpoint on, three times
    assert_archived(rig, here)


def test_units_are_merged_into_larger_ones(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                           ) -> None:
    monkeypatch.setattr(archiving, "FAN_IN", 3)
    rig.repository.backup(here.source)
    archiver = lasting(here.archiver(rig.repository))
    for _ in range(6):
        here.write(6)
        here.bulk(2)
        archiver.step()
    log = archive_of(rig).state.branches[here.store.history.branch.id.hex()]
    assert [(unit.level, unit.first, unit.last) for unit in log.largest()] == [
        (3, 1, 27), (2, 28, 36), (1, 37, 39), (1, 40, 42)]
    for txid in (here.txid, here.txid - 20):
        assert here.restored(rig.repository, tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)
    assert_archived(rig, here)


@pytest.mark.parametrize("most", [1, 5000, 9000])
def test_what_is_too_large_to_be_merged_stops_nothing(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch, most: int
                                                      ) -> None:
    """A piece or a unit stays alone, or with few, and those after it are merged all the same."""
    monkeypatch.setattr(archiving, "FAN_IN", 2)
    monkeypatch.setattr(archiving, "_MOST_UNIT", most)
    rig.repository.backup(here.source)
    archiver = lasting(here.archiver(rig.repository))
    for n in range(24):
        with here.store.transaction() as tx:
            tx.put(b"key", rig.env.randomness.token(4000 if n % 8 < 2 else 100))
        archiver.step()
    units = list(archive_of(rig).state.branches[here.store.history.branch.id.hex()].largest())
    assert units[-1].last >= 24
    if most > 1:
        assert max(unit.level for unit in units if unit.first > 4) >= 2
    assert_archived(rig, here)


def test_the_archive_goes_on_after_damaged_pieces(rig: Rig, here: World, tmp_path: Path,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    """No archiver could begin, for ever, since where the archive ended was not known. What the damaged pieces had is
    archived again, as long as the store has it."""
    here.write(2)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    for _ in range(4):
        here.write(1)
        archiver.step()
    archiver.close()
    for name in sorted(name for name in rig.objects if name.startswith("log/"))[-2:]:
        data, time_us = rig.objects[name]
        rig.objects[name] = data[:60] + bytes(30) + data[90:], time_us
    archiver = here.archiver(rig.opened())
    here.write(1)
    archiver.step()
    archiver.close()
    assert caplog.text.count("goes on after a damaged piece") == 2
    repository = rig.opened()
    for txid in range(2, here.txid + 1):
        assert here.restored(repository, tmp_path / f"{txid}", to_txid=txid) == here.models[txid]
    assert not repository.verify().damaged
