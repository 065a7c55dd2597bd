"""How a member comes into its cluster: it finds or begins the cluster, and gets a store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Engine
from ...engine.env import Env
from ...engine.errors import ForeignStore, HoldfastError, SourceUnavailable
from ...engine.model.positions import Position
from ...engine.store.layout import Layout
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from .coordinator import ABSENT, Coordinator
from .document import ClusterDocument, MemberEntry
from .errors import CoordinatorUnavailable, MemberRefused, NotPrimary, SwapConflict, SwapUnknown
from .peer.interface import Transport
from .peer.wire import RECORDS
from .seed import PASSING, seed
from .state import StoredState

logger = logging.getLogger("holdfast.cluster")

_POLL_S = 0.3
_CALL_S = 3.0
"""How long a call to the coordinator may take."""


class Joining:
    """See the module's text. For one thread, but for `seed`. `store_id`: of the cluster's store, hex; empty until the
    cluster is known."""

    def __init__(self, directory: Path, engine: type[Engine[Any, Any]], begins: ClusterDocument, *, create: bool,
                 name: str, entry: MemberEntry, state: StoredState, coordinator: Coordinator, transport: Transport,
                 options: Mapping[str, Any] | None, settings: Settings, env: Env, closing: Callable[[], bool],
                 wait_for: Callable[[str], None]) -> None:
        """
        Args:
            directory, engine, options, settings, env: of the store.
            begins: what the cluster is like if this member begins it. It may if `create`.
            name, entry, state, coordinator, transport: of the member.
            closing: whether the member is being closed.
            wait_for: told what the member waits for.
        """
        self._directory = directory
        self._engine = engine
        self._begins = begins
        self._create = create
        self._name = name
        self._entry = entry
        self._state = state
        self._coordinator = coordinator
        self._transport = transport
        self._options = options
        self._settings = settings
        self._env = env
        self._closing = closing
        self._wait_for = wait_for
        self.store_id = ""

    def join(self) -> ClusterDocument | None:
        """Find or begin the cluster, and get a store. Returns the cluster's document, or None if this member is closed.
        Slow: it waits for whatever is missing."""
        document = self._find_document()
        if document is None:
            return None
        self._check_document(document)
        state, layout = self._state, Layout(self._directory, self._env.files)
        known = document.members.get(self._name)
        whole = state.identity.whole
        if not layout.is_store():
            if known is not None and known.generation and not state.identity.generation:
                self._check_not_running(known)
            whole = False
            if not self._seed_first(document):
                return None
        elif state.fresh:  # a store that was there before: what it may have acknowledged elsewhere is not known
            # At epoch 0, nobody has ever led. This member may have begun the cluster without being told so.
            whole = not document.members or (document.epoch == 0 and document.voters == (self._name,))
        if known is not None and known.generation > state.identity.generation and not whole:
            state.skip_generations(known.generation)  # an empty directory takes the name over
        state.begin(whole=whole)
        state.keep_document(document)
        if not whole:  # a promise that was lost with the directory was for an epoch that the document has by now
            state.keep_promise(max(document.epoch, state.promise[0]), document.leader or "")
        return document

    def _find_document(self) -> ClusterDocument | None:
        """The cluster's document, begun if this member may. Waits until there is one; None if this member is closed.
        """
        while not self._closing():
            try:
                data, _ = self._coordinator.read(_CALL_S)
                if data is not None:
                    return ClusterDocument.decode(data)
                if self._state.document is not None and self._state.identity.whole:
                    return self._state.document  # reads go on, and an operator can have the document made again
                if self._state.document is not None:
                    self._wait_for("the cluster's document, which the coordinator has lost")
                elif self._create:
                    document = self._begin_cluster()
                    if document is not None:
                        return document
                    continue
                else:
                    self._wait_for("somebody who begins the cluster")
            except (CoordinatorUnavailable, SwapUnknown, SwapConflict) as error:
                if self._state.document is not None and self._state.identity.whole:
                    return self._state.document  # reads go on without a coordinator
                self._wait_for(f"the coordinator ({error.message})")
            self._env.scheduler.event().wait(_POLL_S)
        return None

    def _begin_cluster(self) -> ClusterDocument | None:
        """Make the store if there is none, and the document. None if somebody else was faster."""
        layout = Layout(self._directory, self._env.files)
        made = not layout.is_store()
        with Store.open(self._directory, self._engine, options=self._options, settings=self._settings,
                        env=self._env) as store:
            store_id, branch = store.history.store_id.hex(), store.history.branch.id.hex()
        random = self._env.randomness
        document = replace(self._begins, store_id=store_id, branch=branch, nonce=random.token(16).hex(),
                           secret=random.token(24).hex(), members={self._name: self._entry})
        try:
            self._coordinator.swap(ABSENT, document.encode(), _CALL_S)
        except SwapConflict:
            if made:
                layout.clear()
            return None
        except SwapUnknown:
            data, _ = self._coordinator.read(_CALL_S)
            if data is None or ClusterDocument.decode(data).nonce != document.nonce:
                if made:
                    layout.clear()
                return None
        return replace(document, members={})

    def _check_document(self, document: ClusterDocument) -> None:
        kept, layout, cluster = self._state.document, Layout(self._directory, self._env.files), self._begins.cluster
        if document.cluster != cluster:
            raise MemberRefused(f"the coordinator's document is of cluster {document.cluster}, not of {cluster}")
        if kept is not None and kept.store_id != document.store_id:
            raise MemberRefused(f"cluster {cluster} has store {document.store_id[:8]} now, and this member was in "
                                f"one of that name with store {kept.store_id[:8]}")
        if layout.is_store():
            store_id = layout.read_identity().store_id.hex()
            if store_id != document.store_id:
                raise ForeignStore(f"{self._directory} holds store {store_id[:8]}, and cluster {cluster} store "
                                   f"{document.store_id[:8]}", hint="join with an empty directory")
        self.store_id = document.store_id
        self._transport.learn(document.secret)

    def _check_not_running(self, known: MemberEntry) -> None:
        """An empty directory may take the name of a member that is gone, but not of one that runs."""
        try:
            with self._transport.peer(known.address) as peer:
                status = peer.status()
        except HoldfastError:
            return
        if status.get("name") == self._name:
            raise MemberRefused(f"a member {self._name} runs at {known.address}",
                                hint="give this one another name, or stop that one")

    def _seed_first(self, document: ClusterDocument) -> bool:
        """Copy a state into the empty directory, from whoever has one. False if this member is closed."""
        self._wait_for("its copy of the store")
        while not self._closing():
            for name in _best_sources(document):
                if name == self._name:
                    continue
                try:
                    into_force = self.seed(document.members[name].address)
                    self._state.forget_watermark()
                    into_force()
                    return True
                except (*PASSING, NotPrimary) as error:
                    self._wait_for(f"a member to copy the store from ({name}: {error})")
            self._env.scheduler.event().wait(_POLL_S)
            found = self._find_document()
            if found is None:
                return False
            document = found
        return False

    def seed(self, address: str) -> Callable[[], None]:
        """Copy the state of the member at an address beside the present one. Returns what brings it into force."""
        def go_on(stage: str, done: int, total: int) -> None:
            if self._closing():
                raise SourceUnavailable(f"{self._name} is being closed; what was copied stays for the next attempt")

        with self._transport.source(address) as source:
            return seed(source, self._directory, self._engine, store_id=bytes.fromhex(self.store_id),
                        epoch_at=lambda position: self._epoch_at(address, position), options=self._options,
                        settings=self._settings, env=self._env, progress=go_on)

    def _epoch_at(self, address: str, position: Position) -> int:
        """The epoch of a record in another member's log."""
        if not position.txid:
            return 0
        with self._transport.peer(address) as peer:
            base, epoch = peer.status()["base"]
            if position.txid == base:
                return int(epoch)
            before = Position(position.txid - 1, peer.chain_at(position.txid - 1))
            for kind, records in peer.fetch(before, position.txid):
                if kind == RECORDS:
                    return int(records[0].epoch)
        raise SourceUnavailable(f"{address} did not send transaction {position.txid}")


def _best_sources(document: ClusterDocument) -> list[str]:
    """The members to copy a store from, best first: those that say so, then the others, the leader last."""
    return sorted(document.members, key=lambda n: (not document.members[n].clone_from, n == document.leader, n))
