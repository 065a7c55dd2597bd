"""Backing up through `ha://`: which member is used, and what happens if it dies, lags or has pruned its log.

The members here are copies of one store's directory, made while it was closed, and a service beside each that says what
the test wants. Real members are backed up in `test_cluster_cli.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from backup_worlds import SMALL, digest, write
from says_member import Says
from store_kinds import until

from holdfast import backup
from holdfast.backup.repository.archiving import archive_source
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import REAL
from holdfast.engine.errors import (
    AheadOfSource,
    ClusterUnavailable,
    InvalidInput,
    LogPruned,
    NotAuthorized,
    NotFound,
)
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.store import Store

DEAD = "127.0.0.1:1"


class World:
    """The history of one store, and copies of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seed = 0
        self.stack = ExitStack()

    def grow(self, count: int = 3, size: int = 100) -> None:
        with Store.open(self.root / "history", MemoryEngine, settings=SMALL) as store:
            self.seed += 1
            write(store, self.seed, count, size)
            store.checkpoint()

    def copy(self, name: str) -> Path:
        shutil.rmtree(self.root / name, ignore_errors=True)
        shutil.copytree(self.root / "history", self.root / name)
        return self.root / name

    def serve(self, name: str, role: str | None = None, healthy: bool = True, *, old: bool = False,
              replica: int | None = None, **service: Any) -> tuple[str, Store[Any, Any]]:
        """Serve a copy of the history, or the copy that was made before if `old`. Its address, and its store."""
        directory = self.root / name if old else self.copy(name)
        says = None if role is None else Says(name, role, healthy)
        plugin = BackupService(online_backup_server="127.0.0.1:0", extension=says, **service)
        store = self.stack.enter_context(Store.open(directory, MemoryEngine, settings=SMALL, plugins=[plugin],
                                                    replica=replica))
        assert store.backup_uri is not None
        return store.backup_uri.removeprefix("single://"), store

    def run(self, *addresses: str, **how: Any) -> backup.Report:
        return backup.run(f"ha://{','.join(addresses)}", self.target, engine=MemoryEngine, **how)

    @property
    def target(self) -> Path:
        return self.root / "target"

    def asked(self) -> str:
        """The address that the target's last run came from."""
        source: str = backup.info(self.target).runs[-1]["source"]
        return source.removeprefix("single://")

    def same(self) -> None:
        """The backup restores to the end of the history."""
        shutil.rmtree(self.root / "restored", ignore_errors=True)
        backup.restore(self.target, self.root / "restored", engine=MemoryEngine)
        with (Store.open(self.root / "restored", MemoryEngine, settings=SMALL) as restored,
              Store.open(self.copy("compared"), MemoryEngine, settings=SMALL) as whole):
            assert digest(restored) == digest(whole)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.grow()
    with made.stack:
        yield made


def test_a_healthy_follower_is_asked_before_the_primary(world: World) -> None:
    lagging, _ = world.serve("d", "follower")
    world.grow()
    primary, _ = world.serve("a", "primary")
    cut_off, _ = world.serve("b", "follower", healthy=False)
    follower, _ = world.serve("c", "follower")
    report = world.run(cut_off, primary, lagging, follower)
    assert (report.kind, world.asked(), report.notes) == ("full", follower, ())
    world.same()
    assert world.run(cut_off, primary).kind == "incremental"
    assert world.asked() == primary
    world.run(cut_off)
    assert world.asked() == cut_off


def test_single_stores_are_members_too(world: World) -> None:
    older, _ = world.serve("a")
    world.grow()
    newer, _ = world.serve("b")
    world.run(older, newer)
    assert world.asked() == newer


def test_incrementals_come_from_any_member(world: World) -> None:
    for n, name in enumerate("abc"):
        address, _ = world.serve(name, "follower")
        report = world.run(address)
        assert report.kind == ("incremental" if n else "full")
        world.grow()
    address, _ = world.serve("d", "primary")
    assert world.run(address).transactions == 3
    world.same()


def test_a_member_that_has_branched_is_never_used(world: World) -> None:
    branched, _ = world.serve("a", "branched", healthy=False)
    with pytest.raises(ClusterUnavailable, match="it has branched"):
        world.run(branched)
    good, _ = world.serve("b", "primary")
    world.run(branched, good)
    assert world.asked() == good


def test_members_of_two_clusters_are_refused_by_name(world: World) -> None:
    ours, _ = world.serve("a")
    other = World(world.root / "other")
    other.grow()
    with other.stack:
        theirs, _ = other.serve("a")
        with pytest.raises(InvalidInput, match=rf"two clusters: {ours} has store [0-9a-f]{{8}}, {theirs} has store"):
            world.run(ours, theirs)
    assert not world.target.exists()


def test_a_restored_copy_among_the_members_is_refused_by_name(world: World) -> None:
    ours, _ = world.serve("a")
    world.run(ours)
    backup.restore(world.target, world.root / "b", engine=MemoryEngine)
    restored, _ = world.serve("b", old=True)
    with pytest.raises(InvalidInput, match=rf"different branches: .*{restored} is on branch"):
        world.run(ours, restored)


def test_dead_members_are_passed_over_and_named_if_all_are(world: World) -> None:
    alive, _ = world.serve("a", "primary")
    world.run(DEAD, alive)
    with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: "):
        world.run(DEAD, "127.0.0.1:2")


def test_a_wrong_token_is_passed_over_and_named_if_it_is_right_for_none(world: World) -> None:
    good, _ = world.serve("a", "primary", token="the-token-of-member-a")
    bad, _ = world.serve("b", "follower", token="the-token-of-member-b")
    connection = backup.Connection(token="the-token-of-member-a")
    world.run(good, bad, connection=connection)
    assert world.asked() == good
    with pytest.raises(NotAuthorized):
        world.run(bad, connection=connection)


def test_members_speak_tls_with_an_authority_of_the_system(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    certificate, authority = world.root / "cert.pem", world.root / "ca.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    ca.cert_pem.write_to_path(str(authority))
    member, _ = world.serve("a", "follower", tls_certificate=certificate)
    plain, _ = world.serve("b", "follower")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    world.run(plain, member, connection=backup.Connection(tls=True))
    assert world.asked() == member


# --- members that lag or have pruned ----------------------------------------------------------------------------------


def test_a_target_that_is_ahead_of_a_member_is_backed_up_from_another(world: World) -> None:
    behind, _ = world.serve("a", "follower")
    world.grow()
    ahead, _ = world.serve("b", "primary")
    first = world.run(ahead)
    report = world.run(behind, ahead)
    assert world.asked() == ahead
    assert (report.kind, report.transactions) == ("incremental", 0)
    assert any(behind in note for note in report.notes)
    assert report.bounds.complete_until_us >= first.bounds.complete_until_us
    with pytest.raises(AheadOfSource):
        world.run(behind)


def test_a_member_that_has_nothing_new_is_not_the_last_word(world: World) -> None:
    level, _ = world.serve("a", "follower")
    world.run(level)
    world.grow()
    ahead, _ = world.serve("b", "primary")
    report = world.run(level, ahead)
    assert (world.asked(), report.transactions, report.notes) == (ahead, 3, ())
    world.same()


def test_a_target_ahead_of_what_a_member_has_published_gets_nothing_new_and_loses_nothing(world: World) -> None:
    with Store.open(world.root / "history", MemoryEngine, settings=SMALL) as store:
        published = store.published.txid
        write(store, 7, 3)
        world.copy("b")  # closing it would make a checkpoint, and all that is in one is shown
    ahead, _ = world.serve("a", "primary")
    first = world.run(ahead)
    lagging, store = world.serve("b", "follower", old=True, replica=published)
    assert store.published.txid < first.to_txid <= store.durable.txid
    report = world.run(lagging)
    assert (world.asked(), report.kind, report.transactions) == (lagging, "incremental", 0)
    assert report.bounds == first.bounds
    world.run(lagging, ahead)
    assert world.asked() == lagging


def test_log_that_one_member_has_pruned_comes_from_another(world: World) -> None:
    address, _ = world.serve("a", "follower")
    world.run(address, policy=backup.Policy(register=False))
    world.grow(count=30, size=20_000)
    pruned, store = world.serve("b", "follower")
    store.log.prune(store.log.segments()[:-1])
    whole, other = world.serve("c", "primary")
    report = world.run(pruned, whole)
    assert (report.kind, world.asked()) == ("incremental", whole)
    assert any(pruned in note and "the log goes on from" in note for note in report.notes)
    world.same()

    world.grow(count=30, size=20_000)
    for name in "de":
        address, store = world.serve(name, "follower")
        store.log.prune(store.log.segments()[:-1])
    with pytest.raises(LogPruned):
        world.run(address, policy=backup.Policy(fallback=False))
    other.close()
    report = world.run(DEAD, address)
    assert (report.kind, world.asked()) == ("full", address)
    assert "no member has the log" in report.notes[-1]
    world.same()


def test_all_members_keep_log_for_the_target_and_show_its_slot_once(world: World) -> None:
    (a, first), (b, second) = world.serve("a", "follower"), world.serve("b", "primary")
    uri = f"ha://{a},{b},{DEAD}"
    report = world.run(a, b)
    assert [[slot.id for slot in store.log.slots.list()] for store in (first, second)] == [[report.target_id]] * 2
    [slot] = backup.slots(uri)
    assert (slot.id, slot.position.txid) == (report.target_id, report.to_txid)
    backup.drop_slot(uri, slot.id)
    assert not first.log.slots.list()
    assert not second.log.slots.list()
    with pytest.raises(NotFound):
        backup.drop_slot(uri, slot.id)
    world.run(a, b, policy=backup.Policy(register=False))
    assert not second.log.slots.list()


# --- members that are killed ------------------------------------------------------------------------------------------


@contextmanager
def process(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A process that serves a store. Its address, and what kills it with SIGKILL."""
    served = subprocess.Popen(
        [sys.executable, "-c", "from holdfast.backup.cli import main; main()", "serve", str(directory), "--listen",
         "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True)

    def kill() -> None:
        served.kill()
        served.wait()

    try:
        assert served.stdout is not None
        yield json.loads(served.stdout.readline())["backup_uri"].removeprefix("single://"), kill
    finally:
        kill()
        assert served.stdout is not None
        served.stdout.close()


def killing(kill: Callable[[], None], at: str) -> Callable[[str, int, int], None]:
    """A `progress` that kills at the first report of a stage."""
    done: list[str] = []

    def progress(stage: str, part: int, total: int) -> None:
        if stage == at and not done:
            assert 0 < part < total
            done.append(stage)
            kill()

    return progress


def test_a_member_is_killed_in_the_middle_of_an_image(world: World) -> None:
    world.grow(count=40, size=100_000)
    with process(world.copy("a")) as (dies, kill), process(world.copy("b")) as (other, _):
        policy = backup.Policy(limits=backup.Limits(chunk_bytes=100_000))
        report = world.run(dies, other, policy=policy, progress=killing(kill, "copy"))
        assert report.kind == "full"
        assert report.verified
        assert (report.resumed_bytes, world.asked()) == (0, other)
        assert any(dies in note and f"the image is wholly from {other}" in note for note in report.notes)
    assert [p.name for p in world.target.glob("gen-*")] == ["gen-000001"]
    world.same()


def test_a_member_is_killed_in_the_middle_of_log(world: World) -> None:
    address, _ = world.serve("c")
    before = world.run(address).to_txid
    world.grow(count=200, size=100_000)
    with process(world.copy("a")) as (dies, kill), process(world.copy("b")) as (other, _):
        policy = backup.Policy(limits=backup.Limits(batch_records=5))
        report = world.run(dies, other, policy=policy, progress=killing(kill, "log"))
        assert report.kind == "incremental"
        assert 0 < report.transactions < 200
        assert (report.to_txid, world.asked()) == (before + 200, other)
        assert any(dies in note and f"the log goes on from {other}" in note for note in report.notes)
    world.same()


def test_a_repository_is_filled_from_any_member(world: World) -> None:
    """Images and archive: a member goes away, and the next one goes on with both."""
    repo = world.root / "repo"
    world.grow()
    first, lags = world.serve("a", "follower")
    world.grow()
    second, primary = world.serve("b", "primary")
    uri, told = f"ha://{DEAD},{first},{second}", list[tuple[int, int]]()
    stop = REAL.scheduler.event()
    with backup.Repository.init(repo) as repository, backup.Repository.open(repo) as archive:
        begun = repository.backup(uri).to_txid
        assert begun == lags.published.txid
        task = REAL.scheduler.spawn("archive", lambda: archive_source(
            archive, uri, backup.Connection(), interval=0.02, stop=stop, told=lambda *said: told.append(said)))
        until(lambda: repository.info().branches[0].archived_to == begun)
        end = primary.published.txid
        lags.close()
        until(lambda: repository.info().branches[0].archived_to == end)
        stop.set()
        assert task.join(30)
        assert told == [(end, end - begun)]
        assert repository.backup(uri).to_txid == end
        for txid in range(begun, end + 1):
            repository.restore(world.root / f"{txid}", to_txid=txid, engine=MemoryEngine)
        with (Store.open(world.root / f"{end}", MemoryEngine, settings=SMALL) as restored,
              Store.open(world.copy("compared"), MemoryEngine, settings=SMALL) as whole):
            assert digest(restored) == digest(whole)
