"""Animals in backup and restore: what has bitten the users of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgpack
from workloads import keyed
from zoo import part
from zoo_states import TrustsItsFile

from holdfast.backup.destination import in_place
from holdfast.backup.directories import Patience
from holdfast.backup.report import Bounds, Report
from holdfast.backup.restore import _point
from holdfast.backup.target.full import take_full
from holdfast.backup.target.job import Job
from holdfast.backup.target.promote import TargetImage
from holdfast.backup.target.target import Target
from holdfast.engine.contract.engine import Context, Engine
from holdfast.engine.contract.image import ImageFile
from holdfast.engine.env import Env, Files
from holdfast.engine.model.positions import History, Position
from holdfast.engine.model.records import Attachment, Record
from holdfast.engine.source.http.client import HttpSource
from holdfast.engine.source.interface import Confirmation, Source, SourceInfo, compare
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Generation, Identity, Layout, bring_into_force
from holdfast.engine.wal.log import Log
from holdfast.replay.files import DigestedFiles, Progress, silent
from holdfast.replay.roll import Fetched, fetch

_confirm, _txid_at, _read_log = LocalSource.confirm, Log.txid_at, HttpSource.read_log


@part(
    LocalSource, caught_by="BackupContract.test_a_backup_during_writes_is_of_the_position_it_names",
    also=["ReplayContract.test_a_copy_seeded_during_writes_is_right"], on="records")
class ConfirmsTooEarly(LocalSource):
    """A copy counts from the position at which it was begun. What the engine wrote into its files while they were read
    is in the copy, and the log that would put it right is not."""

    def confirm(self, lease_id: str) -> Confirmation:
        confirmed = _confirm(self, lease_id)
        with self._leases.using(lease_id) as lease:
            begun = Position(lease.txid, self._store.log.chain_at(lease.txid))
        return replace(confirmed, consistent_from=begun, published=begun)


@part(
    "holdfast.backup.target.full.take_full", caught_by="KitContract.test_a_full_disk_leaves_a_backup_to_go_on_with",
    also=["KitContract.test_a_source_that_dies_leaves_a_backup_to_go_on_with"])
def deletes_the_old_one_first(job: Job, before: Target | None, why: str) -> Report:
    """Where an incremental is not possible, the old backup is deleted and a full one begun. Neo4j did so; if the full
    one then fails, there is none."""
    if before is not None:
        job.layout.files.remove_tree(job.layout.current().path)
        job.layout.files.unlink(job.layout.root / "CURRENT")
    return take_full(job, before, why)


@part("holdfast.backup.target.full.check", caught_by="KitContract.test_an_inconsistent_copy_is_no_backup")
def nothing_is_checked(engine: Engine[Any, Any], where: str) -> None:
    """The copy is opened and not walked. The report says that it was checked."""


@part("holdfast.backup.restore._point", caught_by="KitContract.test_every_transaction_within_bounds_can_be_restored")
def any_point_will_do(log: Log, bounds: Bounds, to_txid: int | None, at: datetime | None) -> int:
    """A point beyond the backup's end is taken for its end: who asks for yesterday evening gets yesterday morning, and
    is not told (Litestream 1038)."""
    if to_txid is not None:
        to_txid = max(bounds.first, min(to_txid, bounds.last))
    return _point(log, bounds, to_txid, at)


@part(
    DigestedFiles, caught_by="KitContract.test_a_flipped_byte_in_the_image_is_found_or_harmless",
    also=["KitContract.test_a_cut_missing_or_swapped_file_is_found_or_harmless",
          "KitContract.test_parts_of_two_backups_do_not_make_one"], on=lambda: keyed(TrustsItsFile))
class DigestsNotCompared(DigestedFiles):
    """The digests of an image are kept and never compared. (Tried on an engine that has no checksums of its own.)"""

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._files.read(self._state / name)[offset : offset + length]

    def verify(self, progress: Progress = silent) -> int:
        return sum(file.size for file in self._copied.values())


@part(History, caught_by="KitContract.test_a_restored_store_goes_on_beside_its_twin")
class SameBranchAfterRestore(History):
    """A restored store continues on the branch of the one it was restored from: both give out the same numbers, and
    nothing can tell their backups apart."""

    def extended(self, branch_id: bytes, start: Position) -> History:
        return History(self.store_id, self.branches)


@part("holdfast.backup.target.incremental.compare", caught_by="KitContract.test_a_foreign_store_is_refused")
def nobody_asks_who(info: SourceInfo, history: History, end: Position, accept_branch: bytes | None = None) -> None:
    """An incremental goes to whatever answers at the address: last month's port is another store today."""


