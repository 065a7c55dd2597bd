"""What must hold after each step of a simulated cluster, whatever has failed.

The checker sees everything at once, which no member can. It keeps the one history that was published, and all that was
acknowledged to clients. Each check raises `Violation` with the name of the promise that was broken. A check costs
O(records concerned).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import itemgetter

Record = tuple[int, bytes]
"""The epoch in which it was written, and the chain up to it. Its place in the log is its number, from 1 on."""


class Violation(AssertionError):
    """A promise that was broken. `invariant`: its name. `seed` and `trace` are set by the simulation."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text
        self.seed: object = None
        self.trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = "\n".join(self.trace)
        return f"{self.invariant}: {self.text}\nseed {self.seed}; the last steps:\n{steps}"


class Checker:
    """See the module's text.

    Attributes:
        history: the records that somebody has published, in order.
        acknowledged: how many of them a client was told of.
    """

    def __init__(self) -> None:
        self.history: list[Record] = []
        self.acknowledged = 0
        self._parents: dict[bytes, bytes] = {}
        self._leaders: dict[int, tuple[str, int]] = {}

    def made(self, record: Record, before: bytes) -> None:
        """A primary has written a new record after the chain `before`."""
        self._parents[record[1]] = before

    def appended(self, name: str, log: Sequence[Record], first: int) -> None:
        """Records were appended to a log, from index `first` on."""
        for index in range(first, len(log)):
            before = log[index - 1] if index else (0, b"")
            if self._parents[log[index][1]] != before[1]:
                raise Violation("log matching", f"{name} appended record {index + 1} after another one than it follows "
                                                "in the log in which it was written")
            if log[index][0] < before[0]:
                raise Violation("epochs grow", f"{name} appended record {index + 1} of epoch {log[index][0]} after "
                                               f"one of epoch {before[0]}")

    def serves(self, name: str, life: int, epoch: int) -> None:
        """A member serves an epoch to followers."""
        other = self._leaders.setdefault(epoch, (name, life))
        if other != (name, life):
            raise Violation("one primary per epoch", f"{name} (opening {life}) serves epoch {epoch}, as {other[0]} "
                                                     f"(opening {other[1]}) did")

    def swaps(self, name: str, before: tuple[int, str | None, str] | None, after: tuple[int, str | None, str]) -> None:
        """The document changes from (epoch, leader, nonce) to another one."""
        if before is not None and before != after and after[0] <= before[0]:
            raise Violation("each leader has a higher epoch", f"{name} swaps the document from epoch, leader and nonce "
                                                              f"{before} to {after}")

    def published(self, name: str, log: Sequence[Record], before: int, upto: int, durable: int) -> None:
        """A member shows its log up to number `upto`; until now it was up to `before`."""
        if upto < before:
            raise Violation("published never goes back", f"{name} showed {before} transactions, and now {upto}")
        if upto > durable:
            raise Violation("published is durable", f"{name} shows {upto} transactions, and has {durable} on disk")
        known = self.history
        for index in range(before, upto):
            if index == len(known):
                known.append(log[index])
            elif known[index] != log[index]:
                raise Violation("one history", f"{name} publishes another record {index + 1} (of epoch "
                                               f"{log[index][0]}) than was published before (of epoch "
                                               f"{known[index][0]})")

    def counts(self, name: str, record: Record, txid: int, epoch: int) -> None:
        """A primary publishes up to a record because enough voters hold that."""
        if record[0] != epoch:
            raise Violation("only its own epoch counts", f"{name}, primary of epoch {epoch}, publishes up to record "
                                                         f"{txid} of epoch {record[0]}: a log that ends in an epoch "
                                                         "between may yet win")

    def held(self, name: str, record: Record, txid: int, holders: Iterable[bool], needed: int) -> None:
        """A primary publishes a record. `holders`: for each voter, whether it has it on disk."""
        copies = sum(holders)
        if copies < needed:
            raise Violation("the floor", f"{name} publishes transaction {txid}, which {copies} voters have on disk; "
                                         f"{needed} must")

    def cut(self, name: str, log: Sequence[Record], length: int, published: int) -> None:
        """A log is about to be cut to `length` records."""
        if length < published:
            raise Violation("published is never cut", f"{name} cuts its log to {length}; it showed {published}")
        known = self.history
        if length < len(known) and length < len(log) and known[length] == log[length]:
            raise Violation("published is never cut", f"{name} cuts its log to {length}, and record {length + 1} of it "
                                                      "is published")

    def acknowledges(self, name: str, log: Sequence[Record], upto: int) -> None:
        """Clients are told that everything up to `upto` in this log is kept. A chain stands for the log up to it, so
        the last record decides."""
        if len(self.history) < upto or self.history[upto - 1] != log[upto - 1]:
            raise Violation("acknowledged is published", f"{name} acknowledges transaction {upto}, and "
                                                         f"{len(self.history)} are published")
        self.acknowledged = max(self.acknowledged, upto)

    def accepts(self, name: str, log: Sequence[Record], epoch: int) -> None:
        """A primary begins to accept transactions. What was published of its epoch and those before must be there."""
        shown = bisect_right(self.history, epoch, key=itemgetter(0))
        if shown and (len(log) < shown or log[shown - 1] != self.history[shown - 1]):
            raise Violation("nothing acknowledged is lost", f"{name} accepts transactions in epoch {epoch}, and lacks "
                                                            "some of what was published")

    def matches(self, name: str, log: Sequence[Record], leader: Sequence[Record], txid: int) -> None:
        """A follower says that its log equals its leader's up to `txid`."""
        if txid and (txid > len(leader) or log[txid - 1] != leader[txid - 1]):
            raise Violation("log matching", f"{name} says that it equals its leader up to {txid}, and does not")

    def reads(self, name: str, shown: int, wanted: int) -> None:
        """A linearizable read returned, and saw `shown` transactions. When it began, `wanted` were acknowledged."""
        if shown < wanted:
            raise Violation("linearizable reads", f"{name} read {shown} transactions, and {wanted} were acknowledged "
                                                  "before the read began")
