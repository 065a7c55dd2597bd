"""A repository whose catalog is lost or damaged: what could be restored before is restored still, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli_rig import holdfast, told
from repository_rig import SMALL, Content, Objects, Rig, World, content_of, world
from staging_memory import StagingMemory

from holdfast.backup.repository import archiver as archiving
from holdfast.backup.repository import catalog as cataloguing
from holdfast.backup.repository import names
from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.errors import CopyReadOnly, SalvageReadOnly
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.keys import Key, Keyring
from holdfast.backup.repository.reports import RepositoryInfo
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.storage.interface import StoredObject
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import REAL
from holdfast.engine.errors import Damaged, HoldfastError, RestorePointOutOfRange
from holdfast.engine.source.interface import Confirmation
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile

PROFILE = current_profile()
CATALOG = "catalog/", "checkpoints/"
Points = dict[str, set[int]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "FAN_IN", 2)
    monkeypatch.setattr(cataloguing, "CHECKPOINT_EVERY", 8)


@dataclass
class Life:
    """A store and its branches, by the branch's id, and a repository of all of them.

    Attributes:
        times: when some transactions were committed that the first branch restores to.
    """

    rig: Rig
    place: Path
    worlds: dict[str, World] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)

    def begin(self, here: World) -> World:
        self.worlds[here.store.history.branch.id.hex()] = here
        return here

    def branch(self, txid: int) -> World:
        """A restored store that goes on, on a branch that the repository takes."""
        first = next(iter(self.worlds.values()))
        place = self.place / f"branch {len(self.worlds)}"
        self.rig.repository.restore(place, to_txid=txid, engine=StagingMemory, branch=next(iter(self.worlds)))
        made = self.begin(first.branched(place, txid, self.rig.env))
        made.write(1)
        self.rig.repository.backup(made.source, accept_branch=made.store.history.branch.id.hex())
        return made

    def close(self) -> None:
        for here in self.worlds.values():
            here.close()

    # --- what is restored -----------------------------------------------------------------------------------------

    def salvaged(self, objects: dict[str, tuple[bytes, int]] | None = None) -> Repository:
        storage = Objects(self.rig.clock, self.rig.objects if objects is None else objects)
        return Repository(storage, self.rig.id, self.rig.keyring, self.rig.env, salvage=True)

    def restores(self, repository: Repository, branch: str, txid: int, **more: Any) -> None:
        with repository.view(engine=StagingMemory, branch=branch, **more) as view:
            assert dict(view.items()) == self.worlds[branch].content(txid)


class Busy(LocalSource):
    """The store is written to while its image is taken, so the image has log and attachments of its own."""

    def __init__(self, here: World) -> None:
        super().__init__(here.store)
        self._here = here

    def confirm(self, lease_id: str) -> Confirmation:
        self._here.write(1)
        self._here.bulk(4)
        return super().confirm(lease_id)


def points(info: RepositoryInfo) -> Points:
    return {branch.id: {txid for bounds in branch.restores_to for txid in range(bounds.first, bounds.last + 1)}
            for branch in info.branches}


def without_catalog(objects: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    return {name: data for name, data in objects.items() if not name.startswith(CATALOG)}


@pytest.fixture(params=[None, b"the secret of the operator"], ids=["plain", "encrypted"])
def life(request: Any, tmp_path: Path) -> Iterator[Life]:
    """Two branches; images with log of their own; pieces, units, and what comes after them; attachments; a gap."""
    keyring = Keyring({1: b"k" * 32}, 1) if request.param else None
    rig = Rig(keyring)
    made = Life(rig, tmp_path)
    settings = Settings(segment_bytes=128 << 10, heartbeat_s=0, keep_logs="1 transactions")
    here = made.begin(World(tmp_path / "store", rig.env, settings=settings))
    here.write(3)
    rig.repository.backup(Busy(here))
    for round in range(2):
        archiver = here.archiver(rig.repository)
        for _ in range(6):
            rig.clock.sleep(60)
            here.write(1)
            if round:
                here.bulk(5)
            archiver.step()
        archiver.close()
        if not round:
            here.store.checkpoint()
            rig.repository.backup(here.source)
    made.times = {txid: here.time_us(txid) for txid in range(5, 8)}
    rig.repository.mark("lost", keep=True)
    made.branch(8)
    here.source.drop(rig.id.hex())
    here.write(60, size=6000)
    here.store.checkpoint()
    here.store.prune()
    archiver = here.archiver(rig.repository)
    rig.repository.backup(here.source)
    here.write(2)
    archiver.step()
    yield made
    made.close()


# --- it is as it was ----------------------------------------------------------------------------------------------


def test_every_point_is_restored_without_any_of_the_catalog(life: Life) -> None:
    before = life.rig.repository.info()
    assert any(len(branch.restores_to) > 1 for branch in before.branches)
    kept = without_catalog(life.rig.objects)
    repository = life.salvaged(kept)
    info = repository.info()
    assert info.salvaged
    assert info.left_out == ()
    assert (info.store_id, info.engine) == (before.store_id, before.engine)
    assert [image.id for image in info.images] == [image.id for image in before.images]
    assert {branch.id: [(b.first, b.last, b.complete_until_us) for b in branch.restores_to] for branch in info.branches
            } == {branch.id: [(b.first, b.last, b.complete_until_us) for b in branch.restores_to]
                  for branch in before.branches}
    assert {b.id: (b.archived_to, b.archived_until_us) for b in info.branches} == {
        b.id: (b.archived_to, b.archived_until_us) for b in before.branches}
    for branch, txids in points(before).items():
        for txid in PROFILE.some(sorted(txids)):
            life.restores(repository, branch, txid, to_txid=txid)
    for txid, time_us in life.times.items():
        life.restores(repository, next(iter(life.worlds)), txid, at=moment(time_us))
    assert repository.verify().damaged == ()
    assert life.rig.repository.info().marks
    assert info.marks == ()


def test_any_damage_to_the_catalog_is_found_and_costs_no_point(life: Life) -> None:
    """One object after the other is lost, or damaged. Either nobody needs it, or the error says how to go on."""
    before = points(life.rig.repository.info())
    images = {image.id for image in life.rig.repository.info().images}
    catalog = [name for name in life.rig.objects if name.startswith(CATALOG)]
    last = max(name for name in catalog if name.startswith("catalog/"))
    named = 0
    for name in catalog:
        for damage in (None, lambda data: data[: len(data) // 2], lambda data: bytes([*data[:60], data[60] ^ 1,
                                                                                     *data[61:]])):
            objects = dict(life.rig.objects)
            data, put_us = objects.pop(name)
            if damage is not None:
                objects[name] = damage(data), put_us
            storage = Objects(life.rig.clock, objects)
            repository = Repository(storage, life.rig.id, life.rig.keyring, life.rig.env)
            try:
                info = repository.info()
            except Damaged as error:
                named += "--salvage" in error.hint
            else:
                assert name == last or {image.id for image in info.images} == images
                if not (damage is None and name.startswith("checkpoints/")) and name != last:
                    damaged = repository.verify().damaged
                    assert any(name in one for one in damaged), f"verify does not name {name}"
            assert points(life.salvaged(objects).info()) == before
    assert named


def test_without_a_catalog_a_repository_is_not_taken_for_an_empty_one(life: Life) -> None:
    objects = without_catalog(life.rig.objects)
    repository = Repository(Objects(life.rig.clock, objects), life.rig.id, life.rig.keyring, life.rig.env)
    here = next(iter(life.worlds.values()))
    for call in (repository.info, lambda: repository.backup(here.source), lambda: repository.archiver(here.source),
                 lambda: repository.expire(Keep()), lambda: repository.mark("x")):
        with pytest.raises(Damaged, match="catalog/000000/0000000001: is missing, and there are images or log"):
            call()
    assert objects == without_catalog(life.rig.objects)


def test_the_first_copy_that_is_under_way_is_no_damage(life: Life) -> None:
    """Its entries come last."""
    objects = without_catalog(life.rig.objects) | {"copy-of": (b"file:///elsewhere", 0)}
    repository = Repository(Objects(life.rig.clock, objects), life.rig.id, life.rig.keyring, life.rig.env)
    assert repository.info().images == ()


# --- nothing is added ---------------------------------------------------------------------------------------------


def test_nothing_can_be_added(life: Life) -> None:
    here = next(iter(life.worlds.values()))
    before = dict(life.rig.objects)
    repository = life.salvaged()
    calls: list[Callable[[], Any]] = [
        lambda: repository.backup(here.source), lambda: repository.archiver(here.source),
        lambda: repository.mark("x"), lambda: repository.expire(Keep()),
        lambda: repository.expire(Keep(), dry_run=True), lambda: repository.synthesize(engine=StagingMemory),
        lambda: repository.rotate(Key(b"another key of the operator"))]
    for call in calls:
        with pytest.raises(SalvageReadOnly, match="without its catalog"):
            call()
    repository.rehearse(engine=StagingMemory)
    repository.verify()
    assert life.rig.objects == before


def test_the_key_of_a_copy_is_not_rotated(tmp_path: Path) -> None:
    """Its next key would be another one than that of what it is a copy of."""
    Repository.init(tmp_path / "repository", key=Key(b"the key of the operator")).close()
    copy(tmp_path / "repository", tmp_path / "copy")
    with (Repository.open(tmp_path / "copy", key=Key(b"the key of the operator")) as copied,
          pytest.raises(CopyReadOnly)):
        copied.rotate(Key(b"another key of the operator"))


# --- what was dropped ---------------------------------------------------------------------------------------------


def test_an_expiry_that_is_cut_off_never_gives_a_wrong_restore(life: Life) -> None:
    """After each deletion: what is kept restores; what is dropped and there still restores rightly, or not at all."""
    rig = life.rig
    for branch, here in life.worlds.items():
        rig.clock.sleep(3600)
        archiver = here.archiver(rig.repository)
        for _ in range(5):
            here.write(1)
            archiver.step()
        archiver.close()
        here.store.checkpoint()
        rig.repository.backup(here.source)
        assert branch
    deleted: list[str] = []
    states: list[dict[str, tuple[bytes, int]]] = []

    def fate(what: str, name: str) -> None:
        if what == "delete":
            states.append(dict(rig.objects))
            deleted.append(name)

    rig.storage.fate = fate
    rig.repository.expire(Keep(last=1, points="none"))
    rig.storage.fate = lambda what, name: None
    kept = points(rig.repository.info())
    assert len(deleted) > 20
    random, extra = Random(7), 0
    for objects in [*PROFILE.some(states), dict(rig.objects)]:
        repository = life.salvaged(without_catalog(objects))
        found = points(repository.info())
        for branch, txids in kept.items():
            assert txids <= found[branch]
            for txid in random.sample(sorted(txids), min(3, len(txids))):
                life.restores(repository, branch, txid, to_txid=txid)
            others = sorted(found[branch] - txids)
            for txid in random.sample(others, min(2, len(others))):
                extra += 1
                life.restores(repository, branch, txid, to_txid=txid)
            with pytest.raises(RestorePointOutOfRange):
                life.restores(repository, branch, 0, to_txid=max(found[branch]) + 1)
    assert extra


def test_an_image_that_lacks_anything_is_left_out_and_named(life: Life) -> None:
    info = life.rig.repository.info()
    one = info.images[0]
    own = [name for name in life.rig.objects if name.startswith((f"packs/{one.id}/", f"images/{one.id}/"))]
    assert {name.split("/")[2] for name in own} == {"000000", "root", "log", "files"}
    before = points(info)
    for name in own:
        objects = without_catalog(life.rig.objects)
        data, put_us = objects.pop(name)
        salvaged = life.salvaged(objects).info()
        assert one.id not in {image.id for image in salvaged.images}
        if name.endswith("/root"):
            assert salvaged.left_out == ()  # nobody can tell it from a run that died
            objects[name] = data[:-1], put_us
            salvaged = life.salvaged(objects).info()
        assert any(one.id[:8] in said and name in said for said in salvaged.left_out)
        for branch, txids in points(salvaged).items():
            assert txids <= before[branch]


def test_log_that_lacks_anything_is_left_out_and_named(life: Life) -> None:
    """A piece or unit is damaged, or an attachment has gone: the log has a gap there, which other objects may fill."""
    before, state = points(life.rig.repository.info()), life.rig.repository._catalog.state
    for name in [name for name in life.rig.objects if name.startswith(("log/", "merged/", "attachments/"))]:
        objects = without_catalog(life.rig.objects)
        data, put_us = objects.pop(name)
        if not name.startswith("attachments/"):
            objects[name] = bytes([*data[:60], data[60] ^ 1, *data[61:]]), put_us
        repository = life.salvaged(objects)
        info = repository.info()
        branch = name.split("/")[1]
        if any(name in one for one in info.left_out):
            assert all(name in one or name.startswith("attachments/") for one in info.left_out)
        else:  # a larger unit has it
            assert name.startswith(("log/", "merged/"))
            assert points(info) == before
        for id, txids in points(info).items():
            assert txids <= before[id]
        *_, after_gap = state.branches[branch].runs
        if name.startswith("log/") and names.number_of(name) < after_gap.first:
            assert {txid for txid in before[branch] if txid > after_gap.after.txid} <= points(info)[branch]
        if found := points(info)[branch]:
            life.restores(repository, branch, max(found), to_txid=max(found))


def test_what_comes_after_a_slot_that_is_lost_is_found(life: Life) -> None:
    """Neither its piece nor a unit with it is there any more."""
    branch, lost = next(iter(life.worlds)), 3
    before, log = points(life.rig.repository.info())[branch], life.rig.repository._catalog.state.branches[branch]
    objects = {name: data for name, data in without_catalog(life.rig.objects).items()
               if not (name.startswith(f"log/{branch}/") and names.number_of(name) == lost)
               and not (name.startswith(f"merged/{branch}/") and names.merged_range(name)[1] <= lost
                        <= names.merged_range(name)[2])}
    found = life.salvaged(objects)._catalog.refresh().branches[branch]
    assert [run.first for run in found.runs] == [1, lost + 1, log.runs[-1].first]
    kept = points(life.salvaged(objects).info())[branch]
    assert {txid for txid in before if txid > log.runs[-1].after.txid} <= kept <= before
    life.restores(life.salvaged(objects), branch, max(before), to_txid=max(before))


def test_a_list_is_only_a_hint(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage does not list what was put last, and gives it."""
    before = points(life.rig.repository.info())

    def stale(self: Objects, prefix: str) -> Iterator[StoredObject]:
        found = [StoredObject(name, len(data), us) for name, (data, us) in sorted(self.objects.items())
                 if name.startswith(prefix)]
        last = {one.name.rpartition("/")[0]: one.name for one in found if one.name.startswith("log/")}
        return (one for one in found if one.name not in last.values() and not one.name.startswith("packs/"))

    monkeypatch.setattr(Objects, "list", stale)
    assert points(life.salvaged(without_catalog(life.rig.objects)).info()) == before


