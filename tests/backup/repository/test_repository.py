"""The life of a repository: images and archived log, restored to every point, from every branch, over damage, and with
keys."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repository_rig import SMALL, Content, Objects, Rig, World, content_of, world
from staging_memory import StagingMemory
from store_kinds import GRAPH, commit

from holdfast.backup.repository import archiver as archiving
from holdfast.backup.repository import catalog as cataloguing
from holdfast.backup.repository import names
from holdfast.backup.repository.errors import (
    KeyMissing,
    KeyNeedless,
    KeyWrong,
    RepositoryExists,
    RepositoryMissing,
    StorageDenied,
)
from holdfast.backup.repository.keys import Key, Keyring
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.restoring import tree_of
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import REAL
from holdfast.engine.errors import (
    Damaged,
    Diverged,
    ForeignStore,
    HoldfastError,
    InvalidInput,
    NotFound,
    OtherBranch,
    RestorePointOutOfRange,
    StoreExists,
)
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

S = 1_000_000
KEY, OTHER_KEY = Key(b"a secret of the operator"), Key(b"another one of the operator")


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        yield made


# --- life ---------------------------------------------------------------------------------------------------------


def test_every_transaction_is_restored_from_images_and_log(rig: Rig, here: World, tmp_path: Path) -> None:
    """Two images, log before, between and after them, bulk loads in both, and records of the kit between all that."""
    repository = rig.repository
    here.write(5)
    here.bulk()
    first = repository.backup(WritesBetween(here.store, here.bulk))
    assert first.to_txid > first.consistent_from
    archiver = here.archiver(repository)
    for round in range(4):
        here.write(3)
        here.store.write_path.mark()
        here.bulk()
        if round == 1:
            here.store.checkpoint()
            repository.backup(here.source)
        archiver.step()
    assert archiver.end == here.store.published
    [branch] = repository.info().branches
    [bounds] = branch.restores_to
    assert (bounds.first, bounds.last) == (first.consistent_from, here.txid)
    for txid in range(bounds.first, bounds.last + 1):
        assert here.restored(repository, tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)
    assert repository.verify().damaged == ()


def test_a_directory_is_a_repository_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(RepositoryMissing, match="no repository"):
        Repository.open(tmp_path / "repository")
    Repository.init(tmp_path / "repository").close()
    with pytest.raises(RepositoryExists):
        Repository.init(tmp_path / "repository")
    with world(tmp_path / "store", REAL, engine=MemoryEngine) as here, Repository.open(tmp_path / "repository") as made:
        here.write(10)
        made.backup(here.store)
        here.write(10)
        here.archiver(made).step()
        assert here.restored(made, tmp_path / "last") == here.content(here.txid)
        made.restore(tmp_path / "found", to_txid=15)
        assert content_of(tmp_path / "found", MemoryEngine) == here.content(15)
        assert made.verify().damaged == ()


def test_the_second_image_stores_what_changed(rig: Rig, tmp_path: Path) -> None:
    """A megabyte that stays, and a little that changes."""
    with world(tmp_path / "store", rig.env, settings=Settings(heartbeat_s=0)) as here:
        same = hashlib.shake_128(b"same").digest(1 << 20)
        with here.store.transaction() as tx:
            tx.put(b"a", same)
        here.note({b"a": same})
        here.store.checkpoint()
        first = rig.repository.backup(here.source)
        here.write(1)
        here.store.checkpoint()
        packs = {name for name in rig.objects if name.startswith("packs/")}
        second = rig.repository.backup(here.source)
        assert first.new_bytes > 1 << 20
        assert second.new_bytes < 100_000
        assert second.base == first.image
        assert sum(len(rig.objects[n][0]) for n in rig.objects if n.startswith("packs/") and n not in packs) < 100_000
        assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)


def test_blocks_of_another_size_are_all_stored(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(50, size=4000)
    here.store.checkpoint()
    first, second = rig.repository.backup(here.source), rig.repository.backup(here.source, block_bytes=4096)
    assert second.new_bytes > first.new_bytes / 2
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)
    for wrong in (4095, 131072, 12288, 4096.0):
        with pytest.raises(InvalidInput, match="power of two"):
            rig.repository.backup(here.source, block_bytes=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("piece_bytes", "count"), [(1, 20), (3000, 3)])
def test_one_step_may_make_many_pieces(rig: Rig, here: World, tmp_path: Path, piece_bytes: int, count: int) -> None:
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archiver._piece_bytes = piece_bytes
    here.write(20, size=600)
    done = archiver.step()
    assert done.transactions == here.txid - rig.repository.info().images[0].to_txid
    pieces = [name for name in rig.objects if name.startswith("log/")]
    assert len(pieces) == 1 + count  # the first is the fence
    assert here.restored(rig.repository, tmp_path / "r", to_txid=here.txid - 7) == here.content(here.txid - 7)


def test_a_record_may_be_larger_than_a_frame(rig: Rig, tmp_path: Path) -> None:
    with world(tmp_path / "store", rig.env, settings=Settings(heartbeat_s=0)) as here:
        load = {b"%d" % n: hashlib.shake_128(b"%d" % n).digest(1 << 20) for n in range(5)}
        for number in range(2):  # in the image's own log, and archived
            with here.store.transaction() as tx:
                for key, value in load.items():
                    tx.put(key, value + b"%d" % number if len(value) < 1 << 20 else value[1:] + b"%d" % number)
            here.note({key: value[1:] + b"%d" % number for key, value in load.items()})
            if not number:
                rig.repository.backup(here.source)
                archiver = here.archiver(rig.repository)
        archiver.step()
        for txid in (here.txid - 1, here.txid):
            assert here.restored(rig.repository, tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)


def test_restores_to_a_time(rig: Rig, here: World, tmp_path: Path) -> None:
    """To the last transaction at or before it. "After the end" is judged by what was archived, not by a clock."""
    here.write(3)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    for _ in range(4):
        rig.clock.time_us += 100 * S
        here.write(1)
    archiver.step()
    last = here.txid
    for txid in range(last - 3, last + 1):
        at = here.time_us(txid)
        for off, expected in ((0, txid), (-1, txid - 1), (50 * S, txid)):
            if txid == last and off > 0:
                continue
            place = tmp_path / f"r{txid} {off}"
            assert here.restored(rig.repository, place, at=moment(at + off)) == here.content(expected)
    [bounds] = rig.repository.info().branches[0].restores_to
    for at, told in ((bounds.complete_until_us + 1, "after the end of"), (here.time_us(2) - 1000 * S, "not in")):
        with pytest.raises(RestorePointOutOfRange, match=f"{told} the repository, which restores to transaction "
                           f"{bounds.first}.* to {last}"):
            here.restored(rig.repository, tmp_path / "never", at=moment(at))
    assert not (tmp_path / "never").exists()


def test_a_store_that_was_empty_restores_to_times_from_its_first_transaction_on(rig: Rig, here: World, tmp_path: Path
                                                                                ) -> None:
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    begun = here.txid
    for _ in range(3):
        rig.clock.time_us += 100 * S
        here.write(1)
    archiver.step()
    for txid in range(begun + 1, here.txid + 1):
        assert here.restored(rig.repository, tmp_path / f"r{txid}", at=moment(here.time_us(txid))) == (
            here.content(txid))


def test_restores_to_a_mark(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(4)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    rig.clock.time_us += 100 * S
    here.write(4)
    archiver.step()
    last = here.txid
    assert rig.repository.mark("the last")["txid"] == last
    assert rig.repository.mark("earlier", to_txid=last - 2)["txid"] == last - 2
    assert rig.repository.mark("then", at=moment(here.time_us(last - 1)), keep=True)["txid"] == last - 1
    here.write(4)
    archiver.step()
    for name, txid in (("the last", last), ("earlier", last - 2), ("then", last - 1)):
        assert here.restored(rig.repository, tmp_path / name, mark=name) == here.content(txid)
        assert rig.repository.plan(mark=name).txid == txid
    with pytest.raises(InvalidInput, match="a mark 'then' already"):
        rig.repository.mark("then")
    with pytest.raises(InvalidInput, match="not a name"):
        rig.repository.mark("a\nb")
    with pytest.raises(RestorePointOutOfRange):
        rig.repository.mark("never", to_txid=here.txid + 1)
    with pytest.raises(InvalidInput, match="another point"):
        rig.repository.plan(mark="then", to_txid=5)
    rig.repository.unmark("then")
    with pytest.raises(NotFound, match="no mark 'then'; there are: the last, earlier"):
        rig.repository.plan(mark="then")
    with pytest.raises(NotFound):
        rig.repository.unmark("then")


def test_a_plan_changes_nothing_and_says_what_a_restore_would_do(rig: Rig, here: World) -> None:
    here.write(4)
    report = rig.repository.backup(here.source)
    here.write(4)
    here.archiver(rig.repository).step()
    before = dict(rig.objects)
    plan = rig.repository.plan(to_txid=here.txid - 1)
    assert (plan.image, plan.txid, plan.log_to) == (report.image, here.txid - 1, here.txid - 1)
    assert rig.repository.plan().txid == here.txid
    with pytest.raises(RestorePointOutOfRange, match=f"transaction {here.txid + 1} is not in the repository, which "
                       f"restores to transaction {report.consistent_from} .*to {here.txid}"):
        rig.repository.plan(to_txid=here.txid + 1)
    assert rig.objects == before


def test_a_directory_that_is_in_use_is_replaced_only_by_force(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(4)
    rig.repository.backup(here.source)
    place = tmp_path / "r"
    assert here.restored(rig.repository, place, to_txid=here.txid) == here.content(here.txid)
    here.write(4)
    rig.repository.backup(here.source)
    with pytest.raises(StoreExists):
        rig.repository.restore(place, engine=StagingMemory)
    assert content_of(place) == here.content(here.txid - 4)
    assert here.restored(rig.repository, place, force=True) == here.content(here.txid)
    assert rig.repository.info().leases == ()


def test_an_empty_repository_says_that_it_is_empty(rig: Rig, here: World, tmp_path: Path) -> None:
    assert "nothing was backed up" in str(rig.repository.info())
    with pytest.raises(NotFound, match="no branch yet"):
        rig.repository.restore(tmp_path / "r")
    here.write(3)
    here.archiver(rig.repository).step()
    with pytest.raises(RestorePointOutOfRange, match="no image of this branch"):
        rig.repository.restore(tmp_path / "r", engine=StagingMemory)
    assert "restores to nothing" in str(rig.repository.info())


def test_rights_to_read_are_enough_to_restore(rig: Rig, here: World, tmp_path: Path) -> None:
    class ReadOnly(Objects):
        def put(self, name: str, data: bytes) -> None:
            raise StorageDenied("you may only read")

    here.write(4)
    rig.repository.backup(here.source)
    reader = rig.opened(ReadOnly(rig.clock, rig.objects))
    assert here.restored(reader, tmp_path / "r") == here.content(here.txid)


def test_a_rehearsal_restores_and_is_noted(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(4)
    report = rig.repository.backup(here.source)
    here.write(4)
    here.archiver(rig.repository).step()
    told = rig.repository.rehearse(engine=StagingMemory, scratch=tmp_path / "scratch")
    with here.store.snapshot() as view:
        assert (told.txid, told.digest) == (here.txid, view.digest().hex())
    assert list((tmp_path / "scratch").iterdir()) == []
    [image] = rig.repository.info().images
    [proof] = image.proofs
    assert (proof["of"], proof["kind"], proof["good"], proof["txid"]) == (report.image, "rehearsal", True, here.txid)


class WritesBetween(LocalSource):
    """The store is written to between one read of the image and the next."""

    def __init__(self, store: Store[Any, Any], between: Callable[[], None]) -> None:
        super().__init__(store)
        self._between = between

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        data = super().read_image(lease_id, name, offset, length)
        self._between()
        return data


def test_an_image_that_moves_while_it_is_read_is_whole(rig: Rig, tmp_path: Path) -> None:
    """The graph store's, in several states at once. It restores to `consistent_from`, and to its end."""
    with GRAPH.open(tmp_path / "store", settings=SMALL) as store:
        numbers = iter(range(1, 100_000))
        shown: dict[int, int] = {}

        def write() -> None:
            for _ in range(20):
                n = next(numbers)
                commit(GRAPH, store, n)
                shown[store.published.txid] = n
            store.checkpoint()

        write()
        source = WritesBetween(store, write)
        reports = [rig.repository.backup(source) for _ in range(2)]
        write()
        archiver = rig.repository.archiver(source)
        archiver.step()
        assert reports[1].consistent_from < reports[1].to_txid
        for n, txid in enumerate({t for r in reports for t in (r.consistent_from, r.to_txid)} | {store.published.txid}):
            rig.repository.restore(tmp_path / f"r{n}", to_txid=txid)
            with GRAPH.open(tmp_path / f"r{n}", settings=SMALL) as restored:
                last = max(number for at, number in shown.items() if at <= txid)
                assert GRAPH.numbers(restored) == set(range(1, last + 1))


