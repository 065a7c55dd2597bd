"""Some acts at one storage, in every order of their calls that takes at most two preemptions, and in orders by lot.

Each act runs in a thread of its own, and one goes on at a time. Before each of its calls another one may go on, which
is a preemption; when an act ends, any other one goes on, which is none. An act is decided by the answers that it gets:
its names and nonces come from a seed of its own. So an order can be told, and two orders come to the same if each act
has had the same answers, and the same is stored. `every_order` makes use of this: see there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from repository_rig import Objects

from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.engine.testing.disks.quiet import SetClock

BEGUN_US = 1_000_000_000
"""What the clock of repositories says first. A simulated disk's times are small numbers, and within an hour of it."""
PREEMPTIONS = 2
draw = 0
"""Added to every seed. Another number, other orders by lot, another sample, other content."""
_GOLDEN = (5**0.5 - 1) / 2

Act = Callable[[ObjectStore], Any]
Stored = dict[str, tuple[bytes, int]]
Call = tuple[str, str]
"""`put`, `get`, `list` or `delete`, and the name or prefix."""


class Turns(Objects):
    """Storage of one of several, who take turns: before each call, somebody else may go on."""

    def __init__(self, table: Table, seat: int) -> None:
        super().__init__(SetClock(BEGUN_US), table.objects)
        self._table, self._seat, self._opened = table, seat, 0

    def next_seed(self) -> int:
        """For what is drawn by the next repository that is opened here. The same in each order."""
        self._opened += 1
        return draw * 100_000_000 + (self._seat + 1) * 1_000_000 + self._opened

    def _ask(self, what: str, name: str, answer: Callable[[], Any]) -> Any:
        self._table.before_call(self._seat, (what, name))
        try:
            answered = super()._ask(what, name, answer)
        except Exception as error:
            self._table.after_call(self._seat, (what, name), str(error))
            raise
        if what == "list":
            answered = list(answered)
            self._table.after_call(self._seat, (what, name), *[(one.name, one.size) for one in answered])
            return iter(answered)
        self._table.after_call(self._seat, (what, name), answered)
        return answered


class Abandoned(BaseException):
    """The order comes to what another one came to."""


Choose = Callable[["Table", int | None], int | None]
"""(the table; who is about to make a call, None at the beginning and after an act's end) -> who goes on; None: nobody,
the order is of no more use."""


class Table:
    """Runs some acts in threads, one at a time, over one storage. `choose` says before each call who goes on.

    Attributes:
        objects: what is stored.
        left: who has not ended.
        results: what each act returned or raised.
        story: who made each call, and which.
        known: by act, what it was answered so far, as a number.
        content: what is stored, as a number.
        calls: by act, those that it made.
        waiting: by act, the call that it is about to make.
        since: by act, the calls of others since it was preempted; None if it was not.
    """

    def __init__(self, objects: Stored, acts: Sequence[Act], choose: Choose) -> None:
        self.objects = dict(objects)
        self.left = list(range(len(acts)))
        self.results: list[Any] = [None] * len(acts)
        self.story: list[str] = []
        self.known = [0] * len(acts)
        self.content = 0
        self.calls: list[set[Call]] = [set() for _ in acts]
        self.waiting: list[Call | None] = [None] * len(acts)
        self.since: list[list[Call] | None] = [None] * len(acts)
        self._choose, self._acts = choose, acts
        self._gates = [threading.Semaphore(0) for _ in acts]
        self._over = threading.Semaphore(0)
        self._abandoned = False

    def run(self) -> bool:
        """Whether all acts have ended, and the order was not abandoned."""
        threads = [threading.Thread(target=self._act, args=(seat,), daemon=True) for seat in self.left]
        for thread in threads:
            thread.start()
        self._next(None)
        assert self._over.acquire(timeout=60), "an act never ends"
        for thread in threads:
            thread.join()
        return not self._abandoned

    def _act(self, seat: int) -> None:
        self._gates[seat].acquire()
        try:
            if not self._abandoned:
                self.results[seat] = self._acts[seat](Turns(self, seat))
        except Abandoned:
            pass
        except Exception as error:
            self.results[seat] = error
        self.left.remove(seat)
        self.known[seat] = hash((self.known[seat], "ended"))
        if self.left:
            self._next(None)
        else:
            self._over.release()

    def _next(self, who: int | None) -> None:
        """Whoever is to go on may."""
        chosen = None if self._abandoned else self._choose(self, who)
        if chosen is None:  # one after the other, they give up
            self._abandoned, chosen = True, self.left[0] if who is None else who
        self.since[chosen] = None
        if chosen != who:
            if who is not None:
                self.since[who] = []
            self._gates[chosen].release()
            if who is not None:
                self._gates[who].acquire()

    def before_call(self, seat: int, call: Call) -> None:
        self.waiting[seat] = call
        if not self._abandoned:
            self._next(seat)
        if self._abandoned:
            raise Abandoned
        self.story.append(f"{seat}: {' '.join(call)}")
        if call[0] == "delete":
            self._toggle(call[1])

    def after_call(self, seat: int, call: Call, *answer: Any) -> None:
        self.known[seat] = hash((self.known[seat], call, answer))
        if call[0] == "put":
            if answer == (None,):
                self._toggle(call[1])
            else:
                call = "get", call[1]  # it changed nothing
        self.calls[seat].add(call)
        for calls in self.since:
            if calls is not None:
                calls.append(call)

    def _toggle(self, name: str) -> None:
        """An object came, or goes."""
        if name in self.objects:
            self.content ^= hash((name, self.objects[name][0]))

    def needless(self, seat: int) -> bool:
        """Whether it makes no difference that this act was preempted when it was, and not a call later: nothing that
        was called since has to do with the call that it is about to make."""
        since, call = self.since[seat], self.waiting[seat]
        return since is not None and call is not None and not any(touch(call, other) for other in since)


