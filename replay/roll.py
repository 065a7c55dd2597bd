"""Replay: the second of the two verbs. Log from a source into a log, and log into an engine.

`fetch` appends a source's records verbatim: same bytes, same chain, same branches. If it dies, what it wrote is valid
log, and the next `fetch` continues after it. An attachment is whole and synced before the record that names it is
appended.

`roll` applies log to an open engine up to a transaction, with the loop that recovery uses, and can make the state
durable there. Restore, verify and compact use it. Memory is bounded: by payload bytes for each `apply`, and by
`pending_bytes` for what waits for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine.errors import Damaged, Diverged, SourceUnavailable, UnsupportedFormat
from ..engine.model.positions import History, Position
from ..engine.model.records import Attachment, Record
from ..engine.source.http.wire import Garbled
from ..engine.source.interface import CHUNK_BYTES, Source
from ..engine.store.replay import replay
from ..engine.wal.log import Log
from .files import Progress, silent

if TYPE_CHECKING:
    from ..engine.contract.engine import Engine

BATCH_BYTES = 4 << 20
"""The most bytes of log that are synced in one go. A larger record is synced by itself."""
BATCH_RECORDS = 4096
CHECKPOINT_BYTES = 4 << 20
"""Pending bytes at which a replay checkpoints."""
_NEVER = 1 << 62
_STEP = 20_000
"""Transactions from one report of progress to the next."""


class SourceDamaged(Damaged):
    """The source's own log is damaged, so it cannot give what was asked for. The copy is unchanged."""

    hint = "keep the source's files as they are; a full backup needs only its state and the log after that"


@dataclass(slots=True)
class Fetched:
    """What one `fetch` brought: transactions, bytes of log and of attachments, and the versions of the payloads."""

    records: int = 0
    bytes: int = 0
    payloads: set[int] = field(default_factory=set)


def history_at(history: History, position: Position) -> History:
    """The part of a history that had happened at one of its positions."""
    return History(history.store_id, tuple(b for b in history.branches if b.start.txid <= position.txid))


@contextmanager
def _asking() -> Iterator[None]:
    """In the block, damage means damage to the source's log, not to the copy's."""
    try:
        yield
    except (Garbled, SourceDamaged):
        raise
    except Damaged as error:
        raise SourceDamaged(f"the source's log is damaged: {error.message}") from error


def fetch(source: Source, lease_id: str, log: Log, upto: Position, history: History, *,
          reads: Collection[int] | None = None, chunk_bytes: int = CHUNK_BYTES, batch_records: int = BATCH_RECORDS,
          progress: Progress = silent) -> Fetched:
    """Append what the source has after `log.end`, up to `upto`, and sync it. Where the source began a new branch, the
    log begins it too. O(bytes of log and attachments).

    Args:
        source, lease_id, log, upto: from, under which lease, to where, and up to which position.
        history: the source's. The log's history must be a prefix of it.
        reads: the payload versions that the engine reads; None: any. Kit records always pass.
        chunk_bytes: bytes of an attachment that are fetched at a time.
        batch_records: the most transactions that are synced in one go. There is a bound of 4 MiB too.
        progress: called in this thread for the stages `log` and `attachment`.

    Raises:
        LogPruned, Diverged, LeaseExpired, SourceUnavailable, DiskFull: `log` is valid up to its end.
        SourceDamaged: the source's log is damaged; `log` is valid up to its end.
        UnsupportedFormat: a transaction has a payload version that is not among `reads`. It is not appended.
    """
    fetched, first = Fetched(), log.end.txid
    for n in range(len(log.history.branches), len(history.branches) + 1):
        last = history.branches[n].start if n < len(history.branches) else upto
        last = min(last, upto, key=lambda p: p.txid)
        while log.end.txid < last.txid:
            waiting = _append_until_attachment(source, lease_id, log, last.txid, fetched, first, upto.txid, reads,
                                               batch_records, progress)
            if waiting is not None:
                record, attachment = waiting
                _fetch_attachment(source, lease_id, log, attachment, chunk_bytes, progress)
                log.writer.append_record(record)
                log.writer.sync()
                fetched.records += 1
                fetched.bytes += len(record.header) + len(record.payload) + attachment.size
        if log.end != last:
            raise Diverged(f"the source announced {last} and sent {log.end}")
        if n < len(history.branches) and history.branches[n].start.txid <= upto.txid:
            log.writer.extend_history(History(history.store_id, history.branches[: n + 1]))
    return fetched


