"""A running member: the state machine's driver, the member's store, and its connections to the other members.

    coordinator ◄──► driver ──┐
    voters ◄── promises ──────┤                  ┌──► store: append, publish, cut, accept
    leader ──► stream ────────┼──► state machine ┤
    followers ◄── shipping ───┤                  └──► promise, document, watermark on disk
    time ──► driver ──────────┘

`Node` does what the driver asks for (`Work`). `answers.py` answers what others ask for. `Member` (`service.py`) is the
face for users.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...engine.env import Env, Task
from ...engine.env.pool import Pool
from ...engine.errors import (
    DiskFull,
    Diverged,
    HoldfastError,
    InvalidInput,
    SourceUnavailable,
    StoreClosed,
    StorePoisoned,
)
from ...engine.model.positions import Position
from ...engine.model.records import Attachment, Record
from ...engine.source.interface import CHUNK_BYTES
from ...engine.store.store import Store
from . import quorum
from .coordinator import Coordinator
from .driver import Driver, passes
from .effects import Answer, End
from .errors import Branched, NotPrimary
from .follow_stream import FollowStream, LogHere
from .following import Delay, MustSeed, PeerLog, history_of, leader_log, make_equal, parting
from .lag import Lag
from .local import LocalStore
from .member import State, StateMachine
from .peer.interface import Peer
from .peer.wire import RECORDS
from .plugin import MemberPlugin
from .set_aside import Kept, kept
from .shipping import Shipping
from .state import StoredState

logger = logging.getLogger("holdfast.cluster")

BEATS = 10
"""Heartbeats within a ttl."""
REOPEN_S = 2.0
"""Between two attempts to open a store again that could not be opened, or to do what a plugin must do first."""


class _LogToBranch(LogHere):
    """See `LogToBranch`."""

    @property
    def store(self) -> Store[Any, Any]:
        return self._local.store

    def append(self, records: Sequence[Record]) -> None:
        if self._local.append(records, self._allowed) is None:
            raise SourceUnavailable("nothing is appended, since this member does not lead any more")


class Node:
    """See the module's text. Made by `service.Member`.

    Attributes:
        machine, driver, local: its parts.
        branched: why this member gives no snapshots, or None.
        connected: it streams from a leader now.
        heard_at: when it last heard from a leader, monotonic seconds.
    """

    def __init__(self, machine: StateMachine, state: StoredState, coordinator: Coordinator, env: Env, *,
                 local: Callable[[Callable[[], Shipping], Callable[[], HoldfastError]], LocalStore[Any, Any]],
                 peer: Callable[[str], Peer], seed: Callable[[str], Callable[[], None]],
                 plugins: Sequence[MemberPlugin], on_failure: Callable[[BaseException], None],
                 on_role: Callable[[str, int], None]) -> None:
        """
        Args:
            machine, state, coordinator, env: what it is made of.
            local: opens the store, given what makes its plugin for shipping, and the error for refused transactions.
            peer: makes a client for the member at an address. From any thread.
            seed: copies the state of the member at an address beside the present one, and returns what brings it into
                force. Slow.
            plugins: those of the store that are a member's.
            on_failure: as the driver's.
            on_role: told of each change of role, with the epoch, on the thread that brought it.
        """
        self.machine = machine
        self.branched: str | None = None
        self.connected = False
        self.heard_at = env.clock.monotonic()
        self._state = state
        self._env = env
        self.peer = peer
        self._seed = seed
        self._plugins = plugins
        self._on_role = on_role
        self._role = "follower"
        self._telling = env.scheduler.lock()  # so that changes of role are told in their order
        self._closing = False
        self._idle = (0, env.clock.monotonic())  # the log's end, and since when
        self._delay = Delay(machine.entry.delay, env, lambda: self.local.store) if machine.entry.delay else None
        self._following: FollowStream | None = None
        self._copies: dict[str, set[str]] = {}  # who has stored the file of a bulk load that is about to be logged
        self._attaching = env.scheduler.lock()  # held while a follower copies a file
        self._attached: set[tuple[int, str]] = set()  # files that were copied before their record came
        self._told_lags: tuple[float, dict[str, Lag]] = 0.0, {}  # when the primary told them
        self._beating = env.scheduler.event()
        self._acks = Pool("holdfast-acks", 1, env.scheduler)
        self.local = local(lambda: Shipping(env, lambda: machine.serving, self._durable, self.failed, self._spread),
                           self.not_primary)
        machine.end, machine.published = self.local.end, self.local.published
        self.driver = Driver(machine, state, coordinator, self, env, on_failure=on_failure)
        self.driver.start()
        self._beats: Task = env.scheduler.spawn("holdfast-beat", self._run_beats)

    # --- what the driver asks for ---------------------------------------------------------------------------------

    def publish(self, txid: int) -> None:
        upto = txid if self._delay is None or self.local.accepting else self._delay.upto(txid)
        try:
            self.local.publish(upto, lambda: self.machine.published >= txid)
        except (StoreClosed, StorePoisoned):  # the store is opened anew
            raise
        except HoldfastError as error:  # it is tried again: the log goes on, whatever is shown
            if self._delay is not None:
                self._delay.forget()
            self.driver.hinder("showing", error)
        else:
            self.driver.unhinder("showing")
        if self.machine.serving:
            self.local.shipping.beat(self.machine.serving, txid)

    def acknowledge(self, epoch: int, txid: int, beat: int) -> None:
        stream = self._following
        if stream is not None and stream.epoch == epoch:
            stream.acknowledge(txid, beat)

    def seed_anew(self) -> str | None:
        """Have the state copied anew from the leader. Returns why that cannot be, or None."""
        stream = self._following
        if stream is None:
            return f"{self.machine.name} follows nobody whose state it could copy"
        stream.seed_anew()
        return None

    def late(self, work: Callable[[], None]) -> None:
        """Do something in a thread of its own, after what was given before."""
        self._acks.submit(work)

    def set_aside(self) -> list[Kept]:
        """What was cut from this member's log and kept."""
        return kept(self._state, self._env.files)

    def follow(self, name: str, address: str, epoch: int) -> None:
        self.unfollow()
        if self._closing:
            return
        self._following = stream = FollowStream(self, name, address, epoch, self._env)
        stream.start()

    def unfollow(self) -> None:
        stream, self._following = self._following, None
        if stream is not None:
            stream.stop()
            self.connected = False
            self.driver.unhinder("following")

    def fetch(self, address: str, end: End) -> End:
        """Raises `SourceUnavailable` and others; `MustSeed` if this member has shown what the best log lacks, which
        the overlap rule excludes."""
        local, fetching = self.local, lambda: self.machine.state is State.FETCHING
        try:
            with self.peer(address) as peer:
                theirs = PeerLog(end.txid, history_of(peer.status()))
                common = make_equal(LogHere(self, fetching), peer, theirs)
                for kind, records in peer.fetch(common, end.txid):
                    if kind != RECORDS:
                        continue
                    self.take_attachments(peer, records)
                    if local.append(records, fetching) is None:
                        raise SourceUnavailable("the log is not fetched any more, since this member has stepped down")
        except BaseException:
            self.moved()  # part of it may be there, and what differed is gone
            raise
        reached = local.end
        if (reached.txid, reached.chain) != (end.txid, end.chain):
            raise Diverged(f"{address} announced a log up to {end.txid}, and sent another one")
        return reached

    def start_epoch(self, epoch: int, branch: str) -> End:
        if all(known.id.hex() != branch for known in self.local.store.history.branches):
            for plugin in self._plugins:
                self._before_branch(plugin, epoch)
        return self.local.start_epoch(epoch, branch)

    def _before_branch(self, plugin: MemberPlugin, epoch: int) -> None:
        """Let a plugin do what it must do first. Raises `StoreClosed` if this member does not lead this epoch any more.
        """
        machine = self.machine

        def leads() -> bool:
            return machine.state is State.STARTING and machine.epoch == epoch and not self._closing

        while leads():
            try:
                plugin.branching(_LogToBranch(self, leads))
            except HoldfastError as error:
                self.driver.hinder("branching", error)
                self._beating.wait(REOPEN_S)
            else:
                self.driver.unhinder("branching")
                return
        self.driver.unhinder("branching")
        raise StoreClosed(f"{machine.name} does not lead epoch {epoch} any more")

    def accept(self, watermark: int) -> None:
        try:
            self.local.accept(watermark)
        except (StoreClosed, StorePoisoned):
            raise
        except Exception as error:  # it cannot show what it inherited, and another member may
            self.failed(error)
            return
        self.driver.unhinder("store")
        self.driver.notify()
        self._tell_role()

    def hold(self) -> End | None:
        return self.local.hold()

    def refuse(self) -> None:
        self.local.refuse()

    def step_down(self) -> tuple[End, int]:
        while not self._closing:
            try:
                self.local.reopen()
                break
            except HoldfastError as error:
                if passes(error) is None:  # damage, for instance
                    raise
                self.driver.hinder("store", error)
            except Exception as error:  # of the system, or the engine's
                self.driver.hinder("store", error)
            self._beating.wait(REOPEN_S)
        self._tell_role()
        return self.local.end, self.local.published

    def failed(self, error: BaseException) -> None:
        """The store takes no more writes: open it again, as a follower's."""
        if not self._closing:
            self.driver.hinder("store", error)
            self.driver.tell(lambda m: m.failed(str(passes(error) or error), self._env.clock.monotonic()))

    def no_room(self, error: BaseException) -> None:
        """A transaction found no room on this primary's disk, and was rolled back. Another voter may have room."""
        self.driver.hinder("store", error)
        self.driver.tell(lambda m: m.give_way(self._env.clock.monotonic()))

    def ask(self, address: str, epoch: int) -> tuple[Answer | None, int]:
        with self.peer(address) as peer:
            reply = peer.promise({"candidate": self.machine.name, "epoch": epoch})
        if reply.get("answer") is None:
            return None, int(reply["promised"])
        given, generation, (at_epoch, txid, chain), published = reply["answer"]
        return Answer(given, generation, End(at_epoch, txid, chain), published), int(reply["promised"])

    def poll(self, address: str) -> int | None:
        try:
            with self.peer(address) as peer:
                lost = peer.status().get("lost")
        except HoldfastError:
            return None
        return lost if isinstance(lost, int) else None

    # --- as leader ------------------------------------------------------------------------------------------------

    def _durable(self) -> None:
        """Records have become durable in a store that accepts transactions."""
        end, now = self.local.end, self._env.clock.monotonic()
        self.driver.tell(lambda m: m.moved(end, now))

    def _run_beats(self) -> None:
        while not self._closing:
            document = self.machine.document
            self._beating.wait(1.0 if document is None else document.ttl / BEATS)
            serving = self.machine.serving
            if serving:
                self.local.shipping.beat(serving, self.machine.watermark, count=True,
                                         slots=self.local.store.log.slots.list(), lags=self._measure())
            shall_show = self.machine.published
            if self.local.published < shall_show and not self.local.accepting:
                with contextlib.suppress(StoreClosed, StorePoisoned):  # it is being opened anew
                    self.publish(shall_show)
            self.local.keep_watermark()
            self._mark_time()
            self._tell_role()

    def _mark_time(self) -> None:
        """In an idle primary, log a record of the kit now and then: a backup is complete up to the last record."""
        store, now = self.local.store, self._env.clock.monotonic()
        every, end = store.settings.heartbeat_s, store.durable.txid
        if end != self._idle[0]:
            self._idle = end, now
        elif every and now - self._idle[1] >= every and self.local.accepting:
            replica = store.replica
            with contextlib.suppress(HoldfastError):  # it steps down, or there is no room
                if replica is not None:
                    replica.mark()

    def _spread(self, attachment: Attachment) -> None:
        """Wait until enough voters to acknowledge have stored the file of a bulk load. So its record, which all later
        ones wait for, is acknowledged as fast as any other. Raises `NotPrimary`: nothing was logged."""
        serving = self.machine.serving
        self._copies[attachment.name] = have = {self.machine.name}

        def enough(machine: StateMachine) -> bool:
            document = machine.document
            return machine.serving != serving or machine.role != "primary" or (
                document is not None and quorum.confirmed(document.floor, document.sets, have))

        shipping = self.local.shipping
        shipping.offer(attachment)
        try:
            shipping.beat(serving, self.machine.watermark)
            self.driver.wait(enough, None)
        finally:
            shipping.offer(None)
            del self._copies[attachment.name]
        if self._closing or self.machine.serving != serving or self.machine.role != "primary":
            raise self.not_primary()

    def has_copied(self, name: str, generation: int, epoch: int, attachment: str) -> None:
        """A follower has stored the file of a bulk load."""
        with self.driver.lock:
            document, have = self.machine.document, self._copies.get(attachment)
            entry = None if document is None else document.members.get(name)
            if have is None or epoch != self.machine.serving or entry is None or entry.generation != generation:
                return
            have.add(name)
        self.driver.notify()

    def confirmed_position(self, timeout: float) -> int:
        """A transaction such that everything acknowledged before this call is at or before it. Enough voters confirm
        that no later primary has acknowledged anything. Raises `NotPrimary`."""
        serving = self.machine.serving
        if not serving:
            raise self.not_primary()
        # Before it has published the first record of its epoch, it does not know what earlier primaries acknowledged.
        self.driver.wait(lambda m: m.epoch != serving or m.role == "primary", timeout)
        with self.driver.lock:
            leads = self.machine.epoch == serving and self.machine.role == "primary"
            position = self.machine.watermark  # at or above what is acknowledged here, and shown by any follower
        if not leads:
            raise self.not_primary()
        beat = self.local.shipping.beat(serving, position, count=True)
        self.driver.wait(lambda m: m.confirms(beat) or m.epoch != serving, timeout)
        with self.driver.lock:
            confirmed = self.machine.epoch == serving and self.machine.confirms(beat)
        if not confirmed:
            raise NotPrimary(f"too few voters confirm that {self.machine.name} is still the primary",
                             hint="try again in a moment")
        return position

    def behind(self) -> int | None:
        """How many transactions this member knows to be published and does not show. None if it has not heard from a
        primary in this epoch."""
        if self.machine.serving:
            return 0
        known = self.machine.leader_watermark
        return max(0, known - self.local.published) if known else None

    def _measure(self) -> dict[str, Lag]:
        """How far each other member is behind this one, which leads; those that it has heard in its epoch. O(members).
        """
        with self.driver.lock:
            heard, end = self.machine.heard_from(self._env.clock.monotonic()), self.machine.end.txid
        return {name: self.local.shipping.lag(txid, end, silent) for name, (txid, silent) in sorted(heard.items())}

    def learn_lags(self, lags: Mapping[str, Sequence[Any]]) -> None:
        """What the primary has told of how far each member is behind."""
        self._told_lags = self.heard_at, {name: Lag(*lag) for name, lag in lags.items()}

    def lags(self) -> dict[str, Lag]:
        """How far each member is behind the primary: as measured here on the primary, else as it has last told."""
        if self.machine.serving:
            return self._measure()
        at, lags = self._told_lags
        age = self._env.clock.monotonic() - at
        return {name: lag._replace(silent=lag.silent + age) for name, lag in lags.items()}

    def lag_s(self) -> float:
        """Seconds since this member last knew what the primary had published, and by which it shows that late; 0 on the
        primary."""
        if self.machine.role == "primary":
            return 0.0
        return self.machine.entry.delay + self._env.clock.monotonic() - self.heard_at

    @property
    def role(self) -> str:
        """"primary" only once transactions are accepted."""
        role = self.machine.role
        return "candidate" if role == "primary" and not self.local.accepting else role

    def _tell_role(self) -> None:
        with self._telling:
            role = self.role
            if role != self._role:
                self._role = role
                epoch = self.machine.epoch or self.machine.promised
                self._on_role(role, epoch)
                self.local.store.hooks.tell("role_changed", role, epoch)

    def not_primary(self) -> HoldfastError:
        """The error for a transaction that this member does not take."""
        machine, document = self.machine, self.machine.document
        leader = None if document is None else document.leader
        if machine.state is State.HANDING:
            return NotPrimary(f"{machine.name} is handing over to another member", hint="try again in a moment")
        if document is None or leader is None or leader == machine.name:
            return NotPrimary(f"{machine.name} is not the primary, and none is known", hint="try again in a moment")
        address = document.members[leader].address
        return NotPrimary(f"{machine.name} is not the primary; {leader} at {address} is", primary=address)

    @property
    def trouble(self) -> str | None:
        """Why this member takes no part, or what hinders it for now, in words; or None."""
        return self.machine.trouble or "; ".join(dict.fromkeys(self.driver.hindered.values())) or None

    # --- copying --------------------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Tell the state machine where the log ends, which may have been cut."""
        end = self.local.end
        self.driver.tell(lambda m: m.moved(end, self._env.clock.monotonic()))
        if self._delay is not None:
            self._delay.forget()

    def is_followed_by(self, stream: FollowStream) -> bool:
        """Whether this stream is the present one."""
        return self._following is stream

    def take_attachments(self, peer: Peer, records: list[Record]) -> None:
        """Copy the files that records name, durably, before the records are appended."""
        for record in records:
            if record.attachment is not None:
                self.take_attachment(peer, record.attachment, lambda: not self._closing)
                self._attached.discard((self.local.reopened, record.attachment.name))

    def take_attachment(self, peer: Peer, attachment: Attachment, goes_on: Callable[[], bool]) -> None:
        """Copy the file of a bulk load, durably, unless that was done. One at a time. Raises `SourceUnavailable` if
        `goes_on` says no between two pieces."""
        with self._attaching:
            known = self.local.reopened, attachment.name
            if known in self._attached:
                return
            out = self.local.store.log.import_attachment(attachment)
            try:
                for offset in range(0, attachment.size, CHUNK_BYTES):
                    if not goes_on():
                        raise SourceUnavailable(f"{attachment.name} is not copied any more")
                    out.write(peer.read_attachment(attachment.name, offset,
                                                   min(CHUNK_BYTES, attachment.size - offset)))
                out.finish()
            except BaseException:
                out.abandon()
                raise
            self._attached.add(known)

    def seed_from(self, address: str, epoch: int, error: MustSeed) -> None:
        """Copy the state of the leader of an epoch in place of the one here. Raises `SourceUnavailable` if this member
        no longer follows it."""
        if error.branched:
            self.branched = error.message
            logger.error("%s has branched: %s", self.machine.name, error.message)
            with self.peer(address) as peer:
                here = LogHere(self, lambda: False)
                self.local.set_branch_aside(parting(here, peer, leader_log(peer, epoch).end))
        logger.warning("%s is seeded anew from %s: %s", self.machine.name, address, error.message)
        make = self._seed(address)
        if not self.driver.tell(lambda m: m.seeding(epoch)):
            raise SourceUnavailable(f"{self.machine.name} does not follow epoch {epoch} any more")
        try:
            self.driver.settle()
            if self._state.identity.whole:
                raise SourceUnavailable(f"{self.machine.name} could not store that its log is incomplete")
            self.local.seed(make)
            self.branched = None
        except Exception as failed:
            if self.local.store.closed:  # neither the new store nor the old one could be opened
                self.failed(failed)
            raise
        finally:
            end, published = self.local.end, self.local.published
            self.driver.tell(lambda m: m.seeded(end, published, self._env.clock.monotonic()))

    def learn_slots(self, moved: Iterable[Sequence[Any]], gone: Iterable[str],
                    everything: Iterable[str] | None) -> None:
        """Keep log for the slots that the primary has, too: their owners may come here next. `everything`: all that it
        has; others were dropped while this member was away. A slot that has registered here since then stays."""
        slots, learned = self.local.store.log.slots, dict(self._state.slots)
        try:
            for id, name, txid, chain, seen_us in moved:
                slots.register(str(id), str(name), Position(int(txid), bytes(chain)), seen_us=int(seen_us))
                learned[str(id)] = int(seen_us)
            dropped = {str(id) for id in gone}
            if everything is not None:
                dropped |= learned.keys() - set(everything)
            for slot in slots.list() if dropped else ():
                if slot.id in dropped and learned.get(slot.id) == slot.seen_us:
                    slots.drop(slot.id)
            self._state.keep_slots({id: seen_us for id, seen_us in learned.items() if id not in dropped})
        except (DiskFull, InvalidInput) as error:  # the primary has it
            logger.warning("%s keeps no log for a slot of the primary: %s", self.machine.name, error)

    def check_snapshots(self) -> None:
        """Raises `Branched` if this member must show nothing, `SourceUnavailable` if its store cannot be opened."""
        if self.branched is not None:
            raise Branched(f"{self.machine.name} has branched: {self.branched}")
        if self.local.store.closed and (why := self.driver.hindered.get("store")) is not None:
            raise SourceUnavailable(f"{self.machine.name} has no store open: {why}", hint="read from another member")

    def close(self) -> None:
        """Stop everything, and close the store."""
        self._closing = True
        self._beating.set()
        self.unfollow()
        self.driver.close()
        self.unfollow()  # one that had begun meanwhile
        self._acks.close()
        self._beats.join()
        with self._attaching:  # a copy that is under way ends after its next piece
            self.local.close()
