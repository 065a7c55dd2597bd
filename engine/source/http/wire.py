"""What client and server agree on: names, errors, JSON forms, and the framing of the record stream.

Small things are sent as JSON, so that people and curl can read them: ids, chains and digests in hex. File contents are
sent as raw bytes. A piece of a file of at most `CHUNK_BYTES` carries `Holdfast-Digest: xxh3-128=<hex>` over exactly the
bytes sent. They are read once, hashed, then sent. Reading twice would not do: even in a stable image, a page that is
not in use may change between two reads.

Whoever asks for blocks sends the digests that it has, in msgpack: a thousand of them in hex would be twice as long. The
answer is the SHA-256 of every block, in order, then the bytes of those whose digest is not the one that was sent. So
it needs no other checksum: a digest that changed on the way, in either direction, no longer fits the answer's length
or its block.

The record stream is a sequence of frames, each `u32 kind, u32 header length, u32 payload length`, little-endian, then
header and payload:

=========  ====  ============================================================================================
kind       code  header, payload
=========  ====  ============================================================================================
record     1     the record's chain (16 bytes) and its header as in the log; its payload
end        2     nothing; the last position sent: u64 txid, chain. A stream without it was cut off
heartbeat  3     nothing; nothing. Sent while the source searches, so that silence means a lost connection
error      4     nothing; the source's error as JSON. Nothing follows it
=========  ====  ============================================================================================

The reader computes each record's chain from the previous one, and compares it with the chain that was sent, *before* it
delivers the record. So bytes that changed in transit never reach a caller.

An error is sent as the name of its class, its message and its hint. A fixed table turns it into an error of that class
again. Everything received is checked for its form, and what does not have it raises `SourceRefused`. So does a name of
an image file or attachment that could lead out of a directory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgpack
from xxhash import xxh3_128

from ... import errors
from ...contract.image import ImageFile
from ...env.shown import printable
from ...env.system import told
from ...errors import Damaged, HoldfastError, LogPruned, SourceRefused
from ...model.positions import ID_BYTES, Branch, History, Position
from ...model.records import Attachment, Record
from ...wal.attachments import NAME as ATTACHMENT_NAME
from ...wal.format import MAX_RECORD_HEADER
from ..interface import (
    CHUNK_BYTES,
    HEX_ID,
    LEAST_BLOCK,
    Confirmation,
    ContentDigest,
    Grant,
    MemberInfo,
    SlotState,
    SourceInfo,
)

INSTANCE_HEADER = "Holdfast-Instance"
DIGEST_HEADER = "Holdfast-Digest"
CHALLENGE_HEADER = "Holdfast-Challenge"
PROOF_HEADER = "Holdfast-Proof"
RECORDS_TYPE = "application/vnd.holdfast.records"
BLOCKS_TYPE = "application/vnd.holdfast.blocks"
MAX_PAYLOAD = 1 << 30
MAX_ERROR = 64 << 10
MAX_FILES = 100_000
MAX_DEPTH, MAX_NAME = 16, 500
"""The most parts, and characters, of an image file's name."""
MAX_BRANCHES = MAX_SLOTS = 10_000
MAX_TTL = 7 * 86400.0
MAX_COUNT = (1 << 63) - 1
MAX_TIME_US = 253_402_300_799_999_999
"""The end of the year 9999, the last that Python's calendar has."""

T = TypeVar("T")

class Garbled(Damaged):
    """The bytes are not those that were sent. The client asks for them again."""

    hint = "run it again; if the error comes back, check network and memory"


# --- digests ---------------------------------------------------------------------------------------------------------


def digest(*pieces: bytes) -> str:
    """The value of `DIGEST_HEADER` for the bytes of these pieces together."""
    state = xxh3_128()
    for piece in pieces:
        state.update(piece)
    return f"xxh3-128={state.hexdigest()}"


# --- errors ----------------------------------------------------------------------------------------------------------

_STATUS: dict[type[HoldfastError], int] = {
    errors.InvalidInput: 400, errors.NotAuthorized: 401, errors.NotFound: 404, errors.Diverged: 409,
    errors.AheadOfSource: 409, errors.ForeignStore: 409, errors.OtherBranch: 409, errors.LogPruned: 410,
    errors.LeaseExpired: 410, errors.TooManyLeases: 429, errors.Unsupported: 501, errors.Damaged: 500,
    errors.SourceUnavailable: 503, errors.SourceRefused: 403, errors.DiskFull: 507,
}
"""The errors that keep their class across the network, and their HTTP status."""

_CLASSES = {cls.__name__: cls for cls in _STATUS}


