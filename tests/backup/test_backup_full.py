"""Full backups: what is copied, what a run that fails or dies leaves behind, and what is refused."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from backup_worlds import ENGINES, SMALL, digest, digest_at, in_chunks, open_store, tree, write

from holdfast import backup
from holdfast.backup.manifest import MANIFEST_MAGIC, Manifest
from holdfast.backup.terminal import in_flags
from holdfast.backup.testing.fault_injection import DyingDisk, Killed, Nth, WatchedSource, full_disk
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine, MemoryView
from holdfast.engine.contract.engine import Engine
from holdfast.engine.contract.image import ImageFile
from holdfast.engine.env import REAL, Env, Files
from holdfast.engine.errors import (
    ClusterUnavailable,
    DiskFull,
    ForeignStore,
    Inconsistent,
    InvalidInput,
    LeaseExpired,
    SettingError,
    SourceRefused,
    SourceRestarted,
    SourceUnavailable,
    StoreLocked,
    TargetInvalid,
    TargetPromoted,
    UnsupportedFormat,
)
from holdfast.engine.model import document
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.source.interface import Confirmation, Grant, SourceInfo
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store import copied_image
from holdfast.engine.store.layout import Layout
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.replay.roll import roll


@pytest.fixture(params=ENGINES, ids=lambda e: e.name)
def engine(request: pytest.FixtureRequest) -> type[Engine[Any, Any]]:
    kind: type[Engine[Any, Any]] = request.param
    return kind


@pytest.fixture
def store(tmp_path: Path, engine: type[Engine[Any, Any]]) -> Iterator[Store[Any, Any]]:
    with open_store(tmp_path / "store", engine) as opened:
        write(opened, 1, 20)
        opened.checkpoint()
        write(opened, 2, 10)
        yield opened


def leases(store: Store[Any, Any]) -> int:
    return len(LocalSource(store).leases())


def beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_full(store: Store[Any, Any], tmp_path: Path) -> None:
    target = tmp_path / "target"
    report = backup.run(store, target)
    assert (report.kind, report.from_txid, report.to_txid, report.verified) == ("full", 0, 30, True)
    assert report.bounds.last == 30
    assert report.target_id in [c.id for c in store.log.slots.list()]
    assert leases(store) == 0
    assert beside(target) == ["store", "target"], "no scratch copy stays"
    assert sorted(p.name for p in target.iterdir()) == ["CURRENT", "LOCK", "STORE", "gen-000001"]
    assert sorted(p.name for p in (target / "gen-000001").iterdir()) == ["MANIFEST", "log", "state"]
    assert digest_at(target, type(store.engine)) == digest(store)
    assert backup.verify(target).digest == digest(store).hex()
    assert "30" in str(report)


def test_empty_store(tmp_path: Path, engine: type[Engine[Any, Any]]) -> None:
    with open_store(tmp_path / "store", engine) as store:
        report = backup.run(store, tmp_path / "target")
        assert report.to_txid == 0
        assert backup.run(store, tmp_path / "target").kind == "incremental"
        assert digest_at(tmp_path / "target", engine) == digest(store)


@pytest.mark.parametrize("moment", ["lease", "image", "confirm"])
def test_what_is_committed_during_the_copy_is_in_the_backup(
        store: Store[Any, Any], tmp_path: Path, moment: str) -> None:
    policy = in_chunks(512)
    numbers = count(100)

    def commit(what: str) -> None:
        if what == moment:
            write(store, next(numbers), 3)
            store.checkpoint()

    report = backup.run(WatchedSource(LocalSource(store), commit), tmp_path / "target", policy=policy)
    assert report.to_txid == store.published.txid > 30
    assert digest_at(tmp_path / "target", type(store.engine)) == digest(store)
    assert backup.verify(tmp_path / "target").bounds.last == report.to_txid


def test_source_dies_at_every_answer_and_the_next_run_goes_on(
        store: Store[Any, Any], tmp_path: Path) -> None:
    policy = in_chunks(1024 if type(store.engine) is MemoryEngine else 24 << 10)
    resumed = 0
    for n in count(1):
        target = tmp_path / f"target{n}"
        dying = Nth(n, lambda: SourceUnavailable("the source died"))
        died = False
        try:
            report = backup.run(WatchedSource(LocalSource(store), dying), target, policy=policy)
        except SourceUnavailable:
            died = True
            assert not Layout(target, Files()).is_store(), "a half-made target is never taken for a whole one"
            with pytest.raises(TargetInvalid):
                backup.verify(target)
            report = backup.run(store, target, policy=policy)
            resumed += report.resumed_bytes
            assert sum(1 for p in target.iterdir() if "gen-" in p.name) == 1
        assert report.to_txid == 30
        assert digest_at(target, type(store.engine)) == digest(store)
        if not died and dying.count < n:
            break
    assert resumed > 0


def test_resume_reads_only_the_rest(tmp_path: Path) -> None:
    policy = in_chunks(4096)
    with open_store(tmp_path / "store") as store:
        write(store, 1, 50, size=2000)
        store.checkpoint()
        with pytest.raises(SourceUnavailable):
            backup.run(WatchedSource(LocalSource(store), Nth(20, lambda: SourceUnavailable("gone"), "image")),
                       tmp_path / "target", policy=policy)
        reads = Nth(0, Killed, "image")
        report = backup.run(WatchedSource(LocalSource(store), reads), tmp_path / "target", policy=policy)
        assert report.resumed_bytes >= 15 * 4096
        assert reads.count == -(-(report.image_bytes - report.resumed_bytes) // 4096)
        assert digest_at(tmp_path / "target", MemoryEngine) == digest(store)


def test_source_restarted_half_way_starts_anew(tmp_path: Path, engine: type[Engine[Any, Any]]) -> None:
    policy = in_chunks(512)
    with open_store(tmp_path / "store", engine) as store:
        write(store, 1, 20)
        store.checkpoint()
        with pytest.raises(SourceUnavailable):
            backup.run(WatchedSource(LocalSource(store), Nth(3, lambda: SourceUnavailable("gone"), "image")),
                       tmp_path / "target", policy=policy)
    with open_store(tmp_path / "store", engine) as store:
        write(store, 2, 20)
        store.checkpoint()
        report = backup.run(store, tmp_path / "target", policy=policy)
        assert report.resumed_bytes == 0
        assert digest_at(tmp_path / "target", engine) == digest(store)


def test_lease_expired_half_way(store: Store[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(LeaseExpired):
        backup.run(WatchedSource(LocalSource(store), Nth(1, lambda: LeaseExpired("over"), "confirm")),
                   tmp_path / "target")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["LOCK"]
    assert backup.run(store, tmp_path / "target").to_txid == 30


def test_disk_full_at_every_write(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1):
        target, disk = tmp_path / f"target{n}", full_disk(n)
        try:
            backup.run(store, target, env=Env(files=disk))
        except DiskFull:
            assert leases(store) == 0
            assert not target.exists() or not [p for p in target.iterdir() if "partial" in p.name]
            assert backup.run(store, target).to_txid == 30
            assert digest_at(target, type(store.engine)) == digest(store)
        else:
            break
    assert n > 8, "there is more to a backup than that"


def test_no_room_is_known_before_the_first_byte(store: Store[Any, Any], tmp_path: Path) -> None:
    class Small(Files):
        def free(self, path: Path) -> int:
            return 1000

    reads = Nth(0, Killed, "image")
    with pytest.raises(DiskFull, match="1,000 left"):
        backup.run(WatchedSource(LocalSource(store), reads), tmp_path / "target", env=Env(files=Small()))
    assert reads.count == 0


def test_killed_at_every_step(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1):
        target, disk = tmp_path / f"target{n}", DyingDisk(fail_at=n)
        try:
            backup.run(store, target, env=Env(files=disk))
        except Killed:
            if Layout(target, Files()).is_store():
                assert backup.verify(target).bounds.last == 30, "what is in force is whole"
            report = backup.run(store, target)
            assert report.to_txid == 30
            assert digest_at(target, type(store.engine)) == digest(store)
            assert [p.name for p in target.iterdir() if "gen-" in p.name] == [(target / "CURRENT").read_text().strip()]
            for lease in LocalSource(store).leases():
                store.leases.release(lease.id)
        else:
            break
    assert n > 20, "there is more to a backup than that"


class Suspicious(MemoryEngine):
    """An engine whose check always finds something."""

    def view(self) -> MemoryView:
        view = super().view()
        view.check = lambda: iter(["the cat is on the table"])  # type: ignore[method-assign]
        return view


def test_inconsistent_copy_is_not_the_backup(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        write(store, 1, 5)
        with pytest.raises(Inconsistent) as caught:
            backup.run(store, tmp_path / "target", engine=Suspicious)
        assert caught.value.findings == ("the cat is on the table",)
        assert [p.name for p in (tmp_path / "target").iterdir()] == ["LOCK"]
        assert leases(store) == 0
        unverified = backup.run(store, tmp_path / "target", engine=Suspicious, policy=backup.Policy(verify=False))
        assert not unverified.verified


def test_large_logs_are_checked_in_a_scratch_copy(store: Store[Any, Any], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the target's own file system: what is beside the target may be a small one, or closed to this user."""
    target = tmp_path / "target"
    seen: list[str] = []

    def look_and_roll(*args: Any, **how: Any) -> Any:
        seen.extend(str(p.relative_to(target)) for p in target.rglob("*"))
        return roll(*args, **how)

    limits = backup.Limits(memory_log_bytes=0)
    monkeypatch.setattr("holdfast.backup.target.scratch.roll", look_and_roll)
    backup.run(store, target, policy=backup.Policy(limits=limits))
    assert "gen-000001.partial/work" in seen
    backup.verify(target, limits=limits)
    assert any(name.startswith("scratch-") for name in seen)
    assert sorted(p.name for p in target.iterdir()) == ["CURRENT", "LOCK", "STORE", "gen-000001"]
    assert sorted(p.name for p in (target / "gen-000001").iterdir()) == ["MANIFEST", "log", "state"]
    assert beside(target) == ["store", "target"]


