"""`CoordinatorContract`: what a coordinator must do for a cluster, check by check.

    class TestMine(CoordinatorContract):
        def make(self) -> Coordinator:
            return MyCoordinator(self.address)

Each test runs on a key that is absent when it begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from ...engine.errors import InvalidInput
from ..ha.coordinator import ABSENT, MOST_BYTES, Coordinator, Version
from ..ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown

TIMEOUT = 10.0
THREADS, INCREMENTS = 4, 8
_SLACK = 1.0
"""Seconds by which a call may be late on a busy machine."""


class CoordinatorContract:
    """Properties of a coordinator. Subclass it, and say how one is made."""

    def make(self) -> Coordinator:
        """A coordinator for this test's key. Called several times in a test, always for the same key."""
        raise NotImplementedError

    def lose_answers(self, coordinator: Coordinator) -> None:
        """Have this coordinator's next swap carried out and its answer lost. Override it if you can do that; the check
        of unknown outcomes is skipped otherwise."""
        pytest.skip("lose_answers is not overridden: unknown outcomes were not tried")

    @contextmanager
    def made(self, number: int = 1) -> Iterator[list[Coordinator]]:
        """So many coordinators of the same key, closed at the end."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.make()) for _ in range(number)]

    def test_an_absent_document_has_a_version_too(self) -> None:
        """A document is created by a swap of `ABSENT`, and only if there is none. An empty one is not absent."""
        with self.made(2) as (one, other):
            assert one.read(TIMEOUT) == (None, ABSENT)
            created = one.swap(ABSENT, b"", TIMEOUT)
            assert created != ABSENT
            assert other.read(TIMEOUT) == (b"", created)
            with pytest.raises(SwapConflict):
                other.swap(ABSENT, b"second", TIMEOUT)
            assert one.read(TIMEOUT) == (b"", created)

    def test_a_swap_of_another_version_changes_nothing(self) -> None:
        """A version that was replaced is never current again, even if the same bytes come back."""
        with self.made(2) as (one, other):
            versions = [ABSENT]
            for data in (b"a", b"b", b"a", bytes(range(256))):
                versions.append(one.swap(versions[-1], data, TIMEOUT))
                assert other.read(TIMEOUT) == (data, versions[-1])
                for old in versions[:-1]:
                    with pytest.raises(SwapConflict):
                        other.swap(old, b"late", TIMEOUT)
                assert one.read(TIMEOUT) == (data, versions[-1])
            assert len(set(versions)) == len(versions)

    def test_of_several_who_create_one_does(self) -> None:
        with self.made(THREADS) as coordinators:
            won: list[tuple[int, Version]] = []

            def create(number: int) -> None:
                with suppress(SwapConflict):
                    won.append((number, coordinators[number].swap(ABSENT, b"%d" % number, TIMEOUT)))

            _in_threads(create)
            assert len(won) == 1
            assert coordinators[0].read(TIMEOUT) == (b"%d" % won[0][0], won[0][1])

    def test_no_swap_is_lost(self) -> None:
        """Threads increment a counter, each with a coordinator of its own. Each version is replaced once."""
        with self.made(THREADS) as coordinators:
            replaced = self._incremented(lambda number: coordinators[number])
            assert coordinators[0].read(TIMEOUT)[0] == b"%d" % (THREADS * INCREMENTS)
            assert len(set(replaced)) == len(replaced) == THREADS * INCREMENTS

    def test_threads_share_a_coordinator(self) -> None:
        with self.made() as (one,):
            self._incremented(lambda number: one)
            assert one.read(TIMEOUT)[0] == b"%d" % (THREADS * INCREMENTS)

    def _incremented(self, whose: Callable[[int], Coordinator]) -> list[Version]:
        replaced: list[Version] = []

        def increment(number: int) -> None:
            coordinator = whose(number)
            for _ in range(INCREMENTS):
                end = time.monotonic() + 10 * TIMEOUT
                while time.monotonic() < end:
                    data, version = coordinator.read(TIMEOUT)
                    with suppress(SwapConflict):
                        coordinator.swap(version, b"%d" % (int(data or b"0") + 1), TIMEOUT)
                        replaced.append(version)
                        break

        _in_threads(increment)
        return replaced

    def test_a_wait_ends_with_the_change(self) -> None:
        with self.made(2) as (one, other):
            first = one.swap(ABSENT, b"first", TIMEOUT)
            assert other.wait(ABSENT, TIMEOUT) == (b"first", first)  # it is there already
            seen: list[Any] = []

            def wait(_: int) -> None:
                found = other.wait(first, TIMEOUT)
                seen.append((found, time.monotonic()))

            def change() -> None:
                time.sleep(0.3)
                seen.append((one.swap(first, b"second", TIMEOUT), time.monotonic()))

            _in_threads(wait, 1, change)
            (second, swapped), (found, woken) = sorted(seen, key=lambda s: isinstance(s[0], tuple))
            assert found == (b"second", second)
            assert woken - swapped < _SLACK

    def test_a_wait_for_the_first_document(self) -> None:
        with self.made(2) as (one, other):
            seen: list[Any] = []

            def create() -> None:
                time.sleep(0.05)
                one.swap(ABSENT, b"first", TIMEOUT)

            _in_threads(lambda _: seen.append(other.wait(ABSENT, TIMEOUT)), 1, create)
            assert seen == [one.read(TIMEOUT)]
            assert seen[0][0] == b"first"

    def test_a_wait_without_a_change_ends_in_time(self) -> None:
        with self.made() as (one,):
            version = one.swap(ABSENT, b"only", TIMEOUT)
            begun = time.monotonic()
            assert one.wait(version, 0.4) is None
            assert 0.39 <= time.monotonic() - begun < 0.4 + _SLACK

    def test_a_large_document_is_stored_whole_or_refused(self) -> None:
        """One of `MOST_BYTES` is stored, and can be replaced by another one. A larger one is refused by name."""
        with self.made() as (one,):
            version = ABSENT
            for fill in (b"\0", b"\xff"):
                version = one.swap(version, fill * MOST_BYTES, TIMEOUT)
                assert one.read(TIMEOUT) == (fill * MOST_BYTES, version)
            for wrong in (bytes(MOST_BYTES + 1), bytes(1 << 20)):
                with pytest.raises(InvalidInput, match="bytes"):
                    one.swap(version, wrong, TIMEOUT)
            with pytest.raises(InvalidInput, match="is bytes"):
                one.swap(version, "text", TIMEOUT)  # type: ignore[arg-type]
            assert one.read(TIMEOUT)[1] == version

    def test_a_short_timeout_ends_the_call(self) -> None:
        """A call that has no time raises what an outage raises, and does not block. What a swap says then is true."""
        with self.made(2) as (one, other):
            version = one.swap(ABSENT, b"0", TIMEOUT)
            for timeout in (-1.0, 0.0, 1e-6, 0.001):
                for call in (one.read, partial(one.wait, version)):
                    begun = time.monotonic()
                    with suppress(CoordinatorUnavailable):
                        call(timeout=timeout)
                        assert timeout > 0, "it answered in no time"
                    assert time.monotonic() - begun < _SLACK
                before, version = other.read(TIMEOUT)
                mark = b"%d" % (int(before or b"0") + 1)
                begun = time.monotonic()
                try:
                    swapped = one.swap(version, mark, timeout)
                    assert other.read(TIMEOUT) == (mark, swapped)
                except CoordinatorUnavailable:
                    time.sleep(0.05)
                    assert other.read(TIMEOUT) == (before, version)
                except SwapUnknown:
                    time.sleep(0.2)
                assert time.monotonic() - begun < _SLACK
                version = other.read(TIMEOUT)[1]

    def test_an_unknown_outcome_can_be_read_back(self) -> None:
        with self.made(2) as (one, other):
            version = one.swap(ABSENT, b"before", TIMEOUT)
            self.lose_answers(one)
            with pytest.raises(SwapUnknown):
                one.swap(version, b"mine", 1.0)
            data, found = other.read(TIMEOUT)
            assert data == b"mine"
            assert found != version
            with pytest.raises(SwapConflict):
                other.swap(version, b"other", TIMEOUT)

    def test_a_closed_coordinator_answers_no_more(self) -> None:
        """Closing ends calls that wait, and leaves other users of the key alone."""
        with self.made(2) as (one, other):
            version = one.swap(ABSENT, b"kept", TIMEOUT)
            ended: list[BaseException] = []

            def wait(_: int) -> None:
                try:
                    one.wait(version, TIMEOUT)
                except CoordinatorUnavailable as error:
                    ended.append(error)

            def close() -> None:
                time.sleep(0.2)
                one.close()

            begun = time.monotonic()
            _in_threads(wait, 1, close)
            assert len(ended) == 1
            assert time.monotonic() - begun < 0.2 + _SLACK
            one.close()
            for call in (lambda: one.read(TIMEOUT), lambda: one.swap(version, b"late", TIMEOUT),
                         lambda: one.wait(version, TIMEOUT)):
                with pytest.raises(CoordinatorUnavailable, match="closed"):
                    call()
            assert other.read(TIMEOUT) == (b"kept", version)


def _in_threads(work: Callable[[int], Any], number: int = THREADS, beside: Callable[[], Any] | None = None) -> None:
    """Run `work(0)` and so on in threads, and `beside` in this one. Raises what the first of them raised."""
    failed: list[BaseException] = []

    def run(which: int) -> None:
        try:
            work(which)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(which,), daemon=True) for which in range(number)]
    for thread in threads:
        thread.start()
    if beside is not None:
        beside()
    for thread in threads:
        thread.join(12 * TIMEOUT)
        assert not thread.is_alive(), "a call did not end"
    if failed:
        raise failed[0]