@part(
    "holdfast.backup.target.full.bring_into_force",
    caught_by="KitContract.test_a_killed_backup_leaves_one_to_go_on_with")
def in_force_too_early(layout: Layout, partial: Generation) -> Generation:
    """The new generation comes into force before it has its name, so that a run that dies here leaves a target that
    points nowhere."""
    layout.files.write_durably(layout.root / "CURRENT", partial.name.removesuffix(".partial").encode() + b"\n")
    return bring_into_force(layout, partial)


@part(Job, caught_by="KitContract.test_a_backup_leaves_nothing_held")
class LeakedLease(Job):
    """A backup does not give its lease back. Until it expires, the log and the image that it holds cannot go, and after
    some backups there is no lease left."""

    def release(self, lease_id: str) -> None: ...


@part(
    "holdfast.backup.target.scratch.copy_files",
    caught_by="KitContract.test_a_backup_stands_by_itself", on="records")
def copies_by_link(read: Any, listed: Sequence[ImageFile], into: Path, *, env: Env, **how: Any) -> None:
    """A restore links to the files of the backup, which takes no time and no room, until the backup is moved."""
    env.files.make_directory(into)
    for file in listed:
        (into / file.name).symlink_to(read.__self__._state / file.name)


@part("holdfast.backup.verify.check", caught_by="KitContract.test_looking_at_a_backup_changes_no_byte")
def leaves_its_mark(engine: Engine[Any, Any], where: str) -> None:
    """`verify` notes in the backup that it was verified: the next one finds that it has changed."""
    (Path(where) / "VERIFIED").touch()


@part(
    "holdfast.backup.target.compact.bring_into_force",
    caught_by="KitContract.test_a_compacted_backup_equals_the_store")
def never_in_force(layout: Layout, partial: Generation) -> Generation:
    """A compaction makes its new generation and leaves the old one in force. The log goes on growing, and each run
    compactions again."""
    return layout.current()


@part(
    "holdfast.backup.target.incremental.fetch",
    caught_by="KitContract.test_incrementals_make_what_a_full_backup_makes")
def forgets_the_last(source: Source, lease_id: str, log: Log, upto: Position, history: History, **how: Any) -> Fetched:
    """An incremental ends one before the end, because its author counted from nought."""
    if upto.txid > log.end.txid:
        upto = Position(upto.txid - 1, source.chain_at(upto.txid - 1))
    return fetch(source, lease_id, log, upto, history, **how)


@part("holdfast.backup.restore.destination", caught_by="KitContract.test_a_restore_replaces_nothing_unasked")
@contextlib.contextmanager
def replaces_what_is_there(final: Path, identity: Identity, force: bool, patience: Patience, env: Env
                           ) -> Iterator[tuple[Generation, Env]]:
    """A restore takes the place of whatever stands there, asked or not, and open or not."""
    env.files.remove_tree(final)
    with in_place(Layout(final, env.files), identity, patience, env) as made:
        yield made


@part("holdfast.backup.target.incremental.compare", caught_by="KitContract.test_a_restored_twin_is_refused")
def knows_no_branches(info: SourceInfo, history: History, end: Position, accept_branch: bytes | None = None) -> None:
    """The store's id is compared and its branch is not: a restored twin, gone another way, is appended to the backup of
    the first one."""
    compare(info, history, end, accept_branch=info.history.branch.id)


