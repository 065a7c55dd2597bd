"""Expiry: nothing goes that a kept point, a mark, a restore or a backup needs; what was said is what goes; and what
stays restores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository_model import MINUTE_US, Model, models
from repository_rig import Objects, Rig, World, world
from store_kinds import until

from holdfast.backup.repository import archiver as archiving
from holdfast.backup.repository import blocks, expiring, imaging
from holdfast.backup.repository.errors import SessionAborted
from holdfast.backup.repository.expiring import Keep, Plan
from holdfast.backup.repository.plan import Reach, bounds, reach_of_time, reaches
from holdfast.backup.repository.reports import Expired
from holdfast.backup.repository.state import Image
from holdfast.backup.testing.world import moment
from holdfast.engine.errors import RestorePointOutOfRange, SettingError
from holdfast.engine.source.local import LocalSource

DAY_US = 24 * 3600 * 1_000_000

# --- the plan, by brute force -------------------------------------------------------------------------------------

KEEPS = st.builds(Keep, last=st.integers(0, 2), daily=st.integers(0, 2), weekly=st.integers(0, 1),
                  points=st.sampled_from(["none", "for ever", "Forever", "20 minutes", "1 hour", "5 hours"]))


def planned(model: Model, keep: Keep) -> Plan:
    return expiring.plan(model.state, model.tails(), model.times, keep)


@st.composite
def pinned(draw: st.DrawFn) -> tuple[Model, list[tuple[int, int]], list[tuple[int, Image, int]]]:
    """A catalog with marks, restores that are running, and perhaps a backup. Returns the marks that are kept, and the
    restores: branch, image and last transaction."""
    model = draw(models())
    marks, leases = [], []
    for number in range(draw(st.integers(0, 2))):
        branch = draw(st.integers(0, len(model.histories) - 1))
        there = sorted(model.reachable(branch))
        if not there:
            continue
        txid, keep = draw(st.sampled_from(there)), draw(st.booleans())
        model.add(do="mark", name=f"mark {number}", branch=model.id(branch), txid=txid, keep=keep, time_us=0)
        if keep:
            marks.append((branch, txid))
        found = reaches(model.state, model.id(branch), model.tails())
        reach = draw(st.sampled_from(found))
        upto = draw(st.integers(reach.first, reach.last))
        model.add(do="lease", id=str(number), who="a restore", time_us=0, until_us=1 << 60, image=reach.image.session,
                  branch=model.id(branch), txid=upto)
        leases.append((branch, reach.image, upto))
    if draw(st.booleans()):
        model.add(do="begin", session="f" * 32, who="a backup", time_us=0)
    return model, marks, leases


@given(pinned(), KEEPS)
def test_what_is_kept_can_still_be_restored(
        pins: tuple[Model, list[tuple[int, int]], list[tuple[int, Image, int]]], keep: Keep) -> None:
    model, marks, leases = pins
    made = planned(model, keep)
    after = model.dropped(expiring._entry(made, []))
    images = list(model.state.images.values())
    assert set(made.kept) == set(after.state.images)
    assert set(made.kept) | set(made.images) == set(model.state.images)
    for branch in range(len(model.histories)):
        before, left = model.reachable(branch), after.reachable(branch)
        assert left <= before
        since_us = window(model, branch, keep)
        for txid in before:
            assert txid in left or model.time_us(branch, txid) < since_us, "a point of the window"
        found, still = (reaches(one.state, one.id(branch), one.tails()) for one in (model, after))
        for time_us in {t + n * MINUTE_US for reach in found for t in (reach.complete_until_us, reach.last_time_us)
                        for n in (-7, -1, 0)}:
            assert time_us < since_us or not serves(found, time_us) or serves(still, time_us), "a time of the window"
        if images:
            assert model.reachable(branch, images[-1:]) <= left, "the newest image, and what comes after it"
    for branch, txid in marks:
        assert txid in after.reachable(branch), "a mark"
    for branch, image, upto in leases:
        assert image.session in after.state.images
        assert upto in after.reachable(branch, [image]), "a restore that is running"
    for image in [*ladder(model, keep), *uncertain(model)]:
        assert image.session in made.kept
        lasting = range(image.consistent_from.txid, image.end.txid + 1)
        assert set(lasting) <= after.reachable(model.histories.index(image.history))


def window(model: Model, branch: int, keep: Keep) -> int:
    """The time from which on points are kept."""
    found = reaches(model.state, model.id(branch), model.tails())
    now_us = max((reach.complete_until_us for reach in found), default=0)
    minutes = {"none": -1 << 40, "20 minutes": 20, "1 hour": 60, "5 hours": 300}.get(keep.points, 1 << 40)
    return now_us - minutes * MINUTE_US


def serves(found: list[Reach], time_us: int) -> bool:
    try:
        reach_of_time(found, time_us)
    except RestorePointOutOfRange:
        return False
    return True


def uncertain(model: Model) -> list[Image]:
    return [image for image in model.state.images.values()
            if abs(model.times.get(image.session, 0) - image.created_us) > 60 * MINUTE_US]


def ladder(model: Model, keep: Keep) -> Iterator[Image]:
    images = list(model.state.images.values())
    yield from images[max(0, len(images) - keep.last):]
    certain = [image for image in images if image not in uncertain(model)]
    for count, period in ((keep.daily, "%Y-%m-%d"), (keep.weekly, "%G-%V")):
        newest: dict[str, Image] = {}
        for image in certain:
            when = datetime.fromtimestamp(model.times[image.session] / 1e6, UTC).strftime(period)
            newest.pop(when, None)
            newest[when] = image
        yield from list(newest.values())[max(0, len(newest) - count):]


@given(pinned(), KEEPS)
def test_the_catalog_says_what_is_left(pins: tuple[Model, Any, Any], keep: Keep) -> None:
    """After the entry, what is promised is what is there; and a second expiry drops nothing."""
    model = pins[0]
    after = model.dropped(expiring._entry(planned(model, keep), []))
    for branch in range(len(model.histories)):
        found = reaches(after.state, model.id(branch), after.tails())
        assert {t for b in bounds(found) for t in range(b.first, b.last + 1)} == after.reachable(branch)
    again = planned(after, keep)
    assert (again.images, again.slots, again.inner) == ([], [], [])
    assert set(again.kept) == set(after.state.images)


@given(models(), st.sampled_from([-60, 60]))
def test_clocks_that_are_an_hour_off_change_nothing(model: Model, minutes: int) -> None:
    """The storage's clock against all others. If it is more, the images are kept, and it is said why."""
    keep = Keep(last=1, points="1 hour")
    model.times = right = {image.session: image.created_us for image in model.state.images.values()}
    expected = planned(model, keep)
    model.times = {session: time_us + minutes * MINUTE_US for session, time_us in right.items()}
    assert planned(model, keep) == expected
    model.times = {session: time_us + 2 * minutes * MINUTE_US for session, time_us in right.items()}
    assert all("its time is not certain" in planned(model, keep).kept[session] for session in right)


