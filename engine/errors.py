"""Every error Holdfast raises, each with what to do about it.

All derive from `HoldfastError`; `hint` is one sentence that says what the reader can do now. A commit ends in exactly
one of four ways: it returns, or it raises one of `RolledBack`, `ConditionNotMet`, `OutcomeUnknown`.
"""

from __future__ import annotations

from typing import Any

from .renamed import warn


class HoldfastError(Exception):
    """Base of all errors. `str()` gives the message and the hint.

    >>> print(LogPruned("transaction 7 is no longer in the log"))
    transaction 7 is no longer in the log (take a full backup, or keep more log: raise keep_logs)
    """

    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


# --- how a commit may end, other than well ------------------------------------------------------------------------


class RolledBack(HoldfastError):
    """The transaction is certainly not in the store, and never will be."""

    hint = "nothing was written; mend the cause and run the transaction again"


class ConditionNotMet(HoldfastError):
    """The transaction is durable here, but a condition on its acknowledgement is still open."""

    hint = "do not repeat it: it is in the log; wait for the condition with store.wait(txid)"

    def __init__(self, message: str, *, txid: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.txid = txid


class OutcomeUnknown(HoldfastError):
    """The store was poisoned or the connection lost; the transaction may or may not be there."""

    hint = "close and reopen the store, then look whether the change is there before repeating it"

    def __init__(self, message: str, *, txid: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.txid = txid


# --- what stops work until somebody sees to it --------------------------------------------------------------------


class DiskFull(HoldfastError):
    """There is no room. What was there is unchanged, reads go on, and writing works again once there is room."""

    hint = "free some room on this file system and try again"


class LimitReached(HoldfastError):
    """The system has no more of what this needs: memory, address space, open files, threads. No byte is damaged, and it
    works again once there is more."""

    hint = "raise that limit, or let other work end, and try again"


class DirectoryMoved(HoldfastError):
    """The store's directory was renamed, replaced or unmounted under it. Nothing is written into what has its name now,
    and commits work again once it is back."""

    hint = "put the directory back where it was, or close the store and open it where it is now"


class StorePoisoned(HoldfastError):
    """A write or sync of log bytes failed earlier: the store takes no more writes."""

    hint = "reads go on; close the store, check the disk, and reopen: recovery finds all that was acknowledged"


class CommitDiskFull(DiskFull, RolledBack):
    """A commit found no room and was rolled back. Catch either."""


class CommitLimitReached(LimitReached, RolledBack):
    """A commit reached a limit of the system and was rolled back. Catch either."""


class CommitDirectoryMoved(DirectoryMoved, RolledBack):
    """A commit found the directory moved and was rolled back. Catch either."""


class CommitPoisoned(StorePoisoned, RolledBack):
    """A commit found the store poisoned and was rolled back. Catch either."""


LACKS = (DiskFull, LimitReached, DirectoryMoved, OSError, MemoryError)
"""What may keep a commit from being logged. It poisons nothing: the commit is rolled back."""


def rolled_back(error: Exception, what: str) -> RolledBack:
    """What a commit raises if `error` kept it from being logged: a `RolledBack` that is also of the error's kind.

    >>> error = rolled_back(DiskFull("3 bytes are left"), "no log segment could be made")
    >>> isinstance(error, DiskFull), error.message
    (True, 'no log segment could be made: 3 bytes are left')

    Args:
        error: why nothing was logged.
        what: what could not be done.
    """
    if isinstance(error, RolledBack):
        return error
    for kind in (CommitDiskFull, CommitLimitReached, CommitDirectoryMoved):
        if isinstance(error, kind.__bases__[0]):
            assert isinstance(error, HoldfastError)
            return kind(f"{what}: {error.message}", hint=error.hint)
    return RolledBack(f"{what}: {error!r}")


# --- using the store ----------------------------------------------------------------------------------------------


class InvalidInput(HoldfastError, ValueError):
    """A value the engine or the kit cannot take. Nothing was changed."""

    hint = "correct the argument"


class NotFound(HoldfastError, KeyError):
    """What was named is not there."""

    hint = "check the id or name"

    __str__ = HoldfastError.__str__


class StoreClosed(HoldfastError):
    """The store, view or transaction was closed, or was carried across a fork."""

    hint = "open the store again in this process"


class StoreLocked(HoldfastError):
    """Another process, or another part of this one, holds the directory for writing."""

    hint = "close the other user first, or open read-only"


class AccessDenied(HoldfastError, PermissionError):
    """This user may not read or write there, or nobody may. What the bytes are is not known."""

    hint = "run it as the user who owns these files, or change their rights"


class DeviceFailed(HoldfastError, OSError):
    """The disk, or the server of a network file system, failed to read or write. What the bytes are is not known."""

    hint = "check the disk or the mount (the system's log says more), and try again"


class StoreExists(HoldfastError):
    """There is something where a new store was to be made."""

    hint = "choose another directory"


class StoreNotFound(HoldfastError):
    """There is no store in this directory."""

    hint = "check the path, or make a store there first"


class WrongEngine(HoldfastError):
    """The directory belongs to another engine."""

    hint = "open it with the engine it names"


class UpgradeRequired(HoldfastError):
    """The state on disk is of an older format."""

    hint = "take a backup, then upgrade the state explicitly"


class UnsupportedFormat(HoldfastError):
    """A file is of a format version, or from an engine, that this release does not know."""

    hint = "use a release of Holdfast that reads this version"


class Unsupported(HoldfastError):
    """The engine does not have the ability that was asked for."""

    hint = "see the engine's abilities"


class LocksUnsupported(Unsupported):
    """The file system has no locks (a network mount without a lock service, say): nothing would keep two processes from
    writing there."""

    hint = "move it to a file system with locks, mount this one with them, or open it read-only"


class PluginError(HoldfastError):
    """A plugin failed where its failure matters."""

    hint = "see the plugin's own error, chained to this one"


class SettingError(HoldfastError, ValueError):
    """A setting has a value that makes no sense."""

    hint = "correct the setting"


# --- what can be wrong with data on disk or on the wire -----------------------------------------------------------


class Damaged(HoldfastError):
    """Bytes that were durable are missing or changed. Never raised for a torn tail, which is cut."""

    hint = "keep the files as they are and restore from a backup"

    def __init__(self, message: str, *, path: str | None = None, offset: int | None = None,
                 hint: str | None = None) -> None:
        where = "" if path is None else f"{path}: " if offset is None else f"{path} at byte {offset}: "
        super().__init__(where + message, hint=hint)
        self.path = path
        self.offset = offset


class LogPruned(HoldfastError):
    """The log that is asked for is no longer there: a gap, never skipped."""

    hint = "take a full backup, or keep more log: raise keep_logs"


class ForeignStore(HoldfastError):
    """Two stores meet that have no history in common."""

    hint = "check the address and the directory; use another target for another store"


class Diverged(HoldfastError):
    """The same store id, but another history: the chains differ at a position both claim."""

    hint = "one of the two was changed on its own; keep both and take a full backup into a new target"


class OtherBranch(HoldfastError):
    """The source is on another branch than the target (a restored twin, or a backup opened for writing)."""

    hint = "take a full backup into a new target, or accept the branch by its id (accept_branch=, --accept-branch)"


class AheadOfSource(HoldfastError):
    """The target holds transactions that the source does not have."""

    hint = "the source lost transactions or is an older copy; do not overwrite this target"


# --- sources, leases, backups -------------------------------------------------------------------------------------


class SourceUnavailable(HoldfastError):
    """Nobody answers at the source's address, or the connection was lost and did not come back."""

    hint = "check that the store is running and its backup service is on; what was copied is kept for the next run"


class SourceRestarted(SourceUnavailable):
    """The source is another process than the one that granted the lease: its image has to start anew."""

    hint = "run it again; the copy starts anew"


class SourceRefused(HoldfastError):
    """The source answered, and declined."""

    hint = "see the message"


class NotAuthorized(SourceRefused):
    """The credential is missing or wrong, or the connection is not secure enough."""

    hint = "pass the source's token (token=, HOLDFAST_TOKEN), and use TLS off loopback"


class LeaseExpired(HoldfastError):
    """The lease no longer holds, so what was copied under it counts for nothing."""

    hint = "run it again; if the copy is slow, raise the lease's time to live"


class TooManyLeases(HoldfastError):
    """A bound on leases (number, age, or log held) is reached."""

    hint = "wait for another backup to end, or release a lease that is no longer used"


class TargetInvalid(HoldfastError):
    """The target directory is not something a backup can be written to or read from."""

    hint = "name an existing backup, or an empty or new directory to back up to"


class TargetPromoted(TargetInvalid):
    """The target was opened for writing as a store of its own, so it is no longer a backup."""

    hint = "take a full backup into a new directory"


class RestorePointOutOfRange(HoldfastError, ValueError):
    """The point asked for is not between this backup's bounds."""

    hint = "holdfast info shows the bounds"


class ClusterUnavailable(HoldfastError):
    """No cluster is there to answer an ha:// address."""

    hint = "cluster members come with a later release; use single://host:port"


class Inconsistent(HoldfastError):
    """A check walked the whole state and found it wrong."""

    hint = "keep the files as they are; check the source, and restore from an earlier backup"

    def __init__(self, message: str, *, findings: tuple[str, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.findings = findings


def __getattr__(name: str) -> Any:
    if name == "TargetRetired":
        warn(name, "TargetPromoted")
        return TargetPromoted
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
