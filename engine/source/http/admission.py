"""The door of a service: which connections are accepted, and which one is closed when there are too many.

Connections count from the moment they are accepted, including silent ones and those in a TLS handshake: the scarce
resource is file descriptors, and the store needs some too. The number of open connections is bounded. At the bound, a
new connection takes the place of one that has not shown the token. A silent one is chosen first; among equals, one from
the address that has most of them, the oldest. Connections that have shown the token are never closed for this. If all
have, the new one is closed. A TLS handshake begins only when the first byte arrives.

A process has a limit on descriptors, and the system gives out the lowest free number. So a connection whose number is
close to the limit shows that descriptors run short, whatever took them. It is closed at once, and for a while no other
is accepted. If no descriptor is left, a waiting connection cannot be accepted and would wake the loop for ever. So one
descriptor is held in reserve: it is freed to accept one waiting connection and close it, and is taken again later.

`Admission` holds the rules, `Door` the sockets. All of it runs on the service's loop.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  real sockets, and their time
import contextlib
import errno
import ipaddress
import os
import resource
import socket  # noqa: TID251  as above
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...env.rate_limited_log import Calm

_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_AT_ONCE = 32
_PAUSE_S = 0.2
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def descriptors() -> int:
    """The process's limit on file descriptors."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


class Admission:
    """The rules. Pure: a connection is a number, and the numbers ascend in the order of arrival."""

    def __init__(self, most: int) -> None:
        """`most`: connections at once."""
        self.most = most
        self._silent: dict[int, str] = {}
        self._strangers: dict[int, str] = {}
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._silent) + len(self._strangers) + len(self._known)

    def come(self, number: int, peer: str) -> int | None:
        """Add a connection from an address. Returns the one that must be closed for it (possibly itself), or None."""
        leaver = None
        if len(self) >= self.most:
            leaver = self._leaver()
            if leaver is None:
                return number
            self.go(leaver)
        self._silent[number] = peer
        return leaver

    def _leaver(self) -> int | None:
        count = Counter([*self._silent.values(), *self._strangers.values()])
        for some in (self._silent, self._strangers):
            if some:
                worst = max(count[peer] for peer in some.values())
                return next(number for number, peer in some.items() if count[peer] == worst)
        return None

    def speak(self, number: int) -> None:
        """The connection has sent its first byte."""
        peer = self._silent.pop(number, None)
        if peer is not None:
            self._strangers[number] = peer

    def trust(self, number: int) -> None:
        """The connection has shown the token."""
        if self._silent.pop(number, None) is not None or self._strangers.pop(number, None) is not None:
            self._known.add(number)

    def go(self, number: int) -> None:
        """The connection is closed. May be called twice."""
        self._silent.pop(number, None)
        self._strangers.pop(number, None)
        self._known.discard(number)


class _Visit(asyncio.Protocol):
    """One connection, between its transport and the protocol that serves it."""

    def __init__(self, door: Door, number: int, sock: socket.socket) -> None:
        self.number = number
        self.socket = sock
        self.handler: Any = None
        self.transport: asyncio.BaseTransport | None = None
        self.task: asyncio.Task[None] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.handler.data_received(data)

    def eof_received(self) -> Any:
        return self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()

    def connection_lost(self, error: BaseException | None) -> None:
        self.handler.connection_lost(error)
        self._door.gone(self)