def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(SettingError, match="keep_last"):
        Keep(last=-1)
    with pytest.raises(SettingError, match="not a period"):
        Keep(points="a while")
    with pytest.raises(SettingError, match="not a period"):
        Keep(abandoned="a while")
    assert planned(Model(), Keep()) == Plan()


# --- carried out --------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(archiving, "FAN_IN", 3)
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        yield made


@pytest.fixture
def lived(rig: Rig, here: World) -> World:
    """Six days: on each an image, and pieces of log with bulk loads, some of them merged."""
    archiver = here.archiver(rig.repository)
    for day in range(6):
        here.write(2, size=800)
        here.store.checkpoint()
        rig.repository.backup(here.source)
        for _ in range(4):
            rig.clock.time_us += DAY_US // 5
            here.write(1)
            if day % 2:
                here.bulk(3)
            archiver.step()
    archiver.close()
    return here


def points_of(rig: Rig) -> set[int]:
    return {txid for branch in rig.opened().info().branches for one in branch.restores_to
            for txid in range(one.first, one.last + 1)}


def assert_restores(rig: Rig, here: World, places: Path) -> None:
    assert rig.opened().verify().damaged == ()
    for txid in points_of(rig):
        assert here.restored(rig.opened(), places / f"{txid}", to_txid=txid) == here.content(txid)


