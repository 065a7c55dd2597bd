"""No call to etcd outlasts its timeout, whatever the network, the name service or the other side does. And whatever
comes back is told by an error of the kit, which says whether a swap may have been carried out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from holdfast.replay.ha.coordinator import ABSENT, Coordinator
from holdfast.replay.ha.coordinators.etcd import EtcdCoordinator
from holdfast.replay.ha.coordinators.url import open_coordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapUnknown

TIMEOUT, LATE = 0.2, 0.8
ABSENT_ANSWER = b'{"header":{"revision":"1"}}'
Answering = Callable[[socket.socket], None]


@contextmanager
def _server(answer: Answering) -> Iterator[int]:
    """A server that does `answer` with each connection. Its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer(sock)
            sock.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                taken.append(sock)
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in (listener, *taken):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _fails(call: Callable[[], Any], *errors: type[Exception], match: str | None = None) -> None:
    begun = time.monotonic()
    with pytest.raises(errors, match=match):
        call()
    assert time.monotonic() - begun < TIMEOUT + LATE


def _calls(one: Coordinator) -> Iterator[Callable[[], Any]]:
    yield lambda: one.read(TIMEOUT)
    yield lambda: one.wait(ABSENT, TIMEOUT)


def _drip(data: bytes) -> Answering:
    def answer(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
            time.sleep(0.05)

    return answer


def _silent(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass


def _endless_body(sock: socket.socket) -> None:
    sock.recv(1 << 16)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        sock.sendall(b"1\r\n \r\n")
        time.sleep(0.02)


def _endless_continue(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


SLOW: dict[str, Answering] = {
    "silent": _silent,
    "status line, byte by byte": _drip(b"HTTP/1.1 200 OK" + b"." * 1000),
    "headers, byte by byte": _drip(b"HTTP/1.1 200 OK\r\nA: " + b"." * 1000),
    "body, byte by byte": _drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000),
    "endless body": _endless_body,
    "endless interim answers": _endless_continue,
}


@pytest.mark.parametrize("how", SLOW)
def test_a_slow_answer_ends_with_the_timeout(how: str) -> None:
    with _server(SLOW[how]) as port, EtcdCoordinator([("127.0.0.1", port)], "social") as one:
        for call in _calls(one):
            _fails(call, CoordinatorUnavailable)
        _fails(lambda: one.swap(ABSENT, b"", TIMEOUT), SwapUnknown)


def test_who_reads_no_request_ends_with_the_timeout() -> None:
    """The request does not fit into the buffers of the sockets."""
    with _server(lambda sock: time.sleep(2)) as port, EtcdCoordinator([("127.0.0.1", port)], "social") as one:
        sent = socket.socket.send

        def little(sock: socket.socket, data: Any, *flags: Any) -> int:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return sent(sock, data, *flags)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "send", little)
            _fails(lambda: one.swap(ABSENT, bytes(400_000), TIMEOUT), SwapUnknown)


def test_who_takes_no_connection_ends_with_the_timeout() -> None:
    """A full backlog: the system drops what asks for a connection. Nothing was sent, so nothing was replaced."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        with EtcdCoordinator([("127.0.0.1", port)], "social") as one:
            for call in (*_calls(one), lambda: one.swap(ABSENT, b"", TIMEOUT)):
                _fails(call, CoordinatorUnavailable, match="timed out|too long")


def test_a_tls_handshake_that_does_not_end(tmp_path: Path) -> None:
    def drip(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")  # a ServerHello is to follow
        while True:
            sock.sendall(b"\0")
            time.sleep(0.05)

    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    for answer in (_silent, drip):
        with (_server(answer) as port,
              open_coordinator(f"etcds://127.0.0.1:{port}", "social", ca=tmp_path / "ca.pem") as one):
            for call in (*_calls(one), lambda: one.swap(ABSENT, b"", TIMEOUT)):
                _fails(call, CoordinatorUnavailable)


def test_a_name_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread waits for it, however many calls do, and when it answers the name is used."""
    answers, asked = threading.Event(), []
    resolve = socket.getaddrinfo

    def hang(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if flags & socket.AI_NUMERICHOST or host != "etcd.example":
            return resolve(host, port, family, type, proto, flags)
        asked.append(host)
        answers.wait(10)
        return resolve("127.0.0.1", port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with _server(_answering(ABSENT_ANSWER)) as port, EtcdCoordinator([("etcd.example", port)], "social") as one:
        for call in (*_calls(one), lambda: one.swap(ABSENT, b"", TIMEOUT)):
            _fails(call, CoordinatorUnavailable, match="looking up its name took too long")
        assert len(asked) == 1
        answers.set()
        assert one.read(5) == (None, ABSENT)


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: Any, *args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with EtcdCoordinator([("etcd.example", 2379)], "social") as one:
        _fails(lambda: one.swap(ABSENT, b"", TIMEOUT), CoordinatorUnavailable, match="its name is not known")
    monkeypatch.undo()
    with EtcdCoordinator([("a" * 70, 2379)], "social") as one:  # a label may have 63 characters
        _fails(lambda: one.read(TIMEOUT), CoordinatorUnavailable, match="its name is not known")


def _answering(body: bytes, status: str = "200 OK") -> Answering:
    def answer(sock: socket.socket) -> None:
        while sock.recv(1 << 16):
            sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return answer


STRANGE: dict[str, Answering] = {
    "nothing": lambda sock: None,
    "not HTTP": lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "not JSON": _answering(b"<html>"),
    "not UTF-8": _answering(b'{"a":"\xff"}'),
    "an empty object": _answering(b"{}"),
    "a list": _answering(b"[]"),
    "deep": _answering(b"[" * 100_000),
    "cut short": lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
    "no length that is one": lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"),
    "too long": _answering(b" " * (5 << 20)),
    "a gateway's error": _answering(b"<html>", "502 Bad Gateway"),
    "unavailable": _answering(b'{"code":14,"message":"etcdserver: request timed out"}', "503 Service Unavailable"),
    "no header": _answering(b'{"kvs":[{}],"succeeded":true}'),
    "no number": _answering(b'{"header":{"revision":"x"},"kvs":[{"mod_revision":"x"}]}'),
    "no base64": _answering(b'{"header":[],"kvs":[{"mod_revision":"2","value":"%%%"}]}'),
    "a number": _answering(b'{"header":7,"kvs":7}'),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_answer_is_an_outage_to_a_read_and_unknown_to_a_swap(what: str) -> None:
    says = {"too long": "longer than", "unavailable": "request timed out", "a gateway's error": "not one of etcd's"}
    with _server(STRANGE[what]) as port, EtcdCoordinator([("127.0.0.1", port)], "social") as one:
        for call in _calls(one):
            _fails(call, CoordinatorUnavailable, match=says.get(what))
        _fails(lambda: one.swap(ABSENT, b"", TIMEOUT), SwapUnknown, match=says.get(what))


@pytest.mark.parametrize(("code", "status"), [
    (3, "400 Bad Request"), (7, "403 Forbidden"), (8, "429 Too Many Requests"), (16, "401 Unauthorized")])
def test_what_etcd_refuses_was_not_carried_out(code: int, status: str) -> None:
    refusing = _answering(b'{"code":%d,"message":"etcdserver: \\u001b[31mno"}' % code, status)
    with _server(refusing) as port, EtcdCoordinator([("127.0.0.1", port)], "social") as one:
        for call in (*_calls(one), lambda: one.swap(ABSENT, b"", TIMEOUT)):
            _fails(call, CoordinatorUnavailable, match=r"etcdserver: \?\[31mno")


def test_the_time_is_shared_among_endpoints() -> None:
    """A read asks each, and has time left for the last. The one that answered is asked first from then on."""
    with (_server(_silent) as silent, _server(_answering(ABSENT_ANSWER)) as empty,
          EtcdCoordinator([("127.0.0.1", silent), ("127.0.0.1", 1), ("127.0.0.1", empty)], "social") as one):
        assert one.read(0.6) == (None, ABSENT)
        begun = time.monotonic()
        assert one.read(0.6) == (None, ABSENT)
        assert time.monotonic() - begun < 0.15


def test_a_swap_that_was_sent_is_not_sent_again() -> None:
    got: list[bytes] = []

    def keep(sock: socket.socket) -> None:
        got.append(sock.recv(1 << 16))

    with _server(keep) as first, _server(keep) as other, EtcdCoordinator(
            [("127.0.0.1", 1), ("127.0.0.1", first), ("127.0.0.1", other)], "social") as one:
        _fails(lambda: one.swap(ABSENT, b"", TIMEOUT), SwapUnknown)
        assert len(got) == 1
        with pytest.raises(CoordinatorUnavailable):
            one.read(TIMEOUT)
        assert len(got) == 3


def test_an_outage_during_a_wait_is_told_except_at_its_very_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last read of a wait may have a millisecond left. That it gets no answer then says nothing."""
    def answers_once(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ABSENT_ANSWER) + ABSENT_ANSWER)
        _silent(sock)

    for tail, told in ((0.5, False), (0.05, True)):
        monkeypatch.setattr("holdfast.replay.ha.coordinators.etcd._TAIL_S", tail)
        with _server(answers_once) as port, EtcdCoordinator([("127.0.0.1", port)], "social") as one:
            if told:
                _fails(partial(one.wait, ABSENT, TIMEOUT), CoordinatorUnavailable)
            else:
                assert one.wait(ABSENT, TIMEOUT) is None
