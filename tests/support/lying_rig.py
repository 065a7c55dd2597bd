"""A source that lies: between a client and a real one, it says something else than that one did."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any

from holdfast.engine.source.http import wire

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63 - 1, 2**63, 2**64, 10**400, 1.5, 1e308, "", "x", "\x1b[2J", "\ud800", "../x",
    "a" * 5000, "a/" * 600 + "a", "00" * 16, "zz" * 16, [], {}, [[]], [{}], {"txid": 0},
    {"txid": -1, "chain": "00" * 16}, [{"name": "\x1b[2J", "size": 1}], [{"name": "a" * 400, "size": 2**60}] * 2)
HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Length", "9" * 5000), ("Content-Length", "-1"), ("Content-Length", "0"), ("Content-Length", "1"),
    ("Transfer-Encoding", "chunked"), ("Content-Range", "bytes 0-1/" + "9" * 5000), ("Content-Range", "bytes 0-1/0"),
    ("Holdfast-Instance", "\x1b[2J"), ("Holdfast-Instance", "ab" * 16), ("Holdfast-Digest", "xxh3-128=00"),
    ("Connection", "close"), ("Content-Encoding", "gzip"), ("X", "y" * 70_000), ("Content-Type", "\xff"))


@dataclass
class Answer:
    """What the real source said, to be changed."""

    method: str
    path: str
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def say(self, value: Any) -> None:
        self.body = json.dumps(value).encode()

    def digested(self) -> None:
        """Make length and digest those of the body as it is now."""
        self.headers["Content-Length"] = str(len(self.body))
        if "Holdfast-Digest" in self.headers:
            self.headers["Holdfast-Digest"] = wire.digest(self.body)

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} X", *(f"{k}: {v}" for k, v in self.headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1", "replace")


Lie = Callable[[Answer], Iterable[bytes | float] | None]
"""Change the answer, or return what is sent instead: bytes, and seconds of silence."""


class Liar:
    """Answers at `port` for the source at `real`."""

    def __init__(self, real: int, lie: Lie) -> None:
        self.lie = lie
        self._real = real
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as lines, suppress(OSError, http.client.HTTPException, ValueError):
            sock.settimeout(20)
            while line := lines.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while field := lines.readline().strip().decode("latin-1"):
                    name, _, value = field.partition(": ")
                    headers[name] = value
                body = lines.read(int(headers.pop("Content-Length", "0")))
                headers.pop("Host", None)
                answer = self._ask(method, path, headers, body)
                parts = self.lie(answer)
                if parts is None:
                    sock.sendall(answer.head() + answer.body)
                    continue
                for part in parts:
                    if self._done.is_set():
                        return
                    if isinstance(part, float):
                        self._done.wait(part)
                    else:
                        sock.sendall(part)
                return

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._real, timeout=20)
        try:
            connection.request(method, path, body=body or None, headers=headers)
            said = connection.getresponse()
            data = said.read()
            kept = {k: v for k, v in said.getheaders() if k.startswith(("Content-", "Holdfast-"))}
            return Answer(method, path, said.status, kept | {"Content-Length": str(len(data))}, data)
        finally:
            connection.close()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


def lie_by_chance(random: Random, often: float) -> Lie:
    """One that changes now and then what it answers, in each of the ways that there are."""

    def lie(answer: Answer) -> Iterable[bytes | float] | None:
        if random.random() > often:
            return None
        way = random.randrange(8)
        if way == 0:
            name, value = random.choice(HEADERS)
            answer.headers[name] = value
        elif way == 1:
            answer.headers.pop(random.choice([*answer.headers]))
        elif way == 2:
            answer.status = random.choice([100, 101, 204, 206, 301, 400, 401, 404, 410, 500, 503, 999])
        elif way == 3:
            answer.say({"error": random.choice([*wire._CLASSES, "RuntimeError", 7]), "message": random.choice(ODD),
                        "hint": random.choice(ODD)})
            answer.status = random.choice([400, 401, 403, 404, 410, 500])
            answer.digested()
        elif way == 4:
            data = bytearray(answer.head() + answer.body)
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            return [bytes(data)]
        elif way == 5:
            data = bytearray(answer.head() + answer.body)
            return [bytes(data[: random.randrange(len(data))])]
        elif "json" in answer.headers.get("Content-Type", ""):
            answer.say(_odd(random, answer.json()))
            answer.digested()
        elif answer.body:
            body = bytearray(answer.body)
            at = random.randrange(len(body))
            body[at : at + random.randrange(5)] = random.randbytes(random.randrange(9))
            answer.body = bytes(body)
            answer.digested()
        return None

    return lie


def _odd(random: Random, value: Any) -> Any:
    """The value with one of its parts odd."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        name = random.choice([*value])
        if random.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: _odd(random, value[name])}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        return [*value[:at], _odd(random, value[at]), *value[at + 1 :]]
    return random.choice(ODD)