def _append_until_attachment(source: Source, lease_id: str, log: Log, last: int, fetched: Fetched, first: int,
                             upto: int, reads: Collection[int] | None, batch_records: int, progress: Progress
                             ) -> tuple[Record, Attachment] | None:
    """Append up to `last`, or up to the first record that names an attachment, which is returned and not appended.
    The stream has ended when this returns, so that the source is free to send the attachment."""
    unsynced = count = 0
    end = log.end
    for record in _arriving(source, lease_id, log.end, last):
        if reads is not None and record.payload_version not in reads and not record.is_kit:
            log.writer.sync()
            raise UnsupportedFormat(f"transaction {record.txid} of the source has payload version "
                                    f"{record.payload_version}; the engine here reads {sorted(reads)}")
        if not record.is_kit:
            fetched.payloads.add(record.payload_version)
        if record.attachment is not None:
            log.writer.sync()
            return record, record.attachment
        log.writer.append_record(record)
        end = record.position
        size = len(record.header) + len(record.payload)
        fetched.records += 1
        fetched.bytes += size
        unsynced += size
        count += 1
        if unsynced >= BATCH_BYTES or count >= batch_records:
            log.writer.sync()
            unsynced = count = 0
            progress("log", end.txid - first, upto - first)
    log.writer.sync()
    progress("log", end.txid - first, upto - first)
    if end.txid < last:
        raise SourceUnavailable(f"the source's log stopped at transaction {end.txid}, short of {last}")
    return None


def _arriving(source: Source, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
    with _asking():
        yield from source.read_log(lease_id, after, upto)


def _fetch_attachment(source: Source, lease_id: str, log: Log, attachment: Attachment, chunk_bytes: int,
                      progress: Progress) -> None:
    writer = log.import_attachment(attachment)
    try:
        for offset in range(0, attachment.size, chunk_bytes):
            with _asking():
                piece = source.read_attachment(lease_id, attachment.name, offset,
                                               min(chunk_bytes, attachment.size - offset))
            writer.write(piece)
            progress("attachment", min(offset + chunk_bytes, attachment.size), attachment.size)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def carry(log: Log, into: Log, upto: Position) -> None:
    """Append to `into` the records of `log` after its end, up to `upto`, and the branches that begin there. They may
    name no attachment. Durable on return. O(log read). Raises `LogPruned`, `Damaged`, `DiskFull`."""
    branches = log.history.branches
    for n in range(len(into.history.branches), len(branches) + 1):
        begins = n < len(branches) and branches[n].start.txid <= upto.txid
        for record in log.read(into.end.txid, branches[n].start.txid if begins else upto.txid):
            into.writer.append_record(record)
        into.writer.sync()
        if not begins:
            return
        into.writer.extend_history(History(log.history.store_id, branches[: n + 1]))


@dataclass(frozen=True, slots=True)
class Rolled:
    """The position in the log that a `roll` reached, and how many transactions it applied. The engine's own position
    is lower if the last records are kit records."""

    position: Position
    records: int


def roll(engine: Engine[Any, Any], log: Log, upto: int, *, durable: bool, progress: Progress = silent) -> Rolled:
    """Apply to `engine`, just opened, the records after its position, up to transaction `upto`. O(bytes of log).

    Args:
        engine: its position must lie in the log.
        log: the log that has the records.
        upto: a durable transaction, not before the engine's position.
        durable: checkpoint at the end, and before that whenever much is pending. False for an engine opened read-only:
            then no record may name an attachment, and the caller must make sure that all of it fits into memory.
        progress: called in this thread for the stage `replay`.

    Raises:
        LogPruned, Damaged, DiskFull.
        UnsupportedFormat: the engine does not read a record's payload version.
    """
    first = last = engine.position
    applied = 0
    if log.chain_at(first.txid) != first.chain:
        raise Damaged(f"the state and its log disagree about transaction {first.txid}")
    for start in range(first.txid, upto, _STEP):
        stop = min(start + _STEP, upto)
        replayed = replay(engine, log, log.cursor(start), stop, CHECKPOINT_BYTES if durable else _NEVER)
        last, applied = replayed.last or last, applied + replayed.records
        progress("replay", stop - first.txid, upto - first.txid)
    position = Position(upto, log.chain_at(upto))
    if durable:
        engine.checkpoint(last)
    return Rolled(position, applied)
