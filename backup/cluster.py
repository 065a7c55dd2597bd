"""Backing up from a cluster: `ha://host:port,…` names members, any of which may be used.

A healthy follower with the least lag is asked first, so that the primary is spared, then the others, the primary last.
If a member dies half-way, the next one is asked. What was copied of an image is of no use there, so the image starts
anew; log continues where it stopped, because all members have the same log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..engine.errors import (
    AheadOfSource,
    ClusterUnavailable,
    HoldfastError,
    InvalidInput,
    LeaseExpired,
    SourceRestarted,
    SourceUnavailable,
    TooManyLeases,
)
from ..engine.source.http.client import connect
from .uri import BackupUri

logger = logging.getLogger("holdfast.backup")

T = TypeVar("T")

PASSING = (SourceUnavailable, SourceRestarted, LeaseExpired, TooManyLeases, AheadOfSource)
"""Errors of one member that another may not have."""


def members(uri: BackupUri, *, token: str | None, tls: bool | None, ca: str | Path | None,
            timeout: float) -> list[BackupUri]:
    """The members that answer, the best first, each as a `single://` address. The other arguments are those of a
    `Connection`. O(members).

    Raises:
        ClusterUnavailable: none answers.
        InvalidInput: they have different stores.
    """
    from ..replay.ha.cluster import Cluster

    states = Cluster(str(uri), ca=ca, timeout=timeout).status()
    order = {"follower": 0, "primary": 1}
    found = sorted((state for state in states if state.role is not None),
                   key=lambda s: (order.get(s.role or "", 2), -(s.published or 0), s.lag_s or 0.0, s.address))
    stores: dict[str, str] = {}
    answering, reasons = [], [f"{s.address}: {s.trouble}" for s in states if s.role is None]
    for state in found:
        address = next(a for a, s in zip(uri.addresses, states, strict=True) if s is state)
        try:
            with connect(address.host, address.port, token=token, tls=tls, ca=ca, timeout=timeout) as source:
                stores[str(address)] = source.info().history.store_id.hex()
        except PASSING as error:
            reasons.append(f"{address}: {error.message}")
            continue
        answering.append(BackupUri("single", (address,)))
    if len(set(stores.values())) > 1:
        raise InvalidInput(f"{uri} names members of two clusters: "
                           + ", ".join(f"{address} has store {store[:8]}" for address, store in stores.items()),
                           hint="name the members of one cluster")
    if not answering:
        raise ClusterUnavailable(f"no member of {uri} answers: {'; '.join(reasons)}")
    return answering


def first_that_works(uri: BackupUri, found: list[BackupUri], work: Callable[[str], T]) -> T:
    """`work(address)` with one of the members after the other, until it succeeds. Raises `ClusterUnavailable` if it
    fails with each for a reason that another member might not have, and any other error at once."""
    reasons: list[str] = []
    last: HoldfastError | None = None
    for member in found:
        try:
            return work(str(member))
        except PASSING as error:
            reasons.append(f"{member}: {error.message}")
            last = error
            logger.warning("%s; another member is asked, and an image begins anew there", reasons[-1])
    if isinstance(last, AheadOfSource) and len(reasons) == 1:
        raise last
    raise ClusterUnavailable(f"no member of {uri} could be backed up: {'; '.join(reasons)}") from last
