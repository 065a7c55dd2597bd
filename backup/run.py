"""`run`: look at the target, and take the backup that it needs.

An empty target gets a full backup. A backup of the same history gets an incremental; or, if you ask for it or the
source no longer has the log for an incremental, a full one as a new generation, with the reason in its report. Anything
else is refused before a byte is changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.shown import printable, shown
from ..engine.env.system import system_errors
from ..engine.errors import ForeignStore, InvalidInput, LogPruned
from ..engine.source.interface import SourceInfo, compare
from ..engine.store.layout import Layout
from ..engine.store.leases import MAX_OWNER
from ..replay.files import Progress, silent
from ..replay.roll import SourceDamaged
from .connection import Connection, Named, store_in
from .directories import held, locked, make_root, waited
from .engines import AnyEngine, Options
from .keywords import given, refuse
from .policy import Policy
from .report import Report
from .retention import cutoff_us
from .target.incremental import take_incremental
from .target.job import Job
from .target.target import Target, detect, finish_switch
from .uri import parse


@renamed.arguments(seams="env")
def run(source: Named, target: str | os.PathLike[str], *, full: bool = False, policy: Policy | None = None,
        connection: Connection | None = None, expect_store: str | bytes | None = None,
        accept_branch: str | bytes | None = None, wait: float = 0.0, engine: AnyEngine | None = None,
        options: Options | None = None, progress: Progress | None = None, env: Env = REAL, **old: Any) -> Report:
    """Back up a running store.

    Args:
        source: a URI (`single://host:port`, or `ha://host:port,…` for any member of a cluster), an open store, or any
            `Source`.
        target: a directory: new or empty for a full backup, an earlier backup for an incremental.
        full: if there is a backup already, take a full one all the same, as a new generation.
        policy: what is checked and kept, and when the log is compacted; see `Policy`.
        connection: token, TLS and time-out, for a URI; see `Connection`.
        expect_store: id of a store or branch (hex, 8 digits or more, or bytes): refuse any other source.
        accept_branch: id of a branch that the source may be on although the target was not.
        wait: seconds to wait if another process writes to the target, verifies it or restores it.
        engine: the engine class. If None, that of an open store, or the one registered under the source's engine name.
        options: the engine's own, for opening the copy. If None, those of an open store.
        progress: called in this thread with (stage, done, total).
        env: files, clock, randomness and threads.
        old: keywords of earlier releases, which are fields of `policy` and `connection` now.

    Raises:
        TargetInvalid, TargetPromoted, ForeignStore, OtherBranch, Diverged, AheadOfSource, LogPruned, StoreLocked:
            refused; nothing was changed.
        UpgradeRequired, UnsupportedFormat: the engine here cannot read the source or the target; nothing was changed.
        SourceUnavailable, SourceRestarted, SourceRefused, NotAuthorized, LeaseExpired, TooManyLeases,
            ClusterUnavailable: the source failed or refused; mend that and run it again.
        Damaged: the target was damaged since the last run, and nothing was changed; or what the source sent is damaged.
        Inconsistent: the copy was checked and found wrong. It did not become the backup.
        DirectoryMoved: the target was moved during the run. Nothing was written to what is at its path now. The target
            is as after a run that died.
        DiskFull, LimitReached, AccessDenied, DeviceFailed, InvalidInput, SettingError.
    """
    policy = given("run", Policy, policy, old, 3)  # 3: the decorator `renamed` adds a call
    connection = given("run", Connection, connection, old, 3)
    refuse("run", old)
    if isinstance(source, str) and (cluster := parse(source)).mode == "ha":
        from .cluster import back_up  # here, since it needs this

        def one(member: str, policy: Policy) -> Report:
            return run(member, target, full=full, policy=policy, connection=connection, expect_store=expect_store,
                       accept_branch=accept_branch, wait=wait, engine=engine, options=options, progress=progress,
                       env=env)

        return back_up(cluster, connection, policy, _owner(env.files.resolve(target)), one)
    patience = waited(wait, env)
    started_us, started = env.clock.now_us(), env.clock.monotonic()
    layout = Layout(env.files.resolve(target), env.files)
    with system_errors(f"cannot look at {layout.root}"):
        detect(layout, env)
    with connection.opened(source) as asked:
        info = asked.info()
        if expect_store is not None:
            _expect(info, expect_store)
        origin = source if isinstance(source, str) else info.path
        store = store_in(source)
        if engine is None and store is not None:
            engine = type(store.engine)  # so it need not be registered
        if options is None:
            options = {} if store is None else store.options
        with system_errors(f"cannot back up to {layout.root}"):
            make_root(layout)
            with held(layout, env) as (layout, env), locked(layout, "backup", patience):
                return _run(Job(
                    source=asked, info=info, layout=layout, env=env, owner=_owner(layout.root), origin=origin,
                    policy=policy, accept_branch=_branch(info, accept_branch), engine=engine, options=options,
                    cutoff_us=cutoff_us(policy.keep_points, min(started_us, info.complete_until_us)),
                    progress=progress or silent, started_us=started_us, started=started, asked=full))


def _run(job: Job) -> Report:
    layout = job.layout
    target = detect(layout, job.env)  # again, under the lock: another run may have come first
    layout.sweep_scratch()
    if finish_switch(layout):
        target = Target.open(layout, job.env)
    if target is None:
        return _full(job, None, "")
    layout.sync_names(target.generation)
    if job.asked:
        compare(job.info, target.manifest.history, target.manifest.noted_end, accept_branch=job.accept_branch)
        return _full(job, target, "it was asked for")
    try:
        return take_incremental(job, target)
    except (LogPruned, SourceDamaged) as error:
        if not job.policy.fallback:
            raise
        return _full(job, target, f"the source no longer has the log for an incremental: {error.message}")


def _full(job: Job, before: Target | None, why: str) -> Report:
    """A full backup. What it needs is imported only here: an incremental does without it."""
    from .target.full import take_full

    return take_full(job, before, why)


def _owner(root: Path) -> str:
    """The name of this run and of its target's slot at the source."""
    return printable(f"backup to {root} on {os.uname().nodename}")[:MAX_OWNER]


def _hex(value: str | bytes, what: str) -> str:
    text = value.hex() if isinstance(value, bytes) else value.strip().lower()
    if not 8 <= len(text) <= 32 or not set(text) <= set("0123456789abcdef"):
        raise InvalidInput(f"{what}={shown(value)} is not an id",
                           hint="ids are 32 hex digits; the first 8 or more will do")
    return text


def _expect(info: SourceInfo, expected: str | bytes) -> None:
    text = _hex(expected, "expect_store")
    ids = (info.history.store_id.hex(), info.history.branch.id.hex())
    if not any(i.startswith(text) for i in ids):
        raise ForeignStore(f"store {text} was expected, and the source is store {ids[0]} on branch {ids[1]}")


def _branch(info: SourceInfo, accepted: str | bytes | None) -> bytes | None:
    """The source's branch if it is the accepted one, otherwise None."""
    if accepted is None:
        return None
    theirs = info.history.branch.id
    return theirs if theirs.hex().startswith(_hex(accepted, "accept_branch")) else None


