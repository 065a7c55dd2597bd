"""Expiry: what no kept restore point needs is dropped in the catalog, and then deleted.

`plan` is a pure function of the catalog's state, of where the archived logs end, and of what the images use. It is made
anew if the catalog has changed in what it rests on. Only after the entry `drop` is in the catalog is anything deleted.
A run that dies in between leaves objects that nobody names, and the next one deletes them.

Times are those of the storage and of the archived log, not of this machine. So a clock that is wrong expires nothing.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from ...engine.env import Env
from ...engine.env.shown import shown
from ...engine.errors import Damaged, RestorePointOutOfRange, SettingError
from ..retention import cutoff_us
from . import names
from .archive import Archive, Tail
from .catalog import Catalog
from .errors import ObjectMissing
from .plan import Reach, reach_of_txid, reaches
from .reports import Expired
from .restoring import tree_of
from .sealed import Seal
from .state import CatalogState, Entry, Image, Unit
from .storage.interface import ObjectStore, StoredObject

_HOUR_US = 3600 * 1_000_000
_FOREVER = 1 << 62
_PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "daily": lambda t: (t.year, t.month, t.day),
    "weekly": lambda t: t.isocalendar()[:2],
    "monthly": lambda t: (t.year, t.month),
    "yearly": lambda t: (t.year,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What an expiry keeps. The newest image is always kept, with the log after it, so that what is archived next leads
    on from there. So is what marks with `keep` and running restores need.

    Attributes:
        last: so many images.
        daily, weekly, monthly, yearly: the newest image of each of so many days, weeks, months, years (UTC) that have
            one.
        points: for how long any transaction can be restored: "14 days", "for ever", "none". Counted back from the last
            archived time of each branch. Beyond it each kept image restores to its own points.
        abandoned: after this time a backup that has begun and is not whole is given up for dead.

    Raises:
        SettingError: on construction.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    points: str = "14 days"
    abandoned: str = "1 day"

    def __post_init__(self) -> None:
        for name in ("last", *_PERIODS):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise SettingError(f"keep_{name}={shown(value)} is not a whole number from 0")
        cutoff_us(self.points, 0)
        cutoff_us(self.abandoned, 0)


@dataclass(slots=True)
class Plan:
    """What goes and what stays. `log`: archived log that goes, as the entry says it."""

    kept: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    slots: list[tuple[str, Unit, Unit]] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)


def plan(state: CatalogState, tails: Mapping[str, Tail], times: Mapping[str, int], keep: Keep) -> Plan:
    """What to keep and to drop. `times`: when the roots of images were put, by the storage's clock. Pure. O(images ×
    runs + units)."""
    made = Plan()
    needed: dict[str, list[tuple[int, int]]] = {branch: [] for branch in state.branches}

    def stay(image: Image, why: str) -> None:
        known = made.kept.get(image.session, "")
        if why not in known:
            made.kept[image.session] = ", ".join(filter(None, (known, why)))

    def stay_with_log(reach: Reach, upto: int, why: str) -> None:
        stay(reach.image, why)
        for stretch in reach.stretches:
            after = max(stretch.after, reach.own)
            if upto >= after:
                needed[stretch.branch].append((after, min(upto, stretch.end)))

    images, newest = list(state.images.values()), state.newest
    if newest is not None:
        stay(newest, "the newest")
    for image in images[len(images) - keep.last:] if keep.last else ():
        stay(image, f"one of the last {keep.last}")
    trusted = []
    for image in images:
        time_us = times.get(image.session)
        if time_us is None or abs(time_us - image.created_us) > _HOUR_US:
            stay(image, "its time is not certain: its maker's clock and the storage's differ by more than an hour")
        else:
            trusted.append((image, datetime.fromtimestamp(time_us / 1e6, UTC)))
    for name, period in _PERIODS.items():
        seen: set[tuple[int, ...]] = set()
        for image, when in reversed(trusted):
            if len(seen) < getattr(keep, name) and period(when) not in seen:
                seen.add(period(when))
                stay(image, f"{name} {when:%Y-%m-%d}")
    for branch in state.branches:
        found = reaches(state, branch, tails)
        for reach in _window(found, keep.points):
            stay_with_log(reach, reach.last, f"points of the last {keep.points}" if keep.points != "for ever"
                          else "points are kept for ever")
        for mark in state.marks.values():
            if mark["keep"] and mark["branch"] == branch:
                with contextlib.suppress(RestorePointOutOfRange):  # it was lost before
                    stay_with_log(*reach_of_txid(found, mark["txid"]), f"mark {mark['name']}")
        for lease in state.leases.values():
            for reach in found:
                if lease["branch"] == branch and lease["image"] == reach.image.session:
                    stay_with_log(reach, lease["txid"], f"{lease['who']} is running")
        for reach in found:
            if reach.image is newest:
                stay_with_log(reach, reach.last, "")
        if state.sessions:  # an image that is under way may go on where no image leads to yet
            needed[branch].append((max((reach.last for reach in found), default=-1), _FOREVER))
    made.images = [image.session for image in images if image.session not in made.kept]
    for branch, log in state.branches.items():
        largest = list(log.largest())
        outer = {unit.name for unit in largest}
        made.inner += [unit.name for unit in log.units if unit.name not in outer]
        made.slots += _unneeded(branch, largest, needed[branch])
    return made


def _window(found: list[Reach], points: str) -> Iterator[Reach]:
    """The images with which every point of the window can be restored, as a transaction and as a time: for each stretch
    of points the last image before the window begins, and those after each gap."""
    now_us = max((reach.complete_until_us for reach in found), default=0)
    cutoff = cutoff_us(points, now_us)
    recent = [reach for reach in found if max(reach.complete_until_us, reach.last_time_us) >= cutoff]
    base = 0
    for n, reach in enumerate(recent):
        if 0 < reach.image.first_time_us <= cutoff:
            base = n
    covered, timed = -1, 0
    for reach in [*recent[base:], *recent[:base]]:  # one that is older may lead further, if the newer one is cut off
        known = reach.complete_until_us if reach.image.first_time_us else 0
        if reach.last > covered or known > timed:
            covered, timed = max(covered, reach.last), max(timed, known)
            yield reach


def _unneeded(branch: str, units: list[Unit], needed: list[tuple[int, int]]) -> Iterator[tuple[str, Unit, Unit]]:
    """Runs of neighbouring units in which no needed transaction lies: the first and the last unit of each. A unit that
    ends with the last needed transaction stays, since it says up to when that is complete."""
    begun: Unit | None = None
    before: Unit | None = None
    for unit in units:
        wanted = any((after < unit.end.txid and unit.after.txid < end)
                     or after <= unit.end.txid == end for after, end in needed)
        if begun is not None and before is not None and (wanted or unit.first != before.last + 1):
            yield branch, begun, before
            begun = None
        if not wanted and begun is None:
            begun = unit
        before = unit
    if begun is not None and before is not None:
        yield branch, begun, before


# --- carrying it out ----------------------------------------------------------------------------------------------


class _Changed(Exception):
    """The catalog has changed in what the plan rests on."""


@dataclass(slots=True)
class _Facts:
    """What one round knows.

    Attributes:
        stored: packs and images' objects, listed before the state was read.
        state: of the catalog, without what is given up for dead.
        used: the packs of each image that is kept.
        damaged: what was found damaged on the way.
    """

    store: ObjectStore
    keep: Keep
    stored: list[StoredObject]
    state: CatalogState
    tails: dict[str, Tail] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)
    damaged: list[Damaged] = field(default_factory=list)
    _listed: dict[str, list[StoredObject]] = field(default_factory=dict)

    def planned(self, seal: Seal, env: Env) -> Plan:
        """The plan. Raises `ObjectMissing` if another expiry was faster."""
        archive = Archive(self.store, seal, self.state)
        self.tails = {branch: tail for branch in self.state.branches
                      if (tail := archive.tail(branch, self.damaged)) is not None}
        made = self._plan(self.state)
        for session in made.kept:
            try:
                self.used[session] = set(tree_of(self.store, seal, self.state.images[session], env).root.packs)
            except Damaged as error:  # nobody knows which packs the image uses
                self.damaged.append(error)
                self.used[session] = {listed.name for listed in self.stored}
        return made

    def _plan(self, state: CatalogState) -> Plan:
        times = {_session(listed): listed.modified_us for listed in self.stored
                 if listed.name == names.root(_session(listed))}
        return plan(state, self.tails, times, self.keep)

    def unused(self, made: Plan) -> list[StoredObject]:
        """Packs and images' objects that go."""
        live = set(self.state.sessions)
        packs = set[str]().union(*(self.used[session] for session in made.kept))
        return [listed for listed in self.stored if _session(listed) not in live
                and (listed.name not in packs if listed.name.startswith(f"{names.PACKS}/")
                     else _session(listed) not in made.kept)]

    def going(self, made: Plan) -> list[StoredObject]:
        """All objects that would go now."""
        def lists(prefix: str) -> list[StoredObject]:
            if prefix not in self._listed:
                self._listed[prefix] = list(self.store.list(prefix))
            return self._listed[prefix]

        return [*self.unused(made), *_log_garbage(lists, made, self.state)]

    def costs(self) -> dict[str, int]:
        """Bytes that would go, too, if it were not for a mark: by its name. A plan for each mark with `keep`."""
        marks = self.state.marks

        def bytes_without(name: str | None) -> int:
            others = {other: mark for other, mark in marks.items() if other != name}
            return sum(listed.size for listed in self.going(self._plan(replace(self.state, marks=others))))

        kept = [name for name, mark in marks.items() if mark["keep"]]
        least = bytes_without(None) if kept else 0
        return {name: bytes_without(name) - least for name in kept}


