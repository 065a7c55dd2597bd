"""A running member: the state machine's driver, the member's store, and its connections to the other members.

    coordinator ◄──► driver ──┐
    voters ◄── promises ──────┤                  ┌──► store: append, publish, cut, accept
    leader ──► stream ────────┼──► state machine ┤
    followers ◄── shipping ───┤                  └──► promise, document, watermark on disk
    time ──► driver ──────────┘

`Node` does what the driver asks for (`Work`), and answers what other members ask for (`PeerHandler`). `Member`
(`service.py`) is the face for users.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from ...engine.env import Env, Task
from ...engine.env.pool import Pool
from ...engine.env.shown import shown
from ...engine.errors import (
    DiskFull,
    Diverged,
    HoldfastError,
    InvalidInput,
    LogPruned,
    NotFound,
    SourceUnavailable,
    StoreClosed,
    StorePoisoned,
)
from ...engine.model.positions import History, Position
from ...engine.model.records import Attachment, Record
from ...engine.source.interface import CHUNK_BYTES
from . import quorum
from .coordinator import Coordinator
from .driver import Driver, passes
from .effects import Answer, End
from .errors import Branched, NotPrimary
from .following import Delay, MustSeed, Pacing, PeerLog, history_of, leader_log, make_equal, parting
from .lag import Lag
from .local import LocalStore
from .member import State, StateMachine
from .peer.interface import Peer
from .peer.wire import RECORDS
from .set_aside import kept
from .shipping import ROOM_S, LogStream, Shipping
from .state import StoredState
from .status_page import Seen, status_page

logger = logging.getLogger("holdfast.cluster")

BEATS = 10
"""Heartbeats within a ttl."""
REOPEN_S = 2.0
"""Between two attempts to open a store again that could not be opened."""
CONFIRM_S = 10.0
"""How long a primary waits for the voters to confirm it."""
BATCH_BYTES = 4 << 20
"""About the most that a follower appends and syncs in one go."""
_ORDINARY = SourceUnavailable, NotPrimary, StoreClosed, StorePoisoned, LogPruned
"""Why streams end every day."""


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
                 on_failure: Callable[[BaseException], None], on_role: Callable[[str, int], None]) -> None:
        """
        Args:
            machine, state, coordinator, env: what it is made of.
            local: opens the store, given what makes its plugin for shipping, and the error for refused transactions.
            peer: a client for the member at an address. From any thread.
            seed: copies the state of the member at an address beside the present one, and returns what brings it into
                force. Slow.
            on_failure: as the driver's.
            on_role: told of each change of role, with the epoch, on the thread that brought it.
        """
        self.machine = machine
        self.branched: str | None = None
        self.connected = False
        self.heard_at = env.clock.monotonic()
        self._state = state
        self._env = env
        self._peer = peer
        self._seed = seed
        self._on_role = on_role
        self._role = "follower"
        self._closing = False
        self._shall_show = 0
        self._idle = (0, env.clock.monotonic())  # the log's end, and since when
        self._delay = Delay(machine.entry.delay, env, lambda: self.local.store) if machine.entry.delay else None
        self._following: _Stream | None = None
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
        self._beats: Task = env.scheduler.spawn("holdfast-beat", self._run_beats)

    # --- what the driver asks for ---------------------------------------------------------------------------------

    def publish(self, txid: int) -> None:
        self._shall_show = max(self._shall_show, txid)
        try:
            self.local.publish(txid if self._delay is None or self.local.accepting else self._delay.upto(txid))
        except (StoreClosed, StorePoisoned):  # the store is opened anew
            raise
        except HoldfastError as error:  # it is tried again: the log goes on, whatever is shown
            self.driver.hinder("showing", error)
        else:
            self.driver.unhinder("showing")
        if self.machine.serving:
            self.local.shipping.beat(self.machine.serving, txid)

    def acknowledge(self, epoch: int, txid: int, beat: int) -> None:
        stream = self._following
        if stream is not None and stream.epoch == epoch:
            stream.acknowledge(txid, beat)

    def follow(self, name: str, address: str, epoch: int) -> None:
        self.unfollow()
        self._following = stream = _Stream(self, name, address, epoch, self._env)
        stream.start()

    def unfollow(self) -> None:
        stream, self._following = self._following, None
        if stream is not None:
            stream.stop()
            self.driver.unhinder("following")

    def fetch(self, address: str, end: End) -> End:
        """Raises `SourceUnavailable` and others; `MustSeed` if this member has shown what the best log lacks, which
        the overlap rule excludes."""
        local, fetching = self.local, lambda: self.machine.state is State.FETCHING
        try:
            with self._peer(address) as peer:
                theirs = PeerLog(end.txid, history_of(peer.status()))
                common = make_equal(_LogHere(self, fetching), peer, theirs)
                for kind, records in peer.fetch(common, end.txid):
                    if kind != RECORDS:
                        continue
                    self._take_attachments(peer, records)
                    if local.append(records, fetching) is None:
                        raise SourceUnavailable("the log is not fetched any more, since this member has stepped down")
        except BaseException:
            self._moved()  # part of it may be there, and what differed is gone
            raise
        reached = local.end
        if (reached.txid, reached.chain) != (end.txid, end.chain):
            raise Diverged(f"{address} announced a log up to {end.txid}, and sent another one")
        return reached

    def start_epoch(self, epoch: int, branch: str) -> End:
        return self.local.start_epoch(epoch, branch)

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
        self._shall_show = 0
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
        with self._peer(address) as peer:
            reply = peer.promise({"candidate": self.machine.name, "epoch": epoch})
        if reply.get("answer") is None:
            return None, int(reply["promised"])
        given, generation, (at_epoch, txid, chain), published = reply["answer"]
        return Answer(given, generation, End(at_epoch, txid, chain), published), int(reply["promised"])

    def poll(self, address: str) -> int | None:
        try:
            with self._peer(address) as peer:
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
            if self.local.published < self._shall_show and not self.local.accepting:
                with contextlib.suppress(StoreClosed, StorePoisoned):  # it is being opened anew
                    self.publish(self._shall_show)
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

    def _has_copied(self, name: str, generation: int, epoch: int, attachment: str) -> None:
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

    # --- what other members ask for -------------------------------------------------------------------------------

    def promise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a candidate. Waits until the promise is durable."""
        candidate, epoch = request.get("candidate"), request.get("epoch")
        if type(candidate) is not str or type(epoch) is not int:
            raise InvalidInput("a promise is asked for with a candidate and an epoch")
        reply: Future[tuple[Answer | None, int]] = Future()
        self.driver.tell(lambda m: m.asked(candidate, epoch, reply, self._env.clock.monotonic()))
        document = self.machine.document
        try:
            answer, promised = reply.result(10.0 if document is None else document.ttl)
        except TimeoutError:
            raise SourceUnavailable(f"{self.machine.name} cannot promise now: its store is being closed") from None
        if answer is None:
            return {"promised": promised, "answer": None}
        return {"promised": promised, "answer": [answer.epoch, answer.generation, list(answer.end), answer.published]}

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        """Raises `NotPrimary` if `epoch` is given and this member does not serve it."""
        if epoch is not None and epoch != self.machine.serving:
            raise NotPrimary(f"{self.machine.name} does not lead epoch {epoch}", hint="try again in a moment")
        return self.local.store.log.chain_at(txid)

    def open_stream(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        """Begin to send the log to a follower. Raises `NotPrimary`, `Diverged`, `LogPruned`, `InvalidInput`."""
        try:
            name, epoch, after = str(hello["member"]), int(hello["epoch"]), Position(hello["after"], hello["chain"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"a follower's hello lacks or garbles a field: {error}") from error
        if epoch != self.machine.serving:
            raise NotPrimary(f"{self.machine.name} does not lead epoch {epoch}", hint="try again in a moment")
        if self.local.store.log.chain_at(after.txid) != after.chain:
            raise Diverged(f"the follower's log differs from the primary's at transaction {after.txid}")
        stream.heartbeat({"end": self.local.store.durable.txid, "epoch": epoch, "watermark": 0, "beat": 0})
        self.local.shipping.add(name, epoch, after, stream)
        self.local.shipping.beat(epoch, self.machine.watermark)

    def send_log(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        """Send a part of the log here, published or not, to a candidate that lacks it. In a thread of its own."""
        try:
            after, upto = Position(int(hello["after"]), hello["chain"]), int(hello["upto"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"what asks for log lacks or garbles a field: {error}") from error

        def work() -> None:
            try:
                for records in _batches(self.local.store.log.cursor(after).read(upto)):
                    while not stream.send_records(records):
                        stream.wait_room(ROOM_S)
            except Exception as error:
                stream.close(error)
            else:
                stream.close("that is all")

        self._env.scheduler.spawn("holdfast-send", work)

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        """A piece of a file that a record of the log names. Raises `InvalidInput`, `NotFound`."""
        if not 0 <= length <= CHUNK_BYTES or offset < 0:
            raise InvalidInput(f"{length} bytes from {offset} on were asked for; the most at once is {CHUNK_BYTES}")
        store = self.local.store
        try:
            file = self._env.files.open(store.log.attachment_path(name))
        except FileNotFoundError as error:
            raise NotFound(f"the log has no attachment {name}", hint="records name those that exist") from error
        try:
            return file.pread(length, offset)
        finally:
            file.close()

    def command(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """What an operator or another member asks this one to do. Raises `InvalidInput` if it does not do it."""
        now = self._env.clock.monotonic()
        if verb == "confirm":
            return {"txid": self.confirmed_position(CONFIRM_S)}
        if verb == "document":
            with self.driver.lock:
                kept, promised = self.machine.document, max(self.machine.promised, self.machine.epoch)
            return {"document": None if kept is None else kept.encode().decode(), "promised": promised,
                    "whole": self.machine.whole, "generation": self.machine.entry.generation}
        to = str(args.get("member", ""))
        if verb == "switchover":
            why = self.driver.tell(lambda m: m.switch_over(to, now))
        elif verb == "remove":
            why = self.driver.tell(lambda m: m.remove(to, now))
        elif verb == "failover":
            why = self.driver.tell(lambda m: m.take_over(now, force=args.get("force") is True))
        elif verb == "reinit":
            stream = self._following
            why = None if stream is not None else f"{self.machine.name} follows nobody whose state it could copy"
            if stream is not None:
                stream.seed_anew()
        else:
            raise InvalidInput(f"members know no command {shown(verb)}",
                               hint="use switchover, failover, reinit, remove, confirm or document")
        if why is not None:
            raise InvalidInput(f"no {verb}: {why}", hint="see the cluster's status")
        return {"begun": True}

    def health(self, kind: str, query: Mapping[str, str]) -> tuple[bool, dict[str, Any]]:
        """Whether this member is what a load balancer looks for, and some facts. `kind`: "primary" or "read-write";
        "replica", with `lag` in seconds in the query; or "health": it has a store open."""
        role, lag = self.role, self.lag_s()
        facts = {"name": self.machine.name, "role": role if self.branched is None else "branched",
                 "epoch": self.machine.epoch or self.machine.promised, "published": self.local.published,
                 "lag_s": round(lag, 3)}
        if kind in ("primary", "read-write"):
            return role == "primary", facts
        if kind == "replica":
            try:
                most = float(query.get("lag", "inf"))
            except ValueError:
                raise InvalidInput(f"lag is a number of seconds, not {shown(query['lag'])}") from None
            return role == "follower" and self.connected and self.branched is None and lag <= most, facts
        return not self.local.store.closed, facts

    def acked(self, ack: Mapping[str, Any]) -> None:
        """A follower has acknowledged."""
        try:
            name, generation, epoch = str(ack["member"]), int(ack["generation"]), int(ack["epoch"])
            if "attachment" in ack:
                self._has_copied(name, generation, epoch, str(ack["attachment"]))
                return
            txid, beat = int(ack["txid"]), int(ack["beat"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"an acknowledgement lacks or garbles a field: {error}") from error
        now = self._env.clock.monotonic()

        def note() -> None:
            self.driver.tell(lambda m: m.acked_by(name, generation, epoch, txid, beat, now))

        if self.local.accepting:
            note()
        else:  # it may publish what was inherited, which takes its time
            self._acks.submit(note)

    def status(self) -> dict[str, Any]:
        """For people and programs, as plain values. O(members)."""
        with self.driver.lock:
            status = self.machine.status()
        store = self.local.store
        voters = () if self.machine.document is None else self.machine.document.electorate
        return {**status, "role": self.role, "trouble": self.trouble, "voters": voters, "durable": store.durable.txid,
                "published": store.published.txid, "connected": self.connected, "branched": self.branched,
                "set_aside": [asdict(one) for one in kept(self._state, self._env.files)],
                "store_id": store.history.store_id.hex(),
                "branches": [[b.id.hex(), b.start.txid, b.start.chain.hex()] for b in store.history.branches],
                "backup_uri": store.backup_uri, "sent": self.local.shipping.followers(), "log": store.log.status(),
                "base": [store.log.base.txid, store.log.base_epoch]}

    @property
    def trouble(self) -> str | None:
        """Why this member takes no part, or what hinders it for now, in words; or None."""
        return self.machine.trouble or "; ".join(dict.fromkeys(self.driver.hindered.values())) or None

    # --- copying --------------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        """Tell the state machine where the log ends."""
        end = self.local.end
        self.driver.tell(lambda m: m.moved(end, self._env.clock.monotonic()))

    def _take_attachments(self, peer: Peer, records: list[Record]) -> None:
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
            with self._peer(address) as peer:
                here = _LogHere(self, lambda: False)
                self.local.set_branch_aside(parting(here, peer, leader_log(peer, epoch).end))
        logger.warning("%s is seeded anew from %s: %s", self.machine.name, address, error.message)
        make = self._seed(address)
        if not self.driver.tell(lambda m: m.seeding(epoch)):
            raise SourceUnavailable(f"{self.machine.name} does not follow epoch {epoch} any more")
        self.driver.settle()
        if self._state.identity.whole:
            raise SourceUnavailable(f"{self.machine.name} could not store that its log is incomplete")
        self.local.seed(make)
        end, published = self.local.end, self.local.published
        self.branched = None
        self.driver.tell(lambda m: m.stepped_down(end, published, self._env.clock.monotonic()))

    def learn_slots(self, moved: Iterable[Sequence[Any]], gone: Iterable[str]) -> None:
        """Keep log for the slots that the primary has, too: their owners may come here next."""
        slots = self.local.store.log.slots
        try:
            for id, name, txid, chain, seen_us in moved:
                slots.register(str(id), str(name), Position(int(txid), bytes(chain)), seen_us=int(seen_us))
            for id in gone:
                slots.drop(str(id))
        except (DiskFull, InvalidInput) as error:  # the primary has it
            logger.warning("%s keeps no log for a slot of the primary: %s", self.machine.name, error)

    def check_snapshots(self) -> None:
        """Raises `Branched` if this member must show nothing, `SourceUnavailable` if its store cannot be opened."""
        if self.branched is not None:
            raise Branched(f"{self.machine.name} has branched: {self.branched}")
        if self.local.store.closed and (why := self.driver.hindered.get("store")) is not None:
            raise SourceUnavailable(f"{self.machine.name} has no store open: {why}", hint="read from another member")

    def metrics(self) -> str:
        """Lines in Prometheus' text format."""
        machine, store = self.machine, self.local.store
        rows = [("member_primary", "gauge", "whether this member is the primary", int(self.role == "primary")),
                ("member_epoch", "gauge", "the epoch that it leads or follows in", machine.epoch or machine.promised),
                ("member_connected", "gauge", "whether it streams from a primary", int(self.connected)),
                ("member_lag_seconds", "gauge", "since it last heard what the primary had published",
                 round(self.lag_s(), 3)),
                ("member_lag_transactions", "gauge", "published by the primary and not shown here", self.behind() or 0),
                ("member_set_aside_transactions", "gauge", "that this member had and the cluster does not",
                 sum(one.last - one.first + 1 for one in kept(self._state, self._env.files))),
                ("member_unpublished_transactions", "gauge", "durable here and not published",
                 store.durable.txid - store.published.txid)]
        lines = [f"# HELP holdfast_{name} {text}\n# TYPE holdfast_{name} {kind}\nholdfast_{name} {value}\n"
                 for name, kind, text, value in rows]
        lags = self._measure() if machine.serving else {}
        for at, (name, text) in enumerate((  # in the order of `Lag`
                ("follower_lag_transactions", "that a follower has not acknowledged"),
                ("follower_lag_bytes", "of log that a follower lacks, rounded up"),
                ("follower_lag_seconds", "age of the first transaction that a follower lacks"),
                ("follower_silent_seconds", "since a follower was last heard"))):
            lines.append(f"# HELP holdfast_{name} {text}\n# TYPE holdfast_{name} gauge\n")
            lines += [f'holdfast_{name}{{member="{member}"}} {round(lag[at], 3)}\n' for member, lag in lags.items()]
        return "".join(lines)

    def page(self) -> bytes:
        """A page for people."""
        with self.driver.lock:
            document = self.machine.document
        store = self.local.store
        heard = None if self.machine.serving else self._env.clock.monotonic() - self.heard_at
        return status_page(document, Seen(
            name=self.machine.name, role=self.role, trouble=self.branched or self.trouble,
            published=store.published.txid, behind=self.behind(), heard_s=heard, connected=self.connected,
            lags=self.lags(), slots=store.log.slots.list(), now_us=self._env.clock.now_us()))

    def close(self) -> None:
        """Stop everything, and close the store."""
        self._closing = True
        self._beating.set()
        self.unfollow()
        self.driver.close()
        self._acks.close()
        self._beats.join()
        with self._attaching:  # a copy that is under way ends after its next piece
            self.local.close()


class _LogHere:
    """The member's log, for finding where it and another one part."""

    def __init__(self, node: Node, allowed: Callable[[], bool]) -> None:
        self._node = node
        self._local = node.local
        self._allowed = allowed

    def end(self) -> Position:
        return self._local.store.durable

    def published(self) -> int:
        return self._local.published

    def base(self) -> int:
        return self._local.store.log.base.txid

    def chain_at(self, txid: int) -> bytes:
        return self._local.store.log.chain_at(txid)

    def cut(self, after: Position) -> None:
        if not self._local.cut(after, self._allowed):
            raise SourceUnavailable("the log is not cut, since this member does not follow any more")
        self._node._moved()

    def adopt(self, history: History) -> None:
        if not self._local.adopt(history, self._allowed):
            raise SourceUnavailable("this member does not follow any more")


class _Stream:
    """A follower's stream from the leader of one epoch, in a thread of its own, begun again whenever it breaks."""

    def __init__(self, node: Node, name: str, address: str, epoch: int, env: Env) -> None:
        self.epoch = epoch
        self._node = node
        self._name = name
        self._address = address
        self._env = env
        self._stopped = False
        self._pacing = Pacing(env, lambda: self._stopped)
        self._acks: Any = None
        self._acked = (-1, -1)
        self._must_seed = False
        self._copying = False
        self._peer: Peer | None = None

    def start(self) -> None:
        self._env.scheduler.spawn("holdfast-follow", self._run)

    def stop(self) -> None:
        """End it. Returns at once; nothing is appended after this, because the state machine does not allow it."""
        self._stopped = True
        self._pacing.stop()
        self._break()

    def seed_anew(self) -> None:
        """Have the state copied anew from the leader."""
        self._must_seed = True
        self._break()

    def _break(self) -> None:
        """End the connections. Unless it was stopped, the stream is begun again."""
        peer = self._peer
        if peer is not None:
            peer.close()

    def acknowledge(self, txid: int, beat: int) -> None:
        acks = self._acks
        if acks is None or (txid, beat) == self._acked:
            return
        self._acked = txid, beat
        try:
            acks.send({"txid": txid, "beat": beat})
        except HoldfastError as error:  # the log may go on coming, on its own connection: begin both again
            logger.info("%s: acknowledgements do not reach %s: %s", self._node.machine.name, self._name, error)
            self._break()

    def _run(self) -> None:
        node, log = self._node, logger
        while not self._stopped:
            try:
                self._follow_once()
            except MustSeed as error:
                try:
                    node.seed_from(self._address, self.epoch, error)
                except Exception as failed:
                    log.warning("%s could not be seeded from %s: %s", node.machine.name, self._name, failed)
                    self._tell(failed)
            except HoldfastError as error:
                self._tell(error)
                log.info("%s: the stream from %s broke: %s", node.machine.name, self._name, error)
                if isinstance(error.__cause__, ConnectionRefusedError):
                    node.driver.tell(lambda m: m.lost(self.epoch, self._env.clock.monotonic()))
            except Exception:
                log.exception("%s: following %s failed", node.machine.name, self._name)
            finally:
                node.connected = False
                self._acks = None
            if not self._pacing.wait():
                return

    def _tell(self, error: Exception) -> None:
        """Have the status say what an operator must look at: a full disk, a token, a certificate, a version. That the
        leader has gone is ordinary."""
        if passes(error) is not None:
            self._node.driver.hinder("store", error)
        elif not (self._stopped or isinstance(error, _ORDINARY)):
            self._node.driver.hinder("following", error)

    def _follow_once(self) -> None:
        node, machine = self._node, self._node.machine

        def allowed() -> bool:
            return machine.accepts(self.epoch)

        if not allowed():
            return
        if self._must_seed:
            self._must_seed = False
            raise MustSeed("an operator asked for it", branched=False)
        self._peer = peer = node._peer(self._address)
        with peer:
            common = make_equal(_LogHere(node, allowed), peer, leader_log(peer, self.epoch), self.epoch)
            hello = {"member": machine.name, "generation": machine.entry.generation, "epoch": self.epoch}
            with peer.acks(hello) as acks:
                self._acks, self._acked = acks, (-1, -1)
                for kind, body in peer.follow(hello, common):
                    if kind == RECORDS:
                        node._take_attachments(peer, body)
                        reached = node.local.append(body, allowed)
                        if reached is None:
                            return
                        self._appended(reached)
                        node.driver.unhinder("store")
                    elif "end" in body:
                        self._started(common.txid, int(body["end"]))
                        if common.txid >= int(body["end"]):
                            node.driver.unhinder("store")  # else the first record that it takes says so
                        node.connected = True
                        node.driver.unhinder("following")
                        node.driver.notify()
                        self._pacing.worked()
                    else:
                        self._heard(int(body["epoch"]), int(body["watermark"]), int(body["beat"]))
                        if "attachment" in body:
                            self._copy(Attachment(*body["attachment"]))
                        if "lags" in body:
                            node._told_lags = node.heard_at, {name: Lag(*lag) for name, lag in body["lags"].items()}
                        if "slots" in body or "gone" in body:
                            node.learn_slots(body.get("slots", ()), body.get("gone", ()))

    def _copy(self, attachment: Attachment) -> None:
        """Copy the file of a bulk load that the leader is about to log, beside the stream, and say so. A heartbeat asks
        again and again."""
        def work() -> None:
            node = self._node
            try:
                with node._peer(self._address) as peer:
                    node.take_attachment(peer, attachment, lambda: not self._stopped)
                acks = self._acks
                if acks is not None:
                    acks.send({"attachment": attachment.name})
            except HoldfastError as error:
                logger.info("%s: the file of a bulk load is not copied: %s", node.machine.name, error)
            finally:
                self._copying = False

        if not self._copying:
            self._copying = True
            self._node._env.scheduler.spawn("holdfast-attach", work)

    def _started(self, common: int, leader_end: int) -> None:
        """The stream has begun. Only what was compared counts as matched: an earlier stream's last batch may have been
        appended since, and then what the leader sends will not follow it."""
        now, end = self._env.clock.monotonic(), self._node.local.end

        def event(machine: StateMachine) -> None:
            machine.moved(end, now)
            machine.connected(self.epoch, leader_end)
            machine.matched(self.epoch, common, now)

        self._node.driver.tell(event)

    def _heard(self, epoch: int, watermark: int, beat: int) -> None:
        self._node.heard_at = now = self._env.clock.monotonic()
        self._node.driver.tell(lambda m: m.heard(epoch, watermark, beat, now))

    def _appended(self, end: End) -> None:
        now = self._env.clock.monotonic()

        def event(machine: StateMachine) -> None:
            machine.moved(end, now)
            machine.matched(self.epoch, end.txid, now)

        self._node.driver.tell(event)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Lists of records, each small enough to append and sync in one go."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.payload)
        if size >= BATCH_BYTES or record.attachment is not None:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
