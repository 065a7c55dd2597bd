"""What an operator does with a cluster, by way of its coordinator and its members.

The document at the coordinator says who the members are and has the token that they show each other. So whoever may
read the document may do everything here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...engine.env import REAL, Env
from ...engine.env.pool import Pool
from ...engine.errors import HoldfastError, InvalidInput, SourceUnavailable
from .coordinator import Coordinator
from .document import ClusterDocument, Failover
from .errors import NoCluster, SwapConflict, SwapUnknown
from .peer.interface import Peer

TRIES = 50
"""How often a swap is tried: the leader swaps the document too."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What is known of a member.

    Attributes:
        name, address: of the member.
        role: as the member says; "unreachable" if it does not answer, with the reason in `trouble`.
        voter: whether its answers count.
        epoch: that it leads or follows in.
        durable, published: transactions.
        lag: transactions that the primary has published and this one has not; None if unknown.
        trouble: why it takes no part, or None.
        end: the epoch and number of the last record that it holds; None if it does not answer.
        set_aside: transactions that it had shown and the cluster does not have, kept in its directory.
    """

    name: str
    address: str
    role: str
    voter: bool
    epoch: int | None
    durable: int | None
    published: int | None
    lag: int | None
    trouble: str | None
    end: tuple[int, int] | None
    set_aside: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What is known of a cluster. `leader`: as the document says; it is primary once its member says so."""

    cluster: str
    store_id: str
    epoch: int
    leader: str | None
    floor: str | int
    paused: bool
    failsafe: bool
    ttl: float
    joint: tuple[str, ...] | None
    members: tuple[MemberStatus, ...]
    failovers: tuple[Failover, ...]

    @property
    def primary(self) -> MemberStatus | None:
        """The member that says that it is primary in the present epoch."""
        return next((m for m in self.members if m.role == "primary" and m.epoch == self.epoch), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


class Admin:
    """See the module's text. A context manager. From any thread."""

    def __init__(self, coordinator: Coordinator, peer: Callable[[str, str], Peer], *, timeout: float = 5.0,
                 env: Env = REAL) -> None:
        """
        Args:
            coordinator: of the cluster.
            peer: a client for the member at an address, given the token.
            timeout: seconds that the coordinator may take.
            env: the environment.
        """
        self.coordinator = coordinator
        self.peer = peer
        self.timeout = timeout
        self._env = env

    def document(self) -> ClusterDocument:
        """The cluster's document. Raises `NoCluster`, `CoordinatorUnavailable`, `Damaged`."""
        data, _ = self.coordinator.read(self.timeout)
        if data is None:
            raise NoCluster("the coordinator has no cluster of this name")
        return ClusterDocument.decode(data)

    def status(self) -> ClusterStatus:
        """What the coordinator and each member say. Members are asked at the same time."""
        document = self.document()
        pool = Pool("holdfast-status", max(1, len(document.members)), self._env.scheduler)
        try:
            asked: dict[str, Future[dict[str, Any]]] = {}
            for name, entry in document.members.items():
                asked[name] = pool.submit(lambda at=entry.address: self._ask(at, document.secret))  # type: ignore[misc]
            found = {name: self._outcome(future) for name, future in asked.items()}
        finally:
            pool.close()
        tops = [f["published"] for f in found.values() if f.get("role") == "primary" and "published" in f]
        top = max(tops, default=None)
        members = []
        for name, entry in sorted(document.members.items()):
            said = found[name]
            published = said.get("published")
            members.append(MemberStatus(
                name, entry.address, said["role"], name in document.electorate, said.get("epoch"),
                said.get("durable"), published,
                None if top is None or published is None else max(0, top - published),
                said.get("trouble") or said.get("branched"), tuple(said["end"][:2]) if "end" in said else None,
                sum(one["last"] - one["first"] + 1 for one in said.get("set_aside", ()) if one["published"])))
        return ClusterStatus(document.cluster, document.store_id, document.epoch, document.leader, document.floor,
                             document.paused, document.failsafe, document.ttl, document.joint, tuple(members),
                             document.failovers)

    def _ask(self, address: str, token: str) -> dict[str, Any]:
        with self.peer(address, token) as peer:
            return peer.status()

    @staticmethod
    def _outcome(future: Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            return future.result()
        except HoldfastError as error:
            return {"role": "unreachable", "trouble": str(error)}

    def force_failover(self, to: str) -> ClusterStatus:
        """Make a member primary without the promises of the other voters. What it lacks is lost to the cluster, so a
        member that answers and has more is preferred. Returns the status before. Raises `InvalidInput`,
        `SourceUnavailable`."""
        found = self.status()
        chosen = next((m for m in found.members if m.name == to), None)
        if chosen is None or chosen.end is None:
            raise InvalidInput(f"{to} does not answer" if chosen is not None else f"the cluster has no member {to}",
                               hint="see holdfast cluster status")
        if found.primary is not None:
            raise InvalidInput(f"{found.primary.name} is primary, and answers", hint="use holdfast cluster switchover")
        for other in found.members:
            if other.end is not None and other.end > chosen.end and other.role != "branched":
                raise InvalidInput(f"{other.name} holds transactions up to {other.end[1]} of epoch {other.end[0]}, "
                                   f"and {to} up to {chosen.end[1]} of epoch {chosen.end[0]}",
                                   hint=f"use --to {other.name}")
        self.command(to, "failover", {"force": True})
        return found

    def command(self, name: str | None, verb: str, args: dict[str, Any]) -> None:
        """Have a member do something; None means the leader. Raises `InvalidInput`, `SourceUnavailable`, and others."""
        document = self.document()
        name = name or document.leader
        if name is None or name not in document.members:
            raise InvalidInput("the cluster has no leader" if name is None else f"the cluster has no member {name}",
                               hint="see the cluster's status")
        address = document.members[name].address
        with self.peer(address, document.secret) as peer:
            peer.command(verb, args)

    def set_paused(self, paused: bool) -> None:
        """Let nobody be promoted without being asked, or again as usual."""
        self._change(lambda document: replace(document, paused=paused))

    def _change(self, change: Callable[[ClusterDocument], ClusterDocument]) -> None:
        for _ in range(TRIES):
            data, version = self.coordinator.read(self.timeout)
            if data is None:
                raise NoCluster("the coordinator has no cluster of this name")
            document = ClusterDocument.decode(data)
            changed = change(document)
            if changed == document:
                return
            try:
                changed = replace(changed, revision=document.revision + 1)
                self.coordinator.swap(version, changed.encode(), self.timeout)
                return
            except (SwapConflict, SwapUnknown):
                continue
        raise SourceUnavailable(f"the document changed {TRIES} times meanwhile", hint="try again")

    def close(self) -> None:
        self.coordinator.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
