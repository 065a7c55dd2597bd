"""A process to be killed: opens a store, writes from several threads, and says on standard output what was
acknowledged.

    python fault_worker.py KIND DIRECTORY FIRST THREADS COUNT

Thread t writes the numbers FIRST + t * 100,000 + 0, 1, 2, … (COUNT of them), each in a transaction of its own, with
more or less beside it, so that the log rotates, is checkpointed and pruned meanwhile. Lines: `open`; `+ N` when N is
acknowledged; `! ERROR N` when the commit of N raised, after which its thread stops; `= N …` at the end: what the store
shows, if it is poisoned.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from store_kinds import KINDS, Kind

from holdfast.engine.errors import HoldfastError
from holdfast.engine.settings import Settings
from holdfast.engine.store import Store

STRIDE = 100_000
SETTINGS = Settings(segment_bytes=128 << 10, checkpoint_soft_bytes=30_000, keep_logs="50 transactions",
                    heartbeat_s=0.05)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one write, so that lines of several threads do not mix


def write(kind: Kind, store: Store[Any, Any], first: int, count: int) -> None:
    for n in range(first, first + count):
        try:
            with store.transaction() as tx:
                kind.write(tx, n)
                if n % 5 == 0:
                    for i in range(1, 20):  # a large one now and then; these are no numbers of anybody's
                        kind.write(tx, -(n * 20 + i))
        except HoldfastError as error:
            say(f"! {type(error).__name__} {n}")
            return
        say(f"+ {n}")
        if n % 40 == 17:
            store.prune()


def main(name: str, directory: str, first: int, threads: int, count: int) -> None:
    kind = KINDS[name]
    with kind.open(Path(directory), settings=SETTINGS) as store:
        say("open")
        workers = [threading.Thread(target=write, args=(kind, store, first + t * STRIDE, count))
                   for t in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if store.poisoned:
            say("= " + " ".join(str(n) for n in sorted(kind.numbers(store)) if n >= 0))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
