"""A bucket as the coordinator of a cluster, so that nothing else is needed beside the members.

The document is one object, replaced by puts with a condition: `If-None-Match: *` creates it, `If-Match` with its ETag
replaces it. An ETag is often a digest of the content, so each document has a mark of its own, and no ETag comes twice.
A document also names the marks of those before it. So after a lost answer, or a refusal that may be of a repeated
request, reading tells what became of a put: its mark is there, or another one stands at its number.

S3, Google Cloud Storage and Azure promise that a read shows what was put before it. A cache or a replica between does
not, and must not be used.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from ..engine.env import REAL, Env
from ..engine.env.pool import Pool
from ..engine.env.shown import shown
from ..engine.errors import HoldfastError, InvalidInput, StoreClosed, Unsupported
from ..engine.model import document
from ..replay.ha.coordinator import ABSENT, MOST_BYTES, Coordinator, Version, check_data
from ..replay.ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from .repository.storage.bucket import Bucket, Refusal, refusal

MAGIC, FORMAT = b"HFCOORDB", 1
"""Of the object. Its body has `cluster`, `number` and `mark`, which make the version, `before` and `data`."""

FOLDER = "coordinator"
"""Below the prefix; a repository has no folder of this name, so both may have one URL."""

POLL_S, LEAST_POLL_S, MOST_POLL_S = 0.1, 0.05, 60.0
"""How often a wait reads, seconds, if the URL does not say, and what it may say."""

BEFORE = 32
"""How many marks of earlier documents one names: so many swaps of others may follow a put whose answer is lost."""

_MARK_BYTES = 16
_OVERHEAD_BYTES = 4096
_THREADS = 16
_TIMEOUTS_S = (1, 4, 16, 64)
"""Those of obstore's clients. A request is made by the first that is not shorter than its caller waits."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 0.5
_TAIL_S = 0.5
"""A wait whose last read had less time than this, and failed, has not seen an outage."""
_NO_OBJECT = frozenset({"NoSuchKey", "BlobNotFound"})
_TAKEN = frozenset({"BlobAlreadyExists"})
_LATER = frozenset({408, 429})
"""Those of the statuses from 400 to 499 after which the same request may succeed."""

T = TypeVar("T")
_Tag = dict[str, str]
"""What a put compares: obstore's `e_tag`, and `version` where the cloud has one. Empty: not known."""


@dataclass(frozen=True, slots=True)
class _Document:
    """What is there. `before`: marks of the documents before it, the newest first."""

    data: bytes | None
    version: Version
    tag: _Tag = field(default_factory=dict)
    before: tuple[bytes, ...] = ()

    def mark_of(self, number: int) -> bytes | None:
        """The mark of the document with this number, of which this is one or comes after it; None if that is not
        known."""
        back = self.version.number - number
        if back == 0:
            return self.version.mark
        return self.before[back - 1] if 0 < back <= len(self.before) else None


_NOTHING = _Document(None, ABSENT)


class _NotAnswered(Exception):
    """A request had no answer that says what was asked. `text`: says why."""

    def __init__(self, what: Refusal) -> None:
        super().__init__(what.said)
        self.status, self.code, self.text = what.status, what.code, what.said
        self.missing = what.status == 404 and what.code in _NO_OBJECT
        self.compared = what.status == 412 or self.missing or what.code in _TAKEN
        """Whether a put was refused because of its condition."""
        refused = 400 <= what.status < 500
        self.not_done = not what.sent or (refused and not self.compared)
        """Whether a put certainly changed nothing, and will not, whatever was there."""
        self.passes = (not refused and what.sent) or what.status in _LATER or (what.status == 409 and not self.compared)
        """Whether to ask again soon."""