def error_to_wire(error: BaseException) -> tuple[int, dict[str, str]]:
    """HTTP status and JSON body. An error that is not in the table is sent as one that is."""
    error = told(error, "the source cannot do it") or error
    if isinstance(error, errors.StoreClosed):
        error = errors.SourceUnavailable("the source is closing")
    if isinstance(error, errors.LimitReached):
        error = errors.SourceUnavailable(error.message, hint=f"at the source: {error.hint}")
    if isinstance(error, HoldfastError):
        for cls in type(error).__mro__:
            if cls in _STATUS:
                return _STATUS[cls], {"error": cls.__name__, "message": error.message, "hint": error.hint}
        return 500, {"error": "SourceRefused", "message": f"{type(error).__name__}: {error.message}",
                     "hint": error.hint}
    return 500, {"error": "SourceRefused", "message": f"the source failed: {type(error).__name__}",
                 "hint": "see the source's own log"}


def error_from_wire(body: Any) -> HoldfastError:
    if not isinstance(body, dict):
        return SourceRefused("the source answered with an error in a form that is not known")
    cls = _CLASSES.get(str(body.get("error")), SourceRefused)
    message, hint = body.get("message"), body.get("hint")
    return cls(_told(message) or "the source gives no reason", hint=_told(hint))


def _told(text: Any) -> str:
    """A source's text without characters that could control a terminal."""
    return printable(text[:2000]) if isinstance(text, str) else ""


# --- JSON forms ------------------------------------------------------------------------------------------------------


