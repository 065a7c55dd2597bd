"""The source across HTTP against strangers, bad lines and restarts. Real sockets on loopback."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rig import VALUE, MemoryStore, Proxy, ask, client, new_store, port_of, put, token_of
from xxhash import xxh3_128_hexdigest

from holdfast.engine.env import Clock
from holdfast.engine.errors import (
    Damaged,
    LeaseExpired,
    NotAuthorized,
    SourceRefused,
    SourceRestarted,
    SourceUnavailable,
)
from holdfast.engine.source.http import server
from holdfast.engine.source.http.client import HttpSource, connect
from holdfast.engine.source.http.limits import PIECE_BYTES, Limits
from holdfast.engine.source.http.server import SourceServer
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.source.interface import CHUNK_BYTES, Source
from holdfast.engine.wal.cursor import Cursor


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    """A store of about 10 MiB, for tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("source")
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        with new_store(root / "store") as store:
            put(store, 20, VALUE)
            store.checkpoint()
            put(store, 300, VALUE[:5000])
            yield store


@pytest.fixture(scope="module")
def token(store: MemoryStore) -> str:
    return token_of(store)


def state_of(store: MemoryStore) -> bytes:
    data: bytes = (store._opened.generation.state / "state").read_bytes()
    return data


def request(store: MemoryStore, token: str, path: str, *, method: str = "GET", headers: str = "", body: bytes = b"",
            host: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    head = (f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n")
    top, _, rest = ask(port_of(store), head.encode() + body).partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), fields, rest


@pytest.fixture
def lease(store: MemoryStore) -> Iterator[str]:
    with client(store) as source:
        grant = source.lease("test", image=True)
        yield grant.id
        source.release(grant.id)


# --- who may ask -----------------------------------------------------------------------------------------------------


def test_only_health_is_open(store: MemoryStore) -> None:
    assert request(store, "", "/v1/health")[0] == 200
    for path in ("/", "/v1/store", "/v1/leases", "/v1/metrics", "/v1/health/", "/v1/store/chain/0", "/nothing"):
        for token in ("", "wrong", "x" * 4000, "\u00e4"):
            status, headers, body = request(store, token, path)
            assert (status, headers.get("www-authenticate")) == (401, "Bearer"), path
            assert json.loads(body)["error"] == "NotAuthorized"
    with client(store, token="wrong") as source, pytest.raises(NotAuthorized):
        source.info()


def test_the_host_header_must_name_the_service(store: MemoryStore, token: str) -> None:
    for host in ("evil.example", "evil.example:6362", "127.0.0.1.evil.example", "", "localhost.evil.example", "[::1",
                 "::1"):
        for path in ("/v1/store", "/v1/health"):
            status, _, body = request(store, token, path, host=host)
            assert status == 403 or (status == 400 and host == ""), host
            assert b"store_id" not in body
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:6362", "10.1.2.3"):
        assert request(store, token, "/v1/store", host=host)[0] == 200, host


def test_a_probe_that_names_no_host_is_answered(store: MemoryStore) -> None:
    """Load balancers speak HTTP/1.0 without a Host header. A browser always sends one, so no web page gains by it."""
    assert ask(port_of(store), b"GET /v1/health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")
    assert ask(port_of(store), b"HEAD /v1/health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")
    assert ask(port_of(store), b"GET /v1/store HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 401 ")
    for host in (b"Host: evil.example\r\n", b"Host:\r\n"):
        assert b" 403 " in ask(port_of(store), b"GET /v1/health HTTP/1.0\r\n" + host + b"\r\n")
    assert b" 200 " not in ask(port_of(store), b"GET /v1/health HTTP/1.1\r\nConnection: close\r\n\r\n")


def test_names_from_the_wire_lead_nowhere(store: MemoryStore, token: str, lease: str) -> None:
    for name in ("..%2f..%2fSTORE", "../../STORE", "%2e%2e/%2e%2e/STORE", "/etc/passwd", "%2fetc%2fpasswd", "state%00",
                 "state/", "./state/../../LOCK", "..\\STORE"):
        for kind in ("image", "attachments"):
            status, _, body = request(store, token, f"/v1/leases/{lease}/{kind}/{name}")
            assert status in (400, 404, 405), name
            assert b"HFSTORE" not in body
            assert b"root:" not in body


def test_bodies_that_make_no_sense(store: MemoryStore, token: str) -> None:
    before = len(store.leases.list())
    for body, expected in [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"[" * 20000, 400), (b"\xff", 400), (b"{}", 400),
        (b'{"owner": "x"}', 400), (b'{"owner": "", "image": true}', 400),
        (b'{"owner": "x", "image": true, "ttl": "soon"}', 400), (b'{"owner": "x", "image": true, "ttl": NaN}', 400),
        (b'{"owner": "x", "image": true, "ttl": 1e999}', 400), (b'{"owner": "x", "after": {"txid": -1}}', 400),
        (b'{"owner": "x", "after": {"txid": 1, "chain": "zz"}}', 400), (b'{"owner": "x", "after": 7}', 400),
        (b'{"owner": "' + b"x" * 70000 + b'"}', 413),
    ]:
        status, _, answer = request(store, token, "/v1/leases", method="POST", body=body)
        assert status == expected, (body[:60], answer)
    assert len(store.leases.list()) == before


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_not_packed_as_it_says(coding: str, store: MemoryStore, token: str,
                                              caplog: pytest.LogCaptureFixture) -> None:
    """It was told as a failure of the source, with a traceback in its log for each request."""
    status, _, answer = request(store, token, "/v1/leases", method="POST", body=b"\x1f\x8b" + bytes(50),
                                headers=f"Content-Encoding: {coding}\r\n")
    assert status == 400, answer
    assert "Traceback" not in caplog.text
    assert "failed" not in caplog.text


