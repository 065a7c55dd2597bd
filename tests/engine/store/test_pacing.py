"""Images are given out slowly while transactions commit, and at once if none do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import Clock, Env
from holdfast.engine.errors import SettingError
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.pacing import Pacing
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

RATE = 1000


class Slept(Clock):
    """Time passes only in `sleep`."""

    def __init__(self) -> None:
        self.time, self.naps = 5000.0, list[float]()

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.time += seconds


def paced(rate: float | None = RATE) -> tuple[Pacing, Any, Slept]:
    clock = Slept()
    marks: Any = SimpleNamespace(published=0)
    pacing = Pacing(rate, marks, Env(clock=clock))
    pacing.busy()  # what came before the first question says nothing
    return pacing, marks, clock


@given(st.lists(st.tuples(st.integers(1, 1500), st.booleans()), min_size=1, max_size=40))
def test_a_busy_store_gives_out_no_more_than_its_rate(pieces: list[tuple[int, bool]]) -> None:
    """While transactions come, any run of pieces takes at least as long as all but its last need. No piece waits for
    more than two seconds, or it would look like a source that has gone."""
    pacing, marks, clock = paced()
    began, given_out = clock.time, 0
    for size, _ in pieces:
        marks.published += 1
        pacing.wait(size)
        assert clock.time - began >= given_out / RATE - 1e-6
        given_out += size
    assert max(clock.naps, default=0) <= 2


def test_an_idle_store_gives_out_as_much_as_is_asked_for() -> None:
    pacing, marks, clock = paced()
    for _ in range(100):
        pacing.wait(1000)
    assert not clock.naps
    marks.published += 1
    for _ in range(5):
        pacing.wait(500)
    assert clock.naps == [0.5, 0.5], "one transaction makes a store busy for a second"
    clock.sleep(1.0)
    pacing.wait(1 << 20)
    assert len(clock.naps) == 3, "a store without transactions for a second is idle"


def test_a_debt_is_never_longer_than_one_wait() -> None:
    """A large piece is given out late, but those after it do not pay for it for ever."""
    pacing, marks, clock = paced()
    marks.published += 1
    pacing.wait(1_000_000)  # a thousand seconds' worth
    pacing.wait(1)
    assert clock.naps == [2]


def test_what_was_committed_long_ago_makes_nobody_busy() -> None:
    """An incremental always follows commits that nobody asked about. It rested as if they came just now."""
    pacing, marks, clock = paced()
    clock.time += 60
    marks.published += 1
    assert not pacing.busy()
    clock.time += 0.5
    assert not pacing.busy()
    marks.published += 1
    assert pacing.busy()


def test_who_asks_seldom_is_held_to_the_rate_too() -> None:
    """A chunk that is sent with rests takes longer than a second. Its reader was taken for one that had been away, and
    got each chunk at once."""
    pacing, marks, clock = paced(1 << 20)
    for _ in range(10):
        marks.published += 1
        pacing.wait(4 << 20)
        marks.published += 1
        clock.sleep(16 * pacing.rest(256 << 10))
    assert len([nap for nap in clock.naps if nap > 0]) >= 18, "each but the first waits, and each is sent with rests"


def test_a_low_rate_rests_no_longer_than_a_source_that_is_there() -> None:
    pacing, marks, _ = paced(64 << 10)
    marks.published += 1
    assert pacing.rest(256 << 10) == 0.1


def test_what_is_sent_and_read_rests_while_transactions_come() -> None:
    pacing, marks, clock = paced()
    pacing.records()()
    assert pacing.rest(100) == 0
    marks.published += 1
    assert pacing.rest(100) == 100 / RATE / 2, "at twice the rate, since the next piece is waited for meanwhile"
    pace = pacing.records()
    pace()
    assert not clock.naps
    clock.time += 0.001
    pace()
    assert 0 < clock.naps[0] < 0.001
    clock.time += 1
    assert pacing.rest(100) == 0
    pace()
    assert len(clock.naps) == 1, "nothing commits any more"
    marks.published += 1
    clock.time += 0.001
    pace()
    assert len(clock.naps) == 2, "and now something does again"


def test_without_a_rate_nothing_waits() -> None:
    pacing, marks, clock = paced(None)
    for _ in range(10):
        marks.published += 1
        pacing.wait(1 << 30)
        assert pacing.rest(1 << 20) == 0
        pacing.records()()
        clock.time += 0.1
    assert not clock.naps


def test_what_reads_an_image_is_held_to_the_rate(tmp_path: Path) -> None:
    clock = Slept()
    with Store.open(tmp_path, MemoryEngine, env=Env(clock=clock),
                    settings=Settings(image_rate=1 << 20, heartbeat_s=0)) as store:
        with store.transaction() as tx:
            for n in range(4):
                tx.put(b"large %d" % n, bytes(1 << 20))
        store.checkpoint()
        source = LocalSource(store)
        store.pacing.busy()
        grant = source.lease("someone", image=True)
        [file] = grant.files
        clock.naps.clear()
        with store.transaction() as tx:
            tx.put(b"small", b"")
        for at in range(0, 4 << 20, 1 << 20):
            source.read_image(grant.id, file.name, at, 1 << 20)
        assert clock.naps == [1.0], "it waits once; then the store was idle for a second"
        clock.naps.clear()
        with store.transaction() as tx:
            tx.put(b"small", b"est")
        source.read_image(grant.id, file.name, 0, 1)
        pieces = source.read_image_in_pieces(grant.id, file.name, 0, 1 << 20, 1 << 18)
        assert [len(piece) for piece in pieces] == [1 << 18] * 4
        assert [nap for nap in clock.naps if nap > 0.01] == [1.0], "it waits once for all pieces"
        assert [0 < nap < 0.01 for nap in clock.naps] == [False, True, True, True], "and a moment between two of them"
        with store.transaction() as tx:
            tx.put(b"small", b"er")
        clock.naps.clear()
        for _ in source.read_log(grant.id, grant.position, store.published.txid):
            clock.time += 0.001
        assert len(clock.naps) == 3, "one after each record that took a while"
        source.release(grant.id)


@pytest.mark.parametrize("rate", [0, -1, 1000, float("nan"), float("inf"), True, "fast"])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(SettingError, match="image_rate"):
        Settings(image_rate=rate)
