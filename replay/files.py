"""The bytes of an image: copied from a source into a directory, and later read back and compared with their digests.

A copy is read chunk by chunk, and the xxh3-128 of each chunk is kept: in a target's manifest, for `verify`. Some
threads read ahead, one writes, and one syncs what was written, so that neither network nor disk waits for the other.
Only a few chunks are in memory at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from xxhash import xxh3_128_digest

from ..engine.contract.image import ImageFile
from ..engine.env import Env, File, Files, Scheduler, Task, is_disk_full
from ..engine.errors import Damaged, DiskFull, SourceRefused
from ..engine.source.interface import CHUNK_BYTES

SPARE_BYTES = 16 << 20
"""Bytes that must stay free once a copy is whole: for log, documents and the file system itself."""

MAX_NAME = 255
"""The most bytes that a name in a directory may have."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """One file of an image as it was copied, with the xxh3-128 of each chunk, in order."""

    name: str
    size: int
    digests: tuple[bytes, ...]


Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work proceeds. The stages `log` and `replay` count transactions, others bytes."""


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that does nothing."""


def step(done: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Bytes from one sync to the next when `done` bytes have been copied. Two chunks at first, later four: four are as
    fast as any larger step, and one takes twice the time. After each sync, `COPY` is written anew with the digests of
    all chunks so far. Steps of large copies grow too, so that `COPY` is at most a sixty-fourth of what is written.

    >>> [step(n << 20) >> 20 for n in (0, 100, 1000, 100_000)]
    [8, 12, 16, 24]
    """
    first = 2 * chunk_bytes
    return max(min(max(first, done // 8), 2 * first), done >> 12)


Reader = Callable[[str, int, int], bytes]
"""(name, offset, length) -> exactly these bytes of an image's file."""


def copy_files(read: Reader, listed: Sequence[ImageFile], into: Path, *, env: Env,
               done: Mapping[str, Sequence[bytes]] | None = None, durable: bool = True, chunk_bytes: int = CHUNK_BYTES,
               on_synced: Callable[[dict[str, list[bytes]]], None] | None = None,
               progress: Progress = silent, stage: str = "copy") -> tuple[CopiedFile, ...]:
    """Copy the listed files below `into`.

    Args:
        read: where the bytes come from.
        listed: what to copy.
        into: the directory; made if it is missing.
        env: files and threads.
        done: by file name, digests of the leading chunks that are there already.
        durable: sync files and directories. If False, the copy is for this process only.
        chunk_bytes: bytes that are read at a time and have a digest of their own.
        on_synced: called now and then, in the caller's thread, with the digests of all chunks that are synced so far.
        progress, stage: what to call, in the caller's thread, and the stage to name.

    Raises:
        DiskFull: no room; checked before the first byte.
    """
    files = env.files
    check_names(listed)
    files.make_directory(into)
    digests = {f.name: _there(f, into, (done or {}).get(f.name, ()), chunk_bytes, files) for f in listed}
    total = sum(f.size for f in listed)
    there = sum(min(f.size, len(digests[f.name]) * chunk_bytes) for f in listed)
    taken = sum(min(f.size, files.size(into / f.name)) for f in listed if files.exists(into / f.name))
    needed, room = total - taken + SPARE_BYTES, files.free(into)  # an earlier run may have reserved more than it copied
    if room < needed:
        raise DiskFull(f"the copy in {into} needs {needed:,} bytes and its file system has {room:,} left")
    ahead = Ahead(read, _pieces(listed, digests, chunk_bytes), env.scheduler)
    copier = _Copier(ahead.take, into, digests, chunk_bytes, env, durable, on_synced, partial(progress, stage), there,
                     total)
    try:
        for entry in listed:
            copier.copy(entry)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"no room left for the copy in {into}") from error
        raise
    finally:
        ahead.close()
    if durable:
        for directory in {into, *(p for f in listed for p in (into / f.name).parents if p.is_relative_to(into))}:
            files.sync_directory(directory)
    if on_synced is not None:
        on_synced(digests)
    return tuple(CopiedFile(f.name, f.size, tuple(digests[f.name])) for f in listed)


def _there(entry: ImageFile, into: Path, done: Sequence[bytes], chunk_bytes: int, files: Files) -> list[bytes]:
    """The digests of the chunks of a file that need not be copied again. `on_synced` reports only synced chunks, so one
    that is missing now was removed by somebody."""
    path = into / entry.name
    whole = files.exists(path) and files.size(path) >= min(entry.size, len(done) * chunk_bytes)
    return list(done) if whole else []


def _pieces(listed: Sequence[ImageFile], digests: Mapping[str, Sequence[bytes]], chunk_bytes: int
            ) -> list[tuple[str, int, int]]:
    """The pieces that remain to be read, in order: name, offset, length."""
    return [(f.name, offset, min(chunk_bytes, f.size - offset)) for f in listed
            for offset in range(len(digests[f.name]) * chunk_bytes, f.size, chunk_bytes)]


READERS = 2
"""Threads that read ahead. While one receives a piece, the source already reads and hashes the next."""
WINDOW = 4


class Ahead(Generic[T]):
    """Reads pieces ahead in its own threads, and returns what comes of them in order. At most `WINDOW` are in memory.
    `read` is called in those threads with name, offset and length."""

    def __init__(self, read: Callable[[str, int, int], T], pieces: Sequence[tuple[str, int, int]],
                 scheduler: Scheduler) -> None:
        self._read, self._pieces = read, pieces
        self._changed = scheduler.condition()
        self._ready: dict[int, T | BaseException] = {}
        self._begun = 0
        self._taken = 0
        self._stop = False
        self._tasks: list[Task] = []
        try:
            for _ in range(READERS):
                self._tasks.append(scheduler.spawn("holdfast-read-ahead", self._work))
        except BaseException:  # a thread could not be started: end those that run
            self.close()
            raise

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._begun - self._taken >= WINDOW and not self._stop:
                    self._changed.wait()
                if self._stop or self._begun == len(self._pieces):
                    return
                number = self._begun
                self._begun += 1
            item: T | BaseException
            try:
                item = self._read(*self._pieces[number])
            except BaseException as error:
                item = error
            with self._changed:
                self._ready[number] = item
                self._stop = self._stop or isinstance(item, BaseException)
                self._changed.notify_all()

    def take(self) -> T:
        """What came of the next piece. Raises the error of reading it. If it was not read because a later piece failed,
        raises that piece's error."""
        with self._changed:
            while self._taken not in self._ready and not (self._stop and self._idle()):
                self._changed.wait()
            item = self._ready.pop(self._taken, None)
            if item is None:
                item = next(e for _, e in sorted(self._ready.items()) if isinstance(e, BaseException))
            self._taken += 1
            self._changed.notify_all()
        if isinstance(item, BaseException):
            raise item
        return item

    def _idle(self) -> bool:
        """Whether no thread is reading a piece."""
        return self._begun - self._taken == len(self._ready)

    def close(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        for task in self._tasks:
            task.join()


_SPARE_S = 0.02
PART_BYTES = 256 << 10
"""If the copier waits so many seconds for each chunk, the source is slower than the disk, and there is time to sync
each part of so many bytes."""


class _Copier:
    """The state of one `copy_files`: the reader, the sync under way, and the progress."""

    def __init__(self, take: Callable[[], bytes], into: Path, digests: dict[str, list[bytes]], chunk_bytes: int,
                 env: Env, durable: bool, on_synced: Callable[[dict[str, list[bytes]]], None] | None,
                 progress: Callable[[int, int], None], done: int, total: int) -> None:
        self.take, self.into, self.env, self.durable = take, into, env, durable
        self.digests, self.on_synced, self.progress = digests, on_synced, progress
        self.chunk_bytes = chunk_bytes
        self.done, self.total = done, total
        self.untold = 0
        self.idle = 0.0  # seconds that this waits for a chunk, of late
        self.sync: _Sync | None = None

    def copy(self, entry: ImageFile) -> None:
        files, chunks = self.env.files, self.digests[entry.name]
        path = self.into / entry.name
        if path.parent != self.into:
            files.make_directory(path.parent)
        file = files.open(path, "write" if files.exists(path) else "create")
        try:
            offset = min(entry.size, len(chunks) * self.chunk_bytes)
            file.truncate(offset)
            file.reserve(entry.size)  # faster to write to, and cannot run out of room half-way
            unsynced = 0
            while offset < entry.size:
                asked = self.env.clock.monotonic()
                try:
                    data = self.take()
                except BaseException:  # such as a source that has gone
                    with contextlib.suppress(OSError):
                        self._keep(entry, file, len(chunks))
                    raise
                if len(data) != min(self.chunk_bytes, entry.size - offset):
                    raise Damaged(f"the source gave {len(data)} bytes of {entry.name} at {offset}")
                # A mean, since the chunks of two readers may come as pairs.
                self.idle = (self.idle + self.env.clock.monotonic() - asked) / 2
                gently = self.durable and self.idle >= _SPARE_S
                if gently:
                    self._write_gently(file, data, offset)
                else:
                    file.pwrite(data, offset)
                chunks.append(xxh3_128_digest(data))
                offset += len(data)
                unsynced += len(data)
                self.done += len(data)
                self.progress(self.done, self.total)
                if gently:
                    self._tell(entry, len(chunks), unsynced)
                    unsynced = 0
                elif self.durable and unsynced >= step(self.done, self.chunk_bytes) and offset < entry.size:
                    self._sync_behind(entry, file, unsynced)
                    unsynced = 0
            self.finish_sync()
            if self.durable:
                file.sync()
                self._tell(entry, len(chunks), unsynced)
        finally:
            self.finish_sync()
            file.close()

    def _write_gently(self, file: File, data: bytes, offset: int) -> None:
        """Write a chunk with a sync after each small part. A large sync would hold up every other one on this disk,
        such as those of commits, for as long as it takes, and a large write whoever waits for the processor."""
        self.finish_sync()
        view = memoryview(data)
        for at in range(0, len(view), PART_BYTES):
            file.pwrite(view[at : at + PART_BYTES], offset + at)
            file.datasync()

    def _sync_behind(self, entry: ImageFile, file: File, unsynced: int) -> None:
        before = self.sync
        self.finish_sync()
        if before is not None:
            self._tell(entry, before.chunks, before.size)
        self.sync = _Sync(file, len(self.digests[entry.name]), unsynced, self.env.scheduler)

    def _keep(self, entry: ImageFile, file: File, chunks: int) -> None:
        """Sync and report what has come, so that the next run can resume after it. After a failed sync nothing is
        reported, since nothing is known to be durable."""
        self.finish_sync()
        if self.durable and self.on_synced is not None and chunks:
            file.datasync()
            self._note(entry, chunks)

    def finish_sync(self) -> None:
        """Wait for the sync that is under way. Raises its error."""
        sync, self.sync = self.sync, None
        if sync is not None:
            sync.wait()

    def _tell(self, entry: ImageFile, chunks: int, synced: int) -> None:
        self.untold += synced
        if self.untold >= step(self.done, self.chunk_bytes):
            self._note(entry, chunks)

    def _note(self, entry: ImageFile, chunks: int) -> None:
        if self.on_synced is not None:
            self.untold = 0
            self.on_synced({n: d[:chunks] if n == entry.name else list(d) for n, d in self.digests.items() if d})


class _Sync:
    """One fdatasync, in a thread beside the copier. When it has succeeded, the first `chunks` of the file are durable.
    `size`: the bytes that were written since the sync before."""

    def __init__(self, file: File, chunks: int, size: int, scheduler: Scheduler) -> None:
        self.chunks, self.size = chunks, size
        self._error: BaseException | None = None

        def work() -> None:
            try:
                file.datasync()
            except BaseException as error:
                self._error = error

        self._task = scheduler.spawn("holdfast-copy-sync", work)

    def wait(self) -> None:
        self._task.join()
        if self._error is not None:
            raise self._error


def copy_durably(files: Files, old: Path, new: Path) -> None:
    """Copy a file to a name that does not exist yet. Its bytes are durable, its name is not. Raises `DiskFull`."""
    try:
        files.copy_file(old, new, durable=True)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"no room left to copy {old} to {new}") from error
        raise


def link_or_copy(files: Files, old: Path, new: Path) -> None:
    """Give a file that does not change any more a second name. If the file system has no hard links, copy it."""
    try:
        files.link(old, new)
    except OSError:
        copy_durably(files, old, new)


def check_names(listed: Sequence[ImageFile]) -> None:
    """Check that each name from a source is a path below the directory that it is copied to. Raises `SourceRefused`."""
    seen: set[str] = set()
    folders = {str(folder) for f in listed for folder in PurePosixPath(f.name).parents}
    for f in listed:
        parts = PurePosixPath(f.name).parts
        proper = parts and f.name == "/".join(parts) and ".." not in parts and not set(f.name) & {"\0", "\\"}
        proper = proper and f.name not in folders and max(map(len, map(os.fsencode, parts))) <= MAX_NAME
        if not proper or parts[0] == "/" or f.name in seen:
            raise SourceRefused(f"the source lists the image file {f.name!r}, which is not a proper name",
                                hint="do not use this source")
        if f.size < 0:
            raise SourceRefused(f"the source lists {f.name!r} with {f.size} bytes", hint="do not use this source")
        seen.add(f.name)


class DigestedFiles:
    """Reads an image that was copied, and compares each chunk with the digest taken then. For any thread."""

    def __init__(self, state: Path, copied: Sequence[CopiedFile], chunk_bytes: int, env: Env) -> None:
        self._state, self._files, self._chunk_bytes = state, env.files, chunk_bytes
        self._copied = {c.name: c for c in copied}
        self._open: dict[str, File] = {}
        self._lock = env.scheduler.lock()

    @property
    def listed(self) -> tuple[ImageFile, ...]:
        return tuple(ImageFile(c.name, c.size) for c in self._copied.values())

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of whole chunks. Only the last one of the file may be shorter.

        Raises:
            Damaged: a byte is missing or has changed.
        """
        copied, path = self._copied[name], self._state / name
        with self._lock:  # one file is open at a time, and several threads read ahead
            if name not in self._open:
                self.close()
                try:
                    self._open[name] = self._files.open(path)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                    raise Damaged(f"is no longer a file: {error.strerror}", path=str(path)) from error
                if self._open[name].size() != copied.size:
                    raise Damaged(f"has {self._open[name].size():,} bytes, and had {copied.size:,} when it was copied",
                                  path=str(path))
            data = self._open[name].pread(length, offset)
        for start in range(0, len(data), self._chunk_bytes):
            chunk = (offset + start) // self._chunk_bytes
            digest = xxh3_128_digest(memoryview(data)[start : start + self._chunk_bytes])
            if chunk >= len(copied.digests) or digest != copied.digests[chunk]:
                raise Damaged("differs from what was copied", path=str(path), offset=offset + start)
        return data

    def verify(self, progress: Progress = silent) -> int:
        """Read and compare every byte. Returns their number. Raises `Damaged`. O(bytes)."""
        done, total = 0, sum(c.size for c in self._copied.values())
        for c in self._copied.values():
            if len(c.digests) != -(-c.size // self._chunk_bytes):
                raise Damaged(f"has {len(c.digests)} digests for {c.size:,} bytes", path=str(self._state / c.name))
            if not c.size:
                self.read(c.name, 0, 0)
            for offset in range(0, c.size, self._chunk_bytes):
                done += len(self.read(c.name, offset, min(self._chunk_bytes, c.size - offset)))
                progress("verify", done, total)
        return done

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> DigestedFiles:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
