"""The cluster document: who is primary, in which epoch, and whose answers count.

It is one value at the coordinator, and is only ever swapped whole, against the version that was read. So one swap
changes leader, epoch and voters together, or nothing. It is JSON, so that an operator can read it with the
coordinator's own tools.

A member keeps the last document that it has seen, because a coordinator can lose its data. A document that is older
than that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...engine.errors import Damaged, InvalidInput, UnsupportedFormat
from ...engine.model.positions import ID_BYTES
from .quorum import Floor

VERSION = 1
MOST_FAILOVERS = 100
"""How many fail-overs the document remembers."""
MOST_BYTES = 512 << 10
"""etcd refuses values over 1.5 MB, and a document is written at each renewal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEntry:
    """What the cluster knows of a member.

    Attributes:
        address: "host:port", where others reach it.
        generation: which opening of its directory this is. A directory with a lower one is a copy, and does not count.
        instance: a random id of that opening. If it differs and the generation does not, one directory is a copy.
        no_failover: it is never promoted by itself; an operator may switch over to it.
        no_sync: it is not made a voter, so its answers never count.
        clone_from: new members prefer to copy from it.
        priority: of two members whose logs are equally long, the one with the higher is promoted.
        delay: seconds by which it shows less than it holds.
    """

    address: str
    generation: int
    instance: str
    no_failover: bool = False
    no_sync: bool = False
    clone_from: bool = False
    priority: int = 100
    delay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """A change of primary. `at_us`: when, microseconds since the Unix epoch. `reason`: in words."""

    epoch: int
    leader: str
    before: str | None
    at_us: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterDocument:
    """See the module's text.

    Attributes:
        cluster: the cluster's name.
        store_id: of the store that its members hold, hex.
        branch: of that store, hex: a forced promotion begins one. Whoever leads begins it at the end of its log, unless
            its log has it.
        revision: raised by each swap but a mere renewal's, so of two documents the later one is known even without
            the coordinator.
        epoch: raised by each swap that sets the leader. Every record has the epoch in which it was written.
        leader: the member that may write in this epoch, once enough voters have promised it.
        nonce: made anew for each attempt to become leader. A member whose swap has an unknown outcome finds it here.
        renewals: raised by the leader while it lives. Others measure how long it has stood still by their own clocks.
        ttl: seconds that it may stand still.
        voters: the members whose answers count.
        joint: the voters after the change that is under way, or None. Until it ends, both sets must agree.
        floor: how many voters must hold a transaction before it is published; see `quorum.py`.
        failsafe: a leader that loses the coordinator stays while enough voters confirm its epoch.
        secret: the token that members show each other, unless they were given one. Whoever reads the document has it.
        paused: nobody is promoted without being asked.
        members: by name.
        failovers: the last changes of primary, oldest first.
    """

    cluster: str
    store_id: str
    branch: str = ""
    revision: int = 0
    epoch: int = 0
    leader: str | None = None
    nonce: str = ""
    renewals: int = 0
    ttl: float = 10.0
    voters: tuple[str, ...] = ()
    joint: tuple[str, ...] | None = None
    floor: Floor = "quorum"
    failsafe: bool = False
    secret: str = ""
    paused: bool = False
    members: Mapping[str, MemberEntry] = field(default_factory=dict)
    failovers: tuple[Failover, ...] = ()

    @property
    def sets(self) -> tuple[tuple[str, ...], ...]:
        """The sets of voters in each of which every rule must hold."""
        return (self.voters,) if self.joint is None else (self.voters, self.joint)

    @property
    def electorate(self) -> tuple[str, ...]:
        """Everybody who votes in any of the sets, sorted."""
        return tuple(sorted({name for voters in self.sets for name in voters}))

    def led_by(self, leader: str, *, nonce: str, epoch: int) -> ClusterDocument:
        """The document that makes `leader` the leader in a higher epoch."""
        return replace(self, epoch=epoch, leader=leader, nonce=nonce, renewals=0)

    def forced(self) -> ClusterDocument:
        """The document in which its leader counts alone, on a branch of its own: what others acknowledged may be lost.
        """
        assert self.leader is not None
        return replace(self, voters=(self.leader,), joint=None, branch=self.nonce)

    def recording(self, leader: str, reason: str, at_us: int) -> ClusterDocument:
        """The document that remembers that `leader` became primary in the present epoch."""
        before = self.failovers[-1].leader if self.failovers else None
        change = Failover(epoch=self.epoch, leader=leader, before=before, at_us=at_us, reason=reason)
        return replace(self, failovers=(*self.failovers, change)[-MOST_FAILOVERS:])

    def renewed(self) -> ClusterDocument:
        """The document with the leader's next sign of life."""
        return replace(self, renewals=self.renewals + 1)

    def with_member(self, name: str, entry: MemberEntry) -> ClusterDocument:
        """The document with this entry for a member."""
        return replace(self, members={**self.members, name: entry})

    def without_member(self, name: str) -> ClusterDocument:
        """The document without a member, which must not be a voter."""
        return replace(self, members={n: e for n, e in self.members.items() if n != name})

    def encode(self) -> bytes:
        """As JSON."""
        data = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":")).encode()
        if len(data) > MOST_BYTES:
            raise InvalidInput(f"the document of cluster {self.cluster} would have {len(data):,} bytes",
                               hint="remove members that are gone")
        return data

    @classmethod
    def decode(cls, data: bytes) -> ClusterDocument:
        """Raises `Damaged` if it is not a cluster document, `UnsupportedFormat` if a later release wrote it."""
        try:
            body: dict[str, Any] = json.loads(data)
            version = body.pop("version")
            if version != VERSION:
                raise UnsupportedFormat(f"the cluster document has format version {version}; this release reads "
                                        f"{VERSION}")
            if set(body) != {f.name for f in fields(cls)}:
                raise ValueError(f"other fields than expected: {sorted(set(body) ^ {f.name for f in fields(cls)})}")
            body["members"] = {str(name): MemberEntry(**entry) for name, entry in body["members"].items()}
            body["failovers"] = tuple(Failover(**failover) for failover in body["failovers"])
            body["voters"] = _names(body["voters"])
            body["joint"] = None if body["joint"] is None else _names(body["joint"])
            document = cls(**body)
            document._check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damaged(f"is not a cluster document: {error}", path="the coordinator's value") from error
        return document

    def _check(self) -> None:
        kinds = {str: ("cluster", "store_id", "branch", "nonce", "secret"), int: ("epoch", "renewals", "revision"),
                 bool: ("failsafe", "paused")}
        for kind, names in kinds.items():
            for name in names:
                if type(getattr(self, name)) is not kind:
                    raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not (isinstance(self.ttl, int | float) and 0 < self.ttl < 1e6):
            raise ValueError(f"ttl is {self.ttl!r}")
        if not (self.floor == "quorum" or (type(self.floor) is int and self.floor >= 1)):
            raise ValueError(f"floor is {self.floor!r}")
        if len(bytes.fromhex(self.branch)) not in (0, ID_BYTES):
            raise ValueError(f"branch is {self.branch!r}")
        if any(name not in self.members for name in self.electorate):
            raise ValueError("a voter is not a member")


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(value)
    if not all(type(name) is str for name in names) or len(set(names)) != len(names):
        raise ValueError(f"{value!r} is not a list of names")
    return names
