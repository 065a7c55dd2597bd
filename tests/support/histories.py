"""What clients of a cluster did and saw, and whether that can have been: appends to lists, and reads of them.

All times are monotonic seconds of the process that keeps the history. `check` returns what must not be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Lists = dict[int, list[int]]


@dataclass(slots=True)
class Write:
    """An append of a number to list `at`. `txid`: if it was acknowledged."""

    number: int
    at: int
    began: float
    ended: float
    outcome: Literal["acknowledged", "unknown", "refused"]
    txid: int = 0


@dataclass(slots=True)
class Read:
    """A snapshot at transaction `txid`, in one life of a member. It shows the lists from `least` on."""

    life: str
    linearizable: bool
    began: float
    ended: float
    txid: int
    least: int
    lists: Lists


@dataclass(slots=True)
class Final:
    """What a member has at the end. `txid`: up to where it has published. `end`: its log's, as (epoch, txid, chain)."""

    txid: int
    digest: str
    end: tuple[int, int, str]
    lists: Lists


@dataclass(slots=True)
class History:
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    finals: dict[str, Final] = field(default_factory=dict)


def check(history: History) -> list[str]:
    """What in this history breaks a promise of the cluster. Empty if all is well. O(n log n + what was read)."""
    final = next(iter(history.finals.values()))
    return [*_members(history), *_writes(history, final), *_order(history, final), *_reads(history, final),
            *_recency(history)]


def _members(history: History) -> Iterator[str]:
    for what in ("txid", "digest", "end", "lists"):
        if len({repr(getattr(final, what)) for final in history.finals.values()}) != 1:
            yield f"members differ in {what}"
    for name, final in history.finals.items():
        if final.end[1] != final.txid:
            yield f"{name} has published up to {final.txid}, and its log ends at {final.end[1]}"


def _writes(history: History, final: Final) -> Iterator[str]:
    there = Counter(number for numbers in final.lists.values() for number in numbers)
    known = {write.number for write in history.writes}
    yield from (f"{number} is there {times} times" for number, times in there.items() if times > 1)
    yield from (f"{number} is there, and nobody wrote it" for number in there if number not in known)
    for write in history.writes:
        if write.outcome == "acknowledged" and not there[write.number]:
            yield f"{write.number} was acknowledged as transaction {write.txid}, and is not there"
        if write.outcome == "refused" and there[write.number]:
            yield f"{write.number} was refused, and is there"
    txids = Counter(write.txid for write in history.writes if write.outcome == "acknowledged")
    yield from (f"transaction {txid} was acknowledged {times} times" for txid, times in txids.items() if times > 1)


def _order(history: History, final: Final) -> Iterator[str]:
    """The order of a list is that of its transactions, and no append precedes one that was over when it began."""
    writes = {write.number: write for write in history.writes}
    for numbers in final.lists.values():
        last = 0
        for number in numbers:
            write = writes.get(number)
            if write is not None and write.txid:
                if write.txid <= last:
                    yield f"{number} is transaction {write.txid}, and stands in its list behind {last}"
                last = write.txid
        over = inf
        for number in reversed(numbers):
            write = writes.get(number)
            if write is None:
                continue
            if over < write.began:
                yield f"{number} precedes an append that was acknowledged before it began"
            if write.outcome == "acknowledged":
                over = min(over, write.ended)
    acknowledged = [write for write in history.writes if write.outcome == "acknowledged"]
    yield from _never_below(((w.began, w.ended, w.txid, f"append of {w.number}") for w in acknowledged), strictly=True)


def _reads(history: History, final: Final) -> Iterator[str]:
    """A snapshot at transaction t shows the final history up to t, exactly."""
    acknowledged = [write for write in history.writes if write.outcome == "acknowledged"]
    for read in history.reads:
        shown = set()
        for at, numbers in read.lists.items():
            if final.lists.get(at, [])[:len(numbers)] != numbers:
                yield f"{read.life} showed at {read.txid} what is not a prefix of list {at}"
            shown.update(numbers)
        for write in acknowledged:
            if write.at >= read.least and (write.number in shown) != (write.txid <= read.txid):
                yield (f"{read.life} at {read.txid} {'shows' if write.number in shown else 'lacks'} {write.number}, "
                       f"which is transaction {write.txid}")


def _recency(history: History) -> Iterator[str]:
    lives: dict[str, list[Read]] = {}
    for read in history.reads:
        lives.setdefault(read.life, []).append(read)
    for life, reads in lives.items():
        yield from _never_below((r.began, r.ended, r.txid, f"read on {life}") for r in reads)
    linearizable = [read for read in history.reads if read.linearizable]
    yield from _never_below((r.began, r.ended, r.txid, f"linearizable read on {r.life}") for r in linearizable)
    for seen, write in _before(linearizable, [w for w in history.writes if w.outcome == "acknowledged"]):
        if seen.txid < write:
            yield f"a linearizable read on {seen.life} shows {seen.txid}, and {write} had been acknowledged before"


def _before(reads: Sequence[Read], writes: Sequence[Write]) -> Iterator[tuple[Read, int]]:
    """Each read, with the last transaction that was acknowledged before it began."""
    over = sorted((write.ended, write.txid) for write in writes)
    at, most = 0, 0
    for read in sorted(reads, key=lambda r: r.began):
        while at < len(over) and over[at][0] < read.began:
            most, at = max(most, over[at][1]), at + 1
        yield read, most


def _never_below(events: Iterable[tuple[float, float, int, str]], *, strictly: bool = False) -> Iterator[str]:
    """Events (began, ended, txid, what): none is below one that was over when it began."""
    by_begin = sorted(events)
    by_end = sorted((ended, txid, what) for _, ended, txid, what in by_begin)
    at, most, of = 0, -1, ""
    for began, _, txid, what in by_begin:
        while at < len(by_end) and by_end[at][0] < began:
            if by_end[at][1] > most:
                _, most, of = by_end[at]
            at += 1
        if txid < most + strictly:
            yield f"{what} is at {txid}, and {of} was over before it, at {most}"
