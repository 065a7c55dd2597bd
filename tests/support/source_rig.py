"""What the tests of sources share: stores with something in them, a clock that can be put forward, a hostile proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import Clock, Env
from holdfast.engine.source.http import discovery
from holdfast.engine.source.http.client import HttpSource, connect
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

VALUE = bytes(range(256)) * 2048
MemoryStore = Store[Any, Any]


class LeapingClock(Clock):
    """Real time, plus what the test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def new_store(directory: Path, *, clock: Clock | None = None, service: BackupService | None = None,
              settings: Settings | None = None) -> MemoryStore:
    return Store.open(directory, MemoryEngine, env=Env(clock=clock or Clock()),
                      plugins=[service or BackupService(online_backup_server="127.0.0.1:0")],
                      settings=settings or Settings(segment_bytes=128 << 10, heartbeat_s=0))


def put(store: MemoryStore, count: int, value: bytes = b"value", start: int = 0) -> None:
    """`count` transactions of one key each, synced together."""
    for i in range(start, start + count):
        with store.transaction("relaxed" if i < start + count - 1 else "synced") as tx:
            tx.put(b"key %d" % i, value)


def port_of(store: MemoryStore) -> int:
    assert store.backup_uri is not None
    return int(store.backup_uri.rpartition(":")[2])


def client(store: MemoryStore, **options: Any) -> HttpSource:
    return connect("127.0.0.1", port_of(store), **options)


def token_of(store: MemoryStore) -> str:
    """The token, as a local client finds it."""
    [entry] = discovery.find(store.env.files, "127.0.0.1", port_of(store))
    return entry.token


def ask(port: int, text: bytes) -> bytes:
    """Send raw bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(text)
        answer = b""
        with suppress(ConnectionResetError):
            while data := sock.recv(65536):
                answer += data
    return answer


Tamper = Callable[[int, int, bytes], bytes | None]
"""(number of the connection, offset in what came from the server, data) -> what to pass on, or None to cut it."""


class Proxy:
    """A TCP proxy on loopback that does to the server's bytes what `tamper` says."""

    def __init__(self, port: int, tamper: Tamper = lambda number, offset, data: data) -> None:
        self.tamper = tamper
        self.connections = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            outer = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [inner, outer]
            self.connections += 1
            for work, args in ((self._pump, (inner, outer, None)), (self._pump, (outer, inner, self.connections))):
                thread = threading.Thread(target=work, args=args, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        offset = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed = data if number is None else self.tamper(number, offset, data)
                if passed is None:
                    break
                offset += len(data)
                sink.sendall(passed)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
