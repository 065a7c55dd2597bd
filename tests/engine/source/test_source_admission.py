"""The door of a service: floods of strangers cost neither the store its descriptors nor clients their place, nor do
they fill the log."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rig import LeapingClock, MemoryStore, ask, client, new_store, port_of, put, token_of

from holdfast.engine.env import REAL, rate_limited_log
from holdfast.engine.env.pool import Pool
from holdfast.engine.env.rate_limited_log import Calm
from holdfast.engine.errors import LeaseExpired, StoreClosed
from holdfast.engine.source.http import admission
from holdfast.engine.source.http.admission import Admission
from holdfast.engine.source.http.client import HttpSource
from holdfast.engine.source.http.limits import Limits
from holdfast.engine.source.http.server import SourceServer
from holdfast.engine.source.http.service import BackupService

TOKEN = "0123456789abcdef-token"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with new_store(tmp_path / "store") as store:
        put(store, 1)
        yield store


@pytest.fixture
def bounded(store: MemoryStore, request: pytest.FixtureRequest) -> Iterator[tuple[SourceServer, int]]:
    """A second server of the same store, with bounds of its own."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = SourceServer(store, sock, token="t", limits=request.param)
    server.start()
    yield server, sock.getsockname()[1]
    server.stop()


def connected(stack: ExitStack, port: int, count: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(count)]


# --- the rules -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from(["come", "speak", "trust", "go"]), st.integers(0, 40),
                                             st.sampled_from("abc")), max_size=80))
def test_admission_is_bounded_and_never_sends_away_who_is_known(most: int, acts: list[tuple[str, int, str]]) -> None:
    admission, here, known = Admission(most), set[int](), set[int]()
    for number, (act, which, peer) in enumerate(acts):
        one = sorted(here)[which % len(here)] if here else -1
        if act == "come":
            leaver = admission.come(number, peer)
            here.add(number)
            if leaver is not None:
                here.remove(leaver)
                assert leaver not in known
                assert leaver != number or here == known
        elif act == "go":
            admission.go(one)
            here.discard(one)
            known.discard(one)
        elif one >= 0:
            getattr(admission, act)(one)
            known |= {one} if act == "trust" else set()
        assert len(admission) == len(here) <= most


def test_who_goes_first() -> None:
    """The silent before those that spoke, those of the address with the most of them, the one that came first."""
    admission = Admission(5)
    for number, peer in enumerate("abbbc"):
        assert admission.come(number, peer) is None
    admission.speak(1)
    assert [admission.come(5, "d"), admission.come(6, "d"), admission.come(7, "e")] == [2, 3, 5]
    for number in (0, 4, 6, 7):
        admission.speak(number)
    admission.trust(0)
    admission.trust(4)
    assert admission.come(8, "a") == 1  # nobody is silent: of the strangers b, d, e the first
    for number in (6, 7, 8):
        admission.trust(number)
    assert admission.come(9, "z") == 9


# --- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", [Limits(connections=8)], indirect=True)
def test_strangers_take_no_place_from_a_client(bounded: tuple[SourceServer, int]) -> None:
    """As many strangers as there are places shut out everybody until their time was over."""
    server, port = bounded
    with ExitStack() as stack, HttpSource("127.0.0.1", port, token="t") as source:
        source.info()
        for _ in range(3):
            connected(stack, port, 20)
            begun = connected(stack, port, 20)
            for sock in begun:
                with suppress(OSError):
                    sock.sendall(b"GET /v1/store HTT")
            source.info()  # on its connection
            with HttpSource("127.0.0.1", port, token="t") as another:
                another.info()
        assert server._door is not None
        assert len(server._door.admission) <= 8


@pytest.mark.parametrize("bounded", [Limits(silent_seconds=0.2, header_seconds=0.6)], indirect=True)
def test_a_connection_has_little_time_to_say_something(bounded: tuple[SourceServer, int]) -> None:
    with ExitStack() as stack:
        silent, slow = connected(stack, bounded[1], 2)
        slow.sendall(b"GET")
        begun = time.monotonic()
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
        assert 0.1 < time.monotonic() - begun < 15


FLOODED = """
import logging, os, resource, socket, sys, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 4096))
from holdfast.engine import BackupService, MemoryEngine, Settings, Store

logging.basicConfig(level=logging.WARNING)
store = Store.open(sys.argv[1], MemoryEngine, settings=Settings(segment_bytes=128 << 10, heartbeat_s=0), plugins=[
    BackupService(online_backup_server="127.0.0.1:0", token="0123456789abcdef-token", tls_certificate=sys.argv[2])])
print(store.backup_uri.rpartition(":")[2], flush=True)
end = time.monotonic() + 3
count = 0
while time.monotonic() < end:
    with store.transaction() as tx:
        tx.put(b"key", os.urandom(20_000))
    count += 1
assert count > 50, count  # of several segments each
store.close()
print("unharmed")
"""


