"""Copying a repository into another place: a disk into a bucket, one bucket into another.

The copy is the same repository: same id, same objects, byte for byte, so no key is needed. Objects are copied first,
and then the entries of the catalog that name them, in order. So at any moment the copy is the repository as it was, and
a run that dies is gone on with by the next one.

A copy must not go its own way: it says that it is a copy, and nothing is added to its catalog. It can be restored from,
verified and rehearsed, without leases and proofs. If the repository is lost, the copy is promoted to take its place.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from ...engine.env import REAL, Env
from ...engine.env.pool import Pool
from ...engine.errors import Diverged, ForeignStore, InvalidInput
from ...replay.files import SPARE_BYTES, Progress, silent
from ..report import Told, size_of
from . import names
from .errors import ObjectExists, ObjectMissing, RepositoryMissing
from .storage.early import check_room, tell_skew
from .storage.interface import ObjectStore, StoredObject
from .storage.probe import probe
from .storage.putting import put_own
from .storage.url import open_storage

logger = logging.getLogger("holdfast.repository")

_FOLDERS = (names.KEYS, names.PACKS, names.IMAGES, names.ATTACHMENTS, names.MERGED, names.LOG, names.WRITERS,
            names.CHECKPOINTS)
"""In this order: what names something is copied after it."""
_AT_ONCE = 8
_MOST_BYTES = 48 << 20
"""Of objects that are in memory at once, unless one alone is larger."""
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport(Told):
    """What a copy did, or would do (`dry_run`): objects and bytes that were copied, objects that were removed, and the
    last catalog entry."""

    repository: str
    copy: str
    dry_run: bool
    objects: int
    bytes: int
    removed: int
    entry: int
    seconds: float

    def __str__(self) -> str:
        if self.dry_run:
            gone = f", and {self.removed:,} removed" if self.removed else ""
            return (f"{self.objects:,} objects, {size_of(self.bytes)}, would be copied from {self.repository} to "
                    f"{self.copy}{gone}")
        gone = f", {self.removed:,} removed" if self.removed else ""
        return (f"{self.copy} is {self.repository} up to entry {self.entry}: {self.objects:,} objects copied, "
                f"{size_of(self.bytes)}{gone}, in {self.seconds:.2f} s")


def copy(url: str | os.PathLike[str], to: str | os.PathLike[str], *, remove: bool = False, dry_run: bool = False,
         progress: Progress | None = None, env: Env = REAL) -> CopyReport:
    """Copy a repository, or bring its copy up to date. O(objects listed, and bytes that the copy lacks).

    Args:
        url: the repository.
        to: where to: nothing, or an earlier copy.
        remove: remove what the repository has dropped since. Without it, the copy only grows.
        dry_run: only say what that would be.
        progress: called in this thread with (stage, done, total), in bytes.
        env: files, clock and threads.

    Raises:
        RepositoryMissing: there is no repository at `url`.
        ForeignStore: `to` is another repository.
        Diverged: the copy has gone its own way.
        StorageUnavailable, StorageUnsuitable, StorageDenied, DiskFull, Damaged.
    """
    started = env.clock.monotonic()
    with open_storage(url, env) as source, open_storage(to, env) as dest:
        if source.url == dest.url:
            raise InvalidInput(f"{source.url} cannot be copied into itself")
        _same_repository(source, dest, env, begin=not dry_run)
        if dry_run:
            lacking, gone = _all_lacking(source, dest), list(_gone(source, dest)) if remove else []
            return CopyReport(repository=source.url, copy=dest.url, dry_run=True, objects=len(lacking),
                              bytes=sum(listed.size for listed in lacking), removed=len(gone),
                              entry=_last_entry(source), seconds=env.clock.monotonic() - started)
        copied, size = 0, 0
        for attempt in range(_TRIES):
            last = _last_entry(source)
            try:
                count, more = _objects(source, dest, env, progress or silent)
            except ObjectMissing:
                if attempt == _TRIES - 1:
                    raise
                logger.info("an expiry removed objects while they were copied: it is begun again")
                continue
            copied, size = copied + count, size + more
            break
        _entries(source, dest, last, env)
        removed = 0
        for listed in _gone(source, dest) if remove else ():
            dest.delete(listed.name)
            removed += 1
        return CopyReport(repository=source.url, copy=dest.url, dry_run=False, objects=copied, bytes=size,
                          removed=removed, entry=last, seconds=env.clock.monotonic() - started)


def _same_repository(source: ObjectStore, dest: ObjectStore, env: Env, *, begin: bool) -> None:
    try:
        document = source.get(names.REPOSITORY)
    except ObjectMissing as error:
        raise RepositoryMissing(f"there is no repository at {source.url}") from error
    try:
        there = dest.get(names.REPOSITORY)
    except ObjectMissing:
        if not begin:
            return
        tell_skew(dest, probe(dest, env).ahead_us)
        put_own(dest, names.COPY_OF, source.url.encode(), env)  # first: without it, this would be a repository
        put_own(dest, names.REPOSITORY, document, env)
        return
    if there != document:
        raise ForeignStore(f"{dest.url} is another repository than {source.url}", hint="copy into an empty place")
    try:
        dest.get(names.COPY_OF)
    except ObjectMissing as error:
        raise Diverged(f"{dest.url} was a copy, and was promoted to a repository of its own",
                       hint="copy into another place") from error


def promote(url: str | os.PathLike[str], *, env: Env = REAL) -> None:
    """Make a copy a repository of its own, because the one that it was a copy of is lost. No later copy is made into
    it.

    Raises:
        RepositoryMissing: there is nothing. InvalidInput: it is not a copy.
    """
    with open_storage(url, env) as store:
        try:
            store.get(names.REPOSITORY)
        except ObjectMissing as error:
            raise RepositoryMissing(f"there is no repository at {store.url}") from error
        try:
            store.get(names.COPY_OF)
        except ObjectMissing as error:
            raise InvalidInput(f"{store.url} is not a copy", hint="it can be written to as it is") from error
        store.delete(names.COPY_OF)


def _last_entry(source: ObjectStore) -> int:
    """The number of the last entry of the catalog."""
    last = max((names.number_of(listed.name) for listed in source.list(f"{names.CATALOG}/")), default=0)
    while True:
        try:
            source.get(names.numbered(names.CATALOG, last + 1))
        except ObjectMissing:
            return last
        last += 1


def _objects(source: ObjectStore, dest: ObjectStore, env: Env, progress: Progress) -> tuple[int, int]:
    """Copy the objects that `dest` lacks. Returns their number and bytes. Raises `ObjectMissing` if one has gone."""
    lacking = _all_lacking(source, dest)
    total, done = sum(listed.size for listed in lacking), 0
    check_room(dest, total + SPARE_BYTES)
    pool = Pool("holdfast-copy", _AT_ONCE, env.scheduler)
    under_way: deque[tuple[int, Future[None]]] = deque()
    try:
        for listed in lacking:
            while under_way and (len(under_way) >= _AT_ONCE
                                 or sum(size for size, _ in under_way) + listed.size > _MOST_BYTES):
                size, before = under_way.popleft()
                before.result()
                done += size
                progress("copy", done, total)
            under_way.append((listed.size, pool.submit(
                lambda name=listed.name: put_own(dest, name, source.get(name), env))))  # type: ignore[misc]
        for size, before in under_way:
            before.result()
            done += size
            progress("copy", done, total)
    finally:
        pool.close()
    return len(lacking), total


def _all_lacking(source: ObjectStore, dest: ObjectStore) -> list[StoredObject]:
    """The objects that `dest` lacks, but for the entries of the catalog, in the order in which they are copied."""
    return [listed for folder in _FOLDERS for listed in _lacking(source, dest, folder)]


def _lacking(source: ObjectStore, dest: ObjectStore, folder: str) -> Iterator[StoredObject]:
    there = {listed.name: listed.size for listed in dest.list(f"{folder}/")}
    for listed in source.list(f"{folder}/"):
        if there.get(listed.name) != listed.size:
            yield listed


def _entries(source: ObjectStore, dest: ObjectStore, last: int, env: Env) -> None:
    """Copy the entries of the catalog, in order. Raises `Diverged`."""
    known = max((names.number_of(listed.name) for listed in dest.list(f"{names.CATALOG}/")), default=0)
    for number in range(max(1, min(known, last)), last + 1):  # the last one that is there is compared
        name = names.numbered(names.CATALOG, number)
        try:
            put_own(dest, name, source.get(name), env)
        except ObjectExists as error:
            raise Diverged(f"{dest.url} has another entry {number} in its catalog than {source.url}: somebody wrote "
                           "into the copy", hint="copy into an empty place") from error
    if known > last:
        raise Diverged(f"{dest.url} has {known} entries in its catalog, and {source.url} has {last}",
                       hint="check which of the two is the copy")


def _gone(source: ObjectStore, dest: ObjectStore) -> Iterator[StoredObject]:
    """The objects that the source no longer has."""
    for folder in (names.PACKS, names.IMAGES, names.ATTACHMENTS, names.MERGED, names.LOG):
        for listed in dest.list(f"{folder}/"):
            try:
                source.get(listed.name, 0, 1)
            except ObjectMissing:
                yield listed
