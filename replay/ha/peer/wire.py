"""What members agree on: versions, errors, small messages, and the frames of a stream.

A stream is a sequence of frames, each `u32 length, u64 checksum, body`, little-endian. The checksum is xxh3-64 over the
body, and the length is the body's. The body is a msgpack array that begins with the frame's kind:

=========  ====  ==========================================================================================
kind       code  then
=========  ====  ==========================================================================================
welcome    0     a map: what the server answers to the hello
records    1     a list of [header, payload], each as in the log; the chain of the last one (16 bytes)
heartbeat  2     a map
error      3     a map: the error that ended the stream
end        4     a text: why the stream ends. A stream without `error` or `end` was cut off
ack        5     a map
=========  ====  ==========================================================================================

A checksum finds bytes that changed on the way. The chain finds a sender whose log does not continue the reader's.
Everything received is checked for its size and its form before it is used.

Each request names the newest and the oldest version of the protocol that its sender speaks. Both sides then speak the
older one of their newest versions, if both know it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from ....engine import errors as engine_errors
from ....engine.env.shown import printable
from ....engine.errors import Damaged, Diverged, HoldfastError, SourceRefused
from ....engine.model.positions import ID_BYTES, Position
from ....engine.model.records import Record
from ....engine.source.http.wire import MAX_TIME_US, Garbled, error_from_wire, error_to_wire
from ....engine.wal.attachments import NAME as ATTACHMENT_NAME
from ....engine.wal.format import MAX_RECORD_HEADER
from .. import errors as ha_errors
from ..errors import ProtocolMismatch

HELLO_VERSION = 1
"""The newest version of the protocol that this code speaks."""
HELLO_MIN = 1
"""The oldest one."""

PREFIX = "/ha/v1/"
VERSIONS_HEADER = "Holdfast-Peer-Versions"
HELLO_HEADER = "Holdfast-Peer-Hello"
MESSAGE_TYPE = "application/vnd.holdfast.message"
STREAM_TYPE = "application/vnd.holdfast.frames"
MAX_MESSAGE = 1 << 20
"""The most bytes of a message that is not a stream."""
MAX_SMALL = 64 << 10
"""The most bytes of a frame without records."""
MAX_HELLO = 4 << 10
MAX_RECORD = 64 << 20
"""The default of the largest payload that is accepted."""
BATCH_BYTES = 1 << 20
"""A sender puts records into one frame up to this size. A larger record has a frame to itself."""
MAX_BATCH_RECORDS = 100_000

WELCOME, RECORDS, HEARTBEAT, ERROR, END, ACK = range(6)

_HEAD = struct.Struct("<IQ")
_BATCH_ROOM = BATCH_BYTES + MAX_RECORD_HEADER + MAX_SMALL


class Frame(NamedTuple):
    """A frame of a stream. `body`: records, a map, or the text of `END`."""

    kind: int
    body: Any


# --- versions and errors -----------------------------------------------------------------------------------------


def agree(version: int, minimum: int, mine: int = HELLO_VERSION, my_minimum: int = HELLO_MIN) -> int:
    """The version that both speak. Raises `ProtocolMismatch`.

    >>> agree(5, 4, mine=4, my_minimum=3)
    4
    """
    spoken = min(version, mine)
    if spoken < max(minimum, my_minimum):
        raise ProtocolMismatch(f"one member speaks versions {minimum} to {version} of the members' protocol, and the "
                               f"other one {my_minimum} to {mine}")
    return spoken


def versions_to_wire(version: int, minimum: int) -> str:
    return f"{version} {minimum}"


def versions_from_wire(text: str) -> tuple[int, int]:
    """Newest and oldest version. Raises `ProtocolMismatch`."""
    parts = text.split(" ")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise ProtocolMismatch("the request or answer names no version of the members' protocol",
                               hint="what speaks there is not a member")
    return int(parts[0]), int(parts[1])


_OURS = {name: cls for name, cls in vars(ha_errors).items()
         if isinstance(cls, type) and issubclass(cls, HoldfastError) and cls.__module__ == ha_errors.__name__}


def failure(error: BaseException) -> tuple[int, dict[str, str]]:
    """HTTP status and map of an error. The classes of `replay.ha.errors` keep their class, as those of a source do."""
    for cls in type(error).__mro__:
        if _OURS.get(cls.__name__) is cls and isinstance(error, HoldfastError):
            return 409, {"error": cls.__name__, "message": error.message, "hint": error.hint}
    return error_to_wire(error)


def failure_from_wire(body: Any) -> HoldfastError:
    """The error that a member named. Of an unknown class, or in an unknown form, it is `SourceRefused`."""
    made = error_from_wire(body)
    cls = _OURS.get(str(body.get("error"))) if isinstance(body, dict) else None
    if cls is None:
        return made
    try:
        return cls(made.message, hint=made.hint)
    except TypeError:  # its constructor wants more than was sent
        return SourceRefused(f"{cls.__name__}: {made.message}", hint=made.hint)


# --- messages ----------------------------------------------------------------------------------------------------


def pack(message: Any) -> bytes:
    data: bytes = msgpack.packb(message, use_bin_type=True)
    return data


def unpack_map(data: bytes, what: str, most: int) -> dict[str, Any]:
    """A map with texts as keys. Raises `Garbled`."""
    if len(data) > most:
        raise Garbled(f"{what} of {len(data):,} bytes; at most {most:,} are accepted")
    return _map(_unpack(data, what), what)


def _unpack(data: bytes | memoryview, what: str) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Garbled(f"{what} cannot be read: {printable(str(error)[:200])}") from error


def _map(made: Any, what: str) -> dict[str, Any]:
    if not isinstance(made, dict) or not all(isinstance(key, str) for key in made):
        raise Garbled(f"{what} is not a map with texts as keys")
    return made


def hello_to_wire(hello: Mapping[str, Any]) -> str:
    data = pack(hello)
    if len(data) > MAX_HELLO:
        raise engine_errors.InvalidInput(f"a hello of {len(data):,} bytes; at most {MAX_HELLO:,} are accepted")
    return base64.b64encode(data).decode()


def hello_from_wire(text: str) -> dict[str, Any]:
    """Raises `Garbled`."""
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except ValueError as error:
        raise Garbled("the hello is not base64") from error
    return unpack_map(data, "a hello", MAX_HELLO)


# --- frames ------------------------------------------------------------------------------------------------------


def frame(kind: int, body: Any) -> bytes:
    """A frame other than records. Raises `InvalidInput` if it is too large."""
    data = pack((kind, body))
    if len(data) > MAX_SMALL:
        raise engine_errors.InvalidInput(f"a frame of {len(data):,} bytes; at most {MAX_SMALL:,} are accepted")
    return _HEAD.pack(len(data), xxh3_64_intdigest(data)) + data


def records_frame(records: Sequence[Record]) -> bytes:
    """One frame with these records, which follow each other. O(their bytes)."""
    data = pack((RECORDS, [(r.header, r.payload) for r in records], records[-1].chain))
    return _HEAD.pack(len(data), xxh3_64_intdigest(data)) + data


def error_frame(error: BaseException) -> bytes:
    told = failure(error)[1]
    return frame(ERROR, {name: text[:4000] for name, text in told.items()})


class FrameReader:
    """Decodes a stream. Feed it bytes as they arrive. Not for several threads.

    Attributes:
        position: of the last record delivered, or None if the stream may hold no records.
    """

    def __init__(self, after: Position | None, max_record_bytes: int = MAX_RECORD) -> None:
        """
        Args:
            after: the position that the first record must follow. None: a stream of small frames.
            max_record_bytes: the most bytes that the payload of a record may have.
        """
        self.position = after
        self._max_record = max_record_bytes
        self._most = MAX_SMALL if after is None else max(_BATCH_ROOM, max_record_bytes + _BATCH_ROOM)
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. O(bytes).

        Raises:
            Garbled: the bytes are not such a stream, or are not those that were sent.
            Diverged: the records do not continue the chain.
        """
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= _HEAD.size:
                length, checksum = _HEAD.unpack_from(rest, at)
                if not 0 < length <= self._most:
                    raise Garbled(f"a frame of {length:,} bytes; at most {self._most:,} are accepted")
                end = at + _HEAD.size + length
                if len(rest) < end:
                    return
                body = bytes(memoryview(rest)[at + _HEAD.size : end])
                at = end
                if xxh3_64_intdigest(body) != checksum:
                    raise Garbled("a frame does not have its checksum")
                yield self._frame(body)
        finally:
            del rest[:at]

    def _frame(self, body: bytes) -> Frame:
        made = _unpack(body, "a frame")
        if not isinstance(made, list) or len(made) < 2 or type(made[0]) is not int:
            raise Garbled("a frame is not an array that begins with its kind")
        kind, content = made[0], made[1]
        if kind == RECORDS and len(made) == 3 and self.position is not None:
            return Frame(RECORDS, self._records(content, made[2], self.position))
        if len(body) > MAX_SMALL or len(made) != 2:
            raise Garbled(f"a frame of kind {kind} with {len(made)} parts and {len(body):,} bytes")
        if kind == END and isinstance(content, str):
            return Frame(END, printable(content[:2000]))
        if kind in (WELCOME, HEARTBEAT, ERROR, ACK):
            return Frame(kind, _map(content, "the content of a frame"))
        raise Garbled(f"a frame of kind {kind} is not expected here")

    def _records(self, pairs: Any, chain: Any, after: Position) -> list[Record]:
        if not isinstance(pairs, list) or not 0 < len(pairs) <= MAX_BATCH_RECORDS:
            raise Garbled("a frame of records without records, or with too many")
        records: list[Record] = []
        for pair in pairs:
            record = self._record(pair, after)
            records.append(record)
            after = record.position
        if after.chain != chain:
            raise Diverged(f"records {records[0].txid} to {after.txid} that a member sent do not continue the log of "
                           "this one")
        self.position = after
        return records

    def _record(self, pair: Any, after: Position) -> Record:
        if not isinstance(pair, list) or [type(part) for part in pair] != [bytes, bytes]:
            raise Garbled("a record is not a header and a payload")
        header, payload = pair
        if not 0 < len(header) <= MAX_RECORD_HEADER or len(payload) > self._max_record:
            raise Garbled(f"a record with a header of {len(header):,} and a payload of {len(payload):,} bytes; at most "
                          f"{self._max_record:,} are accepted")
        try:
            record = Record.decode(after.chain, header, payload)
        except Damaged as error:
            raise Garbled(error.message) from error
        numbers = record.txid, record.epoch, record.time_us, record.payload_version
        if any(type(n) is not int or n < 0 for n in numbers) or record.time_us > MAX_TIME_US:
            raise Garbled(f"the record after transaction {after.txid} has the numbers {str(numbers)[:200]}")
        if record.txid != after.txid + 1:
            raise Garbled(f"the record after transaction {after.txid} is {record.txid}")
        if record.attachment is not None and not _well_formed(record.attachment):
            raise Garbled(f"record {record.txid} names an attachment with a malformed name, size or digest")
        return record


def _well_formed(attachment: Any) -> bool:
    name, size, digest = attachment
    return (isinstance(name, str) and ATTACHMENT_NAME.fullmatch(name) is not None and type(size) is int
            and 0 <= size < 1 << 63 and isinstance(digest, bytes) and len(digest) == ID_BYTES)