def expire(store: ObjectStore, seal: Seal, catalog: Catalog, keep: Keep, env: Env, *, dry_run: bool,
           allow: Callable[[Expired], None] | None) -> Expired:
    """See `Repository.expire`. `allow` is called with what would be removed before anything is, and raises to veto it;
    again if the plan changes."""
    told: list[str] = []
    allowed: Plan | None = None
    while True:
        # Listed first: whatever is listed belongs to a session that the state has.
        stored = [*store.list(f"{names.PACKS}/"), *store.list(f"{names.IMAGES}/")]
        state = catalog.refresh()
        over = _over(state, keep, env)
        dead = [state.sessions[entry["session"]]["who"] for entry in over if entry["do"] == "abort"]
        number = state.number
        # A copy of the state: what was dropped is known until it is deleted.
        facts = _Facts(store, keep, stored, _after(state, over))
        try:
            made = facts.planned(seal, env)
        except ObjectMissing:
            if catalog.refresh().number == number:
                raise
            continue  # another expiry dropped it
        costs = facts.costs()
        if dry_run or (allow is not None and made != allowed):
            would = _report(facts, made, facts.going(made), [*told, *dead], costs, dry_run=dry_run)
            if allow is not None:
                allow(would)
                allowed = made
            if dry_run:
                return would
        if over:
            told += dead
            for entry in over:
                catalog.append(partial(_if_it_holds, entry))
            continue
        gone = facts.unused(made)
        entry = _entry(made, [listed.name for listed in gone if listed.name.startswith(f"{names.PACKS}/")])
        rests_on = _rests_on(facts.state)

        def decide(state: CatalogState, entry: Entry = entry, rests_on: object = rests_on) -> Entry | None:
            if _rests_on(state) != rests_on:
                raise _Changed
            return entry

        try:
            if _says_something(entry):
                catalog.append(decide)
        except _Changed:
            continue
        break
    gone += _log_garbage(store.list, made, facts.state)
    for listed in gone:
        store.delete(listed.name)
    return _report(facts, made, gone, told, costs, dry_run=False)


