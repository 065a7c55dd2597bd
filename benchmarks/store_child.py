"""A store in a separate process, which serves backups and obeys commands: one line on standard input, one answer.

`commit N` commits N edges, one a transaction, by `--threads` threads, and says `committed` with the rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..engine import GraphStore
from ..engine.store.settings import Settings
from . import child
from .traffic import edge_commits, many_threads

NEVER_CHECKPOINT = Settings(checkpoint_soft_bytes=4 << 30, checkpoint_hard_bytes=8 << 30)
"""Everything since the last checkpoint stays in the overlay, or is left to recovery."""


def nodes_of(store: GraphStore, wanted: int) -> range:
    """The ids of a store's nodes, which are consecutive here; an empty store gets `wanted` first."""
    with store.snapshot() as view:
        ids = list(view.nodes())
    if not ids:
        with store.transaction() as tx:
            ids = [tx.add_node() for _ in range(wanted)]
    return range(ids[0], ids[-1] + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--nodes", type=int, default=1000, help="how many to make if the store is empty")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--never-checkpoint", action="store_true")
    arguments = parser.parse_args()
    settings = NEVER_CHECKPOINT if arguments.never_checkpoint else Settings()
    with GraphStore.open(arguments.store, settings=settings) as store:
        nodes = nodes_of(store, arguments.nodes)
        child.say("open", uri=store.backup_uri)
        for line in sys.stdin:
            word, _, count = line.partition(" ")
            if word != "commit":
                raise ValueError(f"no such command: {word!r}")
            child.say("committed", rate=many_threads(arguments.threads, lambda n: edge_commits(store, nodes, n),
                                                     count=int(count)))


if __name__ == "__main__":
    main()