def test_a_flood_of_handshakes_takes_no_descriptor_from_the_store(tmp_path: Path) -> None:
    """Connections in a TLS handshake were not counted. They took every descriptor there was, the next segment of the
    log could not be opened, and the store was poisoned."""
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", FLOODED, str(tmp_path / "store"), str(pem)], text=True, env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as service, ExitStack() as stack:
        assert service.stdout is not None
        port = int(service.stdout.readline())
        with suppress(OSError):
            for number in range(600):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                if number % 2:
                    sock.sendall(b"\\x16\\x03\\x01\\x02\\x00\\x01")  # a handshake that is begun
        out, said = service.communicate(timeout=60)
        assert out == "unharmed\n", said
        assert len(said.splitlines()) < 12, said


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_without_descriptors_the_service_waits_and_says_so_once(store: MemoryStore, code: int,
                                                                monkeypatch: pytest.MonkeyPatch,
                                                                caplog: pytest.LogCaptureFixture) -> None:
    """What waited to be accepted woke the loop again and again, and each time wrote a line into the log."""
    tried: list[float] = []
    accept = socket.socket.accept

    def short(sock: socket.socket) -> object:
        tried.append(time.monotonic())
        if len(tried) % 2 and len(tried) < 12:  # each other time the reserve is let go
            raise OSError(code, os.strerror(code))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", short)
    monkeypatch.setattr(admission, "_PAUSE_S", 0.05)
    with ExitStack() as stack:
        socks = connected(stack, port_of(store), 6)
        for sock in socks:
            assert sock.recv(1) == b""
        with client(store) as source:
            source.info()
    assert len(tried) < 40
    assert caplog.text.count("no connection can be accepted") == 1


