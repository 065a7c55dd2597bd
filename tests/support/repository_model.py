"""Random catalogs of repositories, and by brute force what they restore to: each transaction is looked for by itself,
among the images and the slots of log that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from holdfast.backup.repository.archive import Tail
from holdfast.backup.repository.state import CatalogState, Entry, Image, Unit
from holdfast.engine.model.positions import Branch, History, Position

MINUTE_US = 60_000_000
STORE = b"s" * 16
FAN_IN = 2


@dataclass
class Slot:
    """A piece: the records after the first, up to the second."""

    after: int
    end: int
    complete_until_us: int


@dataclass
class Model:
    """A catalog's state, and what is really there. Branches have numbers here.

    Attributes:
        parents: of each branch the one that it left, and where.
        slots: of each branch, by number, in order.
        runs: the first slots of each branch's runs.
    """

    state: CatalogState = field(default_factory=CatalogState)
    parents: list[tuple[int, int]] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    slots: list[dict[int, Slot]] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)

    def add(self, **entry: Any) -> None:
        self.state.apply({**entry, "number": self.state.number + 1, "nonce": b""}, "the model")

    # --- what happened --------------------------------------------------------------------------------------------

    def line(self, branch: int) -> list[tuple[int, int, int]]:
        """The branches that lead to one: each with the transactions after the first up to the second that count."""
        found, upto = [], 1 << 40
        while branch >= 0:
            parent, start = self.parents[branch]
            found.append((branch, start, upto))
            branch, upto = parent, start
        return found[::-1]

    def owner(self, branch: int, txid: int) -> int:
        """The branch that a transaction of a branch's past was committed on."""
        return next((b for b, after, upto in self.line(branch) if after < txid <= upto), self.line(branch)[0][0])

    def time_us(self, branch: int, txid: int) -> int:
        owner = self.owner(branch, txid)
        return (10 * txid + 100 * owner + 1000) * MINUTE_US if txid else 0

    def position(self, branch: int, txid: int) -> Position:
        return Position(txid, xxh3_128_digest(b"%d %d" % (self.owner(branch, txid), txid)))

    def id(self, branch: int) -> str:
        return self.histories[branch].branch.id.hex()

    def tails(self) -> dict[str, Tail]:
        """As a look at the storage finds them."""
        found = {}
        for branch, slots in enumerate(self.slots):
            runs = self.state.branches[self.id(branch)].runs
            if runs and (last := max((n for n in slots if n >= runs[-1].first), default=None)) is not None:
                slot = slots[last]
                found[self.id(branch)] = Tail(
                    slot=last, end=self.position(branch, slot.end), complete_until_us=slot.complete_until_us,
                    last_time_us=self.time_us(branch, slot.end) if slot.end > slot.after else 0)
        return found

    # --- what can be restored -------------------------------------------------------------------------------------

    def reachable(self, branch: int, images: list[Image] | None = None) -> set[int]:
        """The transactions of a branch that the images and the slots restore to."""
        line, found = self.line(branch), set[int]()
        there = {(b, txid) for b, _, upto in line for slot in self.slots[b].values()
                 for txid in range(slot.after + 1, min(slot.end, upto) + 1)}
        for image in self.state.images.values() if images is None else images:
            of = self.histories.index(image.history)
            upto = next((upto for b, _, upto in line if b == of), -1)
            if image.consistent_from.txid > upto:
                continue
            last = min(image.end.txid, upto)
            found |= set(range(image.consistent_from.txid, last + 1))
            while (self.owner(branch, last + 1), last + 1) in there:
                last += 1
                found.add(last)
        return found

    def dropped(self, entry: Entry) -> Model:
        """What is there after an expiry's entry."""
        after = Model(CatalogState.from_wire(self.state.to_wire(), ""), self.parents, self.histories,
                      [dict(slots) for slots in self.slots], self.times)
        after.add(**entry)
        ids = [self.id(branch) for branch in range(len(self.slots))]
        for branch, first, last, _, _ in entry["slots"]:
            for number in range(first, last + 1):
                after.slots[ids.index(branch)].pop(number, None)
        return after