class Door:
    """Accepts connections on a listening socket, which still belongs to the caller."""

    def __init__(self, sock: socket.socket, make: Callable[[], Any], *, tls: ssl.SSLContext | None, connections: int,
                 silent_seconds: float, handshake_seconds: float, header_seconds: float, refused: Callable[[], None],
                 calm: Calm) -> None:
        """
        Args:
            sock: listening.
            make: makes the protocol of a connection.
            tls: a server-side context, or None.
            connections: the most at once; never more than a quarter of the process's limit on descriptors.
            silent_seconds: the most from accepting to the first byte.
            handshake_seconds: the most for the TLS handshake.
            header_seconds: the most from accepting to the first whole request.
            refused: called on the loop's thread for each connection that is closed without being served.
            calm: the log, with a bound on lines.
        """
        sock.setblocking(False)
        self._socket = sock
        self._make = make
        self._tls = tls
        self._silent_s, self._handshake_s, self._header_s = silent_seconds, handshake_seconds, header_seconds
        self._refused = refused
        self._calm = calm
        bound = descriptors()
        self.admission = Admission(max(1, min(connections, bound // 4)))
        self._highest = bound - min(64, bound // 8)
        self._loop = asyncio.get_running_loop()
        self._visits: dict[int, _Visit] = {}
        self._by_handler: dict[int, _Visit] = {}
        self._number = 0
        self._reserve: int | None = None
        self._open = True
        self._look()

    # --- coming ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._open:
            if self._reserve is None:
                with contextlib.suppress(OSError):
                    self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # noqa: TID251  a number
            self._loop.add_reader(self._socket.fileno(), self._arrivals)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._loop.call_later(_PAUSE_S, self._look)

    def _arrivals(self) -> None:
        for _ in range(_AT_ONCE):
            if len(self._visits) >= 2 * self.admission.most:  # closing takes a moment, and they still count
                self._pause()
                return
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._calm.say("accepting", f"no connection can be accepted: {error.strerror}")
                if error.errno in _SHORT:
                    self._use_reserve()
                self._pause()
                return
            if sock.fileno() >= self._highest:
                self._refused()
                self._calm.say("descriptors", "the process is short of descriptors: new connections are closed; "
                                              "raise the bound (ulimit -n)")
                sock.close()
                self._pause()
                return
            self._arrived(sock, str(address[0]))

    def _use_reserve(self) -> None:
        """Use the reserved descriptor to accept one waiting connection and close it. `_look` reserves one again."""
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
            with contextlib.suppress(OSError):
                self._socket.accept()[0].close()
                self._refused()

    def _arrived(self, sock: socket.socket, address: str) -> None:
        sock.setblocking(False)
        self._number += 1
        visit = _Visit(self, self._number, sock)
        leaver = self.admission.come(visit.number, _peer(address))
        if leaver is not None:
            self._refused()
            if leaver == visit.number:
                self._calm.say("full", "all connections are taken by clients with the token: new ones are closed")
                if self._tls is None:
                    with contextlib.suppress(OSError):
                        sock.send(_BUSY)
                sock.close()
                return
            self._calm.say("full", "all connections are taken: those without the token are closed")
            self._send_away(self._visits[leaver])
        self._visits[visit.number] = visit
        visit.timers = [self._loop.call_later(self._silent_s, self._too_long, visit),
                        self._loop.call_later(self._header_s, self._too_long, visit)]
        self._loop.add_reader(sock.fileno(), self._speaks, visit)

    def _speaks(self, visit: _Visit) -> None:
        self._loop.remove_reader(visit.socket.fileno())
        visit.timers[0].cancel()
        self.admission.speak(visit.number)
        visit.task = self._loop.create_task(self._let_in(visit))

    async def _let_in(self, visit: _Visit) -> None:
        visit.handler = self._make()
        self._by_handler[id(visit.handler)] = visit
        tls: dict[str, Any] = {} if self._tls is None else {
            "ssl": self._tls, "ssl_handshake_timeout": self._handshake_s, "ssl_shutdown_timeout": 1.0}
        try:
            await self._loop.connect_accepted_socket(lambda: visit, visit.socket, **tls)
        except (OSError, ssl.SSLError):  # the handshake failed or took too long
            self._refused()
        finally:
            if visit.transport is None:
                visit.socket.close()
                self.gone(visit)

    # --- being there -----------------------------------------------------------------------------------------------

    def asked(self, handler: object) -> None:
        """A whole request has arrived."""
        visit = self._by_handler.get(id(handler))
        if visit is not None:
            visit.timers[1].cancel()

    def trust(self, handler: object) -> None:
        """A handler's client has shown the token."""
        visit = self._by_handler.get(id(handler))
        if visit is not None:
            self.admission.trust(visit.number)

    # --- going -----------------------------------------------------------------------------------------------------

    def _too_long(self, visit: _Visit) -> None:
        if visit.number in self._visits:
            self._refused()
            self._send_away(visit)

    def _send_away(self, visit: _Visit) -> None:
        """Close a connection now, in whatever state it is: silent, in its handshake, or serving."""
        self.admission.go(visit.number)
        if visit.task is None:
            self._loop.remove_reader(visit.socket.fileno())
            visit.socket.close()
            self.gone(visit)
        elif isinstance(visit.transport, asyncio.WriteTransport):
            visit.transport.abort()
        else:
            visit.task.cancel()

    def gone(self, visit: _Visit) -> None:
        self.admission.go(visit.number)
        self._visits.pop(visit.number, None)
        self._by_handler.pop(id(visit.handler), None)
        for timer in visit.timers:
            timer.cancel()

    def close(self) -> None:
        """Stop accepting, and close all connections."""
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        for visit in list(self._visits.values()):
            self._send_away(visit)

    def sockets(self) -> list[int]:
        """The descriptors of all open connections."""
        return [fd for visit in self._visits.values() if (fd := visit.socket.fileno()) >= 0]


def _peer(address: str) -> str:
    """The peer that an address counts for. For IPv6 it is the network, since one host has many addresses there."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return address
