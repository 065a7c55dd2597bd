"""What a verify says that a damage costs: exactly the points to which a restore is refused, and no other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from repository_rig import Content, Rig, World, world

from holdfast.backup.repository import imaging, names
from holdfast.backup.repository.archiver import Archiver
from holdfast.backup.repository.pieces import batches
from holdfast.backup.repository.repository import Repository
from holdfast.engine.errors import Damaged, RestorePointOutOfRange

Lost = list[tuple[int, int | None]]


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        made.write(3)
        yield made


def archived(here: World, archiver: Archiver, *sizes: int) -> None:
    """Pieces with so many transactions."""
    for size in sizes:
        here.write(size)
        archiver.step()


def damage(rig: Rig, name: str, at: int = -20) -> None:
    data, time_us = rig.objects[name]
    changed = bytearray(data)
    changed[at] ^= 1
    rig.objects[name] = bytes(changed), time_us


def piece_with(rig: Rig, here: World, txid: int) -> str:
    """The piece in the archive that has a transaction."""
    archive = rig.opened()._archive()
    branch = here.store.history.branch.id.hex()
    slots = range(1, 1 + sum(name.startswith(f"{names.LOG}/{branch}/") for name in rig.objects))
    found = [slot for slot in slots for piece, _ in [archive.piece(branch, slot)]
             if piece.after.txid < txid <= piece.end.txid]
    return names.piece(branch, found[0])


def check(repository: Repository, here: World, tmp_path: Path, branch: str | None = None,
          models: dict[int, Content] | None = None) -> Lost:
    """Restore every point, and compare what is refused with what a verify says. Returns that."""
    report = repository.verify()
    of = branch or here.store.history.branch.id.hex()
    said: Lost = [(one.first, one.last) for one in report.lost if one.branch == of]
    models = models or here.models
    for txid in range(max(models) + 1):
        lost = any(first <= txid and (last is None or txid <= last) for first, last in said)
        try:
            content = here.restored(repository, tmp_path / f"restored {of[:4]} {txid}", to_txid=txid, branch=of)
        except Damaged:
            assert lost, f"transaction {txid} does not restore, and is not in {said}"
        except RestorePointOutOfRange:
            assert not lost, f"transaction {txid} was never there"
        else:
            assert not lost, f"transaction {txid} restores, and is in {said}"
            assert content == models[max(n for n in models if n <= txid)]
    for first, last in said:
        assert f"transaction {first} {'on' if last is None else f'to {last}'}" in str(report)
    return said


def missing(rig: Rig, name: str) -> None:
    del rig.objects[name]


@pytest.mark.parametrize("harm", [damage, missing, lambda rig, name: damage(rig, name, 60)],
                         ids=["its records", "gone", "its head"])
def test_a_damaged_piece_costs_the_points_up_to_the_next_image(harm: Callable[[Rig, str], None], rig: Rig, here: World,
                                                               tmp_path: Path) -> None:
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2, 3, 2)
    here.store.checkpoint()
    rig.repository.backup(here.source)
    archived(here, archiver, 2, 2)
    harm(rig, piece_with(rig, here, 7))
    assert check(rig.opened(), here, tmp_path) == [(6, 9)]


@pytest.mark.parametrize("at", [60, -20])
def test_a_verify_reads_on_after_a_damage(at: int, rig: Rig, here: World, tmp_path: Path) -> None:
    """It stopped at the first one, and did not know of the second, behind the next image."""
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2, 3, 2)
    here.store.checkpoint()
    rig.repository.backup(here.source)
    archived(here, archiver, 2, 2, 2)
    harmed = [piece_with(rig, here, txid) for txid in (7, 14)]
    for name in harmed:
        damage(rig, name, at)
    assert check(rig.opened(), here, tmp_path) == [(6, 9), (13, 16)]
    damaged = rig.opened().verify().damaged
    assert [name for name in harmed if any(name in one for one in damaged)] == harmed


def test_what_comes_before_the_damage_in_one_piece_restores(rig: Rig, here: World, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are in frames of their own, and a restore reads no further than it needs."""
    monkeypatch.setattr("holdfast.backup.repository.pieces.FRAME_BYTES", 4000)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    for _ in range(6):
        value = rig.env.randomness.token(3000)
        with here.store.transaction() as tx:
            tx.put(b"key", value)
        here.note({b"key": value})
    archiver.step()
    archived(here, archiver, 2)
    name = piece_with(rig, here, 6)
    damage(rig, name, len(rig.objects[name][0]) // 2)
    [(first, last)] = check(rig.opened(), here, tmp_path)
    assert (4 < first < 9, last) == (True, 11)


@pytest.mark.parametrize("harm", [damage, missing])
def test_a_damaged_unit_costs_its_points(harm: Callable[[Rig, str], None], rig: Rig, here: World, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.backup.repository.archiver.FAN_IN", 2)
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2, 2, 1, 1, 1, 1, 1)
    state = rig.opened()._archive().state
    units = list(state.branches[here.store.history.branch.id.hex()].largest())
    harm(rig, units[-1].name)
    said = check(rig.opened(), here, tmp_path)
    assert said == [(units[-1].after.txid + 1, here.txid)]
    assert len(rig.opened().verify().damaged) == 1


def test_a_damaged_last_piece_costs_what_nobody_knows(rig: Rig, here: World, tmp_path: Path) -> None:
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2, 2)
    damage(rig, piece_with(rig, here, 7), 60)
    assert check(rig.opened(), here, tmp_path) == [(6, None)]
    with pytest.raises(Damaged):
        here.restored(rig.opened(), tmp_path / "the end")


