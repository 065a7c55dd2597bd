"""A member's own store: opened as a follower's, turned into a primary's, and opened anew when it is deposed.

All that changes the log goes through one lock, so a stream, a fetch and a step-down never interleave. A primary's
transactions do not take it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from ...engine.contract.engine import Engine, TxT, ViewT
from ...engine.contract.plugin import Plugin
from ...engine.env import Env
from ...engine.env.owned_lock import Hold
from ...engine.errors import HoldfastError, StoreClosed
from ...engine.model.positions import History, Position
from ...engine.model.records import Record
from ...engine.store.full_disk import need_room
from ...engine.store.layout import Layout
from ...engine.store.replica import Replica
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from .effects import End
from .set_aside import BranchPolicy, SetAside
from .shipping import Shipping
from .state import StoredState

logger = logging.getLogger("holdfast.cluster")

DRAIN_S = 5.0
"""How long a hand-over waits for the transaction that is open."""
LOOK_S = 0.05
"""How often who waits for the lock looks whether the store is being closed."""


class LocalStore(Generic[TxT, ViewT]):
    """See the module's text. From any thread.

    Attributes:
        store: the store that is open now; another object after a step-down.
        shipping: what sends its log.
        accepting: transactions are accepted.
        reopened: how often it was opened anew.
    """

    def __init__(self, directory: Path, engine: type[Engine[TxT, ViewT]], state: StoredState, *,
                 branches: BranchPolicy, plugins: Iterable[Plugin | str], options: Mapping[str, Any] | None,
                 settings: Settings, env: Env, shipping: Callable[[], Shipping],
                 not_primary: Callable[[], HoldfastError], on_open: Callable[[Store[TxT, ViewT]], None]) -> None:
        """
        Args:
            directory, engine, plugins, options, settings, env: as `Store.open` takes them.
            state: what the member stores beside it.
            branches: what is kept of records that are cut.
            shipping: makes the plugin that sends the log; one for each opening.
            not_primary: makes the error that a transaction gets.
            on_open: told of each store that is opened, before anything is done with it.
        """
        self._directory = directory
        self._engine = engine
        self._state = state
        self._branches = branches
        self._plugins = tuple(plugins)
        self._options = options
        self._settings = settings
        self._env = env
        self._make_shipping = shipping
        self._not_primary = not_primary
        self._on_open = on_open
        self._lock = env.scheduler.lock()
        self._closed = self._leaving = False
        self.accepting = False
        self.reopened = -1
        self.store: Store[TxT, ViewT]
        self.shipping: Shipping
        self._open()

    def _open(self) -> None:
        self.shipping = self._make_shipping()
        self.store = Store.open(self._directory, self._engine, create=False, plugins=(self.shipping, *self._plugins),
                                options=self._options, settings=self._settings, env=self._env,
                                replica=self._state.watermark)
        self._replica().refuse(self._not_primary)
        self.reopened += 1
        self._leaving = False
        self._on_open(self.store)

    def _replica(self) -> Replica:
        replica = self.store.replica
        if replica is None:
            raise StoreClosed(f"{self._directory} is not open as a member's store")
        return replica

    def current(self) -> Store[TxT, ViewT]:
        """The open store. While it is being opened anew, wait for that."""
        store = self.store
        if store.closed:
            with self._lock:
                store = self.store
        return store

    # --- where it stands ------------------------------------------------------------------------------------------

    @property
    def end(self) -> End:
        """The durable end of the log."""
        position = self.store.durable
        return End(self._replica().last_epoch, position.txid, position.chain)

    @property
    def published(self) -> int:
        return self.store.published.txid

    def keep_watermark(self) -> None:
        """Store how far this member has published. Waits for what changes the log."""
        with self._lock:
            if not self.store.closed:  # else another store may be about to come into force, which has published less
                self._keep_watermark()

    def _keep_watermark(self) -> None:
        try:
            self._state.keep_watermark(self.published)
        except OSError as error:  # a lower one is safe
            logger.info("how far %s is published is not stored: %s", self._directory, error)

    # --- the log, one at a time -----------------------------------------------------------------------------------

    def append(self, records: Sequence[Record], allowed: Callable[[], bool]) -> End | None:
        """Append another member's records, and sync them. None, and nothing is done, if `allowed` says no."""
        with self._lock:
            if not allowed():
                return None
            self._replica().append(records)
            return self.end

    def cut(self, after: Position, allowed: Callable[[], bool]) -> bool:
        """Remove what comes after a position, which is exported first. Whether that was allowed."""
        with self._lock:
            if not allowed():
                return False
            last, aside = self.store.durable.txid, self._set_aside(published=False)

            def set_aside(record: Record) -> None:
                aside.add(record)
                if record.txid == last:
                    place = aside.finish()
                    logger.warning("transactions %d to %d were never published by the cluster; they are cut from the "
                                   "log, and kept in %s", after.txid + 1, last, place)

            try:
                self._replica().cut(after, set_aside)
            finally:
                aside.close()
            return True

    def set_branch_aside(self, after: Position) -> None:
        """Set everything after a position aside, before another state takes this one's place."""
        with self._lock:
            aside, last = self._set_aside(published=True), self.store.durable.txid
            try:
                for record in self.store.log.cursor(after).read():
                    aside.add(record)
                place = aside.finish()
            finally:
                aside.close()
        if place is not None:
            logger.error("transactions %d to %d are only here, although they were shown; they are kept in %s",
                         after.txid + 1, last, place)

    def _set_aside(self, *, published: bool) -> SetAside:
        return SetAside(self._state, self._env.files, self._branches, self.store.log.attachment_path,
                        published=published)

    def publish(self, upto: int, allowed: Callable[[], bool]) -> None:
        """Show everything up to a transaction: by applying it, or, in a primary, by letting its commits return. A
        follower shows nothing if `allowed` says no: it was said of a log that was here before."""
        shipping = self.shipping
        if self.accepting:
            shipping.publish(upto)
            return
        while not self._lock.acquire(timeout=LOOK_S):
            if self._leaving:  # this may be a thread of the store's, and whoever closes it waits for that
                return
        try:
            if self.accepting:
                shipping.publish(upto)
            elif not self.store.closed and allowed():
                self._replica().publish(upto)
        finally:
            self._lock.release()

    def adopt(self, history: History, allowed: Callable[[], bool]) -> bool:
        """Continue on the branches of a log that has all that is here. Whether that was allowed. Raises `Diverged`."""
        with self._lock:
            if not allowed():
                return False
            self._replica().adopt(history)
            return True

    def start_epoch(self, epoch: int, branch: str) -> End:
        """Append the first record of an epoch, durably, on a branch (hex) that is begun if the log does not have it."""
        with self._lock:
            self._replica().start_epoch(epoch, bytes.fromhex(branch) or None)
            return self.end

    # --- the primary ----------------------------------------------------------------------------------------------

    def accept(self, watermark: int) -> None:
        """Accept transactions. Everything up to `watermark`, which is the end of the log, is published first."""
        with self._lock:
            replica = self._replica()
            if replica.accepting:  # it was to hand over, and goes on
                replica.resume()
                return
            replica.publish(watermark)
            self.shipping.publish(watermark)
            replica.accept()
            self.accepting = True

    def hold(self) -> End | None:
        """Accept no more transactions, and wait until none is open and all are durable. None if one is open for too
        long."""
        store = self.store
        self._replica().refuse(self._not_primary)
        hold = Hold(store.write_path.lock)
        if not hold.take(DRAIN_S):
            return None
        hold.release()
        store.group_commit.sync_within(0.0)
        appended = store.positions().appended
        if not store.group_commit.wait_until(lambda: store.durable.txid >= appended, DRAIN_S):
            return None
        return self.end

    def refuse(self) -> None:
        """Accept no more transactions. Returns at once."""
        replica = self.store.replica
        if replica is not None:
            replica.refuse(self._not_primary)

    def reopen(self) -> None:
        """Close the store and open it as a follower's. What was not published is in the log only. While
        there is no room to open it again, it stays open for readers and for whoever drops a slot, unless a commit waits
        for its end: `DiskFull`."""
        with self._lock:
            if self._closed:
                raise StoreClosed("this member is closed")
            self.refuse()  # else closing would wait for a commit that waits for other members
            store, at = self.store, self.store.positions()
            waits = store.replica is not None and store.replica.accepting and at.appended != at.published
            if not store.closed and (store.poisoned or not waits):
                self.accepting = False
                self.shipping.end("this member's store has failed")
                need_room(self._env.files, Layout(self._directory, self._env.files))
            self._close()
            self._open()

    def seed(self, make: Callable[[], None]) -> None:
        """Close the store, have `make` bring another state into force, and open that. If `make` fails, open the old
        one. Raises `StoreClosed` if this member is closed."""
        with self._lock:
            if self._closed:
                raise StoreClosed("this member is closed")
            self._close()
            try:
                self._state.forget_watermark()
                make()
            finally:
                self._open()

    def _close(self) -> None:
        self._leaving, self.accepting = True, False
        self.shipping.end("this member has stepped down")
        if not self.store.closed:  # else another state may be in force
            self._keep_watermark()
        self.store.close()

    def close(self) -> None:
        """Close the store. It is not opened again."""
        with self._lock:
            self._closed = True
            self._close()
