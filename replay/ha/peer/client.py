"""The client of another member. Blocking; every call ends within its time-out, whatever the other end does.

The time-out covers name look-up, connecting, the TLS handshake, sending and the whole answer. A piece of a file gets
the time for its bytes at `SLOWEST` on top. In a stream each frame must be complete within the bound on silence, counted
from the frame before, plus the time for its bytes at `SLOWEST`: bytes that trickle do not keep a stream alive.

Small requests share kept connections. Each stream has its own.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ....engine.env import REAL, Env
from ....engine.env.pool import Pool
from ....engine.env.shown import printable
from ....engine.env.system import is_limit, told
from ....engine.errors import HoldfastError, InvalidInput, NotAuthorized, SettingError, SourceRefused
from ....engine.model.positions import ID_BYTES, Position
from ....engine.source.http.connection import SLOWEST
from ....engine.source.http.wire import DIGEST_HEADER, Garbled, digest
from ....engine.source.interface import CHUNK_BYTES
from ....engine.wal.attachments import NAME as ATTACHMENT_NAME
from ..errors import PeerUnavailable
from . import wire
from .connection import Connection
from .wire import Frame

_ADDRESS = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]/@\s]+)):(\d{1,5})")
_STREAM_READ = 1 << 20

T = TypeVar("T")


def tls_context(ca: str | Path) -> ssl.SSLContext:
    """A context that believes only members whose certificate this authority (a PEM file) has signed, for the name or
    address that they are reached by. Raises `SettingError`."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=ca)
    except (OSError, ValueError) as error:
        raise SettingError(f"the authority's certificate {ca} cannot be used: {error}",
                           hint="name a PEM file with the certificate of the members' authority") from error
    return context


