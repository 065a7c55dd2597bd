"""Two or three processes at one repository, in every order of their calls to the storage that takes at most two
preemptions, and in many orders by lot.

Whatever the order, what each was told holds afterwards: no name has two winners, all that the catalog needs is there,
archived log has no gap that is not told, and every promised point restores. In `ci` each order is tried: of those that
come to the same, one (see `orders.py`). By default it is a fixed sample of them. Of three processes, two preemptions
are tried at night only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from typing import Any

import pytest
from orders import BEGUN_US, PREEMPTIONS, Act, Stored, Table, Turns, by_lot, every_order
from repository_crashes import (
    BLOCK_BYTES,
    Past,
    archived,
    begun,
    in_memory,
    in_one_thread,
    is_right,
    objects_at,
    restorable,
)
from repository_rig import Objects

from holdfast.backup.repository import repository as repositories
from holdfast.backup.repository.errors import Fenced, RepositoryExists, SessionAborted
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.keys import Key
from holdfast.backup.repository.reports import RepositoryInfo
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.engine.env import Env
from holdfast.engine.errors import HoldfastError, InvalidInput, NotFound, RestorePointOutOfRange
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.support import counters

PROFILE = current_profile()
pytestmark = pytest.mark.timeout(600 if PROFILE.name != "nightly" else 0)
ONE_IN = 4 if PROFILE.name == "default" else 1
"""Of the orders that branch off at each turning, one in so many is tried."""
LOTS = {"default": 15, "ci": 200, "nightly": 3000}[PROFILE.name]
"""Orders by lot."""
RESTORED = 40
"""In one of so many outcomes everything is restored, too."""
NEWEST = Keep(points="none")
ALL = Keep(points="for ever")
DAY_US = 24 * 3600 * 1_000_000

Check = Callable[[list[Any], RepositoryInfo], None]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_thread(monkeypatch)


@pytest.fixture
def past() -> Past:
    return begun()


def orders(acts: Sequence[Act], objects: Stored) -> Iterator[Table]:
    """Each order that is tried, from these objects, after its run."""
    tried = 0
    few = PREEMPTIONS if len(acts) == 2 or PROFILE.name == "nightly" else 1
    for tried, table in enumerate(every_order(acts, objects, few, one_in=ONE_IN), 1):  # noqa: B007
        yield table
    counters.count(f"orders of {len(acts)} with up to {few} preemptions", "repository", tried)
    for seed in range(LOTS):
        table = Table(objects, acts, by_lot(seed))
        table.run()
        yield table
    counters.count("orders by lot", "repository", LOTS)


def race(past: Past, acts: Sequence[Act], before: Objects, check: Check,
         allowed: tuple[type[Exception], ...] = ()) -> Counter[str]:
    """Try the orders. An act may end with an error of these kinds, and no other. Returns how often the acts ended how,
    so that a test can say that it has seen both ways."""
    ends: Counter[str] = Counter()
    looked: dict[int, RepositoryInfo] = {}
    for table in orders(acts, before.objects):
        results = table.results
        try:
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, allowed):
                    raise result
            info = looked.get(table.content)
            if info is None:
                fully = len(looked) % RESTORED == 0
                found = in_memory(Objects(SetClock(BEGUN_US), table.objects))
                info = looked[table.content] = is_right(found, past, restore=fully)
                if fully:
                    goes_on(found, past)
            check(results, info)
        except Exception as error:
            error.add_note("\n  ".join(["the order:", *table.story]))
            raise
        ends[" and ".join(type(result).__name__ for result in results)] += 1
    return ends


def goes_on(repository: Repository, past: Past) -> None:
    """The next archiver, backup and expiry find nothing in their way, and nothing is left of what nobody needs."""
    with closing(repository.archiver(past.source)) as archiver:
        archiver.step()
    repository.backup(past.source, block_bytes=BLOCK_BYTES)
    repository.expire(Keep(points="for ever", abandoned="none"))
    info = is_right(repository, past)
    assert max(restorable(info)) == past.last


# --- acts -----------------------------------------------------------------------------------------------------------


def archives(past: Past, *upto: int, pruned: int = 0) -> Act:
    """An archiver that begins, and archives what is there. Returns where each step ended."""
    def act(store: ObjectStore) -> list[int]:
        ends = []
        source = past.upto(upto[0], pruned=pruned)
        with closing(in_memory(store).archiver(source)) as archiver:
            for limit in upto:
                source.limit = limit
                ends.append(archiver.step().end.txid)
        return ends

    return act


def backs_up(past: Past, upto: int = 0) -> Act:
    return lambda store: in_memory(store).backup(past.upto(upto), block_bytes=BLOCK_BYTES)


def expires(keep: Keep, *, late_us: int = 0) -> Act:
    return lambda store: in_memory(store, now_us=BEGUN_US + late_us).expire(keep)


def with_image(past: Past, *, archive: bool = False) -> Objects:
    """A repository with an image of what is there, and, where asked, with archived log after it."""
    before = objects_at()
    repository = in_memory(before)
    repository.backup(past.source, block_bytes=BLOCK_BYTES)
    if archive:
        with closing(repository.archiver(past.source)) as archiver:
            for _ in range(5):
                past.write(1)
                archiver.step()
    return before


# --- archivers ------------------------------------------------------------------------------------------------------


def _told(results: list[Any], info: RepositoryInfo) -> None:
    """Every step that returned is archived."""
    assert archived(info) >= max((end for result in results if isinstance(result, list) for end in result), default=0)


def test_two_archivers_begin_at_once(past: Past) -> None:
    before = with_image(past)
    past.write(4)
    ends = race(past, [archives(past, 7, 8, 9), archives(past, 8, 10)], before, _told, (Fenced,))
    assert ends["list and list"]
    assert ends["Fenced and list"]
    assert ends["list and Fenced"]


def test_the_first_two_archivers_of_a_repository_begin_at_once(past: Past) -> None:
    """There is no run yet: both say where the log begins."""
    empty = objects_at()
    ends = race(past, [archives(past, 2, 4), archives(past, 3, 5)], empty, _told, (Fenced,))
    assert ends["Fenced and list"]


def test_one_that_is_fenced_goes_on(past: Past) -> None:
    before = with_image(past, archive=True)
    past.write(4)
    running = in_memory(before).archiver(past.upto(past.last - 4))

    def act(store: ObjectStore) -> list[int]:
        first, source = copy(running), past.upto(0)
        opened = in_memory(store)
        first._store, first._source, first._catalog, first._env = store, source, opened._catalog, opened._env
        first._catalog.refresh()
        ends = []
        with closing(first):
            for limit in range(past.last - 3, past.last + 1):
                source.limit = limit
                ends.append(first.step().end.txid)
        return ends

    ends = race(past, [act, archives(past, past.last - 2, past.last)], before, _told, (Fenced,))
    assert ends["Fenced and list"]
    assert ends["list and list"]


def test_two_archivers_whose_sources_reach_back_differently(past: Past) -> None:
    """One follows a member that has pruned the log, so that it tells a gap; the other has all of it."""
    before = with_image(past, archive=True)
    past.write(4)
    last = past.last
    ends = race(past, [archives(past, last - 1, last, pruned=last - 2), archives(past, last - 3, last)], before, _told,
                (Fenced,))
    assert ends["list and list"]


def test_an_archiver_takes_over_while_log_is_merged_and_the_pieces_go(past: Past) -> None:
    """It must not take the slot of a piece that was there when it began, and is only in a larger object now."""
    before = with_image(past, archive=True)
    past.write(4)
    last = past.last
    acts = [archives(past, last - 3, last - 2, last - 1), archives(past, last - 1, last), expires(ALL)]
    ends = race(past, acts, before, _told, (Fenced,))
    assert ends["Fenced and list and Expired"]


# --- backups --------------------------------------------------------------------------------------------------------


def test_two_backups_at_once(past: Past) -> None:
    """Both images are there, and share what they can."""
    before = with_image(past)
    past.write(2)
    past.checkpoint()

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert {result.image for result in results} <= {image.id for image in info.images}

    race(past, [backs_up(past), backs_up(past)], before, check)


def test_a_backup_and_an_expiry(past: Past) -> None:
    """Which drops the image that the backup is compared with, once another one has taken its place."""
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(2)
    past.checkpoint()

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert results[0].image in {image.id for image in info.images}

    race(past, [backs_up(past), expires(NEWEST)], before, check)


def test_a_backup_of_nothing_new_and_an_expiry(past: Past) -> None:
    """It has no packs, only a root and log. Nothing is dropped, so no entry of the expiry tells that it has begun."""
    before = with_image(past)

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert results[0].image in {image.id for image in info.images}

    race(past, [backs_up(past), expires(ALL)], before, check)


def test_two_backups_and_an_expiry(past: Past) -> None:
    """The expiry may drop what one of them is compared with, when the other one is whole."""
    before = with_image(past)
    past.write(6)
    past.checkpoint()

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert {image.id for image in info.images} & {result.image for result in results[:2]}

    race(past, [backs_up(past), backs_up(past), expires(NEWEST)], before, check)


def test_a_backup_that_is_given_up_for_dead(past: Past) -> None:
    """It ends so, or was whole before. A rerun stores what is lacking."""
    before = with_image(past)
    past.write(2)
    past.checkpoint()

    def check(results: list[Any], info: RepositoryInfo) -> None:
        if not isinstance(results[0], Exception):
            assert results[0].image in {image.id for image in info.images}
        assert not info.running or isinstance(results[0], Exception)

    ends = race(past, [backs_up(past), expires(NEWEST, late_us=2 * DAY_US)], before, check, (SessionAborted,))
    assert ends["SessionAborted and Expired"]
    assert ends["ImageReport and Expired"]


# --- expiries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [NEWEST, Keep(last=2, points="none")], ids=["image and log", "log alone"])
def test_an_expiry_and_a_restore_of_what_it_drops(keep: Keep, past: Past) -> None:
    """The restore gives what was asked for, or says that it was dropped at this moment: it is never damage."""
    before = with_image(past, archive=True)
    wanted = past.last - 2
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)

    def restores(store: ObjectStore) -> int:
        return past.restores(in_memory(store), to_txid=wanted)

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert isinstance(results[0], Exception) or results[0] == wanted

    ends = race(past, [restores, expires(keep)], before, check, (NotFound, RestorePointOutOfRange))
    assert ends["int and Expired"]
    assert sum(count for how, count in ends.items() if how != "int and Expired")


def test_two_expiries_that_keep_different_things(past: Past) -> None:
    """What one of them has dropped the other one need not find any more."""
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(2)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert len(info.images) == 1

    race(past, [expires(Keep(last=2, points="none")), expires(NEWEST)], before, check)


def test_two_expiries_while_an_archiver_merges(past: Past) -> None:
    """What is dropped by one as part of a larger unit, the other must not drop as such."""
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(5)
    last = past.last
    acts = [expires(NEWEST), expires(ALL), archives(past, *range(last - 4, last + 1))]
    race(past, acts, before, _told)


def test_an_expiry_whose_plan_is_older_than_a_merge(past: Past) -> None:
    """Between its plan and its entry, what it is to drop becomes part of a unit that stays, and another expiry drops
    the parts."""
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(5)
    last, here = past.last, Objects(before.clock, dict(before.objects))
    meanwhile = [archives(past, *range(last - 4, last + 1)), expires(ALL)]

    def fate(what: str, name: str) -> None:
        while what == "put" and name.startswith("catalog/") and meanwhile:
            meanwhile.pop(0)(Objects(before.clock, before.objects))

    before.objects, before.fate = here.objects, fate
    expires(NEWEST)(before)
    assert not meanwhile
    info = is_right(in_memory(here), past)
    assert max(restorable(info)) == archived(info) == last


def test_an_expiry_and_an_archiver_that_merges(past: Past) -> None:
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(5)
    last = past.last

    def check(results: list[Any], info: RepositoryInfo) -> None:
        _told(results, info)
        assert max(restorable(info)) == last

    race(past, [expires(NEWEST), archives(past, *range(last - 4, last + 1))], before, check)


def test_a_restore_while_its_log_is_merged_and_the_pieces_go(past: Past) -> None:
    """Nothing that it needs is dropped. What it was about to read may be in a larger object by now."""
    before = with_image(past, archive=True)
    past.write(3)
    last = past.last

    def restores(store: ObjectStore) -> int:
        return past.restores(in_memory(store), to_txid=last - 3)

    race(past, [restores, archives(past, last - 2, last - 1, last), expires(ALL)], before, _told)


def test_a_verify_while_images_and_log_go(past: Past) -> None:
    """It finds no damage in what was dropped meanwhile."""
    before = with_image(past, archive=True)
    past.checkpoint()
    in_memory(before).backup(past.source, block_bytes=BLOCK_BYTES)
    past.write(2)

    def check(results: list[Any], info: RepositoryInfo) -> None:
        assert not results[0].damaged

    acts = [lambda store: in_memory(store).verify(), archives(past, past.last - 1, past.last), expires(NEWEST)]
    race(past, acts, before, check)


# --- names ----------------------------------------------------------------------------------------------------------


def test_two_marks_of_one_name(past: Past) -> None:
    before = with_image(past)

    def marks(txid: int) -> Act:
        return lambda store: in_memory(store).mark("release", to_txid=txid)["txid"]


    def check(results: list[Any], info: RepositoryInfo) -> None:
        [won] = [result for result in results if isinstance(result, int)]
        assert [mark["txid"] for mark in info.marks] == [won]

    ends = race(past, [marks(past.last - 1), marks(past.last)], before, check, (InvalidInput,))
    assert ends["int and InvalidInput"]
    assert ends["InvalidInput and int"]


KEYS = Key(b"the key of one of them"), Key(b"the key of the other")


@pytest.mark.parametrize("keys", [(None, None), KEYS, (KEYS[0], None)], ids=["plain", "two keys", "one key"])
def test_two_make_a_repository_at_one_place(keys: tuple[Key | None, Key | None],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """One does, and the other is told so. What the one got is what everybody opens."""
    monkeypatch.setattr("holdfast.backup.repository.keys._SCRYPT", {"n": 2, "r": 8, "p": 1, "dklen": 32})
    opening: list[ObjectStore] = []
    monkeypatch.setattr(repositories, "open_storage", lambda url, env: opening.pop())

    def env(seed: int = 0) -> Env:
        return quiet_env(SimDisk(), clock=SetClock(BEGUN_US), seed=seed)

    def init(key: Key | None) -> Act:
        def act(store: ObjectStore) -> str:
            assert isinstance(store, Turns)
            opening.append(store)
            return Repository.init("memory:", key=key, env=env(store.next_seed())).id

        return act

    ends: Counter[str] = Counter()
    for table in orders([init(key) for key in keys], {}):
        results = table.results
        [winner] = [seat for seat, result in enumerate(results) if isinstance(result, str)]
        assert isinstance(results[1 - winner], RepositoryExists), results[1 - winner]
        ends[str(winner)] += 1
        opening.append(Objects(SetClock(), table.objects))
        assert Repository.open("memory:", key=keys[winner], env=env()).id == results[winner]
        if keys[winner] != keys[1 - winner]:
            opening.append(Objects(SetClock(), table.objects))
            with pytest.raises(HoldfastError, match="key"):
                Repository.open("memory:", key=keys[1 - winner], env=env())
    assert len(ends) == 2
