"""One history: a cluster comes up, faults happen, they stop, and it must heal."""

from __future__ import annotations

import random  # noqa: TID251  a history is drawn from its seed
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .checker import Violation
from .faults import KINDS, Fault, draw
from .node import Node
from .world import COMMIT_EVERY_S, World

HEAL_TTLS, HEAL_S = 6, 10.0
"""So many ttls and seconds after the last fault, there is one primary, all members vote, and commits succeed."""
SETTLE_TTLS, SETTLE_S = 2, 2.0
"""Then clients stop, and so much later all logs are equal, and all that is in them is shown."""


@dataclass
class Report:
    """What happened in some histories.

    Attributes:
        histories: how many.
        seconds: simulated.
        faults: by kind.
        failovers: epochs that were begun after the first one of their history.
        commits: transactions that were published and acknowledged.
        reads: linearizable reads that returned.
        cuts: logs that were cut.
        ticks: calls of `tick` of all members.
        slowest_heal: seconds from the end of faults to one primary, all members as voters, and a commit.
        digest: of all steps of the last history.
    """

    histories: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    failovers: int = 0
    commits: int = 0
    reads: int = 0
    cuts: int = 0
    ticks: int = 0
    slowest_heal: float = 0.0
    digest: int = 0

    def add(self, other: Report) -> None:
        """Count another one's histories too."""
        for name in ("histories", "seconds", "failovers", "commits", "reads", "cuts", "ticks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.slowest_heal = max(self.slowest_heal, other.slowest_heal)
        self.digest = other.digest

    def __str__(self) -> str:
        faults = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in sorted(self.faults.items()))
        return (f"{self.histories:,} histories, {self.seconds:,.0f} simulated seconds\n"
                f"faults: {sum(self.faults.values()):,} ({faults})\n"
                f"epochs after the first: {self.failovers:,}; logs cut: {self.cuts:,}; ticks: {self.ticks:,}\n"
                f"commits: {self.commits:,}; linearizable reads: {self.reads:,}\n"
                f"slowest healing: {self.slowest_heal:.1f} s")


def run(seed: int, *, members: int = 3, seconds: float = 30.0, every: float = 3.0, kinds: Collection[str] = KINDS,
        faults: Sequence[Fault] | None = None, node_class: type[Node] = Node,
        commit_every: float = COMMIT_EVERY_S) -> Report:
    """Simulate one history. O(simulated seconds x members).

    Args:
        seed: with the other arguments, it decides everything.
        members: at the beginning.
        seconds: with faults; the healing comes on top.
        every: seconds between two faults, on average.
        kinds: of faults.
        faults: these ones, instead of drawing them.
        node_class: the members' driver; a test gives a broken one.
        commit_every: seconds between two rounds of the clients, each of one or two transactions.

    Raises:
        Violation: a promise was broken. It has the seed and the last steps.
    """
    key = (seed, members, seconds, every)
    if faults is None:
        faults = draw(random.Random(repr(key)), seconds, every, kinds)
    world = World(key, members, faults, node_class, commit_every)
    at = 0.0
    while at < seconds:
        at = min(at + 1.0, seconds)
        world.run(at)
        world.look_for_removed()
    world.heal()
    healed_at = world.now
    limit = healed_at + HEAL_TTLS * world.ttl + HEAL_S
    commits = -1
    while True:
        why = world.converged()
        if why is None and commits < 0:
            commits = world.commits
        if why is None and world.commits > commits:
            break
        why = why or "nothing is committed"
        if world.now >= limit:
            _fail(world, f"{world.now - healed_at:.0f} s after the last fault (ttl {world.ttl:g} s): {why}")
        world.run(world.now + 0.25)
    healed = world.now - healed_at
    world.clients_stop = True
    limit = world.now + SETTLE_TTLS * world.ttl + SETTLE_S
    while (why := world.equal()) is not None:
        if world.now >= limit:
            _fail(world, why)
        world.run(world.now + 0.25)
    document = world.coordinator.document
    assert document is not None
    return Report(histories=1, seconds=world.now, faults=world.faults, failovers=document.epoch - 1,
                  commits=world.commits, reads=world.reads, cuts=world.cuts, ticks=world.ticks, slowest_heal=healed,
                  digest=world.digest)


def _fail(world: World, text: str) -> None:
    violation = Violation("it heals", text)
    violation.seed, violation.trace = world.seed, world.trace()
    raise violation
