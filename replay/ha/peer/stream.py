"""The sending end of a log stream: threads put frames in, the event loop writes them out.

A burst costs one wake-up of the loop and one write: frames that come while a wake-up is under way join it. The bytes go
to the transport at once, past aiohttp's writer, which would need a task's turn for each. What the reader has not taken
is counted, so memory is bounded by `most_bytes` plus one batch.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  real sockets, and their time
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ....engine.env import REAL, Env
from ....engine.model.records import Record
from ..errors import PeerUnavailable
from . import wire

if TYPE_CHECKING:
    from aiohttp import web

_WATCH_SECONDS = 0.25
"""How often a stream with nothing to send looks whether its reader is still there."""
_LIKED_BYTES = 64 << 10
"""What the transport may hold before the next burst waits for it: asyncio's own bound."""


class LogStream:
    """One log stream to one member. Any thread may call any method. None but `wait_room` waits.

    Attributes:
        closed: why the stream ended, or None while it is open.
    """

    def __init__(self, *, most_bytes: int = 8 << 20, env: Env = REAL) -> None:
        """`most_bytes`: what may wait for the reader before the stream is `full`."""
        self.closed: str | None = None
        self._most = most_bytes
        self._here = env.scheduler.here
        self._serves: int | None = None  # the loop's thread
        self._room = env.scheduler.condition()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._unsent = 0  # in the transport's buffer
        self._scheduled = False
        self._ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._wake: asyncio.Event | None = None

    # --- from the member's threads ---------------------------------------------------------------------------------

    def send_records(self, records: Sequence[Record]) -> bool:
        """Send records that follow those sent before. False, and nothing is taken, if the stream is full. O(bytes).
        Raises `PeerUnavailable` if the stream has ended."""
        if not records:
            return True
        if self.full:
            self._check()
            return False
        frames: list[bytes] = []
        batch: list[Record] = []
        size = 0
        for record in records:
            if batch and (size + len(record.payload) > wire.BATCH_BYTES or len(batch) == wire.MAX_BATCH_RECORDS):
                frames.append(wire.records_frame(batch))
                batch, size = [], 0
            batch.append(record)
            size += len(record.payload) + len(record.header)
        frames.append(wire.records_frame(batch))
        return self._put(b"".join(frames))

    def heartbeat(self, told: dict[str, Any]) -> bool:
        """Send a heartbeat. False, and nothing is taken, if the stream is full. Raises `PeerUnavailable`."""
        return self._put(wire.frame(wire.HEARTBEAT, told))

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that nothing more is taken."""
        return self._pending_bytes + self._unsent >= self._most

    def wait_room(self, timeout: float) -> bool:
        """Wait until the stream is not full, at most `timeout` seconds. Returns whether it is. Raises
        `PeerUnavailable` if the stream has ended."""
        with self._room:
            self._room.wait_for(lambda: self.closed is not None or not self.full, timeout)
            self._check()
            return not self.full

    def close(self, reason: str | BaseException) -> None:
        """End the stream after what was put in. The reader is told the reason: a text, or an error that it raises. May
        be called twice."""
        last = wire.error_frame(reason) if isinstance(reason, BaseException) else wire.frame(wire.END, reason[:2000])
        with self._room:
            if self.closed is not None:
                return
            self.closed = str(reason)
            self._ending = True
            self._pending.append(last)
            self._schedule()
            self._room.notify_all()

    def _check(self) -> None:
        if self.closed is not None:
            raise PeerUnavailable(f"the log stream has ended: {self.closed}")

    def _put(self, data: bytes) -> bool:
        with self._room:
            self._check()
            if self.full:
                return False
            self._pending.append(data)
            self._pending_bytes += len(data)
            self._schedule()
        return True

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            try:
                if self._serves == self._here():  # it is awake, and need not be woken through a socket
                    self._loop.call_soon(self._flush)
                else:
                    self._loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop is closed
                self.closed = self.closed or "the service has stopped"

    # --- on the loop's thread --------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what is pending. While the transport holds more than it likes, `serve` waits for it and then flushes.
        """
        transport = self._transport
        assert transport is not None
        assert self._wake is not None
        with self._room:
            self._scheduled = False
            if self._unsent:
                return
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            if pending and not transport.is_closing():
                data = pending[0] if len(pending) == 1 else b"".join(pending)
                transport.write(b"%x\r\n%b\r\n" % (len(data), data))
                left = transport.get_write_buffer_size()
                self._unsent = left if left > _LIKED_BYTES else 0
            if self._unsent or self._ending or transport.is_closing():
                self._wake.set()
            else:
                self._room.notify_all()

    async def serve(self, request: web.Request, response: web.StreamResponse, write_seconds: float) -> None:
        """Send until the stream is closed. Raises `ConnectionError` if the reader has gone, `TimeoutError` if it does
        not take what is sent in `write_seconds`."""
        transport = request.transport
        gone = "the reader has gone"
        if transport is None:
            self._end(gone)
            raise ConnectionResetError(gone)
        self._wake = asyncio.Event()
        self._transport = transport
        with self._room:
            self._loop, self._serves = asyncio.get_running_loop(), self._here()
        try:
            while True:
                self._flush()
                while self._unsent:
                    async with asyncio.timeout(write_seconds):
                        await request.writer.drain()
                    with self._room:
                        self._unsent = 0
                        self._room.notify_all()
                    self._flush()
                if transport.is_closing():
                    raise ConnectionResetError(gone)
                if self._ending and not self._pending:
                    return
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WATCH_SECONDS):
                        await self._wake.wait()
        except TimeoutError:
            gone = "the reader does not take what is sent"
            raise TimeoutError(gone) from None
        finally:
            self._end(gone)

    def _end(self, reason: str) -> None:
        with self._room:
            self._loop = None
            self._pending, self._pending_bytes, self._unsent = [], 0, 0
            self.closed = self.closed or reason
            self._room.notify_all()
