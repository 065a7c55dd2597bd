"""One HTTP endpoint of a coordinator. Every call to it ends by a given moment, whatever the network does.

The moment bounds looking up the name, connecting, TLS, sending and the whole answer, however slowly its bytes come. And
an error says whether the request may have been carried out.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select  # noqa: TID251  whether an idle socket was closed
import socket  # noqa: TID251  real sockets
import ssl
from typing import Any

from ....engine.env import Clock, Env, Event
from ....engine.env.shown import printable

_MOST_ANSWER = 4 << 20
_MOST_IDLE = 4


class NotSent(Exception):
    """The request was not sent, so it was not carried out."""


class NoAnswer(Exception):
    """The request may have been carried out, and nothing usable came back."""


class Endpoint:
    """A host and port that takes posts. From any thread, each of which uses a connection of its own at a time."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None, env: Env) -> None:
        self._host, self._port, self._tls, self._env = host, port, tls, env
        self._guard = env.scheduler.lock()
        self._idle: list[_Connection] = []
        self._lookup: _Lookup | None = None
        self._closed = False

    def __str__(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def post(self, path: str, body: bytes, headers: dict[str, str], *, sent_by: float, end: float) -> tuple[int, bytes]:
        """Post JSON; returns status and body of the answer.

        Args:
            sent_by: when the connection must be made, on the monotonic clock.
            end: when the answer must be there.

        Raises:
            NotSent, NoAnswer: with the reason.
        """
        connection = self._take() or self._connect(sent_by)
        try:
            connection.timed.end = end
            connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            data = answer.read(_MOST_ANSWER)
            if not answer.isclosed():
                raise http.client.HTTPException(f"the answer is longer than {_MOST_ANSWER:,} bytes")
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            self.drop_idle()  # they took the same way
            raise NoAnswer(_reason(error)) from error
        except BaseException:
            connection.close()
            raise
        with self._guard:
            if not answer.will_close and not self._closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return answer.status, data
        connection.close()
        return answer.status, data

    def drop_idle(self) -> None:
        """Close the connections that are not in use."""
        with self._guard:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Keep no connection from now on."""
        with self._guard:
            self._closed = True
        self.drop_idle()

    def _take(self) -> _Connection | None:
        """An idle connection that the other side has not closed."""
        while True:
            with self._guard:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()

    def _connect(self, end: float) -> _Connection:
        clock = self._env.clock
        why = "it has no address"
        addresses = self._addresses(end)
        for tried, (family, address) in enumerate(addresses):
            left = end - clock.monotonic()
            if left <= 0:
                raise NotSent("connecting took too long")
            raw = socket.socket(family, socket.SOCK_STREAM)
            try:
                raw.settimeout(left / (len(addresses) - tried))
                raw.connect(address)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    raw.settimeout(max(end - clock.monotonic(), 0.001))  # of the handshake as a whole
                    raw = self._tls.wrap_socket(raw, server_hostname=self._host)
                return _Connection(self._host, self._port, _Timed(raw, clock))
            except (OSError, ValueError) as error:
                raw.close()
                why = _reason(error)
            except BaseException:
                raw.close()
                raise
        raise NotSent(why)

    def _addresses(self, end: float) -> list[tuple[int, Any]]:
        """The host's addresses. The system's lookup takes as long as it likes, so a thread of its own waits for it,
        one for all who ask at a time."""
        with contextlib.suppress(OSError, ValueError):
            return _look_up(self._host, self._port, socket.AI_NUMERICHOST)
        with self._guard:
            lookup = self._lookup
            if lookup is None:
                lookup = self._lookup = _Lookup(self._env.scheduler.event())
                try:
                    self._env.scheduler.spawn("holdfast-lookup", lambda: self._run(lookup))
                except RuntimeError as error:
                    self._lookup = None
                    raise NotSent(_reason(error)) from error
        if not lookup.done.wait(max(end - self._env.clock.monotonic(), 0)):
            raise NotSent("looking up its name took too long")
        if lookup.failed is not None:
            raise NotSent(f"its name is not known: {_reason(lookup.failed)}")
        return lookup.addresses

    def _run(self, lookup: _Lookup) -> None:
        try:
            lookup.addresses = _look_up(self._host, self._port, 0)
        except (OSError, ValueError) as error:  # ValueError: a label that is too long
            lookup.failed = error
        finally:
            with self._guard:
                self._lookup = None
            lookup.done.set()


class _Lookup:
    """A name that is being looked up."""

    def __init__(self, done: Event) -> None:
        self.done = done
        self.addresses: list[tuple[int, Any]] = []
        self.failed: Exception | None = None


def _look_up(host: str, port: int, flags: int) -> list[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _reason(error: BaseException) -> str:
    """The text of an error, of which a stranger may have written a part."""
    return printable(str(error) or type(error).__name__)[:200]


class _Connection(http.client.HTTPConnection):
    """A connection that was made, and is not made again by http.client."""

    auto_open = 0

    def __init__(self, host: str, port: int, timed: _Timed) -> None:
        super().__init__(host, port)
        self.timed = timed
        self.sock = timed  # it has the methods of a socket that http.client uses

    def is_quiet(self) -> bool:
        """Whether the other side has sent nothing since the last answer, and has not closed."""
        poll = select.poll()
        poll.register(self.timed.sock, select.POLLIN)
        return not poll.poll(0)


class _Timed:
    """A socket whose calls end by `end`."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.sock, self._clock, self.end = sock, clock, 0.0

    def bound(self) -> None:
        left = self.end - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self.sock.settimeout(left)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self.bound()
            view = view[self.sock.send(view):]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self.sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, timed: _Timed) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._timed.bound()
        return self._timed.sock.recv_into(buffer)
