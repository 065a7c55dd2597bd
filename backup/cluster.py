"""Backing up from a cluster: `ha://host:port,…` names members, any of which may be used.

Every address is asked where it stands. A healthy follower is used before the primary, so that the primary is spared,
and of several the one that has published most. A member that follows nobody now comes last, and one that has branched
is never used. If a member dies half-way, the next one is asked. What was copied of an image is of no use there, so the
image starts anew; log continues where it stopped, because all members have the same log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from ..engine.env import REAL
from ..engine.env.pool import Pool
from ..engine.errors import (
    AheadOfSource,
    ClusterUnavailable,
    HoldfastError,
    InvalidInput,
    LeaseExpired,
    LogPruned,
    NotAuthorized,
    NotFound,
    SettingError,
    SourceUnavailable,
    TooManyLeases,
)
from ..engine.model.positions import Position
from ..engine.source.interface import SlotState, Source, SourceInfo
from ..replay.roll import SourceDamaged
from .connection import Connection, Named
from .policy import Policy
from .report import Report
from .uri import Address, BackupUri, parse

logger = logging.getLogger("holdfast.backup")

PASSING = (SourceUnavailable, LeaseExpired, TooManyLeases, AheadOfSource)
"""Errors of one member that another may not have."""
GONE = (LogPruned, SourceDamaged)
"""A member no longer has the log for an incremental. Another one may, so a full backup is taken only if none has it."""
ASK_S = 5.0
"""The most seconds that a member may take to say where it stands."""
FOLLOWER, SINGLE, PRIMARY, CUT_OFF = range(4)


@dataclass(frozen=True, slots=True)
class Member:
    """A member that has answered, and what it said."""

    address: Address
    info: SourceInfo

    @property
    def uri(self) -> str:
        return str(BackupUri("single", (self.address,)))

    @property
    def branched(self) -> bool:
        return self.info.member is not None and self.info.member.role == "branched"

    @property
    def rank(self) -> int:
        """The lower, the sooner it is used."""
        said = self.info.member
        if said is None:
            return SINGLE
        if not said.healthy:
            return CUT_OFF
        return PRIMARY if said.role == "primary" else FOLLOWER


def find(uri: BackupUri, connection: Connection) -> list[Member]:
    """The members that answer and may be used, the best first. All are asked at once.

    Raises:
        ClusterUnavailable: there is none.
        NotAuthorized: the token is right for none.
        InvalidInput: they are of different clusters, or on different branches.
        SettingError: `connection` cannot be used.
    """
    pool = Pool("holdfast-ask", len(uri.addresses), REAL.scheduler)
    try:
        asked = [(address, pool.submit(partial(_ask, address, connection))) for address in uri.addresses]
        found: list[Member] = []
        failed: list[HoldfastError] = []
        reasons: list[str] = []
        for address, answer in asked:
            try:
                found.append(Member(address, answer.result()))
            except SettingError:
                raise
            except HoldfastError as error:
                failed.append(error)
                reasons.append(f"{address}: {error.message}")
    finally:
        pool.close()
    _check_one_cluster(uri, found)
    usable = [m for m in found if not m.branched]
    reasons += [f"{m.address}: it has branched, and must be seeded anew" for m in found if m.branched]
    if not usable:
        if failed and len(failed) == len(reasons) and all(isinstance(error, NotAuthorized) for error in failed):
            raise failed[0]
        raise ClusterUnavailable(f"no member of {uri} can be used: {'; '.join(reasons)}") from (
            failed[-1] if failed else None)
    return sorted(usable, key=lambda m: (m.rank, -m.info.published.txid))


def _ask(address: Address, connection: Connection) -> SourceInfo:
    quick = replace(connection, timeout=min(connection.timeout, ASK_S))
    with quick.opened(str(BackupUri("single", (address,)))) as source:
        return source.info()


def _check_one_cluster(uri: BackupUri, found: Sequence[Member]) -> None:
    """Raise `InvalidInput` unless all are one store on one branch. A member that is cut off may be on an older one."""
    stores = {m.info.history.store_id for m in found}
    if len(stores) > 1:
        told = ", ".join(f"{m.address} has store {m.info.history.store_id.hex()[:8]}" for m in found)
        raise InvalidInput(f"{uri} names members of two clusters: {told}", hint="name the members of one cluster")
    branches = {m.info.history.branch.id for m in found if m.rank != CUT_OFF}
    if len(branches) > 1:
        told = ", ".join(f"{m.address} is on branch {m.info.history.branch.id.hex()[:8]}" for m in found)
        raise InvalidInput(f"{uri} names stores on different branches: {told}",
                           hint="leave out those that are restored copies")


def back_up(uri: BackupUri, connection: Connection, policy: Policy, name: str,
            one: Callable[[str, Policy], Report]) -> Report:
    """Back up from the best member, and from the next one if that fails for a reason that the next one may not have.

    Args:
        uri, connection: of the members.
        policy: of the run. A full backup in place of an incremental is taken only if no member has the log.
        name: of the target's slot.
        one: a run from one member, with a policy.

    Raises:
        ClusterUnavailable: it failed at every member.
        AheadOfSource: no member has what the target has.
        Whatever else the run or `find` raises.
    """
    found = find(uri, connection)
    failed: list[tuple[Member, HoldfastError]] = []

    def first_of(members: Sequence[Member], how: Policy, passing: tuple[type[HoldfastError], ...]
                 ) -> tuple[Member, Report] | None:
        """The first that brings something new; otherwise the last that has nothing new; None if all fail."""
        made: tuple[Member, Report] | None = None
        for member in members:
            if made is not None and member.info.published.txid <= made[1].to_txid:
                continue
            try:
                made = member, one(member.uri, how)
            except passing as error:
                logger.warning("%s: %s; another member is asked", member.address, error.message)
                failed.append((member, error))
                continue
            if made[1].kind == "full" or made[1].transactions:
                break
        return made

    made = first_of(found, replace(policy, fallback=False), (*PASSING, *GONE))
    if made is None and policy.fallback:
        made = first_of([m for m, error in failed if isinstance(error, GONE)], policy, PASSING)
    if made is None:
        raise _in_all(uri, failed)
    used, report = made
    report = replace(report, notes=(*report.notes, *(_noted(used, report, *each) for each in failed)))
    if policy.register:
        _register(connection, [m for m in found if m is not used], report, name)
    return report


def _in_all(uri: BackupUri, failed: Sequence[tuple[Member, HoldfastError]]) -> HoldfastError:
    """The error of a run that failed at every member."""
    last = failed[-1][1]
    if all(isinstance(error, type(last)) for _, error in failed) and isinstance(last, (AheadOfSource, *GONE)):
        return last
    error = ClusterUnavailable(f"no member of {uri} could be backed up: "
                               + "; ".join(f"{m.address}: {e.message}" for m, e in failed))
    error.__cause__ = last
    return error


def _noted(used: Member, report: Report, member: Member, error: HoldfastError) -> str:
    if member is used:
        return f"no member has the log for an incremental any more; {member.address} was asked for a full one"
    then = "the image is wholly from" if report.kind == "full" else "the log goes on from"
    return f"{member.address} failed ({error.message}): {then} {used.address}"


def _register(connection: Connection, others: Sequence[Member], report: Report, name: str) -> None:
    """Have the other members keep log for the next incremental too. One that fails is left out: then a later
    incremental needs another."""
    for member in others:
        try:
            with connection.opened(member.uri) as source:
                source.register(report.target_id, name, Position(report.to_txid, source.chain_at(report.to_txid)))
        except HoldfastError as error:
            logger.info("%s was not told to keep its log for %s: %s", member.address, report.target, error.message)


def slots(uri: BackupUri, connection: Connection) -> list[SlotState]:
    """The slots at all members that answer. One that several have is shown as the member that keeps most log for it has
    it. Raises what `find` does, and `ClusterUnavailable` if no member tells."""
    most: dict[str, SlotState] = {}

    def collect(source: Source) -> None:
        for slot in source.slots():
            if slot.id not in most or most[slot.id].position.txid > slot.position.txid:
                most[slot.id] = slot

    _each(uri, connection, collect)
    return sorted(most.values(), key=lambda slot: slot.position.txid)


def drop_slot(uri: BackupUri, connection: Connection, slot_id: str) -> None:
    """Drop a slot at all members that answer. Raises what `find` does, `NotFound` if none has it, and
    `ClusterUnavailable` if no member answers."""
    missing: list[NotFound] = []

    def drop(source: Source) -> None:
        try:
            source.drop(slot_id)
        except NotFound as error:
            missing.append(error)

    if _each(uri, connection, drop) == len(missing):
        raise missing[0]


def _each(uri: BackupUri, connection: Connection, work: Callable[[Source], None]) -> int:
    """Do something at every member that answers. Returns at how many it was done. Raises `ClusterUnavailable` if that
    is none."""
    done, reasons = 0, []
    for member in find(uri, connection):
        try:
            with connection.opened(member.uri) as source:
                work(source)
                done += 1
        except SourceUnavailable as error:
            reasons.append(f"{member.address}: {error.message}")
    if not done:
        raise ClusterUnavailable(f"no member of {uri} answers: {'; '.join(reasons)}")
    return done

def sources(named: Named, connection: Connection) -> list[Named]:
    """What a name stands for: itself, or of a cluster (`ha://`) the members that may be used, the best first. Raises
    what `find` does."""
    if not isinstance(named, str) or (uri := parse(named)).mode != "ha":
        return [named]
    return [member.uri for member in find(uri, connection)]


@contextmanager
def best_source(named: Named, connection: Connection) -> Iterator[Source]:
    """The source that a name stands for, or of a cluster its best member, for the block."""
    with connection.opened(sources(named, connection)[0]) as source:
        yield source