@st.composite
def models(draw: st.DrawFn) -> Model:
    made = Model()
    made.add(do="store", id=STORE, engine="memory")
    lasts: list[int] = []
    for number in range(draw(st.integers(1, 3))):
        parent = draw(st.integers(0, number - 1)) if number else -1
        start = draw(st.integers(made.parents[parent][1], lasts[parent])) if number else 0
        made.parents.append((parent, start))
        before = made.histories[parent] if number else History(STORE, ())
        made.histories.append(History(STORE, (*before.branches, Branch(bytes([number + 1]) * 16,
                                                                       made.position(number, start)))))
        made.slots.append({})
        made.add(do="accept", history=made.histories[-1].to_wire())
        lasts.append(_log(draw, made, number, start))
    for branch in draw(st.lists(st.integers(0, len(lasts) - 1), max_size=5)):
        _image(draw, made, branch, lasts[branch])
    return made


def _log(draw: st.DrawFn, made: Model, branch: int, start: int) -> int:
    """Archive runs of log. Returns the last transaction."""
    slot, last, complete = 1, start, 0
    for number in range(draw(st.integers(0, 3))):
        after = last + draw(st.integers(0, 2))
        ended = None if not number else list(made.position(branch, last))
        made.add(do="run", branch=made.id(branch), slot=slot, after=list(made.position(branch, after)), ended=ended,
                 until_us=complete)
        last, first = after, slot
        for count in draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)):
            next_us = made.time_us(branch, last + count + 1)
            complete = min(max(complete, made.time_us(branch, last + count)) + draw(st.integers(0, 5)) * MINUTE_US,
                           next_us - 1)
            made.slots[branch][slot] = Slot(last, last + count, complete)
            last, slot = last + count, slot + 1
        _units(draw, made, branch, first, slot)
    return last


def _units(draw: st.DrawFn, made: Model, branch: int, first: int, end: int) -> None:
    """Merge some slots of one run."""
    slots, width = made.slots[branch], FAN_IN
    for level in range(1, draw(st.integers(1, 3))):
        for begin in range(first, end - width + 1, width):
            parts = [slots[n] for n in range(begin, begin + width)]
            unit = Unit(name=f"merged/{branch}/{level}-{begin}", level=level, first=begin, last=begin + width - 1,
                        after=made.position(branch, parts[0].after), end=made.position(branch, parts[-1].end),
                        first_time_us=0, complete_until_us=parts[-1].complete_until_us, bytes=1, attachments=(),
                        last_time_us=0)
            made.add(do="merge", branch=made.id(branch), **unit.to_wire())
        width *= FAN_IN


def _image(draw: st.DrawFn, made: Model, branch: int, last: int) -> None:
    start = made.parents[branch][1]
    first = draw(st.integers(start, last + 1))
    end = first + draw(st.integers(0, 3))
    position: Callable[[int], Position] = lambda txid: made.position(branch, txid)  # noqa: E731
    session = f"{len(made.times) + made.state.number:032x}"
    time_us = max(1000 * MINUTE_US, made.time_us(branch, end)) + MINUTE_US
    image = Image(
        session=session, order=0, history=made.histories[branch], state_format=1, payloads=(1,),
        image_position=position(first), consistent_from=position(first), end=position(end), moving=False,
        image_time_us=0, first_time_us=made.time_us(branch, first) * draw(st.booleans()),
        last_time_us=made.time_us(branch, end), complete_until_us=time_us, created_us=time_us, bytes=1, new_bytes=1,
        log_bytes=0, log_objects=0)
    if (off := draw(st.sampled_from([0, 30, -30, 90, None]))) is not None:
        made.times[session] = time_us + off * MINUTE_US
    made.add(do="image", **image.to_wire())
