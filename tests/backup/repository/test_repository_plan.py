"""What a repository says that it restores to, and what its images and log really lead to, are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from repository_model import Model, models

from holdfast.backup.repository.plan import (
    Reach,
    bounds,
    branch_named,
    newest_branch,
    reach_of_time,
    reach_of_txid,
    reaches,
)
from holdfast.backup.repository.state import CatalogState
from holdfast.engine.errors import InvalidInput, NotFound, RestorePointOutOfRange
from holdfast.engine.model.positions import Branch, History, Position

BEYOND = 60
"""A transaction that no model reaches."""


def served(found: list[Reach]) -> set[int]:
    """The transactions that are restored when they are asked for."""
    there = set()
    for txid in range(BEYOND):
        try:
            reach, wanted = reach_of_txid(found, txid)
        except RestorePointOutOfRange:
            continue
        assert wanted == txid
        assert reach.first <= txid <= reach.last
        there.add(txid)
    return there


@given(models())
def test_what_is_promised_is_what_is_there(model: Model) -> None:
    for branch in range(len(model.histories)):
        found = reaches(model.state, model.id(branch), model.tails())
        promised = {txid for one in bounds(found) for txid in range(one.first, one.last + 1)}
        assert promised == model.reachable(branch) == served(found)
        edges = [edge for one in bounds(found) for edge in (one.first, one.last)]
        assert edges == sorted(edges)
        if found:
            assert reach_of_txid(found, None)[1] == max(promised)


@given(models())
def test_the_log_of_a_reach_leads_from_its_image_to_its_last_transaction(model: Model) -> None:
    """Each stretch begins where the one before ends, or before, and is of the branch that the transactions are of."""
    ids = [model.id(branch) for branch in range(len(model.histories))]
    for branch, id in enumerate(ids):
        for reach in reaches(model.state, id, model.tails()):
            last = reach.own
            assert reach.first <= last <= reach.image.end.txid
            for stretch in reach.stretches:
                assert stretch.after <= last <= stretch.end
                for txid in range(last + 1, stretch.end + 1):
                    assert ids[model.owner(branch, txid)] == stretch.branch
                last = stretch.end
            assert last == reach.last


@given(models())
def test_a_time_leads_to_an_image_from_before_it(model: Model) -> None:
    for branch in range(len(model.histories)):
        found = reaches(model.state, model.id(branch), model.tails())
        for one in bounds(found):
            for txid in range(one.first, one.last + 1):
                time_us = model.time_us(branch, txid)
                try:
                    reach = reach_of_time(found, time_us)
                except RestorePointOutOfRange:
                    continue
                assert model.time_us(branch, reach.first) <= time_us
                assert reach.last >= txid


@given(models())
def test_a_catalog_that_was_written_and_read_says_the_same(model: Model) -> None:
    again = CatalogState.from_wire(model.state.to_wire(), "")
    assert again == model.state


def test_a_branch_is_named_by_its_first_digits() -> None:
    state = CatalogState()
    with pytest.raises(NotFound, match="no branch yet"):
        branch_named(state, None)
    model = Model()
    model.add(do="store", id=b"s" * 16, engine="memory")
    for number in range(2):
        model.parents.append((number - 1, 0))
        model.histories.append(History(b"s" * 16, (Branch(b"abcd" * 3 + bytes([number]) * 4, Position(0, bytes(16))),)))
        model.add(do="accept", history=model.histories[-1].to_wire())
    first, second = (history.branch.id.hex() for history in model.histories)
    assert newest_branch(model.state) == second == branch_named(model.state, None)
    assert branch_named(model.state, first[:26].upper()) == first
    with pytest.raises(InvalidInput, match="not one branch"):
        branch_named(model.state, first[:8])
    with pytest.raises(NotFound, match="not one branch"):
        branch_named(model.state, "ffff")
