"""What `orders.py` leaves out comes to the same as something that it tries: shown by small acts, of which all orders
can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from orders import Act, Stored, Table, every_order

from holdfast.backup.repository.errors import ObjectExists, ObjectMissing
from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.engine.testing import current_profile

THERE: Stored = {"a": (b"from before", 0)}


def drawn(seed: int, seat: int) -> Act:
    """A few calls by lot, of which some depend on what the earlier ones were answered."""
    def act(store: ObjectStore) -> list[Any]:
        random, told = Random(seed), list[Any]()
        for number in range(random.randrange(2, 6)):
            what, name = random.choice(["put", "get", "list", "delete", "put", "get"]), random.choice("abc")
            try:
                if what == "put":
                    store.put(name, b"%d %d" % (seat, number))
                elif what == "get":
                    told.append(store.get(name))
                elif what == "list":
                    told.append([listed.name for listed in store.list("")])
                else:
                    store.delete(name)
            except (ObjectExists, ObjectMissing) as error:
                told.append(type(error).__name__)
                if seed % 3 == 0:
                    break
        return told

    return act


def outcome(table: Table) -> str:
    return f"{table.results} {sorted((name, data) for name, (data, _) in table.objects.items())}"


@pytest.mark.parametrize("acts", [2, 3])
def test_no_outcome_is_left_out(acts: int) -> None:
    whole = few = 0
    for seed in range(8 * current_profile().times):
        of: Sequence[Act] = [drawn(10 * seed + seat, seat) for seat in range(acts)]
        for preemptions in range(3):
            every = [outcome(table) for table in every_order(of, THERE, preemptions, whole=True)]
            found = [outcome(table) for table in every_order(of, THERE, preemptions)]
            assert set(found) == set(every), f"seed {seed}, {preemptions} preemptions"
            whole, few = whole + len(every), few + len(found)
    assert few < whole / 2


def test_a_sample_is_part_of_it() -> None:
    of = [drawn(seed, seat) for seat, seed in enumerate((4, 8))]
    every = [outcome(table) for table in every_order(of, THERE)]
    some = [outcome(table) for table in every_order(of, THERE, one_in=3)]
    assert set(some) <= set(every)
    assert 0 < len(some) < len(every)


def test_each_run_is_the_same() -> None:
    of = [drawn(seed, seat) for seat, seed in enumerate((5, 7))]
    stories = [[table.story for table in every_order(of, THERE)] for _ in range(2)]
    assert stories[0] == stories[1]
