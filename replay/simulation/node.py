"""A simulated member: the real state machine, with a driver whose disk, clock and network are simulated.

The log is a list of (epoch, chain), of which the first `durable` survive a crash. As in a real member, whatever changes
the log waits its turn in one queue, promises and documents in another one, and calls of the coordinator in a third one.
"""

from __future__ import annotations

import random  # noqa: TID251  a history is drawn from its seed
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..ha.document import ClusterDocument, MemberEntry
from ..ha.effects import (
    Accept,
    Acknowledge,
    Answer,
    Ask,
    Effect,
    End,
    Fetch,
    Follow,
    Hold,
    Keep,
    Poll,
    Promise,
    Publish,
    Read,
    Reply,
    Say,
    StartEpoch,
    StepDown,
    Swap,
    Unfollow,
    Whole,
)
from ..ha.member import State, StateMachine
from ..ha.quorum import copies
from .checker import Record, Violation

LEAST_WAIT_S = 0.02
"""Between two calls of `tick`, as in the real driver."""
MOST_TICKS = 30
"""So many ticks in a row that are due at once are a state machine that spins."""
RETRY_S = 0.2
BEATS = 10


class Stream:
    """What a leader sends to one follower, in order. `alive` ends when anything on it is lost."""

    __slots__ = ("acked_at", "alive", "connection", "epoch", "follower", "follower_life", "leader", "leader_life",
                 "sent", "sent_at")

    def __init__(self, leader: Node, follower: Node, epoch: int, connection: int, sent: int) -> None:
        self.leader, self.follower, self.epoch, self.connection = leader, follower, epoch, connection
        self.leader_life, self.follower_life = leader.life, follower.life
        self.sent, self.alive = sent, True
        self.sent_at = self.acked_at = 0.0  # when the last message of each direction arrives


