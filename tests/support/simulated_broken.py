"""Members with one wrong rule each, and the invariants that catch them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from holdfast.replay.ha.document import ClusterDocument
from holdfast.replay.ha.effects import Acknowledge, Answer, End, Publish, Reply
from holdfast.replay.ha.member import State, StateMachine
from holdfast.replay.simulation.checker import Record
from holdfast.replay.simulation.faults import KINDS
from holdfast.replay.simulation.node import Node, Stream


class DoesNotFence(StateMachine):
    """It answers a candidate, and goes on accepting the log of the epoch before."""

    def asked(self, name: str, epoch: int, request: object, now: float) -> None:
        if epoch <= self.promised or not self.whole:
            super().asked(name, epoch, request, now)
        else:
            self._out.append(Reply(request, Answer(epoch, self.entry.generation, self.end, self.published), epoch))


class CountsOlderRecords(StateMachine):
    """It publishes what it inherited as soon as enough voters have promised that have it, before they have a record of
    its own epoch. So a log that ends in a later epoch may yet win."""

    def epoch_started(self, end: End, now: float) -> None:
        answers, leads = self._answers, self.state is State.STARTING
        super().epoch_started(end, now)
        if leads:
            self._first, self.watermark = 0, self.published
            same = [name for name, answer in answers.items() if answer.end.rank >= answers[self.name].end.rank]
            self.acked.update((name, end.txid - 1) for name in same if name != self.name)
            self._advance(now)


class ElectsTheShortest(StateMachine):
    """It leads with its own log, whatever the others have."""

    def _count(self, now: float) -> None:
        own = self.end
        self._answers = {name: answer._replace(end=min(answer.end, own)) for name, answer in self._answers.items()}
        super()._count(now)


class PromotesAlone(StateMachine):
    """Its own promise is enough for it."""

    def _count(self, now: float) -> None:
        self._start_epoch()


class PublishesEarly(StateMachine):
    """It publishes what it has on disk."""

    def _advance(self, now: float) -> None:
        super()._advance(now)
        if self.state is State.PRIMARY and self.end.txid > self.watermark:
            self.watermark = self.published = self.end.txid
            self._out.append(Publish(self.watermark))


class CountsJoining(StateMachine):
    """Members that are not voters yet count too."""

    def _advance(self, now: float) -> None:
        document = self._document()
        self.document = replace(document, voters=tuple(document.members), joint=None)
        try:
            super()._advance(now)
        finally:
            self.document = document


class EmptyPromises(StateMachine):
    """It promises before it has caught up."""

    def asked(self, name: str, epoch: int, request: object, now: float) -> None:
        whole, self.whole = self.whole, True
        super().asked(name, epoch, request, now)
        self.whole = whole


class RenewsALostLease(StateMachine):
    """It does not look who leads by now when it renews."""

    def read(self, document: ClusterDocument | None, version: object, now: float) -> None:
        if self.state is State.PRIMARY and document is not None and document.epoch > self.epoch:
            document = replace(document, epoch=self.epoch, leader=self.name, nonce=self._document().nonce)
        super().read(document, version, now)


class ReusesAnEpoch(StateMachine):
    """It becomes leader in the epoch that there is."""

    def _swap(self, kind: str, document: ClusterDocument, now: float) -> None:
        if kind == "acquire" and document.epoch > 1:
            document = replace(document, epoch=document.epoch - 1)
        super()._swap(kind, document, now)


class ReadsWhenDeposed(StateMachine):
    """It takes itself for the primary without asking."""

    def confirms(self, beat: int) -> bool:
        return self.role == "primary"


class EndsAChangeEarly(StateMachine):
    """It changes the voters without waiting for both sets."""

    def _look_at_voters(self, document: ClusterDocument, now: float) -> None:
        if document.joint is not None:
            self._joint_since = 0
        super()._look_at_voters(document, now)


class ForgetsDoubt(StateMachine):
    """It does not read again what became of a swap."""

    def unreachable(self, now: float) -> None:
        self._look(now)


class Spins(StateMachine):
    """It is always due."""

    def deadline(self) -> float | None:
        due = super().deadline()
        return None if due is None else 0.0


class AcksBeforeSync(Node):
    """It acknowledges what is not on disk yet."""

    def _receive_records(self, follower: Node, records: list[Record]) -> None:
        stream = follower.stream
        super()._receive_records(follower, records)
        if stream is not None and len(follower.log) > follower.durable:
            follower._acknowledge(Acknowledge(stream.epoch, len(follower.log), 0))


class IgnoresTheChain(Node):
    """Of two logs, it compares the lengths alone."""

    def common(self, other: list[Record]) -> int:
        return min(len(self.log), len(other))

    def _hailed(self, reply: Any, follower: Node, life: int, epoch: int, connection: int, end: End) -> None:
        if 0 < end.txid <= self.durable:
            end = end._replace(chain=self.log[end.txid - 1][1])
        super()._hailed(reply, follower, life, epoch, connection, end)


class CutsTooMuch(Node):
    """It cuts a few records more, to be sure."""

    def common(self, other: list[Record]) -> int:
        common = super().common(other)
        return common if common == len(self.log) else max(0, common - 3)


class ShowsAllWhenOpened(Node):
    """An opening shows all that is in the log."""

    def start(self) -> None:
        self.disk_watermark = self.durable
        super().start()


class ForgetsPromises(Node):
    """It does not sync a promise before it answers."""

    def crash(self) -> None:
        self.disk_promise = 0, ""
        super().crash()


class ReordersItsStream(Node):
    """It does not keep the order of a stream."""

    def _receive_start(self, follower: Node, stream: Stream, leader_end: int, end: End) -> None:
        super()._receive_start(follower, stream, leader_end, end)
        stream.sent_at = float("-inf")


@dataclass(frozen=True)
class Broken:
    """A broken member, the invariants that catch it, and the faults under which they soon do."""

    name: str
    node_class: type[Node]
    caught_by: tuple[str, ...]
    kinds: tuple[str, ...]


def _broken(wrong: type[StateMachine] | type[Node], caught_by: tuple[str, ...], kinds: tuple[str, ...]) -> Broken:
    node_class = wrong if issubclass(wrong, Node) else type(wrong.__name__, (Node,), {"member_class": wrong})
    return Broken(wrong.__name__, node_class, caught_by, kinds)


LOST = ("nothing acknowledged is lost", "published is never cut", "one history")
"""One fault with three faces: which is seen first depends on who cuts, publishes or leads first."""
LEASES = ("coordinator_of_some", "one_way", "pause", "clock")
CRASHES = ("busy_crash", "crash", "isolate", "split")

BROKEN = (
    _broken(DoesNotFence, LOST, LEASES),
    _broken(CountsOlderRecords, ("only its own epoch counts",), CRASHES),
    _broken(ElectsTheShortest, LOST, CRASHES),
    _broken(PromotesAlone, LOST, CRASHES),
    _broken(PublishesEarly, ("the floor",), KINDS),
    _broken(CountsJoining, ("the floor",), KINDS),
    _broken(EmptyPromises, LOST, (*CRASHES, "wipe")),
    _broken(RenewsALostLease, ("each leader has a higher epoch",), LEASES),
    _broken(ReusesAnEpoch, ("each leader has a higher epoch",), CRASHES),
    _broken(ReadsWhenDeposed, ("linearizable reads",), LEASES),
    _broken(EndsAChangeEarly, LOST, ("remove", *CRASHES)),
    _broken(ForgetsDoubt, ("it heals",), ("swaps", "coordinator_of_some")),
    _broken(Spins, ("does not spin",), KINDS),
    _broken(AcksBeforeSync, ("the floor",), CRASHES),
    _broken(IgnoresTheChain, ("log matching",), CRASHES),
    _broken(CutsTooMuch, ("published is never cut",), CRASHES),
    _broken(ShowsAllWhenOpened, LOST, CRASHES),
    _broken(ForgetsPromises, ("one primary per epoch",), CRASHES),
    _broken(ReordersItsStream, ("log matching",), ("delay", "busy_crash")),
)
