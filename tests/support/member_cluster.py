"""A cluster of members in one process, on one coordinator, whose links can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linked import LinkedTransport, Network, until
from store_kinds import MEMORY, Kind

from holdfast.engine.store.settings import Settings
from holdfast.replay.ha.coordinators.memory import Fault, MemoryCell, MemoryCoordinator
from holdfast.replay.ha.document import ClusterDocument
from holdfast.replay.ha.service import Member

TTL = 1.2
PATIENCE = 40.0


class Cluster:
    """Members by name, on one network, with one coordinator."""

    def __init__(self, root: Path, kind: Kind = MEMORY) -> None:
        self.root = root
        self.kind = kind
        self.network = Network()
        self.cell = MemoryCell()
        self.members: dict[str, Member[Any, Any]] = {}
        self.coordinators: dict[str, MemoryCoordinator] = {}

    def start(self, name: str, *, directory: str | None = None, address: str | None = None, ready: bool = True,
              keep: bool = True, **more: Any) -> Member[Any, Any]:
        coordinator = MemoryCoordinator(self.cell)
        settings = Settings(wait_s=5, segment_bytes=128 << 10)
        member: Member[Any, Any] = Member.open(
            self.root / (directory or name), self.kind.engine, cluster="social", name=name, listen="", ttl=TTL,
            coordinator=coordinator, transport=LinkedTransport(self.network, address or name), settings=settings,
            **more)
        if keep:
            self.members[name], self.coordinators[name] = member, coordinator
        if ready:
            member.wait_ready(PATIENCE)
        return member

    def three(self, **more: Any) -> list[Member[Any, Any]]:
        self.start("a", create=True, **more)
        self.start("b", **more)
        self.start("c", **more)
        until(lambda: self.document().voters == ("a", "b", "c") and self.document().joint is None)
        return [self.members[n] for n in "abc"]

    def document(self) -> ClusterDocument:
        assert self.cell.data is not None
        return ClusterDocument.decode(self.cell.data)

    def primary(self, but: str = "") -> Member[Any, Any]:
        found: list[Member[Any, Any]] = []

        def look() -> bool:
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


def put(member: Member[Any, Any], key: bytes, **how: Any) -> int:
    with member.transaction(**how) as tx:
        tx.put(key, b"value")
    txid: int = tx.txid
    return txid
