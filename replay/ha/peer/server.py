"""The members' requests, on the port of the backup service.

===================================  =====================================================================
request                              answer
===================================  =====================================================================
GET /ha/v1/status                    what the member says about itself
POST /ha/v1/promise                  a map in, a map out
GET /ha/v1/chain?txid=               the chain at a transaction of the member's log
POST /ha/v1/command/{verb}           a map in, a map out
GET /ha/v1/attachments/{name}        `?offset=&length=`: a piece of a bulk load's data
GET /ha/v1/log                       a stream of log, published or not (`stream`)
POST /ha/v1/acks                     a stream of acknowledgements in; the answer begins at once
GET /primary /replica /read-write    200 if the member is that, 503 if not
GET /health                          200 if the member is well, 503 if not
GET /ha                              a page for people
===================================  =====================================================================

What is below `/ha/v1/` needs the cluster's token and names the versions of the protocol (`wire`). The last five need no
token, since load balancers and browsers have none: they show what the handler answers to anybody who reaches the port.
Maps are msgpack.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  real sockets, and their time
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from aiohttp import web

from ....engine.env import REAL, Env
from ....engine.env.pool import Pool
from ....engine.errors import HoldfastError, InvalidInput, SourceUnavailable
from ....engine.model.positions import ID_BYTES
from ....engine.source.http.routes import Server
from ....engine.source.interface import CHUNK_BYTES, MemberInfo
from ....engine.wal.attachments import NAME as ATTACHMENT_NAME
from . import wire
from .stream import LogStream

T = TypeVar("T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NUMBER = re.compile(r"\d{1,18}")
_VERB = re.compile(r"[a-z][a-z_-]{0,40}")
_READ = 64 << 10


class PeerHandler(Protocol):
    """What a member does with the requests of others. Called on a bounded number of threads, except for `acked`."""

    def status(self) -> dict[str, Any]:
        """What the member says about itself."""
        ...

    def promise(self, request: dict[str, Any]) -> dict[str, Any]: ...

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        """The chain at a transaction, 16 bytes. With `epoch`: only if this member serves it."""
        ...

    def command(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """An operator's command. It may take long: commands have threads of their own."""
        ...

    def open_stream(self, hello: dict[str, Any]) -> LogStream:
        """Begin to send log. Return a new stream at once, and send from a thread of the member's."""
        ...

    def acked(self, ack: dict[str, Any]) -> None:
        """An acknowledgement has come. Called on the thread of the event loop, since a change of threads would cost as
        much as the rest of the way. It must return at once: note the position and wake who waits for it."""
        ...

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        """A piece of a bulk load's data, of `length` bytes exactly."""
        ...

    def health(self, kind: str, query: Mapping[str, str]) -> tuple[bool, dict[str, Any]]:
        """Whether the member is `kind`: `primary`, `replica`, `read-write` or `health`; and what is shown."""
        ...

    def metrics(self) -> str:
        """Lines in Prometheus' text format."""
        ...

    def page(self) -> bytes:
        """A page for people, in HTML. Anybody who reaches the port sees it."""
        ...