def parse(what: str, make: Callable[[Any], T], data: Any) -> T:
    """`make(data)`. Raises `SourceRefused` if the data does not have the right form; `what` names it."""
    try:
        return make(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise SourceRefused(f"not {what}: {printable(str(error)[:300])}",
                            hint="the other end speaks another protocol") from error


def _id(text: Any) -> bytes:
    made = bytes.fromhex(text)
    if len(made) != ID_BYTES:
        raise ValueError("an id of the wrong length")
    return made


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number <= MAX_COUNT:
        raise ValueError(f"{str(number)[:40]!r} is not a count")
    return number


def _time(number: Any) -> int:
    if _count(number) > MAX_TIME_US:
        raise ValueError(f"{number} is not a time")
    return int(number)


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a {type(text).__name__} is not a text")
    text.encode()  # raises if it holds half a surrogate pair, which JSON allows and UTF-8 does not
    return text


def _name(text: Any) -> str:
    if not 0 < len(_text(text)) <= 100 or not text.isprintable():
        raise ValueError("a name that is empty, too long or not printable")
    return str(text)


def _hex_name(text: Any) -> str:
    if not HEX_ID.fullmatch(_text(text)):
        raise ValueError("an id that is not 2 to 64 hex digits")
    return str(text)


def position_to_wire(position: Position) -> dict[str, Any]:
    return {"txid": position.txid, "chain": position.chain.hex()}


def position_from_wire(data: Any) -> Position:
    return Position(_count(data["txid"]), _id(data["chain"]))


def info_to_wire(info: SourceInfo) -> dict[str, Any]:
    history, member = info.history, info.member
    return {
        "instance": info.instance, "store_id": history.store_id.hex(),
        "branches": [{"id": b.id.hex(), "start": position_to_wire(b.start)} for b in history.branches],
        "engine": info.engine, "state_format": info.state_format,
        "payload_version": info.payload_version, "durable": position_to_wire(info.durable),
        "published": position_to_wire(info.published), "readable": position_to_wire(info.readable),
        "log_base": position_to_wire(info.log_base),
        "complete_until_us": info.complete_until_us, "path": info.path,
        **({} if member is None else
           {"member": {"name": member.name, "role": member.role, "healthy": member.healthy}}),
    }


def info_from_wire(data: Any) -> SourceInfo:
    if len(data["branches"]) > MAX_BRANCHES:
        raise ValueError(f"{len(data['branches'])} branches")
    branches = tuple(Branch(_id(b["id"]), position_from_wire(b["start"])) for b in data["branches"])
    if not branches:
        raise ValueError("a history without a branch")
    published = position_from_wire(data["published"])
    said = data.get("member")
    member = None if said is None else MemberInfo(name=_name(said["name"]), role=_name(said["role"]),
                                                  healthy=said["healthy"] is True)
    return SourceInfo(
        instance=_hex_name(data["instance"]), history=History(_id(data["store_id"]), branches),
        engine=_name(data["engine"]), state_format=_count(data["state_format"]),
        payload_version=_count(data["payload_version"]),
        durable=position_from_wire(data["durable"]), published=published,
        readable=position_from_wire(data["readable"]) if "readable" in data else published,  # older services lack it
        log_base=position_from_wire(data["log_base"]), complete_until_us=_time(data["complete_until_us"]),
        path=_told(_text(data["path"])), member=member)


def grant_to_wire(grant: Grant) -> dict[str, Any]:
    return {"id": grant.id, "instance": grant.instance, "ttl": grant.ttl, "moving": grant.moving,
            "time_us": grant.time_us, "position": position_to_wire(grant.position), "image_id": grant.image_id,
            "files": [{"name": f.name, "size": f.size} for f in grant.files]}


def grant_from_wire(data: Any) -> Grant:
    listed = data["files"]
    if len(listed) > MAX_FILES:
        raise ValueError(f"an image of {len(listed)} files")
    files = tuple(ImageFile(_file_name(f["name"]), _count(f["size"])) for f in listed)
    if len({f.name for f in files}) != len(files):
        raise ValueError("an image that names a file twice")
    ttl = float(data["ttl"])
    if not 0 < ttl < float("inf"):
        raise ValueError("a time to live that is not a positive number")
    ttl = min(ttl, MAX_TTL)
    image_id = data["image_id"]
    return Grant(id=_hex_name(data["id"]), instance=_hex_name(data["instance"]), ttl=ttl,
                 position=position_from_wire(data["position"]), image_id=None if image_id is None else _text(image_id),
                 files=files, moving=bool(data["moving"]), time_us=_time(data["time_us"]))


def _file_name(name: Any) -> str:
    """A relative POSIX path that cannot lead out of the directory it is joined to."""
    parts = _text(name).split("/")
    if (len(name) > MAX_NAME or len(parts) > MAX_DEPTH or "\\" in name or not name.isprintable()
            or any(part in ("", ".", "..") for part in parts)):
        raise ValueError(f"the file name {name[:100]!r}")
    return str(name)


def confirmation_to_wire(c: Confirmation) -> dict[str, Any]:
    return {"p1": position_to_wire(c.consistent_from), "published": position_to_wire(c.published),
            "complete_until_us": c.complete_until_us}


def confirmation_from_wire(data: Any) -> Confirmation:
    return Confirmation(consistent_from=position_from_wire(data["p1"]), published=position_from_wire(data["published"]),
                        complete_until_us=_time(data["complete_until_us"]))


def content_to_wire(c: ContentDigest) -> dict[str, Any]:
    return {"position": position_to_wire(c.position), "digest": c.digest.hex()}


def content_from_wire(data: Any) -> ContentDigest:
    digest = bytes.fromhex(data["digest"])
    if len(digest) != ID_BYTES:
        raise ValueError(f"a digest of {len(digest)} bytes")
    return ContentDigest(position=position_from_wire(data["position"]), digest=digest)


def slots_to_wire(slots: Sequence[SlotState]) -> dict[str, Any]:
    return {"consumers": [{"id": c.id, "name": c.name, "position": position_to_wire(c.position), "seen_us": c.seen_us,
                           "held_bytes": c.held_bytes} for c in slots]}


def slots_from_wire(data: Any) -> list[SlotState]:
    if len(data["consumers"]) > MAX_SLOTS:
        raise ValueError(f"{len(data['consumers'])} slots")
    return [SlotState(id=_hex_name(c["id"]), name=_told(_text(c["name"])),
                      position=position_from_wire(c["position"]), seen_us=_time(c["seen_us"]),
                      held_bytes=_count(c["held_bytes"])) for c in data["consumers"]]


# --- blocks ----------------------------------------------------------------------------------------------------------


def wish_to_wire(offset: int, length: int, block_bytes: int, known: Sequence[bytes]) -> bytes:
    """The request for blocks; the arguments are those of `Source.read_blocks`."""
    packed: bytes = msgpack.packb({"offset": offset, "length": length, "block_bytes": block_bytes,
                                   "known": list(known)})
    return packed


def unpacked(data: bytes) -> Any:
    """What a body in msgpack holds. Raises `ValueError`. Its lists are bounded, since each is allocated by the length
    that it claims, and lists may stand in lists."""
    return msgpack.unpackb(data, max_array_len=CHUNK_BYTES // LEAST_BLOCK, max_map_len=16)


def wish_from_wire(data: Any) -> tuple[int, int, int, list[bytes]]:
    """Offset, length, bytes of a block, known digests."""
    known = data["known"]
    if not isinstance(known, list) or not all(isinstance(digest, bytes) for digest in known):
        raise TypeError("a digest that is not bytes")
    return _count(data["offset"]), _count(data["length"]), _count(data["block_bytes"]), known


# --- the record stream -----------------------------------------------------------------------------------------------

_FRAME = struct.Struct("<III")
_END = struct.Struct(f"<Q{ID_BYTES}s")
_RECORD, _ENDED, _HEARTBEAT, _ERROR = 1, 2, 3, 4

HEARTBEAT = _FRAME.pack(_HEARTBEAT, 0, 0)


def record_frame(record: Record) -> bytes:
    head = _FRAME.pack(_RECORD, ID_BYTES + len(record.header), len(record.payload))
    return b"".join((head, record.chain, record.header, record.payload))


def end_frame(position: Position) -> bytes:
    return _FRAME.pack(_ENDED, 0, _END.size) + _END.pack(*position)


def error_frame(error: BaseException) -> bytes:
    body = json.dumps(error_to_wire(error)[1]).encode()
    return _FRAME.pack(_ERROR, 0, len(body)) + body


class RecordReader:
    """Decodes the stream. Feed it bytes as they arrive. It delivers only records that continue the chain.

    Attributes:
        position: of the last record delivered.
        ended: the end frame has come, and it named that position.
    """

    def __init__(self, after: Position, max_payload: int = MAX_PAYLOAD) -> None:
        """`max_payload`: the most bytes that the payload of a record may have."""
        self._max_payload = max_payload
        self.position = after
        self.ended = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that are complete now.

        Raises:
            Garbled: the bytes are not such a stream, or are not those that were sent.
            LogPruned: a record is missing in between.
            SourceRefused: a record is larger than `max_payload`.
            HoldfastError: the source's own error.
        """
        rest = self._rest
        rest += data
        while len(rest) >= _FRAME.size:
            kind, header_bytes, payload_bytes = _FRAME.unpack_from(rest)
            self._admit(kind, header_bytes, payload_bytes)
            middle = _FRAME.size + header_bytes
            end = middle + payload_bytes
            if len(rest) < end:
                return
            header, payload = bytes(rest[_FRAME.size : middle]), bytes(rest[middle:end])
            del rest[:end]  # before delivery, so that a large record is held once less
            if kind == _RECORD:
                yield self._record(header, payload)
            elif kind == _ENDED:
                self._end(payload)
            elif kind == _ERROR:
                raise _told_error(payload)

    def _admit(self, kind: int, header_bytes: int, payload_bytes: int) -> None:
        if self.ended:
            raise Garbled("the record stream continues after its end frame")
        if kind == _RECORD and self._max_payload < payload_bytes <= MAX_PAYLOAD:
            raise SourceRefused(f"the source sends a transaction of {payload_bytes:,} bytes; at most "
                                f"{self._max_payload:,} are accepted",
                                hint="if the store's transactions may be so large, raise max_record_bytes")
        fits = {
            _RECORD: ID_BYTES < header_bytes <= ID_BYTES + MAX_RECORD_HEADER and payload_bytes <= MAX_PAYLOAD,
            _ENDED: header_bytes == 0 and payload_bytes == _END.size,
            _HEARTBEAT: header_bytes == 0 and payload_bytes == 0,
            _ERROR: header_bytes == 0 and payload_bytes <= MAX_ERROR,
        }
        if not fits.get(kind, False):
            raise Garbled(f"the record stream holds a frame of kind {kind} with lengths {header_bytes}, "
                          f"{payload_bytes}")

    def _record(self, header: bytes, payload: bytes) -> Record:
        try:
            record = Record.decode(self.position.chain, header[ID_BYTES:], payload)
        except Damaged as error:
            raise Garbled(error.message) from error
        if record.chain != header[:ID_BYTES]:
            raise Garbled(f"the record after transaction {self.position.txid} does not continue its chain")
        numbers = record.txid, record.epoch, record.time_us, record.payload_version
        if any(type(n) is not int or n < 0 for n in numbers) or record.time_us > MAX_TIME_US:
            raise Garbled(f"the record after transaction {self.position.txid} has the numbers {str(numbers)[:200]}")
        if record.txid != self.position.txid + 1:
            raise LogPruned(f"the record after transaction {self.position.txid} is {record.txid}")
        if record.attachment is not None and not _is_one(record.attachment):
            raise Garbled(f"record {record.txid} names an attachment with a malformed name")
        self.position = record.position
        return record

    def _end(self, payload: bytes) -> None:
        if Position(*_END.unpack(payload)) != self.position:
            raise Garbled(f"the record stream ends elsewhere than at transaction {self.position.txid}")
        self.ended = True


def _is_one(attachment: Attachment) -> bool:
    name, size, digest = attachment
    return (isinstance(name, str) and ATTACHMENT_NAME.fullmatch(name) is not None and type(size) is int
            and 0 <= size < 1 << 63 and isinstance(digest, bytes) and len(digest) == ID_BYTES)


def _told_error(payload: bytes) -> HoldfastError:
    try:
        return error_from_wire(json.loads(payload))
    except (ValueError, RecursionError):
        return Garbled("the record stream holds an error that cannot be read")
