"""The process that the demo kills: it opens a store, loads a graph, and writes until it dies.

Each thread keeps a journal outside the store: after a commit has returned, and only then, one line goes to the thread's
file and is flushed to the operating system, where a SIGKILL can't take it back. So every whole line in a journal is a
write that the store had acknowledged, and must still be there after recovery.
"""

from __future__ import annotations

import argparse
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from ..engine import GraphStore
from . import child, graphs


class Write(NamedTuple):
    """One acknowledged write, as journalled: an edge, and the `stamp` that it carries."""

    edge: int
    source: int
    target: int
    stamp: int


def read_journals(directory: Path) -> Iterator[Write]:
    """Every whole line of every journal. A last line that is cut was being written when the process died."""
    for path in sorted(directory.glob("*.journal")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield Write(*map(int, line.split()))


def count_writes(directory: Path) -> int:
    """How many acknowledged writes the journals hold by now."""
    return sum(path.read_bytes().count(b"\n") for path in directory.glob("*.journal"))


def keep_writing(store: GraphStore, nodes: range, journal: Path, number: int) -> None:
    """Add edges between random nodes for ever, one a transaction, journalling each after it is acknowledged."""
    choice = random.Random(number)
    with open(journal, "wb", buffering=0) as file:
        stamp = number << 40
        while True:
            source, target = choice.choice(nodes), choice.choice(nodes)
            stamp += 1
            with store.transaction() as tx:
                edge = tx.add_edge(source, graphs.EDGE_TYPE, target, stamp=stamp)
            file.write(b"%d %d %d %d\n" % (edge, source, target, stamp))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("journals", type=Path)
    parser.add_argument("--graph", default="soc-Epinions1")
    parser.add_argument("--edges", type=int, default=None, help="load only so many")
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    edges = graphs.real(arguments.graph)[: arguments.edges]
    store = GraphStore.open(arguments.store)
    began = perf_counter()
    nodes = graphs.load(store, edges)
    child.say("loaded", nodes=len(nodes), edges=len(edges), seconds=perf_counter() - began, uri=store.backup_uri)
    for number in range(arguments.threads):
        journal = arguments.journals / f"{number}.journal"
        threading.Thread(target=keep_writing, args=(store, nodes, journal, number), daemon=True).start()
    child.until_parent_ends()


if __name__ == "__main__":
    main()
