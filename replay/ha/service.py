"""The face of a member for users: a store that belongs to a cluster.

    with Member.open("a.db", GraphEngine, cluster="social", name="a", listen="127.0.0.1:7001",
                     coordinator="etcd://127.0.0.1:2379", create=True) as member:
        member.wait_ready()
        if member.role == "primary":
            with member.transaction() as tx: ...         # returns when a quorum has it on disk
        with member.snapshot(at_least=position) as view: ...
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

from ...engine.contract.engine import Engine, TxT, ViewT
from ...engine.contract.plugin import Plugin
from ...engine.contract.transaction import Durability
from ...engine.env import REAL, Env
from ...engine.env.shown import shown
from ...engine.errors import (
    ConditionNotMet,
    DiskFull,
    Diverged,
    HoldfastError,
    InvalidInput,
    LogPruned,
    OutcomeUnknown,
    SettingError,
    StoreClosed,
)
from ...engine.model.positions import Position
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from ...engine.store.write_path import TransactionScope
from . import quorum
from .answers import Answers
from .coordinator import Coordinator
from .document import ClusterDocument, MemberEntry
from .effects import End
from .errors import (
    NoCluster,
    NotPrimary,
)
from .joining import Joining
from .local import LocalStore
from .member import StateMachine
from .node import Node
from .peer.interface import Transport
from .plugin import MemberPlugin
from .set_aside import BranchPolicy
from .shipping import Shipping
from .state import StoredState
from .waiting import Waiting

logger = logging.getLogger("holdfast.cluster")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ANY = re.compile(r"any\((\d{1,3})\)")
_OPEN_S = 3.0
"""How long `open` waits for the coordinator and the store; joining then goes on in the background."""


class MemberScope(Generic[TxT]):
    """What `Member.transaction` returns: a context manager, as a store's. After the block, it waits for as many members
    as `ack` asks for."""

    __slots__ = ("_ack", "_member", "_node", "_scope", "_store", "_tx")

    def __init__(self, member: Member[TxT, Any], scope: TransactionScope[TxT], ack: str | int | None) -> None:
        self._member = member
        self._scope = scope
        self._ack = ack
        self._tx: TxT | None = None
        self._node: Node | None = None
        self._store: Store[TxT, Any] | None = None

    def __enter__(self) -> TxT:
        self._node = node = self._member._running()
        self._store = node.local.store
        try:
            self._tx = tx = self._scope.__enter__()
        except StoreClosed:  # it has just been deposed
            raise node.not_primary() from None
        except DiskFull as error:
            node.no_room(error)
            raise
        return tx

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._scope.__exit__(kind, error, trace)
        except OutcomeUnknown as unknown:
            if unknown.txid is not None:
                with contextlib.suppress(HoldfastError, OSError):  # the log may be cut by now
                    assert self._store is not None
                    unknown.position = Position(unknown.txid, self._store.log.chain_at(unknown.txid))
            raise
        except DiskFull as full:
            assert self._node is not None
            self._node.no_room(full)
            raise
        if kind is None and self._node is not None:
            self._node.driver.unhinder("store")
        txid = getattr(self._tx, "txid", None)
        if kind is None and txid is not None and self._ack is not None:
            self._member._wait_copies(txid, self._ack)


class Member(Generic[TxT, ViewT]):
    """See the module's text. Made by `open`; a context manager; safe to use from any number of threads.

    Attributes:
        name, cluster, directory: of this member.
    """

    def __init__(self, directory: Path, engine: type[Engine[TxT, ViewT]], *, cluster: str, name: str,
                 transport: Transport, coordinator: Coordinator, create: bool, ack: str | int, begins: ClusterDocument,
                 entry: MemberEntry, branches: BranchPolicy,
                 on_role: Callable[[str, int], None] | None, plugins: Iterable[Plugin | str],
                 options: Mapping[str, Any] | None, settings: Settings,
                 env: Env) -> None:
        self.directory = directory
        self.cluster = cluster
        self.name = name
        self._engine = engine
        self._transport = transport
        self._coordinator = coordinator
        self._ack = ack
        self._entry = entry
        self._branches = branches
        self._on_role = on_role
        self._plugins = tuple(plugins)
        self._options = options
        self._settings = settings
        self._env = env
        self._lock = env.scheduler.lock()
        self._news = env.scheduler.condition(self._lock)
        self._closing = False
        self._failure: BaseException | None = None
        self._waits_for: str | None = "the cluster's document"
        self._node: Node | None = None
        self._waiting = Waiting(cluster, name, lambda: (self._waits_for, self._failure))
        self._state = StoredState(directory, cluster, name, env)
        self._joining = Joining(directory, engine, begins, create=create, name=name, entry=entry, state=self._state,
                                coordinator=coordinator, transport=transport, options=options, settings=settings,
                                env=env, closing=lambda: self._closing, wait_for=self._wait_for)
        try:
            self._thread = env.scheduler.spawn("holdfast-join", self._run_join)
        except BaseException:
            self._state.close()
            raise

    @classmethod
    def open(cls, directory: str | Path, engine: type[Engine[TxT, ViewT]], *, cluster: str, name: str, listen: str,
             coordinator: str | Coordinator, advertise: str | None = None, create: bool = False,
             ack: str | int = "quorum", floor: quorum.Floor = "quorum", ttl: float = 10.0, failsafe: bool = False,
             no_failover: bool = False, no_sync: bool = False, clone_from: bool = False, priority: int = 100,
             delay: float = 0.0,
             token: str | None = None, backup_token: str | None = None, tls_certificate: str | Path | None = None,
             tls_key: str | Path | None = None, ca: str | Path | None = None, insecure: bool = False,
             branches: BranchPolicy = "keep_all", on_role: Callable[[str, int], None] | None = None,
             transport: Transport | None = None,
             plugins: Iterable[Plugin | str] = (),
             options: Mapping[str, Any] | None = None, settings: Settings | None = None, env: Env = REAL) -> Self:
        """Open a member, and let it join its cluster. Returns once its store is open, or once it waits for others:
        `wait_ready` waits until it can be used.

        Args:
            directory: of the member. If it is empty, the state is copied from another member.
            engine, plugins, options, settings, env: as for `Store.open`.
            cluster, name: of the cluster, and of this member within it: letters, digits, dots and dashes.
            listen: "host:port" for its service.
            coordinator: "etcd://host:port,host:port", "s3://bucket/prefix" or "file:DIRECTORY", or an object.
            advertise: "host:port" where others reach it, if that is not `listen`.
            create: begin the cluster if the coordinator has none of this name.
            ack: when a commit returns, if the transaction does not say: "quorum", "all", "local", or how many members
                must hold it, "any(n)" or a number.
            floor, ttl, failsafe: of the cluster, if it is begun: see `ClusterDocument`.
            no_failover, no_sync, clone_from, priority: see `MemberEntry`.
            delay: seconds. This follower shows a transaction only when it is this old, by the clocks of the primary and
                of this machine: so what somebody destroys by mistake can still be read here. It holds the log at once,
                and counts as any other. It is not promoted by itself.
            on_role: called with the role and the epoch after each change of role, in a thread of the member's: be
                quick. Plugins have the moment `role_changed`.
            transport: in place of HTTP, for tests.
            token, backup_token, tls_certificate, tls_key, ca, insecure: see `HttpTransport`.
            branches: what is kept of transactions that are cut from this member's log: `keep_all`, `keep_last`, or
                `keep_none`, which keeps their numbers.

        Raises:
            StoreLocked, MemberRefused, ForeignStore, WrongEngine, Damaged, SettingError, DiskFull.
        """
        if not _NAME.fullmatch(cluster) or not _NAME.fullmatch(name):
            raise SettingError(f"{shown(cluster if _NAME.fullmatch(name) else name)} is not a name",
                               hint="use up to 63 letters, digits, dots, dashes and underscores")
        check_ack(ack)
        if not (floor == "quorum" or (type(floor) is int and floor >= 1)):
            raise SettingError(f'floor must be "quorum" or a number of members, not {shown(floor)}')
        if branches not in ("keep_all", "keep_last", "keep_none"):
            raise SettingError(f"branches must be keep_all, keep_last or keep_none, not {shown(branches)}")
        if not 0 <= delay < 1e9:
            raise SettingError(f"delay must be a number of seconds from 0, not {shown(delay)}")
        at = _coordinator(coordinator, cluster, env)
        if transport is None:
            from .peer.transport import HttpTransport  # here, so that a member with another one does not load aiohttp

            transport = HttpTransport(listen, advertise, token=token, backup_token=backup_token,
                                      tls_certificate=tls_certificate, tls_key=tls_key, ca=ca, insecure=insecure,
                                      silence=max(1.0, ttl), env=env)
        entry = MemberEntry(address=transport.address, generation=0, instance="", delay=delay,
                            no_failover=no_failover or delay > 0, no_sync=no_sync, clone_from=clone_from,
                            priority=priority)
        member = cls(env.files.absolute(directory), engine, cluster=cluster, name=name, transport=transport,
                     coordinator=at, create=create, ack=ack, entry=entry,
                     begins=ClusterDocument(cluster=cluster, store_id="", ttl=ttl, floor=floor, failsafe=failsafe,
                                            voters=(name,)),
                     branches=branches, on_role=on_role, plugins=plugins, options=options,
                     settings=settings or Settings(), env=env)
        try:
            member._await(lambda: member._node is not None, _OPEN_S)
        except BaseException:
            member.close()
            raise
        return member

    # --- joining --------------------------------------------------------------------------------------------------

    def _run_join(self) -> None:
        try:
            self._transport.start(self._waiting)
            document = self._joining.join()
            if document is not None:
                self._start(document)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._closing:
            return
        logger.error("member %s cannot go on: %s", self.name, error)
        with self._lock:
            self._failure = self._failure or error
            self._news.notify_all()

    def _wait_for(self, what: str) -> None:
        with self._lock:
            if self._waits_for != what:
                logger.info("member %s waits for %s", self.name, what)
            self._waits_for = what
            self._news.notify_all()

    def _start(self, document: ClusterDocument) -> None:
        state, env = self._state, self._env
        self._entry = replace(self._entry, generation=state.identity.generation,
                              instance=env.randomness.token(8).hex())
        machine = StateMachine(self.name, self._entry, promised=state.promise, end=End(0, 0, b""), published=0,
                               kept=state.document, whole=state.identity.whole,
                               nonce=lambda: env.randomness.token(16).hex(), now_us=env.clock.now_us)

        def local(shipping: Callable[[], Shipping], refusal: Callable[[], HoldfastError]) -> LocalStore[TxT, ViewT]:
            return LocalStore(self.directory, self._engine, state, branches=self._branches, plugins=self._plugins,
                              options=self._options, settings=self._settings, env=env, shipping=shipping,
                              not_primary=refusal, on_open=self._transport.show)

        node = Node(machine, state, self._coordinator, env, local=local, peer=self._transport.peer,
                    seed=self._joining.seed, plugins=[p for p in self._plugins if isinstance(p, MemberPlugin)],
                    on_failure=self._fail, on_role=self._tell_role)
        self._transport.start(Answers(node, env))
        with self._lock:
            self._node = node
            self._news.notify_all()

    def _tell_role(self, role: str, epoch: int) -> None:
        logger.info("%s is %s (epoch %d)", self.name, role, epoch)
        if self._on_role is not None:
            try:
                self._on_role(role, epoch)
            except Exception:
                logger.exception("on_role of %s failed", self.name)

    # --- for users ------------------------------------------------------------------------------------------------

    @property
    def store_id(self) -> str:
        """Of the cluster's store, hex; empty until the cluster is known."""
        return self._joining.store_id

    @property
    def role(self) -> str:
        """"primary", "candidate", "follower", or "joining" before it has a store. O(1)."""
        node = self._node
        return "joining" if node is None else node.role

    @property
    def primary(self) -> str | None:
        """The address of the member that leads, as far as this one knows."""
        node = self._node
        document = None if node is None else node.machine.document
        if document is None or document.leader is None:
            return None
        return document.members[document.leader].address

    @property
    def store(self) -> Store[TxT, ViewT]:
        """The store that is open now. A member that is deposed opens another. Raises `SourceUnavailable`."""
        store: Store[TxT, ViewT] = self._running().local.current()
        return store

    @property
    def address(self) -> str:
        """Where others reach this member."""
        return self._transport.address

    def check(self) -> None:
        """Raises what keeps this member from going on, if anything does."""
        if self._failure is not None:
            raise self._failure

    @property
    def backup_uri(self) -> str | None:
        """Where this member's backup service answers, or None."""
        return self.store.backup_uri

    def position(self) -> Position:
        """Everything up to here is published on this member."""
        return self.store.published

    def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as plain values. O(members)."""
        node = self._node
        if node is None:
            return {"name": self.name, "cluster": self.cluster, "role": "joining", "waits_for": self._waits_for,
                    "trouble": None if self._failure is None else str(self._failure)}
        return {"cluster": self.cluster, "waits_for": None, **self._answers().status()}

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until this member is primary, or follows one and has caught up with what that had when it began.

        Raises:
            ConditionNotMet: not within `timeout` seconds; the message says what it waits for.
            Whatever keeps it from joining.
        """
        def ready() -> bool:
            node = self._node
            return node is not None and (node.role == "primary" or (
                node.connected and node.machine.whole and node.machine.registered))

        deadline = self._env.clock.monotonic() + timeout
        self._await(lambda: self._node is not None, timeout)
        node = self._node
        if node is not None:
            node.driver.wait(lambda _: ready() or self._failure is not None,
                             max(0.0, deadline - self._env.clock.monotonic()))
        if self._failure is not None:
            raise self._failure
        if not ready():
            why = self._waits_for if node is None else node.machine.trouble or "a primary"
            raise ConditionNotMet(f"member {self.name} is not ready after {timeout:g} s: it waits for {why}", txid=0,
                                  hint="see status() of this member and of the others")

    def _await(self, reached: Callable[[], bool], timeout: float) -> None:
        with self._lock:
            self._news.wait_for(lambda: reached() or self._failure is not None or self._closing, timeout)
        if self._failure is not None:
            raise self._failure

    def _answers(self) -> Answers:
        return Answers(self._running(), self._env)

    def _running(self) -> Node:
        node = self._node
        if node is None:
            if self._failure is not None:
                raise self._failure
            raise NoCluster(f"member {self.name} has no store yet: it waits for {self._waits_for}",
                            hint="wait with wait_ready()")
        return node

    def transaction(self, durability: Durability | None = None, *, ack: str | int | None = None) -> MemberScope[TxT]:
        """A write transaction, as `Store.transaction`. Only the primary takes one.

        Args:
            durability: as for a store. `pipelined` and `relaxed` do not wait, whatever `ack` says.
            ack: when the block returns: "quorum", "all", "local", "any(n)" or n members that hold it. Default: that of
                the member. It is published once the cluster's floor holds it, whatever `ack` says. `local` returns when
                it is durable here: a fail-over may lose it, and then it was never published.

        Raises, at the beginning:
            NotPrimary: with the primary's address. Nothing was written.
        Raises, at the end, as a store's; and:
            OutcomeUnknown: this member was deposed. `Cluster.outcome` tells what became of the transaction.
            InvalidInput: `ack` asks for fewer members than the cluster's floor.
        """
        asked = check_ack(self._ack if ack is None else ack)
        node = self._running()
        need = self._need(asked, node)
        scope = node.local.store.transaction("relaxed" if asked == "local" and durability is None else durability)
        document = node.machine.document
        enough = durability in ("pipelined", "relaxed") or document is None or (
            asked != "local" and need <= quorum.copies(document.floor, document.voters))
        return MemberScope(self, scope, None if enough else asked)

    def _need(self, ack: str | int, node: Node) -> int:
        document = node.machine.document
        if document is None or ack == "local":
            return 0
        floor = quorum.copies(document.floor, document.voters)
        need = (len(document.voters) if ack == "all" else quorum.copies("quorum", document.voters) if ack == "quorum"
                else int(ack))
        if need < floor and ack != "quorum":
            raise InvalidInput(f"{need} members are asked for, and this cluster publishes nothing that fewer than "
                               f"{floor} hold", hint='ask for more, or for "local"')
        return need

    def _wait_copies(self, txid: int, ack: str | int) -> None:
        """Wait until a transaction is durable here, or held by as many members as were asked for."""
        node = self._running()
        store = node.local.store
        if ack == "local":
            store.group_commit.sync_within(0.0)
            store.group_commit.wait_until(lambda: store.durable.txid >= txid, self._settings.wait_s)
            return
        need = self._need(ack, node)

        def enough(machine: StateMachine) -> bool:
            voters = set(() if machine.document is None else machine.document.voters)
            return sum(1 for name, upto in machine.acked.items() if upto >= txid and name in voters) >= need

        if not node.driver.wait(enough, self._settings.wait_s):
            raise ConditionNotMet(f"transaction {txid} is published, and fewer than {need} members hold it", txid=txid,
                                  hint="it stands; a member may be down")

    def bulk(self, load: Any) -> int:
        """Load `load`, as `Store.bulk`. Its file is copied to enough members before its record is logged; other writers
        wait meanwhile. Returns the txid. Raises as `transaction`, `Unsupported`; `RolledBack` if this member is deposed
        while the file is copied."""
        node = self._running()
        try:
            return int(node.local.store.bulk(load))
        except StoreClosed:  # it has just been deposed
            raise node.not_primary() from None

    def snapshot(self, *, at_least: int | Position | None = None, linearizable: bool = False,
                 max_lag: float | None = None) -> ViewT:
        """A read view of everything published here: always a prefix of the cluster's history. A primary that is deposed
        opens its store anew. Reads in earlier views may raise `StoreClosed` then: take another snapshot.

        Args:
            at_least: wait until this transaction is published here: read your own writes. If it is a position, the
                transaction is told from another one of the same number.
            linearizable: everything that was acknowledged before this call is shown. It costs a round to the voters.
            max_lag: seconds. Raise if this member has not heard from the primary for longer.

        Raises:
            ConditionNotMet: not within `Settings.wait_s`.
            NotPrimary: `linearizable`, and no primary answers.
            Branched: this member must be seeded anew.
            Diverged: `at_least` is a position that the cluster has lost, by a forced promotion or with a floor of one.
        """
        node = self._running()
        node.check_snapshots()
        if linearizable:
            at_least = self._linearizable_position(node)
        if max_lag is not None and node.lag_s() > max_lag:
            raise ConditionNotMet(f"{self.name} has not heard from the primary for {node.lag_s():.1f} s", txid=0,
                                  hint="read from another member")
        store = node.local.current()
        view: ViewT = store.snapshot(at_least=at_least.txid if isinstance(at_least, Position) else at_least)
        if isinstance(at_least, Position):
            try:
                _check_history(store, at_least)
            except BaseException:
                view.close()
                raise
        return view

    def _linearizable_position(self, node: Node) -> int:
        if node.role == "primary":
            return node.confirmed_position(self._settings.wait_s)
        primary = self.primary
        if primary is None:
            raise NotPrimary("no primary is known", hint="try again in a moment")
        with self._transport.peer(primary) as peer:
            return int(peer.command("confirm", {})["txid"])

    def switch_over(self, to: str) -> None:
        """Hand over to another voter. Only on the primary. Returns once it has begun. Raises `InvalidInput`."""
        node = self._running()
        why = node.driver.tell(lambda m: m.switch_over(to, self._env.clock.monotonic()))
        if why is not None:
            raise InvalidInput(f"no switch-over to {to}: {why}", hint="see the cluster's status")

    def close(self) -> None:
        """Leave the cluster for now, and close the store. May be called twice."""
        with self._lock:
            self._closing = True
            self._news.notify_all()
        self._thread.join()
        node, self._node = self._node, None
        if node is not None:
            node.close()
        self._transport.stop()
        self._coordinator.close()
        self._state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def check_ack(ack: object) -> str | int:
    """An `ack` as it is used: "quorum", "all", "local", or a number. Raises `SettingError`."""
    if ack in ("quorum", "all", "local"):
        return str(ack)
    if isinstance(ack, str) and (match := _ANY.fullmatch(ack)):
        ack = int(match[1])
    if type(ack) is int and ack >= 1:
        return ack
    raise SettingError(f'ack must be "quorum", "all", "local", "any(n)" or a number from 1, not {shown(ack)}')


def _check_history(store: Store[Any, Any], position: Position) -> None:
    """Raise `Diverged` if the log here has another transaction at a position. What was pruned is not compared."""
    with contextlib.suppress(LogPruned):
        chain = store.log.chain_at(position.txid)
        if chain != position.chain:
            raise Diverged(f"the cluster has another transaction {position.txid} than the one asked for: that one was "
                           "lost", hint="see the history of the cluster: a promotion was forced")


def _coordinator(given: str | Coordinator, cluster: str, env: Env) -> Coordinator:
    if not isinstance(given, str):
        return given
    from .coordinators.url import open_coordinator  # here, so that a member with another one loads neither

    return open_coordinator(given, cluster, env=env)
