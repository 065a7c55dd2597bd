"""An image in blocks, of which only those are sent that the reader lacks: at the store at hand, across HTTP, and across
HTTP from a source that is older than this."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lying_rig import Answer, Liar, Lie
from source_rig import VALUE, LeapingClock, MemoryStore, ask, client, new_store, port_of, put, token_of

from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.errors import Damaged, InvalidInput, LeaseExpired, NotFound, SourceRestarted, SourceUnavailable
from holdfast.engine.source.http import client as client_module
from holdfast.engine.source.http import routes, wire
from holdfast.engine.source.http.client import HttpSource, connect
from holdfast.engine.source.http.limits import Limits
from holdfast.engine.source.http.server import SourceServer
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.source.interface import (
    CHUNK_BYTES,
    LEAST_BLOCK,
    MOST_BLOCK,
    Block,
    Source,
    blocks_of,
    lacking,
)
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.pacing import Pacing
from holdfast.engine.store.store import Store

KINDS = ("local", "http", "older")
NOTHING_KNOWN: tuple[bytes, ...] = ()
table = routes.Routes.table


def older(self: routes.Routes) -> list[Any]:
    """The routes of a source that knows no blocks."""
    return [route for route in table(self) if "/blocks/" not in route.path]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, MemoryStore]]:
    """A store of about 10 MiB for each kind of source, for tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("blocks")
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        with new_store(root / "now") as now, pytest.MonkeyPatch.context() as before:
            before.setattr(routes.Routes, "table", older)
            with new_store(root / "older") as then:
                for store in (now, then):
                    for i in range(20):
                        put(store, 1, Random(i).randbytes(len(VALUE)), start=i)
                    store.checkpoint()
                before.undo()
                yield {"local": now, "http": now, "older": then}


@pytest.fixture(scope="module")
def sources(stores: dict[str, MemoryStore]) -> Iterator[dict[str, Source]]:
    with LocalSource(stores["local"]) as local, client(stores["http"]) as http, client(stores["older"]) as then:
        yield {"local": local, "http": http, "older": then}


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, sources: dict[str, Source]) -> Source:
    return sources[request.param]


@pytest.fixture
def store(stores: dict[str, MemoryStore]) -> MemoryStore:
    return stores["http"]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAUSES", (0.0, 0.001, 0.001, 0.001))


def state_of(store: MemoryStore) -> bytes:
    data: bytes = (store._opened.generation.state / "state").read_bytes()
    return data


def digested(data: bytes, block_bytes: int) -> list[Block]:
    return blocks_of(lacking(data, block_bytes, ()), ())


def fits(blocks: list[Block], data: bytes, block_bytes: int, known: Iterable[bytes]) -> None:
    """The blocks are those of the data, and have their bytes unless they are known."""
    cut = [data[at : at + block_bytes] for at in range(0, len(data), block_bytes)]
    there = [*known, *[b""] * len(cut)]
    assert [block.digest for block in blocks] == [hashlib.sha256(part).digest() for part in cut]
    assert [None if block.data is None else bytes(block.data) for block in blocks] == [
        None if hashlib.sha256(part).digest() == there[n] else part for n, part in enumerate(cut)]


# --- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(drawn=st.data())
def test_blocks_are_the_bytes_of_the_image_whatever_is_known(stores: dict[str, MemoryStore],
                                                             sources: dict[str, Source], kind: str,
                                                             drawn: st.DataObject) -> None:
    state, source = state_of(stores[kind]), sources[kind]
    length = drawn.draw(st.sampled_from((0, 1, 4096, 70_000, 300_000, CHUNK_BYTES - 1, CHUNK_BYTES)), "length")
    offset = drawn.draw(st.sampled_from((0, 1, 8192, len(state) - length)), "offset")
    block_bytes = drawn.draw(st.sampled_from((LEAST_BLOCK, 5000, 16384, 65536, 1 << 20, MOST_BLOCK)), "block_bytes")
    data = state[offset : offset + length]
    digests = [block.digest for block in digested(data, block_bytes)]
    random = Random(drawn.draw(st.integers(0, 1 << 16), "seed"))
    often = random.choice((0.0, 0.1, 0.9, 1.0))
    known = [digest if random.random() < often else random.choice((b"", bytes(32), random.randbytes(32)))
             for digest in digests][: random.choice((len(digests), random.randrange(len(digests) + 1)))]
    grant = source.lease("test", image=True)
    try:
        fits(source.read_blocks(grant.id, "state", offset, length, block_bytes, known), data, block_bytes, known)
    finally:
        source.release(grant.id)


