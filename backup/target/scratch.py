"""Opening a backup without touching it: replayed in memory, or in a scratch copy.

An image is bytes as they were copied. Whether it is a state shows only when an engine opens it and replays the log
over it. That happens in memory where the engine can and the log is small, and otherwise in a copy of the image that is
removed afterwards. The bytes of the backup do not change either way; they are checked against their digests on the way
into the scratch copy.

The copy lies in the target's own directory, since only that is sure to be on the target's file system: what is beside
it may be on another one, or closed to this user. Who may only read the target uses the directory for temporary files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Context, Engine
from ...engine.env import Env
from ...engine.errors import Inconsistent
from ...engine.wal.log import Log
from ...replay.files import Progress, copy_files
from ...replay.roll import roll
from ..engines import AnyEngine, Options
from .target import Target

MAX_FINDINGS = 100
"""Inconsistencies that are gathered before a check stops."""


def _fits_memory(engine: AnyEngine, log: Log, most: int) -> bool:
    """Whether the log, of so many bytes at most, may be replayed into an engine that is open read-only."""
    return engine.abilities.replays_in_memory and log.size() <= most and not log.attached()


@contextmanager
def copied_state(target: Target, into: Path, engine: AnyEngine, options: Options, env: Env, *, durable: bool,
                 progress: Progress) -> Iterator[Engine[Any, Any]]:
    """The image copied to `into`, which is written through `env`, and opened as a state to be replayed from its
    position. `into` remains. Raises `Damaged`, `DiskFull`."""
    with target.image() as image:
        copy_files(image.read, image.listed, into, env=env, durable=durable,
                   chunk_bytes=target.manifest.chunk_bytes, progress=progress, stage="replay image")
    opened = engine.open(into, _context(target, options, env), at=target.manifest.image_position)
    try:
        yield opened
    finally:
        opened.close()


def _context(target: Target, options: Options, env: Env) -> Context:
    return Context(env, options, store_id=target.manifest.history.store_id)


@contextmanager
def rolled(target: Target, *, engine: AnyEngine, options: Options, scratch: Path, progress: Progress,
           memory_log_bytes: int | None, upto: int | None = None) -> Iterator[Engine[Any, Any]]:
    """An engine at the end of the log, or at transaction `upto`, without a byte of the generation changed: in memory
    if the log has at most `memory_log_bytes`, and in `scratch` otherwise, always if it is None. `scratch` does not
    exist before, nor after; if this user cannot make it, a directory for temporary files takes its place.

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
    """Walk the whole state. Raises `Inconsistent`."""
    with engine.view() as view:
        findings = tuple(islice(view.check(), MAX_FINDINGS))
    if findings:
        count = f"{MAX_FINDINGS} or more" if len(findings) == MAX_FINDINGS else str(len(findings))
        raise Inconsistent(f"{where} is inconsistent in {count} places, the first: {findings[0]}", findings=findings)
