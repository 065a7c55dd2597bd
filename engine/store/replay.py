"""Replay: apply the records of a log to an engine. Recovery does this, and so does rolling a copy forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedFormat
from ..model.positions import Position
from ..model.records import Record
from ..wal.attachments import verify_attachment
from ..wal.cursor import Cursor
from ..wal.log import Log

if TYPE_CHECKING:
    from ..contract.engine import Engine

REPLAY_RECORDS = 1000
REPLAY_BYTES = 256 << 10
"""Records and payload bytes per call of `apply`. In memory, an engine may need twenty times as much."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many records a replay applied, and the position of the last of them; None if there was none."""

    records: int
    last: Position | None


def replay(engine: Engine[Any, Any], log: Log, cursor: Cursor, upto: int, soft_bytes: int) -> Replayed:
    """Apply the log's records from the cursor up to `upto`, except kit records, with a checkpoint whenever `soft_bytes`
    are pending. O(log read).

    Raises:
        UnsupportedFormat: a payload version that the engine does not read, or a bulk load that it does not take.
        Damaged, DiskFull.
    """
    batch: list[Record] = []
    count, size, reads = 0, 0, engine.reads_payloads
    last: Position | None = None
    for record in cursor.read(upto):
        if record.is_kit:
            continue
        if record.payload_version not in reads:
            raise UnsupportedFormat(f"transaction {record.txid} has payload version {record.payload_version}; "
                                    f"this {engine.name} engine reads {sorted(reads)}")
        count += 1
        last = record.position
        if record.attachment is not None:
            if batch:
                engine.apply(batch)
                batch, size = [], 0
            from ..contract.engine import BulkEngine

            if not isinstance(engine, BulkEngine):
                raise UnsupportedFormat(f"transaction {record.txid} is a bulk load, which {engine.name} does not take")
            path = log.attachment_path(record.attachment.name)
            verify_attachment(log.files, path, record.attachment)
            engine.apply_bulk(record, path)
            continue
        batch.append(record)
        size += len(record.payload)
        if len(batch) >= REPLAY_RECORDS or size >= REPLAY_BYTES:
            engine.apply(batch)
            if engine.pending_bytes() >= soft_bytes:
                engine.checkpoint(batch[-1].position)
            batch, size = [], 0
    if batch:
        engine.apply(batch)
    return Replayed(count, last)