def test_what_is_known_is_not_sent(store: MemoryStore) -> None:
    """Only what is known crosses, and the bytes of the one block that differs."""
    answered: list[int] = []

    def look(answer: Answer) -> None:
        if "/blocks/" in answer.path:
            answered.append(len(answer.body))

    data = state_of(store)[:CHUNK_BYTES]
    known = [block.digest for block in digested(data, 65536)]
    with Liar(port_of(store), look) as liar, connect("127.0.0.1", liar.port, token=token_of(store)) as source:
        grant = source.lease("test", image=True)
        for sent in (known, [*known[:7], bytes(32), *known[8:]], NOTHING_KNOWN):
            fits(source.read_blocks(grant.id, "state", 0, CHUNK_BYTES, 65536, sent), data, 65536, sent)
        source.release(grant.id)
    assert answered == [64 + n * 65536 for n in (0, 1, 64)]


def test_an_older_source_is_asked_for_blocks_once(stores: dict[str, MemoryStore]) -> None:
    """It answers 404, so the whole piece is read and compared here."""
    asked: list[str] = []

    def look(answer: Answer) -> None:
        asked.append(answer.path.split("/")[-2])

    store = stores["older"]
    with Liar(port_of(store), look) as liar, connect("127.0.0.1", liar.port, token=token_of(store)) as source:
        grant = source.lease("test", image=True)
        for _ in range(3):
            fits(source.read_blocks(grant.id, "state", 0, 9000, 4096, ()), state_of(store)[:9000], 4096, ())
        with pytest.raises(NotFound):
            source.read_blocks(grant.id, "nothing", 0, 9000, 4096, ())
        source.release(grant.id)
    assert asked[1:-1] == ["blocks", "image", "image", "image", "image"]


def test_a_source_that_was_replaced_by_a_newer_one_is_asked_for_blocks_again(tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    token = "a-token-that-is-always-the-same"
    read_image, read = HttpSource.read_image, []

    def watched(self: HttpSource, *args: Any) -> bytes:
        read.append(args)
        return read_image(self, *args)

    def read_from(source: Source) -> None:
        grant = source.lease("test", image=True)
        assert len(source.read_blocks(grant.id, "state", 0, 1, 4096, ())) == 1

    monkeypatch.setattr(HttpSource, "read_image", watched)
    monkeypatch.setattr(routes.Routes, "table", older)
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=":0", token=token)) as store:
        put(store, 1)
        port, source = port_of(store), client(store)
        read_from(source)
    assert len(read) == 1
    monkeypatch.setattr(routes.Routes, "table", table)
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=f":{port}", token=token)), source:
        read_from(source)
    assert len(read) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_store_gives_the_same_blocks(source: Source, stores: dict[str, MemoryStore], busy: bool,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacing, "_is_busy", lambda self, now: busy)
    grant = source.lease("test", image=True)
    [file] = grant.files
    data = source.read_image(grant.id, file.name, 0, CHUNK_BYTES)
    assert len(data) == CHUNK_BYTES
    assert source.read_blocks(grant.id, file.name, 0, CHUNK_BYTES, 65_536, ()) == digested(data, 65_536)
    assert source.read_image(grant.id, file.name, file.size - 5, 5) == source.read_image(
        grant.id, file.name, file.size - 9, 9)[4:]
    source.release(grant.id)