KEEP = Keep(last=1, points="30 hours")


@pytest.mark.parametrize("keep", [Keep(points="none"), Keep(last=2, points="none"), KEEP, Keep(points="for ever"),
                                  Keep(daily=3, points="1 hour")], ids=str)
def test_what_was_said_is_what_goes(rig: Rig, lived: World, tmp_path: Path, keep: Keep) -> None:
    rig.repository.mark("pinned", to_txid=sorted(points_of(rig))[12], keep=True)
    before = points_of(rig)
    said = rig.repository.expire(keep, dry_run=True)
    objects = dict(rig.objects)
    assert "would be" in str(said)
    told = rig.repository.expire(keep)
    assert (told.kept, told.images, told.log, told.objects, told.bytes) == (
        said.kept, said.images, said.log, said.objects, said.bytes)
    gone = set(objects) - set(rig.objects)
    assert (len(gone), sum(len(objects[name][0]) for name in gone)) == (told.objects, told.bytes)
    left = points_of(rig)
    assert left <= before
    assert lived.txid in left
    assert rig.repository.plan(mark="pinned").txid in left
    if keep.points == "for ever":
        assert left == before
    assert_restores(rig, lived, tmp_path)
    again = rig.repository.expire(keep)
    assert (again.images, again.log, again.objects) == ((), (), 0)


def test_the_archive_goes_on_after_an_expiry_from_where_it_was(rig: Rig, lived: World, tmp_path: Path) -> None:
    """Also if nothing of it is asked to be kept. One archiver runs all the time, another begins anew."""
    archiver = lived.archiver(rig.repository)
    first = min(points_of(rig))
    for again in range(2):
        rig.opened().expire(Keep(points="none"))
        lived.write(2)
        archiver.step()
        if again:
            archiver.close()
            archiver = lived.archiver(rig.opened())
            lived.write(1)
            archiver.step()
    left = points_of(rig)
    assert min(left) > first
    assert left == set(range(min(left), lived.txid + 1))
    assert_restores(rig, lived, tmp_path)


def test_an_expiry_that_died_is_finished_by_the_next(rig: Rig, lived: World, tmp_path: Path) -> None:
    """At each of its requests in turn. What stays is what would have stayed, and is the same to the last object."""
    whole = rig.copied()
    whole.repository.expire(KEEP)
    asked, kept = len(whole.storage.asked), points_of(whole)
    for number in range(0, asked, 7):
        copy = rig.copied()

        def dies(what: str, name: str, copy: Rig = copy, number: int = number) -> None:
            if len(copy.storage.asked) > number:
                raise KeyboardInterrupt

        copy.storage.fate = dies
        with pytest.raises(KeyboardInterrupt):
            copy.repository.expire(KEEP)
        assert copy.opened(Objects(rig.clock, copy.objects)).verify().damaged == ()
        copy.opened(Objects(rig.clock, copy.objects)).expire(KEEP)
        assert points_of(copy.copied()) == kept
        left = {name for name in copy.objects if not name.startswith(("catalog/", "attachments/"))}
        assert left == {name for name in whole.objects if not name.startswith(("catalog/", "attachments/"))}


