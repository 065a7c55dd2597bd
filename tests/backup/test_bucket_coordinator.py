"""A bucket as the coordinator: the contract on two servers, each request spoiled, objects that are not its own, and
servers that do not compare."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from s3_proxy import FAULTS, Fault, Faults, proxy
from s3_rig import BUCKET, IgnoresConditions, free_port, moto, served, use, versitygw
from wires import Link

from holdfast.backup import bucket_coordinator
from holdfast.backup.bucket_coordinator import BEFORE, FORMAT, MAGIC, BucketCoordinator
from holdfast.backup.repository.errors import StorageUnsuitable
from holdfast.backup.repository.storage.bucket import Bucket
from holdfast.engine.errors import InvalidInput, SettingError, Unsupported
from holdfast.engine.model import document
from holdfast.replay.ha.coordinator import ABSENT, MOST_BYTES, Coordinator, Version
from holdfast.replay.ha.coordinators.url import open_coordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from holdfast.replay.testing.coordinator import CoordinatorContract

pytest.importorskip("obstore")

TIMEOUT = 10.0
PROBE = ["PUT", "HEAD", "PUT", "PUT"]
"""The requests of a probe where there was one before."""
_prefixes = count()


@pytest.fixture(scope="module")
def of_moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("moto")
    with moto(tmp_path_factory.mktemp("moto")) as port:
        yield port


@pytest.fixture(scope="module")
def of_versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with versitygw(tmp_path_factory.mktemp("versitygw")) as port:
        yield port


@pytest.fixture(scope="module")
def faulty(of_versitygw: int) -> Iterator[Faults]:
    with proxy(of_versitygw) as faults:
        yield faults


@pytest.fixture
def url(faulty: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix that nobody else uses, behind the proxy."""
    use(monkeypatch, faulty.port)
    faulty.begin()
    yield f"s3://{BUCKET}/coordinator-tests/{next(_prefixes)}"
    faulty.begin()


