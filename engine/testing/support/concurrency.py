"""Real threads on one store: some write, some read, one checkpoints; bounded, and what each saw is noted by its digest.

Writers change the model inside their transactions, where the writer lock makes one order of them, so the model of each
transaction is there before any view can show it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from ...contract.transaction import Durability
from .modelled import Modelled
from .whereabouts import whereabouts
from .workload import Operation

WRITERS, READERS, WRITES, THINGS, BURST = 2, 3, 40, 3, 5
WRITE_S = 0.2
"""A writer ends after this many writes, or seconds."""
JOIN_S = 40


class Crowd:
    """See the module's text. `run` returns when all are done, or raises what the first one raised."""

    def __init__(self, kept: Modelled, durability: Durability) -> None:
        self.kept = kept
        self.durability = durability
        self.writing = WRITERS
        self.deadline = time.monotonic() + WRITE_S
        self.errors: list[BaseException] = []

    def run(self) -> None:
        work: list[Callable[[], None]] = [partial(self._write, writer) for writer in range(WRITERS)]
        work += [self._read] * READERS + [self._checkpoint]
        threads = [threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in work]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # so that threads meet in the middle of things
        try:
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + JOIN_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if hung := next((thread for thread in threads if thread.is_alive()), None):
                said = f"some threads are not done after {JOIN_S} s\n{whereabouts(hung)}"
                self.errors.append(AssertionError(said))  # so that the threads that can end do
        finally:
            sys.setswitchinterval(interval)
        if self.errors:
            raise self.errors[0]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def _write(self, writer: int) -> None:
        kept, work = self.kept, self.kept.work
        try:
            for number in range(WRITES):
                if time.monotonic() > self.deadline:
                    break
                with kept.store.transaction(self.durability) as tx:
                    model = kept.models[-1].copy()
                    work.run(tx, model, self._operations(writer * WRITES + number))
                    kept.models.append(model)
                    txid = kept.last
                assert tx.txid == txid, f"transaction {tx.txid} was run as number {txid}"
                if self.durability == "synced":
                    with kept.store.snapshot() as view:
                        assert view.txid >= txid, f"transaction {txid} was committed, and a view shows {view.txid}"
                time.sleep(0.001)  # so that readers see more than the end
        finally:
            self.writing -= 1

    def _operations(self, number: int) -> list[Operation]:
        """Some of several things, so that there is a middle to be met in."""
        numbers = range(1 + number * THINGS, 1 + (number + 1) * THINGS)
        return [operation for each in numbers for operation in self.kept.work.numbered(each)]

    def _read(self) -> None:
        kept, seen = self.kept, 0
        while True:
            last_look = not self.writing
            views = []
            try:
                for _ in range(BURST):  # close together, so that some come in the middle of things
                    views.append(kept.store.snapshot())
                    assert views[-1].txid >= seen, f"a view at {views[-1].txid} came after one at {seen}"
                    seen = views[-1].txid
                if kept.watermarks:
                    views.append(kept.store.snapshot(unsynced=True))
                for view in views:
                    kept.note(view)
            finally:
                for view in views:
                    view.close()
            if last_look or self.errors:
                return
            time.sleep(0)

    def _checkpoint(self) -> None:
        while self.writing and not self.errors:
            self.kept.store.checkpoint()
            time.sleep(0.002)
