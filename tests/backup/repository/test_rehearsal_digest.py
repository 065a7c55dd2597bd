"""A rehearsal says exactly what was proved: it compares with the digest that the source computed, or says that there
was none, and a proof that is not true any more says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import digest, write
from cli_rig import holdfast, told
from repository_rig import Rig, World, world
from staging_memory import StagingMemory
from store_kinds import GRAPH, commit

from holdfast.backup import Keep, Repository
from holdfast.engine import MemoryEngine
from holdfast.engine.errors import Inconsistent, Unsupported
from holdfast.engine.source.interface import ContentDigest
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        made.write(4)
        made.store.checkpoint()
        yield made


def digest_of(here: World) -> str:
    with here.store.snapshot() as view:
        return str(view.digest().hex())


def test_the_end_is_checked_and_the_image_is_compared(rig: Rig, here: World) -> None:
    """The restore goes on to the end of the archive, and passes the transaction of which the source gave a digest."""
    here.write(2)
    report = rig.repository.backup(here.source, digest=True)
    assert (report.digest, report.digest_at) == (digest_of(here), here.txid)
    rehearsed = rig.repository.rehearse(engine=StagingMemory)
    assert (rehearsed.txid, rehearsed.compared_at, rehearsed.digest_from) == (here.txid, here.txid, "source")
    assert "equal to the source's" in str(rehearsed)
    compared_at = here.txid
    here.write(3)
    here.archiver(rig.repository).step()
    rehearsed = rig.repository.rehearse(engine=StagingMemory)
    assert (rehearsed.txid, rehearsed.compared_at, rehearsed.digest) == (here.txid, compared_at, digest_of(here))
    assert f"not compared; at transaction {compared_at} it was equal to the source's" in str(rehearsed)
    [image] = rig.repository.info().images
    [proof] = image.proofs
    assert {name: proof[name] for name in ("good", "txid", "compared_at", "digest_from", "digest", "key", "stale")} == {
        "good": True, "txid": here.txid, "compared_at": compared_at, "digest_from": "source",
        "digest": rehearsed.digest, "key": 0, "stale": ""}
    assert proof["who"].startswith("rehearsal on ")
    before = rig.repository.rehearse(engine=StagingMemory, to_txid=compared_at - 1)
    assert (before.compared_at, before.digest_from, before.compared) == (0, "", False)


def test_without_a_digest_it_says_that_there_was_none(rig: Rig, here: World, caplog: pytest.LogCaptureFixture,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.repository.backup(here.source).digest == ""
    rehearsed = rig.repository.rehearse(engine=StagingMemory)
    assert (rehearsed.compared, "none to compare with" in str(rehearsed)) == (False, True)

    def none(lease_id: str) -> ContentDigest:
        raise Unsupported("this source has none")

    monkeypatch.setattr(here.source, "content_digest", none)
    assert rig.repository.backup(here.source, digest=True).digest == ""
    assert "a rehearsal will have nothing to compare with" in caplog.text


def test_a_restore_that_gives_something_else_is_found(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own check finds nothing: only the digest tells."""
    rig.repository.backup(here.source, digest=True)
    monkeypatch.setattr("holdfast.engine.builtin.memory.MemoryView.digest", lambda self: bytes(16))
    with pytest.raises(Inconsistent, match="when the source computed it"):
        rig.repository.rehearse(engine=StagingMemory)
    [proof] = rig.repository.info().images[0].proofs
    assert (proof["good"], proof["txid"], proof["compared_at"]) == (False, here.txid, here.txid)


def test_a_digest_of_an_image_that_moves_is_within_its_bounds(rig: Rig, tmp_path: Path) -> None:
    """The store goes on while blocks are read, while the digest is computed, and afterwards."""
    with GRAPH.open(tmp_path / "store") as store:
        numbers = iter(range(1, 1000))

        class Moves(LocalSource):
            def read_image(self, *arguments: Any) -> bytes:
                commit(GRAPH, store, next(numbers))
                store.checkpoint()
                return super().read_image(*arguments)

            def content_digest(self, lease_id: str) -> ContentDigest:
                commit(GRAPH, store, next(numbers))
                made = super().content_digest(lease_id)
                commit(GRAPH, store, next(numbers))
                return made

        for _ in range(20):
            commit(GRAPH, store, next(numbers))
        store.checkpoint()
        report = rig.repository.backup(Moves(store), digest=True)
        assert report.consistent_from < report.digest_at < report.to_txid
        assert rig.repository.rehearse().compared_at == report.digest_at
        assert rig.repository.rehearse(to_txid=report.digest_at).digest == report.digest


def test_a_proof_is_stale_once_its_log_was_dropped(rig: Rig, here: World) -> None:
    archiver = here.archiver(rig.repository)
    rig.repository.backup(here.source, digest=True)
    for _ in range(40):
        here.write(1)
        archiver.step()
    rig.repository.rehearse(engine=StagingMemory)
    rig.clock.time_us += 3600 * 1_000_000
    here.store.checkpoint()
    here.write(1)
    archiver.step()
    rig.repository.backup(here.source)
    assert rig.repository.info().images[0].proofs[0]["stale"] == ""
    rig.repository.expire(Keep(last=2, points="none"))
    assert "was dropped since" in rig.repository.info().images[0].proofs[0]["stale"]
    assert "(not true any more: log up to transaction" in str(rig.repository.info())


def test_a_proof_is_stale_once_its_image_was_found_damaged(rig: Rig, here: World) -> None:
    rig.repository.backup(here.source)
    rig.repository.rehearse(engine=StagingMemory)
    [pack] = [name for name in rig.objects if name.startswith("packs/")]
    data, put_us = rig.objects[pack]
    rig.objects[pack] = data[:100] + bytes([data[100] ^ 1]) + data[101:], put_us
    assert rig.repository.verify().bad_images
    proofs = {proof["kind"]: proof for proof in rig.repository.info().images[0].proofs}
    assert proofs["rehearsal"]["stale"] == "the image was found damaged since"
    rig.objects[pack] = data, put_us
    rig.repository.rehearse(engine=StagingMemory)
    proofs = {proof["kind"]: proof for proof in rig.repository.info().images[0].proofs}
    assert proofs["rehearsal"]["stale"] == "", "it was rehearsed again, and restores"


def test_the_source_across_the_network_computes_it(store: Store[Any, Any], uri: str, tmp_path: Path) -> None:
    write(store, 2, 3)
    holdfast("repo", "init", tmp_path / "repo")
    report = told("repo", "backup", uri, tmp_path / "repo", "--digest")
    assert (report["digest"], report["digest_at"]) == (digest(store).hex(), 13)
    assert "equal to the source's" in holdfast("repo", "rehearse", tmp_path / "repo").stdout


def test_the_digest_of_a_store_that_nobody_has_written_to_is_told(tmp_path: Path) -> None:
    """Transaction 0 counted as none, and its digest was left out."""
    with Store.open(tmp_path / "store", MemoryEngine) as store, Repository.init(tmp_path / "repo") as repository:
        repository.backup(store)
        with store.snapshot() as view:
            assert repository.rehearse().digest == view.digest().hex()
