"""What the tests of the members' transport share: a handler that records, and a store's service that carries it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from source_rig import new_store, port_of

from holdfast.engine.errors import NotFound
from holdfast.engine.model.positions import ID_BYTES, Position
from holdfast.engine.model.records import Record
from holdfast.engine.source.http.service import BackupService
from holdfast.replay.ha.peer.client import PeerClient
from holdfast.replay.ha.peer.server import PeerRoutes
from holdfast.replay.ha.peer.stream import LogStream

TOKEN = "the-cluster-token-of-tests"
START = Position(0, bytes(ID_BYTES))


def records(count: int, payload: bytes = b"payload", after: Position = START) -> list[Record]:
    made = []
    for _ in range(count):
        made.append(Record.make(after.chain, after.txid + 1, 1, 1000 + after.txid, 1, payload))
        after = made[-1].position
    return made


class Handler:
    """Answers as the test says, and keeps what came."""

    def __init__(self) -> None:
        self.streams: list[LogStream] = []
        self.hellos: list[dict[str, Any]] = []
        self.acks: list[dict[str, Any]] = []
        self.came = threading.Condition()
        self.most_bytes = 8 << 20
        self.promised: Callable[[dict[str, Any]], dict[str, Any]] = lambda request: {"promised": request["epoch"]}
        self.on_ack: Callable[[dict[str, Any]], None] = lambda ack: None

    def status(self) -> dict[str, Any]:
        return {"name": "a", "role": "primary"}

    def promise(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.promised(request)

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        if txid > 100:
            raise NotFound(f"there is no transaction {txid}")
        return bytes([txid]) * ID_BYTES

    def command(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        return {"verb": verb, **args}

    def open_stream(self, hello: dict[str, Any]) -> LogStream:
        stream = LogStream(most_bytes=self.most_bytes)
        with self.came:
            self.hellos.append(hello)
            self.streams.append(stream)
            self.came.notify_all()
        return stream

    def acked(self, ack: dict[str, Any]) -> None:
        self.on_ack(ack)
        with self.came:
            self.acks.append(ack)
            self.came.notify_all()

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        return (name.encode() * 1000)[offset : offset + length]

    def health(self, kind: str, query: Mapping[str, str]) -> tuple[bool, dict[str, Any]]:
        return kind in ("primary", "health") or query.get("lag") == "5", {
            "kind": kind, "name": "a", "role": "primary"}

    def metrics(self) -> str:
        return "holdfast_member_epoch 3\n"

    def page(self) -> bytes:
        return "<p>ménage".encode()

    def wait(self, done: Callable[[], Any]) -> None:
        with self.came:
            assert self.came.wait_for(done, 10)

    def stream(self, number: int = 0) -> LogStream:
        self.wait(lambda: len(self.streams) > number)
        return self.streams[number]


@contextmanager
def member(directory: Path, handler: Handler, *, tls: Path | None = None, token: str | None = TOKEN,
           **options: Any) -> Iterator[str]:
    """A store whose service carries the handler. Yields its address."""
    service = BackupService(online_backup_server="127.0.0.1:0", tls_certificate=tls,
                            extension=PeerRoutes(handler, token, **options))
    with new_store(directory, service=service) as store:
        yield f"127.0.0.1:{port_of(store)}"


@contextmanager
def talking(address: str, token: str = TOKEN, **options: Any) -> Iterator[PeerClient]:
    client = PeerClient(address, token, **options)
    try:
        yield client
    finally:
        client.close()
