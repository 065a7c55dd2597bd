"""Animals in the kit's store: transactions, watermarks, plugins' moments, bulk loads, pruning."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from zoo import part

from holdfast.engine.env import Files
from holdfast.engine.store.callbacks import Outcome
from holdfast.engine.store.commit_queue import CommitTicket
from holdfast.engine.store.group_commit import GroupCommit
from holdfast.engine.store.watermarks import Watermarks
from holdfast.engine.store.write_path import TransactionScope, WritePath
from holdfast.engine.wal.attachments import AttachmentWriter
from holdfast.engine.wal.retention import PrunePlan, plan_pruning

_advance, _fail, _ask_plugins = Watermarks._advance, GroupCommit.fail, WritePath._ask_plugins


@part(WritePath, caught_by="KitContract.test_a_veto_rolls_back")
class DeafToVetoes(WritePath[Any]):
    """What a plugin raises is swallowed and the commit goes on: the rule that it should have enforced is a comment."""

    def _ask_plugins(self, tx: Any) -> None:
        for hook in (*self.hooks.committing, *self.hooks.final):
            with contextlib.suppress(Exception):
                hook(tx)


@part(WritePath, caught_by="KitContract.test_a_veto_keeps_a_bulk_load_out", on="staging")
class LoadsUnasked(WritePath[Any]):
    """Plugins are asked of transactions, and not of bulk loads, which came later: what a policy keeps out of the one
    door comes in by the other, a million at a time."""

    def _ask_plugins(self, tx: Any) -> None:
        if tx.bulk is None:
            _ask_plugins(self, tx)


@part(Watermarks, caught_by="KitContract.test_a_late_condition_is_told_and_loses_nothing", on="staging")
class ForgivesConditions(Watermarks):
    """A condition that is late is dropped, even if it gates publication. Readers see what a fail-over will take
    back."""

    def expired(self, listener: int, last: int) -> None:
        self.met(listener, last)


@part(Watermarks, caught_by="KitContract.test_a_late_condition_is_told_and_loses_nothing", on="staging")
class PublishesWhenDurable(Watermarks):
    """A transaction is published when it is durable here, whatever its conditions say."""

    def _advance(self) -> None:
        _advance(self)
        if self.barrier is None:
            self.published = self.durable


@part(
    GroupCommit, caught_by="KitContract.test_an_unknown_outcome_is_found_out_by_reopening",
    also=["KitContract.test_a_checkpoint_that_fails_loses_nothing"], on="staging")
class GoesOnAfterFailure(GroupCommit):
    """A sync of the log that failed is told to those who waited, and the store goes on, on bytes that may never have
    reached the disk."""

    def fail(self, error: BaseException) -> None:
        _fail(self, error)
        self.poison = None


@part(TransactionScope, caught_by="KitContract.test_an_exception_in_the_block_rolls_back")
class CommitsAnyway(TransactionScope[Any]):
    """What the block did before it raised is committed: half a transfer, exactly as it stood."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._path._commit(self._tx, self._durability, self._hold)


@part(WritePath, caught_by="KitContract.test_what_a_plugin_adds_is_part_of_the_transaction")
class DropsAdditions(WritePath[Any]):
    """Plugins are asked on what is logged without what they add: an audit trail that is never written."""

    def _ask_plugins(self, tx: Any) -> None:
        before = dict(tx.changes)
        _ask_plugins(self, tx)
        tx.changes = before


@part(GroupCommit, caught_by="KitContract.test_hooks_are_told_everything_once_and_in_order", on="staging")
class TellsTheLast(GroupCommit):
    """Of the transactions of one group, plugins are told of the last one only: an index that follows the store misses
    what was committed together."""

    def _tell_published(self) -> None:
        with self._telling:
            told = [record for record in self._kept if record.txid <= self.watermarks.published.txid]
            for _ in told:
                self._kept.popleft()
            if told:
                self._hooks.tell("published", told[-1:])


@part(Outcome, caught_by="KitContract.test_a_slow_callback_holds_up_nobody", on="staging")
class CallsBackAtOnce(Outcome):
    """A callback runs in the thread that resolves the outcome, as that of any future: the one that syncs for everybody.
    One caller looks something up in a callback, and all others wait for his database."""

    def add_done_callback(self, fn: Callable[[Future[int]], Any]) -> None:
        Future.add_done_callback(self, fn)


@part(Files, caught_by="EngineContract.test_a_store_stays_where_it_was_opened")
class TakesPathsAsGiven(Files):
    """The store keeps the path as its user gave it. A daemon changes its directory, and the path leads into another
    store, which took the next segment of the log: neither of them opened any more. (Now it is missed at least.)"""

    def absolute(self, path: str | os.PathLike[str]) -> Path:
        return Path(path)


@part(GroupCommit, caught_by="KitContract.test_what_is_committed_is_in_every_crash_image", on="staging")
class SoonEnough(GroupCommit):
    """A commit returns when its sync is ordered, and not when it is done: a second later it would have been true."""

    def wait(self, ticket: CommitTicket) -> None:
        self.sync_within(1.0)


@part("holdfast.engine.store.maintenance.plan_pruning",
      caught_by="KitContract.test_pruning_takes_nothing_that_is_needed")
def forgets_the_checkpoint(segments: Any, *, floor: int, **how: Any) -> PrunePlan:
    """Pruning keeps what the settings say, and does not ask how far the state on disk has come."""
    return plan_pruning(segments, floor=1 << 62, **how)


@part(AttachmentWriter, caught_by="KitContract.test_a_bulk_load_without_room_leaves_nothing", on="staging")
class TellsNoOneWhy(AttachmentWriter):
    """A full disk is told as any other error of the disk: nobody frees room, nobody tries again."""

    def _fail(self, error: OSError) -> NoReturn:
        self.abandon()
        raise error
