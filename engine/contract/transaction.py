"""The transaction of an engine: what a writer changes, and the payload that it becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from ..errors import StoreClosed

Durability = Literal["synced", "pipelined", "relaxed"]
"""When a commit returns: see `Settings.durability`."""


class Transaction(ABC):
    """A transaction: changes that are made by calls of the author's own and end as one payload.

    Authors call `self.writable()` first in each call that changes something. A transaction sees the newest state, its
    own changes included. It is one thread's at a time: a change that another thread is in the middle of when the block
    ends may be in the state and not in the log.
    """

    __slots__ = ("_state", "bulk", "outcome", "txid")

    def __init__(self) -> None:
        self._state: str | None = None
        self.txid: int | None = None
        """The transaction's number, once it has one."""
        self.outcome: Any = None
        """After a `pipelined` commit, a `concurrent.futures.Future` of the txid, done when it is acknowledged. Its
        callbacks run in a thread of the store's, one after the other."""
        self.bulk: Any = None
        """For plugins that are asked about a bulk load: the load. The transaction itself is then empty, and stays
        so."""

    def writable(self) -> None:
        """Raises `StoreClosed` where this transaction takes no more changes."""
        if self._state is not None:
            raise StoreClosed(f"this transaction is {self._state}", hint="begin another with store.transaction()")

    def seal(self, state: str) -> None:
        """Used by the kit: let in no more changes, because the transaction is now `state`."""
        self._state = state

    def unseal(self) -> None:
        """Used by the kit: changes again."""
        self._state = None

    @abstractmethod
    def payload(self) -> bytes:
        """All changes as one payload, empty if there are none. May be called more than once as the transaction
        grows."""

    def close(self) -> None:  # noqa: B027 - most transactions hold nothing
        """Let go of what the transaction holds. Called once, however it ended."""
