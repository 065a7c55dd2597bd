"""Pieces: log in a repository, record by record as the store wrote it.

A piece is one object. Its first frame says what it holds; the others are the records, one after the other. The chain in
the first frame is the one before the first record, so every record is compared as it is read, and a piece that is out
of place is found.

A payload that is too large for one object lies beside the piece, in parts, as an attachment does. Then the record has
its name instead. """

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgpack
from xxhash import xxh3_128_digest

from ...engine.env import Env
from ...engine.errors import Damaged, Diverged, InvalidInput
from ...engine.model.positions import History, Position
from ...engine.model.records import Attachment, Record
from . import names
from .attached import read_attachment, store_payload
from .sealed import FRAME_BYTES, HEADER, Kind, Seal, compressed
from .storage.interface import MAX_OBJECT_BYTES, ObjectStore

PIECE_BYTES = 8 << 20
"""A piece ends once it has this many bytes of records."""
LARGE_BYTES = MAX_OBJECT_BYTES // 2
"""A payload that is larger lies beside its piece. So a piece, which may consist of one record, fits into an object."""
_LARGE = ".payload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a piece says of itself.

    Attributes:
        history: of the branch; the same as the source's, as far as it had happened.
        after, end: the records after the first, up to the second. Equal: there are none.
        records: how many.
        first_time_us, last_time_us: commit times of the first and the last; 0 if there are none.
        complete_until_us: every transaction committed up to this time is at or below `end`.
        payloads: the versions of the payloads.
        attachments: the files that records name, and the large payloads. They were stored before the piece.
        writer: the number of the writer that put it; 0 in an image's own log.
        fence: the writer begins here: those before it put nothing after this.
        nonce: tells its writer that a piece is its own.
    """

    history: History
    after: Position
    end: Position
    records: int
    first_time_us: int
    last_time_us: int
    complete_until_us: int
    payloads: tuple[int, ...]
    attachments: tuple[Attachment, ...]
    writer: int
    fence: bool
    nonce: bytes

    @property
    def large_bytes(self) -> int:
        """Bytes of payloads that lie beside the piece."""
        return sum(one.size for one in self.attachments if one.name.endswith(_LARGE))


def _beside(record: Record) -> Attachment | None:
    """As what the payload of a record lies beside the piece; None: it is in the piece."""
    if len(record.payload) <= LARGE_BYTES:
        return None
    return Attachment(record.chain.hex() + _LARGE, len(record.payload), xxh3_128_digest(record.payload))


def store_payloads(store: ObjectStore, seal: Seal, name: str, records: Iterable[Record]) -> int:
    """Store what lies beside a piece of this name with these records, before the piece is put. Returns the bytes that
    were put. O(bytes). Raises as `store_attachment`."""
    return sum(store_payload(store, seal, beside, record.payload, names.files_of(name))
               for record in records if (beside := _beside(record)) is not None)


def encode(seal: Seal, name: str, piece: Piece, records: Iterable[Record]) -> bytes:
    """A piece as an object."""
    writer = seal.writer(Kind.PIECE, name)
    said = {**{field: getattr(piece, field) for field in Piece.__slots__}, "history": piece.history.to_wire(),
            "after": list(piece.after), "end": list(piece.end), "payloads": list(piece.payloads),
            "attachments": [list(one) for one in piece.attachments]}
    waiting = bytearray()
    pack = msgpack.Packer(use_bin_type=True).pack
    [head] = compressed([pack(said)])
    writer.add(head)
    for record in records:
        beside = _beside(record)
        waiting += pack((record.header, record.payload if beside is None else beside.name))
        while len(waiting) > FRAME_BYTES:
            [body] = compressed([bytes(waiting[:FRAME_BYTES])])
            writer.add(body)
            del waiting[:FRAME_BYTES]
    return writer.finish(bytes(waiting))


def decode(seal: Seal, name: str, data: bytes, store: ObjectStore) -> tuple[Piece, Iterator[Record]]:
    """A piece, and its records. The records are read as they are asked for, and compared with the chain. `store`: where
    large payloads lie.

    Raises:
        Damaged: also while the records are read. ObjectMissing: only then, for a part of a large payload.
        UnsupportedFormat, KeyMissing.
    """
    where = f"{seal.url}/{name}"
    frames = seal.reader(Kind.PIECE, name, data[: HEADER.size]).frames(data)
    try:
        body = msgpack.unpackb(next(frames), strict_map_key=False)
        fields = {field: body[field] for field in Piece.__slots__}
        piece = Piece(**{**fields, "history": History.from_wire(body["history"]), "after": Position(*body["after"]),
                         "end": Position(*body["end"]), "payloads": tuple(body["payloads"]),
                         "attachments": tuple(Attachment(*one) for one in body["attachments"])})
    except (KeyError, TypeError, ValueError, InvalidInput, msgpack.UnpackException) as error:
        raise Damaged(f"lacks or garbles a field: {error}", path=where) from error
    large = {one.name: one for one in piece.attachments}

    def payload(said: bytes | str) -> bytes:
        return said if isinstance(said, bytes) else b"".join(
            read_attachment(store, seal, large[said], names.files_of(name)))

    return piece, _records(piece, frames, payload, where)


def _records(piece: Piece, frames: Iterator[bytes], payload_of: Callable[[bytes | str], bytes], where: str
             ) -> Iterator[Record]:
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
    last, count = piece.after, 0
    for frame in frames:
        unpacker.feed(frame)
        try:
            for header, payload in unpacker:
                record = Record.decode(last.chain, header, payload_of(payload))
                if record.txid != last.txid + 1:
                    raise Damaged(f"has transaction {record.txid} after {last.txid}", path=where)
                last, count = record.position, count + 1
                yield record
        except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
            raise Damaged(f"has something else than records: {error}", path=where) from error
    if last != piece.end or count != piece.records:
        raise Damaged(f"says that it ends at {piece.end}, and ends at {last}", path=where)


@dataclass(slots=True)
class Batch:
    """Records that become one piece."""

    after: Position
    records: list[Record]
    bytes: int = 0

    @property
    def end(self) -> Position:
        return self.records[-1].position if self.records else self.after

    def piece(self, history: History, complete_until_us: int, writer: int, env: Env, *, fence: bool = False) -> Piece:
        """What the piece says. `complete_until_us` is what the source said before the records were read; if more come
        after these, the time of the last one counts."""
        records = self.records
        return Piece(history=history, after=self.after, end=self.end, records=len(records),
                     first_time_us=records[0].time_us if records else 0,
                     last_time_us=records[-1].time_us if records else 0, complete_until_us=complete_until_us,
                     payloads=tuple(sorted({r.payload_version for r in records if not r.is_kit})),
                     attachments=tuple(one for r in records for one in (r.attachment, _beside(r)) if one is not None),
                     writer=writer, fence=fence, nonce=env.randomness.token(16))


def batches(after: Position, records: Iterable[Record], most: int = PIECE_BYTES) -> Iterator[Batch]:
    """Records in batches of about `most` bytes. Nothing comes of no records. Raises `Diverged` if one does not
    follow."""
    batch = Batch(after, [])
    for record in records:
        size = len(record.header) + len(record.payload)
        if batch.records and batch.bytes + size > most:
            yield batch
            batch = Batch(batch.end, [])
        if record.txid != batch.end.txid + 1:
            raise Diverged(f"the source sent transaction {record.txid} after {batch.end.txid}")
        batch.records.append(record)
        batch.bytes += size
    if batch.records:
        yield batch


def merged_piece(pieces: list[Piece], env: Env) -> Piece:
    """What the pieces together say, in one."""
    first, last = pieces[0], pieces[-1]
    times = [(p.first_time_us, p.last_time_us) for p in pieces if p.records]
    return Piece(history=last.history, after=first.after, end=last.end, records=sum(p.records for p in pieces),
                 first_time_us=times[0][0] if times else 0, last_time_us=times[-1][1] if times else 0,
                 complete_until_us=max(p.complete_until_us for p in pieces),
                 payloads=tuple(sorted({v for p in pieces for v in p.payloads})),
                 attachments=tuple(a for p in pieces for a in p.attachments), writer=last.writer, fence=False,
                 nonce=env.randomness.token(16))


def complete_until(batch: Batch, is_last: bool, said: int) -> int:
    """Up to when the log is complete with this batch: as the source said, if nothing came after; else up to its last
    record."""
    return said if is_last else batch.records[-1].time_us
