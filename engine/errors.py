"""Every error that Holdfast raises, each with a hint.

All derive from `HoldfastError`. `hint` is one sentence that says what you can do now. A commit ends in exactly one of
four ways: it returns, or it raises one of `RolledBack`, `ConditionNotMet`, `OutcomeUnknown`.
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

    hint = "do not repeat the transaction, it is in the log; wait for the condition with store.wait(txid)"

    def __init__(self, message: str, *, txid: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.txid = txid


class OutcomeUnknown(HoldfastError):
    """The store was poisoned or the connection was lost. The transaction may or may not be durable. `position`: of the
    transaction, if a member of a cluster raises this and knows it."""

    hint = "close and reopen the store, then check whether the change is there before you repeat it"

    def __init__(self, message: str, *, txid: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.txid = txid
        self.position: Any = None


# --- what stops work until somebody sees to it --------------------------------------------------------------------


class DiskFull(HoldfastError):
    """There is no room. Existing data is unchanged, reads continue, and writes work again once there is room."""

    hint = "free some room on this file system and try again"


class LimitReached(HoldfastError):
    """The system is out of something: memory, address space, open files, threads. Nothing is damaged, and the operation
    works again once there is more."""

    hint = "raise that limit, or let other work end, and try again"


class DirectoryMoved(HoldfastError):
    """The store's directory was renamed, replaced or unmounted while it was open. Nothing is written to what has its
    name now. Commits work again once the directory is back."""

    hint = "put the directory back where it was, or close the store and open it where it is now"


class StorePoisoned(HoldfastError):
    """A write or sync of the log failed earlier, so the store takes no more writes."""

    hint = "reads continue; close the store, check the disk, and reopen: recovery finds all that was acknowledged"


class CommitDiskFull(DiskFull, RolledBack):
    """A commit found no room and was rolled back. Catch either base."""


class CommitLimitReached(LimitReached, RolledBack):
    """A commit reached a limit of the system and was rolled back. Catch either base."""


class CommitDirectoryMoved(DirectoryMoved, RolledBack):
    """A commit found the directory moved and was rolled back. Catch either base."""


class CommitPoisoned(StorePoisoned, RolledBack):
    """A commit found the store poisoned and was rolled back. Catch either base."""


LACKS = (DiskFull, LimitReached, DirectoryMoved, OSError, MemoryError)
"""Errors that keep a commit from being logged. They do not poison the store: the commit is rolled back."""


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
    """The engine or the kit cannot take this value. Nothing was changed."""

    hint = "correct the argument"


class BadRows(InvalidInput):
    """Tables or files have rows that cannot be loaded. Nothing was changed. `findings`: the first of them, each with
    its table and row."""

    hint = "mend these rows and load again"

    def __init__(self, message: str, *, findings: tuple[str, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.findings = findings


class NotFound(HoldfastError, KeyError):
    """There is nothing with this id or name."""

    hint = "check the id or name"

    __str__ = HoldfastError.__str__


class StoreClosed(HoldfastError):
    """The store, view or transaction was closed, or was carried across a fork."""

    hint = "open the store again in this process"


class StoreLocked(HoldfastError):
    """Another process, or another part of this one, holds the directory for writing."""

    hint = "close the other user first, or open read-only"


class AccessDenied(HoldfastError, PermissionError):
    """This user, or any user, may not read or write there. The bytes themselves may be good."""

    hint = "run it as the user who owns these files, or change their permissions"


class DeviceFailed(HoldfastError, OSError):
    """The disk, or the server of a network file system, failed to read or write. The bytes themselves may be good."""

    hint = "check the disk or the mount (the system's log says more), and try again"


class StoreExists(HoldfastError):
    """A new store cannot be made here, because something else is here."""

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
    """A file has a format version, or is from an engine, that this release does not know."""

    hint = "use a release of Holdfast that reads this version"


class Unsupported(HoldfastError):
    """The engine does not have the ability that was asked for."""

    hint = "see the engine's abilities"


class LocksUnsupported(Unsupported):
    """The file system has no locks (a network mount without a lock service, for instance), so two processes could write
    there at once."""

    hint = "move it to a file system with locks, mount this one with them, or open it read-only"


class PluginError(HoldfastError):
    """A plugin failed, and the operation cannot continue without it."""

    hint = "see the plugin's own error, chained to this one"


class SettingError(HoldfastError, ValueError):
    """A setting has a value that is not valid."""

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
    """The log that is asked for is no longer there. A gap is never skipped."""

    hint = "take a full backup, or keep more log: raise keep_logs"


class ForeignStore(HoldfastError):
    """Two stores that have no history in common were used together."""

    hint = "check the address and the directory; use another target for another store"


class Diverged(HoldfastError):
    """Two histories with the same store id differ: their chains disagree at a position that both have."""

    hint = "one of the two was changed on its own; keep both and take a full backup into a new target"


class OtherBranch(HoldfastError):
    """The source is on a different branch than the target: it is a restored copy, or a backup opened for writing."""

    hint = "take a full backup into a new target, or accept the branch by its id (accept_branch=, --accept-branch)"


class AheadOfSource(HoldfastError):
    """The target holds transactions that the source does not have."""

    hint = "the source lost transactions or is an older copy; do not overwrite this target"


# --- sources, leases, backups -------------------------------------------------------------------------------------


class SourceUnavailable(HoldfastError):
    """Nothing answers at the source's address, or the connection was lost and could not be restored."""

    hint = "check that the store is running and its backup service is on; what was copied is kept for the next run"


class SourceRestarted(SourceUnavailable):
    """The source is no longer the process that granted the lease, so the copy of its image must start again."""

    hint = "run it again; the copy starts from the beginning"


class SourceRefused(HoldfastError):
    """The source answered, and refused the request."""

    hint = "see the message"


class NotAuthorized(SourceRefused):
    """The credential is missing or wrong, or the connection is not secure enough."""

    hint = "pass the source's token (token=, HOLDFAST_TOKEN), and use TLS off loopback"


class StorageUnavailable(HoldfastError):
    """The storage gave no usable answer. Whether a put happened is not known. Nothing was read."""

    hint = "check the network and the storage; the call can be repeated"


class LeaseExpired(HoldfastError):
    """The lease is no longer held, so what was copied under it cannot be used."""

    hint = "run it again; if the copy is slow, raise the lease's time to live"


class TooManyLeases(HoldfastError):
    """The bound on the number of leases is reached."""

    hint = "wait for another backup to end, or release a lease that is no longer used"


class TargetInvalid(HoldfastError):
    """A backup can be neither written to nor read from this directory."""

    hint = "name an existing backup, or an empty or new directory to back up to"


class TargetPromoted(TargetInvalid):
    """The target was opened for writing as a store of its own, so it is no longer a backup."""

    hint = "take a full backup into a new directory"


class RestorePointOutOfRange(HoldfastError, ValueError):
    """The restore point is not within this backup's bounds."""

    hint = "holdfast info shows the bounds"


class ClusterUnavailable(HoldfastError):
    """A cluster cannot be reached, or none of its members could do what was asked."""

    hint = "check that the members run and can be reached"


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
