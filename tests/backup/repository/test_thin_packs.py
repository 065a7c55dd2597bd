"""A pack of which the last image uses little counts as lacking: its blocks are stored anew, so that it can go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import Rig, World, world

from holdfast.backup import Keep
from holdfast.engine.store.settings import Settings


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env, settings=Settings(heartbeat_s=0)) as made:
        yield made


def put(rig: Rig, here: World, keys: range) -> str:
    """New values of 100 kB, and an image."""
    changes = {b"%d" % key: rig.env.randomness.token(100_000) for key in keys}
    with here.store.transaction() as tx:
        for key, value in changes.items():
            tx.put(key, value)
    here.note(changes)
    here.store.checkpoint()
    return rig.repository.backup(here.source, block_bytes=4096).image


@pytest.mark.parametrize(("changed", "goes"), [(range(3, 10), True), (range(7, 10), False)],
                         ids=["a third is used", "two thirds are used"])
def test_what_is_left_of_a_thin_pack_is_stored_anew(changed: range, goes: bool, rig: Rig, here: World, tmp_path: Path
                                                    ) -> None:
    """Only the second image after the change knows how much of the pack its base uses."""
    first = put(rig, here, range(10))
    put(rig, here, changed)
    newest = rig.repository.backup(here.source, block_bytes=4096)
    assert (newest.new_bytes > 100_000) == goes
    rig.repository.expire(Keep(points="none"))
    assert any(name.startswith(f"packs/{first}/") for name in rig.objects) == (not goes)
    assert [image.id for image in rig.repository.info().images] == [newest.image]
    assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)