def _report(facts: _Facts, made: Plan, gone: list[StoredObject], dead: list[str], costs: dict[str, int], *,
            dry_run: bool) -> Expired:
    return Expired(repository=facts.store.url, dry_run=dry_run, kept=made.kept, images=tuple(made.images),
                   log=tuple((branch, first.after.txid + 1, last.end.txid) for branch, first, last in made.slots),
                   objects=len(gone), bytes=sum(listed.size for listed in gone), aborted=tuple(dead), marks=costs,
                   damaged=tuple(error.message for error in facts.damaged))


def _if_it_holds(entry: Entry, state: CatalogState) -> Entry | None:
    return entry if _holds(state, entry) else None


def _over(state: CatalogState, keep: Keep, env: Env) -> list[Entry]:
    """Entries that end what nobody will: runs that began too long ago, and leases whose time is over. To bar a run that
    is alive costs it a rerun, and nothing else."""
    now_us = env.clock.now_us()
    cutoff = cutoff_us(keep.abandoned, now_us)
    return [*({"do": "abort", "session": session} for session, begun in state.sessions.items()
              if begun["time_us"] < cutoff),
            *({"do": "release", "id": id} for id, lease in state.leases.items() if lease["until_us"] < now_us)]


def _holds(state: CatalogState, entry: Entry) -> bool:
    """Whether what the entry ends is there still."""
    return entry["session"] in state.sessions if entry["do"] == "abort" else entry["id"] in state.leases