def test_a_damaged_piece_that_has_nothing_costs_nothing(rig: Rig, here: World, tmp_path: Path) -> None:
    """A fence says where a writer began. It was an error to pass it if it could not be read."""
    rig.repository.backup(here.source)
    archived(here, here.archiver(rig.repository), 2)
    archived(here, here.archiver(rig.opened()), 2)
    branch = here.store.history.branch.id.hex()
    archive = rig.opened()._archive()
    [second] = [slot for slot in range(2, 5) if archive.piece(branch, slot)[0].fence]
    damage(rig, names.piece(branch, second), 60)
    assert check(rig.opened(), here, tmp_path) == []
    report = rig.opened().verify()
    assert len(report.damaged) == 1
    assert "every point restores all the same" in str(report)


def test_a_damaged_block_costs_the_points_of_its_images(rig: Rig, here: World, tmp_path: Path) -> None:
    """Points are restored from the newest image before them, so those that an older image has stay."""
    here.store.checkpoint()
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2)
    here.bulk()
    here.store.checkpoint()
    archiver.step()
    bad = rig.repository.backup(here.source, block_bytes=4096)
    archived(here, archiver, 2)
    here.store.checkpoint()
    rig.repository.backup(here.source, block_bytes=8192)
    damage(rig, next(name for name in rig.objects if name.startswith(f"{names.PACKS}/{bad.image}/")), 60)
    report = rig.opened().verify()
    assert report.bad_images == (bad.image,)
    assert check(rig.opened(), here, tmp_path) == [(6, 7)]


@pytest.mark.parametrize(("at", "ours", "theirs"), [(5, (4, 11), [(4, 9)]), (9, (9, 11), [])])
def test_a_damage_costs_points_of_the_branches_that_share_it(at: int, ours: tuple[int, int], theirs: Lost, rig: Rig,
                                                             here: World, tmp_path: Path) -> None:
    """A branch that left another one shares its past up to there, and no further."""
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    archived(here, archiver, 2, 3, 2, 1)
    rig.repository.restore(tmp_path / "other", to_txid=7, engine=here.engine)
    other = here.branched(tmp_path / "other", 7, rig.env)
    try:
        branch = other.store.history.branch.id.hex()
        archived(other, other.archiver(rig.repository, accept_branch=branch), 2)
        damage(rig, piece_with(rig, here, at), 60)
        assert check(rig.opened(), here, tmp_path) == [ours]
        assert check(rig.opened(), other, tmp_path, branch, other.models) == theirs
    finally:
        other.close()


def test_a_damaged_log_of_an_image_costs_what_comes_after_it(rig: Rig, here: World, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """What its pieces before have restores, although the image as a whole is bad."""
    monkeypatch.setattr(imaging, "batches", partial(batches, most=100))
    here.write(4, size=200)
    bad = rig.repository.backup(here.source)
    pieces = sorted(name for name in rig.objects if name.startswith(f"{names.IMAGES}/{bad.image}/log/"))
    assert len(pieces) > 4
    damage(rig, pieces[4], 60)
    assert rig.opened().verify().bad_images == (bad.image,)
    [(first, last)] = check(rig.opened(), here, tmp_path)
    assert (0 < first < 7, last) == (True, 7)


def test_a_damaged_log_of_an_image_costs_no_branch_that_left_before(rig: Rig, here: World, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "batches", partial(batches, most=100))
    here.write(4, size=200)
    image = rig.repository.backup(here.source).image
    rig.repository.restore(tmp_path / "other", to_txid=4, engine=here.engine)
    other = here.branched(tmp_path / "other", 4, rig.env)
    try:
        branch = other.store.history.branch.id.hex()
        archived(other, other.archiver(rig.repository, accept_branch=branch), 2)
        damage(rig, sorted(name for name in rig.objects if name.startswith(f"{names.IMAGES}/{image}/log/"))[-1], 60)
        assert check(rig.opened(), here, tmp_path) == [(7, 7)]
        assert check(rig.opened(), other, tmp_path, branch, other.models) == []
    finally:
        other.close()
