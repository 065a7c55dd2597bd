"""What users of backup systems ask for most, as far as no other file shows it: bounds, throttle, doing several things
at once, going on after an interruption, and costing nothing when idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import write
from cli_rig import holdfast, told
from repository_rig import Objects, Rig, World, world
from staging_memory import StagingMemory

from holdfast.backup.repository import blocks, copying, names, restoring
from holdfast.backup.repository.errors import StorageUnavailable
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.errors import RestorePointOutOfRange
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store

S = 1_000_000


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        made.write(5)
        yield made


@pytest.fixture
def large(tmp_path: Path, rig: Rig) -> Iterator[Store[Any, Any]]:
    """Of some MB, in two files."""
    with Store.open(tmp_path / "large", RecordsEngine, create=True, env=rig.env) as store:
        for _ in range(12):
            with store.transaction() as tx:
                tx.insert(rig.env.randomness.token(1 << 20))
        store.checkpoint()
        yield store


def test_a_target_in_the_future_is_an_error_and_the_bounds_are_told(rig: Rig, here: World, tmp_path: Path) -> None:
    """Ask 4. A reader's clock that is ahead does not make the future the past: what was archived decides."""
    rig.repository.backup(here.source)
    archiver = here.archiver(rig.repository)
    here.write(2)
    archiver.step()
    [bounds] = rig.repository.info().branches[0].restores_to
    rig.clock.time_us += 3600 * S
    for at in (bounds.complete_until_us + 1, rig.clock.time_us - S):
        with pytest.raises(RestorePointOutOfRange, match=f"after the end of the repository, .* to {here.txid}"):
            rig.repository.restore(tmp_path / "r", at=moment(at), engine=StagingMemory)
    with pytest.raises(RestorePointOutOfRange, match=f"transaction {here.txid + 1} is not in"):
        rig.repository.plan(to_txid=here.txid + 1)
    assert not (tmp_path / "r").exists()


def test_a_backup_says_at_which_transaction_it_ends(rig: Rig, here: World) -> None:
    """Ask 7, and 6: it is bound to a known event. Whoever writes meanwhile is behind it, or in it."""
    known = here.txid
    report = rig.repository.backup(here.source)
    assert (report.to_txid, report.complete_until_us >= here.time_us(known)) == (known, True)
    here.write(1)
    assert rig.repository.plan().txid == known


def test_a_throttled_backup_takes_its_time(rig: Rig, large: Store[Any, Any]) -> None:
    """Ask 13. By the clock of the environment: it waits, and does not work in between."""
    slow = rig.repository.backup(LocalSource(large), rate=1e6)
    assert slow.image_bytes > 12e6
    assert slow.image_bytes / 1e6 - 5 < slow.seconds < slow.image_bytes / 1e6 + 1
    fast = rig.repository.backup(LocalSource(large), block_bytes=4096)
    assert fast.seconds < 1


def test_megabytes_per_second_on_the_command_line(store: Store[Any, Any], uri: str, tmp_path: Path) -> None:
    write(store, 2, 40, size=20_000)
    store.checkpoint()
    holdfast("repo", "init", tmp_path / "repo")
    slow = told("repo", "backup", uri, tmp_path / "repo", "--rate", "1")
    assert slow["seconds"] > slow["image_bytes"] / 1.1e6 - 0.1 > 0.3


class Meeting:
    """Callers wait a moment, until two are inside at once."""

    def __init__(self) -> None:
        self.changed, self.inside, self.met = threading.Condition(), 0, False

    def __call__(self) -> None:
        with self.changed:
            self.inside += 1
            self.met = self.met or self.inside == 2
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.met, timeout=1.0)
            self.inside -= 1


def meeting(objects: Objects, monkeypatch: pytest.MonkeyPatch, call: str, prefix: str) -> Meeting:
    """Two calls of these objects must be under way at once."""
    made, before = Meeting(), getattr(objects, call)

    def called(name: str, *more: Any) -> Any:
        if name.startswith(prefix) and not made.met:
            made()
        return before(name, *more)

    monkeypatch.setattr(objects, call, called)
    return made


