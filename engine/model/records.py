"""What the log holds: records, attachments, and descriptions of ranges and segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgpack
from xxhash import xxh3_128_digest

from ..errors import Damaged
from .positions import History, Position


class Attachment(NamedTuple):
    """A file beside the log that a record names: the data of a bulk load. `digest`: xxh3-128 over the whole file."""

    name: str
    size: int
    digest: bytes


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_tuple = tuple.__new__  # costs a third of calling the named tuple, and every commit does it


class Record:
    """One transaction as the log holds it.

    Attributes:
        txid: its number.
        epoch: the term of the primary that wrote it.
        time_us: its commit time, microseconds since the Unix epoch; later than the one before.
        payload_version: the version of the engine's payload format.
        payload: the engine's bytes.
        attachment: the file that it names, or None.
        header: the encoded header, as it is on disk and in the chain.
        chain: the chain up to and including this record.
        position: (txid, chain).
    """

    __slots__ = ("attachment", "chain", "epoch", "header", "payload", "payload_version", "position", "time_us", "txid")

    def __init__(self, txid: int, epoch: int, time_us: int, payload_version: int, payload: bytes,
                 attachment: Attachment | None, header: bytes, chain: bytes) -> None:
        self.txid = txid
        self.epoch = epoch
        self.time_us = time_us
        self.payload_version = payload_version
        self.payload = payload
        self.attachment = attachment
        self.header = header
        self.chain = chain
        self.position = _tuple(Position, (txid, chain))

    def __repr__(self) -> str:
        return f"Record(txid={self.txid}, epoch={self.epoch}, {len(self.payload)} bytes, chain={self.chain.hex()[:8]})"

    @property
    def is_kit(self) -> bool:
        """Whether it is a *kit record*: payload version 0 and no payload. Engines never get those."""
        return not self.payload_version and not self.payload and self.attachment is None

    @classmethod
    def make(cls, before: bytes, txid: int, epoch: int, time_us: int, payload_version: int, payload: bytes,
             attachment: Attachment | None = None) -> Record:
        """Encode a new record that follows the chain `before`."""
        header = _pack((txid, epoch, time_us, payload_version, len(payload), attachment))
        return cls(txid, epoch, time_us, payload_version, payload, attachment, header,
                   xxh3_128_digest(before + header + payload))

    @classmethod
    def decode(cls, before: bytes, header: bytes, payload: bytes) -> Record:
        """Read a record back from its bytes; `before` is the chain before it. Raises `Damaged` if `header` is not a
        record header, or has another payload length."""
        try:
            txid, epoch, time_us, version, length, named = msgpack.unpackb(header, use_list=False)
            attachment = None if named is None else Attachment(*named)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise Damaged(f"not a record header: {error}") from error
        if length != len(payload):
            raise Damaged(f"record {txid} says {length} payload bytes and has {len(payload)}")
        return cls(txid, epoch, time_us, version, payload, attachment, header,
                   xxh3_128_digest(before + header + payload))


@dataclass(frozen=True, slots=True)
class LogRange:
    """Transactions that have just become durable: `first` to `last`, both included, and their records.

    Passing the records costs no extra memory. Do not keep them longer than you need: the log has them too.
    """

    first: int
    last: int
    records: tuple[Record, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A description of a segment, from its header and footer.

    Attributes:
        first, last: txids of its records; last = first - 1 if it has none.
        size: bytes of the file.
        complete_us: every transaction after it has a later commit time.
    """

    path: Path
    ordinal: int
    first: int
    last: int
    first_time_us: int
    last_time_us: int
    complete_us: int
    size: int
    sealed: bool
    epoch: int
    history: History
