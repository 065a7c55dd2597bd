"""S3 for tests, on loopback: versitygw, which keeps objects as files, moto, which keeps them in memory, and a server
that ignores conditions.

Without its binary, tests on versitygw say so by name and are skipped. `.ci/run` builds it if there is Go. Then they
fail instead if all faults are required: see `fault_rig.require`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fault_rig import require

KEY, SECRET, BUCKET = "test-key", "test-secret", "bucket"
_READY_S = 30


def credentials(port: int, *, secret: str = SECRET) -> dict[str, str]:
    """The environment for a server on loopback."""
    return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true"}


def use(patch: pytest.MonkeyPatch, port: int, *, secret: str = SECRET) -> None:
    """Have what is opened from now on use a server on loopback, and no proxy of this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in {**credentials(port, secret=secret), "NO_PROXY": "127.0.0.1"}.items():
        patch.setenv(name, value)


@contextlib.contextmanager
def versitygw(directory: Path) -> Iterator[int]:
    """Its port. The bucket is there."""
    binary = shutil.which("versitygw")
    if binary is None and shutil.which("go") is None:
        pytest.skip("fault 'versitygw' cannot be made here: neither versitygw nor Go is installed")
    require("versitygw", None if binary else "versitygw is not in the PATH (go install "
            "github.com/versity/versitygw/cmd/versitygw@latest)")
    assert binary is not None
    port, root = free_port(), directory / "objects"
    (root / BUCKET).mkdir(parents=True)
    command = [binary, "--quiet", "--port", f"127.0.0.1:{port}", "posix", str(root)]
    with _process(command, port, directory / "versitygw.log",
                  {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET, "PATH": os.environ["PATH"]}):
        yield port


@contextlib.contextmanager
def moto(directory: Path) -> Iterator[int]:
    """Its port. The bucket is there."""
    port = free_port()
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    with _process(command, port, directory / "moto.log", dict(os.environ)):
        made = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(made, timeout=_READY_S):
            yield port


@contextlib.contextmanager
def _process(command: list[str], port: int, log: Path, environ: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, env=environ) as process:
        try:
            end = time.monotonic() + _READY_S
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"{command[0]} is not ready: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
            yield
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[ThreadingHTTPServer]:
    """An HTTP server in threads of this process. Its attributes are the handler's `server`'s."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class IgnoresConditions(BaseHTTPRequestHandler):
    """Puts, gets and removes objects in `server.objects`. It does not know If-None-Match, as old S3 servers do not."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self._objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"", {"ETag": '"etag"'})

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = re.findall("<Key>([^<]*)</Key>", asked)
        for key in keys:
            self._objects.pop(f"/{BUCKET}/{key}", None)
        removed = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{removed}</DeleteResult>".encode())

    def do_GET(self) -> None:
        data = self._objects.get(self.path)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, data, {"ETag": '"etag"', "Last-Modified": "Sun, 29 Nov 2026 08:00:00 GMT"})

    @property
    def _objects(self) -> dict[str, bytes]:
        objects: dict[str, bytes] = self.server.objects  # type: ignore[attr-defined]
        return objects

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