# --- branches -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parted(rig: Rig, here: World, tmp_path: Path) -> Iterator[tuple[World, World, int]]:
    """Two stores that go on from one transaction, both with images and archived log before and after it."""
    here.write(5)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    here.write(5)
    archiver.step()
    parts_at = here.txid - 2
    rig.repository.restore(tmp_path / "other", to_txid=parts_at, engine=StagingMemory)
    there = here.branched(tmp_path / "other", parts_at, rig.env)
    try:
        here.write(5)
        archiver.step()
        there.write(4, size=60)
        yield here, there, parts_at
    finally:
        there.close()


def assert_restores(rig: Rig, made: World, first: int, last: int, places: Path) -> None:
    branch = made.store.history.branch.id.hex()
    for txid in range(first, last + 1):
        place = places / f"{branch[:8]} {txid}"
        assert made.restored(rig.repository, place, to_txid=txid, branch=branch) == made.content(txid)
        shutil.rmtree(place)
    with pytest.raises(RestorePointOutOfRange):
        rig.repository.plan(to_txid=last + 1, branch=branch)


@pytest.mark.parametrize("begins", ["image", "log"])
def test_both_branches_restore_before_and_after_they_part(rig: Rig, parted: tuple[World, World, int], tmp_path: Path,
                                                          begins: str) -> None:
    """Whether the new branch begins with an image, or with archived log that goes on from where it left."""
    here, there, parts_at = parted
    branch = there.store.history.branch.id.hex()
    if begins == "image":
        rig.repository.backup(there.source, accept_branch=branch[:8])
    archiver = there.archiver(rig.repository, accept_branch=branch)
    there.write(3)
    archiver.step()
    first = rig.repository.info().images[0].consistent_from
    assert_restores(rig, here, first, here.txid, tmp_path)
    assert_restores(rig, there, first, there.txid, tmp_path)
    assert here.content(parts_at + 1) != there.content(parts_at + 2)
    assert rig.repository.verify().damaged == ()


def test_a_new_branch_must_be_accepted_by_name(rig: Rig, parted: tuple[World, World, int]) -> None:
    _, there, _ = parted
    branch, before = there.store.history.branch.id.hex(), dict(rig.objects)
    for call in (rig.repository.backup, rig.repository.archiver):
        with pytest.raises(OtherBranch) as refused:
            call(there.source)
        assert f"--accept-branch {branch[:8]}" in str(refused.value.hint)
        with pytest.raises(OtherBranch):
            call(there.source, accept_branch="0" * 8)
        for wrong in ("123", "not an id"):
            with pytest.raises(InvalidInput):
                call(there.source, accept_branch=wrong)
    assert rig.objects == before
    rig.repository.archiver(there.source, accept_branch=f" {branch[:8].upper()} ")
    rig.repository.archiver(there.source)  # once is enough


def test_another_store_is_refused(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(1)
    rig.repository.backup(here.source)
    before = dict(rig.objects)
    with world(tmp_path / "foreign", rig.env) as foreign:
        for call in (rig.repository.backup, rig.repository.archiver):
            with pytest.raises(ForeignStore):
                call(foreign.source, accept_branch=foreign.store.history.branch.id.hex())
    assert rig.objects == before


def test_an_archive_that_is_ahead_of_the_store_is_not_gone_on_with(rig: Rig, here: World, tmp_path: Path) -> None:
    """The store was set back by copying old files over it, and not by a restore."""
    here.write(3)
    here.close()
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    with world(tmp_path / "store", rig.env, models=here.models) as ahead:
        ahead.write(3)
        ahead.archiver(rig.repository).step()
    with world(tmp_path / "old", rig.env, models=here.models) as old:
        with pytest.raises(Diverged, match="which the source does not have"):
            old.archiver(rig.repository)
        old.write(6, size=80)
        with pytest.raises(Diverged, match="another transaction"):
            old.archiver(rig.repository)


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, World]:
    return lived_a_little(rig, here, monkeypatch)


