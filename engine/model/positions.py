"""Positions and branches, which tell one history from another.

`chain(n) = xxh3-128(chain(n-1) ‖ header(n) ‖ payload(n))`, and chain(0) is made from the store's id. The header has the
payload's length, so the concatenation is unambiguous. If the chains of two stores agree at a txid, their transactions
up to it agree too, barring hash collisions. The chain does not protect against forgery.
"""
from __future__ import annotations

from typing import Any, NamedTuple

from xxhash import xxh3_128_digest

from ..errors import InvalidInput

ID_BYTES = 16
"""Length of store ids, branch ids, segment ids and chains."""


class Position(NamedTuple):
    """A point in one history: a transaction's number and the chain up to it."""

    txid: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.txid}:{self.chain.hex()[:8]}"


class Branch(NamedTuple):
    """One line of history: a random id, and the position where it left the branch before it."""

    id: bytes
    start: Position

    def __str__(self) -> str:
        return f"{self.id.hex()[:8]} (from transaction {self.start.txid})"


class History(NamedTuple):
    """The identity of a store: its id, and its branches from the first to the present one."""

    store_id: bytes
    branches: tuple[Branch, ...]

    @property
    def branch(self) -> Branch:
        """The branch the store is on."""
        return self.branches[-1]

    def extended(self, branch_id: bytes, start: Position) -> History:
        """The same history, continued on a new branch from `start`."""
        return History(self.store_id, (*self.branches, Branch(branch_id, start)))

    def to_wire(self) -> list[Any]:
        """The history as plain lists, for msgpack."""
        return [self.store_id, [[b.id, b.start.txid, b.start.chain] for b in self.branches]]

    @classmethod
    def from_wire(cls, data: Any) -> History:
        """The history that `to_wire` encoded. Raises `InvalidInput` if `data` is anything else."""
        try:
            store_id, branches = data
            history = cls(store_id, tuple(Branch(i, Position(n, c)) for i, n, c in branches))
            ids = [store_id, *(x for b in history.branches for x in (b.id, b.start.chain))]
            if not history.branches or any(type(x) is not bytes or len(x) != ID_BYTES for x in ids):
                raise ValueError("an id of the wrong length")
            if any(type(b.start.txid) is not int or b.start.txid < 0 for b in history.branches):
                raise ValueError("a txid that is not a whole number from 0")
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"not a history: {error}", hint="the sender speaks another format") from error
        return history


def origin(store_id: bytes) -> Position:
    """The position of an empty store: txid 0, and a chain made from its id."""
    return Position(0, xxh3_128_digest(b"holdfast chain origin" + store_id))
