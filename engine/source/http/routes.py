"""What can be asked of a source over HTTP.

===========================================  ==========================================================================
GET /v1/health                               whether it answers; needs no token. Asked with a random number in
                                             Holdfast-Challenge it proves who it is, in Holdfast-Proof (`discovery`)
GET /v1/store                                what this store is and where it stands
GET /v1/store/chain/{txid}                   the position at a transaction
GET, POST /v1/leases                         list them; take one: {"owner", "image", "after", "ttl"}
PUT, DELETE /v1/leases/{id}                  renew, release
POST /v1/leases/{id}/confirm                 whether it held throughout, and how far the copy must be replayed
POST /v1/leases/{id}/content                 the digest of what is published now, by a full walk
GET /v1/leases/{id}/image/{name}             a file of the image, whole or by Range
GET /v1/leases/{id}/attachments/{name}       a bulk load's file, whole or by Range
GET /v1/leases/{id}/log?after=&chain=&upto=  the records after a position
GET /v1/consumers                            list them, and what log is kept for each
PUT, DELETE /v1/consumers/{id}               register one: {"name", "position"}; drop it
GET /v1/metrics                              figures for Prometheus
GET /                                        a page for people
===========================================  ==========================================================================

A range of at most `CHUNK_BYTES` is read into memory once, hashed, and sent with its digest. A longer one is streamed
without a digest, for curl. No name from a request is used as a path: an image's files are looked up in its own list,
and an attachment's name must have exactly the form that the kit gives.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  real sockets, and their time
import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from aiohttp import web

from ...env import Env, Lock
from ...env.pool import Pool
from ...errors import HoldfastError, InvalidInput
from ...model.positions import Position
from ...model.records import Record
from ...store.store import Store
from ..interface import CHUNK_BYTES, MemberInfo, SourceInfo, check_blocks, lacking
from ..local import LocalSource
from . import status, wire
from .limits import PIECE_BYTES, Counters, Limits

T = TypeVar("T")

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_NUMBER = re.compile(r"\d{1,18}")
_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 2000


class Server(Protocol):
    """What the handlers need from the server that calls them. `streams`, `patient`, `small`: its pools of threads."""

    env: Env
    limits: Limits
    counters: Counters
    streams: Pool
    patient: Pool
    small: Pool

    @property
    def store(self) -> Store[Any, Any]: ...
    @property
    def source(self) -> LocalSource: ...
    def proof(self, request: web.Request) -> str | None: ...
    async def blocking(self, work: Callable[[], T], pool: Pool | None = None) -> T: ...
    async def body(self, request: web.Request, form: Literal["JSON", "msgpack"] = "JSON") -> dict[str, Any]: ...
    async def write(self, request: web.Request, response: web.StreamResponse, *pieces: bytes,
                    rest: float = 0.0) -> None: ...
    async def turn(self, slots: asyncio.Semaphore) -> None: ...


class Routes:
    """The handlers of one server."""

    def __init__(self, server: Server, more_metrics: Callable[[], str] | None = None,
                 member: Callable[[], MemberInfo | None] | None = None) -> None:
        self._more_metrics = more_metrics
        self._member = member
        self._server = server
        self._slots = asyncio.Semaphore(server.limits.streams)

    @property
    def _source(self) -> LocalSource:
        return self._server.source

    @property
    def _store(self) -> Store[Any, Any]:
        return self._server.store

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page), web.get("/v1/health", self.health), web.get("/v1/metrics", self.metrics),
            web.get("/v1/store", self.info), web.get("/v1/store/chain/{txid}", self.chain),
            web.get("/v1/leases", self.leases), web.post("/v1/leases", self.lease),
            web.put("/v1/leases/{id}", self.renew), web.delete("/v1/leases/{id}", self.release),
            web.post("/v1/leases/{id}/confirm", self.confirm), web.post("/v1/leases/{id}/content", self.content),
            web.get("/v1/leases/{id}/image/{name:.+}", self.image, allow_head=False),
            web.post("/v1/leases/{id}/blocks/{name:.+}", self.blocks),
            web.get("/v1/leases/{id}/attachments/{name}", self.attachment, allow_head=False),
            web.get("/v1/leases/{id}/log", self.log, allow_head=False),
            web.get("/v1/consumers", self.slots), web.put("/v1/consumers/{id}", self.register),
            web.delete("/v1/consumers/{id}", self.drop),
        ]

    # --- about the store -------------------------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        shown = self._server.proof(request)
        return web.json_response({"status": "ok"}, headers={wire.PROOF_HEADER: shown} if shown else None)

    async def metrics(self, request: web.Request) -> web.Response:
        more = self._more_metrics
        text = await self._server.blocking(lambda: status.metrics(self._source, self._store, self._server.counters)
                                           + ("" if more is None else more()))
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def page(self, request: web.Request) -> web.Response:
        text = await self._server.blocking(lambda: status.page(self._source, self._store))
        return web.Response(text=text, content_type="text/html")

    async def info(self, request: web.Request) -> web.Response:
        def told() -> SourceInfo:
            info = self._source.info()
            return info if self._member is None else replace(info, member=self._member())

        return web.json_response(wire.info_to_wire(await self._server.blocking(told)))

    async def chain(self, request: web.Request) -> web.Response:
        txid = _number(request.match_info["txid"], "a transaction's number")
        chain = await self._server.blocking(lambda: self._source.chain_at(txid))
        return web.json_response(wire.position_to_wire(Position(txid, chain)))

    # --- leases ----------------------------------------------------------------------------------------------------

    async def leases(self, request: web.Request) -> web.Response:
        leases = await self._server.blocking(self._source.leases)
        return web.json_response({"leases": [
            {"id": s.id, "owner": s.owner, "after": s.txid, "image": s.has_image, "ttl": s.ttl, "age": round(s.age, 3),
             "remaining": round(s.remaining, 3), "readers": s.uses} for s in leases]})

    async def lease(self, request: web.Request) -> web.Response:
        body = await self._server.body(request)
        asked = _read("a lease", lambda d: (str(d["owner"]), bool(d.get("image", False)), float(d.get("ttl", 60.0)),
                                            wire.position_from_wire(d["after"]) if d.get("after") else None), body)
        owner, image, ttl, after = asked
        server = self._server
        grant = await server.blocking(lambda: self._source.lease(owner, image=image, after=after, ttl=ttl),
                                      server.patient if image else server.small)
        if request.transport is None or request.transport.is_closing():  # the client has gone and cannot release it
            await self._server.blocking(lambda: self._source.release(grant.id))
        return web.json_response(wire.grant_to_wire(grant), status=201)

    async def renew(self, request: web.Request) -> web.Response:
        await self._server.blocking(lambda: self._source.renew(request.match_info["id"]))
        return web.json_response({})

    async def release(self, request: web.Request) -> web.Response:
        await self._server.blocking(lambda: self._source.release(request.match_info["id"]))
        return web.json_response({})

    async def confirm(self, request: web.Request) -> web.Response:
        made = await self._server.blocking(lambda: self._source.confirm(request.match_info["id"]),
                                           self._server.patient)
        return web.json_response(wire.confirmation_to_wire(made))

    async def content(self, request: web.Request) -> web.Response:
        made = await self._server.blocking(lambda: self._source.content_digest(request.match_info["id"]),
                                           self._server.patient)
        return web.json_response(wire.content_to_wire(made))

    # --- bytes -----------------------------------------------------------------------------------------------------

    async def image(self, request: web.Request) -> web.StreamResponse:
        lease, name, source = request.match_info["id"], request.match_info["name"], self._source
        return await self._send_file(request, lambda: source.image_size(lease, name),
                                     partial(source.read_image_in_pieces, lease, name), source.rest)

    async def attachment(self, request: web.Request) -> web.StreamResponse:
        lease, name, source = request.match_info["id"], request.match_info["name"], self._source
        return await self._send_file(request, lambda: source.attachment_size(lease, name),
                                     lambda at, length, _: [source.read_attachment(lease, name, at, length)])

    async def blocks(self, request: web.Request) -> web.StreamResponse:
        lease, name, source = request.match_info["id"], request.match_info["name"], self._source
        offset, length, block_bytes, known = _read("a wish for blocks", wire.wish_from_wire,
                                                   await self._server.body(request, "msgpack"))

        def made() -> tuple[bytes, str]:
            check_blocks(length, block_bytes, known)
            blocks = lacking(source.read_image(lease, name, offset, length), block_bytes, known)
            data = b"".join((bytes(block is None for block in blocks), *(b for b in blocks if b is not None)))
            return data, wire.digest(data)

        await self._server.turn(self._slots)
        try:
            data, digest = await self._server.blocking(made, self._server.streams)
            response = self._stream(wire.BLOCKS_TYPE, 200)
            response.content_length = len(data)
            response.headers[wire.DIGEST_HEADER] = digest
            await response.prepare(request)
            with _no_way_back():
                await self._server.write(request, response, data, rest=self._source.rest(PIECE_BYTES))
            return response
        finally:
            self._slots.release()

    async def _send_file(self, request: web.Request, size_of: Callable[[], int],
                         read: Callable[[int, int, int], list[bytes]],
                         rest_after: Callable[[int], float] = lambda size: 0.0) -> web.StreamResponse:
        """`read`: gives so many bytes from an offset on, in pieces of a size at most. `rest_after`: how long to rest
        after so many bytes, seconds."""
        asked = request.headers.get("Range")

        def chunk(start: int, stop: int) -> tuple[list[bytes], float]:
            """Up to a chunk, in pieces; and how long to rest after each, seconds."""
            rest, length = rest_after(PIECE_BYTES), min(stop - start, CHUNK_BYTES)
            return read(start, length, PIECE_BYTES if rest else CHUNK_BYTES) if length > 0 else [], rest

        def begin() -> tuple[int, int, int, list[bytes], float, str]:
            size = size_of()
            start, stop = _resolve(asked, size)
            pieces, rest = chunk(start, stop)
            return size, start, stop, pieces, rest, wire.digest(*pieces) if stop - start <= CHUNK_BYTES else ""

        await self._server.turn(self._slots)
        try:
            size, start, stop, pieces, rest, digest = await self._server.blocking(begin, self._server.streams)
            if stop < start:
                body = wire.error_to_wire(InvalidInput(f"there are {size} bytes, and {asked} was asked for"))[1]
                return web.json_response(body, status=416, headers={"Content-Range": f"bytes */{size}"})
            response = self._stream("application/octet-stream", 200 if stop - start == size else 206)
            response.content_length = stop - start
            response.headers["Accept-Ranges"] = "bytes"
            if response.status == 206:
                response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            if digest:
                response.headers[wire.DIGEST_HEADER] = digest
            await response.prepare(request)
            with _no_way_back():
                while True:
                    await self._server.write(request, response, *pieces, rest=rest)
                    start += CHUNK_BYTES
                    if start >= stop:
                        return response
                    pieces, rest = await self._server.blocking(partial(chunk, start, stop), self._server.streams)
        finally:
            self._slots.release()

    async def log(self, request: web.Request) -> web.StreamResponse:
        query, lease = request.query, request.match_info["id"]
        after = _read("a position", wire.position_from_wire,
                      {"txid": _number(query.get("after", ""), "after"), "chain": query.get("chain", "")})
        upto = _number(query.get("upto", ""), "upto")
        await self._server.turn(self._slots)
        batches = _Batches(after, self._source.read_log(lease, after, upto), self._server.env.scheduler.lock())
        try:
            data = await self._server.blocking(batches.next, self._server.streams)
            if batches.error is not None and not data:
                raise batches.error
            response = self._stream(wire.RECORDS_TYPE, 200)
            await response.prepare(request)
            while True:
                await self._server.write(request, response, data)
                if batches.ended:
                    return response
                if batches.error is not None:
                    await self._server.write(request, response, wire.error_frame(batches.error))
                    return response
                reading = asyncio.ensure_future(self._server.blocking(batches.next, self._server.streams))
                while not (await asyncio.wait({reading}, timeout=self._server.limits.heartbeat_seconds))[0]:
                    await self._server.write(request, response, wire.HEARTBEAT)
                data = reading.result()
        finally:
            await self._server.blocking(batches.close, self._server.streams)
            self._slots.release()

    def _stream(self, content_type: str, code: int) -> web.StreamResponse:
        return web.StreamResponse(status=code, headers={
            "Content-Type": content_type, wire.INSTANCE_HEADER: self._store.instance, "Cache-Control": "no-store"})

    # --- slots -------------------------------------------------------------------------------------------------

    async def slots(self, request: web.Request) -> web.Response:
        return web.json_response(wire.slots_to_wire(await self._server.blocking(self._source.slots)))

    async def drop(self, request: web.Request) -> web.Response:
        await self._server.blocking(lambda: self._source.drop(request.match_info["id"]))
        return web.json_response({})

    async def register(self, request: web.Request) -> web.Response:
        body = await self._server.body(request)
        name, position = _read("a slot", lambda d: (str(d["name"]), wire.position_from_wire(d["position"])), body)
        await self._server.blocking(lambda: self._source.register(request.match_info["id"], name, position))
        return web.json_response({})


class _Batches:
    """A record stream in pieces of bounded size. Each piece is made in the thread that asks for it.

    Attributes:
        ended: the end frame has been returned.
        error: the error that ended the stream, after the records that `next` returned last.
    """

    def __init__(self, after: Position, records: Generator[Record], lock: Lock) -> None:
        self._lock = lock  # the answer may be cancelled while a thread makes its next piece
        self.ended = False
        self.error: Exception | None = None
        self._last = after
        self._records = records

    def next(self) -> bytes:
        frames: list[bytes] = []
        with self._lock:
            try:
                self._fill(frames)
            except Exception as error:
                self.error = error
        return b"".join(frames)

    def _fill(self, frames: list[bytes]) -> None:
        size = 0
        for record in self._records:
            frame = wire.record_frame(record)
            frames.append(frame)
            size += len(frame)
            self._last = record.position
            if size >= _BATCH_BYTES or len(frames) >= _BATCH_RECORDS:
                return
        frames.append(wire.end_frame(self._last))
        self.ended = True

    def close(self) -> None:
        """End the read. That also ends its use of the lease."""
        with self._lock:
            self._records.close()


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"{what}: {text[:40]!r} is not a number")
    return int(text)


def _read(what: str, make: Callable[[Any], Any], data: Any) -> Any:
    try:
        return make(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(f"not {what}: {error}") from error


def _resolve(asked: str | None, size: int) -> tuple[int, int]:
    """Start and end of the bytes to send. A header that is not a single range is ignored. For a range outside of the
    file, the end is before the start."""
    match = _RANGE.fullmatch(asked.strip()) if asked else None
    if match is None or match[0] == "bytes=-":
        return 0, size
    first, last = match[1], match[2]
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    return (start, stop) if start < stop else (1, 0)


@contextlib.contextmanager
def _no_way_back() -> Iterator[None]:
    """Once the answer has begun, an error can only cut it off; the lengths tell the client."""
    try:
        yield
    except HoldfastError as error:
        raise ConnectionError(f"cut off: {error}") from error
