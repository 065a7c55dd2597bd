"""What a member takes from the archive before it begins a branch.

A promotion that is forced does without the members that are gone. What only those had is in the archive all the same,
if it was archived. So the member appends it, and fences the archive's writer where its own log ends then. What is
archived was published, so it stands, and whatever the member has in its place was never shown by anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from ...engine.errors import Diverged, LogPruned, OtherBranch
from ...engine.model.records import Attachment, Record
from ...engine.store.store import Store
from ...replay.ha.following import MustSeed, common_position
from ...replay.ha.plugin import LogToBranch
from . import names
from .archive import Archive, Tail, run_with
from .archiver import Archiver
from .attached import read_attachment
from .sealed import Seal
from .storage.interface import ObjectStore

logger = logging.getLogger("holdfast.repository")

_BURST_BYTES = 1 << 20
"""About how much is appended and synced at a time."""


def extend(log: LogToBranch, archive: Callable[[], Archive], store: ObjectStore, seal: Seal,
           begin: Callable[[], Archiver]) -> int:
    """Append what the archive of the log's branch has beyond the log, and fence its writer there. Returns how many
    transactions that were. O(bytes).

    Args:
        log: of a member that leads and has not begun a branch yet.
        archive: as of now. store, seal: it is read with.
        begin: becomes the archiver of the branch.

    Raises:
        SourceUnavailable: the member does not lead any more.
        StorageUnavailable, Damaged, Fenced, Diverged, DiskFull: the same can be tried again.
    """
    branch, before = log.store.history.branch.id.hex(), log.end().txid
    while True:
        found = _Archived(archive(), branch)
        reached = log.end()
        try:
            found.append_to(log, store, seal)
        except MustSeed as error:
            logger.error("the archive of branch %s does not go on where this member's log ends, so nothing is taken "
                         "from it; what it has stays restorable: %s", branch[:8], error.message)
            return 0
        try:
            begin().close()
        except OtherBranch as error:
            logger.warning("%s", error)
        except Diverged:  # the writer before has gone on meanwhile
            if log.end() == reached:
                raise
            continue
        if (taken := log.end().txid - before) > 0:
            logger.warning("%d transactions that only the archive had are taken from it, up to %d", taken,
                           log.end().txid)
        return taken


class _Archived:
    """The archived log of a branch, as of now."""

    def __init__(self, archive: Archive, branch: str) -> None:
        self._archive, self._branch = archive, branch
        self._tail: Tail | None = archive.tail(branch) if branch in archive.state.branches else None

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        """Raises `LogPruned` if it does not reach back to there."""
        assert self._tail is not None
        if txid == self._tail.end.txid:
            return self._tail.end.chain
        run = run_with(self._archive.state.branches[self._branch], txid)
        if run is not None and run.after.txid == txid:
            return run.after.chain
        for record in self._records(txid - 1, txid):
            if record.txid == txid:
                return record.chain
        raise LogPruned(f"the archive of branch {self._branch[:8]} does not have transaction {txid}")

    def _records(self, after: int, upto: int) -> Iterator[Record]:
        for _, records in self._archive.read(self._branch, after, upto):
            for record in records:
                if after < record.txid <= upto:
                    yield record

    def append_to(self, log: LogToBranch, store: ObjectStore, seal: Seal) -> None:
        """Append to a log what it lacks. Raises `MustSeed` if the two do not fit together."""
        tail = self._tail
        if tail is None or tail.end.txid <= log.published():
            return
        common = common_position(log, self, tail.end.txid)
        if common == tail.end:
            return  # and whatever the log has beyond it
        if log.end() != common:
            log.cut(common)
        folder = names.branch_files(self._branch)
        records = self._records(common.txid, tail.end.txid)
        while burst := _burst(records):
            for record in burst:
                if record.attachment is not None:
                    _bring(log.store, store, seal, record.attachment, folder)
            log.append(burst)
        if log.end() != tail.end:
            raise MustSeed(f"the archive has a gap after transaction {log.end().txid}", branched=False)


def _burst(records: Iterator[Record]) -> list[Record]:
    """The next records, up to about `_BURST_BYTES`, or one with an attachment."""
    burst, size = list(islice(records, 1)), 0
    while burst and (size := size + len(burst[-1].payload)) < _BURST_BYTES and burst[-1].attachment is None:
        more = list(islice(records, 1))
        if not more:
            break
        burst += more
    return burst


def _bring(to: Store[Any, Any], store: ObjectStore, seal: Seal, attachment: Attachment, folder: str) -> None:
    out = to.log.import_attachment(attachment)
    try:
        for piece in read_attachment(store, seal, attachment, folder):
            out.write(piece)
        out.finish()
    except BaseException:
        out.abandon()
        raise