def lived_a_little(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, World]:
    """Two images, a unit, pieces before and after it, attachments in both kinds of log, and checkpoints of the catalog.
    """
    monkeypatch.setattr(archiving, "FAN_IN", 3)
    monkeypatch.setattr(cataloguing, "CHECKPOINT_EVERY", 3)
    here.write(3, size=4000)
    rig.repository.backup(WritesBetween(here.store, here.bulk))
    archiver = here.archiver(rig.repository)
    for _ in range(4):
        here.write(1, size=4000)
        archiver.step()
    here.store.checkpoint()
    rig.repository.backup(here.source)
    here.bulk(5)
    archiver.step()
    here.write(1)
    archiver.step()
    return rig, here


def _flipped(data: bytes) -> bytes:
    middle = len(data) * 2 // 3
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[dict[str, Any], str], None]] = {
    "flipped": lambda objects, name: objects.update({name: (_flipped(objects[name][0]), objects[name][1])}),
    "cut": lambda objects, name: objects.update({name: (objects[name][0][:-9], objects[name][1])}),
    "swapped": lambda objects, name: objects.update({name: objects[_like(objects, name)]}),
    "deleted": lambda objects, name: objects.pop(name),
}


def _like(objects: dict[str, Any], name: str) -> str:
    """Another object of the same kind, if there is one; else of another kind."""
    others = [other for other in objects if other != name]
    return max(others, key=lambda other: (other.split("/")[0] == name.split("/")[0],
                                          other.split("/")[2:3] == name.split("/")[2:3], other))


