"""Leases: the right to read one image and the log after it, until released or expired.

`LeaseTable` has the rules and nothing else: no thread, no clock, no I/O. Time is passed in as monotonic seconds. A
lease is *held*, then *dead* (released or expired), then *freed*. A reader under a dead lease gets `LeaseExpired` at its
next read. The lease is freed when its last reader has finished. Only then is the image closed and the log unpinned, so
nothing is ever taken away during a read. A lease expires if it was not used or renewed for its time to live, and at the
latest when it reaches the greatest age.

`Leases` is a store's table, with a lock and a clock around it. The store takes the `floor` from it when it prunes its
log. `frozen` gives the floor and admits no new lease while the beginning of the log moves. Images are closed outside
the lock, because that may be slow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..env import REAL, Env
from ..env.rate_limited_log import Calm
from ..errors import InvalidInput, LeaseExpired, StoreClosed, TooManyLeases

logger = logging.getLogger("holdfast.leases")

MAX_OWNER = 200
"""Longest name of an owner, in characters."""


class Closable(Protocol):
    """What a lease holds beside the log: an image."""

    def close(self) -> None: ...


@dataclass(slots=True)
class Lease:
    """One lease.

    Attributes:
        id: names it; random.
        owner: who took it, for people.
        txid: the log after this transaction is kept for it.
        image: what is closed when the lease is freed, or None.
        ttl: seconds that it lasts after its last use.
        granted, touched: when it was granted and last used, monotonic seconds.
        uses: readers that have not finished yet.
        dead: no reader may continue.
    """

    id: str
    owner: str
    txid: int
    image: Closable | None
    ttl: float
    granted: float
    touched: float
    uses: int = 0
    dead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """A lease as it is shown: ages and times in seconds."""

    id: str
    owner: str
    txid: int
    has_image: bool
    ttl: float
    age: float
    remaining: float
    uses: int
    dead: bool


class LeaseTable:
    """The rules. Not thread-safe, except that `floor` may be read at any time."""

    def __init__(self, *, max_leases: int = 16, max_ttl: float = 3600.0, max_age: float = 7 * 86400.0) -> None:
        """
        Args:
            max_leases: how many may exist at once, including dead ones that are still being read.
            max_ttl: the longest time to live, seconds. A longer request is cut to this.
            max_age: seconds from grant to the end, however often renewed.
        """
        self.max_leases = max_leases
        self.max_ttl = max_ttl
        self.max_age = max_age
        self._leases: dict[str, Lease] = {}
        self._floor: int | None = None

    def grant(self, id: str, owner: str, now: float, ttl: float, txid: int, image: Closable | None = None) -> Lease:
        """Give a lease that keeps the log after `txid`.

        Raises:
            TooManyLeases: the number is reached; the message names who holds them.
            InvalidInput: the time to live, the owner or the id is not valid.
        """
        if not 0 < ttl < float("inf"):
            raise InvalidInput(f"a lease cannot live for {ttl} seconds", hint="give a positive number of seconds")
        if not owner or len(owner) > MAX_OWNER:
            raise InvalidInput(f"a lease's owner must have 1 to {MAX_OWNER} characters")
        if id in self._leases:
            raise InvalidInput(f"there is already a lease {id}")
        if len(self._leases) >= self.max_leases:
            owners = ", ".join(sorted({lease.owner for lease in self._leases.values()}))
            raise TooManyLeases(f"all {self.max_leases} leases are taken, by: {owners}")
        lease = Lease(id, owner, txid, image, min(ttl, self.max_ttl), now, now)
        self._leases[id] = lease
        self._note_floor()
        return lease

    def furnish(self, id: str, now: float, ttl: float, txid: int, image: Closable) -> Lease:
        """Attach an image to a lease that was granted before the image was made, and move the lease to the image's
        position. Its time to live begins anew. Raises `LeaseExpired`; the caller must then close the image."""
        lease = self._live(id, now)
        if txid < lease.txid or lease.image is not None:
            raise InvalidInput(f"the image at transaction {txid} does not fit the lease on {lease.txid}")
        lease.txid, lease.image, lease.ttl, lease.touched = txid, image, min(ttl, self.max_ttl), now
        self._note_floor()
        return lease

    def renew(self, id: str, now: float) -> Lease:
        """Begin the lease's time to live anew. Raises `LeaseExpired`."""
        lease = self._live(id, now)
        lease.touched = now
        return lease

    def use(self, id: str, now: float) -> Lease:
        """A reader begins. This renews the lease. Raises `LeaseExpired`."""
        lease = self.renew(id, now)
        lease.uses += 1
        return lease

    def end_use(self, lease: Lease, now: float) -> Lease | None:
        """A reader has finished. Returns the lease if that freed it."""
        lease.uses -= 1
        if lease.dead or self._over(lease, now):
            return self._bury(lease)
        lease.touched = now
        return None

    def release(self, id: str) -> Lease | None:
        """End a lease, if it is still there. Returns it if that freed it."""
        lease = self._leases.get(id)
        return None if lease is None else self._bury(lease)

    def expire(self, now: float) -> list[Lease]:
        """End every lease whose time is over. Returns those that this freed."""
        over = [lease for lease in self._leases.values() if lease.dead or self._over(lease, now)]
        return [freed for lease in over if (freed := self._bury(lease)) is not None]

    def floor(self) -> int | None:
        """The lowest transaction after which some lease still needs the log, or None without leases."""
        return self._floor

    def list(self, now: float) -> list[LeaseState]:
        """All leases, the oldest first."""
        return [LeaseState(id=lease.id, owner=lease.owner, txid=lease.txid, has_image=lease.image is not None,
                           ttl=lease.ttl, age=now - lease.granted, remaining=max(0.0, self._deadline(lease) - now),
                           uses=lease.uses, dead=lease.dead) for lease in self._leases.values()]

    def _deadline(self, lease: Lease) -> float:
        return min(lease.touched + lease.ttl, lease.granted + self.max_age)

    def _over(self, lease: Lease, now: float) -> bool:
        return now >= self._deadline(lease)

    def _live(self, id: str, now: float) -> Lease:
        lease = self._leases.get(id)
        if lease is None:
            raise LeaseExpired(f"there is no lease {id[:40]}: it expired, was released or never existed")
        if lease.dead or self._over(lease, now):
            lease.dead = True  # even if nobody calls `expire` before the clock is asked again
            raise LeaseExpired(f"the lease {id} of {lease.owner} has expired or was released")
        return lease

    def _bury(self, lease: Lease) -> Lease | None:
        lease.dead = True
        if lease.uses or self._leases.pop(lease.id, None) is None:
            return None
        self._note_floor()
        return lease

    def _note_floor(self) -> None:
        self._floor = min((lease.txid for lease in self._leases.values()), default=None)