def test_log_of_an_ended_run_that_no_unit_has_stays(rig: Rig, here: World, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive began anew after a gap, and units of the new run were made: the last pieces of the old one are in
    none of them."""
    here.write(2)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    for _ in range(4):
        here.write(1)
        archiver.step()
    archiver.close()
    ends = here.txid
    here.write(5)
    here.store.checkpoint()
    rig.repository.backup(here.source)
    monkeypatch.setattr(archiving.Archiver, "_reaches", lambda self, position: position.txid > ends)
    after = here.archiver(rig.opened())
    for _ in range(7):
        here.write(1)
        after.step()
    before = points_of(rig)
    assert ends in before
    assert ends + 1 not in before
    rig.opened().expire(Keep(points="for ever"))
    assert points_of(rig) == before
    assert_restores(rig, here, tmp_path)


def test_a_mark_keeps_the_image_and_log_that_it_needs_until_it_is_removed(rig: Rig, lived: World) -> None:
    point = sorted(points_of(rig))[8]
    rig.repository.mark("pinned", to_txid=point, keep=True)
    rig.repository.mark("not pinned", to_txid=min(points_of(rig)))
    keep = Keep(points="none")
    told = rig.repository.expire(keep)
    assert "mark pinned" in str(told)
    left = points_of(rig)
    assert point in left
    assert min(points_of(rig)) > rig.repository.info().marks[1]["txid"]
    rig.repository.unmark("pinned")
    assert len(rig.repository.expire(keep).images) == 1
    assert point not in points_of(rig)


def test_a_restore_that_runs_has_what_it_reads_until_it_ends(rig: Rig, lived: World, tmp_path: Path) -> None:
    """Expiry runs at the moment when the restore begins to read. Afterwards nothing is held any more."""
    point = sorted(points_of(rig))[5]
    storage = Objects(rig.clock, rig.objects)
    done: list[Expired] = []

    def expires(what: str, name: str) -> None:
        if what == "get" and name.startswith(("images/", "packs/")) and not done:
            done.append(rig.opened().expire(Keep(points="none")))

    storage.fate = expires
    assert lived.restored(rig.opened(storage), tmp_path / "r", to_txid=point) == lived.content(point)
    assert "restore to" in str(done[0])
    assert rig.opened().info().leases == ()
    rig.opened().expire(Keep(points="none"))
    assert point not in points_of(rig)


def test_a_lease_that_nobody_ended_runs_out(rig: Rig, lived: World) -> None:
    repository = rig.opened()
    point = repository._point(min(points_of(rig)), None, None, None)
    leased = repository.leased(point, "restore to nowhere")
    leased.__enter__()
    assert "restore to nowhere" in str(rig.repository.expire(Keep(points="none")))
    rig.clock.time_us += 2 * DAY_US
    said, told = rig.repository.expire(Keep(points="none"), dry_run=True), rig.repository.expire(Keep(points="none"))
    assert said.images == told.images != ()
    assert rig.repository.info().leases == ()


# --- backups that run ---------------------------------------------------------------------------------------------


def test_what_a_killed_backup_left_goes_once_it_is_given_up(rig: Rig, here: World) -> None:
    here.write(20, size=4000)
    here.store.checkpoint()
    with pytest.raises(KeyboardInterrupt):
        rig.repository.backup(Dies(here, rig, 1))
    packs = set(packs_of(rig))
    assert rig.opened().expire(KEEP).objects == 0
    assert len(rig.opened().info().running) == 1
    rig.clock.time_us += 2 * DAY_US
    said, told = rig.opened().expire(KEEP, dry_run=True), rig.opened().expire(KEEP)
    assert said.aborted == told.aborted != ()
    assert (said.objects, told.objects) == (len(packs), len(packs))
    assert not packs & set(rig.objects)
    assert rig.opened().info().running == ()


def test_a_backup_that_was_given_up_fails(rig: Rig, here: World, tmp_path: Path) -> None:
    """It took longer than a day. What it stored is gone, and the next one is whole."""
    class Slow(LocalSource):
        def confirm(self, lease_id: str) -> Any:
            rig.clock.time_us += 2 * DAY_US
            rig.opened().expire(KEEP)
            return super().confirm(lease_id)

    here.write(20, size=4000)
    here.store.checkpoint()
    with pytest.raises(SessionAborted, match="given up for dead"):
        rig.repository.backup(Slow(here.store))
    assert rig.opened().info().images == ()
    rig.opened().backup(here.source)
    assert_restores(rig, here, tmp_path)


class Dies(LocalSource):
    """The backup dies when so many packs are stored."""

    def __init__(self, world: World, rig: Rig, packs: int) -> None:
        super().__init__(world.store)
        self._rig, self._packs = rig, packs

    def confirm(self, lease_id: str) -> Any:
        until(lambda: len(packs_of(self._rig)) >= self._packs)
        raise KeyboardInterrupt


def packs_of(rig: Rig) -> list[str]:
    return sorted(name for name in list(rig.objects) if name.startswith("packs/"))


class Interrupts(LocalSource):
    """Something happens once, when the image's log is about to be read or when its first bytes are."""

    def __init__(self, world: World, when: str, what: Callable[[], object]) -> None:
        super().__init__(world.store)
        self._when, self._what = when, what

    def _now(self, when: str) -> None:
        if when == self._when:
            self._when = ""
            self._what()

    def confirm(self, lease_id: str) -> Any:
        self._now("log")
        return super().confirm(lease_id)

    def lease(self, owner: str, **how: Any) -> Any:
        grant = super().lease(owner, **how)
        self._now("leased")
        return grant


@pytest.mark.parametrize("when", ["leased", "log"])
def test_a_backup_whose_base_is_dropped_meanwhile_is_whole(rig: Rig, here: World, tmp_path: Path, when: str) -> None:
    """Before it reads the base, or after it has used its blocks. Another image came in between, so the base is not the
    newest any more."""
    here.write(40, size=4000)
    here.store.checkpoint()
    base = rig.repository.backup(here.source)

    def happens() -> None:
        rig.opened().backup(here.source, block_bytes=4096)
        assert base.image in rig.opened().expire(Keep(points="none")).images

    here.write(1)
    report = rig.opened().backup(Interrupts(here, when, happens))
    assert base.image not in [image.id for image in rig.opened().info().images]
    assert report.image in [image.id for image in rig.opened().info().images]
    assert_restores(rig, here, tmp_path)


def test_a_run_that_died_is_gone_on_with(rig: Rig, here: World, tmp_path: Path) -> None:
    """Its packs are used, also if one of them is damaged or was not put."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "PACK_BYTES", 16 << 10)
        patch.setattr(imaging, "GROUP_BYTES", 16 << 10)
        with here.store.transaction() as tx:
            for n in range(40):
                tx.put(b"%d" % n, rig.env.randomness.token(4000))
        with here.store.snapshot() as view:
            here.note(dict(view.items()))
        here.store.checkpoint()
        with pytest.raises(KeyboardInterrupt):
            rig.repository.backup(Dies(here, rig, 10))
    packs = packs_of(rig)
    data, put_us = rig.objects[packs[0]]
    rig.objects[packs[0]] = data[:-3] + b"???", put_us
    del rig.objects[packs[1]]
    report = rig.opened().backup(here.source)
    assert 30_000 < report.new_bytes < 80_000
    rig.clock.time_us += 2 * DAY_US
    rig.opened().expire(Keep(points="none"))  # the dead run is given up; what the image uses of it stays
    assert_restores(rig, here, tmp_path)
    with pytest.raises(RestorePointOutOfRange):
        rig.opened().plan(at=moment(rig.clock.time_us + DAY_US))


def test_an_expiry_beside_a_damaged_root_deletes_no_pack(rig: Rig, lived: World) -> None:
    """Nobody knows which packs the image uses, and no expiry could be run any more."""
    [*_, newest] = rig.repository.info().images
    name = f"images/{newest.id}/root"
    data, time_us = rig.objects[name]
    rig.objects[name] = data[:50] + bytes(20) + data[70:], time_us
    packs = {name for name in rig.objects if name.startswith("packs/")}
    report = rig.repository.expire(Keep(last=1, points="none"))
    assert name in report.damaged[0]
    assert packs == {name for name in rig.objects if name.startswith("packs/")}
    assert len(rig.repository.info().images) < 3
