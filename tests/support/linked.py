"""Members of a cluster in one process, which call each other. Links can be cut, and members killed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from holdfast.engine.errors import SourceUnavailable
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.source.interface import Source
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store
from holdfast.replay.ha.errors import PeerUnavailable
from holdfast.replay.ha.peer.interface import Handler
from holdfast.replay.ha.peer.wire import HEARTBEAT, RECORDS, Frame


def until(reached: Callable[[], bool], patience: float = 40.0) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


class Network:
    """Who can reach whom. `cut`: pairs (from, to) of addresses whose calls fail."""

    def __init__(self) -> None:
        self.ends: dict[str, LinkedTransport] = {}
        self.cut: set[tuple[str, str]] = set()

    def isolate(self, address: str) -> None:
        """Cut every link from and to a member."""
        for other in self.ends:
            self.cut |= {(address, other), (other, address)}

    def mend(self) -> None:
        self.cut.clear()


class LinkedTransport:
    """The transport of one member."""

    def __init__(self, network: Network, address: str) -> None:
        self.address = address
        self.network = network
        self.handler: Handler | None = None
        self.store: Store[Any, Any] | None = None
        self.streams: list[Pipe] = []
        network.ends[address] = self

    def learn(self, token: str) -> None:
        pass

    def start(self, handler: Handler) -> None:
        self.handler = handler

    def show(self, store: Store[Any, Any] | None) -> None:
        self.store = store

    def peer(self, address: str) -> LinkedPeer:
        return LinkedPeer(self, address)

    def source(self, address: str) -> Source:
        store = self.reach(address).store
        if store is None or store.closed:
            raise SourceUnavailable(f"{address} has no store open")
        return LocalSource(store)

    def stop(self) -> None:
        self.handler = None
        for stream in self.streams:
            stream.close("stopped")

    def reach(self, address: str) -> LinkedTransport:
        end = self.network.ends.get(address)
        if (self.address, address) in self.network.cut or (address, self.address) in self.network.cut:
            raise PeerUnavailable(f"{address} does not answer {self.address}")
        if end is None or end.handler is None:
            raise PeerUnavailable(f"nothing listens at {address}") from ConnectionRefusedError(address)
        return end


class Pipe:
    """A stream of frames to a follower."""

    def __init__(self, end: LinkedTransport, reader: LinkedTransport) -> None:
        self._end, self._reader = end, reader
        self._frames: deque[Frame] = deque()
        self._news = threading.Condition()
        self.closed: str | None = None

    def _put(self, frame: Frame) -> bool:
        with self._news:
            if self.closed is not None:
                raise PeerUnavailable(self.closed)
            if len(self._frames) > 1000:
                return False
            self._frames.append(frame)
            self._news.notify_all()
            return True

    def send_records(self, records: Sequence[Record]) -> bool:
        return self._put(Frame(RECORDS, list(records)))

    def heartbeat(self, beat: dict[str, Any]) -> bool:
        return self._put(Frame(HEARTBEAT, beat))

    def wait_room(self, timeout: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: self.closed is not None or len(self._frames) <= 1000, timeout)

    def close(self, reason: str | BaseException) -> None:
        with self._news:
            self.closed = self.closed or str(reason)
            self._news.notify_all()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._news:
                if not self._news.wait_for(lambda: self._frames or self.closed is not None, 2.0):
                    raise PeerUnavailable("the stream is silent")
                if not self._frames:
                    if self.closed == "that is all":
                        return
                    raise PeerUnavailable(f"the stream has ended: {self.closed}")
                frame = self._frames.popleft()
                self._news.notify_all()
            self._reader.reach(self._end.address)
            yield frame


class LinkedPeer:
    """A client of another member."""

    def __init__(self, here: LinkedTransport, address: str) -> None:
        self._here = here
        self._address = address
        self._pipes: list[Pipe] = []
        self._hello: Mapping[str, Any] = {}

    def _handler(self) -> Handler:
        handler = self._here.reach(self._address).handler
        assert handler is not None
        return handler

    def status(self) -> dict[str, Any]:
        return self._handler().status()

    def promise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._handler().promise(request)

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        return self._handler().chain_at(txid, epoch)

    def command(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        return self._handler().command(verb, args)

    def follow(self, hello: Mapping[str, Any], after: Position) -> Iterator[Frame]:
        pipe = self._pipe()
        self._handler().open_stream({**hello, "after": after.txid, "chain": after.chain}, pipe)
        return iter(pipe)

    def _pipe(self) -> Pipe:
        end = self._here.reach(self._address)
        pipe = Pipe(end, self._here)
        self._pipes.append(pipe)
        end.streams.append(pipe)
        return pipe

    def acks(self, hello: Mapping[str, Any]) -> LinkedPeer:
        self._hello = hello
        return self

    def send(self, ack: Mapping[str, Any]) -> None:
        self._handler().acked({**ack, **self._hello})

    def fetch(self, after: Position, upto: int) -> Iterator[Frame]:
        pipe = self._pipe()
        self._handler().send_log({"after": after.txid, "chain": after.chain, "upto": upto}, pipe)
        return iter(pipe)

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        return self._handler().read_attachment(name, offset, length)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close("closed")

    def __enter__(self) -> LinkedPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pass
