"""The writer lock starves nobody. What becomes of it when a signal interrupts is in `engine/store`."""

from __future__ import annotations

import threading

import pytest

from holdfast.engine.env import REAL, Clock, Env
from holdfast.engine.env.owned_lock import Hold, OwnedLock


@pytest.mark.parametrize(("held_s", "most"), [(0.001, 800), (0.02, 60)])
def test_a_holder_that_comes_back_at_once_starves_nobody(held_s: float, most: int) -> None:
    """A thread that released the lock and wanted it again was always first, since a waiter must wake up. Of 32 threads
    that committed to an engine that does not stage, one made thousands of commits, and another one. The first mend had
    others give way while the lock was still held, and helped nobody if it was held for longer than that."""
    lock, turns = OwnedLock(REAL), 0
    begun, waited = threading.Event(), threading.Event()

    def wait() -> None:
        begun.wait()
        for _ in range(6):
            hold = Hold(lock)
            while not hold.take():
                pass
            hold.release()
        waited.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    while turns < most and not waited.is_set():
        hold = Hold(lock)
        while not hold.try_take() and not hold.take():
            pass
        begun.set()
        REAL.clock.sleep(held_s)  # a sync, during which the waiter may wake up, in vain
        hold.release()
        turns += 1
    waiter.join()
    assert turns < most


class Still(Clock):
    """Time passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_who_comes_later_gives_way_for_a_moment() -> None:
    clock = Still()
    lock = OwnedLock(Env(clock=clock))
    first, late = Hold(lock), Hold(lock)
    assert not lock.gives_way
    lock._giving_way_until = clock.now + 0.01
    assert not first.try_take(), "it is free, and somebody else is to have it"
    assert first.take()
    assert clock.now > 100.0, "it stepped aside before"
    first.release()
    before = clock.now
    assert late.take(0.0), "who may not wait does not step aside either"
    assert clock.now == before
    late.release()
    clock.now += 0.01
    assert first.try_take(), "the moment is over"
    assert not lock.gives_way
    first.release()


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_wait_that_ends_in_vain_takes_nothing(seconds: float) -> None:
    lock = OwnedLock(REAL)
    holder, other = Hold(lock), Hold(lock)
    assert holder.try_take()
    assert not other.take(seconds)
    assert not other.held
    holder.release()
    assert other.take(seconds)
    other.release()
