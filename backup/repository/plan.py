"""What a repository can restore to, and from which image and log. Pure: it looks at the catalog's state and at where
the archived log of each branch ends, and at nothing else.

A branch that left another one shares the past before that point. So an image of the older branch and its log count for
the newer one, too, up to where they part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ...engine.errors import InvalidInput, NotFound, RestorePointOutOfRange
from ...engine.model.positions import History
from ..report import Bounds, iso
from .archive import Tail, run_with
from .state import CatalogState, Image

FOREVER = 1 << 62
"""A transaction beyond all."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Archived log of one branch on the way to another: the records after `after`, up to `end`. What it is complete up
    to is known at its end; 0 if another branch goes on there."""

    branch: str
    after: int
    end: int
    last_time_us: int
    complete_until_us: int


@dataclass(frozen=True, slots=True)
class Reach:
    """What one image and the log after it restore to: every transaction from `first` to `last`. `own`: the last one of
    the image's own log that counts; the image may be of another branch, which it goes on with."""

    image: Image
    own: int
    first: int
    last: int
    last_time_us: int
    complete_until_us: int
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point that was asked for: a transaction, or a time, of a branch; and the image and log that lead there.
    """

    branch: str
    reach: Reach
    txid: int | None
    at_us: int | None


def complete_until(point: Point, txid: int, time_us: int) -> int:
    """Up to when nothing is missing of what was committed, if a restore to a point ends at a transaction that was
    committed at `time_us`."""
    if point.at_us is not None:
        return max(point.at_us, time_us)
    return max(point.reach.complete_until_us if txid == point.reach.last else 0, time_us)


def branch_named(state: CatalogState, named: str | None) -> str:
    """The id of a branch: the one whose id begins so, or the newest. Raises `NotFound`, `InvalidInput`."""
    if not state.branches:
        raise NotFound("the repository has no branch yet", hint="take a backup into it first")
    if named is None:
        return newest_branch(state)
    found = [branch for branch in state.branches if branch.startswith(named.lower())]
    if len(found) != 1 or len(named) < 4:
        raise (NotFound if not found else InvalidInput)(
            f"branch {named!r} is not one branch of the repository, which has "
            f"{', '.join(branch[:8] for branch in state.branches)}", hint="name the first 4 digits or more of one")
    return found[0]


def newest_branch(state: CatalogState) -> str:
    """The branch of the newest image, or if there is none, the one that was accepted last."""
    newest = state.newest
    return next(reversed(state.branches)) if newest is None else newest.history.branch.id.hex()


def _ends(history: History, number: int) -> int:
    """The last transaction of a history's branch that counts for the branches after it."""
    return history.branches[number + 1].start.txid if number + 1 < len(history.branches) else FOREVER


def _stretches(state: CatalogState, history: History, tails: Mapping[str, Tail]) -> Iterator[Stretch]:
    for number, branch in enumerate(history.branches):
        id, parts_at = branch.id.hex(), _ends(history, number)
        log = state.branches.get(id)
        for run in log.runs if log else ():
            tail = tails.get(id)
            if run.end is not None:
                end, last, complete = run.end.txid, 0, run.until_us
            elif tail is not None:
                end, last, complete = tail.end.txid, tail.last_time_us, tail.complete_until_us
            else:
                continue
            if run.after.txid < min(end, parts_at):
                cut = end > parts_at
                yield Stretch(id, run.after.txid, min(end, parts_at), 0 if cut else last, 0 if cut else complete)
            elif run.after.txid == end <= parts_at and complete:  # nothing was committed since, which is known too
                yield Stretch(id, end, end, last, complete)


def reaches(state: CatalogState, branch: str, tails: Mapping[str, Tail]) -> list[Reach]:
    """What each image restores to on a branch, in the order of their first transactions. O(images × runs)."""
    history = state.branches[branch].history
    stretches = list(_stretches(state, history, tails))
    found = []
    for image in state.images.values():
        ours = image.history.branches
        if ours != history.branches[: len(ours)]:
            continue
        parts_at = _ends(history, len(ours) - 1)
        if image.consistent_from.txid > parts_at:
            continue
        last, time_us, complete = image.end.txid, image.last_time_us, image.complete_until_us
        if last > parts_at:
            last, time_us, complete = parts_at, 0, 0
        own, used = last, []
        for stretch in stretches:  # in the order of the history
            if stretch.after <= last <= stretch.end and (stretch.end > last or stretch.complete_until_us > complete):
                time_us = stretch.last_time_us if stretch.end > last else time_us
                last, complete = stretch.end, stretch.complete_until_us
                used.append(stretch)
        found.append(Reach(image, own, image.consistent_from.txid, last, time_us, complete, tuple(used)))
    return sorted(found, key=lambda r: (r.first, r.image.order))


