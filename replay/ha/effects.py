"""What the state machine of a member (`member.py`) asks of its driver.

The driver carries each effect out, in the order in which they are given, and reports the outcome by the method that the
effect names. Effects that may take long run beside the others; the state machine never has two of one kind under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .document import ClusterDocument


class End(NamedTuple):
    """Where a log ends: the epoch of its last record, its number, and the chain up to it. Of two logs of one cluster,
    the greater end may hold what was acknowledged and the other lacks."""

    epoch: int
    txid: int
    chain: bytes

    @property
    def rank(self) -> tuple[int, int]:
        return self.epoch, self.txid


class Answer(NamedTuple):
    """A voter's promise: it refuses log of every epoch below `epoch` from now on, and its log ends at `end`."""

    epoch: int
    generation: int
    end: End
    published: int


class Effect:
    """Base of the effects."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Keep(Effect):
    """Store the document durably, as the last one seen. No report."""

    document: ClusterDocument


@dataclass(frozen=True, slots=True)
class Swap(Effect):
    """Swap the cluster document. Report `swapped`, `conflict`, `unknown` or `unavailable`."""

    version: object
    document: ClusterDocument


@dataclass(frozen=True, slots=True)
class Read(Effect):
    """Read the cluster document now. Report `read` or `unreachable`."""


@dataclass(frozen=True, slots=True)
class Promise(Effect):
    """Store the promise durably. Report `promise_kept`."""

    epoch: int
    to: str


@dataclass(frozen=True, slots=True)
class Ask(Effect):
    """Ask a voter for its promise. Report `answered` or `refused`; a voter that cannot be reached needs no report."""

    name: str
    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Reply(Effect):
    """Answer somebody who asked for a promise. `answer` is None if it is refused: a higher epoch, `promised`, is kept,
    or (then `promised` is lower) this member may not answer now."""

    request: object
    answer: Answer | None
    promised: int


@dataclass(frozen=True, slots=True)
class Fetch(Effect):
    """Make the log here equal to that of another member, up to `end`: find the last common record, cut what is above,
    append the rest. Report `fetched` or `fetch_failed`. If it fails after a cut, report `moved` first, or this member
    takes a log for its own that it no longer has."""

    name: str
    address: str
    end: End


@dataclass(frozen=True, slots=True)
class StartEpoch(Effect):
    """Append the epoch's first record, and sync it. Begin the branch before, unless the log has it. Report
    `epoch_started`. Followers may stream from then on."""

    epoch: int
    branch: str = ""


@dataclass(frozen=True, slots=True)
class Publish(Effect):
    """Show everything up to this transaction, and tell the followers if this member leads. No report."""

    txid: int


@dataclass(frozen=True, slots=True)
class Acknowledge(Effect):
    """Tell the leader of `epoch` that everything up to `txid` is durable here, and that its heartbeat number `beat` was
    heard. No report."""

    epoch: int
    txid: int
    beat: int


@dataclass(frozen=True, slots=True)
class Whole(Effect):
    """Store durably whether this member has all that it may ever have acknowledged, so it may promise. No report."""

    whole: bool


@dataclass(frozen=True, slots=True)
class Follow(Effect):
    """Stream from the leader of an epoch, until `Unfollow` or another `Follow`. If the stream ends, begin it again
    after a moment. Report `connected`, `moved`, `matched`, `heard`, and `lost` if nothing listens there any more.

    Compare logs with the leader only while it serves that epoch, and cut only then. Before, its log may lack what it
    has yet to inherit, and a follower that cut that would destroy what was acknowledged. Report `moved` after a cut."""

    name: str
    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Unfollow(Effect):
    """End the stream. No record of it is appended after this. No report."""


@dataclass(frozen=True, slots=True)
class Accept(Effect):
    """Begin to accept transactions: everything inherited is published. No report."""


@dataclass(frozen=True, slots=True)
class Hold(Effect):
    """Accept no new transactions for now, because the primary is handing over. Report `drained` when none is open and
    the log is durable. An `Accept` may come instead."""


@dataclass(frozen=True, slots=True)
class StepDown(Effect):
    """Stop writing, close the store, and open it again as a follower's. Report `stepped_down`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Poll(Effect):
    """Ask a voter whether it has lost the leader of `epoch` too. Report `polled`."""

    name: str
    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Say(Effect):
    """Log a line. `level`: that of `logging`."""

    level: int
    text: str