def _needless(objects: dict[str, Any], name: str, damage: str) -> bool:
    """Whether nobody misses the object: it is in a unit or a checkpoint; it is a checkpoint, whose entries are there;
    it was for another archiver; or it is the last of its kind, so nothing tells that there was one more."""
    folder = name.split("/")[0]
    if folder in ("checkpoints", "writers"):
        return True
    if folder == "catalog" and names.number_of(name) <= max(
            names.number_of(n) for n in objects if n.startswith("checkpoints/")):
        return True
    if folder == "log":
        in_units = [n.rpartition("/")[2].split("-")[1:3] for n in objects if n.startswith("merged/")]
        slot = names.number_of(name)
        if any(int(first) <= slot <= int(last) for first, last in in_units):
            return True
    last = max(n for n in objects if n.startswith(f"{folder}/"))
    return damage == "deleted" and folder in ("log", "catalog") and name == last


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_wrong_is_restored(small: tuple[Rig, World], tmp_path: Path, damage: str) -> None:
    """In each object in turn. What does not need it restores."""
    rig, here = small
    images = rig.repository.info().images
    points = [images[0].consistent_from, images[0].to_txid, images[1].to_txid, here.txid - 1, here.txid]
    assert {name.split("/")[0] for name in rig.objects} == {
        "attachments", "catalog", "checkpoints", "images", "log", "merged", "packs", "writers"}
    assert any("/files/" in name for name in rig.objects)
    for number, name in enumerate(sorted(rig.objects)):
        copy = rig.copied()
        DAMAGE[damage](copy.objects, name)
        needless = _needless(rig.objects, name, damage)
        told = _told(lambda copy=copy: "\n".join(copy.repository.verify().damaged))  # type: ignore[misc]
        assert needless or name in told
        lost = set()
        for point in (*points, None):
            place = tmp_path / f"{number} {point}"
            found, told = _restored(here, copy, place, point)
            if found is None:
                assert needless or name in told
                lost.add(point)
            else:
                assert needless or found == here.content(here.txid if point is None else point)
                shutil.rmtree(place)
        if name.startswith(f"images/{images[0].id}"):
            assert not lost & {points[2], None}
        if name.startswith(f"images/{images[1].id}"):
            assert not lost & set(points[:2])
        if name.startswith("log/"):
            assert not lost & set(points[:3])