class PeerClient:
    """A client of the member at `address`. May be used from several threads."""

    def __init__(self, address: str, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 5.0,
                 silence: float = 5.0, max_record_bytes: int = wire.MAX_RECORD,
                 versions: tuple[int, int] = (wire.HELLO_VERSION, wire.HELLO_MIN), env: Env = REAL) -> None:
        """
        Args:
            address: `host:port` or `[IPv6]:port`.
            token: the cluster's token.
            tls: as `tls_context` makes it, or None for plain HTTP.
            timeout: seconds that a call may take in all.
            silence: seconds that a stream may take for a frame.
            max_record_bytes: the largest payload that is accepted. Give the store's own setting.
            versions: the newest and the oldest version of the protocol spoken.

        Raises:
            SettingError: `address` is not an address.
        """
        match = _ADDRESS.fullmatch(address.strip())
        if match is None or not 0 < int(match[3]) < 65536:
            raise SettingError(f"{address[:100]!r} is not a member's address",
                               hint='write "host:port" or "[IPv6]:port"')
        self.address = address.strip()
        self._host, self._port = match[1] or match[2], int(match[3])
        self._token, self._tls, self._env = token, tls, env
        self._timeout, self._silence, self._max_record = timeout, silence, max_record_bytes
        self._versions = versions
        self._lock = env.scheduler.lock()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._closed = False
        self._resolver = Pool("holdfast-resolve", 1, env.scheduler)

    def __repr__(self) -> str:
        return f"PeerClient({self.address})"

    # --- calls -----------------------------------------------------------------------------------------------------
    # Each raises `PeerUnavailable` (no answer, or not in time), `NotAuthorized` (token or certificate),
    # `ProtocolMismatch`, `Garbled`, `SourceRefused`, or the error that the other member named.

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """What the member says about itself. `timeout`: in place of the client's, here and below."""
        return self._map("GET", "status", None, timeout)

    def promise(self, request: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Ask for a promise. It may be sent twice, so asking for the same promise again must do no harm."""
        return self._map("POST", "promise", request, timeout)

    def chain_at(self, txid: int, epoch: int | None = None, timeout: float | None = None) -> bytes:
        """The chain at a transaction of the member's log, 16 bytes. With `epoch`: only while the member serves it."""
        asked = f"chain?txid={txid:d}" + ("" if epoch is None else f"&epoch={epoch:d}")
        made = self._map("GET", asked, None, timeout)
        chain = made.get("chain")
        if made.get("txid") != txid or not isinstance(chain, bytes) or len(chain) != ID_BYTES:
            raise Garbled(f"{self.address} does not answer with a chain of transaction {txid}")
        return chain

    def command(self, verb: str, args: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Have the member do something. Sent once only. After `PeerUnavailable` it may have been done."""
        return self._map("POST", f"command/{verb}", args, timeout, fresh=True)

    def read_attachment(self, name: str, offset: int, length: int, timeout: float | None = None) -> bytes:
        """A piece of a bulk load's data, at most `CHUNK_BYTES`."""
        if not ATTACHMENT_NAME.fullmatch(name) or not 0 < length <= CHUNK_BYTES or offset < 0:
            raise InvalidInput(f"{length} bytes from {offset} on of {name[:80]!r} cannot be asked for")

        def take(answer: http.client.HTTPResponse) -> bytes:
            data = answer.read(length + 1)
            if len(data) != length or answer.headers.get(DIGEST_HEADER) != digest(data):
                raise Garbled(f"{self.address} sends other bytes of {name} than it says")
            return data

        seconds = (self._timeout if timeout is None else timeout) + length / SLOWEST
        return self._ask("GET", f"attachments/{name}?offset={offset}&length={length}", None, take, seconds)

    def follow(self, hello: Mapping[str, Any], after: Position) -> Generator[Frame]:
        """The member's log after `after`, as frames of kind `RECORDS` and `HEARTBEAT`, until the member ends it. The
        hello that it gets also has `after` (txid) and `chain`. Closing the generator closes the connection.

        Raises, besides the errors of calls:
            PeerUnavailable: the stream was cut off, or a frame did not come within the bound on silence.
            Diverged: the records do not continue the log at `after`.
        """
        told = {**hello, "after": after.txid, "chain": after.chain}
        connection, answer = self._stream("GET", "log", told)
        try:
            reader = wire.FrameReader(after, self._max_record)
            while True:
                with self._errors():
                    data = answer.read1(_STREAM_READ)
                if not data:
                    raise PeerUnavailable(f"{self.address} has cut off the log stream")
                for frame in reader.feed(data):
                    connection.deadline(self._silence)
                    if frame.kind == wire.END:
                        return
                    if frame.kind == wire.ERROR:
                        raise wire.failure_from_wire(frame.body)
                    if frame.kind in (wire.RECORDS, wire.HEARTBEAT):
                        yield frame
                        connection.deadline(self._silence)  # the time that the caller took does not count
        finally:
            answer.close()
            self._drop(connection)

    def fetch(self, after: Position, upto: int, hello: Mapping[str, Any] | None = None) -> Generator[Frame]:
        """The member's log from `after` to `upto` inclusive, as frames of records. The hello also has `upto`. Raises as
        `follow` does, and `PeerUnavailable` if the member ends it elsewhere."""
        at = after.txid
        for frame in self.follow({**(hello or {}), "upto": upto}, after):
            if frame.kind == wire.RECORDS:
                at = frame.body[-1].txid
                yield frame
        if at != upto:
            raise PeerUnavailable(f"{self.address} sent the log up to transaction {at}, not {upto}")

    def acks(self, hello: Mapping[str, Any]) -> AckSender:
        """Begin to send acknowledgements. The member gets the hello with each."""
        connection, answer = self._stream("POST", "acks", hello)
        try:
            self._welcome(answer)
        except BaseException:
            answer.close()
            self._drop(connection)
            raise
        return AckSender(self, connection, answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, streams too. May be called twice, from any thread."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy, self._open = self._open.difference(idle), set()
        for connection in idle:
            connection.end()
        for connection in busy:
            connection.shut()  # the thread that uses it then ends it
        self._resolver.close()

    # --- requests --------------------------------------------------------------------------------------------------

    def _map(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None,
             fresh: bool = False) -> dict[str, Any]:
        def take(answer: http.client.HTTPResponse) -> dict[str, Any]:
            data = answer.read(wire.MAX_MESSAGE + 1)
            return wire.unpack_map(data, f"the answer of {self.address}", wire.MAX_MESSAGE)

        data = None if body is None else wire.pack(body)
        if data is not None and len(data) > wire.MAX_SMALL:
            raise InvalidInput(f"a request of {len(data):,} bytes; at most {wire.MAX_SMALL:,} are accepted")
        return self._ask(method, path, data, take, self._timeout if timeout is None else timeout, fresh)

    def _ask(self, method: str, path: str, body: bytes | None, take: Callable[[http.client.HTTPResponse], T],
             seconds: float, fresh: bool = False) -> T:
        end = self._env.clock.monotonic() + seconds
        while True:
            connection = self._connection(fresh)
            kept = connection.sock is not None
            try:
                with self._errors():
                    connection.deadline(end - self._env.clock.monotonic())
                    answer = self._send(connection, method, path, body, {})
                    made = take(answer)
                    if answer.isclosed() and not answer.will_close:
                        self._keep(connection)
                    return made
            except PeerUnavailable:
                # A kept connection may have gone stale. Try once more on a new one, within the same time.
                if not kept or self._closed or self._env.clock.monotonic() >= end:
                    raise
                fresh = True
            finally:
                self._drop(connection)

    def _stream(self, method: str, path: str, hello: Mapping[str, Any]) -> tuple[Connection, http.client.HTTPResponse]:
        connection = self._connection(fresh=True)
        try:
            with self._errors():
                connection.deadline(self._timeout)
                answer = self._send(connection, method, path, None, {wire.HELLO_HEADER: wire.hello_to_wire(hello)})
            connection.streams = True
            connection.deadline(self._silence)
        except BaseException:
            self._drop(connection)
            raise
        return connection, answer

    def _welcome(self, answer: http.client.HTTPResponse) -> None:
        """Read the first frame of an answer that has no other."""
        reader = wire.FrameReader(None)
        while True:
            with self._errors():
                data = answer.read1(_STREAM_READ)
            if not data:
                raise PeerUnavailable(f"{self.address} has cut off the stream")
            for frame in reader.feed(data):
                if frame.kind != wire.WELCOME:
                    raise Garbled(f"{self.address} begins a stream with a frame of kind {frame.kind}")
                return

    def _send(self, connection: Connection, method: str, path: str, body: bytes | None,
              headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request and return its answer if the status is good."""
        if connection.sock is None:
            connection.open()
        connection.putrequest(method, wire.PREFIX + path, skip_accept_encoding=True)
        for name, value in {**headers, "Authorization": f"Bearer {self._token}",
                            wire.VERSIONS_HEADER: wire.versions_to_wire(*self._versions)}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        elif method == "POST":
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(body)
        try:
            answer = connection.getresponse()
        except (ValueError, AttributeError, TypeError, LookupError) as error:  # raised by Python's parser, not ours
            raise SourceRefused(f"the answer of {self.address} cannot be read: {printable(str(error)[:200])}"
                                ) from error
        if answer.status == 200:
            wire.agree(*wire.versions_from_wire(answer.headers.get(wire.VERSIONS_HEADER, "")), *self._versions)
            return answer
        raise self._refusal(answer)

    def _refusal(self, answer: http.client.HTTPResponse) -> HoldfastError:
        try:
            error = wire.failure_from_wire(json.loads(answer.read(wire.MAX_SMALL)))
        except (ValueError, RecursionError):
            return SourceRefused(f"what answers at {self.address} is not a member (status {answer.status})",
                                 hint="check the address")
        if isinstance(error, NotAuthorized):
            return NotAuthorized(f"{self.address}: {error.message}", hint="give all members the same cluster token")
        return error

    def _errors(self) -> _Errors:
        return _Errors(self.address)

    # --- connections -----------------------------------------------------------------------------------------------

    def _connection(self, fresh: bool) -> Connection:
        with self._lock:
            if self._closed:
                raise PeerUnavailable(f"the client of {self.address} is closed", hint="make a new client")
            if self._idle and not fresh:
                return self._idle.pop()
            made = Connection(self._host, self._port, self._tls, self._resolver, self._env)
            self._open.add(made)
            return made

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        """Close a connection, unless it was kept."""
        with self._lock:
            if connection in self._idle:
                return
            self._open.discard(connection)
        connection.end()


class AckSender:
    """Sends acknowledgements on a connection of their own. For one thread; `close` may be called from any."""

    def __init__(self, client: PeerClient, connection: Connection, answer: http.client.HTTPResponse) -> None:
        self._client, self._connection, self._answer = client, connection, answer

    def send(self, ack: Mapping[str, Any]) -> None:
        """Send one. It is on its way when this returns, and nothing says whether it arrived. Raises `PeerUnavailable`
        if the other end has gone or does not read."""
        data = wire.frame(wire.ACK, ack)
        with self._client._errors():
            self._connection.check()
            self._connection.deadline(self._client._silence)
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._answer.close()
        self._client._drop(self._connection)


class _Errors:
    """Turns what a connection raises into the errors of this module."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, HoldfastError) or not isinstance(error, OSError | http.client.HTTPException):
            return
        if is_limit(error):  # a limit of this process, not of the other
            raise told(error, f"cannot ask {self._address}") or error from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise NotAuthorized(f"{self._address} could not prove its identity: {printable(error.verify_message)}",
                                hint="give it a valid certificate of the cluster's authority for this address"
                                ) from error
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise PeerUnavailable(f"{self._address} speaks no TLS", hint="give all members a certificate, or none"
                                  ) from error
        what = "it took too long" if isinstance(error, TimeoutError) else printable(
            str(error)[:200] or type(error).__name__)
        raise PeerUnavailable(f"no answer from {self._address}: {what}") from error