def _after(state: CatalogState, entries: list[Entry]) -> CatalogState:
    """A copy of the state, as it would be after these entries."""
    copy = CatalogState.from_wire(state.to_wire(), "")
    for entry in entries:
        copy.apply({**entry, "number": copy.number + 1}, "")
    return copy


def _rests_on(state: CatalogState) -> object:
    return (list(state.images), list(state.sessions), sorted(state.leases), sorted(state.marks), list(state.branches),
            [(len(log.runs), [unit.name for unit in log.units]) for log in state.branches.values()])


def _entry(made: Plan, packs: list[str]) -> Entry:
    return {"do": "drop", "images": made.images, "packs": packs, "merged": made.inner,
            "slots": [[branch, first.first, last.last, list(first.after), list(last.end)]
                      for branch, first, last in made.slots]}


def _says_something(entry: Entry) -> bool:
    return any(entry[name] for name in ("images", "packs", "merged", "slots"))


def _session(listed: StoredObject) -> str:
    return listed.name.split("/")[1]


def _log_garbage(lists: Callable[[str], Iterable[StoredObject]], made: Plan, before: CatalogState
                 ) -> Iterator[StoredObject]:
    """What may be deleted of archived log: what was dropped, what is in larger units, and what earlier runs that died
    have left. `lists`: the objects by prefix. `before`: the state that was planned with."""
    for branch, log in before.branches.items():
        dropped = [(first.first, last.last) for of, first, last in made.slots if of == branch]
        kept = [unit for unit in log.largest() if not _within(unit.first, dropped)]
        named = {unit.name for unit in kept}
        in_units = [(unit.first, unit.last) for unit in kept]
        in_runs = [(run.first, _FOREVER if run.last is None else run.last) for run in log.runs]
        files = {name for unit in log.units for name in unit.attachments if unit.name in named}
        for listed in lists(f"{names.LOG}/{branch}/"):
            slot = names.number_of(listed.name)
            if _within(slot, in_units) or _within(slot, dropped) or (in_runs and not _within(slot, in_runs)):
                yield listed
        for listed in lists(f"{names.MERGED}/{branch}/"):
            level, first, _ = names.merged_range(listed.name)
            if listed.name not in named and first <= log.reached.get(level, 0):
                yield listed
        for name in sorted({name for unit in log.units for name in unit.attachments} - files):
            yield from lists(f"{names.branch_files(branch)}/{name}/")


def _within(slot: int, ranges: list[tuple[int, int]]) -> bool:
    """Whether a slot lies in one of these ranges, which are in order and do not overlap. O(log ranges)."""
    at = bisect_right(ranges, slot, key=lambda pair: pair[0]) - 1
    return at >= 0 and slot <= ranges[at][1]
