"""A proxy between a client of S3 and its server, which spoils single requests: the answer is lost, cut, or is not that
of the server."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal, get_args

from s3_rig import served

Fault = Literal["answer lost", "request lost", "reset", "slow down", "failed after it", "cut body", "conflict"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""What becomes of a request:

- `answer lost`: the server does it, and the connection ends without an answer.
- `request lost`: the connection ends, and the server never hears of it.
- `reset`: the same, before the request is read.
- `slow down`: it is refused with status 503, as S3 does under load. The server never hears of it.
- `failed after it`: the server does it, and the answer has status 500.
- `cut body`: of the answer's body the first half comes, and then the connection ends.
- `conflict`: it is refused with status 409, as S3 does while another put of the name goes on.
"""

_REFUSED: dict[Fault, tuple[int, str]] = {
    "slow down": (503, "SlowDown"), "failed after it": (500, "InternalError"),
    "conflict": (409, "ConditionalRequestConflict")}


@dataclass
class Faults:
    """Which requests are spoiled, and what has come.

    Attributes:
        port: where the proxy listens.
        spoiled: by the number of the request, from 1.
        always: what becomes of every other request.
        requests: the methods of the requests that came, in order.
        struck: how many were spoiled.
    """

    port: int = 0
    spoiled: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    requests: list[str] = field(default_factory=list)
    struck: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, spoiled: dict[int, Fault] | None = None, always: Fault | None = None) -> None:
        """Count from 1 again."""
        with self.lock:
            self.spoiled, self.always, self.requests, self.struck = spoiled or {}, always, [], 0

    def next(self, method: str) -> Fault | None:
        with self.lock:
            self.requests.append(method)
            fault = self.spoiled.get(len(self.requests), self.always)
            self.struck += fault is not None
            return fault


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Faults]:
    """A proxy before a server on loopback."""
    faults = Faults()
    with served(_Handler, faults=faults, to=port) as server:
        faults.port = server.server_address[1]
        yield faults


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else each answer in two parts waits 40 ms
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        faults: Faults = self.server.faults  # type: ignore[attr-defined]
        fault = faults.next(self.command)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._end()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "request lost":
            self._end()
        elif fault in ("slow down", "conflict"):
            self._refuse(fault)
        else:
            status, headers, data = self._forward(body)
            if fault == "answer lost":
                self._end()
            elif fault == "failed after it":
                self._refuse(fault)
            else:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                if fault == "cut body":
                    self.wfile.write(data[: len(data) // 2])
                    self._end()
                else:
                    self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=30)  # type: ignore[attr-defined]
        with contextlib.closing(server):
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                server.putheader(name, value)
            server.endheaders(body or None)
            answer = server.getresponse()
            data = answer.read()
            length = answer.headers["Content-Length"] or str(len(data))
            headers = [(name, value) for name, value in answer.headers.items()
                       if name.lower() not in ("connection", "transfer-encoding", "content-length")]
            return answer.status, [*headers, ("Content-Length", length)], data

    def _refuse(self, fault: Fault) -> None:
        status, code = _REFUSED[fault]
        data = f"<Error><Code>{code}</Code><Message>Spoiled.</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _end(self) -> None:
        """End the connection, with nothing more sent."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass
