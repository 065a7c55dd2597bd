"""What strangers may send to a backup service: a generator of hostile requests, and what sends many of them at once.

A request here is a list of acts on one connection: bytes to send, silence, reading, closing one half, or breaking off.
One number is one request. Over TLS the acts come after a handshake, or garbage and half a handshake in its place.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal

PATHS = ("/v1/info", "/v1/leases", "/v1/leases/x", "/v1/leases/x/image/state", "/v1/leases/x/blocks/state", "/v1/log",
         "/v1/consumers", "/v1/consumers/0", "/v1/health", "/health", "/metrics", "/", "//", "*", "/v1/../v1/info",
         "/%2e%2e/%2e%2e/etc/x", "/v1/leases/../../../../etc/passwd", "/v1/leases/%00", "/v1/leases/" + "a" * 3000,
         "/v1/info?" + "x=y&" * 900,
         "/\x1b[2J", "http://other/v1/info", "/v1/info#x", "/v1/chain/-1", "/v1/chain/" + "9" * 5000, "/\xff")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "G\x00T", "X" * 200,
           "PRI")
VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/9.9", "FTP/1.1", "")
TOKENS = ("", "x", "Bearer", "Bearer ", "Bearer wrong", "bearer " + "w" * 500, "Basic eDp5", "Bearer \x00",
          "Bearer \xff", "Bearer wrong, Bearer wrong")
BODIES = (b"", b"{}", b"[]", b"null", b"{", b'{"owner":"x","image":true,"ttl":1e400}', b'{"owner":' + b"[" * 3000,
          b'{"ttl":' + b"9" * 5000 + b"}", b"\xff\xfe", b'{"owner":"\\u001b[2J","image":false,"after":-1}',
          b"x" * 70_000, b"\x84\xa5known\xdd\xff\xff\xff\xff", b"\xdd\0\0\xff\xff" * 5000)
HEADERS = ("Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: " + "9" * 400,
           "Content-Length: 10\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked, identity",
           "Transfer-Encoding: \x0bchunked", "Range: bytes=" + "0-1," * 800, "Range: bytes=99999999999999999999-",
           "Expect: 100-continue", "Upgrade: websocket\r\nConnection: Upgrade", "Connection: close",
           "Host: a\r\nHost: b", " compacted: x", "no colon", ": nameless", "X: " + "y" * 9000, "X: a\r\n b",
           "Content-Encoding: gzip",
           "X-\x00: 1", "Accept-Encoding: " + "gzip," * 500, "Holdfast-Instance: \x1b[2J")
CHUNKS = (b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n\r\n", b"5;" + b"e" * 5000 + b"\r\n", b"zz\r\n",
          b"0\r\n")

Act = tuple[Literal["send", "wait", "read", "half", "cut"], bytes | float]


def request(drawn: Random) -> bytes:
    """One malformed, oversized, or only unauthorized request."""
    if drawn.random() < 0.08:
        return drawn.randbytes(drawn.choice((1, 20, 300, 9000)))
    head = f"{drawn.choice(METHODS)} {drawn.choice(PATHS)} {drawn.choice(VERSIONS)}"
    lines = [head, "Host: 127.0.0.1"] if drawn.random() < 0.9 else [head]
    if drawn.random() < 0.6:
        lines.append(f"Authorization: {drawn.choice(TOKENS)}")
    lines += drawn.sample(HEADERS, drawn.choice((0, 0, 1, 2, 4)))
    if drawn.random() < 0.03:
        lines += [f"H{number}: x" for number in range(drawn.choice((90, 2000)))]
    body = drawn.choice((*BODIES, *CHUNKS)) if drawn.random() < 0.5 else b""
    if body and drawn.random() < 0.7:
        lines.append(f"Content-Length: {len(body) + drawn.choice((0, 0, 0, -1, 1, 1000))}")
    end = drawn.choice(("\r\n", "\r\n", "\r\n", "\n", "\r"))
    return (end.join(lines) + end * 2).encode("latin-1") + body


def acts(drawn: Random) -> list[Act]:
    """What is done on one connection."""
    one = request(drawn)
    way = drawn.random()
    if way < 0.55:
        return [("send", one), ("read", 0.3)]
    if way < 0.7:  # pipelined, answers unread
        return [("send", one * drawn.choice((2, 5, 40)))]
    if way < 0.8:
        return [("send", one), ("half", 0.0), ("read", 0.3)]
    if way < 0.9:
        return [("send", one[: drawn.randrange(len(one) + 1)]), ("cut", 0.0)]
    at = drawn.randrange(len(one) + 1)
    return [("send", one[:at]), ("wait", drawn.choice((0.01, 0.05, 1.0))), ("send", one[at:]), ("read", 0.3)]


@dataclass
class Storm:
    """So many hostile requests to one port of this machine, `at_once` at a time.

    Attributes:
        seed, count: one seed and number, one request.
        tls: a client's context, or None.
        answers: beginnings of what came back, the last few.
        answered, refused: connections that were, and that were closed or not taken.
    """

    port: int
    seed: int
    count: int
    tls: ssl.SSLContext | None = None
    at_once: int = 24
    answered: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.answers: list[bytes] = []
        self._next = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._sender() for _ in range(self.at_once)))

    async def _sender(self) -> None:
        while self._next < self.count:
            number, self._next = self._next, self._next + 1
            drawn = Random(f"{self.seed}.{number}")
            try:
                async with asyncio.timeout(5):
                    said = await self._one(drawn)
            except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
                said = b""
            if said:
                self.answered += 1
                self.answers = [*self.answers[-200:], said]
            else:
                self.refused += 1

    async def _one(self, drawn: Random) -> bytes:
        plain = self.tls is None or drawn.random() < 0.2
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=None if plain else self.tls)
        said = b""
        try:
            if plain and self.tls is not None:  # neither a handshake nor the beginning of one
                writer.write(drawn.choice((request(drawn), b"\x16\x03\x01" + drawn.randbytes(drawn.choice((2, 300))),
                                           b"\x16\x03\x01\x40\x00\x01", b"\x80\x2e\x01\x03\x01", b"")))
                return said
            for act, what in acts(drawn):
                if act == "send":
                    assert isinstance(what, bytes)
                    writer.write(what)
                    await writer.drain()
                elif act == "wait":
                    await asyncio.sleep(float(what))
                elif act == "half":
                    if writer.can_write_eof():
                        writer.write_eof()
                elif act == "cut":
                    writer.transport.abort()
                    return said
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(float(what)):
                            said = await reader.read(4096)
            return said
        finally:
            writer.transport.abort()
