"""Making the store of a member from another one's: the same store, branch and log; cut off anywhere; refused where it
would overwrite what is not a member's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_kinds import KINDS, MEMORY, QUIET, Kind, commit
from target_rig import World
from workloads import WORKLOADS

from holdfast.engine.env import REAL
from holdfast.engine.errors import Diverged, ForeignStore, SourceUnavailable, StoreNotFound, WrongEngine
from holdfast.engine.model.positions import Position
from holdfast.engine.source.interface import CHUNK_BYTES, Confirmation
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import Dropped
from holdfast.engine.testing.support.simulated_run import SETTINGS
from holdfast.replay.ha.errors import MemberRefused
from holdfast.replay.ha.seed import seed

MEMBER = Path("/members/b")


def copied(store: Store[Any, Any], directory: Path, kind: Kind = MEMORY, *, source: LocalSource | None = None,
           progress: Callable[[str, int, int], None] = lambda *told: None) -> Callable[[], None]:
    return seed(source or LocalSource(store), directory, kind.engine, store_id=store.history.store_id,
                epoch_at=lambda position: 0, options=None, settings=QUIET, env=REAL, progress=progress)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with MEMORY.open(tmp_path / "a", settings=QUIET) as store:
        commit(MEMORY, store, 1)
        yield store


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_the_same_store_with_the_same_branch_and_log(tmp_path: Path, kind: Kind) -> None:
    with kind.open(tmp_path / "a", settings=QUIET) as store:
        commit(kind, store, 1, 2)
        store.checkpoint()
        commit(kind, store, 3)
        before = store.published.txid
        written: list[int] = []

        def meanwhile(stage: str, done: int, total: int) -> None:
            if stage == "copy" and not written:
                written.append(4)
                commit(kind, store, 4)

        (tmp_path / "b" / "member").mkdir(parents=True)
        (tmp_path / "b" / "member" / "PROMISE").write_bytes(b"kept")
        copied(store, tmp_path / "b", kind, progress=meanwhile)()
        assert not LocalSource(store).leases()
        with kind.open(tmp_path / "b", settings=QUIET, create=False) as made:
            assert made.history == store.history
            assert made.published == store.published
            assert made.log.base.txid <= before
            assert made.log.base.chain == store.log.chain_at(made.log.base.txid)
            assert kind.numbers(made) == kind.numbers(store) == {1, 2, 3, 4}
    assert (tmp_path / "b" / "member" / "PROMISE").read_bytes() == b"kept"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["CURRENT", "LOCK", "STORE", "gen-000001", "member"]
    assert sorted(p.name for p in (tmp_path / "b" / "gen-000001").iterdir()) == ["log", "state"]


def test_the_old_store_serves_reads_until_the_new_one_is_whole(tmp_path: Path, origin: Store[Any, Any]) -> None:
    copied(origin, tmp_path / "b")()
    commit(MEMORY, origin, 2)
    with MEMORY.open(tmp_path / "b", settings=QUIET) as old, old.snapshot() as view:
        into_force = copied(origin, tmp_path / "b")
        assert MEMORY.of(view) == MEMORY.numbers(old) == {1}
    with MEMORY.open(tmp_path / "b", settings=QUIET, read_only=True) as old:
        assert MEMORY.numbers(old) == {1}
    into_force()
    with MEMORY.open(tmp_path / "b", settings=QUIET) as made:
        assert MEMORY.numbers(made) == {1, 2}
    assert [p.name for p in (tmp_path / "b").glob("gen-*")] == ["gen-000002"]


def _beside_an_older(world: World) -> int:
    _seeded(world, world.disk)
    older = world.source.last
    world.write(2)
    world.source.do(("checkpoint",))
    world.write(1)
    return older


def _seeded(world: World, disk: SimDisk) -> None:
    store = world.source.store
    seed(world.local, MEMBER, world.work.engine, store_id=store.history.store_id, epoch_at=lambda position: 0,
         options=None, settings=SETTINGS, env=world.env(disk))()


@pytest.mark.parametrize("kind", ["memory", "records"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_it_is_cut_off(kind: str, again: bool) -> None:
    """The directory opens as before, or as the new store; and another attempt succeeds, while the lease of the
    first one still holds."""
    world = World(WORKLOADS[kind]())
    world.write(2)
    world.source.do(("checkpoint",))
    world.write(2)
    older = _beside_an_older(world) if again else None
    end = world.source.last
    for left, done in world.crashes(lambda disk: _seeded(world, disk), current_profile().crash_states // 2):
        try:
            found = Store.open(MEMBER, world.work.engine, create=False, read_only=True, env=world.env(left))
        except StoreNotFound:
            assert older is None
            assert not done
        else:
            assert found.published.txid in ((end,) if done or older is None else (older, end))
            world.shows(left, MEMBER, found.published.txid, read_only=True)
            found.close()
        _seeded(world, left)
        after = left.crashed(Dropped())
        world.shows(after, MEMBER, end).close()
        (generation,) = (n for n in after.list(MEMBER) if n.startswith("gen-"))
        assert after.read(MEMBER / "CURRENT").decode().strip() == generation


class Dying(LocalSource):
    """It is gone after so many reads of the image; `read` counts the bytes."""

    def __init__(self, store: Store[Any, Any], reads: int) -> None:
        super().__init__(store)
        self.left, self.read = reads, 0

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise SourceUnavailable("the member has died")
        self.read += length
        return super().read_image(lease_id, name, offset, length)


def test_a_copy_is_resumed_on_the_same_member_and_begun_anew_on_another(tmp_path: Path,
                                                                        origin: Store[Any, Any]) -> None:
    with origin.transaction() as tx:
        for n in range(4 * CHUNK_BYTES >> 20):
            tx.put(b"%d" % (100 + n), bytes(1 << 20))
    origin.checkpoint()
    for name in ("b", "c"):
        with pytest.raises(SourceUnavailable):
            copied(origin, tmp_path / name, source=Dying(origin, 3))
        assert [p.name for p in (tmp_path / name).iterdir()] == ["gen-000001.partial"]
    resumed = Dying(origin, 100)
    copied(origin, tmp_path / "b", source=resumed)()
    assert 0 < resumed.read < 3 * CHUNK_BYTES
    with MEMORY.open(tmp_path / "b", settings=QUIET) as twin:
        anew = Dying(twin, 100)
        copied(twin, tmp_path / "c", source=anew)()
        assert anew.read > 4 * CHUNK_BYTES
        with MEMORY.open(tmp_path / "c", settings=QUIET) as made, made.snapshot() as view, origin.snapshot() as theirs:
            assert view.digest() == theirs.digest()


def _is_file(directory: Path, origin: Store[Any, Any]) -> None:
    directory.write_text("a file")


def _has_photos(directory: Path, origin: Store[Any, Any]) -> None:
    directory.mkdir()
    (directory / "photo.jpg").write_text("mine")
    (directory / "old.partial").write_text("mine too")


def _has_another_store(directory: Path, origin: Store[Any, Any]) -> None:
    with MEMORY.open(directory, settings=QUIET) as store:
        commit(MEMORY, store, 9)


def _has_part_of_another_store(directory: Path, origin: Store[Any, Any]) -> None:
    _has_another_store(directory, origin)
    (directory / "CURRENT").unlink()


def _has_lost_its_current(directory: Path, origin: Store[Any, Any]) -> None:
    copied(origin, directory)()
    (directory / "CURRENT").unlink()


@pytest.mark.parametrize(("held", "error", "words"), [
    (_is_file, MemberRefused, "is a file"), (_has_photos, MemberRefused, "'old.partial' and 1 more"),
    (_has_another_store, ForeignStore, "and the cluster has"),
    (_has_part_of_another_store, ForeignStore, "holds store"),
    (_has_lost_its_current, MemberRefused, "CURRENT is gone")])
def test_a_directory_that_is_not_the_members_is_refused(tmp_path: Path, origin: Store[Any, Any],
                                                        held: Callable[[Path, Store[Any, Any]], None],
                                                        error: type[Exception], words: str) -> None:
    held(tmp_path / "b", origin)
    before = {p: p.stat() for p in sorted(tmp_path.rglob("*")) if not p.is_relative_to(tmp_path / "a")}
    with pytest.raises(error, match=words):
        copied(origin, tmp_path / "b")
    assert {p: p.stat() for p in sorted(tmp_path.rglob("*")) if not p.is_relative_to(tmp_path / "a")} == before
    assert not LocalSource(origin).leases()


def test_another_store_or_engine_is_refused(tmp_path: Path, origin: Store[Any, Any]) -> None:
    with pytest.raises(ForeignStore, match="the member to copy has store"):
        seed(LocalSource(origin), tmp_path / "b", MEMORY.engine, store_id=bytes(16), epoch_at=lambda position: 0,
             options=None, settings=QUIET, env=REAL)
    with pytest.raises(WrongEngine, match="opened with records"):
        copied(origin, tmp_path / "b", KINDS["records"])
    assert not (tmp_path / "b").exists()


def test_a_source_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    kind = KINDS["records"]

    class Lying(LocalSource):
        def confirm(self, lease_id: str) -> Confirmation:
            right = super().confirm(lease_id)
            wrong = Position(right.consistent_from.txid, bytes(16))
            return Confirmation(consistent_from=wrong, published=right.published,
                                complete_until_us=right.complete_until_us)

    with kind.open(tmp_path / "a", settings=QUIET) as store:
        commit(kind, store, 1)
        with pytest.raises(Diverged, match="confirmed the copy at"):
            copied(store, tmp_path / "b", kind, source=Lying(store))
        assert not list((tmp_path / "b").iterdir())
        assert not LocalSource(store).leases()
