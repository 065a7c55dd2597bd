"""Making a store from a repository: the image's files, the log up to a point, and the engine over both.

The files are written by several threads, a part at a time, and compared with their digests as they come. The log
goes into a scratch log beside them, and the engine replays it as it replays a backup's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Context, Engine
from ...engine.contract.image import ImageFile
from ...engine.env import Env, File, Files
from ...engine.env.pool import Pool
from ...engine.errors import Damaged, DiskFull, UnsupportedFormat
from ...engine.model.positions import History
from ...engine.model.records import Record
from ...engine.source.interface import block_digest
from ...engine.wal.log import Log
from ...replay.files import SPARE_BYTES, Progress, check_names
from ...replay.roll import BATCH_BYTES, history_at
from ..engines import AnyEngine, Options
from ..target.target import LOG
from . import names, pieces
from .archive import Archive
from .attached import read_attachment
from .blocks import LEAF_BYTES, Placed, Root, TreeReader
from .errors import ObjectMissing
from .plan import Reach
from .sealed import Kind, Seal
from .state import Image
from .storage.interface import ObjectStore

WORKERS = 4
"""Threads that fetch and write parts of files."""
PART_BYTES = 8 << 20
"""What one of them does at a time."""


def tree_of(store: ObjectStore, seal: Seal, image: Image, env: Env) -> TreeReader:
    """The tree of an image. Raises `Damaged`, `ObjectMissing`."""
    name = names.root(image.session)
    root = Root.decode(seal.open(Kind.IMAGE, name, store.get(name)), f"{store.url}/{name}")
    return TreeReader(store, seal, root, env)


def write_files(tree: TreeReader, into: Path, env: Env, progress: Progress) -> int:
    """Write the files of an image below `into`, whole and durable. What is there already is read, and only blocks that
    differ are fetched and written; files that the image does not have are removed. Returns the bytes that were written.
    O(bytes).

    Raises:
        DiskFull: checked before the first byte. Damaged, ObjectMissing, StorageUnavailable.
    """
    files, listed = env.files, [file for file, _ in tree.root.files]
    check_names(listed)
    files.make_directory(into)
    _remove_others(files, into, {into / file.name for file in listed})
    total, done, written = tree.root.bytes, 0, 0
    there = sum(min(file.size, files.size(into / file.name)) for file in listed if files.exists(into / file.name))
    if (room := files.free(into)) < total - there + SPARE_BYTES:
        raise DiskFull(f"the image needs {total - there + SPARE_BYTES:,} bytes in {into}, and its file system has "
                       f"{room:,} left")
    pool = Pool("holdfast-restore", WORKERS, env.scheduler)
    try:
        for entry, leaves in tree.root.files:
            path = into / entry.name
            if path.parent != into:
                files.make_directory(path.parent)
            file = files.open(path, "write" if files.exists(path) else "create")
            try:
                old = min(file.size(), entry.size)
                file.truncate(old)
                file.reserve(entry.size)
                parts = [pool.submit(_part(tree, file, entry, leaves[start // LEAF_BYTES], start, old))
                         for start in range(0, entry.size, PART_BYTES)]
                try:
                    for part in parts:
                        written += part.result()
                        done = min(done + PART_BYTES, total)
                        progress("image", done, total)
                except BaseException:
                    _settle(parts)
                    raise
                if file.size() != entry.size:
                    raise Damaged(f"has {file.size():,} bytes, and {entry.size:,} belong there", path=entry.name)
                file.sync()
            finally:
                file.close()
    finally:
        pool.close()
    for directory in {into, *(p for f in listed for p in (into / f.name).parents if p.is_relative_to(into))}:
        files.sync_directory(directory)
    return written


def _remove_others(files: Files, directory: Path, kept: set[Path]) -> None:
    """Remove what is below a directory and is neither kept nor on the way to it."""
    ways = {parent for path in kept for parent in path.parents}
    for name in files.list(directory):
        path = directory / name
        if path in ways and files.is_directory(path):
            _remove_others(files, path, kept)
        elif path not in kept or files.is_directory(path):
            if files.is_directory(path):
                files.remove_tree(path)
            else:
                files.unlink(path)


def _settle(parts: Iterable[Future[int]]) -> None:
    """Wait until nothing writes to the file any more."""
    for part in parts:
        if not part.cancel():
            with contextlib.suppress(Exception):
                part.result()


def _part(tree: TreeReader, file: File, entry: ImageFile, place: Placed, start: int, old: int) -> Callable[[], int]:
    """Write a part of what one leaf lists. `old`: so many bytes of the file were there before. Returns the bytes that
    were written."""
    def work() -> int:
        leaf, size, within = tree.leaf(place), tree.root.block_bytes, start % LEAF_BYTES
        length, listed = min(PART_BYTES, entry.size - start), min(LEAF_BYTES, entry.size - start + within)
        if len(leaf.blocks) != -(-listed // size):
            raise Damaged(f"has a leaf with {len(leaf.blocks)} blocks for {listed:,} bytes of {entry.name}",
                          path=place.pack)
        blocks = leaf.blocks[within // size : -(-(within + length) // size)]
        numbers: Sequence[int] = range(len(blocks))
        if start < old:
            there = memoryview(file.pread(min(length, old - start), start))
            numbers = [n for n in numbers if block_digest(there[n * size : (n + 1) * size]) != blocks[n].digest]
        content = bytearray(length)
        for number, block in tree.read([blocks[n] for n in numbers], leaf.headers):
            at = numbers[number] * size
            if len(block) != min(size, length - at):
                raise Damaged(f"has {len(block)} bytes for block {numbers[number]} of {entry.name}", path=place.pack)
            content[at : at + len(block)] = block
        written = 0
        for first, last in _stretches(numbers):
            there = memoryview(content)[first * size : (last + 1) * size]
            file.pwrite(there, start + first * size)
            written += len(there)
        return written

    return work


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as stretches without a gap: first and last.

    >>> list(_stretches([1, 2, 3, 7]))
    [(1, 3), (7, 7)]
    """
    first: int | None = None
    for at, number in enumerate(numbers):
        if first is None:
            first = number
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            yield first, number
            first = None