# --- whatever happened --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6 * PROFILE.times))
def test_whatever_happened_the_points_are_those_of_the_catalog_or_more(seed: int, tmp_path: Path) -> None:
    random, rig = Random(seed), Rig()
    life = Life(rig, tmp_path)
    life.begin(World(tmp_path / "store", rig.env, settings=Settings(segment_bytes=128 << 10, heartbeat_s=0,
                                                                    keep_logs="1 transactions")))
    try:
        for _ in range(14):
            here = random.choice(list(life.worlds.values()))
            rig.clock.sleep(600)
            here.write(random.randrange(3))
            what = random.choice(("backup", "archive", "archive", "archive", "gap", "expire", "bulk", "branch",
                                  "synthesize"))
            try:
                _happens(what, life, here, random)
            except HoldfastError:
                continue  # there is no image yet, or no such point
        before = points(rig.repository.info())
        repository = life.salvaged(without_catalog(rig.objects))
        after = points(repository.info())
        for branch, txids in before.items():
            assert txids <= after.get(branch, set())
            for txid in random.sample(sorted(txids), min(4, len(txids))):
                life.restores(repository, branch, txid, to_txid=txid)
    finally:
        life.close()


def _happens(what: str, life: Life, here: World, random: Random) -> None:
    repository = life.rig.repository
    if what == "backup":
        here.store.checkpoint()
        repository.backup(here.source)
    elif what == "archive":
        archiver = here.archiver(repository)
        for _ in range(random.randrange(1, 5)):
            here.write(1)
            archiver.step()
        archiver.close()
    elif what == "gap":
        here.source.drop(life.rig.id.hex())
        here.write(40, size=6000)
        here.store.checkpoint()
        here.store.prune()
    elif what == "expire":
        repository.expire(Keep(last=random.randrange(3), points=random.choice(("none", "2 hours"))))
    elif what == "bulk":
        here.bulk(5)
    elif what == "branch" and len(life.worlds) < 3:
        life.branch(random.randrange(1, next(iter(life.worlds.values())).txid + 1))
    elif what == "synthesize":
        repository.synthesize(engine=StagingMemory, branch=here.store.history.branch.id.hex())


