"""The main job, told as a story: `python -m holdfast.benchmarks.demo`.

Another process loads a real graph into a store and keeps writing. While it writes, this one takes a full backup over
HTTP, then kills it. The store is recovered, every write that had been acknowledged is looked up, an incremental brings
the backup to the store's end, and the backup is verified, restored, opened and compared with the store by full walks.
The exit code is 0 only if every comparison held.

`tamper` is for tests: it is called before each chapter with its name, and may spoil what the next comparison looks at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import backup
from ..engine import GraphStore
from ..engine.builtin.graph import GraphView
from ..engine.errors import HoldfastError, NotFound
from . import graphs
from .child import Child, ChildFailed
from .demo_writer import Write, count_writes, read_journals
from .terminal import Terminal

Tamper = Callable[[str, "Story"], None]

_SPEAKS_UP_WITHIN = 60.0


class Mismatch(Exception):
    """A comparison did not hold."""


@dataclass(slots=True)
class Story:
    """The demo: where its files are, how much it writes, and its steps.

    Attributes:
        edges: load only so many; None for the whole graph.
        writes: how many writes are acknowledged before the backup begins, and again after it.
        loaded: edges that the bulk load brought.
        verified_digest: what `verify` found the backup's content to be.
    """

    directory: Path
    terminal: Terminal
    edges: int | None = None
    threads: int = 4
    writes: int = 2000
    tamper: Tamper = lambda chapter, story: None
    loaded: int = 0
    verified_digest: str = ""

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def journals(self) -> Path:
        return self.directory / "journals"

    @property
    def backup(self) -> Path:
        return self.directory / "backup"

    @property
    def restored(self) -> Path:
        return self.directory / "restored"

    def tell(self) -> None:
        """All of it.

        Raises:
            Mismatch: a comparison did not hold.
            ChildFailed: the writing process did not do its part.
            HoldfastError: the store, a backup or a restore failed.
        """
        self.journals.mkdir(parents=True)
        self._load_write_back_up_and_kill()
        with self._recover() as store:
            self._look_up_every_write(store)
            self._incremental(store)
            self._verify()
            self._restore()
            self._compare(store)

    def _load_write_back_up_and_kill(self) -> None:
        arguments = [str(self.store), str(self.journals), "--threads", str(self.threads)]
        if self.edges is not None:
            arguments += ["--edges", str(self.edges)]
        with ExitStack() as stack:
            with self.terminal.step("another process opens a store and loads soc-Epinions1 in bulk") as step:
                writer = stack.enter_context(Child(f"{__package__}.demo_writer", *arguments))
                loaded = writer.hear("loaded")
                self.loaded = loaded["edges"]
                rate = self.loaded / loaded["seconds"]
                step.done(f"{loaded['nodes']:,} nodes and {self.loaded:,} edges in {loaded['seconds']:.2f} s, "
                          f"durably: {rate:,.0f} edges a second")
            if not loaded["uri"]:
                raise Mismatch("the store's backup service found no free port from 6362 to 6372")
            with self.terminal.step(f"it keeps writing from {self.threads} threads, one edge a transaction, each "
                                    "synced and then journalled outside the store") as step:
                self._await_writes(writer, self.writes, step.advance)
                step.done(f"{count_writes(self.journals):,} writes acknowledged so far")
            with self.terminal.step(f"full backup of the running store from {loaded['uri']}") as step:
                before = count_writes(self.journals)
                report = backup.run(loaded["uri"], self.backup, progress=step.advance)
                during = count_writes(self.journals) - before
                step.done(f"{_megabytes(report.image_bytes)} of image and {report.transactions:,} transactions of log "
                          f"in {report.seconds:.2f} s, the copy replayed and checked; {during:,} more writes were "
                          "acknowledged meanwhile")
            if report.kind != "full":
                raise Mismatch(f"the first backup should be full and is {report.kind}")
            if not during:
                raise Mismatch("no write was acknowledged while the backup ran")
            with self.terminal.step("SIGKILL to the writing process, in the middle of its writes") as step:
                self._await_writes(writer, before + during + self.writes, step.advance)
                writer.kill()
                step.done(f"dead, with {count_writes(self.journals):,} writes acknowledged")

    def _await_writes(self, writer: Child, count: int, advance: Callable[[str, int, int], None]) -> None:
        first = last = count_writes(self.journals)
        changed = time.monotonic()
        while (now := count_writes(self.journals)) < count:
            if not writer.running():
                raise ChildFailed("the writing process ended by itself")
            if now != last:
                last, changed = now, time.monotonic()
            elif time.monotonic() - changed > _SPEAKS_UP_WITHIN:
                raise ChildFailed(f"no write was acknowledged for {_SPEAKS_UP_WITHIN:.0f} s")
            advance("writes", now - first, count - first)
            time.sleep(0.05)

    def _recover(self) -> GraphStore:
        with self.terminal.step("open the store again: recovery") as step:
            self.tamper("recover", self)
            store = GraphStore.open(self.store, create=False)
            step.done(f"recovered to transaction {store.published.txid:,}")
        return store

    def _look_up_every_write(self, store: GraphStore) -> None:
        with self.terminal.step("look up every journalled write") as step:
            self.tamper("look up", self)
            writes = list(read_journals(self.journals))
            with store.snapshot() as view:
                for number, write in enumerate(writes):
                    _look_up(view, write)
                    if not number % 1000:
                        step.advance("writes", number, len(writes))
                beyond = view.edge_count - self.loaded - len(writes)
            if not 0 <= beyond <= self.threads:
                raise Mismatch(f"{self.loaded:,} edges were loaded and {len(writes):,} journalled, but the store holds "
                               f"{self.loaded + len(writes) + beyond:,}")
            if len(writes) < 2 * self.writes:
                raise Mismatch(f"only {len(writes):,} writes are in the journals: too few to prove anything")
            step.done(f"all {len(writes):,} acknowledged writes are there, and {beyond} more that died on their way to "
                      "the journal")

    def _incremental(self, store: GraphStore) -> None:
        with self.terminal.step(f"incremental backup from {store.backup_uri}") as step:
            if store.backup_uri is None:
                raise Mismatch("the recovered store's backup service found no free port from 6362 to 6372")
            report = backup.run(store.backup_uri, self.backup, progress=step.advance)
            if report.kind != "incremental":
                raise Mismatch(f"the second backup should be incremental and is {report.kind}")
            end = backup.info(self.backup).bounds.last
            if end != store.published.txid:
                raise Mismatch(f"the backup ends at transaction {end}, the store at {store.published.txid}")
            step.done(f"{report.transactions:,} transactions in {report.seconds:.2f} s; the backup ends where the "
                      f"store ends, at transaction {end:,}")

    def _verify(self) -> None:
        with self.terminal.step("verify the backup: every byte, every checksum, and the graph's own check") as step:
            self.tamper("verify", self)
            report = backup.verify(self.backup, progress=step.advance)
            self.verified_digest = report.digest
            step.done(f"{_megabytes(report.image_bytes + report.log_bytes + report.attachment_bytes)} match their "
                      f"checksums; {report.transactions:,} transactions replayed, and found consistent")

    def _restore(self) -> None:
        with self.terminal.step("restore it into a new directory") as step:
            report = backup.restore(self.backup, self.restored, progress=step.advance)
            step.done(f"transaction {report.txid:,}; {report.transactions:,} transactions replayed over the image")

    def _compare(self, store: GraphStore) -> None:
        with self.terminal.step("open the restored store, walk both whole, and compare") as step:
            self.tamper("open restored", self)
            with (GraphStore.open(self.restored, create=False, online_backup_enabled=False) as copy,
                  store.snapshot() as theirs, copy.snapshot() as ours):
                for name, view in (("source", theirs), ("restored store", ours)):
                    for finding in view.check():
                        raise Mismatch(f"the {name} is inconsistent: {finding}")
                source, restored = theirs.digest(), ours.digest()
                counts = f"{theirs.node_count:,} nodes and {theirs.edge_count:,} edges"
            if source != restored:
                raise Mismatch(f"the source's digest is {source.hex()}, the restored store's {restored.hex()}")
            if source.hex() != self.verified_digest:
                raise Mismatch(f"the source's digest is {source.hex()}, the verified backup's {self.verified_digest}")
            step.done(f"both are consistent, hold {counts}, and have the digest {source.hex()}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _look_up(view: GraphView, write: Write) -> None:
    """Raise `Mismatch` if an acknowledged write is not in the view, or differs."""
    try:
        edge = view.edge(write.edge)
    except NotFound:
        raise Mismatch(f"edge {write.edge} was acknowledged and is not there") from None
    found = (edge.source, edge.type, edge.target, edge.properties)
    wanted = (write.source, graphs.EDGE_TYPE, write.target, {"stamp": write.stamp})
    if found != wanted:
        raise Mismatch(f"edge {write.edge} was acknowledged as {wanted} and is {found}")


def run(directory: Path, terminal: Terminal, *, edges: int | None = None, writes: int = 2000,
        tamper: Tamper = lambda chapter, story: None) -> int:
    """Tell the story in an existing, empty directory; the exit code: 0 only if every comparison held."""
    began = time.monotonic()
    try:
        Story(directory, terminal, edges=edges, writes=writes, tamper=tamper).tell()
    except Mismatch as mismatch:
        terminal.line(f"FAILED: {mismatch}")
        return 1
    except (HoldfastError, ChildFailed) as error:
        terminal.line(f"FAILED: {type(error).__name__}: {error}")
        return 1
    terminal.line(f"Every comparison held. {time.monotonic() - began:.0f} s in all.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.benchmarks.demo", description=(__doc__ or "").partition(
        "\n\n")[2].partition("\n\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, a new directory, and leave all there")
    parsed = parser.parse_args(arguments)
    terminal = Terminal(10)
    if parsed.keep is not None:
        try:
            parsed.keep.mkdir(parents=True)
        except FileExistsError:
            terminal.line(f"FAILED: {parsed.keep} exists already; choose a new directory")
            return 2
        return run(parsed.keep, terminal)
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as made:
        return run(Path(made), terminal)


if __name__ == "__main__":
    sys.exit(main())
