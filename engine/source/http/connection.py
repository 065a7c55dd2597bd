"""One connection to a source: its address, the token to show there, and bounds on every wait.

Python's own client keeps reading as long as bytes keep coming. Here every wait is bounded: connecting, the TLS
handshake, the time to the first byte of an answer, each silence after it, and the rest of the answer as a whole. The
rest may take a given number of seconds, plus the time for its bytes at `SLOWEST`. Slower bytes, an endless header and
bare heartbeats use that budget up. Only time spent waiting counts, so a reader may take its time over a record stream.

A token that was found on this machine is sent only to the service that it belongs to: see `discovery`.
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
"""The lowest rate, in bytes per second, at which a source may send."""
_MAX_HEALTH = 4 << 10


@dataclass(frozen=True, slots=True)
class Credential:
    """The token that a client shows a source, and where it comes from.

    Attributes:
        token: the token, or None.
        whence: where it comes from, in words that complete the sentence "the token ...".
        look: finds entries, or None. The token of an entry takes precedence over `token`.
    """

    token: str | None = field(repr=False)
    whence: str
    look: Callable[[], Sequence[Entry]] | None = None


class Line(http.client.HTTPConnection):
    """A connection that is `open`ed once, and used by one thread.

    Attributes:
        token: the token to show on this connection, and on no other.
        whence: where it comes from, as in `Credential`.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None, credential: Credential, timeout: float,
                 env: Env) -> None:
        super().__init__(host, port, timeout=timeout)
        self.auto_open = 0  # http.client must not connect by itself, without the checks in `open`
        self.token: str | None = None
        self.whence = ""
        self._tls = tls
        self._credential = credential
        self._silence = timeout
        self._env = env
        self._timed: _Timed | None = None

    def open(self) -> None:
        """Connect, and find out which token may be sent to what listens there.

        Raises:
            OSError, http.client.HTTPException: nothing listens there, or it is not a source.
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
        self.sock = self._timed  # it has the methods of a socket that http.client uses
        self.token, self.whence = credential.token, credential.whence
        if credential.look is not None:  # again: the service may have started since the first look
            entries = [e for e in entries or credential.look() if e.answers_at(reached[0])]
        if entries:
            self._identify(entries, reached[:2])

    def allow(self, first: float, rest: float) -> None:
        """Set the bounds of the next answer, in seconds: `first` until it begins, then `rest` plus the time for its
        bytes at `SLOWEST`."""
        if self._timed is None or self.sock is None:
            raise SourceUnavailable(f"the connection to {self.host} was closed")
        self._timed.allow(first, rest)

    def _dial(self, entries: Sequence[Entry]) -> socket.socket:
        """A socket to the host. An entry's address is preferred, since a host name may stand for several."""
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
        """Take the token of the entry whose service proves that it listens here."""
        nonce = self._env.randomness.token(16).hex()
        self.allow(self._silence, self._silence)
        self.request("GET", "/v1/health", headers={wire.CHALLENGE_HEADER: nonce})
        answer = self.getresponse()
        answer.read(_MAX_HEALTH)
        if not answer.isclosed() or answer.will_close:
            raise ConnectionError("the connection was not kept open")
        given = answer.headers.get(wire.PROOF_HEADER, "").encode("latin-1", "replace")
        for entry in entries:
            if hmac.compare_digest(entry.proof(nonce, reached).encode(), given):
                self.token, self.whence = entry.token, f"is the one that the service of {entry.path} has published"
                return
        if self.token is None:
            raise NotAuthorized(f"what listens at {reached[0]}:{reached[1]} has not proved to be the service of "
                                f"{' or '.join(e.path for e in entries)}, so it was not sent the token",
                                hint="if you know what it is, give its token yourself")


class _Timed:
    """A socket whose waits are bounded, with the methods that http.client uses."""

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
            raise TimeoutError("the answer took too long")
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
