"""Animals in the kit's log, leases and replay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_digest
from zoo import part

from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import File, Files
from holdfast.engine.errors import DiskFull
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.source.interface import Confirmation
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.leases import Lease, Leases, LeaseTable
from holdfast.engine.store.replay import Replayed, replay
from holdfast.engine.wal.cursor import Cursor
from holdfast.engine.wal.listing import Listing, recover
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.recovery import LogRecovery
from holdfast.engine.wal.segment import SegmentWriter
from holdfast.engine.wal.writer import LogWriter

# --- the log -------------------------------------------------------------------------------------------------------

_sync_group, _read, _make_room = SegmentWriter.sync_group, Log.read, LogWriter.make_room


@part(SegmentWriter, caught_by="KitContract.test_nothing_is_acknowledged_before_it_is_synced")
class SkippedSync(SegmentWriter):
    """A group is written and not synced before its commits return. It survives every crash of the process and no
    power cut."""

    def sync_group(self, *group: Any) -> None:
        file = self._file
        self._file = _Unsynced(file)  # type: ignore[assignment]
        _sync_group(self, *group)
        self._file = file


class _Unsynced:
    """A file of which no sync comes through."""

    def __init__(self, file: File | None) -> None:
        self._file = file

    def datasync(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@part(Log, caught_by="KitContract.test_order_is_enforced_and_gaps_are_refused")
class SilentGap(Log):
    """Asked for log that was pruned, the reader begins at the oldest record there is and says nothing. RocksDB's
    `GetUpdatesSince` did so (issue 10007)."""

    def read(self, after: int, upto: int | None = None) -> Iterator[Record]:
        yield from _read(self, max(after, self.base.txid), upto)


@part(LogWriter, caught_by="KitContract.test_order_is_enforced_and_gaps_are_refused")
class AnyOrder(LogWriter):
    """A record is appended to a copy's log as it comes, whatever was there before it."""

    def append_record(self, record: Record) -> None:
        self._enqueue(record, at_once=False)


@part(
    "holdfast.engine.wal.recovery.later_watermark",
    caught_by="KitContract.test_a_flipped_byte_in_the_log_is_found")
def damage_is_a_torn_tail(file: File, seed: int, offset: int) -> int | None:
    """Recovery stops at the first bad byte and takes all that follows for a torn end. Transactions that were
    acknowledged long ago are cut without a word, as logs that end at the first bad checksum do."""
    return None


class _Anything(int):
    """A number that is equal to every other."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@part(
    "holdfast.engine.wal.format.xxh3_64_intdigest",
    caught_by="KitContract.test_a_flipped_byte_in_the_log_is_found")
def checksums_not_compared(data: bytes, seed: int = 0) -> int:
    """Groups and records have checksums, and the reader does not look at them."""
    return _Anything()


class _AnyDigest(bytes):
    """A checksum that is equal to every other."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@part(
    "holdfast.engine.wal.format.xxh3_128_digest",
    caught_by="KitContract.test_a_flipped_byte_in_the_log_is_found_or_harmless")
def footers_not_compared(data: bytes) -> bytes:
    """What a sealed segment says of itself has a checksum, and the reader takes it on trust."""
    return _AnyDigest(xxh3_128_digest(data))


@part("holdfast.engine.wal.recovery.LogRecovery", caught_by="KitContract.test_a_flipped_byte_in_the_log_is_found")
def nobody_is_told(*found: Any) -> LogRecovery:
    """What recovery cuts off the log's end is told nobody: that a disk loses what it was given goes unnoticed for
    years."""
    return LogRecovery(clean=False)


@part("holdfast.engine.wal.log.recover", caught_by="KitContract.test_reading_only_changes_nothing")
def recovers_to_read(files: Files, directory: Path, ordinals: list[int], *, engine_txid: int, read_only: bool
                     ) -> tuple[Listing, LogRecovery]:
    """Whoever opens a store to read it recovers its log, and cuts it: while the writer still runs, or in the only
    copy that is left to look at."""
    return recover(files, directory, ordinals, engine_txid=engine_txid, read_only=False)


