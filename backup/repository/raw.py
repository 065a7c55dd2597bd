"""A restore without the engine: the files of an image and the log after it, as they are.

What comes out is a backup, as `holdfast backup` makes one: the image's files in `state/`, the log in segments and its
attachments in `log/`, and a manifest that names both. So whoever has the engine makes a store of it later, to any point
between the two; and until then it can be read by its documented formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from xxhash import xxh3_128_digest

from ...engine.contract.image import ImageFile
from ...engine.env import Env
from ...engine.env.system import system_errors
from ...engine.model.positions import ID_BYTES
from ...engine.source.interface import CHUNK_BYTES
from ...engine.store.layout import Generation, Identity
from ...engine.wal.log import Log
from ...replay.files import CopiedFile, Progress
from ..destination import destination
from ..directories import refuse_inside, waited
from ..manifest import Manifest
from ..report import Bounds
from .archive import Archive
from .plan import Point, complete_until
from .reports import RawReport
from .restoring import LogSource, log_from_image, tree_of, write_files
from .sealed import Seal
from .storage.interface import ObjectStore


def restore_raw(dest: Path, point: Point, store: ObjectStore, seal: Seal, archive: Archive, env: Env, *, force: bool,
                wait: float, progress: Progress) -> RawReport:
    """See `Repository.restore_raw`."""
    image, state, started = point.reach.image, archive.state, env.clock.monotonic()
    begun_us, final, patience = env.clock.now_us(), env.files.resolve(dest), waited(wait, env)
    tree = tree_of(store, seal, image, env)
    identity = Identity(image.history.store_id, state.engine, begun_us)
    with system_errors(f"cannot restore to {final}"):
        refuse_inside(final, env.files)
        with destination(final, identity, force, patience, env) as (made, env):
            env.files.make_directory(made.path)
            write_files(tree, made.state, env, progress)
            log = log_from_image(LogSource(store, seal, archive, point.reach), state.branches[point.branch].history,
                                 made.log, state.engine, env, reads=None, upto=point.txid, until_us=point.at_us,
                                 progress=progress)
            try:
                end, time_us = log.end, log.time_of(log.end.txid)
                complete = complete_until(point, end.txid, time_us)
                transactions, log_bytes, payloads = _counted(log)
                history = log.history
                log.close()
            except BaseException:
                log.abandon()
                raise
            run = {"kind": "full", "why": "", "source": store.url, "started_us": begun_us,
                   "ended_us": env.clock.now_us(), "from": 0, "to": end.txid, "end": list(end),
                   "complete_until_us": complete, "image_bytes": image.bytes, "log_bytes": log_bytes,
                   "transactions": transactions, "verified": False, "payloads": payloads}
            Manifest(target_id=env.randomness.token(ID_BYTES), history=history, engine=state.engine,
                     state_format=image.state_format, image_position=image.image_position,
                     consistent_from=image.consistent_from, moving=image.moving, chunk_bytes=CHUNK_BYTES,
                     files=_digested(made, (file for file, _ in tree.root.files), env), created_us=image.created_us,
                     runs=(run,)).write(env.files, made)
    bounds = Bounds(first=image.consistent_from.txid, last=end.txid, first_time_us=image.first_time_us or None,
                    last_time_us=time_us or None, complete_until_us=complete)
    return RawReport(source=store.url, destination=str(dest), store_id=image.history.store_id.hex(),
                     branch=history.branch.id.hex(), engine=state.engine, state_format=image.state_format,
                     image=image.session, bounds=bounds, image_bytes=image.bytes, transactions=transactions,
                     seconds=env.clock.monotonic() - started)


def _counted(log: Log) -> tuple[int, int, list[int]]:
    """Transactions and bytes of a log that was just written, and the versions of its payloads. Reads it once more."""
    count, size, payloads = 0, 0, set[int]()
    for record in log.read(log.base.txid):
        count += 1
        size += len(record.header) + len(record.payload) + (record.attachment.size if record.attachment else 0)
        if not record.is_kit:
            payloads.add(record.payload_version)
    return count, size, sorted(payloads)


def _digested(made: Generation, listed: Iterable[ImageFile], env: Env) -> tuple[CopiedFile, ...]:
    """The files that were written, with the digests of their chunks. O(bytes)."""
    found = []
    for entry in listed:
        with closing(env.files.open(made.state / entry.name)) as file:
            found.append(CopiedFile(entry.name, entry.size, tuple(
                xxh3_128_digest(file.pread(min(CHUNK_BYTES, entry.size - offset), offset))
                for offset in range(0, entry.size, CHUNK_BYTES))))
    return tuple(found)
