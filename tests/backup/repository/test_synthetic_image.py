"""Images that are made in the repository, of an image and archived log: as good as others, and of the same branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from repository_crashes import BLOCK_BYTES, Past, in_memory, in_one_thread, is_right, objects_at
from repository_rig import Objects, Rig, World, world
from staging_memory import StagingMemory
from store_kinds import GRAPH, MEMORY, RECORDS, commit

from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.errors import (
    CopyReadOnly,
    ObjectMissing,
    SalvageReadOnly,
)
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.state import Synthetic
from holdfast.backup.testing.world import moment
from holdfast.engine.errors import Damaged, Inconsistent, RestorePointOutOfRange
from holdfast.engine.model.positions import Position
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.simdisk import SimDisk


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    """An image, and archived log after it, with bulk loads and records of the kit."""
    with world(tmp_path / "store", rig.env) as made:
        made.write(3)
        rig.repository.backup(made.source)
        archive(rig, made)
        yield made


def archive(rig: Rig, here: World) -> None:
    archiver = here.archiver(rig.repository)
    for _ in range(2):
        rig.clock.sleep(60)
        here.write(2)
        here.bulk()
        here.store.write_path.mark()
        archiver.step()
    archiver.close()


def made_images(rig: Rig) -> dict[str, Any]:
    return {image.id: image for image in rig.repository.info().images}


# --- it is an image like any other --------------------------------------------------------------------------------


def test_it_restores_by_itself_to_its_point(rig: Rig, here: World, tmp_path: Path) -> None:
    """Also if nothing but it is left: neither what it was made of nor the archive."""
    source = here.store.directory
    report = rig.repository.synthesize(engine=StagingMemory)
    last = here.txid
    assert (report.to_txid, report.synthetic) == (last, True)
    assert report.log_bytes < 1000  # a record of the kit
    assert {id: image.made_of for id, image in made_images(rig).items()} == {report.base: "", report.image: report.base}
    assert f"made of image {report.base[:8]}" in str(rig.repository.info())
    here.close()
    source.rename(tmp_path / "lost")
    rig.clock.sleep(3600)
    gone = rig.repository.expire(Keep(last=1, points="none"))
    assert gone.images == (report.base,)
    assert {image.id for image in rig.repository.info().images} == {report.image}
    for name in [name for name in rig.objects if name.startswith(("log/", "merged/", "attachments/"))]:
        del rig.objects[name]
    assert here.restored(rig.repository, tmp_path / "restored", to_txid=last) == here.content(last)
    assert rig.repository.verify().damaged == ()


def test_every_transaction_stays_restorable_and_what_comes_after_too(rig: Rig, here: World, tmp_path: Path) -> None:
    rig.repository.synthesize(engine=StagingMemory)
    archive(rig, here)
    rig.repository.synthesize(engine=StagingMemory)
    archive(rig, here)
    [branch] = rig.repository.info().branches
    [bounds] = branch.restores_to
    assert (bounds.first, bounds.last) == (0, here.txid)
    for txid in range(bounds.first, bounds.last + 1):
        assert here.restored(rig.repository, tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)
    assert rig.repository.verify().damaged == ()


def test_it_is_of_the_same_branch_and_position(rig: Rig, here: World) -> None:
    rig.repository.synthesize(engine=StagingMemory)
    first, made = rig.repository._catalog.refresh().images.values()
    assert made.history == first.history == here.store.history
    assert made.end == here.store.published
    assert not made.moving
    assert made.image_position == made.consistent_from
    assert made.last_time_us == here.time_us(made.end.txid)
    assert len(rig.repository.info().branches) == 1


@pytest.mark.parametrize("how", ["txid", "time", "mark"])
def test_a_point_can_be_named(rig: Rig, here: World, tmp_path: Path, how: str) -> None:
    """The image is complete up to what was asked for, and no further."""
    rig.repository.mark("here", to_txid=5)
    points: dict[str, dict[str, Any]] = {
        "txid": {"to_txid": 5}, "time": {"at": moment(here.time_us(5))}, "mark": {"mark": "here"}}
    report = rig.repository.synthesize(engine=StagingMemory, **points[how])
    assert (report.to_txid, report.complete_until_us) == (5, here.time_us(5))
    assert here.restored(rig.repository, tmp_path / "r", to_txid=5) == here.content(5)
    plan = rig.repository.plan(to_txid=5)
    assert plan.image == report.image
    assert plan.log_from == plan.log_to == 5


def test_it_says_the_time_up_to_which_an_idle_store_was_complete(rig: Rig, here: World, tmp_path: Path) -> None:
    archiver = here.archiver(rig.repository)
    archiver._said_at = float("-inf")
    here.write(1)
    archiver.step()
    until = rig.repository.info().branches[0].restores_to[-1].complete_until_us
    report = rig.repository.synthesize(engine=StagingMemory)
    assert report.complete_until_us == until
    assert here.restored(rig.repository, tmp_path / "r", at=moment(until)) == here.content(here.txid)


def test_it_stores_only_what_differs(rig: Rig, tmp_path: Path) -> None:
    """The next image of the source is compared with the last one of the source."""
    with world(tmp_path / "store", rig.env) as here:
        here.bulk(20_000)
        here.store.checkpoint()
        first = rig.repository.backup(here.source, block_bytes=4096)
        archiver = here.archiver(rig.repository)
        here.write(2)
        archiver.step()
        made = rig.repository.synthesize(engine=StagingMemory)
        assert made.image_bytes > 300_000
        assert made.new_bytes < first.new_bytes / 5
        here.store.checkpoint()
        later = rig.repository.backup(here.source, block_bytes=4096)
        assert (later.base, later.synthetic) == (first.image, False)


def test_what_is_wrong_becomes_no_image(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.builtin.memory.MemoryView.check", lambda self: iter(["a hole"]))
    with pytest.raises(Inconsistent, match="a hole"):
        rig.repository.synthesize(engine=StagingMemory)
    info = rig.repository.info()
    assert (len(info.images), info.running, info.leases) == (1, (), ())


def test_a_rehearsal_compares_its_digest(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.repository.rehearse(engine=StagingMemory)
    made = rig.repository.synthesize(engine=StagingMemory)
    state = rig.repository._catalog.refresh()
    with here.store.snapshot() as view:
        assert state.images[made.image].synthetic == Synthetic(made.base, view.digest())
    good = rig.repository.rehearse(engine=StagingMemory)
    assert good.compared
    assert "equal to that of when the image was made" in str(good)
    assert not rig.repository.rehearse(to_txid=4, engine=StagingMemory).compared
    monkeypatch.setattr("holdfast.engine.builtin.memory.MemoryView.digest", lambda self: bytes(16))
    with pytest.raises(Inconsistent, match="had"):
        rig.repository.rehearse(engine=StagingMemory)
    [proof] = made_images(rig)[made.image].proofs
    assert (proof["good"], proof["compared"]) == (False, True)


# --- what it must not do ------------------------------------------------------------------------------------------


def test_one_of_an_earlier_point_is_not_the_newest(rig: Rig, here: World, tmp_path: Path) -> None:
    """What comes after a gap in the archive would go with the last image that shows it."""
    here.write(2)
    newest = rig.repository.backup(here.source)  # what it shows was not archived
    early = rig.repository.synthesize(to_txid=4, engine=StagingMemory)
    rig.clock.sleep(3600)
    kept = rig.repository.expire(Keep(last=1, points="none"))
    assert set(kept.kept) == {newest.image, early.image}
    assert kept.kept[newest.image] == "the newest"
    assert here.restored(rig.repository, tmp_path / "last") == here.content(here.txid)
    assert rig.repository.expire(Keep(points="none")).images == (early.image,)


def test_one_of_another_branch_does_not_become_the_current_one(rig: Rig, here: World, tmp_path: Path) -> None:
    rig.repository.restore(tmp_path / "branch", to_txid=6, engine=StagingMemory)
    other = here.branched(tmp_path / "branch", 6, rig.env)
    other.write(2)
    accepted = other.store.history.branch.id.hex()
    rig.repository.backup(other.source, accept_branch=accepted)
    old = here.store.history.branch.id.hex()
    made = rig.repository.synthesize(branch=old, engine=StagingMemory)
    assert made.branch == old
    assert [branch.id for branch in rig.repository.info().branches if branch.current] == [accepted]
    assert other.restored(rig.repository, tmp_path / "r1") == other.content(other.txid)
    assert here.restored(rig.repository, tmp_path / "r2", branch=old) == here.content(here.txid)
    early = rig.repository.synthesize(to_txid=5, branch=accepted, engine=StagingMemory)  # before it was left
    assert early.branch == accepted
    assert here.restored(rig.repository, tmp_path / "r3", to_txid=5, branch=accepted) == here.content(5)
    assert other.restored(rig.repository, tmp_path / "r4", branch=accepted) == other.content(other.txid)
    assert here.restored(rig.repository, tmp_path / "r5", to_txid=7, branch=old) == here.content(7)
    other.close()


def test_where_nothing_may_be_added_nothing_is_restored_first(rig: Rig, here: World, tmp_path: Path) -> None:
    Repository.init(tmp_path / "repository").close()
    copy(tmp_path / "repository", tmp_path / "copy")
    with Repository.open(tmp_path / "copy") as copied, pytest.raises(CopyReadOnly):
        copied.synthesize()
    with Repository.open(tmp_path / "repository", salvage=True) as salvaged, pytest.raises(SalvageReadOnly):
        salvaged.synthesize()
    with pytest.raises(RestorePointOutOfRange):
        rig.repository.synthesize(to_txid=99, engine=StagingMemory)
    name = next(name for name in rig.objects if name.startswith("packs/"))
    del rig.objects[name]
    with pytest.raises((Damaged, ObjectMissing)):
        rig.repository.synthesize(engine=StagingMemory)
    assert rig.repository.info().running == ()


# --- engines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MEMORY, RECORDS, GRAPH], ids=lambda kind: kind.engine.name)
def test_each_kind_of_engine(kind: Any, tmp_path: Path) -> None:
    """Those whose images move, and those whose state is more than a file, too."""
    with (Repository.init(tmp_path / "repository") as repository,
          Store.open(tmp_path / "store", kind.engine, create=True) as store):
        commit(kind, store, 1)
        repository.backup(store)
        archiver = repository.archiver(LocalSource(store))
        digests = {}
        for number in range(2, 5):
            commit(kind, store, number)
            with store.snapshot() as view:
                digests[store.published.txid] = view.digest()
        archiver.step()
        archiver.close()
        for txid, digest in digests.items():
            made = repository.synthesize(to_txid=txid)
            assert made.to_txid == txid
            assert repository.plan(to_txid=txid).image == made.image
            assert repository.rehearse(to_txid=txid).digest == digest.hex()
        assert repository.verify().damaged == ()


# --- races --------------------------------------------------------------------------------------------------------


def test_an_expiry_that_drops_what_it_is_made_of_meanwhile_costs_a_second_session(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease holds the image that is restored; if that runs out, blocks are stored anew."""
    in_one_thread(monkeypatch)
    objects, past = objects_at(), Past()
    past.write(6)
    past.checkpoint()
    with in_memory(objects) as repository:
        repository.backup(past.source, block_bytes=BLOCK_BYTES)
        past.write(3)
        past.checkpoint()
        repository.backup(past.source, block_bytes=BLOCK_BYTES)
        [first, *_] = repository.info().images
    reached: list[str] = []

    def fate(what: str, name: str) -> None:
        if what == "put" and name.startswith("images/") and not reached:  # the root: all blocks are stored
            reached.append(name)
            with in_memory(Objects(objects.clock, objects.objects),
                           now_us=objects.clock.now_us() + 2 * 24 * 3600 * 1_000_000) as other:
                other.expire(Keep(last=1, points="none", abandoned="for ever"))

    where = Objects(objects.clock, objects.objects)
    where.fate = fate
    with in_memory(where) as repository:
        env = replace(repository._env, files=SimDisk())
        report = Repository(where, bytes.fromhex(repository.id), None, env).synthesize(
            to_txid=first.to_txid, scratch=Path("/scratch"), engine=past.run.work.engine)
    assert reached
    with in_memory(objects) as repository:
        info = is_right(repository, past)
        assert report.image in {image.id for image in info.images}
        assert first.id not in {image.id for image in info.images}


def test_the_position_is_that_of_the_log(rig: Rig, here: World) -> None:
    """A chain that the log does not have would make an image that nothing leads on from."""
    rig.repository.synthesize(engine=StagingMemory)
    *_, made = rig.repository._catalog.refresh().images.values()
    for position in (made.image_position, made.end):
        assert position == Position(position.txid, here.store.log.chain_at(position.txid))
