"""Transactions that are larger than an object of a repository may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository_rig import SMALL, Rig, World, world

from holdfast.backup.repository import archiver as archivers
from holdfast.backup.repository import pieces
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.storage.interface import MAX_OBJECT_BYTES
from holdfast.engine.errors import HoldfastError
from holdfast.engine.store.settings import Settings


def write(here: World, size: int) -> None:
    """A transaction with so many bytes that cannot be compressed."""
    value = here.store.env.randomness.token(size)
    changes = {b"large %d" % start: value[start : start + (1 << 20)] for start in range(0, size, 1 << 20)}
    with here.store.transaction() as tx:
        for key, part in changes.items():
            tx.put(key, part)
    here.note(changes)


def parts(rig: Rig) -> set[str]:
    return {name for name in rig.objects if ".payload/" in name}


def test_a_transaction_larger_than_an_object_is_archived_and_restored(tmp_path: Path) -> None:
    """The log takes records up to `max_record_bytes`, which is as much as an object by default, and can be more."""
    assert Settings().max_record_bytes >= MAX_OBJECT_BYTES
    rig = Rig()
    settings = Settings(segment_bytes=128 << 10, heartbeat_s=0, max_record_bytes=2 * MAX_OBJECT_BYTES,
                        unwritten_bytes=4 * MAX_OBJECT_BYTES)
    with world(tmp_path / "store", rig.env, settings=settings) as here:
        here.write(1)
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        write(here, MAX_OBJECT_BYTES + 1000)
        here.write(1)
        archiver.step()
        assert archiver.end == here.store.durable
        assert max(len(data) for data, _ in rig.objects.values()) <= MAX_OBJECT_BYTES
        assert rig.repository.verify().damaged == ()
        assert here.restored(rig.repository, tmp_path / "r") == here.content(here.txid)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads lie beside their pieces from 1,000 bytes on."""
    monkeypatch.setattr(pieces, "LARGE_BYTES", 1000)


@pytest.mark.usefixtures("small")
def test_an_image_has_large_transactions_in_its_own_log(tmp_path: Path) -> None:
    rig = Rig()
    with world(tmp_path / "store", rig.env, settings=SMALL) as here:
        write(here, 5000)
        here.write(1)
        report = rig.repository.backup(here.source)
        assert {name.split("/")[0] for name in parts(rig)} == {"images"}
        assert report.log_bytes > 5000
        assert here.restored(rig.repository, tmp_path / "r", to_txid=here.txid) == here.content(here.txid)
        name = next(iter(parts(rig)))
        data, time_us = rig.objects[name]
        rig.objects[name] = data[:70] + b"?" + data[71:], time_us
        assert rig.opened().verify().bad_images == (report.image,)


@pytest.mark.usefixtures("small")
def test_large_transactions_are_merged_and_expired_with_the_others(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archivers, "FAN_IN", 2)
    rig = Rig()
    with world(tmp_path / "store", rig.env, settings=SMALL) as here:
        here.write(1)
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        archiver._piece_bytes = 1
        for _ in range(4):
            write(here, 3000)
            here.write(3)
            archiver.step()
        log = rig.repository._catalog.refresh().branches[here.store.history.branch.id.hex()]
        assert max(unit.level for unit in log.units) > 1
        assert len(parts(rig)) == 4
        assert rig.repository.verify().damaged == ()
        for txid in range(1, here.txid + 1):
            assert here.restored(rig.opened(), tmp_path / f"r{txid}", to_txid=txid) == here.content(txid)
        here.store.checkpoint()
        rig.repository.backup(here.source)
        rig.repository.expire(Keep(last=1, points="none"))
        assert parts(rig) == set()
        write(here, 3000)
        archiver.step()
        assert here.restored(rig.opened(), tmp_path / "last", to_txid=here.txid) == here.content(here.txid)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fate", ["lost", "gone"])
def test_an_answer_that_is_lost_for_a_part_leaves_out_nothing(tmp_path: Path, fate: str) -> None:
    rig = Rig()
    with world(tmp_path / "store", rig.env, settings=SMALL) as here:
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        write(here, 3000)
        failed = False

        def once(what: str, name: str) -> str | None:
            nonlocal failed
            if failed or what != "put" or ".payload/" not in name:
                return None
            failed = True
            return fate

        rig.storage.fate = once
        with pytest.raises(HoldfastError):
            archiver.step()
        archiver.step()
        assert failed
        assert here.restored(rig.opened(), tmp_path / "r") == here.content(here.txid)


@pytest.mark.usefixtures("small")
def test_a_payload_whose_part_is_missing_or_swapped_is_found(tmp_path: Path) -> None:
    rig = Rig()
    with world(tmp_path / "store", rig.env, settings=SMALL) as here:
        rig.repository.backup(here.source)
        archiver = here.archiver(rig.repository)
        for _ in range(2):
            write(here, 3000)
        archiver.step()
        first, second = sorted(parts(rig))
        kept = rig.objects[first]
        for other in (None, rig.objects[second]):
            if other is None:
                del rig.objects[first]
            else:
                rig.objects[first] = other
            assert len(rig.opened().verify().damaged) == 1
            with pytest.raises(HoldfastError, match="payload"):
                here.restored(rig.opened(), tmp_path / f"r{other is None}", to_txid=here.txid)
            rig.objects[first] = kept
        assert rig.opened().verify().damaged == ()
