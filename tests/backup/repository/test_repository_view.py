"""A past state is opened to read from, in a scratch place that goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import Content, Objects, Rig, World, world
from staging_memory import StagingMemory

from holdfast.backup.repository.errors import StorageDenied
from holdfast.backup.testing.world import moment
from holdfast.engine.errors import Damaged, RestorePointOutOfRange


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    """An image, log after it, and a bulk load in both."""
    with world(tmp_path / "store", rig.env) as made:
        made.write(3)
        rig.repository.backup(made.source)
        archiver = made.archiver(rig.repository)
        for _ in range(3):
            rig.clock.sleep(60)
            made.write(2)
            made.bulk()
            archiver.step()
        yield made


def shown(rig: Rig, scratch: Path, **point: object) -> Content:
    with rig.repository.view(engine=StagingMemory, scratch=scratch, **point) as view:  # type: ignore[arg-type]
        assert len(list(scratch.iterdir())) == 1
        return dict(view.items())


def test_each_point_is_seen_as_it_was(rig: Rig, here: World, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for txid in range(3, here.txid + 1):
        assert shown(rig, scratch, to_txid=txid) == here.content(txid)
    assert shown(rig, scratch) == here.content(here.txid)
    assert shown(rig, scratch, at=moment(here.time_us(6))) == here.content(6)
    rig.repository.mark("here", to_txid=5)
    assert shown(rig, scratch, mark="here") == here.content(5)
    assert list(scratch.iterdir()) == []


def test_two_moments_lie_side_by_side_while_the_store_goes_on(rig: Rig, here: World) -> None:
    last = here.txid
    with (rig.repository.view(to_txid=4, engine=StagingMemory) as early,
          rig.repository.view(engine=StagingMemory) as late):
        here.write(5)
        assert (dict(early.items()), dict(late.items())) == (here.content(4), here.content(last))
        assert early.txid == 4
        assert list(early.check()) == []


def test_nothing_in_the_repository_changes_but_a_lease_that_is_given_back(rig: Rig, here: World) -> None:
    before = dict(rig.objects)
    with rig.repository.view(engine=StagingMemory):
        assert rig.repository.info().leases == ()  # everything has been read
    assert {name: rig.objects[name] for name in before} == before
    assert {name.split("/")[0] for name in rig.objects.keys() - before.keys()} <= {"catalog", "checkpoints"}


def test_what_is_read_is_leased(rig: Rig, here: World) -> None:
    def fate(what: str, name: str) -> None:
        if name.startswith("packs/"):
            leases.append(len(rig.opened(Objects(rig.clock, rig.objects)).info().leases))

    leases: list[int] = []
    rig.storage.fate = fate
    with rig.repository.view(engine=StagingMemory):
        rig.storage.fate = lambda what, name: None
    assert leases
    assert set(leases) == {1}


def test_without_the_right_to_put_it_goes_without_a_lease(rig: Rig, here: World,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(name: str, data: bytes) -> None:
        raise StorageDenied("read only")

    monkeypatch.setattr(rig.storage, "put", denied)
    with rig.repository.view(engine=StagingMemory) as view:
        assert dict(view.items()) == here.content(here.txid)


def test_the_scratch_place_goes_if_opening_or_the_block_fails(rig: Rig, here: World, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    with pytest.raises(RestorePointOutOfRange), rig.repository.view(to_txid=99, engine=StagingMemory, scratch=scratch):
        pass
    with pytest.raises(ZeroDivisionError), rig.repository.view(engine=StagingMemory, scratch=scratch):
        assert list(scratch.iterdir())
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []
    name = next(name for name in rig.objects if name.startswith("packs/"))
    data, put_us = rig.objects[name]
    rig.objects[name] = bytes([*data[:100], data[100] ^ 1, *data[101:]]), put_us
    with pytest.raises(Damaged, match="packs/"), rig.repository.view(engine=StagingMemory, scratch=scratch):
        pass
    assert list(scratch.iterdir()) == []
    assert rig.repository.info().leases == ()


def test_a_view_that_was_opened_outlives_what_it_was_made_of(rig: Rig, here: World, tmp_path: Path) -> None:
    """Also a store that goes on elsewhere, on a branch of its own, is seen by its branch."""
    rig.repository.restore(tmp_path / "branch", to_txid=6, engine=StagingMemory)
    other = here.branched(tmp_path / "branch", 6, rig.env)
    other.write(2)
    with rig.repository.view(to_txid=5, engine=StagingMemory) as view:
        rig.repository.backup(other.source, accept_branch=other.store.history.branch.id.hex())
        rig.objects.clear()
        assert dict(view.items()) == here.content(5)
    other.close()


def test_the_view_is_the_engines_own(rig: Rig, here: World) -> None:
    with here.store.snapshot() as snapshot, rig.repository.view(engine=StagingMemory) as view:
        assert type(view) is type(snapshot)
        assert view.digest() == snapshot.digest()