class Leases:
    """The leases of one open store, for all threads."""

    def __init__(self, env: Env = REAL, table: LeaseTable | None = None) -> None:
        self._env = env
        self._table = table or LeaseTable()
        self._calm = Calm(logger, env.clock)  # clients decide how many leases expire, so bound what is logged
        self._guard = env.scheduler.condition()
        self._closed = False
        self._readers = 0

    def grant(self, owner: str, ttl: float, txid: int) -> Lease:
        """As `LeaseTable.grant`, with a new random id. Also raises `StoreClosed`."""
        self.sweep()
        id = self._env.randomness.token(16).hex()
        with self._guard:
            if self._closed:
                raise StoreClosed("the store is closed")
            return self._table.grant(id, owner, self._now(), ttl, txid)

    def grant_longest(self, owner: str, txid: int) -> Lease:
        """A lease with the longest time to live, to hold while an image is made."""
        return self.grant(owner, self._table.max_ttl, txid)

    def furnish(self, id: str, ttl: float, txid: int, image: Closable) -> Lease:
        """As `LeaseTable.furnish`."""
        with self._guard:
            return self._table.furnish(id, self._now(), ttl, txid, image)

    def renew(self, id: str) -> Lease:
        """As `LeaseTable.renew`."""
        with self._guard:
            return self._table.renew(id, self._now())

    def release(self, id: str) -> None:
        """End a lease, if it is still there, and close its image once nobody reads it."""
        with self._guard:
            freed = self._table.release(id)
        self._close([] if freed is None else [freed])

    @contextmanager
    def using(self, id: str) -> Iterator[Lease]:
        """Read under a lease. What it covers stays until the block ends, even if the lease dies meanwhile.

        Raises:
            LeaseExpired: the lease is not held now. Within the block, `renew` raises this once the lease is dead.
        """
        with self._guard:
            lease = self._table.use(id, self._now())
            self._readers += 1
        try:
            yield lease
        finally:
            with self._guard:
                freed = self._table.end_use(lease, self._now())
            self._close([] if freed is None else [freed])
            with self._guard:
                self._readers -= 1
                self._guard.notify_all()

    def sweep(self) -> None:
        """End the leases whose time is over, and free those that nobody is reading."""
        with self._guard:
            freed = self._table.expire(self._now())
        for lease in freed:
            self._calm.say("expired", f"lease {lease.id} of {lease.owner} expired")
        self._close(freed)

    def floor(self) -> int | None:
        """The log after this transaction must stay. None: no lease needs any log. O(1), without the lock."""
        return self._table.floor()

    @contextmanager
    def frozen(self) -> Iterator[int | None]:
        """Keep the floor fixed while the log's beginning moves: no lease is granted or freed within the block."""
        self.sweep()
        with self._guard:
            yield self._table.floor()

    def list(self) -> list[LeaseState]:
        """All leases, the oldest first."""
        with self._guard:
            return self._table.list(self._now())

    def close(self, timeout: float = 5.0) -> None:
        """End all leases, and wait up to `timeout` seconds for their readers to finish. An image that is still being
        read after that is closed when its reader ends."""
        with self._guard:
            self._closed = True
            freed = [lease for state in self._table.list(self._now())
                     if (lease := self._table.release(state.id)) is not None]
        self._close(freed)
        with self._guard:
            if not self._guard.wait_for(lambda: self._readers == 0, timeout):
                logger.warning("the store closes while leases are still being read")

    def _now(self) -> float:
        return self._env.clock.monotonic()

    def _close(self, freed: Iterable[Lease]) -> None:
        for lease in freed:
            if lease.image is not None:
                try:
                    lease.image.close()
                except Exception as error:
                    self._calm.say("closing", f"closing the image of lease {lease.id}", error, level=logging.ERROR)
