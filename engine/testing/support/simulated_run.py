"""A store's run on a simulated disk, and what must be found again wherever it is cut off.

A `Run` does steps one by one, on one thread, and notes how many operations of the disk had been done when each
transaction was acknowledged. What a crash leaves is opened (`Run.survives`): it must show the model after some
transaction n, n at least the last one acknowledged by then; the engine's own check must be clean; and the store must go
on from there, durably. The models are in this process, not on the disk.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DeviceFailed, DiskFull, HoldfastError, LimitReached, OutcomeUnknown, RolledBack, StorePoisoned
from ...store.settings import Settings
from ...store.store import Store
from ..disks.quiet import QuietScheduler, quiet_env
from ..disks.simdisk import SimDisk
from ..disks.simfates import Dropped
from ..disks.simfaults import Injected
from .attended import doing
from .modelled import Modelled, difference
from .workload import Operation, Workload

SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="1 transactions", heartbeat_s=0)
_CANNOT_READ = (LimitReached, DeviceFailed)
"""What the calls of a transaction may raise that read from the disk. The transaction is dropped then."""
NEXT = 10**9
"""What is written after a crash: a number that no script writes."""
_SLOT = "aa"

Step = tuple[Any, ...]
"""What to do, and with what: see the methods `Run._…`."""


class Run(Modelled):
    """See the module's text.

    Attributes:
        disk: what it runs on.
        acknowledged: (operations done, txid) of each acknowledgement.
        made: how many operations it took to make the store; None until it is made.
        told: (operations done, step) before each step.
        states: how many different disks were opened after a crash.
        failed_at: how many operations had been done before the crash that was not survived.
    """

    def __init__(self, work: Workload, disk: SimDisk | None = None) -> None:
        """`disk` has an empty store; without it, the run makes one."""
        self.disk = SimDisk() if disk is None else disk
        quiet = quiet_env(self.disk)
        self.scheduler = QuietScheduler(quiet.clock)
        env = replace(quiet, scheduler=self.scheduler)
        super().__init__(work, Path("/data"), settings=SETTINGS, env=env)
        self.acknowledged: list[tuple[int, int]] = []
        self.made = None if disk is None else 0
        self.told: list[tuple[int, Step]] = []
        self.states = self.failed_at = 0
        self._found: dict[tuple[bytes, bool], int] = {}
        self._contents: dict[int, Any] = {}

    # --- steps -----------------------------------------------------------------------------------------------------

    def do(self, *steps: Step) -> None:
        """Do steps. Raises what the store raises."""
        for kind, *rest in steps:
            doing(kind, *rest)
            self.told.append((len(self.disk.ops), (kind, *rest)))
            getattr(self, f"_{kind}")(*rest)

    def _open(self) -> None:
        self.open()
        if self.made is None:
            self.made = len(self.disk.ops)
        found = self.store.published.txid
        self._at_least(found, self.last_acknowledged)
        for txid in range(found + 1, len(self.models)):  # their outcome was unknown, and now it is not
            self._contents.pop(txid, None)
        del self.models[found + 1 :]

    def _close(self) -> None:
        self.store.close()

    def _commit(self, operations: list[Operation]) -> None:
        self.transact(operations)
        self._acknowledge()

    def _together(self, *several: list[Operation]) -> None:
        """Commit in one group, if the engine stages: all but the last are relaxed, and synced along with it."""
        # A commit that changes nothing would wait for the others' sync, and nothing here syncs in the background.
        whole = [[*operations, *self.work.numbered(NEXT - 10 * len(self.told) - i)] for i, operations in
                 enumerate(several)]
        for operations in whole[:-1]:
            self.transact(operations, "relaxed")
        self._commit(whole[-1])

    def _load(self, number: int) -> None:
        self.bulk(number)
        self._acknowledge()

    def _checkpoint(self) -> None:
        self.store.checkpoint()

    def _spare(self) -> None:
        self.store.log.writer.prepare_spare()

    def _epoch(self) -> None:
        """Begin a new epoch, as after a failover: in a segment of its own, so that those before it may be pruned."""
        self.store.log.writer.extend_history(self.store.history, self.store.log.epoch + 1)

    def _keep(self) -> None:
        """Keep log, for a backup."""
        self.store.log.slots.register(_SLOT, "a backup", self.store.published)

    def _let_go(self) -> None:
        self.store.log.slots.drop(_SLOT)

    def _prune(self) -> None:
        self.store.prune()

    def _acknowledge(self) -> None:
        self.acknowledged.append((len(self.disk.ops), self.last))

    @property
    def last_acknowledged(self) -> int:
        return self.acknowledged[-1][1] if self.acknowledged else 0

    def acked_at(self, ops: int) -> int:
        """The last transaction that was acknowledged when this many operations had been done."""
        return max((txid for done, txid in self.acknowledged if done <= ops), default=0)

    # --- steps on a disk that fails --------------------------------------------------------------------------------

    _MAY_RAISE: dict[str, tuple[type[Exception], ...]] = {
        "open": (HoldfastError, OSError), "close": (), "commit": (RolledBack, OutcomeUnknown),
        "together": (RolledBack, OutcomeUnknown), "load": (RolledBack, OutcomeUnknown),
        "checkpoint": (DiskFull, LimitReached, StorePoisoned), "spare": (DiskFull, OSError),
        "keep": (HoldfastError, OSError), "let_go": (HoldfastError, OSError), "prune": (OSError,),
    }

    def endure(self, injected: Injected, *steps: Step) -> None:
        """Do steps while the disk fails. Each ends as the contract says, what may be retried succeeds once the disk is
        well, and reads go on."""
        lasting = injected.lasting
        self.scheduler.on_wait = injected.heal  # so that a wait for room ends
        opened = False
        for step in steps:
            if step[0] != "open" and not opened:
                continue
            error = self._attempt(step)
            if injected.lack and opened and step[0] != "close":
                assert not self.store.poisoned, f"{step[0]} ended {error!r}, and the store takes no more writes"
            if error is not None and injected.lack:
                injected.heal()
            if error is not None and (injected.lack or not lasting) and (step[0] == "open" or not self.store.poisoned):
                again = self._attempt(step)
                assert again is None, f"{step[0]} failed with {error!r}, and once the disk was well, with {again!r}"
                error = None
            opened = error is None if step[0] == "open" else opened and step[0] != "close"
            if opened and injected.struck:
                self._read_on()

    def _attempt(self, step: Step) -> Exception | None:
        self.within = False
        try:
            self.do(step)
        except Exception as error:
            may_raise = (*self._MAY_RAISE[step[0]], *(_CANNOT_READ if self.within else ()))
            if not isinstance(error, may_raise):
                allowed = ", ".join(kind.__name__ for kind in may_raise) or "nothing"
                raise AssertionError(f"{step[0]} raised {error!r}; it may raise {allowed}") from error
            failure: Exception = error
        else:
            return None
        if isinstance(failure, OutcomeUnknown):
            assert self.store.poisoned, f"{step[0]} ended {failure!r}, and the store takes more writes"
            assert failure.txid is not None, f"{step[0]} ended {failure!r}, which names no transaction"
            if failure.txid == len(self.models):
                self.models.append(self.tried)
        elif isinstance(failure, StorePoisoned):
            assert self.store.poisoned, f"{step[0]} ended {failure!r}, and the store is not poisoned"
        return failure

    def _read_on(self) -> None:
        with self.store.snapshot() as view:
            least = self.acked_at(len(self.disk.ops))
            assert view.txid >= least, f"reads show transaction {view.txid}, and {least} was acknowledged"
            self._compare(view.txid, self.work.content(view), "while the disk failed")

    # --- after a crash ---------------------------------------------------------------------------------------------

    def survives(self, disk: SimDisk, ops: int, *, least: int | None = None) -> int:
        """What a crash after `ops` operations has left must open, be right, and go on; the transaction it ends at.

        Args:
            disk: what is left; it is changed.
            ops: how many operations had been done.
            least: it must end at or after this transaction; the last one acknowledged by then if None.
        """
        creating = self.made is None or ops < self.made
        key = disk.digest(), creating
        acked = self.acked_at(ops) if least is None else least
        found = self._found.get(key)
        if found is None:
            self.states += 1
            with self._story(disk, ops):
                store = self._reopened(disk, creating)
                found = self._found[key] = self._look(store, acked)
                self._goes_on(disk, store, found)
        else:
            with self._story(disk, ops):
                self._at_least(found, acked)
        return found

    def recovers(self, disk: SimDisk, ops: int, *then: str) -> int:
        """As `survives`, but the store is left open, or does `then` (its methods); what it did is pending."""
        with self._story(disk, ops):
            store = self._reopened(disk, self.made is None or ops < self.made)
            found = self._look(store, self.acked_at(ops))
            for name in then:
                getattr(store, name)()
            return found

    def _reopened(self, disk: SimDisk, create: bool = False, clock: int = 5) -> Store[Any, Any]:
        try:
            doing("open the store after a crash")
            return Store.open(self.path, self.engine, create=create, options=self.work.opened_with, settings=SETTINGS,
                              env=quiet_env(disk, seed=clock))
        except Exception as error:
            raise AssertionError(f"the store does not open any more: {error!r}") from error

    def _at_least(self, found: int, acked: int) -> None:
        assert found >= acked, f"the store ends at transaction {found}, and transaction {acked} was acknowledged"

    def _look(self, store: Store[Any, Any], acked: int) -> int:
        n = store.published.txid
        self._at_least(n, acked)
        assert n <= self.last, f"the store ends at transaction {n}, and only {self.last} were ever begun"
        with store.snapshot() as view:
            assert view.txid == n, f"the store ends at transaction {n}, and a view shows {view.txid}"
            self._compare(n, self.work.content(view), "after the crash")
            findings = list(view.check())
            assert not findings, f"the engine's own check finds, after the crash: {findings}"
        assert store.log.end.txid == n, f"the store ends at transaction {n}, its log at {store.log.end.txid}"
        store.log.verify()
        return n

    def _compare(self, txid: int, content: Any, when: str) -> None:
        if txid not in self._contents:
            self._contents[txid] = self.work.expected(self.models[txid])
        expected = self._contents[txid]
        assert content == expected, (
            f"{when} the state at transaction {txid} is not what was written: {difference(content, expected)}")

    def _goes_on(self, disk: SimDisk, store: Store[Any, Any], n: int) -> None:
        model = self.models[n].copy()
        with store.transaction() as tx:
            self.work.run(tx, model, self.work.numbered(NEXT))
        assert tx.txid == n + 1, f"after transaction {n} comes {tx.txid}"
        again = self._reopened(disk.crashed(Dropped()), clock=6)
        with again.snapshot() as view:
            assert view.txid == n + 1, (
                f"transaction {n + 1} was acknowledged after the crash, and after the next one {view.txid} is the last")
            content, expected = self.work.content(view), self.work.expected(model)
            assert content == expected, (
                f"after the next crash the state at transaction {n + 1} is not what was written: "
                f"{difference(content, expected)}")

    @contextmanager
    def _story(self, disk: SimDisk, ops: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed_at = ops
            lines = [self.story(ops)]
            lines.append(f"  cut off after operation {ops} of the disk"
                         + (f", the {self.disk.ops[ops - 1]}" if 0 < ops <= len(self.disk.ops) else ""))
            lines += [f"    lost: {_shortened(what)}" for what in disk.lost]
            error.add_note("\n".join(lines))
            raise

    def story(self, ops: int) -> str:
        """The steps that were begun before this many operations had been done."""
        short = reprlib.Repr()
        short.maxother = short.maxstring = 40
        short.maxtuple, short.maxlist = 4, 3
        return "\n".join(["what had been done:", *(
            f"  {short.repr(step)}" for done, step in self.told if done < max(ops, 1))])


def _shortened(text: str) -> str:
    """Without the middle, if it is long: of a large write hundreds of sectors may be lost."""
    return text if len(text) <= 200 else f"{text[:120]} … {text[-70:]}"
