"""Members of a cluster in one process, which call each other, on one coordinator in memory. Links can be cut, and
members killed."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...engine.contract.engine import Engine
from ...engine.errors import SourceUnavailable
from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.source.interface import Source
from ...engine.source.local import LocalSource
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from ...engine.testing.support.crash_images import copy_running
from ..ha.coordinators.memory import Fault, MemoryCell, MemoryCoordinator
from ..ha.document import ClusterDocument
from ..ha.errors import PeerUnavailable
from ..ha.peer.interface import Handler
from ..ha.peer.wire import HEARTBEAT, RECORDS, Frame
from ..ha.service import Member

TTL = 2.0
PATIENCE = 40.0
SETTINGS = Settings(wait_s=5, segment_bytes=128 << 10)


def until(reached: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


class Network:
    """Who can reach whom. `cut`: pairs (from, to) of addresses whose calls fail. `source_of`: makes the source of a
    store that others copy."""

    def __init__(self) -> None:
        self.source_of: Callable[[Store[Any, Any]], Source] = LocalSource
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
        return self.network.source_of(store)

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


class MemberCluster:
    """Members by name, on one network, with one coordinator. A context manager, which closes them.

    Attributes:
        root: their directories are in it, under their names.
        engine, options, settings: of each member's store.
        ttl: of the lease, seconds.
        network, cell: who reaches whom, and what the coordinator holds.
        members, coordinators: those that run, and what each reaches the coordinator with.
    """

    def __init__(self, root: Path, engine: type[Engine[Any, Any]], *, options: Mapping[str, Any] | None = None,
                 settings: Settings = SETTINGS, ttl: float = TTL) -> None:
        self.root = root
        self.engine, self.options, self.settings, self.ttl = engine, options, settings, ttl
        self.network = Network()
        self.cell = MemoryCell()
        self.members: dict[str, Member[Any, Any]] = {}
        self.coordinators: dict[str, MemoryCoordinator] = {}

    def start(self, name: str, *, directory: str | None = None, address: str | None = None, ready: bool = True,
              keep: bool = True, coordinator: MemoryCoordinator | None = None, **more: Any) -> Member[Any, Any]:
        """Open a member. `ready`: and wait until it is ready. `keep`: and close it at the end."""
        coordinator = coordinator or MemoryCoordinator(self.cell)
        member: Member[Any, Any] = Member.open(
            self.root / (directory or name), self.engine, cluster="social", name=name, listen="", ttl=self.ttl,
            coordinator=coordinator, transport=LinkedTransport(self.network, address or name), settings=self.settings,
            options=self.options, **more)
        if keep:
            self.members[name], self.coordinators[name] = member, coordinator
        if ready:
            member.wait_ready(PATIENCE)
        return member

    def three(self, **more: Any) -> list[Member[Any, Any]]:
        """Begin a cluster of a, b and c, and wait until all of them vote."""
        self.start("a", create=True, **more)
        self.start("b", **more)
        self.start("c", **more)
        self.voting("a", "b", "c")
        return [self.members[n] for n in "abc"]

    def voting(self, *names: str) -> None:
        """Wait until these members vote."""
        until(lambda: set(self.document().voters) == set(names) and self.document().joint is None)

    def document(self) -> ClusterDocument:
        assert self.cell.data is not None
        return ClusterDocument.decode(self.cell.data)

    def primary(self, but: str = "") -> Member[Any, Any]:
        """Wait for a primary, another one than `but`."""
        found: list[Member[Any, Any]] = []

        def look() -> bool:
            for member in self.members.values():
                member.check()
            found[:] = [m for n, m in self.members.items() if n != but and m.role == "primary"]
            return bool(found)

        until(look)
        return found[0]

    def isolate(self, name: str) -> None:
        """Cut a member off from the others and from the coordinator."""
        self.network.isolate(name)
        self.coordinators[name].fault = Fault.OUTAGE

    def mend(self) -> None:
        self.network.mend()
        for coordinator in self.coordinators.values():
            coordinator.fault = None

    def stop(self, name: str) -> None:
        self.members.pop(name).close()

    def kill(self, name: str) -> None:
        """End a member as a crash does: its directory is left as it is now, and nobody is told."""
        self.isolate(name)
        directory, image = self.root / name, self.root / f"{name}.crashed"
        copy_running(directory, image)
        self.stop(name)
        shutil.rmtree(directory)
        image.rename(directory)
        self.network.cut = {link for link in self.network.cut if name not in link}

    def agree(self) -> None:
        """Wait until all members show the same, and have the same log."""
        def same() -> bool:
            ends = {(m.status()["published"], m.status()["durable"], m.status()["end"][2])
                    for m in self.members.values()}
            return len(ends) == 1 and len(ends.pop()) == 3 and all(
                m.status()["published"] == m.status()["durable"] for m in self.members.values())

        until(same)
        digests = []
        for member in self.members.values():
            with member.snapshot() as view:
                assert list(view.check()) == []
                digests.append(view.digest())
        assert len(set(digests)) == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for member in self.members.values():
            member.close()
