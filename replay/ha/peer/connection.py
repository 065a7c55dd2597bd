"""A connection to another member on which every wait ends at a deadline."""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import select  # noqa: TID251  to see whether the other end has gone
import socket  # noqa: TID251  real sockets
import ssl
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from ....engine.env import Env
from ....engine.env.pool import Pool
from ....engine.errors import StoreClosed
from ....engine.source.http.connection import SLOWEST

_BUFFER = 256 << 10


class Connection(http.client.HTTPConnection):
    """A connection on which every wait ends at a deadline.

    Attributes:
        streams: bytes that come put the deadline off, by their time at `SLOWEST`.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, resolver: Pool, env: Env) -> None:
        super().__init__(host, port)
        self.auto_open = 0
        self._tls, self._resolver, self._clock = tls, resolver, env.clock
        self._end = 0.0
        self.streams = False
        self._raw: socket.socket | None = None
        self._poll = select.poll()

    def deadline(self, seconds: float) -> None:
        """Everything from now on must be done within so many seconds."""
        self._end = self._clock.monotonic() + seconds

    def received(self, count: int) -> None:
        if self.streams:
            self._end += count / SLOWEST

    def left(self) -> float:
        """The seconds that are left. Raises `TimeoutError`."""
        left = self._end - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        return left

    def open(self) -> None:
        """Connect. Raises `OSError`."""
        failed: OSError | None = None
        for family, address in self._addresses():
            raw = socket.socket(family, socket.SOCK_STREAM)
            self._raw = raw
            try:
                raw.settimeout(self.left())
                raw.connect(address)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    raw.settimeout(self.left())
                    raw = self._tls.wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
                    self._raw = raw
                    raw.do_handshake()
            except ssl.SSLError:
                raw.close()
                raise
            except OSError as error:
                raw.close()
                failed = failed or error
            else:
                self._poll.register(raw, select.POLLIN)
                self.sock = _Bounded(self, raw)
                return
        raise failed or OSError(f"{self.host} has no address")

    def _addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        """Where the host is. A name is looked up on another thread, since a look-up cannot be bounded."""
        def look() -> list[Any]:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)

        try:
            ipaddress.ip_address(self.host.partition("%")[0])
            found = look()
        except ValueError:
            try:
                found = self._resolver.submit(look).result(self.left())
            except FutureTimeout:
                raise TimeoutError(f"the look-up of {self.host} took too long") from None
            except UnicodeError:
                raise OSError(f"{self.host[:100]!r} is not a host name") from None
            except StoreClosed:
                raise OSError("the client is closed") from None
        return [(info[0], info[4]) for info in found]

    def check(self) -> None:
        """Raise `ConnectionError` if the other end has said something or closed: it says nothing while it reads."""
        raw = self._raw
        if raw is None or self.sock is None:
            raise ConnectionError("the connection is closed")
        if self._poll.poll(0):
            raw.settimeout(0)
            try:
                raw.recv(1)
            except (BlockingIOError, ssl.SSLWantReadError):  # TLS has news of its own
                return
            raise ConnectionError("the other end has closed the connection")

    def end(self) -> None:
        """Close it. May be called twice."""
        self.close()
        if self._raw is not None:
            self._raw.close()

    def shut(self) -> None:
        """End the connection under a thread that may be waiting on it."""
        raw = self._raw
        if raw is not None:
            with contextlib.suppress(OSError):  # not connected, or closed
                socket.socket.shutdown(raw, socket.SHUT_RDWR)


class _Bounded:
    """A socket with the methods that http.client uses."""

    def __init__(self, connection: Connection, raw: socket.socket) -> None:
        self._connection, self._raw = connection, raw

    def sendall(self, data: Any) -> None:
        self._raw.settimeout(self._connection.left())
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._connection, self._raw), _BUFFER)

    def close(self) -> None:
        pass  # http.client closes it before it has read an answer that says so; `_Connection.end` closes it


class _Reader(io.RawIOBase):
    def __init__(self, connection: Connection, raw: socket.socket) -> None:
        self._connection, self._raw = connection, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(self._connection.left())
        got = self._raw.recv_into(buffer)
        self._connection.received(got)
        return got
