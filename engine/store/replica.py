"""What a member of a cluster needs of its store: append another log's records, publish them later, cut them, take over.

A store opened with `replica=` *follows*. `append` makes records durable, and `publish` applies and shows them. So what
is durable and not published is in no state, no view and no image, and `cut` can remove it. With `accept` the store
becomes a primary, which commits as any store does. There is no way back: a deposed primary is closed and opened again
with `replica=`.

A state that is not atomic may hold records above its position. Only replaying them makes it consistent, so they must
not stay unapplied after an opening. Before an engine with such a state gets a record, `APPLIED` in the log's directory
says so durably.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..contract.engine import BulkEngine, Engine
from ..env import Env, Files
from ..errors import Damaged, Diverged, HoldfastError, InvalidInput, Unsupported, UnsupportedFormat
from ..model import document
from ..model.positions import Branch, History, Position
from ..model.records import Record
from ..wal.attachments import verify_attachment
from ..wal.cursor import Cursor
from .backpressure import Backpressure
from .checkpoints import Checkpoints
from .group_commit import GroupCommit
from .replay import REPLAY_BYTES, REPLAY_RECORDS
from .write_path import WritePath

KEPT_BYTES = 8 << 20
"""Bytes of records that are kept in memory from `append` to `publish`."""
APPLIED = "APPLIED"
_MAGIC, _VERSION = b"HFAPPLYD", 1


def noted(files: Files, log: Path) -> int:
    """The highest transaction that a state that is not atomic may hold, as noted in its log's directory; 0 if none."""
    path = log / APPLIED
    if not files.exists(path):
        return 0
    txid = document.read(files, path, _MAGIC, _VERSION).get("txid")
    if type(txid) is not int:
        raise Damaged("lacks the transaction", path=str(path))
    return txid


