"""A plugin of a member: a store's plugin with a moment more.

A member opens its store anew when it is deposed, so `closing` and `opened` come again and again, with other stores.
`role_changed` says when its store takes transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...engine.contract.plugin import Plugin
from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.store.store import Store


class LogToBranch(Protocol):
    """The log of a member that is about to begin a branch. Calls that change it raise `SourceUnavailable` if the member
    does not lead any more.

    Attributes:
        store: which takes no transactions.
    """

    @property
    def store(self) -> Store[Any, Any]: ...
    def end(self) -> Position: ...
    def published(self) -> int: ...
    def base(self) -> int: ...
    def chain_at(self, txid: int) -> bytes: ...

    def cut(self, after: Position) -> None:
        """Remove what comes after a position that is not below what is published. It is set aside."""

    def append(self, records: Sequence[Record]) -> None:
        """Append records of the present branch, durably. Their attachments must be there."""


class MemberPlugin(Plugin):
    """Base of plugins of a member."""

    def branching(self, log: LogToBranch) -> None:
        """An operator has forced this member to lead without the promises of the others. What the log lacks now is lost
        to the cluster, which goes on as a new branch from where this log ends when this returns. So whoever has more of
        the present branch appends it. If it raises a `HoldfastError`, the member does not lead yet, says so in its
        status, and this is called again after a moment. In the member's thread for its log: it may take its time."""