def _restored(here: World, copy: Rig, place: Path, point: int | None) -> tuple[Content | None, str]:
    """What a restore gave, or what it said."""
    try:
        return here.restored(copy.opened(), place, **({} if point is None else {"to_txid": point})), ""
    except HoldfastError as error:
        return None, str(error)


def _told(call: Callable[[], str]) -> str:
    try:
        return call()
    except HoldfastError as error:
        return str(error)


def test_what_a_verify_found_damaged_is_stored_anew(rig: Rig, here: World, tmp_path: Path) -> None:
    here.write(30, size=4000)
    here.store.checkpoint()
    bad = rig.repository.backup(here.source)
    [pack] = [name for name in rig.objects if name.startswith("packs/")]
    data, put_us = rig.objects[pack]
    rig.objects[pack] = data[:100] + bytes([data[100] ^ 1]) + data[101:], put_us
    assert rig.repository.verify().bad_images == (bad.image,)
    assert rig.repository.verify(sample=1e-9).damaged == ()  # it read nothing, and forgets nothing
    good = rig.repository.backup(here.source)
    assert good.new_bytes > bad.new_bytes / 2
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)
    assert rig.repository.verify().bad_images == (bad.image,)
    assert rig.repository.backup(here.source).new_bytes < bad.new_bytes / 2


@pytest.mark.parametrize("what", ["root", "leaf", "pack"])
def test_a_last_image_that_cannot_be_read_does_not_stop_the_next(rig: Rig, here: World, tmp_path: Path, what: str
                                                                 ) -> None:
    here.write(30, size=4000)
    here.store.checkpoint()
    bad = rig.repository.backup(here.source)
    [pack] = [name for name in rig.objects if name.startswith("packs/")]
    if what == "leaf":  # it is the last block; the index is after it
        image = rig.repository._archive().state.images[bad.image]
        tree = tree_of(rig.storage, rig.repository._seal, image, rig.env)
        [(_, [place])] = tree.root.files
        data, put_us = rig.objects[pack]
        rig.objects[pack] = data[: place.offset + 9] + b"!" + data[place.offset + 10 :], put_us
    else:
        del rig.objects[pack if what == "pack" else names.root(bad.image)]
    rig.repository.backup(here.source)
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_compared(tmp_path: Path) -> None:
    Repository.init(tmp_path / "plain").close()
    Repository.init(tmp_path / "sealed", key=KEY).close()
    with pytest.raises(KeyMissing, match="no key was given"):
        Repository.open(tmp_path / "sealed")
    with pytest.raises(KeyWrong, match="does not open"):
        Repository.open(tmp_path / "sealed", key=OTHER_KEY)
    with pytest.raises(KeyNeedless, match="not encrypted"):
        Repository.open(tmp_path / "plain", key=KEY)
    with pytest.raises(RepositoryExists):
        Repository.init(tmp_path / "sealed", key=KEY)
    with Repository.open(tmp_path / "sealed", key=KEY) as opened:
        assert opened.encrypted
        assert "encrypted" in str(opened.info())


