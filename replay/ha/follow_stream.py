"""A follower's stream from the leader of one epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ...engine.env import Env
from ...engine.errors import HoldfastError, LogPruned, SourceUnavailable, StoreClosed, StorePoisoned
from ...engine.model.positions import History, Position
from ...engine.model.records import Attachment, Record
from .driver import Driver, passes
from .effects import End
from .errors import NotPrimary
from .following import MustSeed, Pacing, leader_log, make_equal
from .local import LocalStore
from .member import StateMachine
from .peer.interface import Peer
from .peer.wire import RECORDS

logger = logging.getLogger("holdfast.cluster")

_ORDINARY = SourceUnavailable, NotPrimary, StoreClosed, StorePoisoned, LogPruned
"""Why streams end every day."""


class Follows(Protocol):
    """What a stream needs of its member. `connected`: it streams from a leader now. `heard_at`: when it last heard from
    one, monotonic seconds."""

    machine: StateMachine
    driver: Driver
    local: LocalStore[Any, Any]
    connected: bool
    heard_at: float
    peer: Callable[[str], Peer]

    def moved(self) -> None: ...
    def is_followed_by(self, stream: FollowStream) -> bool: ...
    def take_attachments(self, peer: Peer, records: list[Record]) -> None: ...
    def take_attachment(self, peer: Peer, attachment: Attachment, goes_on: Callable[[], bool]) -> None: ...
    def seed_from(self, address: str, epoch: int, error: MustSeed) -> None: ...
    def learn_lags(self, lags: Mapping[str, Sequence[Any]]) -> None: ...
    def learn_slots(self, moved: Iterable[Sequence[Any]], gone: Iterable[str],
                    everything: Iterable[str] | None) -> None: ...


class LogHere:
    """The member's log, for finding where it and another one part."""

    def __init__(self, node: Follows, allowed: Callable[[], bool]) -> None:
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
        self._node.moved()

    def adopt(self, history: History) -> None:
        if not self._local.adopt(history, self._allowed):
            raise SourceUnavailable("this member does not follow any more")


class FollowStream:
    """A follower's stream from the leader of one epoch, in a thread of its own, begun again whenever it breaks."""

    def __init__(self, node: Follows, name: str, address: str, epoch: int, env: Env) -> None:
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
        node = self._node
        while not self._stopped:
            try:
                self._follow_once()
            except MustSeed as error:
                try:
                    node.seed_from(self._address, self.epoch, error)
                except Exception as failed:
                    logger.warning("%s could not be seeded from %s: %s", node.machine.name, self._name, failed)
                    self._tell(failed)
            except HoldfastError as error:
                self._tell(error)
                logger.info("%s: the stream from %s broke: %s", node.machine.name, self._name, error)
                if isinstance(error.__cause__, ConnectionRefusedError):
                    node.driver.tell(lambda m: m.lost(self.epoch, self._env.clock.monotonic()))
            except Exception:
                logger.exception("%s: following %s failed", node.machine.name, self._name)
            finally:
                if node.is_followed_by(self):  # else a later stream has begun
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
        self._peer = peer = node.peer(self._address)
        with peer:
            common = make_equal(LogHere(node, allowed), peer, leader_log(peer, self.epoch), self.epoch)
            hello = {"member": machine.name, "generation": machine.entry.generation, "epoch": self.epoch}
            with peer.acks(hello) as acks:
                self._acks, self._acked = acks, (-1, -1)
                for kind, body in peer.follow(hello, common):
                    if kind == RECORDS:
                        node.take_attachments(peer, body)
                        reached = node.local.append(body, allowed)
                        if reached is None:
                            return
                        self._appended(reached)
                        node.driver.unhinder("store")
                    elif "end" in body:
                        self._started(common.txid, int(body["end"]))
                        if common.txid >= int(body["end"]):
                            node.driver.unhinder("store")  # else the first record that it takes says so
                        if node.is_followed_by(self):
                            node.connected = True
                        node.driver.unhinder("following")
                        node.driver.notify()
                        self._pacing.worked()
                    else:
                        self._heard(int(body["epoch"]), int(body["watermark"]), int(body["beat"]))
                        if "attachment" in body:
                            self._copy(Attachment(*body["attachment"]))
                        if "lags" in body:
                            node.learn_lags(body["lags"])
                        if "slots" in body or "gone" in body or "all_slots" in body:
                            node.learn_slots(body.get("slots", ()), body.get("gone", ()), body.get("all_slots"))

    def _copy(self, attachment: Attachment) -> None:
        """Copy the file of a bulk load that the leader is about to log, beside the stream, and say so. A heartbeat asks
        again and again."""
        def work() -> None:
            node = self._node
            try:
                with node.peer(self._address) as peer:
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
            self._env.scheduler.spawn("holdfast-attach", work)

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
