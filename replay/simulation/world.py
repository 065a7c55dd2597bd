"""The simulated world of a cluster: time, network, coordinator, clients, faults.

One queue of events in the order of simulated time. All that is random comes from one generator, so a seed and a list of
faults are one history.
"""

from __future__ import annotations

import random  # noqa: TID251  a history is drawn from its seed
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

from ..ha.document import ClusterDocument
from ..ha.effects import Read, Swap
from ..ha.member import State
from .checker import Checker, Record, Violation
from .faults import Fault
from .node import Node, Stream

LATENCY_S = 0.0005, 0.01
"""Of a message, when nothing is wrong."""
TINY_S = 1e-6
"""Between two messages of a stream."""
TRACE = 60
"""Steps that a violation shows."""
COMMIT_EVERY_S = 0.4
"""Between two rounds of the clients at each primary: one or two transactions, and now and then a read."""


class SimulatedCoordinator:
    """Holds the document. A call arrives after a moment, and its answer after another one; either can be lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.document: ClusterDocument | None = None
        self.version = 0
        self.cut_off: set[str] = set()
        self.trouble = 0.0

    def reachable(self, node: Node) -> bool:
        return node.name not in self.cut_off

    def call(self, node: Node, life: int, call: Swap | Read) -> None:
        world = self.world
        world.push(world.latency(), None, 0, self._arrives, node, life, call)

    def _answer(self, node: Node, life: int, delay: float, outcome: str, *args: Any) -> None:
        self.world.push(delay, node, life, node.called, outcome, *args)

    def _arrives(self, node: Node, life: int, call: Swap | Read) -> None:
        world, rng = self.world, self.world.random
        patience = world.ttl / 3
        back = world.latency()
        if type(call) is Read:
            if self.reachable(node):
                self._answer(node, life, back, "read", self.document, self.version)
            else:
                self._answer(node, life, rng.choice((0.2, patience)), "unreachable")
            return
        assert isinstance(call, Swap)
        if not self.reachable(node):
            # nothing listens, or the request was lost, or only the answer is
            what = rng.random()
            if what < 0.5:
                self._answer(node, life, 0.2, "unavailable")
            else:
                self._answer(node, life, patience, "unknown")
                if what > 0.9:
                    self._swap(node, call)
            return
        if rng.random() < self.trouble:
            world.faults["unknown swaps"] += 1
            self._answer(node, life, patience, "unknown")
            what = rng.random()
            if what < 0.4:
                self._swap(node, call)
            elif what < 0.7:  # the request is on its way for longer than its sender waits
                world.push(rng.uniform(0.0, 3 * patience), None, 0, self._swap, node, call)
            return
        if self._swap(node, call):
            self._answer(node, life, back, "swapped", self.version)
        else:
            self._answer(node, life, back, "conflict")

    def _swap(self, node: Node, call: Swap) -> bool:
        if call.version != self.version:
            return False
        self.put(call.document, node.name)
        return True

    def put(self, document: ClusterDocument, by: str) -> None:
        """Bring a document into force, and tell the members."""
        world, before = self.world, self.document
        world.checker.swaps(by, None if before is None else (before.epoch, before.leader, before.nonce),
                            (document.epoch, document.leader, document.nonce))
        self.document = document
        self.version += 1
        if before is None or before.epoch != document.epoch:
            world.note(by, "makes epoch", document.epoch, document.leader)
        elif before.renewals == document.renewals:
            world.note(by, "swaps the document", document.voters, document.joint)
        for node in world.nodes.values():
            if node.up and node.name != by and node.name not in self.cut_off:
                world.push(world.latency(), node, node.life, node.news, self.version)


class World:
    """See the module's text.

    Attributes:
        nodes: all that were ever members, by name.
        counts of what happened: commits, reads, cuts, ticks, faults (by kind).
        digest: of all steps. Two runs of one seed have the same.
    """

    def __init__(self, seed: object, members: int, faults: Sequence[Fault], node_class: type[Node] = Node,
                 commit_every: float = COMMIT_EVERY_S) -> None:
        self.seed = seed
        self.random = random.Random(repr(seed))
        self.now = 0.0
        self.ttl = self.random.choice((1.0, 2.0, 5.0))
        self.checker = Checker()
        self.coordinator = SimulatedCoordinator(self)
        self.commits = self.reads = self.cuts = self.ticks = self.digest = 0
        self.faults: Counter[str] = Counter()
        self.wiped = False
        self.loss = self.duplication = 0.0
        self.most_delay = 0.0
        self.blocked: Counter[tuple[str, str]] = Counter()
        self.removed: set[str] = set()
        self.wall_us = 0
        self.healed = self.clients_stop = False
        self._trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE)
        self._heap: list[tuple[float, int, Node | None, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self._made = 0
        self._node_class = node_class
        self._commit_every = commit_every
        self.nodes: dict[str, Node] = {}
        floor = "quorum" if self.random.random() < 0.8 else min(members, 2)
        first = self._node_class(self, "a", whole=True)
        self.nodes["a"] = first
        begun = ClusterDocument(cluster="simulated", store_id="ab" * 8, ttl=self.ttl, floor=floor,
                                failsafe=self.random.random() < 0.5, voters=("a",), members={"a": first.entry})
        self.coordinator.put(begun, "a")
        first.disk_document = replace(begun, members={})
        first.start()
        self.push(0.2, None, 0, self._join, members)
        self.push(commit_every, None, 0, self._clients)
        for fault in faults:
            self.push(fault.at, None, 0, self._begin, fault)

    # --- time -----------------------------------------------------------------------------------------------------

    def push(self, delay: float, node: Node | None, life: int, work: Callable[..., object], *args: Any) -> None:
        """Do something later, in a life of a node; `node` None: whatever happens."""
        self._count += 1
        heappush(self._heap, (self.now + delay, self._count, node, life, work, args))

    def run(self, until: float) -> None:
        """Let time pass."""
        heap = self._heap
        try:
            while heap and heap[0][0] <= until:
                at, _, node, life, work, args = heappop(heap)
                if node is not None:
                    if node.life != life:
                        continue
                    if node.paused_until > at:
                        node.held.append((life, work, args))
                        continue
                self.now = at
                work(*args)
            self.now = until
        except (Violation, AssertionError) as error:
            violation = error if isinstance(error, Violation) else Violation("the state machine's own", repr(error))
            violation.seed, violation.trace = self.seed, self.trace()
            raise violation from error

    def note(self, name: str, what: str, *details: object) -> None:
        """A step of the history."""
        step = (self.now, name, what, details)
        self._trace.append(step)
        self.digest = zlib.crc32(repr(step).encode(), self.digest)

    def trace(self) -> tuple[str, ...]:
        """The last steps, for people."""
        return tuple(f"{at:10.4f} {name} {what} {' '.join(map(str, details))}"
                     for at, name, what, details in self._trace)

    def now_us(self) -> int:
        """The wall clock, which may jump."""
        return self.wall_us + int(self.now * 1e6)

    def nonce(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    def chain(self) -> bytes:
        """The chain of a new record: stands for the log up to it."""
        self._made += 1
        return b"%d" % self._made

    # --- the network ----------------------------------------------------------------------------------------------

    def latency(self) -> float:
        low, high = LATENCY_S
        delay = low + (high - low) * self.random.random()
        return delay + self.random.random() * self.most_delay if self.most_delay else delay

    def passes(self, source: str, target: str) -> bool:
        """Whether a message gets through."""
        return not self.blocked[source, target] and not (self.loss and self.random.random() < self.loss)

    def rpc(self, source: Node, target: str, ask: Callable[..., None], args: tuple[Any, ...],
            replied: Callable[..., None], refused: Callable[[], None] | None = None, once: bool = False) -> None:
        """A question and its answer. Both can be lost, late, reordered with others, and doubled if not `once`.
        `refused`: called if nothing listens there."""
        life = source.life
        doubled = 0.0 if once else self.duplication

        def reply(*answer: Any) -> None:
            for _ in range(2 if doubled and self.random.random() < doubled else 1):
                if self.passes(target, source.name):
                    self.push(self.latency(), source, life, replied, *answer)

        def arrive() -> None:
            node = self.nodes.get(target)
            if node is not None and node.up:
                self.push(0.0, node, node.life, ask, node, reply, *args)
            elif refused is not None and not self.blocked[target, source.name]:
                self.push(self.latency(), source, life, refused)

        for _ in range(2 if doubled and self.random.random() < doubled else 1):
            if self.passes(source.name, target):
                self.push(self.latency(), None, 0, arrive)

    def send(self, stream: Stream, work: Callable[..., None], *args: Any) -> None:
        """A message on a stream: it arrives after those before it, or the stream ends."""
        if not stream.alive:
            return
        if not self.passes(stream.leader.name, stream.follower.name):
            self.break_stream(stream)
            return
        stream.sent_at = at = max(stream.sent_at + TINY_S, self.now + self.latency())
        self.push(at - self.now, stream.follower, stream.follower_life, self._deliver, stream, work, args)

    def _deliver(self, stream: Stream, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        if stream.connection == stream.follower.connection:
            work(stream.follower, *args)

    def send_ack(self, stream: Stream, *ack: Any) -> None:
        """An acknowledgement, on a connection of its own beside the stream."""
        if not self.passes(stream.follower.name, stream.leader.name):
            self.break_stream(stream)
            return
        stream.acked_at = at = max(stream.acked_at + TINY_S, self.now + self.latency())
        self.push(at - self.now, stream.leader, stream.leader_life, stream.leader.receive_ack, *ack)

    def break_stream(self, stream: Stream) -> None:
        """End a stream. Its follower sees that after a moment."""
        if stream.alive:
            stream.alive = False
            follower = stream.follower
            self.push(self.random.random() * self.ttl / 4, follower, stream.follower_life, follower.broken,
                      stream.connection)

    def listening_ended(self, node: Node) -> None:
        """A process has died: its connections are reset."""
        for stream in node.streams.values():
            self.break_stream(stream)
        node.streams = {}

    def check_match(self, node: Node, epoch: int, txid: int) -> None:
        """A follower says what it has in common with its leader."""
        document = node.machine.document
        if document is not None and node.following is not None and node.following.epoch == epoch:
            leader = self.nodes[node.following.name]
            if leader.up and leader.machine.serving == epoch:
                self.checker.matches(node.name, node.log, leader.log, txid)

    # --- clients and operators ------------------------------------------------------------------------------------

    def _clients(self) -> None:
        if self.clients_stop:
            return
        rng = self.random
        for node in self.nodes.values():
            if node.up and node.accepting:  # or it is paused, and finds the requests when it goes on
                for _ in range(rng.choice((1, 1, 2))):
                    self.push(0.0, node, node.life, node.commit)
                if rng.random() < 0.3:
                    self.push(0.0, node, node.life, node.read_linearizably)
        self.push(self._commit_every * rng.uniform(0.5, 1.5), None, 0, self._clients)

    def _join(self, members: int) -> None:
        for name in "abcde"[1:members]:
            self.add(name)

    def add(self, name: str) -> None:
        """A new member with an empty directory, once there is a cluster."""
        if self.coordinator.document is None:
            self.push(0.5, None, 0, self.add, name)
            return
        if name not in self.nodes:
            self.nodes[name] = node = self._node_class(self, name, whole=False)
            node.start()

    def primary(self) -> Node | None:
        """Somebody who takes transactions now."""
        return next((n for n in self.nodes.values() if n.up and n.machine.state is State.PRIMARY), None)

    def _name(self, index: int) -> str:
        """A member. 5 is the primary, if there is one."""
        primary = self.primary() if index == 5 else None
        if primary is not None:
            return primary.name
        names = [n for n in sorted(self.nodes) if n not in self.removed]
        return names[index % len(names)]

    def _begin(self, fault: Fault) -> None:
        if self.healed:
            return
        end = getattr(self, "_fault_" + fault.kind)(fault)
        if end is not False:
            self.faults[fault.kind] += 1
            self.note("-", "fault:", fault.kind, fault.member, round(fault.lasts, 3), fault.more)
            if end is not None:
                self.push(fault.lasts, None, 0, end)

    def _fault_crash(self, fault: Fault) -> Any:
        node = self.nodes[self._name(fault.member)]
        if not node.up:
            return False
        node.crash()
        return lambda: self._start(node)

    def _start(self, node: Node) -> None:
        if not node.up and node.name not in self.removed:
            node.start()

    def _fault_busy_crash(self, fault: Fault) -> Any:
        """The primary dies while it writes: what it has sent has reached some, and none, and all."""
        node = self.primary()
        if node is None:
            return False
        for _ in range(1 + fault.more // 4):
            self.push(0.0, node, node.life, node.commit)
        life = node.life

        def die() -> None:
            if node.life == life:
                node.crash()
                self.push(fault.lasts, None, 0, self._start, node)
        self.push(self.random.uniform(0.0, 0.03), None, 0, die)
        return None

    def _fault_pause(self, fault: Fault) -> Any:
        node = self.nodes[self._name(fault.member)]
        if not node.up:
            return False
        node.commit()
        node.paused_until = max(node.paused_until, self.now + fault.lasts)
        return lambda: self._resume(node)

    def _resume(self, node: Node) -> None:
        """A process goes on. All that came meanwhile comes now, in the same order."""
        if node.paused_until <= self.now:
            held, node.held = node.held, []
            for life, work, args in held:
                self.push(0.0, node, life, work, *args)

    def _block(self, pairs: list[tuple[str, str]]) -> Any:
        for pair in pairs:
            self.blocked[pair] += 1

        def end() -> None:
            for pair in pairs if not self.healed else ():
                self.blocked[pair] -= 1
        return end

    def _fault_one_way(self, fault: Fault) -> Any:
        source, target = self._name(fault.member), self._name(fault.member + 1 + fault.more)
        return self._block([(source, target)]) if source != target else False

    def _fault_split(self, fault: Fault) -> Any:
        names = sorted(self.nodes)
        here = {n for i, n in enumerate(names) if fault.more >> i & 1}
        return self._block([(a, b) for a in names for b in names if (a in here) != (b in here)])

    def _fault_isolate(self, fault: Fault) -> Any:
        """A member is cut off from everybody, the coordinator included."""
        name = self._name(fault.member)
        ends = [self._block([p for other in self.nodes if other != name for p in ((name, other), (other, name))]),
                self._cut_off({name})]

        def end() -> None:
            for each in ends:
                each()
        return end

    def _cut_off(self, names: set[str]) -> Any:
        coordinator = self.coordinator
        names -= coordinator.cut_off
        coordinator.cut_off |= names

        def end() -> None:
            coordinator.cut_off -= names
        return end

    def _fault_coordinator(self, fault: Fault) -> Any:
        return self._cut_off(set(self.nodes))

    def _fault_coordinator_of_some(self, fault: Fault) -> Any:
        return self._cut_off({self._name(fault.member), *(n for i, n in enumerate(self.nodes) if fault.more >> i & 1)})

    def _fault_swaps(self, fault: Fault) -> Any:
        """The outcomes of swaps are not known."""
        return self._for_a_while(self.coordinator, "trouble", 0.5)

    def _for_a_while(self, target: Any, name: str, value: float) -> Any:
        healthy = 1.0 if name == "slow" else 0.0
        setattr(target, name, value)
        return lambda: setattr(target, name, healthy)

    def _fault_loss(self, fault: Fault) -> Any:
        return self._for_a_while(self, "loss", 0.05 + fault.more / 64)

    def _fault_duplication(self, fault: Fault) -> Any:
        return self._for_a_while(self, "duplication", 0.3)

    def _fault_delay(self, fault: Fault) -> Any:
        return self._for_a_while(self, "most_delay", self.ttl * (1 + fault.more) / 16)

    def _fault_slow_disk(self, fault: Fault) -> Any:
        return self._for_a_while(self.nodes[self._name(fault.member)], "slow", (10.0, 100.0, 300.0)[fault.more % 3])

    def _fault_clock(self, fault: Fault) -> Any:
        """Clocks that run too fast or too slow by a tenth, and a wall clock that jumps."""
        node = self.nodes[self._name(fault.member)]
        node.set_rate(0.9 if fault.more % 2 else 1.1)
        self.wall_us += (fault.more - 8) * 3_600_000_000
        return lambda: node.set_rate(1.0)

    def _fault_switch_over(self, fault: Fault) -> Any:
        node = self.primary()
        if node is None or node.paused_until > self.now:
            return False
        refused = node.machine.switch_over(self._name(fault.member), node.now())
        node.pump()
        return None if refused is None else False

    def _fault_remove(self, fault: Fault) -> Any:
        node, name = self.primary(), self._name(fault.member)
        document = self.coordinator.document
        if (node is None or node.paused_until > self.now or document is None or len(document.voters) < 3
                or len(self.nodes) - len(self.removed) < 3 or node.machine.remove(name, node.now()) is not None):
            return False
        node.pump()
        return None

    def _fault_add(self, fault: Fault) -> Any:
        name = "ghijklmnopqrstuvwxyz"[len(self.nodes) % 20]
        if len(self.nodes) - len(self.removed) > 5 or name in self.nodes or self.coordinator.document is None:
            return False
        self.add(name)
        return None

    def _fault_tag(self, fault: Fault) -> Any:
        """A member is opened again with another tag, and later without it."""
        node = self.nodes[self._name(fault.member)]
        if not node.up or any(n.entry.no_failover or n.entry.no_sync for n in self.nodes.values()):
            return False

        def reopen(*, no_sync: bool = False, no_failover: bool = False) -> None:
            if node.name in self.removed or self.healed:
                return
            if node.up:
                node.crash()
            node.entry = replace(node.entry, no_sync=no_sync, no_failover=no_failover)
            node.start()
        reopen(no_sync=fault.more % 2 == 1, no_failover=fault.more % 2 == 0)
        return reopen

    def _fault_paused(self, fault: Fault) -> Any:
        """An operator says that nobody shall be promoted for a while."""
        def put(paused: bool) -> None:
            document = self.coordinator.document
            if document is not None and document.paused != paused:
                self.coordinator.put(replace(document, paused=paused), "-")
        put(True)
        return lambda: put(False)

    def _fault_wipe(self, fault: Fault) -> Any:
        """A member's directory is lost. One, because each set that can promote must survive."""
        node, document = self.nodes[self._name(fault.member)], self.coordinator.document
        if (self.wiped or document is None or len(document.voters) < 3 or document.joint is not None
                or not all(self.nodes[n].disk_whole for n in document.members)):
            return False
        if node.up:
            node.crash()
        node.wipe()
        self.wiped = True
        return lambda: self._start(node)

    # --- the end --------------------------------------------------------------------------------------------------

    def look_for_removed(self) -> None:
        """Processes of members that were removed are stopped by their operator."""
        document = self.coordinator.document
        if document is None:
            return
        for node in self.nodes.values():
            if node.name not in document.members and node.disk_document is not None and (
                    node.name in node.disk_document.members) and node.name not in self.removed:
                self.removed.add(node.name)
                if node.up:
                    node.crash()

    def heal(self) -> None:
        """All faults end."""
        self.healed = True
        self.note("-", "heals")
        self.loss = self.duplication = self.most_delay = self.coordinator.trouble = 0.0
        self.blocked.clear()
        self.coordinator.cut_off.clear()
        document = self.coordinator.document
        if document is not None and document.paused:
            self.coordinator.put(replace(document, paused=False), "-")
        self.look_for_removed()
        for node in self.nodes.values():
            node.slow = 1.0
            node.paused_until = min(node.paused_until, self.now)
            self._resume(node)
            if node.name in self.removed:
                continue
            if node.entry.no_failover or node.entry.no_sync:
                if node.up:
                    node.crash()
                node.entry = replace(node.entry, no_failover=False, no_sync=False)
            self._start(node)

    def converged(self) -> str | None:
        """Why the cluster is not whole and at rest, or None."""
        self.look_for_removed()
        document = self.coordinator.document
        if document is None:
            return "there is no cluster"
        live = [n for n in self.nodes.values() if n.name not in self.removed]
        primaries = [n for n in live if n.machine.state is State.PRIMARY]
        if len(primaries) != 1 or document.leader != primaries[0].name:
            return f"{len(primaries)} primaries: {[(n.name, n.machine.state.value) for n in live]}"
        if document.joint is not None:
            return "the voters are being changed"
        if set(document.voters) != {n.name for n in live}:
            return f"voters are {document.voters}, members {[n.name for n in live]}"
        if any(node.machine.trouble for node in live):
            return f"{[n.machine.trouble for n in live]}"
        return None

    def equal(self) -> str | None:
        """Why the logs of the live members are not the same and all shown, or None."""
        self.look_for_removed()
        live = [n for n in self.nodes.values() if n.name not in self.removed]
        logs: list[list[Record]] = [n.log[:n.durable] for n in live]
        if any(log != logs[0] for log in logs):
            return f"logs end at {[(n.name, n.durable) for n in live]}"
        if any(n.published != len(logs[0]) for n in live):
            return f"of {len(logs[0])} transactions, members show {[(n.name, n.published) for n in live]}"
        return None