def test_routes_that_are_none(store: MemoryStore, token: str, lease: str) -> None:
    assert request(store, token, "/v2/store")[0] == 404
    assert request(store, token, "/v1/store", method="DELETE")[0] == 405
    assert request(store, token, "/v1/store/chain/x")[0] == 400
    assert request(store, token, f"/v1/store/chain/{'9' * 400}")[0] == 400
    assert request(store, token, f"/v1/leases/{lease}/log?after=x")[0] == 400
    assert request(store, token, f"/v1/leases/{lease}/log?after=1&chain=00&upto=2")[0] == 400
    assert request(store, token, "/v1/consumers/..%2f..", method="PUT",
                   body=b'{"name":"x","position":{"txid":0,"chain":"' + b"00" * 16 + b'"}}')[0] == 400
    assert request(store, token, "/v1/store?" + "x" * 20000)[0] == 400


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.lists(st.sampled_from([
    b"GET ", b"POST ", b"/v1/leases", b"/v1/store", b" HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n",
    b"Content-Length: 9", b"Transfer-Encoding: chunked\r\n", b"Range: bytes=0-1\r\n", b"\0", b"ffffffff\r\n"]),
    max_size=12).map(b"".join))
def test_bytes_that_are_no_request_harm_nobody(store: MemoryStore, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(store)), timeout=20) as sock, suppress(ConnectionError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    assert request(store, "", "/v1/health")[2] == b'{"status": "ok"}'


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [True, False])
def test_ranges_as_curl_asks_for_them(store: MemoryStore, token: str, lease: str, busy: bool,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """From a store whose transactions commit, too, which sends small pieces."""
    monkeypatch.setattr(store.pacing, "_is_busy", lambda now: busy)
    state, path = state_of(store), f"/v1/leases/{lease}/image/state"
    size = len(state)
    for asked, start, stop in [("bytes=0-9", 0, 10), ("bytes=10-", 10, size), ("bytes=-7", size - 7, size),
                               (f"bytes={size - 3}-{size + 100}", size - 3, size),
                               (f"bytes=1-{CHUNK_BYTES}", 1, CHUNK_BYTES + 1)]:
        status, headers, body = request(store, token, path, headers=f"Range: {asked}\r\n")
        assert status == 206
        assert body == state[start:stop]
        assert headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        if stop - start <= CHUNK_BYTES:
            assert headers["holdfast-digest"] == f"xxh3-128={xxh3_128_hexdigest(body)}"
    for asked in ("", "Range: bytes=0-1,5-6\r\n", "Range: lines=1-2\r\n", "Range: bytes=-\r\n"):
        status, headers, body = request(store, token, path, headers=asked)
        assert (status, headers["accept-ranges"]) == (200, "bytes")
        assert body == state
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=5-2"):
        status, headers, _ = request(store, token, path, headers=f"Range: {asked}\r\n")
        assert (status, headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.parametrize("busy", [True, False])
def test_an_image_is_sent_a_little_at_a_time_while_transactions_commit(
        store: MemoryStore, token: str, lease: str, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole chunk at once kept both processors busy for some milliseconds, and commits waited for one."""
    monkeypatch.setattr(store.pacing, "_is_busy", lambda now: busy)
    sent: list[tuple[list[int], float]] = []
    send = server._send

    def noted(sock: int, parts: Iterable[memoryview], *more: Any) -> None:
        kept = list(parts)
        sent.append(([len(part) for part in kept], more[-1]))
        send(sock, kept, *more)

    monkeypatch.setattr(server, "_send", noted)
    body = request(store, token, f"/v1/leases/{lease}/image/state", headers=f"Range: bytes=0-{CHUNK_BYTES - 1}\r\n")[2]
    assert body == state_of(store)[:CHUNK_BYTES]
    rest = PIECE_BYTES / (32 << 20) / 2
    assert sent == [([PIECE_BYTES] * (CHUNK_BYTES // PIECE_BYTES), rest) if busy else ([CHUNK_BYTES], 0)]


def test_a_rest_ends_with_the_connection() -> None:
    """The thread that sends has a duplicate of the socket, and kept it open for all the rests that were left."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        sent, naps = list[int](), list[float]()

        class Napping(Clock):
            def sleep(self, seconds: float) -> None:
                naps.append(seconds)

        def parts() -> Iterator[memoryview]:
            for n in range(5):
                sent.append(n)
                yield memoryview(b"part")

        with pytest.raises(ConnectionResetError):
            server._send(ours.fileno(), parts(), lambda: len(naps) == 2, 1.0, Napping(), 0.1)
        assert naps == [0.1, 0.1]
        assert theirs.recv(100) == b"partpart"


def test_metrics_and_page(store: MemoryStore, token: str) -> None:
    with client(store) as source:
        grant = source.lease("<script>alert(1)</script>", image=True)
        status, headers, body = request(store, token, "/v1/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        figures = dict(line.split() for line in body.decode().splitlines() if not line.startswith("#"))
        assert figures["holdfast_published_txid"] == str(store.published.txid)
        assert int(figures["holdfast_leases"]) == 1
        assert figures["holdfast_slots"] == figures["holdfast_slot_held_bytes"] == "0"
        status, headers, body = request(store, token, "/")
        assert headers["content-type"].startswith("text/html")
        assert b"&lt;script&gt;" in body
        assert b"<script>" not in body
        source.release(grant.id)


# --- bad lines -------------------------------------------------------------------------------------------------------


def through(store: MemoryStore, proxy: Proxy, token: str, timeout: float = 20.0) -> HttpSource:
    return connect("127.0.0.1", proxy.port, token=token, timeout=timeout)


def read_all(source: Source, store: MemoryStore) -> None:
    """A whole copy, which must be right to the byte whatever the line does."""
    grant = source.lease("test", image=True)
    size = grant.files[0].size
    data = b"".join(source.read_image(grant.id, "state", at, min(CHUNK_BYTES, size - at))
                    for at in range(0, size, CHUNK_BYTES))
    assert data == state_of(store)
    upto = source.confirm(grant.id).published.txid
    records = list(source.read_log(grant.id, grant.position, upto))
    assert [r.payload for r in records] == [r.payload for r in store.log.read(grant.position.txid)]
    source.release(grant.id)


def test_a_line_that_is_cut_now_and_then(store: MemoryStore, token: str) -> None:
    def tamper(number: int, offset: int, data: bytes) -> bytes | None:
        return None if number % 3 and offset + len(data) > 700_000 * number else data

    with Proxy(port_of(store), tamper) as proxy, through(store, proxy, token) as source:
        read_all(source, store)
        assert proxy.connections > 2


def test_a_line_that_flips_bits_now_and_then(store: MemoryStore, token: str) -> None:
    flipped: list[int] = []

    def tamper(number: int, offset: int, data: bytes) -> bytes:
        if number % 2 and len(data) > 20_000 and len(flipped) < 8:
            flipped.append(number)
            at = len(data) // 2
            return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
        return data

    with Proxy(port_of(store), tamper) as proxy, through(store, proxy, token) as source:
        read_all(source, store)
    assert len(flipped) > 1


def test_a_line_that_always_flips_bits_is_named(store: MemoryStore, token: str) -> None:
    def tamper(number: int, offset: int, data: bytes) -> bytes:
        at = data.rfind(b"\r\n\r\n") + 4  # leave the heads alone
        return data[:at] + bytes(b ^ 1 for b in data[at:])

    with client(store) as direct, Proxy(port_of(store), tamper) as proxy, through(store, proxy, token) as source:
        grant = direct.lease("test", image=True)
        with pytest.raises(Damaged, match="changed on the way"):
            source.info()
        with pytest.raises(Damaged, match="changed on the way"):
            source.read_image(grant.id, "state", 0, 1000)
        direct.release(grant.id)


def test_a_line_that_stalls(store: MemoryStore, token: str) -> None:
    go_on = threading.Event()

    def tamper(number: int, offset: int, data: bytes) -> bytes:
        if number < 3:
            go_on.wait(20)
        return data

    with Proxy(port_of(store), tamper) as proxy, through(store, proxy, token, timeout=0.3) as source:
        try:
            with pytest.raises(SourceUnavailable, match="timed out"):
                source.lease("test", image=False)  # a lease is asked for once: nobody knows whether it was granted
            source._instance = store.instance  # as after a first answer: now it insists
            assert source.info().instance == store.instance
            assert proxy.connections == 3
        finally:
            go_on.set()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with connect("127.0.0.1", port, token="x") as source, pytest.raises(SourceUnavailable, match=str(port)):
        source.info()


def test_somebody_else_there() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with (connect("127.0.0.1", server.server_port, token="x") as source,
                  pytest.raises(SourceRefused, match="not a Holdfast source")):
                source.info()
        finally:
            server.shutdown()
            thread.join()


# --- restarts --------------------------------------------------------------------------------------------------------


def test_a_restarted_source_is_told_from_an_expired_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    token = "a fixed token, as it were".replace(" ", "-")
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=":0", token=token)) as store:
        put(store, 400, VALUE[:20000])
        port, instance = port_of(store), store.instance
        source = client(store)
        grant = source.lease("test", image=True)
        stream = source.read_log(grant.id, grant.position, 400)
        next(stream)
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=f":{port}", token=token)) as store:
        for act in (lambda: source.renew(grant.id), lambda: source.read_image(grant.id, "state", 0, 1),
                    lambda: source.confirm(grant.id), lambda: list(stream)):
            with pytest.raises(SourceRestarted):
                act()
        source.release(grant.id)
        assert source.info().instance == store.instance != instance
        read_all(source, store)
        with client(store) as later, pytest.raises(LeaseExpired):
            later.renew(grant.id)
    with pytest.raises(SourceUnavailable):
        source.info()
    source.close()
    with pytest.raises(SourceUnavailable):
        source.info()


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bounded(store: MemoryStore, request: pytest.FixtureRequest) -> Iterator[tuple[SourceServer, int]]:
    """A second server of the same store, with bounds of its own."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = SourceServer(store, sock, token="t", limits=request.param)
    server.start()
    yield server, port
    server.stop()
    server.stop()


@pytest.mark.parametrize("bounded", [Limits(header_seconds=0.2)], indirect=True)
def test_a_connection_that_says_nothing_is_dropped(bounded: tuple[SourceServer, int]) -> None:
    for start in (b"", b"GET /v1/health HTTP/1.1\r\nHost: local"):
        assert ask(bounded[1], start) == b""


@pytest.mark.parametrize("bounded", [Limits(body_seconds=0.2)], indirect=True)
def test_a_body_that_does_not_come_is_not_waited_for(bounded: tuple[SourceServer, int]) -> None:
    head = b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\nContent-Length: 50\r\n\r\n{"
    assert ask(bounded[1], head) == b""


@pytest.mark.parametrize("bounded", [Limits(connections=2)], indirect=True)
def test_one_connection_too_many_is_told_so(bounded: tuple[SourceServer, int]) -> None:
    """Where all others have shown the token; else a stranger has to go for it."""
    health = b"GET /v1/store HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n"
    with socket.create_connection(("127.0.0.1", bounded[1]), timeout=20) as first:
        first.sendall(health)
        assert first.recv(9) == b"HTTP/1.1 "
        with socket.create_connection(("127.0.0.1", bounded[1]), timeout=20) as second:
            second.sendall(health)
            assert second.recv(12) == b"HTTP/1.1 200"
            assert ask(bounded[1], b"").startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("bounded", [Limits(write_seconds=0.3)], indirect=True)
def test_a_client_that_does_not_read_loses_its_connection(store: MemoryStore,
                                                          bounded: tuple[SourceServer, int]) -> None:
    with HttpSource("127.0.0.1", bounded[1], token="t") as source:
        grant = source.lease("test", image=True)
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.settimeout(20)
            stuck.connect(("127.0.0.1", bounded[1]))
            stuck.sendall(f"GET /v1/leases/{grant.id}/image/state HTTP/1.1\r\nHost: localhost\r\n"
                          "Authorization: Bearer t\r\n\r\n".encode())
            assert stuck.recv(9) == b"HTTP/1.1 "
            while bounded[0]._web is not None and len(bounded[0]._web.connections) > 1:
                source.renew(grant.id)  # others are served meanwhile
        source.release(grant.id)


@pytest.mark.parametrize("bounded", [Limits(write_seconds=0.3)], indirect=True)
def test_a_client_that_reads_a_little_now_and_then_loses_its_connection(store: MemoryStore,
                                                                        bounded: tuple[SourceServer, int]) -> None:
    """Each byte that it took gave it the whole time again."""
    with HttpSource("127.0.0.1", bounded[1], token="t") as source, socket.socket() as slow:
        grant = source.lease("test", image=True)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(20)
        slow.connect(("127.0.0.1", bounded[1]))
        slow.sendall(f"GET /v1/leases/{grant.id}/image/state HTTP/1.1\r\nHost: localhost\r\n"
                     "Authorization: Bearer t\r\n\r\n".encode())
        assert slow.recv(9) == b"HTTP/1.1 "
        while bounded[0]._web is not None and len(bounded[0]._web.connections) > 1:
            with suppress(ConnectionError):
                slow.recv(100)
            source.renew(grant.id)
        source.release(grant.id)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nHoldfast-Instance: ab\r\nContent-Length: 1000\r\n\r\n"])
def test_an_answer_that_trickles_in_is_not_waited_for(head: bytes) -> None:
    """Each byte of it came in time; it would have taken days."""
    done = threading.Event()

    def trickle() -> None:
        while not done.is_set():
            with suppress(OSError), listener.accept()[0] as sock:
                sock.recv(10_000)
                sock.sendall(head)
                while not done.wait(0.05):
                    sock.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        server = threading.Thread(target=trickle)
        server.start()
        with HttpSource("127.0.0.1", listener.getsockname()[1], timeout=0.5) as source, \
                pytest.raises(SourceUnavailable):
            source.info()
        done.set()
        server.join()


@pytest.mark.parametrize("bounded", [Limits(streams=1, busy_seconds=0.2)], indirect=True)
def test_streams_at_once_are_bounded(store: MemoryStore, bounded: tuple[SourceServer, int]) -> None:
    with HttpSource("127.0.0.1", bounded[1], token="t") as source:
        grant = source.lease("test", image=True)
        path = f"GET /v1/leases/{grant.id}/image/state HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n"
        with socket.create_connection(("127.0.0.1", bounded[1]), timeout=20) as stuck:
            stuck.sendall(path.encode())
            assert stuck.recv(9) == b"HTTP/1.1 "
            answer = ask(bounded[1], path.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").encode())
            assert answer.startswith(b"HTTP/1.1 503")
            source.renew(grant.id)
        assert source.read_image(grant.id, "state", 0, 1) == state_of(store)[:1]
        source.release(grant.id)


@pytest.mark.parametrize("bounded", [Limits(heartbeat_seconds=0.05)], indirect=True)
def test_a_stream_with_nothing_to_send_shows_that_it_lives(store: MemoryStore, bounded: tuple[SourceServer, int],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    read, go_on = Cursor.read, threading.Event()

    def slow(cursor: Cursor, upto: int | None = None) -> Iterator[object]:
        for record in read(cursor, upto):
            if record.txid == 200:
                go_on.wait(20)
            yield record

    monkeypatch.setattr(Cursor, "read", slow)
    monkeypatch.setattr("holdfast.engine.source.http.routes._BATCH_RECORDS", 100)
    with HttpSource("127.0.0.1", bounded[1], token="t", timeout=5) as source:
        grant = source.lease("test", image=True)
        path = f"/v1/leases/{grant.id}/log?after={grant.position.txid}&chain={grant.position.chain.hex()}&upto=320"
        with socket.create_connection(("127.0.0.1", bounded[1]), timeout=20) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n".encode())
            got = b""
            while got.count(b"\x03" + bytes(11)) < 3:
                got += sock.recv(65536)
        go_on.set()
        assert [r.txid for r in source.read_log(grant.id, grant.position, 320)] == list(range(21, 321))
        source.release(grant.id)
