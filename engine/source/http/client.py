"""The source over a network: a client of a store's backup service.

Blocking, over HTTP/1.1 and the standard library's client. Each thread keeps one connection, so a lease can be renewed
while a copy runs. Every answer is bounded in time (`connection`) and in memory, and is validated before it is used.

If the connection breaks, a request that is safe to repeat is sent again, with growing pauses. Files are fetched again
by whole pieces, since only a whole piece can be compared with its digest. A record stream continues after the last
record that it delivered. A bad digest or chain counts as a broken connection; if it stays bad, it is `Damaged`.

Each answer names the *instance*, one opening of one store. If it is not the instance that granted the lease, the lease
is gone: `SourceRestarted`. An answer that names none does not come from a source.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ... import renamed
from ...env import REAL, Env
from ...env.shown import printable
from ...env.system import is_limit, system_errors, told
from ...errors import (
    HoldfastError,
    InvalidInput,
    LeaseExpired,
    NotAuthorized,
    NotFound,
    SettingError,
    SourceRefused,
    SourceRestarted,
    SourceUnavailable,
    Unsupported,
)
from ...model.positions import Position
from ...model.records import Record
from ..interface import (
    CHUNK_BYTES,
    HEX_ID,
    Block,
    Confirmation,
    ContentDigest,
    Grant,
    SlotState,
    Source,
    SourceInfo,
    blocks_of,
    check_blocks,
)
from . import discovery, wire
from .connection import Credential, Line

logger = logging.getLogger("holdfast.source")

MAX_ANSWER = 8 << 20
"""The longest JSON answer that is read, in bytes. It is large because an image may have many files."""
AT_WORK = 10
"""How many time-outs may pass before an answer begins if the source must first make an image or wait for publication.
It is a factor, so that the user's `timeout` bounds this too."""
CONFIRM_TIMEOUT = 35.0
"""The most seconds before the answer to a confirmation begins."""
PATIENCE = 4
"""How many time-outs a record stream may keep us waiting in all, not counting the time for its bytes, before it counts
as cut off, even if heartbeats come. After the same time, a failed request is not repeated."""
_PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before each attempt. The first retry is immediate, since a kept connection may simply have gone stale."""
_STREAM_READ = 1 << 20
MAX_RECORD = 64 << 20
_SIZE = re.compile(r"bytes (?:\*|\d{1,18}-\d{1,18})/(\d{1,18})")
_LOST = (OSError, http.client.HTTPException)

T = TypeVar("T")


class _NoSuchRoute(SourceRefused):
    """The source is older than the request."""


class HttpSource(Source):
    """A source at `host:port`. May be used from several threads."""

    @renamed.arguments(seams="env")
    def __init__(self, host: str, port: int, *, token: str | None = None, tls: ssl.SSLContext | None = None,
                 timeout: float = 30.0, max_record_bytes: int = MAX_RECORD, credential: Credential | None = None,
                 env: Env = REAL) -> None:
        """
        Args:
            host, port: where it listens.
            token: its credential.
            tls: a client-side context, or None for plain HTTP.
            timeout: seconds that an answer may take, plus the time for its bytes at `SLOWEST`; `AT_WORK` times as long
                if the source must make an image first. In a record stream: seconds without a byte, and `PATIENCE`
                times as long without a record.
            max_record_bytes: the largest payload that is accepted. Give the store's own setting.
            credential: where to look for a token, in place of `token`.
            env: files, locks and pauses.
        """
        self.host, self.port = host, port
        self._credential = credential or Credential(token, "was given")
        self._tls = tls
        self._timeout = timeout
        self._max_record = max_record_bytes
        self._env = env
        self._lock = env.scheduler.lock()
        self._open: set[Line] = set()
        self._kept: dict[int, Line] = {}  # by thread
        self._closing = env.scheduler.event()
        self._instance: str | None = None
        self._granted: dict[str, str] = {}
        self._without_blocks: str | None = None  # the instance that lacks the request

    def __repr__(self) -> str:
        return f"HttpSource({self._place})"

    @property
    def _place(self) -> str:
        return f"{self.host}:{self.port}"

    # --- the interface ---------------------------------------------------------------------------------------------

    def info(self) -> SourceInfo:
        return self._json("GET", "/v1/store", "information about a store", wire.info_from_wire)

    def chain_at(self, txid: int) -> bytes:
        found = self._json("GET", f"/v1/store/chain/{_count(txid)}", "a position", wire.position_from_wire)
        if found.txid != txid:
            raise SourceRefused(f"the source answers for transaction {found.txid}, not {txid}")
        return found.chain

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        body = {"owner": owner, "image": image, "ttl": ttl,
                "after": None if after is None else wire.position_to_wire(after)}
        # Sent once only: a repeated request would take a second lease.
        grant = self._json("POST", "/v1/leases", "a lease", wire.grant_from_wire, body=body, attempts=1,
                           first=AT_WORK * self._timeout if image else 0.0)
        with self._lock:
            self._granted[grant.id] = grant.instance
        return grant

    def renew(self, lease_id: str) -> None:
        self._json("PUT", f"/v1/leases/{_id(lease_id)}", "a renewal", dict, lease=lease_id)

    def release(self, lease_id: str) -> None:
        try:
            self._json("DELETE", f"/v1/leases/{_id(lease_id)}", "a release", dict, lease=lease_id, attempts=2)
        except (SourceUnavailable, LeaseExpired) as error:
            logger.info("lease %s could not be released and will expire: %s", lease_id, error)
        with self._lock:
            self._granted.pop(lease_id, None)

    def confirm(self, lease_id: str) -> Confirmation:
        return self._json("POST", f"/v1/leases/{_id(lease_id)}/confirm", "a confirmation", wire.confirmation_from_wire,
                          lease=lease_id, first=min(CONFIRM_TIMEOUT, AT_WORK * self._timeout))

    def content_digest(self, lease_id: str) -> ContentDigest:
        """As `Source.content_digest`. The walk may take ten time-outs."""
        try:
            return self._json("POST", f"/v1/leases/{_id(lease_id)}/content", "a digest", wire.content_from_wire,
                              lease=lease_id, first=AT_WORK * self._timeout)
        except _NoSuchRoute as error:
            raise Unsupported("the source is older, and computes no digest of its content",
                              hint="go without it, or update the source") from error

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        return self._piece(lease_id, f"image/{quote(name)}", offset, length)

    def read_blocks(self, lease_id: str, name: str, offset: int, length: int, block_bytes: int, known: Sequence[bytes]
                    ) -> list[Block]:
        """As `Source.read_blocks`. An older source sends the whole piece, which is then compared here."""
        check_blocks(length, block_bytes, known)
        _check_piece(offset, length)
        if not length:
            return []
        wish = wire.wish_to_wire(offset, length, block_bytes, known)

        def once() -> list[Block]:
            path = f"/v1/leases/{_id(lease_id)}/blocks/{quote(name)}"
            with self._answer("POST", path, body=wish, lease=lease_id) as answer:
                return _blocks(answer, length, block_bytes, known)

        if self._without_blocks is None or self._without_blocks != self._instance:
            try:
                return self._again(once, len(_PAUSES))
            except _NoSuchRoute:
                self._without_blocks = self._instance
        return super().read_blocks(lease_id, name, offset, length, block_bytes, known)

    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        return self._piece(lease_id, f"attachments/{quote(name, safe='')}", offset, length)

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        reader = wire.RecordReader(after, self._max_record)
        failures, begun = 0, self._env.clock.monotonic()
        while not reader.ended:
            before = reader.position.txid
            try:
                yield from self._stream(lease_id, reader, upto)
            except (wire.Garbled, SourceUnavailable, *_LOST) as error:
                failures += 1
                if reader.position.txid > before:
                    failures, begun = 1, self._env.clock.monotonic()
                self._pause_or_give_up(failures, len(_PAUSES), error, begun)
                reader = wire.RecordReader(reader.position, self._max_record)
        if reader.position.txid < upto:
            raise SourceRefused(f"the source sent the log up to {reader.position.txid}, not {upto}")

    def register(self, slot_id: str, name: str, position: Position) -> None:
        self._json("PUT", f"/v1/consumers/{_id(slot_id)}", "a registration", dict,
                   body={"name": name, "position": wire.position_to_wire(position)})

    def slots(self) -> list[SlotState]:
        return self._json("GET", "/v1/consumers", "a list of slots", wire.slots_from_wire)

    def drop(self, slot_id: str) -> None:
        # Sent once only: if the first request worked, a repeated one would get `NotFound`.
        self._json("DELETE", f"/v1/consumers/{_id(slot_id)}", "a release", dict, attempts=1)

    def close(self) -> None:
        """Close the connections. Leases are not released: a later run may continue under them, or they expire."""
        self._closing.set()
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            connection.close()

    # --- requests --------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, what: str, make: Callable[[Any], T], *, body: Any = None,
              lease: str | None = None, attempts: int = len(_PAUSES), first: float = 0.0) -> T:
        def once() -> T:
            with self._answer(method, path, body=body, lease=lease, first=first, fresh=attempts == 1) as answer:
                return wire.parse(what, make, _load(answer))

        return self._again(once, attempts)

    def _piece(self, lease_id: str, path: str, offset: int, length: int) -> bytes:
        _check_piece(offset, length)
        if not length:
            return b""

        def once() -> bytes:
            wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
            with self._answer("GET", f"/v1/leases/{_id(lease_id)}/{path}", lease=lease_id, headers=wanted) as answer:
                size = _SIZE.fullmatch(answer.headers.get("Content-Range", ""))
                if size is not None and offset + length > int(size[1]):
                    raise InvalidInput(f"{path} has {size[1]} bytes, and {length} from {offset} on were asked for")
                if answer.length != length:
                    raise wire.Garbled(f"the answer has {answer.length} bytes, and {length} were asked for")
                data = answer.read(length)
                _check(answer, data)
                return data

        return self._again(once, len(_PAUSES))

    def _stream(self, lease_id: str, reader: wire.RecordReader, upto: int) -> Iterator[Record]:
        """The records of one answer. The stream has its own connection, as its reader may send requests meanwhile."""
        after = reader.position
        path = f"/v1/leases/{_id(lease_id)}/log?after={after.txid}&chain={after.chain.hex()}&upto={_count(upto)}"
        with self._answer("GET", path, lease=lease_id, own=True) as answer:
            while not reader.ended:
                data = answer.read1(_STREAM_READ)
                if not data:
                    raise ConnectionError("the record stream was cut off")
                yield from reader.feed(data)

    def _again(self, once: Callable[[], T], attempts: int) -> T:
        failures, begun = 0, self._env.clock.monotonic()
        while True:
            try:
                return once()
            except (wire.Garbled, SourceUnavailable, *_LOST) as error:
                failures += 1
                self._pause_or_give_up(failures, attempts, error, begun)

    def _pause_or_give_up(self, failures: int, attempts: int, error: Exception, begun: float) -> None:
        """Wait before the next attempt, or raise what the failure means. `begun`: when the first attempt began. After
        `PATIENCE` time-outs since then, there is no further attempt."""
        if isinstance(error, SourceRestarted):
            raise error
        if is_limit(error):  # a limit of this process, not of the source
            raise told(error, f"cannot ask {self._place}") or error from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise NotAuthorized(f"{self._place} could not prove its identity: {printable(error.verify_message)}",
                                hint="name the certificate authority with ca=, and the host as in its certificate"
                                ) from error
        if self._env.clock.monotonic() - begun >= PATIENCE * self._timeout:
            attempts = failures
        if self._instance is None:
            attempts = min(attempts, 2)  # it never answered: more attempts would only delay the error
        if failures >= attempts or self._closing.wait(_PAUSES[min(failures - 1, len(_PAUSES) - 1)]):
            if isinstance(error, HoldfastError):
                raise error
            hint = None
            if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
                hint = "it speaks no TLS; if you trust the network, pass tls=False (--no-tls)"
            elif isinstance(error, TimeoutError):
                longer = 2 * self._timeout
                hint = f"check that the store is running; if it is only slow, give it longer: timeout={longer:g}"
            raise SourceUnavailable(f"no answer from {self._place}: {_shown(error)}", hint=hint) from error
        logger.info("asking %s again: %s", self._place, _shown(error))

    @contextmanager
    def _answer(self, method: str, path: str, *, body: Any = None, lease: str | None = None,
                headers: dict[str, str] | None = None, first: float = 0.0, own: bool = False,
                fresh: bool = False) -> Iterator[http.client.HTTPResponse]:
        """Send a request, and give the answer to the block if its status is good. `body` is sent as JSON, bytes as
        they are.

        The answer must begin within `first` seconds or the time-out, whichever is more. The rest must come within the
        time-out plus the time for its bytes at `SLOWEST`. A record stream has its `own` connection and `PATIENCE` times
        as long. The connection is kept if the block read the answer to its end; otherwise, and if `own`, it is closed.

        Raises:
            OSError, http.client.HTTPException: the connection broke.
            HoldfastError: the source's own error.
        """
        packed = isinstance(body, bytes)
        data = body if body is None or packed else json.dumps(body).encode()
        sent = {} if body is None else {"Content-Type": f"application/{'msgpack' if packed else 'json'}"}
        line = self._line(own, fresh)
        answer: http.client.HTTPResponse | None = None
        kept = False
        try:
            if line.sock is None:
                line.open()
            line.allow(max(self._timeout, first), PATIENCE * self._timeout if own else self._timeout)
            if line.token:
                sent["Authorization"] = f"Bearer {line.token}"
            try:
                line.request(method, path, body=data, headers={**sent, **(headers or {})})
                answer = line.getresponse()
            except (ValueError, AttributeError, TypeError, LookupError) as error:  # raised by Python's parser, not ours
                raise SourceRefused(f"the answer of {self._place} cannot be read: {_shown(error)}",
                                    hint="check the address") from error
            self._judge(answer, lease, line)
            yield answer
            kept = answer.isclosed() and not answer.will_close and not own
        finally:
            if not kept:
                if answer is not None:
                    answer.close()  # it holds the socket too
                self._drop(line)

    def _judge(self, answer: http.client.HTTPResponse, lease: str | None, line: Line) -> None:
        """Raise the error that an answer stands for, if it is not a good one."""
        instance = answer.headers.get(wire.INSTANCE_HEADER)
        if instance is None or not HEX_ID.fullmatch(instance):
            if answer.status in (502, 503, 504):
                raise SourceUnavailable(f"{self._place} answers {answer.status} {printable(answer.reason)[:100]}")
            raise SourceRefused(f"what answers at {self._place} is not a Holdfast source (status {answer.status})",
                                hint="check the address")
        with self._lock:
            expected = self._granted.get(lease, self._instance) if lease is not None else None
            if self._instance is None or lease is None:
                self._instance = instance
        if expected is not None and expected != instance:
            raise SourceRestarted(f"the source at {self._place} has been restarted since the lease was granted")
        if answer.status not in (200, 201, 206):
            error = wire.error_from_wire(_load(answer))
            if isinstance(error, NotAuthorized):
                raise NotAuthorized(f"{error.message}; the token {line.whence}")
            if answer.status == 404 and isinstance(error, SourceRefused):  # what a route does not find is `NotFound`
                raise _NoSuchRoute(error.message, hint=error.hint)
            raise error

    # --- connections -----------------------------------------------------------------------------------------------

    def _line(self, own: bool, fresh: bool) -> Line:
        if self._closing.is_set():
            raise SourceUnavailable(f"the connection to {self._place} was closed")
        here = self._env.scheduler.here()
        kept = self._kept.get(here)
        if kept is not None and (kept.sock is None or fresh):
            self._drop(kept)
            kept = None
        if kept is not None and not own:
            return kept
        made = Line(self.host, self.port, tls=self._tls, credential=self._credential, timeout=self._timeout,
                    env=self._env)
        with self._lock:
            self._open.add(made)
        if not own:
            self._kept[here] = made
        return made

    def _drop(self, line: Line) -> None:
        with self._lock:
            self._open.discard(line)
        line.close()


@renamed.arguments(seams="env")
def connect(host: str, port: int, *, token: str | None = None, tls: bool | None = None, ca: str | Path | None = None,
            timeout: float = 30.0, max_record_bytes: int = MAX_RECORD, env: Env = REAL) -> HttpSource:
    """A source at an address.

    Args:
        host, port: where it listens.
        token: its credential. Without one: what a service of this user on this machine has published for exactly this
            address, if what listens there proves to be that service; else the environment's HOLDFAST_TOKEN.
        tls: whether to use TLS. If None: on loopback as that service has published, otherwise always. False sends the
            token in the clear; use it only if you trust the network.
        ca: file with the certificate authority of the source's certificate. If None, the system's authorities.
        timeout: seconds that an answer may take; see `HttpSource`.
        max_record_bytes: the largest payload of a transaction that is accepted.
        env: files, locks and pauses.

    Raises:
        SettingError: `ca` cannot be read.
        LimitReached: this process can open no more files.
    """
    credential = _credential(host, port, token, env)
    if tls is None:
        with system_errors(f"cannot look for a service at {host}:{port}"):
            near = [e for name in _loopbacks(host) for e in discovery.find(env.files, name, port)]
        tls = ca is not None or (any(e.scheme == "https" for e in near) if near else not is_loopback(host))
    context = None
    if tls:
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ValueError) as error:
            raise SettingError(f"the certificate authority {ca} cannot be read: {error}") from error
    return HttpSource(host, port, credential=credential, tls=context, timeout=timeout,
                      max_record_bytes=max_record_bytes, env=env)


def _credential(host: str, port: int, token: str | None, env: Env) -> Credential:
    """Where tokens are looked for, in the order that `connect` gives."""
    given = token is not None
    if token is None:
        token = os.environ.get("HOLDFAST_TOKEN") or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise SettingError("a token is printable ASCII")
    if given:
        return Credential(token, "was given")
    whence = ("comes from the environment's HOLDFAST_TOKEN" if token else
              "is neither given, nor in HOLDFAST_TOKEN, nor has a service of this user published one for this address")
    hosts = _loopbacks(host) or [host]
    return Credential(token, whence, lambda: [e for name in hosts for e in discovery.find(env.files, name, port)])


def _loopbacks(host: str) -> list[str]:
    """The loopback addresses that a host, as it is written, may stand for; empty if it is not loopback."""
    if not is_loopback(host):
        return []
    return ["127.0.0.1", "::1"] if host.lower().rstrip(".") == "localhost" else [host]


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is loopback. No name is looked up."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(error: Exception) -> str:
    """The text of an error without characters that could control a terminal."""
    return printable(str(error) or type(error).__name__)[:300]


def _check(answer: http.client.HTTPResponse, data: bytes) -> None:
    """Raise an error if these are not exactly the bytes that were sent."""
    if answer.length:
        raise http.client.IncompleteRead(data, answer.length)
    if answer.headers.get(wire.DIGEST_HEADER) != wire.digest(data):
        raise wire.Garbled(f"{len(data)} bytes changed on the way")


def _check_piece(offset: int, length: int) -> None:
    if not 0 <= length <= CHUNK_BYTES or offset < 0:
        raise InvalidInput(f"{length} bytes from {offset} on were asked for at once; the most is {CHUNK_BYTES}")


def _blocks(answer: http.client.HTTPResponse, length: int, block_bytes: int, known: Sequence[bytes]) -> list[Block]:
    """The blocks of a whole answer. Their digests are made here, so no source can give a block another one's."""
    starts = range(0, length, block_bytes)
    said = answer.length
    if said is None or not 0 <= said - len(starts) <= length:
        raise wire.Garbled(f"the answer has {said} bytes, which are not {len(starts)} blocks of {length} bytes")
    data = answer.read(said)
    _check(answer, data)
    lacked, at = list[memoryview | None](), len(starts)
    view = memoryview(data)
    for number, start in enumerate(starts):
        if data[number] > 1 or (data[number] and not known[number : number + 1]):
            raise wire.Garbled(f"the answer calls block {number} known")
        size = 0 if data[number] else min(block_bytes, length - start)
        lacked.append(None if data[number] else view[at : at + size])
        at += size
    if at != said:
        raise wire.Garbled(f"the answer has {said} bytes, and the blocks in it {at}")
    return blocks_of(lacked, known)


def _load(answer: http.client.HTTPResponse) -> Any:
    """The JSON of a whole answer."""
    data = answer.read(MAX_ANSWER + 1)
    if len(data) > MAX_ANSWER:
        raise SourceRefused(f"the source's answer is longer than {MAX_ANSWER} bytes")
    _check(answer, data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceRefused("the source's answer is not JSON", hint="the other end speaks another protocol") from error


def _count(number: int) -> int:
    if number < 0:
        raise InvalidInput(f"{number} is not a transaction's number")
    return number


def _id(text: str) -> str:
    if not HEX_ID.fullmatch(text):
        raise NotFound(f"{text[:40]!r} is not an id", hint="ids are 2 to 64 hex digits")
    return text