def test_rotation_begins_a_new_key_and_keeps_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "sealed"
    with world(tmp_path / "store", REAL) as here:
        with Repository.init(place, key=KEY) as repository:
            here.write(4)
            repository.backup(here.source)
            before = here.txid
            old = {p for p in place.rglob("*") if p.is_file()}
            repository.rotate(OTHER_KEY)
            here.write(4)
            here.archiver(repository).step()
            assert here.restored(repository, tmp_path / "r") == here.content(here.txid)
        with pytest.raises(KeyWrong):
            Repository.open(place, key=KEY)
        with Repository.open(place, key=OTHER_KEY) as repository:
            assert here.restored(repository, tmp_path / "before", to_txid=before) == here.content(before)
            assert here.restored(repository, tmp_path / "after") == here.content(here.txid)
        (place / "keys" / "000002").rename(tmp_path / "newer")
        with Repository.open(place, key=KEY) as stale, pytest.raises(KeyMissing, match="data key 2"):
            stale.info()
        for path in {p for p in place.rglob("*") if p.is_file()} - old:
            path.unlink()
        with Repository.open(place, key=KEY) as first:  # what was there before, the old key opens
            assert here.restored(first, tmp_path / "first") == here.content(before)
        (place / "keys" / "000001").unlink()
        (tmp_path / "newer").rename(place / "keys" / "000002")
        with pytest.raises(KeyWrong):
            Repository.open(place, key=KEY)
        with Repository.open(place, key=OTHER_KEY) as last:
            assert here.restored(last, tmp_path / "last") == here.content(before)


def test_an_object_under_another_name_or_in_the_clear_is_refused(here: World) -> None:
    rig = Rig(Keyring({1: bytes(32)}, 1))
    here.write(3)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    for _ in range(2):
        here.write(1)
        archiver.step()
    branch = here.store.history.branch.id.hex()
    second, third = names.piece(branch, 2), names.piece(branch, 3)
    moved = rig.copied()
    moved.objects[second] = moved.objects[third]
    with pytest.raises(Damaged, match="does not match the checksum"):
        moved.repository._archive().piece(branch, 2)
    bare = rig.copied()
    bare.keyring = None
    with pytest.raises(Damaged, match="is encrypted, and the repository is not"):
        bare.opened().info()
    plain = Rig()
    plain.repository.backup(here.source)
    forged = rig.copied()
    forged.objects |= {name: data for name, data in plain.objects.items() if name.startswith("catalog/")}
    with pytest.raises(Damaged, match="is not encrypted, and the repository is"):
        forged.repository.info()


@pytest.mark.parametrize("keyring", [None, Keyring({1: b"k" * 32}, 1)], ids=["plain", "encrypted"])
def test_no_planted_value_can_be_read_without_the_key(tmp_path: Path, keyring: Keyring | None,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """200 names and values in image, log and attachments, nothing compressed. In the clear all of them are found."""
    monkeypatch.setattr("zstandard.ZstdCompressor", lambda level: SimpleNamespace(compress=lambda piece: piece))
    rig = Rig(keyring)
    planted = [hashlib.shake_128(b"planted %d" % n).hexdigest(16).encode() for n in range(200)]
    values = [hashlib.shake_128(b"value %d" % n).digest(60) for n in range(200)]
    with world(tmp_path / "store", rig.env) as here:
        def plant(some: range) -> None:
            for n in some:
                with here.store.transaction() as tx:
                    tx.put(planted[n], values[n])

        plant(range(50))
        here.store.checkpoint()
        plant(range(50, 100))
        here.store.bulk({planted[n]: values[n] for n in range(100, 130)})
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        plant(range(130, 170))
        here.store.bulk({planted[n]: values[n] for n in range(170, 200)})
        archiver.step()
        rig.repository.mark(planted[0].decode())
    seen = b"\n".join([*(data for data, _ in rig.objects.values()), *(name.encode() for name in rig.objects)])
    found = sum(value in seen for value in values), sum(name in seen for name in planted)
    assert found == ((0, 0) if keyring else (200, 200))
