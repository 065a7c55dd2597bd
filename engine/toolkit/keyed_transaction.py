"""A transaction that collects new values by key."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgpack

from ..contract.transaction import Transaction
from ..errors import Damaged
from ..model.records import Record

K = TypeVar("K")
V = TypeVar("V")


class KeyedTransaction(Transaction, Generic[K, V]):
    """A transaction whose changes are whole new values by key. Keys and values are what msgpack packs, tuples included.

    Subclasses validate input and put it into `changes`.
    """

    __slots__ = ("changes",)

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[K, V] = {}

    def payload(self) -> bytes:
        changes = self.changes
        return _pack(list(changes.items())) if changes else b""


def changes_of(record: Record) -> list[tuple[Any, Any]]:
    """The (key, value) changes in a record that a `KeyedTransaction` made. Raises `Damaged` if the payload is not a
    list of changes."""
    try:
        changes = msgpack.unpackb(record.payload, use_list=False) if record.payload else ()
        return [(key, value) for key, value in changes]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Damaged(f"the payload of transaction {record.txid} is not a list of changes: {error}") from error


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