def touch(one: Call, other: Call) -> bool:
    """Whether the order of two calls may make a difference."""
    changes = ("put", "delete")
    if one[0] == "list" or other[0] == "list":
        listing, other = (one, other) if one[0] == "list" else (other, one)
        return other[0] in changes and other[1].startswith(listing[1])
    return one[1] == other[1] and (one[0] in changes or other[0] in changes)


def by_lot(seed: int) -> Choose:
    """Anybody, at each call."""
    random = Random(draw * 100_000_000 + seed)
    return lambda table, who: random.choice(table.left)


class _Shared:
    """What the acts were seen to call, in all orders so far."""

    def __init__(self, acts: int) -> None:
        self._calls: list[set[Call]] = [set() for _ in range(acts)]

    def note(self, calls: list[set[Call]]) -> None:
        for known, more in zip(self._calls, calls, strict=True):
            known |= more

    def private(self, seat: int, call: Call) -> bool:
        """Whether no other act has anything to do with this call."""
        return not any(touch(call, other) for n, calls in enumerate(self._calls) if n != seat for other in calls)


def every_order(acts: Sequence[Act], objects: Stored, preemptions: int = PREEMPTIONS, *, one_in: int = 1,
                whole: bool = False) -> Iterator[Table]:
    """The tables of all orders with so many preemptions at most, each after its run; of orders that come to the same,
    one or a few. Deterministic.

    An act is not preempted before a call that no other act has to do with: to be preempted after it comes to the same.
    Whether that is so is looked at again when nothing else is left to try. It is not given its turn back while nothing
    was called that its next call has to do with, since the order in which it was preempted a call later comes to the
    same. An order is left as soon as each act knows what it knew at some point of an order before, the same is stored,
    the same act goes on, and no more preemptions are left: what can follow was tried.

    Args:
        one_in: at each turning only one in so many of the orders that branch off is tried, evenly chosen.
        whole: leave no order out. It takes very much longer, and shows that what is left out comes to the same.
    """
    seen: dict[Any, int] = {}
    shared = _Shared(len(acts))
    todo: list[list[dict[int, int]]] = [[] for _ in range(preemptions + 1)]
    todo[preemptions].append({})
    later: list[tuple[int, Call, int, dict[int, int]]] = []
    branched = draw
    while True:
        left = max((n for n, turnings in enumerate(todo) if turnings), default=-1)
        if left < 0:
            again = [one for one in later if not shared.private(*one[:2])]
            if not again:
                return
            later[:] = [one for one in later if one not in again]
            for _, _, left, forced in again:
                todo[left].append(forced)
            continue
        forced = todo[left].pop()
        last, points = max(forced, default=-1), 0

        def choose(table: Table, who: int | None, forced: dict[int, int] = forced, last: int = last,
                   left: int = left) -> int | None:
            nonlocal points, branched
            point, points = points, points + 1
            if point in forced:
                return forced[point]
            able = [seat for seat in table.left if seat == who or whole or not table.needless(seat)]
            able.sort(key=lambda seat: seat != who)
            if point < last:
                return able[0]
            if not whole:
                here = table.content, tuple(table.known), who
                if seen.get(here, -1) >= left:
                    return None
                seen[here] = left
            for seat in able[1:] if who is None or left else ():
                branched += 1
                if branched * _GOLDEN % 1 >= 1 / one_in:
                    continue
                turning = {**forced, point: seat}
                if who is None:
                    todo[left].append(turning)
                elif not whole and (call := table.waiting[who]) and shared.private(who, call):
                    later.append((who, call, left - 1, turning))
                else:
                    todo[left - 1].append(turning)
            return able[0] if able else None

        table = Table(objects, acts, choose)
        ended = table.run()
        shared.note(table.calls)
        if ended:
            yield table