def test_scratch_copies_of_the_dead_are_swept(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    (tmp_path / "target" / "scratch-0123456789abcdef").mkdir()
    backup.run(store, tmp_path / "target")
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["CURRENT", "LOCK", "STORE", "gen-000001"]


def test_a_target_with_a_long_path(store: Store[Any, Any], tmp_path: Path) -> None:
    """The path is in the name that its run has at the source, where names have a limit."""
    target = tmp_path / ("x" * 100) / ("y" * 200)
    assert not backup.run(store, target).notes
    assert not backup.run(store, target).notes


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refuses_what_is_no_target(store: Store[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    (tmp_path / "file").write_bytes(b"")
    with open_store(tmp_path / "other"):
        pass
    for name, says in (("photos", "not empty"), ("file", "is a file"), ("other", "a store, not a backup")):
        before = tree(tmp_path / name)
        with pytest.raises(TargetInvalid, match=says):
            backup.run(store, tmp_path / name)
        assert tree(tmp_path / name) == before


def test_refuses_a_target_that_was_opened_for_writing(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    with Store.open(tmp_path / "target", type(store.engine), settings=SMALL) as twin:
        assert digest(twin) == digest(store)
        assert len(twin.history.branches) == len(store.history.branches) + 1
    before = tree(tmp_path / "target")
    for refused in (backup.run, lambda s, t: backup.verify(t), lambda s, t: backup.restore(t, tmp_path / "r")):
        with pytest.raises(TargetPromoted, match="opened for writing at 20"):
            refused(store, tmp_path / "target")
    assert tree(tmp_path / "target") == before
    assert backup.info(tmp_path / "target").kind == "promoted backup"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_backup_that_nobody_here_can_read_is_not_opened(
        store: Store[Any, Any], tmp_path: Path, read_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened as an ordinary store it would show a mixture of states, or be written to and still be called a backup."""
    backup.run(store, tmp_path / "target")
    before = {**tree(tmp_path / "target"), "LOCK": ANY}
    monkeypatch.setattr(copied_image, "GROUP", "holdfast.nothing")
    with pytest.raises(UnsupportedFormat, match="no installed package reads its MANIFEST"):
        Store.open(tmp_path / "target", type(store.engine), read_only=read_only)
    assert tree(tmp_path / "target") == before


@pytest.mark.parametrize("after", ["info", "confirm"])
def test_refuses_another_store_that_took_the_place_of_the_first(store: Store[Any, Any], tmp_path: Path,
                                                                after: str) -> None:
    """Between two requests the process at an address was stopped, and that of another store started."""

    class Swapped(WatchedSource):
        def info(self) -> SourceInfo:
            found = super().info()
            self.swap_after("info")
            return found

        def confirm(self, lease_id: str) -> Confirmation:
            confirmed = super().confirm(lease_id)
            self.swap_after("confirm")
            return confirmed

        def swap_after(self, what: str) -> None:
            if what == after:
                self.inner = LocalSource(other)

    with open_store(tmp_path / "other", type(store.engine)) as other:
        write(other, 1, 20)
        with pytest.raises(SourceRestarted):
            backup.run(Swapped(LocalSource(store)), tmp_path / "target", engine=type(store.engine))
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["LOCK"]
    assert backup.run(store, tmp_path / "target").store_id == store.history.store_id.hex()


def test_refuses_a_target_of_a_newer_format(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    generation = Layout(tmp_path / "target", Files()).current()
    data = document.encode(MANIFEST_MAGIC, 99, {})
    generation.manifest.write_bytes(data)
    with pytest.raises(UnsupportedFormat, match="99"):
        backup.run(store, tmp_path / "target")
    assert generation.manifest.read_bytes() == data


def test_refuses_a_target_in_use(store: Store[Any, Any], tmp_path: Path) -> None:
    """Also to read it: a run looks for no readers, and they would leave a lease of theirs in the backup."""
    target = tmp_path / "target"
    backup.run(store, target)
    lock = Files().lock(target / "LOCK", "somebody")
    before = tree(target)
    try:
        for refused in (lambda: backup.run(store, target), lambda: backup.verify(target),
                        lambda: Store.open(target, type(store.engine), read_only=True)):
            with pytest.raises(StoreLocked, match="in use by this very process"):
                refused()
    finally:
        lock.release()
    assert tree(target) == before


def test_expected_store(store: Store[Any, Any], tmp_path: Path) -> None:
    for good in (store.history.store_id, store.history.store_id.hex(), store.history.branch.id.hex()[:8]):
        backup.run(store, tmp_path / "target", expect_store=good)
    with pytest.raises(ForeignStore, match="00000000"):
        backup.run(store, tmp_path / "another", expect_store="0" * 32)
    assert not (tmp_path / "another").exists()
    with pytest.raises(InvalidInput, match="not an id"):
        backup.run(store, tmp_path / "another", expect_store="mine")


def test_bad_arguments(store: Store[Any, Any], tmp_path: Path) -> None:
    for wrong in ({"compact": -1.0}, {"lease_ttl": 0.0}, {"compact": math.nan}, {"lease_ttl": math.inf},
                  {"compact_floor": -1}, {"check": "some"}, {"keep_points": "7"}):
        with pytest.raises(SettingError):
            backup.Policy(**wrong)
    for wrong in ({"timeout": 0.0}, {"timeout": math.nan}, {"timeout": "5"}, {"max_record_bytes": 0}):
        with pytest.raises(SettingError):
            backup.Connection(**wrong)
    for wrong in ({"chunk_bytes": 0}, {"chunk_bytes": 5 << 20}, {"runs": 0}, {"sampled_chunks": -1}, {"runs": 1.5}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            backup.Limits(**wrong)
    with pytest.raises(SettingError, match="is not a Limits"):
        backup.Policy(limits=7)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="is not a Policy"):
        backup.run(store, tmp_path / "target", policy={"verify": False})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'proof'"):
        backup.run(store, tmp_path / "target", proof=False)
    assert "secret" not in repr(backup.Connection(token="secret"))
    with pytest.raises(InvalidInput):
        backup.run(7, tmp_path / "target")  # type: ignore[arg-type]
    with pytest.raises(ClusterUnavailable):
        backup.run("ha://a,b", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_keywords_of_earlier_releases_work_and_warn(store: Store[Any, Any], tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="the old keyword goes with release 0.3") as warned:
        report = backup.run(store, tmp_path / "target", verify=False, compact=0.5, keep_points="none", timeout=5)
    assert {w.filename for w in warned} == {__file__}
    assert {str(w.message).partition("=")[0] for w in warned} == {"run(verify", "run(compact", "run(keep_points",
                                                                   "run(timeout"}
    assert any("run(policy=Policy(compact=…)) now" in str(w.message) for w in warned)
    assert not report.verified
    with pytest.warns(DeprecationWarning, match="drop_slot"):
        backup.drop_slot(store, backup.slots(store)[0].id, token="of no use here")
    backup.run(store, tmp_path / "target")
    with pytest.warns(DeprecationWarning, match=r"slots\(token=…\) is slots\(connection") as warned:
        slot = backup.slots(store, token="of no use here")[0]
    old: Any = backup.drop_slot
    with pytest.warns(DeprecationWarning, match="consumer_id= is slot_id= now") as warned_too:
        old(store, consumer_id=slot.id)
    assert {w.filename for w in (*warned, *warned_too)} == {__file__}
    with pytest.raises(TypeError, match="'verify'"):
        backup.slots(store, verify=False)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable):
        backup.run("single://127.0.0.1:1", tmp_path / "target",
                   connection=backup.Connection(token="0123456789abcdef", timeout=1))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\0b", "x/"])
def test_no_name_from_a_source_leads_out_of_the_target(tmp_path: Path, name: str) -> None:
    class Evil(WatchedSource):
        def lease(self, *args: Any, **kwargs: Any) -> Grant:
            grant = super().lease(*args, **kwargs)
            return Grant(id=grant.id, instance=grant.instance, ttl=grant.ttl, position=grant.position, image_id="x",
                         files=(ImageFile(name, 3),))

        def read_image(self, *args: Any) -> bytes:
            return b"bad"

    with open_store(tmp_path / "store") as store:
        write(store, 1)
        with pytest.raises(SourceRefused, match="not a proper name"):
            backup.run(Evil(LocalSource(store)), tmp_path / "in" / "target")
    assert [p.name for p in (tmp_path / "in").rglob("*")] == ["target", "LOCK"]


def test_moving_image_is_told_from_a_stable_one(tmp_path: Path) -> None:
    for kind in ENGINES:
        with open_store(tmp_path / kind.name, kind) as store:
            write(store, 1, 3)
            store.checkpoint()
            report = backup.run(store, tmp_path / f"{kind.name}.bak")
            manifest = Manifest.read(Files(), Layout(tmp_path / f"{kind.name}.bak", Files()).current())
            assert manifest is not None
            assert manifest.moving == (kind is RecordsEngine)
            first = manifest.consistent_from if manifest.moving else manifest.image_position
            assert report.bounds.first == first.txid


def test_io_error_is_itself(store: Store[Any, Any], tmp_path: Path) -> None:
    broken = DyingDisk(9, lambda: OSError(errno.EIO, "Input/output error"),
                       frozenset({"datasync", "sync", "sync_directory"}))
    with pytest.raises(OSError, match="Input/output"):
        backup.run(store, tmp_path / "target", env=Env(files=broken))
    assert backup.run(store, tmp_path / "target", env=REAL).to_txid == 30


def test_a_store_with_larger_transactions_is_backed_up_if_it_is_known_for_them(tmp_path: Path) -> None:
    """What a source sends is bounded by its client, and no argument of a run raised that bound: a store that was opened
    with a larger one could be backed up by the process that had it open, and by nobody else."""
    token = "a-token-for-one-test"
    service = BackupService(online_backup_server="127.0.0.1:0", token=token)
    with Store.open(tmp_path / "store", MemoryEngine, plugins=[service],
                    settings=Settings(max_record_bytes=80 << 20)) as store:
        uri = store.backup_uri or ""
        backup.run(uri, tmp_path / "target", connection=backup.Connection(token=token))
        with store.transaction() as tx:
            for n in range(66):
                tx.put(b"%d" % n, bytes(1 << 20))
        with pytest.raises(SourceRefused, match="at most 67,108,864 are accepted") as told:
            backup.run(uri, tmp_path / "target", connection=backup.Connection(token=token))
        assert "--max-record-bytes" in in_flags(told.value.hint)
        report = backup.run(uri, tmp_path / "target",
                            connection=backup.Connection(token=token, max_record_bytes=80 << 20))
        assert (report.kind, report.transactions) == ("incremental", 1)
        assert digest_at(tmp_path / "target", MemoryEngine) == digest(store)
        with pytest.raises(SettingError):
            backup.run(uri, tmp_path / "target", connection=backup.Connection(token=token, max_record_bytes=0))