def test_a_backup_reads_and_puts_several_things_at_once(rig: Rig, large: Store[Any, Any],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PACK_BYTES", 1 << 20)
    source, read = LocalSource(large), Meeting()
    before: Callable[..., bytes] = source.read_image

    def reading(*arguments: Any) -> bytes:
        if not read.met:
            read()
        return before(*arguments)

    monkeypatch.setattr(source, "read_image", reading)
    put = meeting(rig.storage, monkeypatch, "put", f"{names.PACKS}/")
    rig.repository.backup(source)
    assert (read.met, put.met) == (True, True)


def test_a_restore_fetches_several_things_at_once(rig: Rig, large: Store[Any, Any], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    rig.repository.backup(LocalSource(large))
    monkeypatch.setattr(restoring, "PART_BYTES", 1 << 20)
    got = meeting(rig.storage, monkeypatch, "get", f"{names.PACKS}/")
    rig.repository.restore(tmp_path / "r")
    assert got.met


def test_a_copy_that_was_interrupted_goes_on_where_it_was(rig: Rig, large: Store[Any, Any],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PACK_BYTES", 1 << 20)
    rig.objects[names.REPOSITORY] = b"the document", 0
    rig.repository.backup(LocalSource(large))
    dest = Objects(rig.clock)
    monkeypatch.setattr(dest, "url", "memory://copy", raising=False)
    monkeypatch.setattr(copying, "open_storage", lambda place, env: {"from": rig.storage, "to": dest}[place])
    packs = [name for name in rig.objects if name.startswith(f"{names.PACKS}/")]
    dest.fate = lambda what, name: "gone" if (what, name) == ("put", packs[len(packs) // 2]) else None
    with pytest.raises(StorageUnavailable):
        copying.copy("from", "to", env=rig.env)
    there = set(dest.objects)
    assert len(there & set(packs)) > 2
    dest.fate, dest.asked = (lambda what, name: None), []
    copying.copy("from", "to", env=rig.env)
    again = {name for what, name in dest.asked if what == "put" and name.startswith(f"{names.PACKS}/")}
    assert again == set(packs) - there
    assert {name: data for name, (data, _) in dest.objects.items() if name in rig.objects} == {
        name: data for name, (data, _) in rig.objects.items()}


def test_a_restore_that_was_interrupted_is_run_again(rig: Rig, large: Store[Any, Any], tmp_path: Path) -> None:
    """With `delta`, what an earlier run has written is read and compared, and not fetched again."""
    rig.repository.backup(LocalSource(large))
    packs = [name for name in rig.objects if name.startswith(f"{names.PACKS}/")]
    rig.storage.fate = lambda what, name: "gone" if (what, name) == ("get", packs[-1]) else None
    with pytest.raises(StorageUnavailable):
        rig.repository.restore(tmp_path / "r")
    rig.storage.fate = lambda what, name: None
    whole = rig.repository.restore(tmp_path / "r")
    assert whole.txid == large.published.txid
    again = rig.repository.restore(tmp_path / "r", delta=True)
    assert again.written_bytes == 0


def test_an_idle_store_costs_no_requests(rig: Rig, here: World) -> None:
    """Ask 14. But for a piece now and then, which says up to when it is complete."""
    archiver = here.archiver(rig.repository)
    archiver.step()
    rig.storage.asked.clear()
    for _ in range(50):
        rig.clock.time_us += S
        rig.clock.seconds += 0.5
        archiver.step()
    assert rig.storage.asked == []


def test_a_copy_has_few_bytes_in_memory_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units may have 64 MiB, of which several at once would be more than the bound for memory."""
    rig.objects[names.REPOSITORY] = b"the document", 0
    for number in range(12):
        rig.objects[names.pack("f" * 32, number)] = bytes(300), 0
    held, most, lock = [0], [0], threading.Lock()

    class Counts(Objects):
        def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            data = super().get(name, offset, length)
            with lock:
                held[0] += len(data) if name.startswith(f"{names.PACKS}/") else 0
                most[0] = max(most[0], held[0])
            return data

    class Slow(Objects):
        def put(self, name: str, data: bytes) -> None:
            if name.startswith(f"{names.PACKS}/"):
                threading.Event().wait(0.02)
                with lock:
                    held[0] -= len(data)
            super().put(name, data)

    source, dest = Counts(rig.clock, rig.objects), Slow(rig.clock)
    monkeypatch.setattr(dest, "url", "memory://copy", raising=False)
    monkeypatch.setattr(copying, "open_storage", lambda place, env: {"from": source, "to": dest}[place])
    for bound in (1000, 100):
        monkeypatch.setattr(copying, "_MOST_BYTES", bound)
        most[0] = 0
        dest.objects.clear()
        copying.copy("from", "to", env=rig.env)
        assert most[0] == max(bound // 300, 1) * 300
