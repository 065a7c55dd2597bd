"""`run`: look at the target, and take the backup that it calls for.

Nothing there: a full one. A backup of the same history: an incremental, or, if it is asked for or the source no longer
has the log for one, a full as a new generation that says why. Anything else is refused before a byte is changed.
"""

from __future__ import annotations

import os
import socket  # noqa: TID251  for the machine's name
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.shown import printable, shown
from ..engine.env.system import system_errors
from ..engine.errors import ClusterUnavailable, ForeignStore, InvalidInput, LogPruned, SettingError
from ..engine.source.http.client import MAX_RECORD, connect
from ..engine.source.interface import Source, SourceInfo, compare
from ..engine.source.local import LocalSource
from ..engine.store.layout import Layout
from ..engine.store.leases import MAX_OWNER
from ..engine.store.settings import check_duration
from ..engine.store.store import Store
from ..replay.files import Progress, silent
from ..replay.roll import SourceDamaged
from .engines import AnyEngine, Options
from .places import held, locked, make_root, waited
from .report import Report
from .target.full import take_full
from .target.incremental import take_incremental
from .target.job import Job
from .target.points import KEEP_POINTS, cutoff_us
from .target.target import Target, detect, finish_switch
from .uri import parse


@renamed.arguments(fold="compact", seams="env")
def run(source: str | Store[Any, Any] | Source, target: str | os.PathLike[str], *, verify: bool = True,
        fallback: bool = True, full: bool = False, check: str = "sample", register: bool = True,
        expect_store: str | bytes | None = None, accept_branch: str | bytes | None = None, token: str | None = None,
        tls: bool | None = None, ca: str | Path | None = None, timeout: float = 30.0,
        max_record_bytes: int = MAX_RECORD, lease_ttl: float = 300.0,
        wait: float = 0.0, compact: float | None = 1.0, keep_points: str = KEEP_POINTS, engine: AnyEngine | None = None,
        options: Options | None = None, progress: Progress | None = None, env: Env = REAL) -> Report:
    """Back up a running store.

    Args:
        source: a URI (`single://host:port`), an open store, or any `Source`.
        target: a directory: new or empty for a full backup, an earlier backup for an incremental.
        verify: replay and check the copy after a full backup; it does not count before.
        fallback: where the source no longer has the log for an incremental, take a full one as a new generation.
            Without it that is `LogPruned`.
        full: take a full one, as a new generation, if there is a backup already.
        check: how the target is looked at before log is added to it: `sample` (the sizes of all files, up to 16 chunks
            of the image, the newest segments, another part each time), or `all` of it.
        register: have the source keep its log for the next incremental. Without it, a target whose next run comes late
            gets a full one.
        expect_store: id of a store or branch (hex, 8 digits or more, or bytes): refuse any other source.
        accept_branch: id of a branch that the source may be on although the target was not.
        token, tls, ca: credential, whether to use TLS, and file of certificate authorities, for a URI; as in `connect`.
        timeout: seconds that one answer of the source may take, for a URI; ten times as long for an image that it
            makes first.
        max_record_bytes: the largest payload of a transaction that is taken, for a URI; a store that was opened with a
            larger one has to be known for it.
        lease_ttl: seconds for which the source waits for a run that died to be run again, which goes on then.
        wait: seconds to wait if somebody else writes to the target, verifies it or restores it.
        compact: compact log that is older than the points to be kept into the image, when it is larger than this share
            of it (and than 64 MiB). None: never.
        keep_points: how long restore points are kept: "7 days", "12 hours", "for ever"; with "none" a compaction takes
            all of the log, and a full backup the place of what was there.
        engine: the engine class. Without it, an open store's own, or the one registered by the source's name for it.
        options: the engine's own, for opening the copy. Without them, an open store's.
        progress: told (stage, done, total).
        env: files, clock, randomness and threads.

    Raises:
        TargetInvalid, TargetPromoted, ForeignStore, OtherBranch, Diverged, AheadOfSource, LogPruned, StoreLocked:
            refused; nothing was changed.
        UpgradeRequired, UnsupportedFormat: the engine here does not read what the source or the target has; likewise.
        SourceUnavailable, SourceRestarted, SourceRefused, NotAuthorized, LeaseExpired, TooManyLeases,
            ClusterUnavailable: the source's part; run it again.
        Damaged: the target was cut or damaged since; nothing was changed. Or what the source sent.
        Inconsistent: the copy was checked and found wrong; it is not the backup.
        DirectoryMoved: the target's path led elsewhere in the middle. Nothing was written to what is there now, and the
            target is as after a run that died.
        DiskFull, LimitReached, AccessDenied, DeviceFailed, InvalidInput, SettingError.
    """
    if compact is not None and (type(compact) not in (int, float) or not compact >= 0):
        raise SettingError(f"compact is a share of the image, 0 or more, not {shown(compact)}")
    check_duration("timeout", timeout)
    check_duration("lease_ttl", lease_ttl)
    if type(max_record_bytes) is not int or max_record_bytes <= 0:
        raise SettingError(f"max_record_bytes is a whole number of bytes above 0, not {shown(max_record_bytes)}")
    if check not in ("sample", "all"):
        raise SettingError(f"check is 'sample' or 'all', not {check!r}")
    cutoff_us(keep_points, 0)
    patience = waited(wait, env)
    started_us, started = env.clock.now_us(), env.clock.monotonic()
    layout = Layout(env.files.resolve(target), env.files)
    with system_errors(f"cannot look at {layout.root}"):
        detect(layout, env)
    with opened_source(source, token, tls, ca, timeout, max_record_bytes) as asked:
        info = asked.info()
        if expect_store is not None:
            _expect(info, expect_store)
        origin = source if isinstance(source, str) else info.path
        if engine is None and isinstance(source, Store):
            engine = type(source.engine)  # it need not be registered
        if options is None:
            options = source.options if isinstance(source, Store) else {}
        with system_errors(f"cannot back up to {layout.root}"):
            make_root(layout)
            with held(layout, env) as (layout, env), locked(layout, "backup", patience):
                job = Job(source=asked, info=info, layout=layout, env=env, owner=_owner(layout.root), origin=origin,
                          verify=verify, check=check, accept_branch=_branch(info, accept_branch), compact=compact,
                          cutoff_us=cutoff_us(keep_points, min(started_us, info.complete_until_us)), engine=engine,
                          options=options, registers=register, lease_ttl=lease_ttl, progress=progress or silent,
                          started_us=started_us, started=started)
                return _run(job, full, fallback)