# --- log ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LogSource:
    """The log of one way through the repository: an image's own, and what was archived after it."""

    store: ObjectStore
    seal: Seal
    archive: Archive
    reach: Reach

    def records(self, upto: int | None, until_us: int | None) -> Iterator[tuple[Record, str]]:
        """Records after the image's position, up to a transaction or a commit time, each with the folder of its
        attachment. Raises `Damaged`."""
        image = self.reach.image
        last = image.image_position
        for folder, counts, records in self._pieces(upto):
            for record in records:
                if record.txid > counts:  # what comes after is another branch's
                    break
                if record.txid <= last.txid:
                    continue
                if (upto is not None and record.txid > upto) or (until_us is not None and record.time_us > until_us
                                                                 and record.txid > image.consistent_from.txid):
                    return
                if record.txid != last.txid + 1:
                    raise Damaged(f"the archived log has transaction {record.txid} after {last.txid}")
                last = record.position
                yield record, folder
                if record.txid == upto:  # what comes after is not read: it may be damaged
                    return
                if record.txid == counts:
                    break

    def _pieces(self, upto: int | None) -> Iterator[tuple[str, int, Iterator[Record]]]:
        """Folder of attachments, the last transaction that counts, and records."""
        image = self.reach.image
        wanted = self.reach.last if upto is None else upto
        for number in range(1, image.log_objects + 1):
            name = names.image_log(image.session, number)
            try:
                piece, records = pieces.decode(self.seal, name, self.store.get(name), self.store)
            except ObjectMissing as error:
                raise Damaged("is missing: it is part of an image", path=f"{self.store.url}/{name}") from error
            yield names.image_files(image.session), self.reach.own, records
            if piece.end.txid >= self.reach.own:
                break
        last = self.reach.own
        for stretch in self.reach.stretches:
            if last >= wanted:
                return
            for _, records in self.archive.read(stretch.branch, last, min(wanted, stretch.end)):
                yield names.branch_files(stretch.branch), stretch.end, records
            last = stretch.end


def log_from_image(source: LogSource, history: History, place: Path, engine: str, env: Env, *,
                   reads: Collection[int] | None, upto: int | None, until_us: int | None, progress: Progress) -> Log:
    """A log with the records from the image's position on, for replay. Open, and to be closed. O(log).

    Args:
        engine: its name. reads: the payload versions that it reads; None: any.

    Raises:
        Damaged: also if it does not reach `upto`.
        UnsupportedFormat: the engine does not read a transaction.
        DiskFull.
    """
    image = source.reach.image
    begin = image.image_position
    log = Log.create(place, history_at(history, begin), begin, engine=engine, last_time_us=image.image_time_us,
                     options=LOG, env=env)
    try:
        waiting = 0
        for record, folder in source.records(upto, until_us):
            if reads is not None and not record.is_kit and record.payload_version not in reads:
                raise UnsupportedFormat(f"transaction {record.txid} has payload version {record.payload_version}; the "
                                        f"{engine} engine here reads {sorted(reads)}")
            _begin_branches(log, history)
            if record.attachment is not None:
                writer = log.import_attachment(record.attachment)
                try:
                    for piece in read_attachment(source.store, source.seal, record.attachment, folder):
                        writer.write(piece)
                    writer.finish()
                except BaseException:
                    writer.abandon()
                    raise
            log.writer.append_record(record)
            waiting += len(record.payload) + len(record.header)
            if waiting >= BATCH_BYTES:
                log.writer.sync()
                waiting = 0
                progress("log", record.txid - begin.txid, (upto or source.reach.last) - begin.txid)
        _begin_branches(log, history)
        log.writer.sync()
        if upto is not None and log.end.txid < upto:
            raise Damaged(f"the archived log ends at transaction {log.end.txid}, and was to go to {upto}")
        if log.end.txid < image.consistent_from.txid or (
                log.chain_at(image.consistent_from.txid) != image.consistent_from.chain):
            raise Damaged(f"the log of the image {image.session[:8]} has another transaction "
                          f"{image.consistent_from.txid} than the catalog")
    except BaseException:
        log.abandon()
        raise
    return log


def _begin_branches(log: Log, history: History) -> None:
    """Begin the branches that leave the one before where the log ends, with what waits to be synced."""
    known, end = len(log.history.branches), log.writer.appended
    if begun := [branch for branch in history.branches[known:] if branch.start == end]:
        log.writer.sync()
        log.writer.extend_history(History(history.store_id, history.branches[: known + len(begun)]))


@contextlib.contextmanager
def opened_state(tree: TreeReader, image: Image, into: Path, engine: AnyEngine, options: Options, env: Env,
                 progress: Progress) -> Iterator[tuple[Engine[Any, Any], int]]:
    """Write the files of an image to `into`, and open them as a state to be replayed from its position. Gives the bytes
    that were written, too."""
    written = write_files(tree, into, env, progress)
    opened = engine.open(into, Context(env, options, store_id=image.history.store_id), at=image.image_position)
    try:
        yield opened, written
    finally:
        opened.close()
