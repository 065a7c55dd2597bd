"""Opening a backup without touching it: replayed in memory, or in a scratch copy.

An image is only bytes until an engine has opened it and replayed the log over it: that shows whether it is a state. If
the engine can, and the log is small, this happens in memory. Otherwise it happens in a scratch copy of the image, which
is removed afterwards; its bytes are compared with their digests as they are copied. The backup is never changed.

The scratch copy lies in the target's own directory, since only that is sure to be on the target's file system and
open to this user. If this user may only read the target, the copy goes into the directory for temporary files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.env import Env
from ...engine.errors import Inconsistent
from ...engine.wal.log import Log
from ...replay.files import Progress, copy_files
from ...replay.roll import roll
from ..engines import AnyEngine, Options
from .target import Target

if TYPE_CHECKING:
    from ...engine.contract.engine import Context, Engine

MAX_FINDINGS = 100
"""Inconsistencies that a check reports at most."""


def _fits_memory(engine: AnyEngine, log: Log, most: int) -> bool:
    """Whether the log can be replayed into an engine that is open read-only: it has at most `most` bytes."""
    return engine.abilities.replays_in_memory and log.size() <= most and not log.attached()


@contextmanager
def copied_state(target: Target, into: Path, engine: AnyEngine, options: Options, env: Env, *, durable: bool,
                 progress: Progress) -> Iterator[Engine[Any, Any]]:
    """Copy the image to `into`, through `env`, and open it as a state to be replayed from its position. `into` is not
    removed. Raises `Damaged`, `DiskFull`."""
    with target.image() as image:
        copy_files(image.read, image.listed, into, env=env, durable=durable,
                   chunk_bytes=target.manifest.chunk_bytes, progress=progress, stage="replay image")
    opened = engine.open(into, _context(target, options, env), at=target.manifest.image_position)
    try:
        yield opened
    finally:
        opened.close()


def _context(target: Target, options: Options, env: Env) -> Context:
    from ...engine.contract.engine import Context

    return Context(env, options, store_id=target.manifest.history.store_id)


@contextmanager
def rolled(target: Target, *, engine: AnyEngine, options: Options, scratch: Path, progress: Progress,
           memory_log_bytes: int | None, upto: int | None = None) -> Iterator[Engine[Any, Any]]:
    """An engine at the end of the log, or at transaction `upto`. The generation is not changed. The log is replayed in
    memory if it has at most `memory_log_bytes`, otherwise in `scratch`; if that bound is None, always in `scratch`.
    `scratch` must not exist, and is removed. If it cannot be made, a temporary directory is used.

    Raises:
        Damaged, DiskFull, UpgradeRequired, UnsupportedFormat.
    """
    log, env = target.log, target.env
    last = log.end.txid if upto is None else upto
    if memory_log_bytes is not None and _fits_memory(engine, log, memory_log_bytes):
        opened = engine.open(target.generation.state, _context(target, options, env), read_only=True,
                             at=target.manifest.image_position)
        try:
            roll(opened, log, last, durable=False, progress=progress)
            yield opened
        finally:
            opened.close()
        return
    try:
        env.files.make_directory(scratch)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        scratch = env.files.make_scratch_directory()
    try:
        with copied_state(target, scratch, engine, options, env, durable=False, progress=progress) as opened:
            roll(opened, log, last, durable=True, progress=progress)
            yield opened
    finally:
        env.files.remove_tree(scratch)


def check(engine: Engine[Any, Any], where: str) -> None:
    """Run the engine's check over the whole state; `where` names it. Raises `Inconsistent`. O(state)."""
    with engine.view() as view:
        findings = tuple(islice(view.check(), MAX_FINDINGS))
    if findings:
        count = f"{MAX_FINDINGS} or more" if len(findings) == MAX_FINDINGS else str(len(findings))
        raise Inconsistent(f"{where} is inconsistent in {count} places, the first: {findings[0]}", findings=findings)
