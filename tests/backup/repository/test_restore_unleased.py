"""A restore with rights to read only has no lease: it says so, and if an expiry removes what it reads, it goes another
way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository_rig import Objects, Rig, World, world

from holdfast.backup.repository import names
from holdfast.backup.repository.errors import StorageDenied
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.repository import Repository
from holdfast.engine.errors import Damaged

NEWEST = Keep(points="none")


class ReadOnly(Objects):
    """Before the first object below `prefix` is read, `before` is called."""

    def __init__(self, rig: Rig, prefix: str, before: Callable[[], object]) -> None:
        super().__init__(rig.clock, rig.objects)
        self.prefix, self.before = prefix, before

    def put(self, name: str, data: bytes) -> None:
        raise StorageDenied("you may only read")

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith(self.prefix):
            before, self.before = self.before, lambda: None
            before()
        return super().get(name, offset, length)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    """Of which there are two images. Both restore to transaction 5; the older one has other packs."""
    with world(tmp_path / "store", rig.env) as made:
        made.write(5)
        rig.repository.backup(made.source)
        made.archiver(rig.repository).step()
        yield made


def reader(rig: Rig, prefix: str, before: Callable[[], object]) -> Repository:
    return rig.opened(ReadOnly(rig, prefix, before))


@pytest.mark.parametrize("prefix", [f"{names.IMAGES}/", f"{names.PACKS}/"], ids=["at its root", "at its packs"])
def test_an_image_that_goes_meanwhile_is_replaced_by_another(prefix: str, rig: Rig, here: World, tmp_path: Path,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    def expired() -> None:
        here.store.checkpoint()
        here.write(3)
        assert rig.repository.backup(here.source, block_bytes=32768).image
        assert rig.repository.expire(NEWEST).images

    with caplog.at_level(logging.WARNING, "holdfast.repository"):
        assert here.restored(reader(rig, prefix, expired), tmp_path / "r") == here.content(here.txid)
    said = [record.message for record in caplog.records]
    assert [message for message in said if "goes without a lease" in message]
    assert [message for message in said if "planned anew" in message]


def test_a_point_that_has_gone_meanwhile_is_refused_and_nothing_is_left(rig: Rig, here: World, tmp_path: Path) -> None:
    def expired() -> None:
        here.write(3)
        here.store.checkpoint()
        here.write(1)
        rig.repository.backup(here.source, block_bytes=32768)
        assert rig.repository.expire(NEWEST).images

    with pytest.raises(Exception, match="transaction 5 is not in the repository, which restores to transaction"):
        here.restored(reader(rig, f"{names.PACKS}/", expired), tmp_path / "r", to_txid=5)
    assert not list((tmp_path / "r").glob("*")) or [path.name for path in (tmp_path / "r").iterdir()] == ["LOCK"]


def test_damage_is_damage_when_nothing_was_dropped(rig: Rig, here: World, tmp_path: Path) -> None:
    pack = next(name for name in rig.objects if name.startswith(f"{names.PACKS}/"))
    tries = []

    def removed() -> None:
        del rig.objects[pack]

    storage = ReadOnly(rig, f"{names.PACKS}/", removed)
    storage.fate = lambda what, name: tries.append(name) if name == pack else None
    with pytest.raises(Damaged):
        here.restored(rig.opened(storage), tmp_path / "r")
    assert len(tries) <= 2, "it is not tried again"