def test_a_high_descriptor_is_not_kept(store: MemoryStore, monkeypatch: pytest.MonkeyPatch,
                                       caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(admission, "_PAUSE_S", 0.01)
    server = next(p for p in store.hooks.plugins if isinstance(p, BackupService))._server
    assert server is not None
    assert server._door is not None
    monkeypatch.setattr(server._door, "_highest", 1)
    assert ask(port_of(store), b"GET /v1/health HTTP/1.0\r\n\r\n") == b""
    assert "short of descriptors" in caplog.text
    monkeypatch.setattr(server._door, "_highest", 1 << 30)
    with client(store) as source:
        source.info()


def test_places_are_no_more_than_a_quarter_of_the_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(admission, "descriptors", lambda: 100)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with new_store(tmp_path / "store") as store:
        server = next(p for p in store.hooks.plugins if isinstance(p, BackupService))._server
        assert server is not None
        assert server._door is not None
        assert server._door.admission.most == 25


# --- the log ---------------------------------------------------------------------------------------------------------


def test_of_each_kind_there_is_one_line_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = LeapingClock()
    said = Calm(logging.getLogger("holdfast.source"), clock)
    for number in range(1000):
        said.say("one", f"first\x1b[2J\nWARNING forged {number}")
        said.say("two", "second", ValueError("with\nlines"))
    clock.ahead += rate_limited_log.EVERY_S
    said.say("one", "first")
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "first?[2J?WARNING forged 0"
    assert lines[1].startswith("second: ValueError: with?lines")
    assert lines[2:] == ["first (999 more like it since the last line)"]


def test_strangers_do_not_fill_the_log_nor_show_a_token_in_it(store: MemoryStore,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    """Each request that is none was logged with a traceback, which quotes the line that is wrong: the one with the
    token, if there is a bad character in it."""
    token = token_of(store)
    caplog.set_level(logging.INFO)
    for start in ("GET /v1/store HTTP/1.1", "GET /\x1b[2Jx HTTP/1.1", "GET http://[ HTTP/1.1", "XX", "GET / HTTP/9.9"):
        for header in ("", f"Authorization: Bearer {token}\0\r\n", f"Authorization: Bearer {token}\r\nBad header\r\n",
                       f"Transfer-Encoding: {token}\r\n", f"Content-Length: {token}\r\n",
                       f"Host: {token}\r\nAuthorization: Bearer {token}\r\n"):
            for _ in range(4):
                ask(port_of(store), f"{start}\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n".encode())
    assert token not in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.records) < 10


# --- threads ---------------------------------------------------------------------------------------------------------


def test_slow_images_keep_no_renewal_waiting(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads of the service made images, and a copy that was under way lost its lease."""
    go_on, image = threading.Event(), store.engine.image

    def slow() -> object:
        go_on.wait(30)
        return image()

    with client(store) as source:
        grant = source.lease("healthy", image=True)
        monkeypatch.setattr(store.engine, "image", slow)

        def take() -> None:
            with client(store) as another, suppress(LeaseExpired):
                another.release(another.lease("slow", image=True).id)

        takers = [threading.Thread(target=take) for _ in range(15)]
        for taker in takers:
            taker.start()
        while len(store.leases.list()) < 16:  # all are in line, since a store makes one image after the other
            time.sleep(0.001)
        source.renew(grant.id)
        source.read_image(grant.id, "state", 0, 1)
        source.confirm(grant.id)
        source.info()
        go_on.set()
        for taker in takers:
            taker.join(30)


def test_a_pool_has_so_many_threads_and_ends_with_its_owner() -> None:
    pool, names = Pool("test-pool", 2, REAL.scheduler), set[str]()
    together = threading.Barrier(2)

    def work() -> int:
        names.add(threading.current_thread().name)
        together.wait(20)
        return 7

    futures = [pool.submit(work) for _ in range(6)]
    assert [f.result(20) for f in futures] == [7] * 6
    assert names == {"test-pool-1", "test-pool-2"}
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(20)
    gate = threading.Event()
    busy = [pool.submit(lambda: gate.wait(20)) for _ in range(2)]
    while not all(f.running() for f in busy):
        time.sleep(0.001)
    late = pool.submit(work)
    pool.close()
    assert late.cancelled()
    gate.set()
    assert all(f.result(20) for f in busy)
    with pytest.raises(StoreClosed):
        pool.submit(work)
    while any(t.name.startswith("test-pool") for t in threading.enumerate()):
        time.sleep(0.001)


def test_a_pool_goes_on_with_the_threads_that_it_can_get(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, pool = REAL.scheduler, Pool("test-pool", 3, REAL.scheduler)

    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(scheduler, "spawn", none)
    with pytest.raises(RuntimeError):
        pool.submit(lambda: 1)
    monkeypatch.undo()
    assert pool.submit(lambda: 1).result(20) == 1
    monkeypatch.setattr(scheduler, "spawn", none)
    gate = threading.Event()
    futures = [pool.submit(lambda: gate.wait(20)) for _ in range(3)]
    gate.set()
    assert all(f.result(20) for f in futures)
    pool.close()


# --- requests --------------------------------------------------------------------------------------------------------


def pipelined(port: int, seconds: float) -> None:
    """Requests without end, of a client that takes no answer."""
    request = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as sock, suppress(OSError):
        while time.monotonic() < end:
            sock.sendall(request)


def test_requests_that_are_sent_ahead_are_not_kept(tmp_path: Path) -> None:
    """An HTTP library that reads on while it answers keeps all of them: gigabytes for any stranger."""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    script = """
import sys
from holdfast.engine import BackupService, MemoryEngine, Store
with Store.open(sys.argv[1], MemoryEngine, plugins=[BackupService(online_backup_server=":0")]) as store:
    print(store.backup_uri.rpartition(":")[2], flush=True)
    sys.stdin.readline()
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    peaks = []
    for seconds in (0.0, 3.0):
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store")], text=True, env=env,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
            assert service.stdout is not None
            port = int(service.stdout.readline())
            threads = [threading.Thread(target=pipelined, args=(port, seconds)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            peaks.append(int(service.communicate("\n", timeout=30)[0]) >> 10)
    assert peaks[1] < peaks[0] + 30


_PIECES = st.sampled_from([
    b"GET ", b"POST ", b"DELETE ", b"/v1/store", b"/v1/leases", b"/v1/consumers/ab", b" HTTP/1.1\r\n", b"\r\n", b"\0",
    b"Host: localhost\r\n", b"Authorization: Bearer t\r\n", b"Content-Length: 9", b"Transfer-Encoding: chunked\r\n",
    b"Holdfast-Challenge: " + b"a" * 32, b"Range: bytes=0-1\r\n", b"ffffffff\r\n", b"{}", b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_PIECES | st.binary(max_size=20), max_size=14).map(b"".join), st.booleans())
def test_bytes_that_are_no_request_harm_nobody_over_tls(served: tuple[MemoryStore, ssl.SSLContext], data: bytes,
                                                        raw: bool) -> None:
    store, context = served
    with socket.create_connection(("127.0.0.1", port_of(store)), timeout=20) as sock, suppress(OSError):
        if raw:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        else:
            with context.wrap_socket(sock, server_hostname="127.0.0.1") as line:
                line.sendall(data)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port_of(store)), timeout=20),
                             server_hostname="127.0.0.1") as line:
        line.sendall(b"GET /v1/health HTTP/1.0\r\n\r\n")
        assert line.recv(12) == b"HTTP/1.0 200"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MemoryStore, ssl.SSLContext]]:
    root, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(root / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    service = BackupService(online_backup_server=":0", token=TOKEN, tls_certificate=root / "server.pem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        with new_store(root / "store", service=service) as store:
            yield store, context