class PeerRoutes:
    """An `Extension` of the backup service: `BackupService(extension=PeerRoutes(…))`. It serves one opening."""

    prefix = wire.PREFIX
    open_paths = frozenset({"/primary", "/replica", "/read-write", "/health", "/ha"})

    def __init__(self, handler: PeerHandler, token: str | None, *, threads: int = 8, commands: int = 2,
                 streams: int = 32, silence: float = 10.0, write_seconds: float = 10.0,
                 versions: tuple[int, int] | None = None, env: Env = REAL) -> None:
        """
        Args:
            handler: what answers.
            token: the cluster's token, of 16 printable ASCII characters or more. None until this member has learned it.
            commands: threads for commands.
            threads: threads for all else.
            streams: streams of log, and of acknowledgements, at once; of each.
            silence: seconds without an acknowledgement after which their stream is cut.
            write_seconds: in which a reader must take a burst of log.
            versions: the newest and the oldest version spoken; by default this code's.
        """
        self.token = token
        self.handler = handler
        self._silence, self._write_seconds = silence, write_seconds
        self._versions = versions or (wire.HELLO_VERSION, wire.HELLO_MIN)
        self._pool = Pool("holdfast-peer", threads, env.scheduler)
        self._commands = Pool("holdfast-command", commands, env.scheduler)
        self._most = streams
        self._open = {"log": 0, "acks": 0}

    def table(self, server: Server) -> list[web.RouteDef]:
        get, post = partial(web.get, allow_head=False), web.post
        return [
            get("/ha/v1/status", self._told(self._status)), post("/ha/v1/promise", self._told(self._promise)),
            get("/ha/v1/chain", self._told(self._chain)), post("/ha/v1/command/{verb}", self._told(self._command)),
            get("/ha/v1/attachments/{name}", self._told(self._attachment)),
            get("/ha/v1/log", self._told(self._log)), post("/ha/v1/acks", self._told(self._acks)),
            web.get("/ha", self._page), *(web.get(f"/{kind}", partial(self._health, kind))
                                          for kind in ("primary", "replica", "read-write", "health")),
        ]

    def metrics(self) -> str:
        return self.handler.metrics()

    def member(self) -> MemberInfo:
        follows, facts = self.handler.health("replica", {})
        leads, _ = self.handler.health("primary", {})
        return MemberInfo(name=str(facts["name"]), role=str(facts["role"]), healthy=follows or leads)

    def stopped(self) -> None:
        self._pool.close()
        self._commands.close()

    # --- every request below the prefix passes here -----------------------------------------------------------------

    def _told(self, handler: _Handler) -> _Handler:
        """Agree on the version first, and send this package's errors as what they are."""
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                self._version(request)
                response = await handler(request)
            except HoldfastError as error:
                if request.writer.output_size:  # the answer has begun
                    raise ConnectionError(f"cut off: {error}") from error
                status, body = wire.failure(error)
                if status == 401:  # an engine's error: the guard knows how to answer it
                    raise
                response = web.json_response(body, status=status)
            if not response.prepared:
                response.headers[wire.VERSIONS_HEADER] = wire.versions_to_wire(*self._versions)
            return response
        return handle

    def _version(self, request: web.Request) -> int:
        theirs = wire.versions_from_wire(request.headers.get(wire.VERSIONS_HEADER, ""))
        return wire.agree(*theirs, *self._versions)

    async def _on_thread(self, work: Callable[[], T], pool: Pool | None = None) -> T:
        return await asyncio.wrap_future((pool or self._pool).submit(work))

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """The map in a request's body."""
        try:
            async with asyncio.timeout(self._silence):
                data = await request.read()
        except (TimeoutError, web.RequestPayloadError) as error:
            raise SourceUnavailable("the request's body did not come, or not whole",
                                    hint="check the network between the members") from error
        return wire.unpack_map(data, "a request", wire.MAX_MESSAGE)

    # --- small requests ----------------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        return _message(await self._on_thread(self.handler.status))

    async def _promise(self, request: web.Request) -> web.Response:
        asked = await self._body(request)
        return _message(await self._on_thread(lambda: self.handler.promise(asked)))

    async def _chain(self, request: web.Request) -> web.Response:
        txid = _number(request, "txid")
        epoch = _number(request, "epoch") if "epoch" in request.query else None
        chain = await self._on_thread(lambda: self.handler.chain_at(txid, epoch))
        assert len(chain) == ID_BYTES
        return _message({"txid": txid, "chain": chain})

    async def _command(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        if not _VERB.fullmatch(verb):
            raise InvalidInput(f"{verb[:40]!r} is not a command")
        args = await self._body(request)
        return _message(await self._on_thread(lambda: self.handler.command(verb, args), self._commands))

    async def _attachment(self, request: web.Request) -> web.Response:
        name, offset, length = request.match_info["name"], _number(request, "offset"), _number(request, "length")
        if not ATTACHMENT_NAME.fullmatch(name) or not 0 < length <= CHUNK_BYTES:
            raise InvalidInput(f"{length:,} bytes of {name[:80]!r} cannot be asked for; at most {CHUNK_BYTES:,} of an "
                               "attachment can")
        data = await self._on_thread(lambda: self.handler.read_attachment(name, offset, length))
        return web.Response(body=data, content_type="application/octet-stream")

    async def _health(self, kind: str, request: web.Request) -> web.Response:
        query = dict(request.query)
        good, shown = await self._on_thread(lambda: self.handler.health(kind, query))
        return web.json_response(shown, status=200 if good else 503)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._on_thread(self.handler.page), content_type="text/html", charset="utf-8")

    # --- streams -----------------------------------------------------------------------------------------------------

    async def _log(self, request: web.Request) -> web.StreamResponse:
        hello = self._hello(request)
        with _Place(self._open, "log", self._most):
            stream = await self._on_thread(lambda: self.handler.open_stream(hello))
            try:
                response = await self._begin(request)
                await stream.serve(request, response, self._write_seconds)
            finally:
                stream.close("the connection has ended")  # for whoever still sends
        return response

    async def _acks(self, request: web.Request) -> web.StreamResponse:
        hello = self._hello(request)
        with _Place(self._open, "acks", self._most):
            response = await self._begin(request)
            reader = wire.FrameReader(None)
            while True:
                async with asyncio.timeout(self._silence):
                    data = await request.content.readany()
                if not data:
                    return response
                for kind, ack in reader.feed(data):
                    if kind != wire.ACK:
                        raise InvalidInput(f"a frame of kind {kind} among acknowledgements")
                    self.handler.acked({**ack, **hello})

    def _hello(self, request: web.Request) -> dict[str, Any]:
        hello = wire.hello_from_wire(request.headers.get(wire.HELLO_HEADER, ""))
        return {**hello, "version": self._version(request)}

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        """Begin the answer, whose first frame says which version is spoken."""
        response = web.StreamResponse(headers={
            "Content-Type": wire.STREAM_TYPE, "Cache-Control": "no-store",
            wire.VERSIONS_HEADER: wire.versions_to_wire(*self._versions)})
        await response.prepare(request)
        await response.write(wire.frame(wire.WELCOME, {"version": self._version(request)}))
        return response


class _Place:
    """One of a bounded number of streams of a kind. Used on the loop's thread only."""

    def __init__(self, taken: dict[str, int], kind: str, most: int) -> None:
        self._taken, self._kind, self._most = taken, kind, most

    def __enter__(self) -> None:
        if self._taken[self._kind] >= self._most:
            raise SourceUnavailable(f"the member serves {self._most} such streams, the most that it may",
                                    hint="try again later")
        self._taken[self._kind] += 1

    def __exit__(self, *_: object) -> None:
        self._taken[self._kind] -= 1


def _message(made: dict[str, Any]) -> web.Response:
    return web.Response(body=wire.pack(made), content_type=wire.MESSAGE_TYPE)


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"{name}: {text[:40]!r} is not a number")
    return int(text)