class Replica:
    """See the module's text. From any thread; `append`, `publish`, `start_epoch`, `cut` and `accept` run one at a time.

    Attributes:
        accepting: whether the store is a primary.
        last_epoch: the epoch of the last record. If the log has none, that of the log's first segment.
    """

    def __init__(self, engine: Engine[Any, Any], group_commit: GroupCommit, checkpoints: Checkpoints,
                 backpressure: Backpressure, write_path: WritePath[Any], env: Env) -> None:
        """The arguments are the parts of one store."""
        self._engine = engine
        self._log = group_commit.log
        self._writer = group_commit.log.writer
        self._group_commit = group_commit
        self._watermarks = group_commit.watermarks
        self._checkpoints = checkpoints
        self._backpressure = backpressure
        self._write_path = write_path
        self._usability = write_path.usability
        self._files = env.files
        self._one = env.scheduler.lock()
        group_commit.member = True
        self._recent: deque[Record] = deque()  # the last records, durable and not published
        self._recent_bytes = 0
        self._cursor: Cursor | None = None
        self._branches_ahead: deque[Branch] = deque()  # of the followed log, which begin where this one has yet to come
        self.accepting = False
        self.last_epoch = self._writer.epoch = self._log.last_epoch()
        directory = self._usability.directory
        self.refuse(lambda: Unsupported(f"{directory} is open as a replica, which takes no transactions",
                                        hint="write to the primary"))
        if not self._engine.abilities.atomic:
            self._checkpoints.handing = self._note

    def _note(self, position: Position) -> None:
        document.write(self._files, self._log.directory / APPLIED, _MAGIC, _VERSION, {"txid": position.txid})

    # --- following -------------------------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> Position:
        """Append another log's records, byte for byte, and sync them. Their attachments must be there already, from
        `log.import_attachment`. Returns the durable end. O(bytes).

        Raises:
            InvalidInput: one does not follow the record before it, or its epoch is lower. Those before it are durable.
            StorePoisoned: writing failed; close the store and open it again.
            StoreClosed.
        """
        with self._one:
            self._check_following()
            wrong: HoldfastError | None = None
            taken: list[Record] = []
            for record in records:
                if self._branches_ahead and record.txid > self._branches_ahead[0].start.txid:
                    self._sync(taken)
                    taken = []
                    self._begin_branches()
                if record.epoch < self.last_epoch:
                    wrong = InvalidInput(f"transaction {record.txid} is of epoch {record.epoch}, and the record before "
                                         f"it of epoch {self.last_epoch}", hint="a primary that was replaced sent it")
                    break
                try:
                    self._writer.append_record(record)
                except InvalidInput as error:
                    wrong = error
                    break
                except BaseException as error:
                    self._failed(error)
                taken.append(record)
                self.last_epoch = record.epoch
            self._sync(taken)
            if wrong is not None:
                raise wrong
            return self._watermarks.durable

    def adopt(self, history: History) -> None:
        """Continue on the branches of another log, which has every record of this one. A branch that begins further on
        is begun when `append` comes there. Call it before the first `append` from that log, and after `cut`.

        Raises:
            Diverged: that log is of another store, or left this log's branch before this log's end.
            StorePoisoned, StoreClosed: as `append`.
        """
        with self._one:
            self._check_following()
            ours, theirs, end = self._log.history, history.branches, self._watermarks.durable
            same = 0
            while same < min(len(ours.branches), len(theirs)) and ours.branches[same] == theirs[same]:
                same += 1
            if history.store_id != ours.store_id or not same:
                raise Diverged("the other log is of another store")
            if any(branch.start.txid < end.txid for branch in (*ours.branches[same:], *theirs[same:])):
                raise Diverged(f"this log is on branch {ours.branch}, and the other one on branch {history.branch}; "
                               f"they part before transaction {end.txid}")
            if same < len(ours.branches):  # a branch without a record: whoever began it came no further
                self._remove(end)
            self._branches_ahead = deque(theirs[same:])
            self._begin_branches()

    def _begin_branches(self) -> None:
        """Begin the branches that start at the end of this log, which is durable."""
        ahead = self._branches_ahead
        while ahead and ahead[0].start == self._watermarks.durable:
            self._begin_branch(ahead[0].id)
            ahead.popleft()

    def _begin_branch(self, branch: bytes) -> None:
        writer = self._writer
        try:
            writer.extend_history(writer.history.extended(branch, writer.appended))
        except BaseException as error:
            self._failed(error)

    def start_epoch(self, epoch: int, branch: bytes | None = None) -> Record:
        """Append and sync the first record of an epoch, a kit record. Its time is after the last record's. With
        `branch`, begin that branch here first, unless this log is on it or was on it.

        Raises:
            InvalidInput: `epoch` is not above that of the last record.
            StorePoisoned, StoreClosed: as `append`.
        """
        with self._one:
            self._check_following()
            self._branches_ahead.clear()
            if epoch <= self.last_epoch:
                raise InvalidInput(f"epoch {epoch} cannot begin after a record of epoch {self.last_epoch}",
                                   hint="ask the coordinator for a higher one")
            if branch is not None and all(known.id != branch for known in self._log.history.branches):
                self._begin_branch(branch)
            self._writer.epoch = epoch
            try:
                record = self._writer.append(b"", 0)
            except BaseException as error:
                self._failed(error)
            self.last_epoch = epoch
            self._sync([record])
            return record

    def _sync(self, records: list[Record]) -> None:
        try:
            self._writer.sync()
        except BaseException as error:
            self._failed(error)
        self._group_commit.followed(self._log.end)
        for record in records:
            self._recent.append(record)
            self._recent_bytes += len(record.payload)
        while self._recent_bytes > KEPT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().payload)

    def publish(self, upto: int) -> Position:
        """Apply and show what is durable up to transaction `upto`; a lower one than before changes nothing. Returns the
        published position. O(bytes of new records).

        Raises:
            UnsupportedFormat: the engine does not read a record. What comes before it is published.
            RolledBack: the checkpoint does not catch up; try again.
            StorePoisoned: the engine failed; close the store and open it again.
            StoreClosed, Damaged.
        """
        with self._one:
            self._check_following()
            upto = min(upto, self._watermarks.durable.txid)
            pressure, usability = self._backpressure, self._usability
            batch: list[Record] = []
            size = 0
            for record in self._unpublished(upto):
                if batch and (record.attachment is not None or batch[-1].attachment is not None
                              or len(batch) >= REPLAY_RECORDS or size >= REPLAY_BYTES):
                    self._show(batch)
                    batch, size = [], 0
                    if self._engine.pending_bytes() >= pressure.slow:
                        pressure.wait(lambda: usability.ended is None)
                self._check_readable(record, batch)
                batch.append(record)
                size += len(record.payload)
            if batch:
                self._show(batch)
            return self._watermarks.published

    def _unpublished(self, upto: int) -> Iterator[Record]:
        recent = self._recent
        published = self._watermarks.published
        while recent and recent[0].txid <= published.txid:
            self._recent_bytes -= len(recent.popleft().payload)
        first = recent[0].txid if recent else upto + 1
        if published.txid < min(upto, first - 1):
            if self._cursor is None or self._cursor.txid != published.txid:
                self._cursor = self._log.cursor(published)
            yield from self._cursor.read(min(upto, first - 1))
        for record in list(recent):
            if record.txid > upto:
                return
            yield record

    def _check_readable(self, record: Record, before: list[Record]) -> None:
        engine, reads = self._engine, self._engine.reads_payloads
        if record.is_kit or (record.payload_version in reads
                             and (record.attachment is None or isinstance(engine, BulkEngine))):
            return
        if before:
            self._show(before)
        what = "a bulk load" if record.payload_version in reads else f"of payload version {record.payload_version}"
        raise UnsupportedFormat(f"transaction {record.txid} is {what}; this {engine.name} engine reads "
                                f"{sorted(reads)}", hint="install the primary's release of the engine here too")

    def _show(self, batch: list[Record]) -> None:
        """Apply a batch and publish it. A bulk record is a batch by itself."""
        self._write_path.lock.run(lambda: self._apply(batch), self._usability.check)
        self._group_commit.advance()

    def _apply(self, batch: list[Record]) -> None:
        self._usability.check()
        group_commit = self._group_commit
        if group_commit.poison is not None:
            raise group_commit.poisoned()
        theirs = [record for record in batch if not record.is_kit]
        if theirs:
            self._checkpoints.hand(theirs[-1].position)
        try:
            if theirs:
                attachment = theirs[0].attachment
                if attachment is None:
                    self._engine.apply(theirs)
                else:
                    path = self._log.attachment_path(attachment.name)
                    verify_attachment(self._files, path, attachment)
                    self._checkpoints.apply_bulk(theirs[0], path)
            group_commit.show(theirs[-1].position if theirs else None, batch)
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> NoReturn:
        """Poison the store: its memory and its files may differ."""
        self._group_commit.fail(error)
        if isinstance(error, Exception):
            raise self._group_commit.poisoned() from error
        raise error

    def cut(self, after: Position, set_aside: Callable[[Record], None]) -> int:
        """Remove all records after a position, which must be at or above the published one. Returns how many they were.
        Views stay as they are. A cursor of the log that has passed `after` must not be used any more. O(bytes removed,
        and of one segment).

        Args:
            after: where the log is to end.
            set_aside: called in this thread with each of these records, in order, before anything is removed. Whatever
                it does must be durable when it returns for the last record. After a crash during these calls nothing is
                removed, and a later `cut` calls it with the same records again. It may read their attachments.

        Raises:
            InvalidInput: `after` is below the published position.
            Diverged, AheadOfSource, LogPruned: `after` is not in this log.
            What `set_aside` raises: nothing was removed.
            StorePoisoned: the cut failed; close the store and open it again, which finishes it.
        """
        with self._one:
            self._check_following()
            published = self._watermarks.published
            if after.txid < published.txid:
                raise InvalidInput(f"the log cannot be cut after transaction {after.txid}: it is published up to "
                                   f"{published.txid}", hint="this member has branched off; seed it anew")
            if (chain := self._log.chain_at(after.txid)) != after.chain:
                raise Diverged(f"at transaction {after.txid} the chain is {chain.hex()} here, not {after.chain.hex()}")
            count = 0
            for record in self._log.cursor(after).read():
                set_aside(record)
                count += 1
            if not count:
                return 0
            self._remove(after)
            while self._recent and self._recent[-1].txid > after.txid:
                self._recent_bytes -= len(self._recent.pop().payload)
            return count

    def _remove(self, after: Position) -> None:
        try:
            self._log.cut(after)
            self.last_epoch = self._writer.epoch
            self._group_commit.followed(after)
        except BaseException as error:
            self._failed(error)
        self._cursor = None
        self._branches_ahead.clear()

    def _check_following(self) -> None:
        self._usability.check()
        if self.accepting:
            raise InvalidInput(f"{self._usability.directory} is a primary, and does not follow another log",
                               hint="close it and open it again as a replica")
        if self._group_commit.poison is not None:
            raise self._group_commit.poisoned()

    # --- being the primary -----------------------------------------------------------------------------------------

    def accept(self) -> None:
        """From now on the store takes transactions, as a primary. Raises `InvalidInput` if something durable is not
        published."""
        with self._one:
            self._check_following()
            positions = self._watermarks.positions()
            if positions.published < positions.durable:
                raise InvalidInput(f"transactions up to {positions.durable} are durable, and only those up to "
                                   f"{positions.published} are published", hint="publish them first")
            self._recent.clear()
            self._recent_bytes = 0
            self.accepting = True
            self._usability.accept()

    def resume(self) -> None:
        """After `refuse`, take transactions again, as the primary that it is."""
        if not self.accepting:
            raise InvalidInput(f"{self._usability.directory} is not a primary")
        self._usability.accept()

    def refuse(self, reason: Callable[[], HoldfastError]) -> None:
        """From now on, new transactions raise what `reason()` returns. Those under way go on."""
        self._usability.refuse(reason)

    def mark(self) -> int:
        """Log a kit record, as a relaxed commit, so that "complete until" moves on. Returns its txid. Never waits for
        another writer: it raises `RolledBack` then. Raises as a transaction, and `InvalidInput` if the store is not a
        primary."""
        if not self.accepting:
            raise InvalidInput(f"{self._usability.directory} is not a primary", hint="only a primary logs marks")
        return self._write_path.mark(wait=False)
