"""etcd beside a cluster: three nodes as processes on loopback, and clients that put.

A client is a connection to a node's JSON gateway with one put under way, and all clients are driven by one thread
without a library: what is measured is etcd, not its client. The gateway is a part of etcd and costs it CPU time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

_READY_S = 30.0
_SILENT_S = 10.0


def etcd_program() -> str | None:
    """Where etcd is, if it is here."""
    return shutil.which("etcd") or shutil.which("etcd", path="/usr/local/bin:/usr/bin:/usr/sbin")


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(number)]


class Etcd:
    """Three nodes in a directory. A context manager: they are killed at the end."""

    def __init__(self, directory: Path, program: str) -> None:
        self._directory, self._program = directory, program
        ports = free_ports(6)
        self.ports, self._peers = ports[:3], ports[3:]
        self._nodes: list[subprocess.Popen[bytes]] = []

    @property
    def coordinator(self) -> str:
        return "etcd://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def __enter__(self) -> Self:
        cluster = ",".join(f"n{n}=http://127.0.0.1:{port}" for n, port in enumerate(self._peers))
        try:
            for n, (port, peer) in enumerate(zip(self.ports, self._peers, strict=True)):
                client, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
                with (self._directory / f"etcd-{n}.log").open("ab") as log:
                    self._nodes.append(subprocess.Popen(
                        [self._program, "--name", f"n{n}", "--data-dir", str(self._directory / f"etcd-{n}"),
                         "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls",
                         other, "--initial-advertise-peer-urls", other, "--initial-cluster", cluster],
                        stdout=log, stderr=log, env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"}))
            for port in self.ports:
                self._wait_for(port)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for node in self._nodes:
            node.send_signal(signal.SIGKILL)
            node.wait()

    def _wait_for(self, port: int) -> None:
        end = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if _post(port, "/v3/kv/range", {"key": "YQ=="})["header"]:
                    return
            if time.monotonic() > end:
                raise RuntimeError(f"etcd is not ready after {_READY_S:.0f} s")
            time.sleep(0.05)

    def leader(self) -> int:
        """The port of the node that leads: a put elsewhere takes one more step."""
        for port in self.ports:
            status = _post(port, "/v3/maintenance/status", {})
            if status["leader"] == status["header"]["member_id"]:
                return port
        return self.ports[0]

    def puts(self, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Puts per second, and their latencies in milliseconds. Each puts 64 bytes under one of 1000 keys."""
        found: list[float] = []
        port = self.leader()
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
            for _ in range(clients):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.register(sock, selectors.EVENT_READ, _Client(sock))
            began = perf_counter()
            end = began + seconds
            waiting = [key.data for key in ready.get_map().values()]
            for number, client in enumerate(waiting):
                client.put(number)
            count, number = len(waiting), len(waiting)
            while count:
                events = ready.select(_SILENT_S)
                if not events:
                    raise RuntimeError(f"etcd did not answer for {_SILENT_S:.0f} s")
                for key, _ in events:
                    took = key.data.answered()
                    if took is None:
                        continue
                    found.append(took)
                    if perf_counter() < end:
                        key.data.put(number)
                        number += 1
                    else:
                        count -= 1
            return len(found) / (perf_counter() - began), found


class _Client:
    """One connection with one put under way."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._began = 0.0

    def put(self, number: int) -> None:
        body = json.dumps({"key": base64.b64encode(b"%d" % (number % 1000)).decode(),
                           "value": base64.b64encode(b"v" * 64).decode()}).encode()
        self._began = perf_counter()
        self._sock.sendall(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def answered(self) -> float | None:
        """Milliseconds, once the whole answer is there. Raises `RuntimeError` if it is not a good one."""
        data = self._sock.recv(65536)
        if not data:
            raise RuntimeError("etcd closed a connection")
        self._rest += data
        head, blank, body = self._rest.partition(b"\r\n\r\n")
        if not blank:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"etcd refused a put: {self._rest[:200]!r}")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                      if line.startswith(b"content-length:"))
        if len(body) < length:
            return None
        self._rest = body[length:]
        return (perf_counter() - self._began) * 1000


def _post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())
