"""What holds for every source: here for the store at hand, and for the same store across HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_rig import VALUE, LeapingClock, MemoryStore, client, new_store, put

from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.contract.image import Image
from holdfast.engine.errors import (
    AheadOfSource,
    DiskFull,
    Diverged,
    InvalidInput,
    LeaseExpired,
    LogPruned,
    NotFound,
    StoreClosed,
    TooManyLeases,
)
from holdfast.engine.model.positions import Position
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.source.interface import CHUNK_BYTES, Grant, Source
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.leases import Lease
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

SMALL_LOG = Settings(segment_bytes=128 << 10, keep_logs="1 transactions", heartbeat_s=0)


@pytest.fixture
def clock() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: LeapingClock) -> Iterator[MemoryStore]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with new_store(tmp_path / "store", clock=clock, settings=SMALL_LOG) as store:
        yield store


@pytest.fixture(params=["local", "http"])
def source(request: pytest.FixtureRequest, store: MemoryStore) -> Iterator[Source]:
    with LocalSource(store) if request.param == "local" else client(store) as source:
        yield source


def copy(source: Source, grant: Grant) -> dict[str, bytes]:
    return {f.name: b"".join(source.read_image(grant.id, f.name, at, min(CHUNK_BYTES, f.size - at))
                             for at in range(0, f.size, CHUNK_BYTES)) for f in grant.files}


def test_info_tells_what_the_store_is(source: Source, store: MemoryStore) -> None:
    put(store, 3)
    info = source.info()
    assert (info.instance, info.history, info.engine) == (store.instance, store.history, "memory")
    assert (info.durable, info.published, info.log_base) == (store.durable, store.published, store.log.base)
    assert info.published.txid == 3
    assert info.path == str(store.directory)
    assert info.complete_until_us >= store.log.time_of(3)


def test_chain_at(source: Source, store: MemoryStore) -> None:
    put(store, 3)
    assert source.chain_at(2) == store.log.chain_at(2)
    assert source.chain_at(0) == store.log.base.chain
    with pytest.raises(AheadOfSource):
        source.chain_at(4)


def test_the_digest_of_the_content_is_that_of_the_last_transaction(source: Source, store: MemoryStore) -> None:
    """Also if a record of the kit came after it, of which views do not know."""
    put(store, 3)
    grant = source.lease("a test", image=False, after=store.log.base)
    with store.snapshot() as view:
        before = view.digest()
    store.write_path.mark()
    told = source.content_digest(grant.id)
    assert (told.digest, told.position) == (before, store.published)
    assert told.position.txid == 4
    put(store, 1, b"another value")
    told = source.content_digest(grant.id)
    assert (told.digest != before, told.position) == (True, store.published)
    source.release(grant.id)
    with pytest.raises(LeaseExpired):
        source.content_digest(grant.id)


def test_an_image_stays_as_it_was_while_the_store_goes_on(source: Source, store: MemoryStore) -> None:
    put(store, 20, VALUE)
    image_position = store.checkpoint()
    state = (store._opened.generation.state / "state").read_bytes()
    assert len(state) > 2 * CHUNK_BYTES
    grant = source.lease("test", image=True)
    assert (grant.position, grant.instance, grant.moving) == (image_position, store.instance, False)
    assert grant.time_us == store.log.time_of(image_position.txid)
    assert {f.name: f.size for f in grant.files} == {"state": len(state)}
    put(store, 20, b"other")
    store.checkpoint()
    assert copy(source, grant) == {"state": state}
    confirmed = source.confirm(grant.id)
    assert (confirmed.consistent_from, confirmed.published) == (image_position, store.published)
    source.release(grant.id)
    source.release(grant.id)
    with pytest.raises(LeaseExpired):
        source.read_image(grant.id, "state", 0, 1)


def test_the_log_after_a_lease_survives_pruning(source: Source, store: MemoryStore) -> None:
    put(store, 50, VALUE[:4000])
    grant = source.lease("test", image=True)
    put(store, 200, VALUE[:4000])
    store.checkpoint()
    store.prune()
    assert len(store.log.segments()) > 2
    records = list(source.read_log(grant.id, grant.position, 250))
    assert [r.txid for r in records] == list(range(grant.position.txid + 1, 251))
    assert [(r.header, r.payload, r.chain) for r in records] == [
        (r.header, r.payload, r.chain) for r in store.log.read(grant.position.txid)]
    source.release(grant.id)
    store.prune()
    assert store.log.base.txid > grant.position.txid
    with pytest.raises(LogPruned):
        source.lease("test", image=False, after=grant.position)


def test_a_prune_between_looking_and_pinning_is_seen(source: Source, store: MemoryStore,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 200, VALUE[:4000])
    grants: list[Lease] = []
    grant_longest = store.leases.grant_longest

    def late(owner: str, txid: int) -> Lease:
        if not grants:
            store.checkpoint()
            store.prune()  # unless it did by itself
            assert store.log.base.txid > 0
        grants.append(grant_longest(owner, txid))
        return grants[-1]

    monkeypatch.setattr(store.leases, "grant_longest", late)
    grant = source.lease("test", image=True)
    assert len(grants) == 2
    assert store.leases.floor() == grant.position.txid >= store.log.base.txid


def test_places_in_the_log_are_kept_by_many_threads(store: MemoryStore) -> None:
    """Each stream has a thread of its own. If one forgot the oldest place while another took one up, it ended with
    "dictionary changed size during iteration", and the backup with it."""
    put(store, 5)
    source = LocalSource(store, max_cursors=2)
    after = Position(3, store.log.chain_at(3))
    leases = [source.lease("test", image=False, after=after).id for _ in range(6)]
    others: list[threading.Thread] = []

    def read(lease: str) -> list[int]:
        return [record.txid for record in source.read_log(lease, after, 5)]

    class Meddled(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            """Another thread begins to read now, if it may."""
            found = super().__iter__()
            if not others:
                others.append(threading.Thread(target=lambda: next(source.read_log(leases[1], after, 5))))
                others[0].start()
                others[0].join(0.3)
            return found

    source._cursors = Meddled()
    for lease in leases[:4]:
        assert read(lease) == [4, 5]
    others[0].join()
    assert read(leases[4]) == read(leases[5]) == [4, 5]
    assert len(source._cursors) == 2
    for lease in leases:
        source.release(lease)
    assert not source._cursors


def test_a_lease_on_log_matches_the_chain(source: Source, store: MemoryStore) -> None:
    put(store, 5)
    after = Position(3, store.log.chain_at(3))
    grant = source.lease("test", image=False, after=after)
    assert (grant.position, grant.files, grant.image_id) == (after, (), None)
    assert [r.txid for r in source.read_log(grant.id, after, 5)] == [4, 5]
    assert [r.txid for r in source.read_log(grant.id, after, 4)] == [4]
    assert list(source.read_log(grant.id, after, 3)) == []
    assert source.confirm(grant.id).consistent_from == store.published
    other = Position(3, bytes(16))
    with pytest.raises(Diverged, match=f"{store.log.chain_at(3).hex()}.*{bytes(16).hex()}"):
        source.lease("test", image=False, after=other)
    with pytest.raises(AheadOfSource, match="6 was asked for, and the source ends at 5"):
        source.lease("test", image=False, after=Position(6, bytes(16)))
    with pytest.raises(InvalidInput):
        source.lease("test", image=False)
    with pytest.raises(InvalidInput):
        source.lease("test", image=True, after=after)
    assert len(store.leases.list()) == 1  # what was refused holds nothing


def test_reading_log_is_refused_outside_the_lease(source: Source, store: MemoryStore) -> None:
    put(store, 5)
    grant = source.lease("test", image=False, after=Position(3, store.log.chain_at(3)))
    with pytest.raises(LogPruned):
        list(source.read_log(grant.id, Position(2, store.log.chain_at(2)), 5))
    with pytest.raises(Diverged):
        list(source.read_log(grant.id, Position(3, bytes(16)), 5))
    with pytest.raises(AheadOfSource):
        list(source.read_log(grant.id, grant.position, 6))
    with pytest.raises(LeaseExpired):
        list(source.read_log("00" * 16, grant.position, 5))


def test_names_and_ranges_are_looked_up(source: Source, store: MemoryStore) -> None:
    put(store, 1)
    grant = source.lease("test", image=True)
    size = grant.files[0].size
    for name in ("nothing", "../STORE", "/etc/passwd", "state/../state", "state\0", "%2e%2e/STORE", "."):
        with pytest.raises(NotFound):
            source.read_image(grant.id, name, 0, 1)
    with pytest.raises(InvalidInput):
        source.read_image(grant.id, "state", size - 1, 2)
    with pytest.raises(InvalidInput):
        source.read_image(grant.id, "state", -1, 1)
    with pytest.raises(InvalidInput):
        source.read_image(grant.id, "state", 0, CHUNK_BYTES + 1)
    assert source.read_image(grant.id, "state", size, 0) == b""
    for name in ("0" * 32 + ".att", "../../STORE", "0" * 32):
        with pytest.raises(NotFound):
            source.read_attachment(grant.id, name, 0, 1)


def test_attachments_are_read_by_range(source: Source, store: MemoryStore) -> None:
    out = store.log.new_attachment()
    out.write(VALUE * 10)
    attachment = out.finish()
    put(store, 1)
    grant = source.lease("test", image=True)
    whole = store.log.attachment_path(attachment.name).read_bytes()
    read = b"".join(source.read_attachment(grant.id, attachment.name, at, min(1 << 20, len(whole) - at))
                    for at in range(0, len(whole), 1 << 20))
    assert read == whole
    with pytest.raises(InvalidInput):
        source.read_attachment(grant.id, attachment.name, len(whole), 1)


def test_use_renews_and_time_ends(source: Source, store: MemoryStore, clock: LeapingClock) -> None:
    put(store, 1)
    grant = source.lease("test", image=True, ttl=100.0)
    assert grant.ttl == 100.0
    for act in (lambda: source.renew(grant.id), lambda: source.read_image(grant.id, "state", 0, 1),
                lambda: list(source.read_log(grant.id, grant.position, 1)), lambda: source.confirm(grant.id)):
        clock.ahead += 70
        act()
    clock.ahead += 101
    for act in (lambda: source.renew(grant.id), lambda: source.read_image(grant.id, "state", 0, 1),
                lambda: list(source.read_log(grant.id, grant.position, 1)), lambda: source.confirm(grant.id)):
        with pytest.raises(LeaseExpired):
            act()
    store.leases.sweep()
    assert store.leases.floor() is None


def test_expiry_aborts_a_stream_under_way(source: Source, store: MemoryStore, clock: LeapingClock) -> None:
    put(store, 800, VALUE[:16000])  # far more than what network and buffers hold
    grant = source.lease("test", image=False, after=Position(0, store.log.chain_at(0)), ttl=100.0)
    stream = source.read_log(grant.id, grant.position, 800)
    assert next(stream).txid == 1
    clock.ahead += 101
    store.leases.sweep()
    last = 1
    with pytest.raises(LeaseExpired):
        for record in stream:
            assert record.txid == last + 1
            last = record.txid
    assert last < 800
    store.leases.close()  # waits for the last reader to let go
    assert store.leases.floor() is None


def test_leases_are_bounded_and_a_failed_image_leaves_none(source: Source, store: MemoryStore,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1)
    with pytest.raises(InvalidInput):
        source.lease("test", image=True, ttl=-1)
    with pytest.raises(InvalidInput):
        source.lease("", image=True)
    grants = [source.lease("first", image=True) for _ in range(16)]
    with pytest.raises(TooManyLeases, match="first"):
        source.lease("second", image=True)
    source.release(grants[0].id)

    def full() -> None:
        raise DiskFull("no room for an image")

    monkeypatch.setattr(store.engine, "image", full)
    with pytest.raises(DiskFull, match="no room for an image"):
        source.lease("second", image=True)
    assert len(store.leases.list()) == 15


def test_closing_waits_for_an_image_that_is_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    store = new_store(tmp_path / "store")
    making, go_on, image = threading.Event(), threading.Event(), store.engine.image
    made: list[Image] = []
    raised: list[BaseException] = []

    def slow() -> Image:
        making.set()
        go_on.wait(20)
        assert not engine_closed
        made.append(image())
        return made[0]

    def lease() -> None:
        try:
            LocalSource(store).lease("test", image=True)
        except BaseException as error:
            raised.append(error)

    engine_closed: list[bool] = []
    monkeypatch.setattr(store.engine, "image", slow)
    monkeypatch.setattr(store.engine, "close", lambda: engine_closed.append(True))
    taker, closer = threading.Thread(target=lease), threading.Thread(target=store.close)
    taker.start()
    assert making.wait(20)
    closer.start()
    while not all(state.dead for state in store.leases.list()):
        closer.join(0.01)
    go_on.set()
    taker.join()
    closer.join()
    assert [type(error) for error in raised] == [LeaseExpired]
    assert engine_closed
    with pytest.raises(StoreClosed):
        made[0].read("state", 0, 1)


def test_a_slot_is_registered_durably(source: Source, store: MemoryStore) -> None:
    put(store, 3)
    at = Position(2, store.log.chain_at(2))
    source.register("ab" * 16, "a target, somewhere", at)
    assert [(c.id, c.name, c.position) for c in store.log.slots.list()] == [("ab" * 16, "a target, somewhere", at)]
    with pytest.raises(Diverged):
        source.register("ab" * 16, "x", Position(3, bytes(16)))
    with pytest.raises(AheadOfSource, match="4 was asked for, and the source ends at 3"):
        source.register("ab" * 16, "x", Position(4, bytes(16)))
    with pytest.raises(InvalidInput):
        source.register("ab" * 16, "x" * 400, at)


def test_slots_are_listed_with_what_each_holds_back_and_dropped(source: Source, store: MemoryStore) -> None:
    """A target that was deleted kept log until it lagged too far, and nobody could see it nor end it."""
    put(store, 400, VALUE[:4000])
    assert source.slots() == []
    for number, txid in enumerate((390, 5, 200)):
        source.register(f"{number:02x}" * 16, f"target {number}", Position(txid, store.log.chain_at(txid)))
    listed = source.slots()
    assert [(c.id, c.name, c.position.txid) for c in listed] == [
        (f"{number:02x}" * 16, f"target {number}", txid) for number, txid in ((1, 5), (2, 200), (0, 390))]
    sizes = [c.held_bytes for c in listed]
    assert sizes == [store.log.size_after(c.position.txid) for c in listed]
    assert sizes[0] > 1_500_000 > sizes[1] > sizes[2] > 0
    assert all(c.seen_us > 0 for c in listed)
    store.checkpoint()
    assert store.prune() == 0 or store.log.base.txid <= 5
    source.drop("01" * 16)
    assert [c.position.txid for c in source.slots()] == [200, 390]
    store.prune()
    assert 5 < store.log.base.txid <= 200
    for wrong in ("01" * 16, "99" * 16):
        with pytest.raises(NotFound):
            source.drop(wrong)
    at = Position(400, store.log.chain_at(400))
    source.register("99" * 16, "up to date", at)
    assert source.slots()[-1].held_bytes == 0
    for name in ("", "x" * 301, "a\x1b[2J", "a\nb", "\u202etxt"):
        with pytest.raises(InvalidInput):
            source.register("99" * 16, name, at)


def test_names_of_owners_are_shown_as_text(source: Source, store: MemoryStore) -> None:
    source.lease("a\x1b[2Jb", image=True)
    assert [s.owner for s in store.leases.list()] == ["a?[2Jb"]


def test_a_moving_image_is_replayed_to_what_the_engine_was_handed(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    service = BackupService(online_backup_server="127.0.0.1:0")
    with Store.open(tmp_path / "store", RecordsEngine, plugins=[service]) as store, client(store) as source:
        with store.transaction() as tx:
            tx.insert(b"first")
        store.checkpoint()
        grant = source.lease("test", image=True)
        assert grant.moving
        with store.transaction() as tx:
            tx.insert(b"second")
        assert all(copy(source, grant).values())
        confirmed = source.confirm(grant.id)
        assert grant.position.txid == 1
        assert confirmed.consistent_from == store.handed == store.published
        assert confirmed.published.txid == 2


def test_many_copies_at_once(source: Source, store: MemoryStore) -> None:
    put(store, 20, VALUE)
    store.checkpoint()
    state = (store._opened.generation.state / "state").read_bytes()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            grant = source.lease(f"copy {number}", image=True)
            assert copy(source, grant) == {"state": state}
            assert [r.txid for r in source.read_log(grant.id, grant.position, 40)] == list(range(21, 41))
            source.confirm(grant.id)
            source.release(grant.id)
        except BaseException as error:
            failed.append(error)

    put(store, 20, start=20)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert store.leases.list() == []