# --- on the command line ------------------------------------------------------------------------------------------


def test_on_a_bad_day(tmp_path: Path) -> None:
    Repository.init(tmp_path / "repo").close()
    with world(tmp_path / "store", REAL, engine=MemoryEngine) as here, Repository.open(tmp_path / "repo") as repository:
        here.write(3)
        repository.backup(here.store)
        here.write(3)
        here.archiver(repository).step()
        expected: Content = here.content(here.txid)
    entry = next((tmp_path / "repo" / "catalog").rglob("0000000002"))
    entry.unlink()
    failed = told("repo", "info", tmp_path / "repo", code=5)
    assert "--salvage" in failed["hint"]
    said = holdfast("repo", "info", tmp_path / "repo", "--salvage").stdout
    assert "read without its catalog" in said
    info = told("repo", "info", tmp_path / "repo", "--salvage")
    assert info["salvaged"] is True
    assert [(bounds["first"], bounds["last"]) for bounds in info["branches"][0]["restores_to"]] == [(0, 6)]
    assert told("repo", "restore", tmp_path / "repo", tmp_path / "r", "--salvage")["txid"] == 6
    assert content_of(tmp_path / "r", MemoryEngine) == expected
    assert told("repo", "verify", tmp_path / "repo", "--salvage")["damaged"] == []
    assert told("repo", "restore", tmp_path / "repo", tmp_path / "s", "--salvage", "--dry-run")["log_to"] == 6
    with Store.open(tmp_path / "r", MemoryEngine, settings=SMALL) as store:
        Repository.init(tmp_path / "anew").close()
        with Repository.open(tmp_path / "anew") as anew:
            assert anew.backup(store).to_txid == 6