@contextmanager
def opened(url: str, number: int = 2) -> Iterator[list[BucketCoordinator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(BucketCoordinator(url, "social")) for _ in range(number)]


class _InABucket(CoordinatorContract):
    """Each coordinator reaches the server through a proxy of its own."""

    def begin(self, patch: pytest.MonkeyPatch, port: int) -> Iterator[None]:
        self.patch, self.port = patch, port
        self.url = f"s3://{BUCKET}/contract/{next(_prefixes)}"
        self.made_by: list[tuple[Coordinator, Faults]] = []
        with ExitStack() as self.proxies:
            yield

    def make(self) -> Coordinator:
        faults = self.proxies.enter_context(proxy(self.port))
        use(self.patch, faults.port)
        coordinator = open_coordinator(self.url, "contract")
        self.made_by.append((coordinator, faults))
        return coordinator

    def lose_answers(self, coordinator: Coordinator) -> None:
        for made, faults in self.made_by:
            if made is coordinator:
                faults.begin(always="answer lost")


class TestMoto(_InABucket):
    @pytest.fixture(autouse=True)
    def a_prefix(self, of_moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        yield from self.begin(monkeypatch, of_moto)


@pytest.mark.fault("versitygw")
class TestVersitygw(_InABucket):
    @pytest.fixture(autouse=True)
    def a_prefix(self, of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        yield from self.begin(monkeypatch, of_versitygw)


# --- requests, and what spoils them ----------------------------------------------------------------------------------

@pytest.mark.fault("versitygw")
def test_what_it_asks_and_what_it_need_not_ask(faulty: Faults, url: str) -> None:
    """A swap is one request, a read of what is known brings no body, and a swap of what is not known reads first."""
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        assert faulty.requests == ["GET", "PUT", "PUT", "PUT", "PUT", "PUT"]  # a probe where there was none
        faulty.begin()
        second = one.swap(first, b"second", TIMEOUT)
        assert one.read(TIMEOUT) == (b"second", second)
        assert faulty.requests == ["PUT", "GET"]
        faulty.begin()
        third = other.swap(second, b"third", TIMEOUT)
        assert faulty.requests == ["GET", *PROBE, "PUT"]
        faulty.begin()
        with pytest.raises(SwapConflict):
            one.swap(second, b"late", TIMEOUT)
        assert faulty.requests == ["PUT", "GET"]
        with pytest.raises(SwapConflict):
            other.swap(second, b"late", TIMEOUT)
        assert faulty.requests == ["PUT", "GET", "GET"]
        assert one.read(TIMEOUT) == other.read(TIMEOUT) == (b"third", third)


@pytest.mark.fault("versitygw")
@pytest.mark.parametrize("fault", FAULTS)
def test_any_request_may_be_spoiled(faulty: Faults, url: str, fault: Fault) -> None:
    """And each swap is made once, and says so: no answer is lost for good while there is time."""
    for number in range(1, 13):
        place = f"{url}/{number}"
        with opened(place, 1) as (one,):
            faulty.begin({number: fault})
            first = one.swap(ABSENT, b"first", TIMEOUT)
            second = one.swap(first, b"second", TIMEOUT)
            assert one.read(TIMEOUT) == (b"second", second)
            with pytest.raises(SwapConflict):
                one.swap(first, b"late", TIMEOUT)
            third = one.swap(second, b"third", TIMEOUT)
            while not faulty.struck:
                one.read(TIMEOUT)
        with opened(place, 1) as (fresh,):
            assert fresh.read(TIMEOUT) == (b"third", third)
        assert [version.number for version in (first, second, third)] == [1, 2, 3]


@pytest.mark.fault("versitygw")
@pytest.mark.parametrize(("fault", "expected"), [
    ("answer lost", SwapUnknown), ("request lost", SwapUnknown), ("reset", SwapUnknown), ("slow down", SwapUnknown),
    ("failed after it", SwapUnknown), ("conflict", CoordinatorUnavailable)])
def test_what_stays_in_doubt_is_told_as_such(faulty: Faults, url: str, fault: Fault, expected: Any) -> None:
    """A server that refuses to do something has not done it. All else is not known when the time is over."""
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        faulty.begin(always=fault)
        begun = time.monotonic()
        with pytest.raises(expected):
            one.swap(first, b"second", 0.7)
        with pytest.raises(CoordinatorUnavailable):
            one.read(0.7)
        assert time.monotonic() - begun < 2
        done = fault in ("answer lost", "failed after it")
        faulty.begin()
        data, found = other.read(TIMEOUT)
        assert data == (b"second" if done else b"first")
        assert (found != first) == done


def _between(one: BucketCoordinator, patch: pytest.MonkeyPatch, do: Any) -> None:
    """Have `do` done before `one` looks next."""
    look = one._look

    def looks(end: float) -> Any:
        patch.setattr(one, "_look", look)
        do()
        return look(end)

    patch.setattr(one, "_look", looks)


@pytest.mark.fault("versitygw")
@pytest.mark.parametrize("swaps", [1, 2, BEFORE, BEFORE + 1])
@pytest.mark.parametrize("fault", ["answer lost", "request lost"])
def test_others_may_be_faster_before_an_answer_is_missed(faulty: Faults, url: str, swaps: int, fault: Fault,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The marks of earlier documents tell whose was there, of so many as a document names."""
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)

        def do() -> None:
            _, found = other.read(TIMEOUT)
            for number in range(swaps):
                found = other.swap(found, b"of the other, %d" % number, TIMEOUT)

        faulty.begin({1: fault})
        _between(one, monkeypatch, do)
        steps = swaps if fault == "answer lost" else swaps - 1  # from the document in question to the last one
        if steps > BEFORE:
            with pytest.raises(SwapUnknown):
                one.swap(first, b"mine", TIMEOUT)
        elif fault == "answer lost":
            assert one.swap(first, b"mine", TIMEOUT).number == 2
        elif swaps > BEFORE:  # the document that was to be replaced is not named any more
            with pytest.raises(SwapUnknown):
                one.swap(first, b"mine", TIMEOUT)
        else:
            with pytest.raises(SwapConflict):
                one.swap(first, b"mine", TIMEOUT)
        assert other.read(TIMEOUT)[0] == b"of the other, %d" % (swaps - 1)


@pytest.mark.fault("versitygw")
def test_a_request_that_something_between_repeats_is_known_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is refused, because of the first."""
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        real = one._bucket.obstore

        def put(*args: Any, **how: Any) -> Any:
            with suppress(real.exceptions.BaseError):
                real.put(*args, **how)
            return real.put(*args, **how)

        monkeypatch.setattr(one._bucket, "obstore", SimpleNamespace(put=put, get=real.get))
        second = one.swap(first, b"second", TIMEOUT)
        assert other.read(TIMEOUT) == (b"second", second)
        third = other.swap(second, b"third", TIMEOUT)
        with pytest.raises(SwapConflict):
            one.swap(second, b"late", TIMEOUT)
        assert other.read(TIMEOUT) == (b"third", third)


@pytest.mark.fault("versitygw")
def test_a_put_that_comes_late_changes_nothing(of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After another swap has succeeded, one whose outcome was unknown is not made any more."""
    place = f"s3://{BUCKET}/late"
    link = Link(of_versitygw)
    use(monkeypatch, link.port)
    try:
        with BucketCoordinator(place, "social") as slow:
            first = slow.swap(ABSENT, b"first", TIMEOUT)
            link.hold_back()
            begun = time.monotonic()
            with pytest.raises(SwapUnknown):
                slow.swap(first, b"late", 0.5)
            assert 0.4 < time.monotonic() - begun < 1
            use(monkeypatch, of_versitygw)
            with BucketCoordinator(place, "social") as other:
                second = other.swap(first, b"second", TIMEOUT)
                link.mend()
                time.sleep(0.3)
                assert other.read(TIMEOUT) == slow.read(TIMEOUT) == (b"second", second)
    finally:
        link.close()


def test_a_server_that_is_silent_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the requests that nobody waits for any more, however many they are."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        use(monkeypatch, silent.getsockname()[1])
        with opened(f"s3://{BUCKET}", 1) as (one,):
            for _ in range(25):
                for call in (lambda: one.read(0.05), lambda: one.swap(ABSENT, b"", 0.05),
                             lambda: one.wait(ABSENT, 0.05)):
                    begun = time.monotonic()
                    with pytest.raises(CoordinatorUnavailable):
                        call()
                    assert time.monotonic() - begun < 0.5


@pytest.mark.fault("versitygw")
def test_requests_that_hang_do_not_hinder_those_after_them(of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(of_versitygw)
    use(monkeypatch, link.port)
    try:
        with BucketCoordinator(f"s3://{BUCKET}/hanging", "social") as one:
            first = one.swap(ABSENT, b"first", TIMEOUT)
            link.hold_back()
            for _ in range(40):
                with pytest.raises(CoordinatorUnavailable):
                    one.read(0.05)
            link.mend()
            begun = time.monotonic()
            assert one.read(TIMEOUT) == (b"first", first)
            assert time.monotonic() - begun < 2
    finally:
        link.close()


def test_a_server_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a swap is known not to have been made."""
    use(monkeypatch, free_port())
    with opened(f"s3://{BUCKET}", 1) as (one,):
        begun = time.monotonic()
        for call in (lambda: one.read(TIMEOUT), lambda: one.swap(ABSENT, b"", TIMEOUT),
                     lambda: one.wait(ABSENT, TIMEOUT)):
            with pytest.raises(CoordinatorUnavailable):
                call()
        assert time.monotonic() - begun < 1


@pytest.mark.fault("versitygw")
def test_a_server_that_dies_between_two_swaps_has_not_made_the_second(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    with versitygw(tmp_path) as port:
        use(monkeypatch, port)
        one = BucketCoordinator(f"s3://{BUCKET}", "social")
        first = one.swap(ABSENT, b"first", TIMEOUT)
    with one:
        for _ in range(3):  # the first may find a connection that was not seen to end
            with suppress(SwapUnknown):
                with pytest.raises(CoordinatorUnavailable):
                    one.swap(first, b"second", 0.5)
                break
        else:
            raise AssertionError("a refused connection was taken for an unknown outcome")


def test_closing_ends_calls_that_hang_and_waits_that_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when their time is over."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent, served(_Versions, objects={}) as running:
        use(monkeypatch, silent.getsockname()[1])
        hanging = BucketCoordinator(f"s3://{BUCKET}", "social")
        use(monkeypatch, running.server_address[1])
        waiting = BucketCoordinator(f"s3://{BUCKET}?poll=20", "social")
        calls = [lambda: hanging.read(20), lambda: hanging.swap(ABSENT, b"", 20), lambda: hanging.wait(ABSENT, 20),
                 lambda: waiting.wait(ABSENT, 20)]
        with ThreadPoolExecutor(len(calls)) as pool:
            made = [pool.submit(call) for call in calls]
            time.sleep(0.5)
            begun = time.monotonic()
            hanging.close()
            waiting.close()
            for call in made:
                with pytest.raises(CoordinatorUnavailable, match="closed"):
                    call.result()
            assert time.monotonic() - begun < 2


# --- waiting ---------------------------------------------------------------------------------------------------------

@pytest.mark.fault("versitygw")
@pytest.mark.parametrize(("query", "least", "most"), [("", 6, 11), ("?poll=0.5", 2, 3), ("?poll=30", 1, 1)])
def test_a_wait_reads_by_the_interval(faulty: Faults, url: str, query: str, least: int, most: int) -> None:
    with opened(url + query, 1) as (one,):
        first = one.swap(ABSENT, b"x" * 100_000, TIMEOUT)
        faulty.begin()
        begun = time.monotonic()
        assert one.wait(first, 1.0) is None
        assert 1 <= time.monotonic() - begun < 1.3
        assert least <= len(faulty.requests) <= most
        assert set(faulty.requests) == {"GET"}


@pytest.mark.fault("versitygw")
def test_a_read_of_what_is_known_brings_no_body(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        bodies: list[Any] = []
        decoded = one._decoded

        def counted(body: bytes | None, tag: dict[str, str]) -> Any:
            bodies.append(body)
            return decoded(body, tag)

        monkeypatch.setattr(one, "_decoded", counted)
        assert one.read(TIMEOUT) == one.read(TIMEOUT) == (b"first", first)
        assert not bodies
        second = other.swap(first, b"second", TIMEOUT)
        assert one.read(TIMEOUT) == one.read(TIMEOUT) == (b"second", second)
        assert len(bodies) == 1


@pytest.mark.fault("versitygw")
def test_an_outage_ends_a_wait(faulty: Faults, url: str) -> None:
    with opened(url, 1) as (one,):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        faulty.begin(always="slow down")
        with pytest.raises(CoordinatorUnavailable, match="SlowDown"):
            one.wait(first, 1.5)


# --- objects that are not its own ------------------------------------------------------------------------------------

def _object(**other: Any) -> bytes:
    return document.encode(MAGIC, FORMAT, {"cluster": "social", "number": 7, "mark": b"m" * 16, "before": [],
                                           "data": b"data", **other})


@pytest.mark.fault("versitygw")
@pytest.mark.parametrize(("body", "told"), [
    (b"", "too short"), (b"junk of somebody else, which is longer than a document's head", "starts with"),
    (_object()[:-1], "wrong length"), (_object()[:-1] + b"\0", "checksum"),
    (document.encode(MAGIC, FORMAT + 1, {}), "format version 2"),
    (document.encode(MAGIC, FORMAT, {}), "not the document"), (_object(cluster="other"), "cluster 'other'"),
    (_object(data=bytes(MOST_BYTES + 10_000)), "too large")])
def test_another_object_is_neither_none_nor_replaced(url: str, body: bytes, told: str) -> None:
    bucket = Bucket(url)
    client, name = bucket.client(), "coordinator/social/document"
    bucket.obstore.put(client, name, body)
    with opened(url, 1) as (one,):
        for call in (lambda: one.read(TIMEOUT), lambda: one.swap(ABSENT, b"first", TIMEOUT),
                     lambda: one.swap(Version(7, b"m" * 16), b"next", TIMEOUT), lambda: one.wait(ABSENT, TIMEOUT)):
            begun = time.monotonic()
            with pytest.raises(CoordinatorUnavailable, match=told) as caught:
                call()
            assert time.monotonic() - begun < 1
            assert caught.value.hint
    assert bytes(bucket.obstore.get(client, name).bytes()) == body


@pytest.mark.fault("versitygw")
def test_the_object_is_as_the_formats_say(url: str) -> None:
    with opened(url, 1) as (one,):
        version = ABSENT
        marks: list[bytes] = []
        for number in range(BEFORE + 3):
            version = one.swap(version, b"%d" % number, TIMEOUT)
            marks.insert(0, version.mark)
    bucket = Bucket(url)
    client = bucket.client()
    body = bytes(bucket.obstore.get(client, "coordinator/social/document").bytes())
    assert document.decode(body, b"HFCOORDB", 1, Path("it")) == {
        "cluster": "social", "number": BEFORE + 3, "mark": marks[0], "before": marks[1 : BEFORE + 1],
        "data": b"%d" % (BEFORE + 2)}
    assert sorted(one["path"] for some in bucket.obstore.list(client) for one in some) == [
        "coordinator/social/document", "coordinator/social/probe"]


@pytest.mark.fault("versitygw")
def test_an_object_that_was_removed_is_absent_and_its_versions_do_not_come_back(url: str) -> None:
    bucket = Bucket(url)
    with opened(url) as (one, other):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        bucket.obstore.delete(bucket.client(), "coordinator/social/document")
        assert one.wait(first, TIMEOUT) == other.read(TIMEOUT) == (None, ABSENT)
        again = other.swap(ABSENT, b"first", TIMEOUT)
        assert again.number == first.number
        with pytest.raises(SwapConflict):
            one.swap(first, b"second", TIMEOUT)
        assert one.read(TIMEOUT) == (b"first", again)


@pytest.mark.fault("versitygw")
def test_a_removed_object_is_not_made_again_by_who_knew_it(url: str) -> None:
    bucket = Bucket(url)
    with opened(url, 1) as (one,):
        first = one.swap(ABSENT, b"first", TIMEOUT)
        bucket.obstore.delete(bucket.client(), "coordinator/social/document")
        with pytest.raises(SwapUnknown):  # what the refusal is about cannot be seen any more
            one.swap(first, b"second", TIMEOUT)
        assert one.read(TIMEOUT) == (None, ABSENT)


@pytest.mark.fault("versitygw")
def test_wrong_credentials_and_a_missing_bucket_are_told_at_once(of_versitygw: int,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, of_versitygw, secret="wrong")
    with opened(f"s3://{BUCKET}/denied", 1) as (one,):
        for call in (lambda: one.read(TIMEOUT), lambda: one.swap(ABSENT, b"", TIMEOUT)):
            with pytest.raises(CoordinatorUnavailable, match="SignatureDoesNotMatch") as caught:
                call()
            assert "list the bucket" in caught.value.hint
    use(monkeypatch, of_versitygw)
    with opened("s3://another-bucket", 1) as (one,):
        for call in (lambda: one.read(TIMEOUT), lambda: one.swap(ABSENT, b"", TIMEOUT)):
            with pytest.raises(CoordinatorUnavailable, match="NoSuchBucket"):
                call()


# --- servers that do not compare -------------------------------------------------------------------------------------

class _Versions(IgnoresConditions):
    """A server that compares, but for what a subclass forgets."""

    creates = replaces = tags = True

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        there = self._objects.get(self.path)
        wanted = self.headers["If-Match"]
        if ((self.creates and self.headers["If-None-Match"] == "*" and there is not None)
                or (self.replaces and wanted is not None and (there is None or wanted != self._tag(there)))):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self._objects[self.path] = body
        self._answer(200, b"", {"ETag": self._tag(body)})

    def do_GET(self) -> None:
        data = self._objects.get(self.path)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, data, {"ETag": self._tag(data), "Last-Modified": "Sun, 29 Nov 2026 08:00:00 GMT"})

    def do_HEAD(self) -> None:
        there = self._objects.get(self.path, b"")
        self.send_response(200 if there else 404)
        self.send_header("ETag", self._tag(there))
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 08:00:00 GMT")
        self.send_header("Content-Length", str(len(there)))
        self.end_headers()

    def _tag(self, body: bytes) -> str:
        return f'"{body.hex()[:40]}"' if self.tags else '"always the same"'


class _IgnoresIfMatch(_Versions):
    replaces = False


class _IgnoresIfNoneMatch(_Versions):
    creates = False


class _TagsNothing(_Versions):
    tags = False


class _IsNoServerOfS3(IgnoresConditions):
    """It has nothing, whatever it is asked, as a proxy that does not know the way."""

    def do_GET(self) -> None:
        self._answer(404, b"")


@pytest.mark.parametrize(("server", "told"), [
    (IgnoresConditions, "If-None-Match"), (_IgnoresIfNoneMatch, "If-None-Match"), (_IgnoresIfMatch, "If-Match"),
    (_TagsNothing, "If-Match")])
def test_a_server_that_does_not_compare_is_refused(server: type[IgnoresConditions], told: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written to the document, and each time."""
    objects: dict[str, bytes] = {}
    with served(server, objects=objects) as running:
        use(monkeypatch, running.server_address[1])
        with opened(f"s3://{BUCKET}/p", 1) as (one,):
            for _ in range(2):
                assert one.read(TIMEOUT) == (None, ABSENT)
                with pytest.raises(Unsupported, match=f"ignores the condition {told}") as caught:
                    one.swap(ABSENT, b"first", TIMEOUT)
                assert "etcd" in caught.value.hint
    assert list(objects) == [f"/{BUCKET}/p/coordinator/social/probe"]


def test_one_that_compares_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(_Versions, objects={}) as running:
        use(monkeypatch, running.server_address[1])
        with opened(f"s3://{BUCKET}/p") as (one, other):
            first = one.swap(ABSENT, b"first", TIMEOUT)
            second = other.swap(first, b"second", TIMEOUT)
            with pytest.raises(SwapConflict):
                one.swap(first, b"late", TIMEOUT)
            assert one.read(TIMEOUT) == (b"second", second)


def test_what_is_no_store_of_objects_has_no_absent_document(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(_IsNoServerOfS3, objects={}) as running:
        use(monkeypatch, running.server_address[1])
        with opened(f"s3://{BUCKET}/p", 1) as (one,), pytest.raises(CoordinatorUnavailable, match="404"):
            one.read(TIMEOUT)


def test_conditions_that_the_environment_turns_off_are_missed(of_moto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, of_moto)
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with opened(f"s3://{BUCKET}/off", 1) as (one,), pytest.raises(Unsupported, match="condition"):
        one.swap(ABSENT, b"first", TIMEOUT)


@pytest.mark.fault("versitygw")
def test_many_probe_at_once(url: str) -> None:
    """They share an object, and none takes another for a fault of the server."""
    with opened(url, 6) as made, ThreadPoolExecutor(6) as pool:
        def begin(one: BucketCoordinator) -> bool:
            with suppress(SwapConflict):
                one.swap(ABSENT, b"first", TIMEOUT)
                return True
            return False

        assert sum(pool.map(begin, made)) == 1


# --- addresses -------------------------------------------------------------------------------------------------------

def test_a_bucket_is_opened_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, free_port())
    with open_coordinator("s3://bucket/prefix?poll=2.5", "social") as one:
        assert isinstance(one, BucketCoordinator)
        assert repr(one) == "<BucketCoordinator at s3://bucket/prefix/coordinator/social/document>"


@pytest.mark.parametrize("query", ["poll", "poll=", "poll=x", "poll=nan", "poll=0", "poll=-1", "poll=61", "pol=1",
                                   "poll=1&poll=2", "poll=1&x=2", "secret=hush"])
def test_what_is_not_a_setting(query: str) -> None:
    with pytest.raises(InvalidInput, match="setting") as caught:
        open_coordinator(f"s3://bucket/prefix?{query}", "social")
    assert "poll=SECONDS" in caught.value.hint
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("address", ["s3://", "s3:///prefix", "s3://bucket/a b", "s3://user:hush@bucket/prefix"])
def test_what_is_not_the_url_of_a_bucket(address: str) -> None:
    with pytest.raises(InvalidInput, match="URL of a bucket") as caught:
        open_coordinator(address, "social")
    assert "hush" not in str(caught.value)


def test_what_only_etcd_takes(tmp_path: Path) -> None:
    for given in ({"ca": tmp_path}, {"cert": tmp_path}, {"key": tmp_path}, {"user": "u", "password": "p"}):
        with pytest.raises(SettingError, match="are for etcd, and the address begins with s3:"):
            open_coordinator("s3://bucket", "social", **given)


def test_a_scheme_for_which_nothing_is_installed() -> None:
    with pytest.raises(InvalidInput, match="no coordinator for 'zookeeper' addresses") as caught:
        open_coordinator("zookeeper://a", "social")
    assert "installed: az, gs, s3" in caught.value.hint
    assert "etcd://" in caught.value.hint


def test_a_wrong_configuration_is_told_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, free_port())
    monkeypatch.setenv("AWS_ALLOW_HTTP", "perhaps")
    with pytest.raises(StorageUnsuitable, match="cannot be opened"):
        BucketCoordinator(f"s3://{BUCKET}", "social")


def test_it_says_what_is_missing_if_obstore_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(Unsupported, match="obstore") as caught:
        open_coordinator("s3://bucket", "social")
    assert "holdfast[s3]" in caught.value.hint


def test_it_is_found_by_every_scheme_of_a_bucket() -> None:
    found = {point.name: point.load() for point in entry_points(group="holdfast.coordinators")}
    assert found == dict.fromkeys(("az", "gs", "s3"), bucket_coordinator.BucketCoordinator)