def _run(job: Job, full: bool, fallback: bool) -> Report:
    layout = job.layout
    target = detect(layout, job.env)  # once more, under the lock
    layout.sweep_scratch()
    if finish_switch(layout):
        target = Target.open(layout, job.env)
    if target is None:
        return take_full(job, None, "")
    layout.settle_names(target.generation)
    if full:
        compare(job.info, target.manifest.history, target.manifest.noted_end, accept_branch=job.accept_branch)
        job.asked = True
        return take_full(job, target, "it was asked for")
    try:
        return take_incremental(job, target)
    except (LogPruned, SourceDamaged) as error:
        if not fallback:
            raise
        return take_full(job, target, f"the source no longer has the log for an incremental: {error.message}")


@contextmanager
def opened_source(source: str | Store[Any, Any] | Source, token: str | None, tls: bool | None, ca: str | Path | None,
                  timeout: float, max_record_bytes: int = MAX_RECORD) -> Iterator[Source]:
    """What a caller names as a source, for the block. Raises `SourceUnavailable`, `ClusterUnavailable`,
    `InvalidInput`."""
    if isinstance(source, Source):
        yield source
    elif isinstance(source, Store):
        with LocalSource(source) as local:
            yield local
    elif isinstance(source, str):
        uri = parse(source)
        if uri.mode == "ha":
            raise ClusterUnavailable(f"{uri} names a cluster, and there is none yet")
        host, port = uri.addresses[0]
        with connect(host, port, token=token, tls=tls, ca=ca, timeout=timeout,
                     max_record_bytes=max_record_bytes) as remote:
            yield remote
    else:
        raise InvalidInput(f"{shown(source)} is not a source", hint="pass a URI, an open store, or a Source")


def _owner(root: Path) -> str:
    """How this run, and its target's slot, is called at the source."""
    return printable(f"backup to {root} on {socket.gethostname()}")[:MAX_OWNER]


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
        raise ForeignStore(f"store {text} is expected, and the source is store {ids[0]} on branch {ids[1]}")


def _branch(info: SourceInfo, accepted: str | bytes | None) -> bytes | None:
    """The source's branch where it is the one that is accepted."""
    if accepted is None:
        return None
    theirs = info.history.branch.id
    return theirs if theirs.hex().startswith(_hex(accepted, "accept_branch")) else None