class BucketCoordinator(Coordinator):
    """The document of one cluster, the object `coordinator/CLUSTER/document` below a prefix.

    A read is one request, and brings the document only if it has changed. A swap is one more, and another two or three
    if somebody else was faster, or an answer is lost: then it is read what became of the put, and if that has not been
    done, it is made again. Before the first swap four requests for `coordinator/CLUSTER/probe` try whether the bucket
    compares. A wait reads at once, and then by the interval.

    Credentials are those of a repository: see `backup/repository/storage/bucket.py`. They must allow to get and put
    objects below `coordinator/CLUSTER/`, and on S3 to list the bucket, because it tells only then that an object is
    missing.

    obstore's time-outs do not cover getting credentials. So its calls run in threads, and a caller stops waiting when
    its time is over. The request may go on for some seconds, and what a put may still do, `SwapUnknown` says.
    """

    def __init__(self, url: str, cluster: str, *, env: Env = REAL) -> None:
        """
        Args:
            url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, with `?poll=SECONDS` for the
                interval between the reads of a wait. Default: 0.1.
            cluster: its name.
            env: clock, threads and randomness.

        Raises:
            InvalidInput: the URL is not valid.
            Unsupported: obstore is not installed.
            StorageUnsuitable: obstore refuses the configuration.
        """
        place, _, query = url.partition("?")
        self._poll = _poll(query)
        self._bucket = Bucket(place)
        self._cluster = cluster
        self._name, self._probe_name = (f"{FOLDER}/{cluster}/{name}" for name in ("document", "probe"))
        self.url = f"{self._bucket.url}/{self._name}"
        self._env = env
        self._now = env.clock.monotonic
        self._clients = [self._bucket.client(timeout=f"{seconds}s", connect_timeout=f"{seconds}s")
                         for seconds in _TIMEOUTS_S]
        self._seen: _Document | None = None  # the last one that was read or put
        self._compares = False
        self._closed = False
        self._changed = env.scheduler.condition()
        self._pool = Pool("holdfast-bucket", _THREADS, env.scheduler)

    def __repr__(self) -> str:
        return f"<BucketCoordinator at {self.url}>"

    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        found = self._look(self._end(timeout))
        return found.data, found.version

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        """As `Coordinator.swap`.

        Raises:
            Unsupported: the bucket does not compare, so that two primaries could lead.
        """
        check_data(data)
        end = self._end(timeout)
        before = self._seen
        if before is None or before.version != version or (not before.tag and version != ABSENT):
            before = self._look(end)
            if before.version != version:
                raise self._conflict(version, before)
        self._probe(end)
        made = _Document(data, Version(version.number + 1, self._env.randomness.token(_MARK_BYTES)),
                         before=() if version == ABSENT else (version.mark, *before.before)[:BEFORE])
        return self._replace(before, made, end)

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        end = self._now() + timeout
        left, answered = timeout, False
        while True:
            try:
                data, found = self.read(left)
                if found != version:
                    return data, found
                answered = True
            except CoordinatorUnavailable:
                if not answered or left > _TAIL_S or self._closed:
                    raise
            self._pause(self._poll, end)
            left = end - self._now()
            if left <= 0:
                return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.close()

    # --- one document ---------------------------------------------------------------------------------------------

    def _look(self, end: float) -> _Document:
        """What is there now. Raises `CoordinatorUnavailable`."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return self._get(end)
            except _NotAnswered as error:
                if not error.passes or self._now() + pause >= end:
                    raise self._unavailable(f"{self.url} cannot be read: {error.text}", error) from error
            self._pause(pause, end)
            pause = min(2 * pause, _MOST_PAUSE_S)

    def _get(self, end: float) -> _Document:
        known = self._seen
        options = {"if_none_match": known.tag["e_tag"]} if known is not None and "e_tag" in known.tag else {}

        def get(client: Any) -> tuple[_Tag, bytes | None]:
            answer = self._bucket.obstore.get(client, self._name, options=options)
            fits = answer.meta["size"] <= MOST_BYTES + _OVERHEAD_BYTES
            return _tag(answer.meta), bytes(answer.bytes()) if fits else None

        try:
            tag, body = self._ask(get, end)
        except _NotAnswered as error:
            if error.status == 304 and known is not None:
                return known
            if not error.missing:
                raise
            found = _NOTHING
        else:
            found = self._decoded(body, tag)
        self._seen = found
        return found

    def _decoded(self, body: bytes | None, tag: _Tag) -> _Document:
        """The document in an object. Raises `CoordinatorUnavailable`: another object must not look like none."""
        try:
            if body is None:
                raise ValueError("it is too large")
            said = document.decode(body, MAGIC, FORMAT, Path(self._name))
            found = _Document(said["data"], Version(said["number"], said["mark"]), tag, tuple(said["before"]))
            cluster = said["cluster"]
        except HoldfastError as error:
            raise CoordinatorUnavailable(f"{self._bucket.url}: {error.message}", hint=error.hint) from error
        except (LookupError, TypeError, ValueError) as error:
            raise CoordinatorUnavailable(f"{self.url} is not the document of a cluster: {error}",
                                         hint="see who else puts objects there") from error
        if cluster != self._cluster:
            raise CoordinatorUnavailable(f"{self.url} is the document of cluster {shown(cluster)}",
                                         hint="see who has moved it; each cluster has its own")
        return found

    def _replace(self, before: _Document, made: _Document, end: float) -> Version:
        """Put `made` in the place of `before`, and see that it is there. The put may be made several times: of those
        with one condition, one succeeds."""
        body = document.encode(MAGIC, FORMAT, {
            "cluster": self._cluster, "number": made.version.number, "mark": made.version.mark,
            "before": list(made.before), "data": made.data})
        doubt: _NotAnswered | None = None  # it may have been put, or may still be
        pause = _FIRST_PAUSE_S
        while True:
            try:
                tag = self._put(self._name, body, before.tag, end)
                self._seen = _Document(made.data, made.version, tag, made.before)
                return made.version
            except _NotAnswered as error:
                if error.not_done and doubt is None and not error.passes:
                    raise self._unavailable(f"{self.url} was not replaced: {error.text}", error) from error
                if not error.not_done:
                    doubt = error
                reason = error
            try:
                found = self._look(end)
            except CoordinatorUnavailable as error:
                if doubt is None:
                    raise
                raise self._unknown(doubt) from error
            if found.mark_of(made.version.number) == made.version.mark:
                return made.version
            if found.version != before.version:
                if doubt is None or self._was_another(found, before, made):
                    raise self._conflict(before.version, found) from reason
                raise self._unknown(doubt) from reason
            if self._now() + pause >= end:
                if doubt is None:
                    raise self._unavailable(f"{self.url} was not replaced: {reason.text}", reason) from reason
                raise self._unknown(doubt) from reason
            before = found  # its ETag may be another one, if somebody has copied the object over itself
            self._pause(pause, end)
            pause = min(2 * pause, _MOST_PAUSE_S)

    @staticmethod
    def _was_another(found: _Document, before: _Document, made: _Document) -> bool:
        """Whether another document than `made` came after `before`."""
        return (found.mark_of(made.version.number) is not None
                and (before.version == ABSENT or found.mark_of(before.version.number) == before.version.mark))

    def _put(self, name: str, body: bytes, tag: _Tag, end: float) -> _Tag:
        """Put an object in the place of the one with this tag; if it is empty, of none. Returns its tag."""
        def put(client: Any) -> _Tag:
            return _tag(self._bucket.obstore.put(client, name, body, mode=tag or "create", use_multipart=False))

        return self._ask(put, end)

    # --- whether the bucket compares ------------------------------------------------------------------------------

    def _probe(self, end: float) -> None:
        """See once that puts are refused whose condition does not hold.

        Raises:
            Unsupported: one was not refused.
            CoordinatorUnavailable: that could not be seen.
        """
        pause = _FIRST_PAUSE_S
        while not self._compares:
            try:
                self._compares = self._try_to_break(end)
                continue  # if somebody else probes at the same time, at once
            except _NotAnswered as error:
                if error.status == 501:
                    raise Unsupported(f"{self._bucket.url} has no puts with a condition: {error.text}",
                                      hint=_HINT) from error
                if not error.passes or self._now() + pause >= end:
                    raise self._unavailable(f"{self._bucket.url} could not be probed: {error.text}", error) from error
            self._pause(pause, end)
            pause = min(2 * pause, _MOST_PAUSE_S)

    def _try_to_break(self, end: float) -> bool:
        """Whether the bucket refuses what it must refuse; False if somebody else probed in between. Members share the
        probe's object, and what one of them puts makes the tags of the others only older."""
        first = self._put_probe({}, end)
        if first is not None and self._put_probe({}, end) is not None:
            raise self._does_not_compare("If-None-Match")
        if first is None:
            first = self._ask(lambda client: _tag(self._bucket.obstore.head(client, self._probe_name)), end)
        if not first:
            raise self._does_not_compare("If-Match: it has no ETags")
        second = self._put_probe(first, end)
        if second is None:
            return False
        if self._put_probe(first, end) is not None:
            raise self._does_not_compare("If-Match")
        return True

    def _put_probe(self, tag: _Tag, end: float) -> _Tag | None:
        """The tag of a new probe, or None if the condition was refused."""
        try:
            return self._put(self._probe_name, self._env.randomness.token(_MARK_BYTES), tag, end)
        except _NotAnswered as error:
            if not error.compared:
                raise
            return None

    def _does_not_compare(self, what: str) -> Unsupported:
        return Unsupported(f"{self._bucket.url} ignores the condition {what}, and two primaries could lead", hint=_HINT)

    # --- requests -------------------------------------------------------------------------------------------------

    def _ask(self, call: Callable[[Any], T], end: float) -> T:
        """What `call` returns, given a client. It has half of the time that is left, so that another try has the rest,
        or all of it if that is little.

        Raises:
            _NotAnswered: it raised, or did not return in time.
            CoordinatorUnavailable: this coordinator was closed.
        """
        left = end - self._now()
        timeout = left / 2 if left > 1 else left
        if timeout <= 0:
            raise _NotAnswered(Refusal(0, "", "there was no time left", sent=False))
        client = self._clients[min(bisect_left(_TIMEOUTS_S, timeout), len(_TIMEOUTS_S) - 1)]
        try:
            future = self._pool.submit(lambda: call(client))
        except StoreClosed as error:
            raise _closed() from error
        except RuntimeError as error:  # no thread can be started
            raise _NotAnswered(Refusal(0, "", str(error), sent=False)) from error
        future.add_done_callback(lambda _: self._notify())
        with self._changed:
            self._changed.wait_for(lambda: future.done() or self._closed, timeout)
        begun = not future.cancel()
        if begun and future.done():
            try:
                return future.result()
            except HoldfastError:
                raise
            except Exception as error:
                raise _NotAnswered(refusal(error)) from error
        if self._closed and not begun:
            raise _closed()
        raise _NotAnswered(Refusal(0, "", f"there was no answer within {timeout:.3g} s", sent=begun))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _pause(self, seconds: float, end: float) -> None:
        """Wait so long, or until `end`, or until this coordinator is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(0.0, min(seconds, end - self._now())))

    def _end(self, timeout: float) -> float:
        if self._closed:
            raise _closed()
        if timeout <= 0:
            raise CoordinatorUnavailable("there was no time left to ask the coordinator")
        return self._now() + timeout

    # --- what is told ---------------------------------------------------------------------------------------------

    def _unavailable(self, text: str, error: _NotAnswered) -> CoordinatorUnavailable:
        hint = ("check the credentials in the environment, and that they may get and put objects there, and list the "
                "bucket" if error.status in (401, 403) else
                "check the URL, and that the bucket is there" if error.status == 404 else None)
        return CoordinatorUnavailable(text, hint=hint)

    def _unknown(self, doubt: _NotAnswered) -> SwapUnknown:
        return SwapUnknown(f"whether {self.url} was replaced is not known: {doubt.text}")

    def _conflict(self, version: Version, found: _Document) -> SwapConflict:
        return SwapConflict(f"{self.url} has version {found.version.number}, not {version.number}, or was written anew")


_HINT = "use storage, or a release of it, that has conditional writes, or etcd as the coordinator"


def _closed() -> CoordinatorUnavailable:
    return CoordinatorUnavailable("this coordinator was closed", hint="open it again")


def _tag(of: Any) -> _Tag:
    """The tag in what obstore returns. Google's `version` is what it compares."""
    return {key: of[key] for key in ("e_tag", "version") if of.get(key) is not None}


def _poll(query: str) -> float:
    """The interval in the query of a URL, seconds. Raises `InvalidInput`."""
    if not query:
        return POLL_S
    given = parse_qsl(query, keep_blank_values=True)
    try:
        (name, text), = given
        seconds = float(text)
    except ValueError:
        name, seconds = "", 0.0
    if name != "poll" or not LEAST_POLL_S <= seconds <= MOST_POLL_S:
        raise InvalidInput("the URL of a coordinator in a bucket has a setting that it does not know",
                           hint=f"write ?poll=SECONDS, from {LEAST_POLL_S:g} to {MOST_POLL_S:g}, or nothing")
    return seconds