def test_a_block_of_a_moving_image_has_the_digest_of_its_bytes(source: Source,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Digest and bytes are of one read: no two reads see the same file here."""
    number = count()

    def changing(self: LocalSource, lease_id: str, name: str, offset: int, length: int, most: int) -> list[bytes]:
        return [Random(next(number)).randbytes(length)]

    monkeypatch.setattr(LocalSource, "read_image_in_pieces", changing)
    grant = source.lease("test", image=True)
    seen: set[bytes] = set()
    for _ in range(3):
        for block in source.read_blocks(grant.id, "state", 0, 100_000, 4096, [bytes(32)] * 3):
            assert block.data is not None
            assert block.digest == hashlib.sha256(block.data).digest()
            assert block.digest not in seen
            seen.add(block.digest)
    assert len(seen) == 3 * 25
    source.release(grant.id)


@pytest.mark.parametrize("kind", ["local", "http"])
def test_a_store_that_writes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    service = BackupService(online_backup_server="127.0.0.1:0")
    with Store.open(tmp_path / "store", RecordsEngine, plugins=[service]) as store, \
            LocalSource(store) if kind == "local" else client(store) as source:
        def write() -> None:
            with store.transaction("relaxed") as tx:
                for _ in range(50):
                    tx.insert(b"some bytes of a record")

        write()
        store.checkpoint()
        grant = source.lease("test", image=True)
        assert grant.moving
        done = threading.Event()

        def go_on() -> None:
            while not done.is_set():
                write()
                store.checkpoint()

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            known: dict[str, list[bytes]] = {}
            for _ in range(20):
                for file in grant.files:
                    length = min(file.size, CHUNK_BYTES)
                    blocks = source.read_blocks(grant.id, file.name, 0, length, 4096, known.get(file.name, []))
                    for n, block in enumerate(blocks):
                        if block.data is None:
                            assert block.digest == known[file.name][n]
                        else:
                            assert block.digest == hashlib.sha256(block.data).digest()
                    known[file.name] = [block.digest for block in blocks]
        finally:
            done.set()
            writer.join()
        source.release(grant.id)


# --- what cannot be asked for ----------------------------------------------------------------------------------------


def test_wishes_that_make_no_sense(source: Source) -> None:
    grant = source.lease("test", image=True)
    size = grant.files[0].size
    for offset, length, block_bytes, known in [
            (0, -1, 4096, []), (0, CHUNK_BYTES + 1, 4096, []), (-1, 10, 4096, []), (size - 1, 2, 4096, []),
            (size + 1, 1, 4096, []), (10**17, 4096, 4096, []), (0, 10, LEAST_BLOCK - 1, []),
            (0, 10, MOST_BLOCK + 1, []), (0, 10, 0, []), (0, 10, -4096, []), (0, 4096, 4096, [b"", b""]),
            (0, 4096, 4096, [b"x" * 31]), (0, 4096, 4096, [b"x" * 33]), (0, 0, 4096, [b""])]:
        with pytest.raises(InvalidInput):
            source.read_blocks(grant.id, "state", offset, length, block_bytes, known)
    for name in ("nothing", "../STORE", "/etc/passwd", "state/../state", "state\0", "%2e%2e/STORE", "."):
        with pytest.raises(NotFound):
            source.read_blocks(grant.id, name, 0, 1, 4096, ())
    assert source.read_blocks(grant.id, "state", size, 0, 4096, ()) == []
    assert len(source.read_blocks(grant.id, "state", size - 4097, 4097, 4096, ())) == 2
    source.release(grant.id)
    with pytest.raises(LeaseExpired):
        source.read_blocks(grant.id, "state", 0, 1, 4096, ())


@pytest.mark.parametrize("kind", KINDS)
def test_reading_blocks_keeps_a_lease_until_it_has_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           kind: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if kind == "older":
        monkeypatch.setattr(routes.Routes, "table", older)
    clock = LeapingClock()
    with new_store(tmp_path / "store", clock=clock) as store:
        put(store, 1)
        with LocalSource(store) if kind == "local" else client(store) as source:
            grant = source.lease("test", image=True, ttl=100.0)
            for _ in range(3):
                clock.ahead += 70
                source.read_blocks(grant.id, "state", 0, 1, 4096, ())
            clock.ahead += 101
            with pytest.raises(LeaseExpired):
                source.read_blocks(grant.id, "state", 0, 1, 4096, ())


def test_a_restarted_source_gives_no_blocks_under_an_old_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    token = "a-token-that-is-always-the-same"
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=":0", token=token)) as store:
        put(store, 1)
        port, source = port_of(store), client(store)
        grant = source.lease("test", image=True)
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=f":{port}", token=token)), source, \
            pytest.raises(SourceRestarted):
        source.read_blocks(grant.id, "state", 0, 1, 4096, ())


def post(port: int, token: str, path: str, body: bytes, headers: str = "") -> tuple[int, bytes]:
    head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n")
    top, _, rest = ask(port, head.encode() + body).partition(b"\r\n\r\n")
    return int(top.split()[1]), rest


def test_bodies_that_are_no_wish(store: MemoryStore, sources: dict[str, Source],
                                 caplog: pytest.LogCaptureFixture) -> None:
    """Each is refused as other routes refuse it, and none of it is a failure in the log."""
    good: dict[str, Any] = {"offset": 0, "length": 8192, "block_bytes": 4096, "known": []}
    odd: tuple[Any, ...] = (None, True, -1, 1.5, 1 << 63, "0", b"0", [], {})
    grant = sources["http"].lease("test", image=True)
    path = f"/v1/leases/{grant.id}/blocks/state"

    def told(body: bytes, headers: str = "") -> tuple[int, bytes]:
        return post(port_of(store), token_of(store), path, body, headers)

    assert told(msgpack.packb(good))[0] == 200
    lists: tuple[Any, ...] = (None, True, 7, "x", b"x" * 32, {}, [None], ["x" * 32], [[]], [7], [b"x"], [b""] * 3,
                              [b""] * 1024)
    wrong = [*({**good, key: value} for key in ("offset", "length", "block_bytes") for value in odd),
             *({**good, "known": value} for value in lists),
             *({k: v for k, v in good.items() if k != key} for key in good), [], [good], None, 7, "x", {}]
    bodies = [*map(msgpack.packb, wrong), b"", b"\xc1", b"{}", json.dumps(good).encode(), msgpack.packb(good)[:-1],
              msgpack.packb(good) + b"\0", b"\xdd\xff\xff\xff\xff", b"\xdd\0\0\xff\xff" * 10_000, b"\x91" * 60_000,
              b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x81\x90\x90", b"\x81\x01\x02", b"\xa1\xff",
              b"\xd7\xff" + b"\xff" * 8, msgpack.packb({**good, "known": [b""] * 1025})]
    for body in bodies:
        status, answer = told(body)
        assert status == 400, body[:60]
        assert json.loads(answer)["error"] == "InvalidInput"
    assert told(msgpack.packb({**good, "known": [bytes(32)] * 1900}))[0] == 400
    assert told(msgpack.packb({**good, "known": [bytes(32)] * 2000}))[0] == 413
    assert told(bytes(50), "Content-Encoding: gzip\r\n")[0] == 400
    assert post(port_of(store), "wrong", path, msgpack.packb(good))[0] == 401
    assert post(port_of(store), token_of(store), "/v1/leases/00/blocks/state", msgpack.packb(good))[0] == 410
    for name in ("..%2f..%2fSTORE", "%2e%2e/%2e%2e/STORE", "%2fetc%2fpasswd", "state%00", "state/", "..\\STORE"):
        assert post(port_of(store), token_of(store), path[:-5] + name, msgpack.packb(good))[0] == 404
    assert "Traceback" not in caplog.text
    assert "failed" not in caplog.text
    sources["http"].release(grant.id)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_msgpack_raise_what_they_should(data: bytes) -> None:
    try:
        wire.wish_from_wire(wire.unpacked(data))
    except (ValueError, KeyError, TypeError):
        return
    raise AssertionError("a wish by chance")


@given(st.integers(0, wire.MAX_COUNT), st.integers(0, wire.MAX_COUNT), st.integers(0, wire.MAX_COUNT),
       st.lists(st.binary(max_size=40), max_size=20))
def test_a_wish_arrives_as_it_was(offset: int, length: int, block_bytes: int, known: list[bytes]) -> None:
    assert wire.wish_from_wire(wire.unpacked(wire.wish_to_wire(offset, length, block_bytes, known))) == (
        offset, length, block_bytes, known)


# --- bad lines -------------------------------------------------------------------------------------------------------


def through_a_liar(store: MemoryStore, lie: Lie, known: Iterable[bytes], length: int = 100_000) -> list[Block]:
    with Liar(port_of(store), lie) as liar, connect("127.0.0.1", liar.port, token=token_of(store)) as source:
        grant = source.lease("test", image=True)
        try:
            return source.read_blocks(grant.id, "state", 0, length, 4096, [*known])
        finally:
            store.leases.release(grant.id)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_byte_that_changes_on_the_way_is_found(store: MemoryStore, seed: int, always: bool) -> None:
    """In what says which blocks are known, or in a block: it is asked for again, and then refused."""
    random, asked = Random(seed), count(1)
    data = state_of(store)[:100_000]
    known = [block.digest if random.random() < 0.5 else b"" for block in digested(data, 4096)]

    def lie(answer: Answer) -> None:
        if "/blocks/" in answer.path and (next(asked) == 1 or always):
            at = random.randrange(len(known)) if seed % 2 else random.randrange(len(known), len(answer.body))
            answer.body = answer.body[:at] + bytes([answer.body[at] ^ 1 << seed % 8]) + answer.body[at + 1 :]

    if always:
        with pytest.raises(Damaged):
            through_a_liar(store, lie, known)
        assert next(asked) > 3
    else:
        fits(through_a_liar(store, lie, known), data, 4096, known)
        assert next(asked) == 3


@pytest.mark.parametrize("how", ["short", "long", "unsent", "sent", "unknown", "flag", "empty", "endless", "cut",
                                 "chunked"])
def test_an_answer_that_is_not_the_blocks_is_refused(store: MemoryStore, how: str) -> None:
    data = state_of(store)[:100_000]
    digests = [block.digest for block in digested(data, 4096)]
    head = len(digests)
    known = [*digests[:3], b"", *digests[4:20]]

    def lie(answer: Answer) -> Iterable[bytes | float] | None:
        if "/blocks/" not in answer.path:
            return None
        body = answer.body
        if how == "endless":
            answer.headers["Content-Length"] = str(1 << 60)
            return [answer.head(), bytes(1 << 20)]
        if how == "cut":
            return [answer.head(), body[: len(body) // 2]]
        if how == "chunked":
            del answer.headers["Content-Length"]
            answer.headers["Transfer-Encoding"] = "chunked"
            return [answer.head(), b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"]
        answer.body = {"short": body[:-1], "long": body + b"x", "unsent": body[:head] + body[head + 4096 :],
                       "sent": body[:head] + data[:4096] + body[head:], "empty": b"",
                       "unknown": body[: head - 1] + b"\1" + body[head : -(len(data) % 4096)],
                       "flag": b"\2" + body[1:]}[how]
        answer.digested()
        return None

    with pytest.raises(SourceUnavailable if how == "cut" else wire.Garbled):
        through_a_liar(store, lie, known)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_blocks_are_made_where_streams_are_and_wait_for_their_turn(store: MemoryStore,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop hashes nothing, and no more pieces are in memory than streams may be."""
    where: list[str] = []

    def watched(*args: Any) -> list[memoryview | None]:
        where.append(threading.current_thread().name)
        return lacking(*args)

    monkeypatch.setattr(routes, "lacking", watched)
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = SourceServer(store, sock, token="t", limits=Limits(streams=1, busy_seconds=0.2))
    server.start()
    try:
        with HttpSource("127.0.0.1", port, token="t") as source:
            grant = source.lease("test", image=True)
            wish = wire.wish_to_wire(0, 8192, 4096, ())
            with socket.create_connection(("127.0.0.1", port), timeout=20) as stuck:
                stuck.sendall(f"GET /v1/leases/{grant.id}/image/state HTTP/1.1\r\nHost: localhost\r\n"
                              "Authorization: Bearer t\r\n\r\n".encode())
                assert stuck.recv(9) == b"HTTP/1.1 "
                assert post(port, "t", f"/v1/leases/{grant.id}/blocks/state", wish)[0] == 503
            fits(source.read_blocks(grant.id, "state", 0, 8192, 4096, ()), state_of(store)[:8192], 4096, ())
            source.release(grant.id)
    finally:
        server.stop()
    assert len(where) == 1
    assert where[0].startswith("holdfast-stream")