@part(
    TargetImage, caught_by="KitContract.test_a_target_opened_for_writing_is_a_store_of_its_own")
class StillABackup(TargetImage):
    """A backup that is opened for writing is still taken for a backup, and the next incremental goes on top of what was
    written to it."""

    def promote(self, kind: Any, context: Context) -> None:
        self._manifest = replace(self._manifest, promoted_branch=context.env.randomness.token(16))


@part(
    TargetImage, caught_by="KitContract.test_a_copy_that_is_not_replayed_far_enough_does_not_open")
class OpensHalfACopy(TargetImage):
    """A moving copy is opened although its log ends before the point from which it counts. Nobody asks its manifest."""

    log_end = property(lambda self: None)

    def check(self, log: Log) -> None: ...


@part("holdfast.backup.restore._point", caught_by="KitContract.test_an_empty_store_can_be_backed_up_and_restored")
def zero_is_nothing(log: Log, bounds: Bounds, to_txid: int | None, at: datetime | None) -> int:
    """`to_txid or the last one`: who asks for transaction 0 gets the end."""
    return _point(log, bounds, to_txid or None, at)


@part("holdfast.replay.roll._fetch_attachment", caught_by="BackupContract.test_bulk_loads_are_in_backups", on="staging")
def leaves_out_attachments(source: Source, lease_id: str, log: Log, attachment: Attachment, chunk_bytes: int,
                           progress: Progress) -> None:
    """The records of bulk loads are backed up and the files that they name are not. Nobody notices before a
    restore."""


@part(Log, caught_by="KitContract.test_every_time_within_bounds_can_be_restored")
class JustBefore(Log):
    """A restore to a time ends before what was committed at that very time, although "at or before" was said."""

    def txid_at(self, time_us: int) -> int:
        return _txid_at(self, time_us - 1)


@part("holdfast.backup.run.detect", caught_by="KitContract.test_what_is_no_backup_is_not_made_one")
def never_looks(layout: Layout, env: Env) -> Target | None:
    """A backup goes to any directory that is named, whatever is in it."""
    return Target.open(layout, env) if layout.is_store() else None


@part(
    "holdfast.backup.target.full.take_full",
    caught_by="KitContract.test_where_log_was_pruned_the_backup_is_a_new_full_one")
def says_nothing(job: Job, before: Target | None, why: str) -> Report:
    """Where an incremental is not possible a full one is taken, and nobody is told why every night takes five
    hours."""
    return take_full(job, before, "")


@part(
    "holdfast.engine.model.document.decode",
    caught_by="KitContract.test_a_flipped_byte_in_a_document_is_found_or_harmless",
    also=["KitContract.test_any_flipped_byte_is_found_or_harmless"])
def trusts_documents(data: bytes, magic: bytes, version: int, path: Path) -> dict[str, Any]:
    """Documents have checksums that nobody compares. A damaged one is read as far as it goes, and then there is a
    traceback, if there is anything at all."""
    body: dict[str, Any] = msgpack.unpackb(data[16:-16], strict_map_key=False)
    return body


@part(
    "holdfast.engine.store.replay.verify_attachment", "holdfast.engine.wal.log.verify_attachment",
    caught_by="KitContract.test_a_flipped_byte_in_a_bulk_load_is_found_or_harmless", on="staging")
def trusts_attachments(files: Files, path: Path, attachment: Attachment) -> None:
    """Files of bulk loads have checksums in the records that name them, and nobody compares them."""


@part(HttpSource, caught_by="KitContract.test_a_backup_over_http_while_threads_write")
class CutOffIsTheEnd(HttpSource):
    """An answer that is cut off is taken for a whole one: the log ends where the connection did."""

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        yield from list(_read_log(self, lease_id, after, upto))[:-1]
