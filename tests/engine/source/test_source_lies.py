"""A client of a source that lies: bounded in time and memory whatever comes, an error of Holdfast's and no other, and
nothing of it reaches a terminal but text."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import pytest
from lying_rig import Answer, Liar, Lie, lie_by_chance
from source_rig import VALUE, MemoryStore, new_store, port_of, put, token_of

from holdfast.engine.env.shown import printable
from holdfast.engine.errors import HoldfastError, SourceRefused, SourceUnavailable
from holdfast.engine.model.positions import Position
from holdfast.engine.source.http import client as client_module
from holdfast.engine.source.http.client import AT_WORK, PATIENCE, HttpSource, connect
from holdfast.engine.source.http.wire import Garbled
from holdfast.engine.source.interface import CHUNK_BYTES

HEARTBEAT = struct.pack("<III", 3, 0, 0)
TIMEOUT = 0.4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("lies")
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        with new_store(root / "store") as store:
            put(store, 12, VALUE[:5000])
            store.checkpoint()
            put(store, 12, VALUE[:300], start=12)
            yield store


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAUSES", (0.0, 0.001, 0.001, 0.001))
    monkeypatch.setattr(client_module, "CONFIRM_TIMEOUT", 1.0)


def told(store: MemoryStore, lie: Lie, timeout: float = TIMEOUT) -> HoldfastError | None:
    """What a copy from a source that lies so ends with. It does everything that a backup asks for."""
    with Liar(port_of(store), lie) as liar, connect("127.0.0.1", liar.port, token=token_of(store),
                                                    timeout=timeout) as source:
        error = None
        try:
            _take(source)
        except HoldfastError as raised:
            error = raised
        for state in store.leases.list():
            store.leases.release(state.id)
    if error is not None:
        assert str(error) == printable(str(error)), ascii(str(error))
        assert len(str(error)) < 5000
    return error


def _take(source: HttpSource) -> None:
    info = source.info()
    assert info.path == printable(info.path)
    grant = source.lease("test", image=True, ttl=30)
    for file in grant.files:
        for at in range(0, min(file.size, 3 * CHUNK_BYTES), CHUNK_BYTES):
            source.read_image(grant.id, file.name, at, min(CHUNK_BYTES, file.size - at))
            source.read_blocks(grant.id, file.name, at, min(CHUNK_BYTES, file.size - at), 1 << 16, ())
    source.renew(grant.id)
    upto = source.confirm(grant.id).published
    last = Position(0, b"")
    for record in source.read_log(grant.id, grant.position, upto.txid):
        last = record.position
    assert last.txid in (upto.txid, 0)
    source.chain_at(last.txid)
    source.register("ab" * 16, "test", last if last.txid else grant.position)
    source.slots()
    source.drop("ab" * 16)
    source.release(grant.id)


def test_the_truth_is_taken(store: MemoryStore) -> None:
    assert told(store, lambda answer: None, timeout=20) is None


@pytest.mark.parametrize("seed", range(60))
def test_no_lie_ends_in_anything_but_an_error_of_holdfast(store: MemoryStore, seed: int) -> None:
    begun = time.monotonic()
    for number in range(4):
        told(store, lie_by_chance(Random(f"{seed} {number}"), 0.3))
    assert time.monotonic() - begun < 60


# --- time ------------------------------------------------------------------------------------------------------------


def without_end(first: bytes, part: bytes, pause: float = 0.05) -> Iterator[bytes | float]:
    yield first
    while True:
        yield part
        yield pause


@pytest.mark.parametrize("where", ["/log?", "/v1/store", "/image/", "/blocks/", "/confirm", "/v1/consumers"])
@pytest.mark.parametrize("how", ["head", "header", "continue", "body", "chunks", "trailers", "silence"])
def test_an_answer_without_end_is_not_waited_for(store: MemoryStore, where: str, how: str) -> None:
    """Each byte came in time. A record stream was waited for as long as anything came of it."""
    def lie(answer: Answer) -> Iterable[bytes | float] | None:
        if where not in answer.path:
            return None
        answer.headers["Content-Length"] = "1000"
        if how in ("chunks", "trailers"):
            del answer.headers["Content-Length"]
            answer.headers["Transfer-Encoding"] = "chunked"
        head = answer.head()
        return {"head": without_end(b"HTTP/1.1 2", b"0"), "header": without_end(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
                "continue": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "body": without_end(head, b" "),
                "chunks": without_end(head, b"1\r\n \r\n"), "silence": without_end(head, b"", 5.0),
                "trailers": without_end(head + b"0\r\n", b"X: y\r\n")}[how]

    begun = time.monotonic()
    error = told(store, lie, 0.15)
    assert isinstance(error, SourceUnavailable | SourceRefused | Garbled)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("image", [True, False])
def test_who_waits_for_a_lease_says_for_how_long(store: MemoryStore, image: bool) -> None:
    """A source that was silent after it was asked for an image kept a client for a quarter of an hour, whatever its
    time-out was."""
    def lie(answer: Answer) -> Iterable[bytes | float] | None:
        return iter((6.0,)) if (answer.method, answer.path) == ("POST", "/v1/leases") else None

    begun = time.monotonic()
    with Liar(port_of(store), lie) as liar, connect("127.0.0.1", liar.port, token=token_of(store),
                                                    timeout=0.2) as source, pytest.raises(SourceUnavailable) as caught:
        source.lease("test", image=image, after=None if image else Position(0, store.log.chain_at(0)))
    took = time.monotonic() - begun
    assert 0.2 * (AT_WORK if image else 1) - 0.01 < took < 5
    assert "timeout=0.4" in caught.value.hint
    for state in store.leases.list():
        store.leases.release(state.id)


def test_signs_of_life_are_no_records(store: MemoryStore) -> None:
    """Heartbeats kept a client waiting for ever."""
    asked: list[str] = []

    def lie(answer: Answer) -> Iterable[bytes | float] | None:
        if "/log?" not in answer.path:
            return None
        asked.append(answer.path)
        answer.headers.pop("Content-Length")
        return without_end(answer.head() + answer.body[:100], HEARTBEAT)

    begun = time.monotonic()
    assert isinstance(told(store, lie, 0.2), SourceUnavailable)
    assert time.monotonic() - begun > PATIENCE * 0.2
    assert len(asked) == 1


def test_a_stream_may_be_read_as_slowly_as_its_reader_likes(store: MemoryStore) -> None:
    with connect("127.0.0.1", port_of(store), token=token_of(store), timeout=0.2) as source:
        grant = source.lease("slow", image=True)
        stream = source.read_log(grant.id, grant.position, 24)
        next(stream)
        time.sleep(PATIENCE * 0.2 + 0.3)
        assert len(list(stream)) == 11
        source.release(grant.id)


# --- memory ----------------------------------------------------------------------------------------------------------


def peak(store: MemoryStore, lie: Lie) -> int:
    """MiB that the worst moment of a copy from a source that lies so takes, beside what is there before."""
    tracemalloc.start()
    try:
        assert told(store, lie, 20) is not None
        return tracemalloc.get_traced_memory()[1] >> 20
    finally:
        tracemalloc.stop()


def test_a_record_is_no_larger_than_it_may_be(store: MemoryStore) -> None:
    def lie(answer: Answer) -> Iterable[bytes] | None:
        if "/log?" not in answer.path:
            return None
        del answer.headers["Content-Length"]
        return [answer.head() + struct.pack("<III", 1, 40, 1 << 30), *[bytes(1 << 20)] * 100]

    assert peak(store, lie) < 30
    error = told(store, lie)
    assert isinstance(error, SourceRefused)
    assert "1,073,741,824" in error.message


def test_how_large_a_record_may_be_can_be_said(store: MemoryStore) -> None:
    for most, fits in ((299, False), (300 + 100, True)):
        with connect("127.0.0.1", port_of(store), token=token_of(store), max_record_bytes=most) as source:
            grant = source.lease("test", image=True)
            if fits:
                assert len(list(source.read_log(grant.id, grant.position, 24))) == 12
            else:
                with pytest.raises(SourceRefused, match="max_record_bytes"):
                    list(source.read_log(grant.id, grant.position, 24))
            source.release(grant.id)


@pytest.mark.parametrize("files", [
    [{"name": f"{i:06d}/" + "a/" * 490 + "a", "size": 0} for i in range(8000)],
    [{"name": "a/" * 20 + "a", "size": 0}], [{"name": f"{i}", "size": 0} for i in range(100_001)],
    [{"name": "a" * 501, "size": 0}],
    [{"name": "a\x1b[2J", "size": 0}], [{"name": "a\nb", "size": 0}]],
    ids=["deep and long", "deep", "many", "long", "escape", "newline"])
def test_an_image_has_names_in_bounds(store: MemoryStore, files: list[dict[str, object]]) -> None:
    def lie(answer: Answer) -> None:
        if answer.path == "/v1/leases" and answer.method == "POST":
            answer.say({**answer.json(), "files": files})
            answer.digested()

    begun = time.monotonic()
    assert isinstance(told(store, lie, 20), SourceRefused)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("body", [b"[" + b"{}," * 9_000_000 + b"0]", b"[" * 1_000_000, b'{"x": ' + b"9" * 5000 + b"}",
                                  b'"' + b"a" * 9_000_000 + b'"'], ids=["many", "deep", "digits", "long"])
def test_an_answer_is_no_longer_than_it_may_be(store: MemoryStore, body: bytes) -> None:
    def lie(answer: Answer) -> None:
        if answer.path == "/v1/store":
            answer.body = body
            answer.digested()

    assert isinstance(told(store, lie, 20), SourceRefused)


@pytest.mark.parametrize(("status", "kind"), [(502, SourceUnavailable), (503, SourceUnavailable),
                                              (504, SourceUnavailable), (200, SourceRefused), (500, SourceRefused)])
def test_a_proxy_that_does_not_reach_the_source(store: MemoryStore, status: int, kind: type[HoldfastError]) -> None:
    """It answers in its own name. A caller tries again if the source is unavailable, and gives up if it is refused."""
    def lie(answer: Answer) -> None:
        answer.status = status
        del answer.headers["Holdfast-Instance"]

    error = told(store, lie)
    assert type(error) is kind
    assert str(status) in str(error)


# --- numbers and words -----------------------------------------------------------------------------------------------


def test_a_size_of_thousands_of_digits(store: MemoryStore) -> None:
    """Python refuses to read such a number, and the refusal came out as it was."""
    def lie(answer: Answer) -> None:
        if "/image/" in answer.path:
            answer.headers["Content-Range"] = "bytes 0-1/" + "9" * 5000

    assert told(store, lie, 20) is None  # the bytes and their digest are right


def test_a_lease_for_ever_lasts_a_week(store: MemoryStore) -> None:
    """A thread that renews cannot wait for a quarter of 1e300 seconds."""
    def lie(answer: Answer) -> None:
        if answer.path == "/v1/leases" and answer.method == "POST":
            answer.say({**answer.json(), "ttl": 1e300})
            answer.digested()

    with Liar(port_of(store), lie) as liar, connect("127.0.0.1", liar.port, token=token_of(store)) as source:
        grant = source.lease("test", image=True)
        assert grant.ttl == 7 * 86400
        source.release(grant.id)


@pytest.mark.parametrize("what", ["error", "path", "engine", "reason", "status"])
def test_what_a_source_says_reaches_a_terminal_as_text(store: MemoryStore, what: str) -> None:
    said = "\x1b[2J\x1b[1;32mall is well\x1b[0m\x9b2J\r\n\u202eabc"

    def lie(answer: Answer) -> Iterable[bytes] | None:
        if answer.path != "/v1/store":
            return None
        if what == "error":
            answer.status = 403
            answer.say({"error": "SourceRefused", "message": said, "hint": said})
        elif what in ("path", "engine"):
            answer.say({**answer.json(), what: said})
        else:
            line = f"HTTP/1.1 503 {said[:20]}" if what == "reason" else said[:20]
            return [f"{line}\r\nContent-Length: 0\r\n\r\n".encode("latin-1", "replace")]
        answer.digested()
        return None

    error = told(store, lie)  # which looks at the error, and at the path
    assert (error is None) == (what == "path")


def test_a_target_says_nothing_else(tmp_path: Path) -> None:
    assert printable("a\x1b\n\x9b\u202e\ud800b") == "a?????b"
