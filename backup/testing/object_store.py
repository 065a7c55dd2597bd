"""`ObjectStoreContract`: what storage must do for a repository, check by check.

    class TestMine(ObjectStoreContract):
        def open(self) -> ObjectStore:
            return MyStore(self.address)

Each test runs on storage that is empty when it begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from ...engine.env import REAL
from ...engine.errors import Damaged, InvalidInput
from ..repository.errors import ObjectExists, ObjectMissing, StorageUnavailable
from ..repository.storage.interface import MAX_NAME_BYTES, MAX_OBJECT_BYTES, ObjectStore
from ..repository.storage.probe import probe

THREADS, ROUNDS = 8, 4
EXAMPLES, STEPS = 12, 20
JOIN_S = 120

_NOT_NAMES = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".tmp", "a/.b", "A", "a b", "a\n", "ä", "a\\b", "a%2fb",
              "a?b", "a:b", "a" * (MAX_NAME_BYTES + 1), None, b"a")
_NAMES = ("a", "a-b", "a.b", "b/1", "b/10", "b/2", "b-/1", "b_/1", "ba/1", "c/d/e/f", "c/d-e", "c/d_e", "-", "_", "0",
          "z" * MAX_NAME_BYTES)
_PREFIXES = ("", "a", "b", "b/", "b/1", "b-", "b_", "c/d", "c/d/", "c/d/e/", "none", "b/1/")


class ObjectStoreContract:
    """Properties of storage. Subclass it, and say how it is opened."""

    def open(self) -> ObjectStore:
        """This test's storage. Called several times in a test, always for the same place."""
        raise NotImplementedError

    @contextmanager
    def opened(self, number: int = 1) -> Iterator[list[ObjectStore]]:
        """The same storage, opened so many times, and closed at the end."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.open()) for _ in range(number)]

    def test_a_name_is_put_once(self) -> None:
        """The second put is refused, whatever it brings, and the first content stays."""
        with self.opened(2) as (one, other):
            one.put("a/b", b"first")
            for data in (b"second", b"first", b""):
                for store in (one, other):
                    with pytest.raises(ObjectExists):
                        store.put("a/b", data)
            assert one.get("a/b") == other.get("a/b") == b"first"

    def test_of_several_who_put_a_name_one_does(self) -> None:
        """What is read, even by those who lost, is what the winner put."""
        with self.opened(2) as stores:
            for number in range(ROUNDS):
                name = f"race/{number}"
                won: list[bytes] = []
                read: list[bytes] = []

                def put(thread: int, name: str = name, won: list[bytes] = won, read: list[bytes] = read) -> None:
                    store, data = stores[thread % 2], b"%d " % thread * 4096
                    with suppress(ObjectExists):
                        store.put(name, data)
                        won.append(data)
                    read.append(store.get(name))

                _in_threads(put)
                assert len(won) == 1, f"{len(won)} of {THREADS} threads were told that their put of {name} succeeded"
                assert set(read) == {won[0]}
                assert len(read) == THREADS

    def test_threads_put_and_get_at_once(self) -> None:
        with self.opened() as (store,):

            def work(thread: int) -> None:
                for number in range(ROUNDS):
                    data = b"%d-%d" % (thread, number) * 1000
                    store.put(f"threads/{thread}/{number}", data)
                    assert store.get(f"threads/{thread}/{number}") == data

            _in_threads(work)
            assert len(list(store.list("threads/"))) == THREADS * ROUNDS

    def test_a_range_is_exact_or_refused(self) -> None:
        """A range that goes beyond the end is an error, and never a shorter answer."""
        data = bytes(range(200))
        with self.opened() as (store,):
            store.put("ranges", data)
            for offset in (0, 1, 100, 199, 200):
                assert store.get("ranges", offset) == data[offset:]
                for length in (0, 1, 99, 200 - offset):
                    if offset + length <= 200:
                        assert store.get("ranges", offset, length) == data[offset : offset + length]
            for offset, over in ((0, 201), (199, 2), (200, 1), (201, 0), (201, None), (5000, 1), (0, 1 << 40)):
                with pytest.raises(Damaged):
                    store.get("ranges", offset, over)
            for offset, negative in ((-1, 1), (0, -1), (-1, None)):
                with pytest.raises(InvalidInput):
                    store.get("ranges", offset, negative)

    def test_an_object_may_be_empty(self) -> None:
        with self.opened() as (store,):
            store.put("nothing", b"")
            assert store.get("nothing") == store.get("nothing", 0, 0) == b""
            assert [(found.name, found.size) for found in store.list("")] == [("nothing", 0)]
            with pytest.raises(Damaged):
                store.get("nothing", 0, 1)
            with pytest.raises(ObjectExists):
                store.put("nothing", b"something")

    def test_a_large_object_is_whole(self) -> None:
        """One of `MAX_OBJECT_BYTES` is stored. A larger one is refused by name, and is not there."""
        data = REAL.randomness.token(1 << 20) * (MAX_OBJECT_BYTES >> 20)
        with self.opened() as (store,):
            store.put("large", data)
            assert store.get("large") == data
            assert store.get("large", MAX_OBJECT_BYTES - 7, 7) == data[-7:]
            with pytest.raises(InvalidInput, match="too/large"):
                store.put("too/large", data + b"1")
            with pytest.raises(ObjectMissing):
                store.get("too/large")

    def test_a_missing_object_is_missing(self) -> None:
        with self.opened() as (store,):
            for _ in range(2):
                for offset, length in ((0, None), (0, 0), (0, 1), (7, None)):
                    for name in ("a", "a/b", "a/b/c"):
                        with pytest.raises(ObjectMissing):
                            store.get(name, offset, length)
                store.delete("a/b")
                assert list(store.list("")) == []
                store.put("a/other", b"")
                store.delete("a/other")

    def test_a_list_is_by_prefix_and_in_order(self) -> None:
        """A prefix need not end where a part of a name does. The order is that of the whole names."""
        with self.opened(2) as (store, other):
            before_us = REAL.clock.now_us()
            for name in _NAMES:
                store.put(name, name.encode())
            for prefix in _PREFIXES:
                found = list(other.list(prefix))
                assert [one.name for one in found] == sorted(name for name in _NAMES if name.startswith(prefix)), prefix
                assert all(one.size == len(one.name) for one in found)
                assert all(abs(one.modified_us - before_us) < 600_000_000 for one in found)

    def test_a_removed_object_is_gone_and_its_name_is_free(self) -> None:
        with self.opened(2) as (one, other):
            for data in (b"first", b"second"):
                one.put("a/b", data)
                one.put("a/c", b"stays")
                other.delete("a/b")
                other.delete("a/b")
                for store in (one, other):
                    with pytest.raises(ObjectMissing):
                        store.get("a/b")
                    assert [found.name for found in store.list("a")] == ["a/c"]
                one.delete("a/c")

    def test_names_are_refused(self) -> None:
        with self.opened() as (store,):
            for name in _NOT_NAMES:
                for call in (lambda n: store.put(n, b""), store.get, store.delete):
                    with pytest.raises(InvalidInput):
                        call(name)  # type: ignore[arg-type]
            for prefix in ("A", "/", "a//", ".", "a/.", "a" * MAX_NAME_BYTES):
                with pytest.raises(InvalidInput):
                    list(store.list(prefix))
            for data in ("text", None):
                with pytest.raises(InvalidInput):
                    store.put("a", data)  # type: ignore[arg-type]
            assert list(store.list("")) == []

    def test_a_probe_finds_it_suitable(self) -> None:
        """And leaves nothing behind, if it may delete."""
        with self.opened() as (store,):
            probed = probe(store, REAL)
            assert abs(probed.ahead_us) < 600_000_000
            assert [found.name for found in store.list("")] == ([] if probed.removed else [probed.name])

    def test_it_is_a_dictionary_that_forgets_no_first_value(self) -> None:
        """Any sequence of calls gives what a dictionary gives."""
        folders = iter(range(1 << 30))
        with self.opened(2) as stores:

            class Machine(RuleBasedStateMachine):
                def __init__(self) -> None:
                    super().__init__()
                    self.folder = f"machine/{next(folders)}"
                    self.expected: dict[str, bytes] = {}

                @rule(store=_STORE, name=_NAME, data=st.binary(max_size=300))
                def put(self, store: int, name: str, data: bytes) -> None:
                    name = f"{self.folder}/{name}"
                    try:
                        stores[store].put(name, data)
                        assert name not in self.expected
                        self.expected[name] = data
                    except ObjectExists:
                        assert name in self.expected

                @rule(store=_STORE, name=_NAME, offset=st.integers(0, 300), length=st.none() | st.integers(0, 300))
                def get(self, store: int, name: str, offset: int, length: int | None) -> None:
                    name = f"{self.folder}/{name}"
                    data = self.expected.get(name)
                    end = offset if length is None else offset + length
                    try:
                        found = stores[store].get(name, offset, length)
                        assert data is not None
                        assert end <= len(data)
                        assert found == (data[offset:] if length is None else data[offset:end])
                    except ObjectMissing:
                        assert data is None
                    except Damaged:
                        assert data is not None
                        assert end > len(data)

                @rule(store=_STORE, name=_NAME)
                def delete(self, store: int, name: str) -> None:
                    stores[store].delete(f"{self.folder}/{name}")
                    self.expected.pop(f"{self.folder}/{name}", None)

                @rule(store=_STORE, prefix=st.sampled_from(["", "a", "a/", "a/b", "b/c/d", "c"]))
                def list(self, store: int, prefix: str) -> None:
                    begins = f"{self.folder}/{prefix}"
                    assert [(found.name, found.size) for found in stores[store].list(begins)] == [
                        (name, len(data)) for name, data in sorted(self.expected.items()) if name.startswith(begins)]

            run_state_machine_as_test(Machine, settings=settings(
                max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None,
                suppress_health_check=list(HealthCheck)))


_STORE = st.integers(0, 1)
_NAME = st.sampled_from(["a/b", "a/b1", "a/c", "b/c/d", "b/c/d.e", "c"])


def _in_threads(work: Callable[[int], None]) -> None:
    """Run `work` in `THREADS` threads, which begin together, each with its number. What one raises is raised."""
    errors: list[BaseException] = []
    begin = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            begin.wait(JOIN_S)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
        if thread.is_alive():
            raise StorageUnavailable(f"a call took longer than {JOIN_S} s")
    if errors:
        raise errors[0]
