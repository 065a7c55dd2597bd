"""Checks that kill real processes: the store's process dies at a random moment, and what it left must open again.

If an engine does its file operations through the environment, every crash is tried on a simulated disk. If it writes
through a library, that is impossible: its process is killed from outside, wherever the library is then. The page cache
survives, so this is not a power cut. But what the process held in memory and had not finished is lost.

The moments are chosen. Some children are killed a number of transactions after they opened the store; some while they
open it, so that recovery itself is interrupted; some within a checkpoint or while they close, within the time that
these were seen to take. The machine decides when exactly a process is hit. So a failure is shown with its round's aim,
and not replayed.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

from ..support.children import Child, Journal, NotFoundElsewhere, Server
from ..support.contract import Contract, check, scratch
from ..support.counters import count
from ..support.worker import drive
from ..support.workload import Operation, Workload, sampled

AIMS = ("pruning", "checkpointing", "committing", "opening", "checkpointing", "closing")
"""What a child is doing when it is killed, round by round. Once log is pruned, what a checkpoint only claimed to have
written is lost for certain."""
NEW_STORE_AFTER = 150
"""Transactions after which a store is left for a new one: creation is tried too, and comparing stays cheap."""
_SCRIPT = 40
_FIRST_GUESS_S = 0.002


class KillChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_killed_process_loses_nothing_acknowledged(self, work: Workload) -> None:
        """Whenever the process that writes a store is killed, the next opening, also after a recovery that was killed
        too, finds the store exactly as it was after some transaction: the last one acknowledged, or a later one. Then
        it goes on.
        """
        number = self.number()
        try:
            server = Server(self)
        except NotFoundElsewhere as error:
            raise SkipTest(str(error)) from error
        with scratch() as path, server, told(
                f"the aims are drawn from --hypothesis-seed={number}; when exactly a process is hit is the machine's"):
            kills = Kills(server, script(work, number), random.Random(number))
            kills.run(path, self.effort.kills)
            count("process kills", work.engine.name, kills.killed)


def script(work: Workload, number: int) -> list[list[Operation]]:
    """Operations of some transactions, drawn from a number."""
    drawn = sampled(work.operations(), 3 * _SCRIPT, number=number)
    different = list({repr(operations): operations for operations in drawn}.values())
    return random.Random(number).sample(different, min(_SCRIPT, len(different)))


@contextmanager
def told(when: str) -> Iterator[None]:
    """Add a note of when it happened to what the block raises."""
    try:
        yield
    except Exception as error:
        error.add_note(when)
        raise


class Kills:
    """Rounds of kills. A subclass may override `strike` to do something worse.

    Attributes:
        killed: how many children were.
        acknowledged: how many transactions they had acknowledged.
    """

    def __init__(self, server: Server, script: list[list[Operation]], drawn: random.Random) -> None:
        self.killed = self.acknowledged = 0
        self.drawn = drawn
        self._server, self._script = server, script
        self._took = {"opening": _FIRST_GUESS_S, "checkpointing": _FIRST_GUESS_S, "closing": _FIRST_GUESS_S}

    def strike(self, child: Child, journal: Journal) -> int:
        """End a child, and note what it said until then; how it ended, as `Child.end` says it."""
        child.kill()
        return child.end(journal)

    def run(self, path: Path, rounds: int) -> None:
        """Kill this many children that write stores below `path`. Raises `AssertionError` if one is not recovered."""
        directory, journal, last = path / "store 0", Journal(), "the first one had ended well"
        self._whole(directory, journal, 12)
        for round in range(rounds):
            with told(f"in round {round}, after {last}"):
                last = self._round(directory, journal, AIMS[round % len(AIMS)])
            if journal.txid > NEW_STORE_AFTER or round % 7 == 6:
                self._leave(directory, journal, last)
                directory, journal, last = path / f"store {round + 1}", Journal(), "nothing"
        self._leave(directory, journal, last)

    def _round(self, directory: Path, journal: Journal, aim: str) -> str:
        child = self._start(directory, journal, {"closing": 6, "pruning": 1000}.get(aim, 120))
        kind, times, delay = self._moment(aim)
        heard = 0
        if kind != "started":
            for message in child.messages():
                journal.note(message)
                heard += message[0] == kind
                if heard == times or message[0] == "closing":
                    break
        for message in child.messages(within=delay):
            journal.note(message)
        code = self.strike(child, journal)
        assert code in (0, -signal.SIGKILL), child.how(code)
        self.killed += code != 0
        self._learn(child)
        return f"one was killed while {aim}, {delay * 1000:.1f} ms after it had said {kind!r} (time {times})"

    def _moment(self, aim: str) -> tuple[str, int, float]:
        """When to strike: the kind of message, which one of that kind, and the seconds after it."""
        if aim == "committing":
            return "acknowledged", self.drawn.choice((1, 3, 10, 40)), self.drawn.uniform(0, 0.002)
        if aim == "pruning":
            return "pruned", 1, self.drawn.uniform(0, 0.002)
        kind = {"opening": "started", "checkpointing": "checkpoint", "closing": "closing"}[aim]
        times = self.drawn.choice((1, 2, 4)) if aim == "checkpointing" else 1
        return kind, times, self.drawn.uniform(0, 1.1 * self._took[aim])

    def _leave(self, directory: Path, journal: Journal, last: str) -> None:
        """Look at a store for the last time, once more after a proper end."""
        with told(f"at the last opening, after {last}"):
            self._whole(directory, journal, 3)
            self._whole(directory, journal, 0)
        self.acknowledged += journal.acknowledged
        shutil.rmtree(directory)

    def _whole(self, directory: Path, journal: Journal, count: int) -> None:
        """Let one live to its end."""
        child = self._start(directory, journal, count)
        code = child.end(journal)
        assert code == 0, child.how(code)
        self._learn(child)

    def _start(self, directory: Path, journal: Journal, count: int) -> Child:
        return self._server.start(drive, journal.plan(directory, self._script, count))

    def _learn(self, child: Child) -> None:
        """Learn how long each activity takes from a child that finished it: about the longest of the last few."""
        for aim, first, last in (("opening", "started", "open"), ("checkpointing", "checkpoint", "checkpointed"),
                                 ("closing", "closing", "closed")):
            took = child.seen.get(last, 0) - child.seen.get(first, 0)
            if took > 0:
                self._took[aim] = max(took, 0.8 * self._took[aim])
