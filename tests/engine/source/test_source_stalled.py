"""Peers that fall silent. Clients that ask for an image and do not take it: neither other clients nor the store's
closing wait for them. Sources that stop in the middle of an answer: the client waits no longer than it may."""

from __future__ import annotations

import io
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from holdfast.engine import BulkLoad, GraphStore, Settings
from holdfast.engine.env import Clock
from holdfast.engine.source.http.client import connect
from holdfast.engine.source.http.connection import _Timed
from holdfast.engine.source.http.limits import Limits
from holdfast.engine.source.interface import CHUNK_BYTES

TOKEN = "a-token-of-some-length"


@pytest.mark.timeout(45)  # less than the server gives a client to take a piece
def test_stalled_clients_hold_up_nobody(tmp_path: Path) -> None:
    with ExitStack() as stalled, GraphStore.open(tmp_path / "graph", online_backup_server=":0", token=TOKEN,
                                                 settings=Settings(wait_s=5)) as store:
        pairs = np.random.default_rng(1).integers(0, 30_000, (200_000, 2))
        store.bulk(BulkLoad(nodes=30_000, labels="P", edges=pairs, edge_type="K", relative=True))
        assert store.backup_uri is not None
        port = int(store.backup_uri.rsplit(":", 1)[1])
        with connect("127.0.0.1", port, token=TOKEN) as source:
            grant = source.lease("test", image=True)
            (file,) = grant.files
            assert file.size > 2 * CHUNK_BYTES  # large pieces go from a thread straight into the socket
            for _ in range(Limits().streams - 1):
                sock = stalled.enter_context(closing(socket.socket()))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(("127.0.0.1", port))
                sock.sendall(f"GET /v1/leases/{grant.id}/image/{file.name} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                             f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
                assert sock.recv(12) == b"HTTP/1.1 200"
            for offset in range(0, file.size, CHUNK_BYTES):
                source.read_image(grant.id, file.name, offset, min(CHUNK_BYTES, file.size - offset))
            with store.transaction() as tx:
                tx.add_node("P")
        store.close()  # with all of them still connected
        assert store.closed


def test_no_silence_is_longer_than_the_time_out() -> None:
    """A piece of a file may take a minute to come; a source that says nothing was waited for as long."""
    class OneByOne(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:1])

    class Socket:
        waits: ClassVar[list[float]] = []

        def makefile(self, *_: object, **how: object) -> io.BytesIO:
            return OneByOne(b"xy")

        def settimeout(self, seconds: float) -> None:
            self.waits.append(seconds)

    timed = _Timed(cast(socket.socket, Socket()), Clock(), 0.5)
    timed.allow(2.0, 64.0)
    assert timed.makefile("rb").read(2) == b"xy"
    assert Socket.waits[:2] == [2.0, 0.5]
