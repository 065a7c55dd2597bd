"""One connection to a source: where it leads, whose it is, and for how long it may keep us waiting.

Python's own client reads whatever comes for as long as something comes. Here every wait is bounded: connecting and the
TLS handshake, the time to the first byte of an answer, each silence after that, and the rest of it as a whole, which
may take so many seconds and besides what its bytes take at `SLOWEST`. Bytes that come slower, a header without end, or
signs of life without anything else use that up. Only waiting counts, so that a record stream may be read as slowly as
its reader likes.

A token that was found on this machine is sent to nobody but the service it belongs to: see `discovery`.
"""

from __future__ import annotations

import hmac
import http.client
import io
import socket  # noqa: TID251  real sockets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...env import Env
from ...errors import NotAuthorized, SourceUnavailable
from . import wire
from .discovery import Entry

SLOWEST = 64 << 10
"""Bytes a second at which what a source sends must come, at least."""
_MAX_HEALTH = 4 << 10


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client shows a source, and where it has it from, for people.

    Attributes:
        token: None: there is none.
        whence: ends the sentence "the token ...".
        look: where entries are looked for, if they are; one that is found comes before `token`.
    """

    token: str | None = field(repr=False)
    whence: str
    look: Callable[[], Sequence[Entry]] | None = None


class Line(http.client.HTTPConnection):
    """A connection that is `open`ed once, and used by one thread.

    Attributes:
        token: what to show on this connection, and nowhere else.
        whence: where it comes from, as in `Credential`.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None, credential: Credential, timeout: float,
                 env: Env) -> None:
        super().__init__(host, port, timeout=timeout)
        self.auto_open = 0  # no byte goes where `open` has not looked first
        self.token: str | None = None
        self.whence = ""
        self._tls = tls
        self._credential = credential
        self._silence = timeout
        self._env = env
        self._timed: _Timed | None = None

    def open(self) -> None:
        """Connect, and find out what may be shown to whoever is there.

        Raises:
            OSError, http.client.HTTPException: there is nobody, or no source.
            NotAuthorized: it is not the service whose entry was found, and there is no other token.
        """
        credential = self._credential
        entries = list(credential.look()) if credential.look is not None else []
        raw = self._dial(entries)
        try:
            reached = raw.getpeername()
            if self._tls is not None:
                raw = self._tls.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        self._timed = _Timed(raw, self._env.clock, self._silence)
        self.sock = self._timed  # as much of a socket as http.client uses
        self.token, self.whence = credential.token, credential.whence
        if credential.look is not None:  # once more: the service may have come between looking and connecting
            entries = [e for e in entries or credential.look() if e.answers_at(reached[0])]
        if entries:
            self._identify(entries, reached[:2])

    def allow(self, first: float, rest: float) -> None:
        """The next answer may begin within `first` seconds, and then take `rest` and what its bytes take at
        `SLOWEST`."""
        if self._timed is None or self.sock is None:
            raise SourceUnavailable(f"the connection to {self.host} was closed")
        self._timed.allow(first, rest)

    def _dial(self, entries: Sequence[Entry]) -> socket.socket:
        """A socket to the host: to the address of an entry if there is one, since a name may stand for several."""
        try:
            addresses = [info[4] for info in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)]
        except UnicodeError:
            raise OSError(f"{self.host[:100]!r} is not a host name") from None
        known = [a for a in addresses if any(e.answers_at(str(a[0])) for e in entries)]
        failed: OSError | None = None
        for address in dict.fromkeys([*known, *addresses]):
            raw = socket.socket(socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET, socket.SOCK_STREAM)
            try:
                raw.settimeout(self._silence)
                raw.connect(address)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                raw.close()
                failed = failed or error
            except BaseException:
                raw.close()
                raise
            else:
                return raw
        raise failed or OSError(f"{self.host} has no address")

    def _identify(self, entries: Sequence[Entry], reached: tuple[str, int]) -> None:
        """Take the token of the entry that belongs to whoever listens here."""
        nonce = self._env.randomness.token(16).hex()
        self.allow(self._silence, self._silence)
        self.request("GET", "/v1/health", headers={wire.CHALLENGE_HEADER: nonce})
        answer = self.getresponse()
        answer.read(_MAX_HEALTH)
        if not answer.isclosed() or answer.will_close:
            raise ConnectionError("the connection is not kept")
        given = answer.headers.get(wire.PROOF_HEADER, "").encode("latin-1", "replace")
        for entry in entries:
            if hmac.compare_digest(entry.proof(nonce, reached).encode(), given):
                self.token, self.whence = entry.token, f"is the one that the service of {entry.path} has published"
                return
        if self.token is None:
            raise NotAuthorized(f"what listens at {reached[0]}:{reached[1]} has not proved to be the service of "
                                f"{' or '.join(e.path for e in entries)}, and was not sent its token",
                                hint="if you know what it is, give its token yourself")


class _Timed:
    """A socket that waits no longer than it may."""

    def __init__(self, sock: socket.socket, clock: Any, silence: float) -> None:
        self._sock, self._clock, self._silence = sock, clock, silence
        self._first: float | None = None
        self._left = silence

    def allow(self, first: float, rest: float) -> None:
        self._first, self._left = first, rest

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._silence)
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self, self._sock.makefile("rb", buffering=0)))

    def receive(self, into: Callable[[Any], int | None], buffer: Any) -> int | None:
        first, self._first = self._first, None
        wait = min(self._left, self._silence) if first is None else first
        if wait <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(wait)
        before = self._clock.monotonic()
        got = into(buffer)
        if first is None:
            self._left -= self._clock.monotonic() - before
        self._left += (got or 0) / SLOWEST
        return got

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, timed: _Timed, raw: Any) -> None:
        self._timed, self._raw = timed, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return self._timed.receive(self._raw.readinto, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
