"""What chance hardly ever makes: lists that are long out of date, blocks that look alike to a weak digest, and a
catalog in which one entry is missing."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import orders
import pytest
from repository_crashes import BLOCK_BYTES, archived, begun, in_memory, in_one_thread, is_right, restorable
from repository_rig import Objects, Rig, World, world

from holdfast.backup.repository import names
from holdfast.backup.repository.catalog import CHECKPOINT_EVERY
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.storage.interface import StoredObject
from holdfast.engine.errors import Damaged
from holdfast.engine.testing.disks.quiet import SetClock

_POLYNOMIAL = int(f"{0x104C11DB7:033b}"[::-1], 2).to_bytes(5, "little")
"""Bits that can be flipped anywhere without a change of the CRC-32."""


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        yield made


def test_blocks_that_a_weak_digest_takes_for_one_are_two(rig: Rig, here: World, tmp_path: Path) -> None:
    """The second image has blocks with the CRC-32, the length, and the first and last bytes of those of the first."""
    random = Random(orders.draw)
    before = random.randbytes(10 * BLOCK_BYTES)
    after = bytearray(before)
    for at in range(random.randrange(BLOCK_BYTES), len(before) - BLOCK_BYTES, BLOCK_BYTES - 40):
        for n, bits in enumerate(_POLYNOMIAL):
            after[at + n] ^= bits
    assert bytes(after) != before
    assert zlib.crc32(after) == zlib.crc32(before)
    for value in (before, bytes(after)):
        with here.store.transaction() as tx:
            tx.put(b"key", value)
        here.note({b"key": value})
        here.store.checkpoint()
        rig.repository.backup(here.source, block_bytes=BLOCK_BYTES)
    for txid in (here.txid - 1, here.txid):
        assert here.restored(rig.opened(), tmp_path / str(txid), to_txid=txid) == here.content(txid)


class OldLists(Objects):
    """Storage whose lists show what there was some time ago: what was put since is not listed, and what was removed
    still is.

    Attributes:
        always: what all lists are taken from; None: from what was there at any earlier list.
    """

    def __init__(self, of: Objects, seed: int) -> None:
        super().__init__(of.clock, of.objects)
        self._random = Random(seed)
        self._past: list[list[StoredObject]] = []
        self.always: list[StoredObject] | None = None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._past.append(list(super().list("")))
        shown = self.always or self._random.choice([self._past[-1], *self._past])
        return iter([listed for listed in shown if listed.name.startswith(prefix)])


@pytest.mark.parametrize("seed", range(4))
def test_lists_that_are_old_do_no_harm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is a hint, and what it lacks is asked for. What was returned is there, with nothing left out."""
    in_one_thread(monkeypatch)
    past, right = begun(), Objects(SetClock(orders.BEGUN_US))
    random = Random(orders.draw * 100 + seed)
    old = OldLists(right, random.randrange(1 << 30))
    in_memory(old).backup(past.source, block_bytes=BLOCK_BYTES)
    reached = had = 0
    for _ in range(12):
        past.write(random.randrange(1, 3))
        what = random.choice(["archive", "archive", "back up", "expire"])
        if what == "archive":
            with closing(in_memory(old).archiver(past.source)) as archiver:
                for _ in range(random.randrange(1, 4)):
                    reached = archiver.step().end.txid
                    past.write(1)
        elif what == "back up":
            past.checkpoint()
            had = in_memory(old).backup(past.source, block_bytes=BLOCK_BYTES).to_txid
        else:
            in_memory(old).expire(Keep(points=random.choice(["none", "for ever"])))
        info = is_right(in_memory(right), past)
        assert archived(info) >= reached
        assert max(restorable(info)) >= max(reached, had)
    old.always = list(right.list(""))
    with closing(in_memory(right).archiver(past.source)) as archiver:
        for _ in range(2):  # one of them leaves a piece that is in no unit yet
            past.write(1)
            archiver.step()
            assert archived(in_memory(old).info()) == past.last


def test_an_entry_that_is_missing_is_not_the_end(rig: Rig, here: World) -> None:
    """It is named, whichever it is. The last one alone cannot be missed."""
    for _ in range(3):
        here.write(2)
        rig.repository.backup(here.source)
    rig.repository.mark("the last")
    entries = sorted(name for name in rig.objects if name.startswith("catalog/"))
    assert len(entries) > 6
    for name in entries[:-1]:
        copy = rig.copied()
        del copy.objects[name]
        with pytest.raises(Damaged, match=name):
            copy.repository.info()


class SomebodyIsFaster(Objects):
    """Storage in which somebody else adds an entry as soon as one that is to have a checkpoint is there."""

    def __init__(self, of: Rig) -> None:
        super().__init__(of.clock, of.objects)
        self._of = of

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        if name == names.numbered(names.CATALOG, CHECKPOINT_EVERY):
            self._of.opened().mark("meanwhile")


def test_a_checkpoint_is_of_its_own_entry_also_if_others_came_since(rig: Rig, here: World) -> None:
    """It was once of what its writer read after the entry, which had more. Whoever began there missed nothing, and
    `verify` called it damage. A process that was killed while another one archived showed it."""
    rig.repository.backup(here.source)
    hasty = rig.opened(SomebodyIsFaster(rig))
    for number in range(CHECKPOINT_EVERY):
        hasty.mark(f"mark {number}")
    assert "meanwhile" in {mark["name"] for mark in rig.opened().info().marks}
    assert any(name.startswith(f"{names.CHECKPOINTS}/") for name in rig.objects)
    assert rig.opened().verify().damaged == ()
