"""The server of a store: HTTP/1.1 in a thread with its own event loop.

The loop only moves bytes between sockets. Work that can block runs in one of three bounded pools of threads: `streams`
reads and sends streams, with as many threads as there may be streams; `patient` makes images and confirmations; `small`
does the rest. They are separate so that a slow reader or image never delays a renewal, which would let a lease expire.

Everything that a stranger can send or withhold is bounded: connections (`admission`), request line, headers, body, the
time for each of them, concurrent streams, the time in which the client must take a piece of an answer, and lines in the
log (`rate_limited_log`). A client that is slow or dead loses its connection. The store is not affected.

Every request needs a Host header that is an address or a known name of this service. Every request but `/v1/health`
needs the bearer token. The requests that a plugin adds (`extension`) have a token of their own. The Host check defeats
DNS rebinding: a web page whose name is bound to our address. `routes` has the requests.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  real sockets, and their time
import hmac
import ipaddress
import json
import logging
import os
import re
import select  # noqa: TID251  as above
import socket  # noqa: TID251  as above
import ssl
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler

from ...env import REAL, Env
from ...env.pool import Pool
from ...env.rate_limited_log import Calm, library_logger
from ...errors import HoldfastError, InvalidInput, NotAuthorized, SourceRefused, SourceUnavailable
from ..local import LocalSource
from . import discovery
from .admission import Door
from .limits import PIECE_BYTES, Counters, Limits
from .routes import Routes
from .wire import CHALLENGE_HEADER, DIGEST_HEADER, INSTANCE_HEADER, digest, error_to_wire, unpacked

if TYPE_CHECKING:
    from ...env import Clock, Task
    from ...store.store import Store
    from .extension import Extension

logger = logging.getLogger("holdfast.source")

T = TypeVar("T")

_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d{0,5})?")
_NONCE = re.compile(r"[0-9a-f]{32,64}")


class SourceServer:
    """Serves one store at a time on one listening socket, which it owns. `start` it once, `stop` it once."""

    def __init__(self, store: Store[Any, Any] | None, sock: socket.socket, *, token: str, key: str = "",
                 tls: ssl.SSLContext | None = None, names: frozenset[str] = frozenset(),
                 limits: Limits | None = None, env: Env = REAL, extension: Extension | None = None) -> None:
        """
        Args:
            store: the store to serve; None if there is none yet: see `show`.
            sock: bound, not yet listening.
            token: the credential that every request must carry.
            key: the key of proofs (hex); see `discovery`. Without it, no proof is given.
            tls: a server-side context, or None for plain HTTP.
            names: host names, in lower case, under which clients may know this service; addresses are always fine.
            limits: the bounds on what clients may take.
            env: the environment.
            extension: further routes.
        """
        self.env = env
        self._source: LocalSource | None = None
        self._store: Store[Any, Any] | None = None
        self.show(store)
        self._extension = extension
        self.limits = limits or Limits()
        self.counters = Counters()
        self._socket = sock
        self._token = token.encode()
        self._key = key
        self._tls = tls
        self._names = names | {"localhost"}
        clock, scheduler = env.clock, env.scheduler
        self.streams = Pool("holdfast-stream", self.limits.streams, scheduler)
        self.patient = Pool("holdfast-patient", self.limits.patient, scheduler)
        self.small = Pool("holdfast-source-io", self.limits.threads, scheduler)
        self._calm = Calm(logger, clock)
        self._door: Door | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._web: web.Server | None = None
        self._task: Task | None = None
        self._stopped = False

    def show(self, store: Store[Any, Any] | None) -> None:
        """Serve this store from now on; None: none. Leases of the one before are gone."""
        self._source = None if store is None else LocalSource(store)
        self._store = store

    @property
    def source(self) -> LocalSource:
        """What is served. Raises `SourceUnavailable`."""
        source = self._source
        if source is None:
            raise SourceUnavailable("no store is open here yet", hint="try again in a moment")
        return source

    @property
    def store(self) -> Store[Any, Any]:
        """The store that is served. Raises `SourceUnavailable`."""
        store = self._store
        if store is None:
            raise SourceUnavailable("no store is open here yet", hint="try again in a moment")
        return store

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, and return once the socket listens. Raises the error if that fails."""
        ready: Future[None] = Future()

        def work() -> None:
            try:
                asyncio.run(self._serve(ready))
            except BaseException as error:
                if not ready.done():
                    ready.set_exception(error)
                else:
                    logger.exception("the backup service has stopped")

        self._task = self.env.scheduler.spawn("holdfast-source", work)
        ready.result()

    def stop(self, timeout: float = 10.0) -> None:
        """Close all connections and end the thread; streams under way are cut off. May be called twice. If `start` was
        interrupted, the thread ends as soon as it has begun. `timeout`: the most seconds to wait for it."""
        self._stopped = True
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            self._loop = None
            loop.call_soon_threadsafe(stopping.set)
            if self._task is not None and not self._task.join(timeout):
                logger.warning("the backup service has not stopped within %s s", timeout)
        self._socket.close()

    def forked(self) -> None:
        """In a forked child: give up the sockets without sending anything. The loop runs in the parent only.

        Each descriptor is pointed at /dev/null, not closed: the loop's objects, which the child has inherited, still
        own its number, and would later close whatever file had got that number.
        """
        self._loop = None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # noqa: TID251  to take the sockets' numbers
        try:
            for fd in self._descriptors():
                os.dup2(null, fd, inheritable=False)
        finally:
            os.close(null)

    def _descriptors(self) -> list[int]:
        listener = self._socket.fileno()
        visitors = [] if self._door is None else self._door.sockets()
        return [*([listener] if listener >= 0 else []), *visitors]

    async def _serve(self, ready: Future[None]) -> None:
        limits = self.limits
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: self._calm.say("loop", str(what.get("message", "")),
                                                                  what.get("exception")))
        app = web.Application(middlewares=[self._guard], client_max_size=limits.body_bytes)
        extension = self._extension
        if extension is None:
            app.add_routes(Routes(self).table())
        else:
            app.add_routes(Routes(self, extension.metrics, extension.member).table())
            app.add_routes(extension.table(self))
        runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=limits.idle_seconds,
                               logger=library_logger(self._calm, "a malformed request"),
                               max_line_size=limits.line_bytes, max_field_size=limits.line_bytes, shutdown_timeout=0.2)
        try:
            await runner.setup()
            self._web = runner.server
            assert runner.server is not None
            self._door = Door(self._socket, runner.server, tls=self._tls, connections=limits.connections,
                              silent_seconds=limits.silent_seconds, handshake_seconds=limits.handshake_seconds,
                              header_seconds=limits.header_seconds, refused=self._count_refused, calm=self._calm)
            self._stopping = asyncio.Event()
            self._loop = loop
            ready.set_result(None)
            if not self._stopped:
                await self._stopping.wait()
        finally:
            if self._door is not None:
                self._door.close()
            await runner.cleanup()
            for pool in (self.streams, self.patient, self.small):
                pool.close()
            if extension is not None:
                extension.stopped()

    # --- connections -----------------------------------------------------------------------------------------------

    def _count_refused(self) -> None:
        self.counters.refused += 1

    async def blocking(self, work: Callable[[], T], pool: Pool | None = None) -> T:
        """Run `work` in a pool of threads, by default `small`, and return what it returns."""
        return await asyncio.wrap_future((pool or self.small).submit(work))

    # --- every request passes here ---------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.counters.requests += 1
        try:
            assert self._door is not None
            self._door.asked(request.protocol)
            if self._admit(request):
                self._door.trust(request.protocol)
            response = await handler(request)
        except web.HTTPException as error:  # no such route, method or size
            response = web.json_response(
                {"error": "SourceRefused", "message": f"{request.method} {request.path[:200]}: {error.reason}",
                 "hint": "see the source's interface"}, status=error.status)
        except (ConnectionError, TimeoutError) as error:
            self._calm.say("broken", f"{request.method} {request.path} broken off: {error or type(error).__name__}",
                           level=logging.INFO)
            return self._broken_off(request)
        except HoldfastError as error:
            response = self._refusal(error)
        except Exception as error:
            self._calm.say("failed", f"{request.method} {request.path} failed", error)
            if request.writer.output_size:  # the answer has begun
                return self._broken_off(request)
            response = self._refusal(error)
        if self._store is not None:
            response.headers.setdefault(INSTANCE_HEADER, self._store.instance)
        return await self._finish(request, response)

    def _refusal(self, error: Exception) -> web.Response:
        status, body = error_to_wire(error)
        self.counters.refused += 1
        response = web.json_response(body, status=status)
        if status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Send a small answer here, so that the bound on time applies to it too."""
        try:
            async with asyncio.timeout(self.limits.write_seconds):
                if isinstance(response, web.Response) and isinstance(response.body, bytes):
                    response.headers[DIGEST_HEADER] = digest(response.body)
                await response.prepare(request)
                await response.write_eof()
        except (ConnectionError, TimeoutError):
            self._abort(request)
        return response

    def _broken_off(self, request: web.Request) -> web.StreamResponse:
        self._abort(request)
        return web.Response(status=503)  # never sent: the connection is gone

    @staticmethod
    def _abort(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()

    def _admit(self, request: web.Request) -> bool:
        """Whether the token was shown. Raises `SourceRefused`, `NotAuthorized`, `SourceUnavailable`."""
        host = request.headers.get("Host")
        if host is None and request.version < HttpVersion11:
            host = "localhost"  # only probes leave it out: browsers always send it, so no web page can
        if not self._knows(host or ""):
            raise SourceRefused("the Host header does not name this service",
                                hint="use the service's address, or add the name to the service's names")
        extension = self._extension
        if request.path == "/v1/health" or (extension is not None and request.path in extension.open_paths):
            return False
        tokens = [self._token]
        if extension is not None:
            within = request.path.startswith(extension.prefix)
            if extension.token is None and within:
                raise SourceUnavailable("it cannot tell who asks, before it has joined", hint="try again in a moment")
            tokens = [*(() if within else tokens), *(() if extension.token is None else [extension.token.encode()])]
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = given.strip().encode("utf-8", "replace")
        if scheme.lower() != "bearer" or sum(hmac.compare_digest(shown, token) for token in tokens) == 0:
            raise NotAuthorized("the token is missing" if not given else "the token is wrong")
        return True

    def proof(self, request: web.Request) -> str | None:
        """The proof that this is the service whose entry the client has read; None if the client did not ask."""
        nonce = request.headers.get(CHALLENGE_HEADER, "")
        reached = None if request.transport is None else request.transport.get_extra_info("sockname")
        if not self._key or reached is None or not _NONCE.fullmatch(nonce):
            return None
        return discovery.proof(self._key, nonce, reached[:2])

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1] or match[2]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._names
        return True

    # --- for the routes --------------------------------------------------------------------------------------------

    async def body(self, request: web.Request, form: Literal["JSON", "msgpack"] = "JSON") -> dict[str, Any]:
        """The map in a request's body. Raises `InvalidInput`."""
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                data = _LOADS[form](await request.read())
        except (ValueError, RecursionError, web.RequestPayloadError) as error:  # the last: its encoding is wrong
            raise InvalidInput(f"the body is not {form}") from error
        if not isinstance(data, dict):
            raise InvalidInput(f"the body is not a {form} map")
        return data

    async def write(self, request: web.Request, response: web.StreamResponse, *pieces: bytes,
                    rest: float = 0.0) -> None:
        """Send some pieces, with a rest of `rest` seconds after each, and no more than `PIECE_BYTES` between two rests.
        Raises `TimeoutError` or `ConnectionError` if the client does not take them.

        Without TLS, a thread writes much of a body of known length straight to the socket, as `sendfile` would. The
        event loop's transport copies more, and is half as fast.
        """
        size, transport = sum(map(len, pieces)), request.transport
        framed = self._tls is not None or response.content_length is None
        if size < _DIRECT or framed or transport is None:
            for part in _parts(pieces, PIECE_BYTES if rest else _SLICE):
                async with asyncio.timeout(self.limits.write_seconds):
                    await response.write(part)
                if rest:
                    await asyncio.sleep(rest)
        else:
            async with asyncio.timeout(self.limits.write_seconds):
                while transport.get_write_buffer_size():  # the answer's head
                    await asyncio.sleep(0.001)
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
            # The thread writes to a duplicate, so the number cannot come to name another file before it is done.
            sock = os.dup(transport.get_extra_info("socket").fileno())
            seconds = self.limits.write_seconds * -(-size // _SLICE)
            try:
                sending = self.streams.submit(partial(_send, sock, _parts(pieces, PIECE_BYTES if rest else size),
                                                      transport.is_closing, seconds, self.env.clock, rest))
            except BaseException:
                os.close(sock)
                raise
            sending.add_done_callback(lambda _: os.close(sock))
            await asyncio.wrap_future(sending)
        self.counters.sent_bytes += size

    async def turn(self, slots: asyncio.Semaphore) -> None:
        """Wait for a turn to stream. Raises `SourceUnavailable`."""
        try:
            async with asyncio.timeout(self.limits.busy_seconds):
                await slots.acquire()
        except TimeoutError:
            raise SourceUnavailable("the source serves the most streams that it may", hint="try again later") from None


_LOADS: dict[str, Callable[[bytes], Any]] = {"JSON": json.loads, "msgpack": unpacked}
_SLICE = 1 << 20
_DIRECT = 256 << 10
_POLL_SECONDS = 0.25


def _parts(pieces: Iterable[bytes], most: int) -> Iterator[memoryview]:
    """The pieces in parts of at most so many bytes."""
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), most):
            yield view[at : at + most]


def _send(sock: int, parts: Iterable[memoryview], closing: Callable[[], bool], seconds: float, clock: Clock,
          rest: float) -> None:
    """Write all of `parts` to a non-blocking socket within `seconds`, not counting the rest of `rest` seconds after
    each. Raises `TimeoutError`, `ConnectionError`."""
    ready = select.poll()
    ready.register(sock, select.POLLOUT)
    end = clock.monotonic() + seconds
    for part in parts:
        if closing():
            raise ConnectionResetError("the connection is being closed")
        while part:
            try:
                part = part[os.write(sock, part) :]
            except BlockingIOError:
                if closing():
                    raise ConnectionResetError("the connection is being closed") from None
                if clock.monotonic() >= end:
                    raise TimeoutError("the client does not read what it asked for") from None
                ready.poll(_POLL_SECONDS * 1000)
        if rest:
            clock.sleep(rest)
            end += rest