def has_log(state: CatalogState, reach: Reach, upto: int) -> bool:
    """Whether the archived log with which an image reaches a transaction is there still."""
    at = reach.image.end.txid
    for stretch in reach.stretches:
        if at >= upto:
            break
        end = min(upto, stretch.end)
        if end <= at:
            continue
        run = run_with(state.branches[stretch.branch], at)
        if run is None or (run.end is not None and run.end.txid < end):
            return False
        at = end
    return True


def bounds(found: list[Reach]) -> list[Bounds]:
    """What they restore to together, without overlaps."""
    joined: list[Bounds] = []
    for reach in found:
        if joined and reach.first <= joined[-1].last + 1:
            before = joined[-1]
            if reach.last < before.last or (reach.last == before.last
                                            and reach.complete_until_us <= before.complete_until_us):
                continue
            first, first_time = before.first, before.first_time_us
            joined.pop()
        else:
            first, first_time = reach.first, reach.image.first_time_us or None
        joined.append(Bounds(first=first, last=reach.last, first_time_us=first_time,
                             last_time_us=reach.last_time_us or None, complete_until_us=reach.complete_until_us))
    return joined


def told(found: list[Reach]) -> str:
    """The bounds, for messages."""
    return "; or ".join(map(str, bounds(found))) or "no point of this branch"


def reach_of_txid(found: list[Reach], txid: int | None) -> tuple[Reach, int]:
    """The newest image from which a transaction can be restored, and the transaction; None: the last one of all. Raises
    `RestorePointOutOfRange`."""
    if not found:
        raise RestorePointOutOfRange("the repository has no image of this branch", hint="take a backup into it first")
    wanted = max(reach.last for reach in found) if txid is None else txid
    for reach in reversed(found):
        if reach.first <= wanted <= reach.last:
            return reach, wanted
    raise RestorePointOutOfRange(f"transaction {wanted} is not in the repository, which restores to {told(found)}")


def reach_of_time(found: list[Reach], time_us: int) -> Reach:
    """The newest image from which a time can be restored. Raises `RestorePointOutOfRange`."""
    for reach in reversed(found):
        if reach.image.first_time_us and reach.image.first_time_us <= time_us <= reach.complete_until_us:
            return reach
    late = bool(found) and time_us > max(reach.complete_until_us for reach in found)
    raise RestorePointOutOfRange(
        f"{iso(time_us)} is {'after the end of' if late else 'not in'} the repository, which restores to {told(found)}",
        hint="take a backup first, or ask for an earlier time" if late else "ask for another time")


@dataclass(slots=True)
class Damage:
    """What is known to be damaged.

    Attributes:
        images: by session, the last transaction to which an image restores all the same; -1: to none.
        log: by branch, stretches of its archived log, in order: the last transaction before the damage that can be
            read, and the last one that is in the same object; `FOREVER` if that is the last object of all, so that
            nobody knows.
    """

    images: dict[str, int] = field(default_factory=dict)
    log: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def restores_to(self, reach: Reach) -> int:
        """The last transaction to which this image and log restore in spite of it."""
        own = self.images.get(reach.image.session, FOREVER)
        if own < reach.own:
            return own
        at = reach.own
        for stretch in reach.stretches:
            for before, end in self.log.get(stretch.branch, ()):
                if end > at and before < stretch.end:
                    return max(before, at)
            at = stretch.end
        return reach.last


def lost(state: CatalogState, branch: str, tails: Mapping[str, Tail], damage: Damage
         ) -> list[tuple[int, int | None]]:
    """The restore points of a branch, first and last transaction, to which nothing restores because of a damage. None:
    nobody knows how far. A point is restored from the newest image that it can be restored from, as `reach_of_txid`
    says. O(images²)."""
    found = reaches(state, branch, tails)
    unknown = {id: replace(tail, end=tail.end._replace(txid=FOREVER)) for id, tail in tails.items()
               if any(end == FOREVER for _, end in damage.log.get(id, ()))}
    once = reaches(state, branch, {**tails, **unknown})
    marks = sorted({txid for reach in (*found, *once)
                    for txid in (reach.first, damage.restores_to(reach) + 1, reach.last + 1)})
    gone: list[tuple[int, int | None]] = []
    for first, after in pairwise(marks):
        if _restores(found, first, damage) or not any(reach.first <= first <= reach.last for reach in once):
            continue
        last = None if after > FOREVER else after - 1
        gone[-1:] = [(gone[-1][0], last)] if gone and gone[-1][1] == first - 1 else [*gone[-1:], (first, last)]
    return gone


def _restores(found: Sequence[Reach], txid: int, damage: Damage) -> bool:
    chosen = next((reach for reach in reversed(found) if reach.first <= txid <= reach.last), None)
    return chosen is not None and txid <= damage.restores_to(chosen)