@part(Log, caught_by="KitContract.test_a_flipped_byte_in_the_log_of_a_closed_store_is_found")
class VerifiesNothing(Log):
    """`verify` finds that the files are there, and calls that verified: of what is in them it reads no byte."""

    def verify(self) -> None:
        assert all(self.files.exists(segment.path) for segment in self._segments)


@part(LogWriter, caught_by="KitContract.test_a_full_disk_rolls_back")
class NumberedBeforeRoom(LogWriter):
    """A transaction has its number before there is room for it. When there is none the number is gone, and a later
    reader finds a hole."""

    def make_room(self, capacity: int = 0) -> None:
        try:
            _make_room(self, capacity)
        except DiskFull:
            self.appended = Position(self.appended.txid + 1, self.appended.chain)
            raise


@part(LogWriter, caught_by="EngineContract.test_running_out_of_descriptors_or_memory")
class PoisonedByALimit(LogWriter):
    """Memory that is lacking for a moment is taken for a disk that fails: the store takes no more writes."""

    def _patiently(self, step: Any, *args: Any) -> Any:
        return step(*args)


@part(
    LogWriter, caught_by="EngineContract.test_what_is_closed_is_clean",
    also=[
        "EngineContract.test_a_whole_life_of_a_store",
        "BackupContract.test_a_whole_life_with_backups",
        "BackupContract.test_any_history_of_a_store_and_its_backups"])
class NeverSealed(LogWriter):
    """Closing syncs the log and does not seal it: every opening is a recovery."""

    def close(self) -> None:
        self.sync()
        self.abandon()


@part(Log, caught_by="KitContract.test_a_bulk_load_of_unknown_outcome_is_all_or_nothing", on="staging")
class KeepsOrphans(Log):
    """What a crash has left half-made beside the log stays there for ever: nothing names it, and nobody dares to
    delete it."""

    def _sweep(self, names: list[str]) -> None: ...

    def _look_at_attachments(self, *, sweep: bool) -> None: ...


# --- leases and copies ---------------------------------------------------------------------------------------------


@part(
    Leases, caught_by="KitContract.test_a_lease_holds_what_it_covers",
    also=["KitContract.test_pruning_keeps_what_a_running_backup_needs"])
class PrunesPastLeases(Leases):
    """Pruning asks what the settings say, not who still reads: a backup that takes longer than usual loses its log
    half-way."""

    @contextlib.contextmanager
    def frozen(self) -> Iterator[int | None]:
        yield None


@part(LeaseTable, caught_by="KitContract.test_an_expired_lease_aborts_before_it_frees")
class FreedUnderReaders(LeaseTable):
    """A lease whose time is over is freed at once, and the image is closed under whoever reads it."""

    def _bury(self, lease: Lease) -> Lease | None:
        lease.dead = True
        freed = self._leases.pop(lease.id, None)
        self._note_floor()
        return freed


@part(LocalSource, caught_by="KitContract.test_an_expired_lease_aborts_before_it_frees")
class AlwaysConfirms(LocalSource):
    """The source confirms every copy, also one whose lease was over before its last byte."""

    def confirm(self, lease_id: str) -> Confirmation:
        published = self._store.published
        return Confirmation(consistent_from=published, published=published,
                            complete_until_us=self._store.complete_until_us())


@part(
    LocalSource, caught_by="KitContract.test_two_histories_never_mix",
    also=["KitContract.test_a_store_with_another_past_is_refused"])
class SameNumberSameStore(LocalSource):
    """Two stores are taken for one where their last transactions have the same number. Nobody looks at the chain."""

    def _match(self, position: Position) -> None: ...


@part("holdfast.replay.roll.replay", caught_by="ReplayContract.test_rolling_to_any_transaction_gives_the_model_there")
def one_too_many(engine: Engine[Any, Any], log: Log, cursor: Cursor, upto: int, soft_bytes: int) -> Replayed:
    """A replay to a transaction takes the next one along: "up to" and "before" are not the same."""
    return replay(engine, log, cursor, min(upto + 1, log.end.txid), soft_bytes)