class Node:
    """See the module's text. `disk_*`: what survives a crash. `world`: the `World` that it is in, whose module needs
    this one."""

    member_class: type[StateMachine] = StateMachine

    def __init__(self, world: Any, name: str, *, whole: bool) -> None:
        self.world = world
        self.name = name
        self.random: random.Random = world.random
        self.entry = MemberEntry(address=name, generation=0, instance="")
        self.life = 0
        self.up = False
        self.paused_until = 0.0
        self.held: list[tuple[int, Callable[..., object], tuple[Any, ...]]] = []  # what came while it was paused
        self.rate = 1.0 + self.random.uniform(-0.0005, 0.0005)
        self.offset = self.random.uniform(0.0, 1e4)
        self.slow = 1.0
        self.log: list[Record] = []
        self.durable = 0
        self.disk_promise: tuple[int, str] = (0, "")
        self.disk_document: ClusterDocument | None = None
        self.disk_whole = whole
        self.disk_generation = 0
        self.disk_watermark = 0
        self.shown_ever = 0
        self.machine: StateMachine

    # --- life -----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Its monotonic clock."""
        return float(self.world.now * self.rate + self.offset)

    def set_rate(self, rate: float) -> None:
        """Let its clock run at another rate from now on."""
        self.offset += self.world.now * (self.rate - rate)
        self.rate = rate

    def start(self) -> None:
        """Open the directory."""
        self.life += 1
        self.up = True
        self.disk_generation += 1
        self.entry = replace(self.entry, generation=self.disk_generation, instance=f"{self.name}.{self.life}")
        self.published = min(self.disk_watermark, self.durable)
        self.world.checker.published(self.name, self.log, 0, self.published, self.durable)
        self.accepting = self.syncing = self.busy = self.calling = False
        self.store_epoch = 0
        self.opening = 0
        self.jobs: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self.files_free = 0.0
        self.calls: deque[Swap | Read] = deque()
        self.streams: dict[str, Stream] = {}
        self.stream: Stream | None = None
        self.connection = 0
        self.following: Follow | None = None
        self.last_ack = (-1, -1, -1)
        self.beat = 0
        self.reads: list[tuple[int, int]] = []
        self.tick_at = float("inf")
        self.least_tick = 0.0
        self.idle_ticks = 0
        self.served = 0
        self.machine = self.member_class(
            self.name, self.entry, promised=self.disk_promise, end=self.end(), published=self.published,
            kept=self.disk_document, whole=self.disk_whole, nonce=self.world.nonce, now_us=self.world.now_us)
        self.world.note(self.name, "starts", self.disk_generation, self.durable, self.published)
        self._call(Read())
        self.after(self.random.uniform(0.0, self.world.ttl / BEATS), self._beats)
        self.after(self.random.uniform(0.0, self.world.ttl / 3), self._watch)
        self.pump()

    def crash(self) -> None:
        """The process dies. Of what is not synced, any part may have reached the disk."""
        self.world.note(self.name, "crashes", self.durable, len(self.log))
        self.up = self.accepting = False
        self.life += 1
        self.paused_until, self.held = 0.0, []
        kept = self.random.randint(self.durable, max(self.durable, len(self.log)))
        del self.log[kept:]
        self.durable = kept
        self.world.listening_ended(self)

    def wipe(self) -> None:
        """The directory is lost, and an empty one takes its name over."""
        self.log, self.durable, self.disk_watermark, self.shown_ever = [], 0, 0, 0
        document = self.world.coordinator.document
        assert document is not None
        self.disk_promise = document.epoch, document.leader or ""
        self.disk_document, self.disk_whole = document, False
        entry = document.members.get(self.name)
        self.disk_generation = max(self.disk_generation, 0 if entry is None else entry.generation) + 1

    def after(self, delay: float, work: Callable[..., None], *args: Any) -> None:
        """Do something later in this life."""
        assert self.up, f"{self.name} is dead, and does something"
        self.world.push(delay, self, self.life, work, *args)

    def end(self) -> End:
        if not self.durable:
            return End(0, 0, b"")
        epoch, chain = self.log[self.durable - 1]
        return End(epoch, self.durable, chain)

    def sync_time(self) -> float:
        return self.random.uniform(0.0005, 0.003) * self.slow

    # --- effects --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Carry the effects of an event out, and see when the next tick is due."""
        machine, effects = self.machine, self.effects
        while machine._out:
            for effect in machine.take():
                effects[type(effect)](self, effect)
        serving = machine.serving
        if serving != self.served:
            self.served = serving
            self.world.note(self.name, machine.state.value, serving)
            if serving:
                self.world.checker.serves(self.name, self.life, serving)
        if self.reads:
            self._look_at_reads()
        due = machine.deadline()
        if due is not None:
            at = max((due - self.offset) / self.rate, self.least_tick)
            if at < self.tick_at:
                self.tick_at = max(at, self.world.now)
                self.after(self.tick_at - self.world.now, self._tick, self.tick_at)

    def _tick(self, at: float) -> None:
        if at != self.tick_at:
            return
        self.tick_at = float("inf")
        machine, now = self.machine, self.now()
        due = machine.deadline()
        if due is not None and due <= now + 1e-9:
            self.least_tick = self.world.now + LEAST_WAIT_S
            self.world.ticks += 1
            machine.tick(max(now, due))
            again = machine.deadline()
            self.idle_ticks = self.idle_ticks + 1 if again is not None and again <= now and not machine._out else 0
            if self.idle_ticks > MOST_TICKS:
                raise Violation("does not spin", f"{self.name}, {machine.state.value}, is due at once after "
                                                 f"{MOST_TICKS} ticks that did nothing")
        self.pump()

    def _say(self, effect: Say) -> None:
        self.world.note(self.name, "says", effect.text)

    def _file(self, done: Callable[[], None]) -> None:
        at = max(self.world.now, self.files_free) + self.sync_time()
        self.files_free = at
        self.after(at - self.world.now, done)

    def _keep(self, effect: Keep) -> None:
        def done() -> None:
            self.disk_document = effect.document
        self._file(done)

    def _whole(self, effect: Whole) -> None:
        def done() -> None:
            self.disk_whole = effect.whole
        self._file(done)

    def _promise(self, effect: Promise) -> None:
        self.world.note(self.name, "promises", effect.epoch, effect.to)

        def done() -> None:
            if effect.epoch < self.disk_promise[0]:
                raise Violation("promises grow", f"{self.name} promised {self.disk_promise[0]}, and now {effect.epoch}")
            self.disk_promise = effect.epoch, effect.to
            self.machine.promise_kept(effect.epoch, self.now())
            self.pump()
        self._file(done)

    # --- the coordinator ------------------------------------------------------------------------------------------

    def _call(self, effect: Swap | Read) -> None:
        self.calls.append(effect)
        if not self.calling:
            self._next_call()

    def _next_call(self) -> None:
        if self.calls:
            self.calling = True
            call = self.calls.popleft()
            self.world.coordinator.call(self, self.life, call)

    def called(self, outcome: str, *args: Any) -> None:
        """A call has ended."""
        self.calling = False
        if outcome != "read":
            self.world.note(self.name, "coordinator:", outcome)
        getattr(self.machine, outcome)(*args, self.now())
        self.pump()
        if not self.calling:
            self._next_call()

    def news(self, version: int) -> None:
        """The document has changed."""
        if version != self.machine.version and not any(type(call) is Read for call in self.calls):
            self._call(Read())

    def _watch(self) -> None:
        coordinator = self.world.coordinator
        if coordinator.reachable(self) and coordinator.version != self.machine.version:
            self.news(coordinator.version)
        self.after(self.world.ttl / 3, self._watch)

    # --- the log --------------------------------------------------------------------------------------------------

    def _job(self, begin: Callable[[], bool], done: Callable[[], None]) -> None:
        """Have something done with the log when its turn comes: `begin` says whether to, `done` is after the sync."""
        self.jobs.append((begin, done))
        if not self.busy:
            self._next_job()

    def _next_job(self) -> None:
        while self.jobs:
            begin, done = self.jobs.popleft()
            if begin():
                self.busy = True
                self.after(self.sync_time(), self._job_done, done)
                return

    def _job_done(self, done: Callable[[], None]) -> None:
        self.busy = False
        done()
        if not self.busy:
            self._next_job()

    def append(self, records: list[Record]) -> None:
        first = len(self.log)
        self.log.extend(records)
        self.world.checker.appended(self.name, self.log, first)

    def cut(self, length: int) -> None:
        self.world.note(self.name, "cuts", len(self.log), length)
        self.world.checker.cut(self.name, self.log, length, self.shown_ever)
        self.world.cuts += 1
        del self.log[length:]
        self.durable = min(self.durable, length)

    def common(self, other: list[Record]) -> int:
        """How many records the log here has in common with another one."""
        low, high = 0, min(len(self.log), len(other))
        while low < high:
            middle = (low + high + 1) // 2
            if self.log[middle - 1] == other[middle - 1]:
                low = middle
            else:
                high = middle - 1
        return low

    def _start_epoch(self, effect: StartEpoch) -> None:
        def begin() -> bool:
            self._write(effect.epoch)
            return True

        def done() -> None:
            self.store_epoch, self.durable = effect.epoch, len(self.log)
            self.machine.epoch_started(self.end(), self.now())
            self.pump()
        self._job(begin, done)

    def _write(self, epoch: int) -> None:
        world = self.world
        record = epoch, world.chain()
        world.checker.made(record, self.log[-1][1] if self.log else b"")
        self.append([record])

    def commit(self) -> None:
        """A client's transaction."""
        if self.accepting:
            self._write(self.store_epoch)
            if not self.syncing:
                self._sync()

    def _sync(self) -> None:
        self.syncing = True
        self.after(self.sync_time(), self._synced, self.opening, len(self.log))

    def _synced(self, opening: int, upto: int) -> None:
        if opening != self.opening:
            return
        self.syncing = False
        if upto > self.durable:
            self.durable = upto
            self._logged()
        if len(self.log) > self.durable:
            self._sync()

    def _logged(self) -> None:
        """Records are durable: send them, and tell the state machine."""
        if self.machine.serving:
            self._ship()
            self.machine.moved(self.end(), self.now())
            self.pump()

    def _ship(self) -> None:
        for stream in list(self.streams.values()):
            if stream.alive and stream.sent < self.durable:
                records, stream.sent = self.log[stream.sent:self.durable], self.durable
                self.world.send(stream, self._receive_records, records)

    def _publish(self, effect: Publish) -> None:
        upto, world, machine = effect.txid, self.world, self.machine
        before = self.published
        world.checker.published(self.name, self.log, before, upto, self.durable)
        self.published = upto
        self.shown_ever = max(self.shown_ever, upto)
        if machine.serving:
            document = machine.document
            assert document is not None
            world.checker.counts(self.name, self.log[upto - 1], upto, machine.serving)
            if not world.wiped:
                for voters in document.sets:
                    record = self.log[upto - 1]
                    nodes = world.nodes
                    world.checker.held(self.name, record, upto, (
                        nodes[n].durable >= upto and nodes[n].log[upto - 1] == record for n in voters),
                        copies(document.floor, voters))
            world.commits += upto - before
            world.checker.acknowledges(self.name, self.log, upto)
            self._heartbeat()

    def _accept(self, effect: Accept) -> None:
        self.world.checker.accepts(self.name, self.log, self.machine.epoch)

        def begin() -> bool:
            self.accepting = True
            return False
        self._job(begin, lambda: None)

    def _hold(self, effect: Hold) -> None:
        def begin() -> bool:
            self.accepting = False
            return True

        def done() -> None:
            if len(self.log) > self.durable:
                self.durable = len(self.log)
                self._logged()
            self.machine.drained(self.end(), self.now())
            self.pump()
        self._job(begin, done)

    def _step_down(self, effect: StepDown) -> None:
        def begin() -> bool:
            self.accepting = self.syncing = False
            self.opening += 1
            self.store_epoch = 0
            self._end_streams()
            return True

        def done() -> None:
            self.durable = len(self.log)
            self.machine.stepped_down(self.end(), self.published, self.now())
            self.pump()
        self.world.note(self.name, "steps down")
        self._job(begin, done)

    # --- promises -------------------------------------------------------------------------------------------------

    def _ask(self, effect: Ask) -> None:
        self.world.rpc(self, effect.name, Node._asked, (self.name, effect.epoch), self._replied)

    def _asked(self, reply: Callable[..., None], name: str, epoch: int) -> None:
        self.machine.asked(name, epoch, reply, self.now())
        self.pump()

    def _reply(self, effect: Reply) -> None:
        assert callable(effect.request)
        effect.request(self.name, effect.answer, effect.promised)

    def _replied(self, name: str, answer: Answer | None, promised: int) -> None:
        if answer is None:
            self.machine.refused(name, promised, self.now())
        else:
            self.machine.answered(name, answer, self.now())
        self.pump()

    def _poll(self, effect: Poll) -> None:
        self.world.rpc(self, effect.name, Node._polled, (), self._poll_replied)

    def _polled(self, reply: Callable[..., None]) -> None:
        reply(self.name, self.machine.status()["lost"])

    def _poll_replied(self, name: str, lost: int | None) -> None:
        self.machine.polled(name, lost, self.now())
        self.pump()

    def _fetch(self, effect: Fetch) -> None:
        state = {"open": True}

        def replied(log: list[Record]) -> None:
            if state["open"]:
                state["open"] = False
                self._fetch_log(effect, log)

        def late() -> None:
            if state["open"]:
                state["open"] = False
                self.machine.fetch_failed(effect.name, self.now())
                self.pump()
        self.world.rpc(self, effect.name, Node._log_wanted, (), replied)
        self.after(self.world.ttl / 4, late)

    def _log_wanted(self, reply: Callable[..., None]) -> None:
        reply(self.log[:self.durable])

    def _log_compared(self, reply: Callable[..., None], epoch: int) -> None:
        """Before it serves, it may lack what it has to inherit, and nobody may cut that."""
        reply(self.log[:self.durable] if self.machine.serving == epoch else None)

    def _fetch_log(self, effect: Fetch, log: list[Record]) -> None:
        wanted, fails = effect.end, self.random.random() < self.world.loss

        def begin() -> bool:
            if self.machine.state is not State.FETCHING:
                self.machine.fetch_failed(effect.name, self.now())
                self.pump()
                return False
            common = self.common(log)
            if common < len(self.log):
                self.cut(common)
            if not fails and len(log) >= wanted.txid:
                self.append(log[common:wanted.txid])
            return True

        def done() -> None:
            self.durable = len(self.log)
            end = self.end()
            if end == wanted:
                self.machine.fetched(end, self.now())
            else:
                self.machine.moved(end, self.now())
                self.machine.fetch_failed(effect.name, self.now())
            self.pump()
        self._job(begin, done)

    # --- following ------------------------------------------------------------------------------------------------

    def _follow(self, effect: Follow) -> None:
        self.following = effect
        self._connect()

    def _unfollow(self, effect: Unfollow) -> None:
        self.following = None
        self.connection += 1
        if self.stream is not None:
            self.stream.alive = False
        self.stream = None

    def _connect(self) -> None:
        self.connection += 1
        self.stream = None
        effect, connection = self.following, self.connection
        if effect is None:
            return
        self.world.rpc(self, effect.name, Node._log_compared, (effect.epoch,),
                       lambda log: self._compare(connection, log),
                       refused=lambda: self._refused(connection), once=True)
        self.after(1.0, self._connect_again, connection)

    def _refused(self, connection: int) -> None:
        if connection == self.connection and self.following is not None:
            self.machine.lost(self.following.epoch, self.now())
            self.pump()

    def _connect_again(self, connection: int) -> None:
        if connection == self.connection and (self.stream is None or not self.stream.alive):
            self._connect()

    def broken(self, connection: int) -> None:
        """The stream has ended."""
        if connection == self.connection:
            self.stream = None
            self.after(self.random.uniform(0.05, 0.3), self._connect_again, connection)

    def _compare(self, connection: int, log: list[Record] | None) -> None:
        if connection != self.connection or self.following is None:
            return
        if log is None:
            self.broken(connection)
            return
        epoch, name = self.following.epoch, self.following.name

        def begin() -> bool:
            if connection != self.connection or not self.machine.accepts(epoch):
                return False
            common = self.common(log)
            if common == len(self.log):
                self._hello(connection, name, epoch)
                return False
            self.cut(common)
            return True

        def done() -> None:
            self.machine.moved(self.end(), self.now())
            self.pump()
            if connection == self.connection:
                self._hello(connection, name, epoch)
        self._job(begin, done)

    def _hello(self, connection: int, leader: str, epoch: int) -> None:
        end = self.end()
        self.world.rpc(self, leader, Node._hailed, (self, self.life, epoch, connection, end),
                       lambda: self.broken(connection), once=True)

    def _hailed(self, reply: Callable[..., None], follower: Node, life: int, epoch: int, connection: int,
                end: End) -> None:
        if (epoch != self.machine.serving or end.txid > self.durable
                or (end.txid and self.log[end.txid - 1][1] != end.chain)):
            reply()
            return
        stream = Stream(self, follower, epoch, connection, end.txid)
        stream.follower_life = life
        old = self.streams.get(follower.name)
        if old is not None:
            self.world.break_stream(old)
        self.streams[follower.name] = stream
        self.world.send(stream, self._receive_start, stream, self.durable, end)
        self.world.send(stream, self._receive_beat, epoch, self.machine.watermark, self.beat)
        self._ship()

    def _end_streams(self) -> None:
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self.world.break_stream(stream)

    def _receive_start(self, follower: Node, stream: Stream, leader_end: int, end: End) -> None:
        follower.stream = stream
        follower.last_ack = (-1, -1, -1)
        machine, now = follower.machine, follower.now()
        machine.moved(follower.end(), now)
        machine.connected(stream.epoch, leader_end)
        follower.matched(stream.epoch, end.txid)

    def _receive_records(self, follower: Node, records: list[Record]) -> None:
        stream = follower.stream
        if stream is None:
            return
        epoch, connection = stream.epoch, follower.connection

        def begin() -> bool:
            if connection != follower.connection or not follower.machine.accepts(epoch):
                return False
            follower.append(records)
            return True

        def done() -> None:
            follower.durable = len(follower.log)
            follower.machine.moved(follower.end(), follower.now())
            follower.matched(epoch, follower.durable)
        follower._job(begin, done)

    def matched(self, epoch: int, txid: int) -> None:
        """The log here is known to equal the leader's up to `txid`."""
        if self.machine.accepts(epoch):
            self.world.check_match(self, epoch, txid)
        self.machine.matched(epoch, txid, self.now())
        self.pump()

    def _receive_beat(self, follower: Node, epoch: int, watermark: int, beat: int) -> None:
        follower.machine.heard(epoch, watermark, beat, follower.now())
        follower.pump()

    def _acknowledge(self, effect: Acknowledge) -> None:
        stream = self.stream
        ack = effect.epoch, effect.txid, effect.beat
        if stream is not None and stream.epoch == effect.epoch and ack != self.last_ack:
            self.last_ack = ack
            self.world.send_ack(stream, self.name, self.entry.generation, *ack)

    def receive_ack(self, name: str, generation: int, epoch: int, txid: int, beat: int) -> None:
        """A follower acknowledges."""
        self.machine.acked_by(name, generation, epoch, txid, beat, self.now())
        self.pump()

    # --- leading --------------------------------------------------------------------------------------------------

    def _beats(self) -> None:
        if self.machine.serving:
            self.beat += 1
            self._heartbeat()
        if self.random.random() < 0.5:
            self.disk_watermark = max(self.disk_watermark, self.published)
        self.after(self.world.ttl / BEATS, self._beats)

    def _heartbeat(self) -> None:
        epoch, watermark = self.machine.serving, self.machine.watermark
        for stream in list(self.streams.values()):
            if stream.alive and stream.epoch == epoch:
                self.world.send(stream, self._receive_beat, epoch, watermark, self.beat)

    def read_linearizably(self) -> None:
        """A client's read: it must see everything that was acknowledged before."""
        if self.machine.role == "primary":
            self.beat += 1
            self.reads.append((self.beat, self.world.checker.acknowledged))
            self._heartbeat()
            self._look_at_reads()

    def _look_at_reads(self) -> None:
        if self.machine.role != "primary":
            self.reads.clear()
        left = []
        for beat, wanted in self.reads:
            if self.machine.confirms(beat):
                self.world.reads += 1
                self.world.checker.reads(self.name, self.published, wanted)
            else:
                left.append((beat, wanted))
        self.reads = left

    effects: dict[type[Effect], Callable[[Any, Any], None]] = {
        Keep: _keep, Swap: _call, Read: _call, Promise: _promise, Ask: _ask, Reply: _reply, Fetch: _fetch,
        StartEpoch: _start_epoch, Publish: _publish, Acknowledge: _acknowledge, Whole: _whole, Follow: _follow,
        Unfollow: _unfollow, Accept: _accept, Hold: _hold, StepDown: _step_down, Poll: _poll, Say: _say,
    }
