"""A repository: a store's whole past, on a disk or in a bucket.

Nothing in it is ever changed. Objects are put under names that nobody else can take, the catalog decides which of them
count, and what no kept restore point needs is removed by an expiry. See `docs/repository.md` for its use, and
`docs/repository-design.md` for why it is right.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ...engine.contract.view import View
from ...engine.env import REAL, Env
from ...engine.env.shown import shown
from ...engine.errors import (
    Damaged,
    ForeignStore,
    HoldfastError,
    InvalidInput,
    LeaseExpired,
    NotFound,
    OtherBranch,
    RestorePointOutOfRange,
    SourceUnavailable,
    TooManyLeases,
    Unsupported,
)
from ...engine.model import document
from ...engine.model.positions import ID_BYTES
from ...engine.source.interface import Source, SourceInfo
from ...engine.source.local import LocalSource
from ...replay.files import SPARE_BYTES, Progress, silent
from ..cluster import sources
from ..connection import Connection, Named
from ..engines import AnyEngine, Options
from ..report import RestoreReport
from ..restore import check_point, micros
from . import names
from .archive import Archive, Tail
from .blocks import BLOCK_BYTES
from .catalog import Catalog, Decide
from .errors import (
    BlocksDropped,
    CatalogReadOnly,
    KeyMissing,
    KeyNeedless,
    ObjectExists,
    ObjectMissing,
    RepositoryExists,
    RepositoryMissing,
    StorageDenied,
)
from .hooks import RepositoryPlugin, ask, tells, told
from .plan import Point, bounds, branch_named, has_log, newest_branch, reach_of_time, reach_of_txid, reaches
from .proofs import stale
from .reports import BackupPlan, BranchInfo, ImageInfo, ImageReport, RawReport, RepositoryInfo, RestorePlan, Rights
from .sealed import Seal
from .state import BranchLog, CatalogState, Entry, Image, Synthetic
from .storage.early import check_room, tell_room, tell_skew
from .storage.interface import ObjectStore
from .storage.probe import probe
from .storage.putting import put_own
from .storage.url import open_storage

if TYPE_CHECKING:
    from ...replay.ha.plugin import LogToBranch
    from .archiver import Archiver
    from .expiring import Keep
    from .keys import Key, Keyring
    from .reports import Expired, Rehearsal, RepositoryVerified
    from .restore_run import Restoring

logger = logging.getLogger("holdfast.repository")

_MAGIC, _VERSION = b"HFREPOS\0", 1
_TRIES = 3
_DAMAGED_HINT = "holdfast repo verify says what is damaged, and which images that costs; the others restore"
T = TypeVar("T")
LEASE_S = 24 * 3600.0
"""Seconds for which a restore keeps what it reads from being expired, if it does not end before."""


class Repository:
    """See the module's text. For one thread at a time; open it again for another thread.

    Attributes:
        url: without secrets. id: 32 hex digits.
        encrypted: whether it is.
        rights: of the credentials, as `init` or the last `info(rights=True)` tried them; else None.
        plugins: those that are told what was done, and may veto an expiry. Add yours.
    """

    def __init__(self, store: ObjectStore, repository_id: bytes, keyring: Keyring | None, env: Env, *,
                 salvage: bool = False) -> None:
        """Use `init` or `open`."""
        self.url, self.id, self.encrypted = store.url, repository_id.hex(), keyring is not None
        self.plugins: list[RepositoryPlugin] = []
        self.rights: Rights | None = None
        self._store, self._keyring, self._env = store, keyring, env
        self._seal = Seal(repository_id, store.url, keyring, env)
        self._salvage = salvage
        self._catalog = self._new_catalog()

    def _new_catalog(self) -> Catalog:
        if not self._salvage:
            return Catalog(self._store, self._seal, self._env)
        from .salvage import SalvagedCatalog

        return SalvagedCatalog(self._store, self._seal, self._env)

    # --- opening --------------------------------------------------------------------------------------------------

    @classmethod
    def init(cls, url: str | os.PathLike[str], *, key: Key | None = None, env: Env = REAL) -> Repository:
        """Make a repository, and open it. With a key it is encrypted, for ever. If an earlier call died, this one
        finishes it.

        Raises:
            RepositoryExists: there is one already.
            StorageUnsuitable, StorageDenied, StorageUnavailable: tried before anything is made.
            SettingError, InvalidInput, DiskFull.
        """
        store = open_storage(url, env)
        try:
            probed = probe(store, env)
            tell_skew(store, probed.ahead_us)
            made: dict[str, Any] = {"id": env.randomness.token(ID_BYTES), "encrypted": key is not None,
                    "created_us": env.clock.now_us()}
            try:
                put_own(store, names.REPOSITORY, document.encode(_MAGIC, _VERSION, made), env)
            except ObjectExists as error:
                made = _document(store)
                if not made["encrypted"] or key is None or list(store.list("keys/")):
                    raise RepositoryExists(f"{store.url} is a repository already") from error
            keyring = None
            if key is not None:
                from .keys import Keyring

                try:
                    keyring = Keyring.make(store, made["id"], key, env)
                except ObjectExists as error:
                    raise RepositoryExists(f"{store.url} was made by somebody else at this moment") from error
            repository = cls(store, made["id"], keyring, env)
            repository.rights = Rights.of(probed)
            return repository
        except BaseException:
            store.close()
            raise

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, key: Key | None = None, salvage: bool = False, env: Env = REAL
             ) -> Repository:
        """Open a repository. Two reads.

        Args:
            key: that of an encrypted one.
            salvage: do not read its catalog, because that is lost or damaged: find images and archived log by what they
                say of themselves. Marks and proofs are lost. Nothing can be added, and what was dropped and is still
                there may show. See `RepositoryInfo.left_out`.
            env: files, clock, randomness and threads.

        Raises:
            RepositoryMissing: there is none. KeyMissing, KeyWrong, StorageUnavailable, StorageDenied, Damaged.
            KeyNeedless: a key was given, and the repository is not encrypted.
        """
        store = open_storage(url, env)
        try:
            said = _document(store)
            if not said["encrypted"]:
                if key is not None:
                    raise KeyNeedless(f"{store.url} is not encrypted, and a key was given: what you back up into it "
                                      "could be read by everybody who reads its objects")
                return cls(store, said["id"], None, env, salvage=salvage)
            if key is None:
                raise KeyMissing(f"{store.url} is encrypted, and no key was given")
            from .keys import Keyring

            return cls(store, said["id"], Keyring.read(store, said["id"], key), env, salvage=salvage)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def rotate(self, key: Key) -> None:
        """Begin a new data key, and wrap all of them with `key`, which opens the repository from now on. What the old
        key opens it opens until the old objects `keys/N` are deleted. Raises `Unsupported` if it is not encrypted, and
        `CatalogReadOnly`."""
        self._catalog.refuse_read_only()
        if self._keyring is None:
            raise Unsupported(f"{self.url} is not encrypted, so it has no key to rotate",
                              hint="make an encrypted repository, and copy this one into it")
        self._keyring = self._keyring.rotate(self._store, bytes.fromhex(self.id), key, self._env)
        self._seal = Seal(bytes.fromhex(self.id), self.url, self._keyring, self._env)
        self._catalog = self._new_catalog()

    # --- taking ---------------------------------------------------------------------------------------------------

    @tells
    def backup(self, source: Named, *, connection: Connection | None = None, accept_branch: str | None = None,
               block_bytes: int = BLOCK_BYTES, rate: float | None = None, digest: bool = False,
               lease_ttl: float = 300.0, progress: Progress | None = None) -> ImageReport:
        """Take an image: whole to restore, and only what changed since the last one is sent and stored.

        Args:
            source: a URI, an open store, or any `Source`. Of a cluster a healthy follower is preferred, and if it goes
                away, the next member is asked.
            connection: how to reach a URI.
            accept_branch: id (or its first 8 digits or more) of the source's branch, if it is new to the repository.
            block_bytes: 4 KiB to 64 KiB, a power of two. If it is not that of the last image, everything is stored.
            rate: bytes per second that are read of the image at most.
            digest: have the source compute the digest of its content, so that each rehearsal of this image is compared
                with it. The source reads all of its content once more.
            lease_ttl: seconds in which a run that died can be resumed by the next one.
            progress: called in this thread with (stage, done, total).

        Raises:
            ForeignStore, OtherBranch: refused; nothing was changed.
            SourceUnavailable, SourceRestarted, SourceRefused, NotAuthorized, LeaseExpired, TooManyLeases: mend that,
            and
                run it again; what was stored is used.
            StorageUnavailable, StorageDenied, DiskFull, Damaged, InvalidInput, SettingError.
        """
        _check_block(block_bytes)
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate < float("inf")):
            raise InvalidInput(f"rate={shown(rate)} is not a positive number of bytes per second")
        started = self._env.clock.monotonic()

        def work(asked: Source) -> ImageReport:
            info = asked.info()
            self._admit(info, accept_branch)
            image, base = self._imaged(asked, info, block_bytes, lease_ttl, rate, progress or silent, digest=digest)
            return self._image_report(image, base, info.engine, started)

        return _of_a_member(source, connection or Connection(), work)

    def plan_backup(self, source: Named, *, connection: Connection | None = None, accept_branch: str | None = None,
                    block_bytes: int = BLOCK_BYTES) -> BackupPlan:
        """What a backup would do. What would make it fail early is tried: that the source belongs here and gives an
        image, rights and promises of the storage with a small object, room, and clock. No block is read, and nothing is
        added but that object, which is removed again if the credentials can do that. The source makes an image, as for
        a backup.

        Args:
            source, connection, accept_branch, block_bytes: as in `backup`.

        Raises:
            As `backup`.
        """
        from .imaging import base_of, who

        _check_block(block_bytes)

        def work(asked: Source) -> BackupPlan:
            self._catalog.refuse_read_only()
            info, state = asked.info(), self._catalog.refresh()
            _admission(info, accept_branch)(state)
            check_room(self._store, SPARE_BYTES)
            probed = probe(self._store, self._env)
            tell_skew(self._store, probed.ahead_us)
            grant = asked.lease(who("backup"), image=True)
            try:
                found = base_of(self._store, self._seal, state, info, block_bytes, self._env)
                size = sum(file.size for file in grant.files)
                if found is None:
                    tell_room(self._store, size)
            finally:
                with suppress(HoldfastError):  # it expires by itself
                    asked.release(grant.id)
            return BackupPlan(
                repository=self.url, base="" if found is None else found[0].session,
                store_id=info.history.store_id.hex(), branch=info.history.branch.id.hex(), engine=info.engine,
                image_bytes=size, room=self._store.room(), clock_ahead=probed.ahead_us / 1e6, rights=Rights.of(probed))

        return _of_a_member(source, connection or Connection(), work)

    def _image_report(self, image: Image, base: Image | None, engine: str, started: float) -> ImageReport:
        return ImageReport(
            repository=self.url, image=image.session, base="" if base is None else base.session,
            store_id=image.history.store_id.hex(),
            branch=image.history.branch.id.hex(), engine=engine, consistent_from=image.consistent_from.txid,
            to_txid=image.end.txid, image_bytes=image.bytes, content_bytes=image.content_bytes,
            new_bytes=image.new_bytes, log_bytes=image.log_bytes, complete_until_us=image.complete_until_us,
            seconds=self._env.clock.monotonic() - started,
            synthetic=image.synthetic is not None,
            digest="" if image.noted is None else image.noted.digest.hex(),
            digest_at=0 if image.noted is None else image.noted.txid)

    @tells
    def synthesize(self, *, to_txid: int | None = None, at: datetime | None = None, mark: str | None = None,
                   branch: str | None = None, scratch: str | os.PathLike[str] | None = None,
                   engine: AnyEngine | None = None, options: Options | None = None, progress: Progress | None = None
                   ) -> ImageReport:
        """Make an image of the last image before a point and the archived log up to it, without the source. The state
        is restored into a scratch place that goes afterwards, and checked. The image is of the same branch, whole by
        itself, and stores what differs from the one that it was made of. O(image and log).

        Args:
            to_txid, at, mark, branch: the point, as in `restore`; if none is given, the last one.
            scratch: the directory in which to restore; that for temporary files if None.
            engine, options, progress: as in `restore`.

        Raises:
            CatalogReadOnly: this is a copy, or was opened with `salvage`.
            Inconsistent: the state at this point is wrong; there is no image.
            And as `restore` and `backup`.
        """
        from .synthesizing import synthesize

        self._catalog.refuse_read_only()
        started, shows = self._env.clock.monotonic(), progress or silent

        def work(point: Point) -> ImageReport:
            restoring = self._restoring(point, engine, options, progress)

            def take(source: Source, info: SourceInfo, synthetic: Synthetic) -> Image:
                return self._imaged(source, info, restoring.tree.root.block_bytes, LEASE_S, None, shows, synthetic)[0]

            image = synthesize(restoring, take, None if scratch is None else Path(scratch))
            return self._image_report(image, point.reach.image, restoring.engine.name, started)

        return self._with_point("synthesis", lambda: self._point(to_txid, at, mark, branch), work)

    def _imaged(self, source: Source, info: SourceInfo, block_bytes: int, lease_ttl: float, rate: float | None,
                progress: Progress, synthetic: Synthetic | None = None, *, digest: bool = False
                ) -> tuple[Image, Image | None]:
        """A new image, and the one that it was compared with."""
        from .imaging import Imaging, who

        for left in reversed(range(_TRIES)):
            session = self._env.randomness.token(ID_BYTES).hex()
            try:
                imaging = Imaging(self._store, self._seal, self._catalog, source, info, session,
                                  who("synthesis" if synthetic else "backup"), block_bytes, lease_ttl, rate, progress,
                                  self._env, synthetic, digest)
                return imaging.take(), imaging.base
            except BlocksDropped:
                if not left:
                    raise
        raise AssertionError

    def _admit(self, info: SourceInfo, accept_branch: str | None) -> CatalogState:
        """Check that the source belongs here. The first source makes the repository its store's."""
        decide = _admission(info, accept_branch)
        while True:
            state = self._catalog.append(decide)
            if info.history.branch.id.hex() in state.branches:
                return state

    def archiver(self, source: Source, *, accept_branch: str | None = None, idle: float | None = None,
                 skip: bool = False) -> Archiver:
        """Become the archiver of the source's branch. An archiver that was before is fenced. For one thread; its
        `step` is called again and again.

        Args:
            source: whose log is archived.
            accept_branch: id of a branch that is new to the repository.
            idle: seconds after which a piece says how far an idle store is complete. Default: 60.
            skip: begin after what is published now. What is not archived before that is given up: the archive has a
                gap.

        Raises as `backup`, and `Diverged`, `Fenced`.
        """
        from .archiver import IDLE_S, Archiver
        from .imaging import who

        info = source.info()
        self._admit(info, accept_branch)
        made = Archiver(self._store, self._seal, self._catalog, source, info, who("archive"), self.id, self._env,
                        idle=IDLE_S if idle is None else idle, skip=skip)
        made.begin(info)
        return made

    def check_store(self, store_id: bytes) -> None:
        """Raise `ForeignStore` if the repository is another store's. O(new catalog entries)."""
        _check_store(self._catalog.refresh(), store_id)

    def extend(self, log: LogToBranch) -> int:
        """Append to a member's log what the archive of its branch has beyond it, and fence the archiver of that branch.
        Returns how many transactions that were. Raises as `archiver`, and what the log raises."""
        from .inheriting import extend

        return extend(log, self._archive, self._store, self._seal, lambda: self.archiver(LocalSource(log.store)))

    # --- looking --------------------------------------------------------------------------------------------------

    def _archive(self) -> Archive:
        return Archive(self._store, self._seal, self._catalog.refresh(), self._catalog.refresh)

    def info(self, *, rights: bool = False) -> RepositoryInfo:
        """What the repository holds, and restores to. O(new catalog entries, images, branches, packs listed).

        Args:
            rights: try, with a small object, whether these credentials could overwrite and delete what is there. It is
                removed again if they can. Raises `StorageDenied` if they may not put, get or list.
        """
        if rights:
            self.rights = Rights.of(probe(self._store, self._env))
        state = self._catalog.refresh()
        tails, _ = self._catalog.settled(lambda state: _tails(self._archive(), state.branches))
        current = newest_branch(state) if state.branches else ""
        return RepositoryInfo(
            repository=self.url, id=self.id, encrypted=self.encrypted, engine=state.engine,
            store_id=state.store_id.hex() if state.store_id else "",
            branches=tuple(BranchInfo(
                id=branch, from_txid=log.history.branch.start.txid, current=branch == current,
                restores_to=tuple(bounds(reaches(state, branch, tails))),
                archived_to=_archived(log, tails.get(branch))[0],
                archived_until_us=_archived(log, tails.get(branch))[1])
                for branch, log in state.branches.items()),
            images=tuple(ImageInfo(
                id=image.session, branch=image.history.branch.id.hex(), created_us=image.created_us,
                consistent_from=image.consistent_from.txid, to_txid=image.end.txid, image_bytes=image.bytes,
                content_bytes=image.content_bytes, new_bytes=image.new_bytes,
                proofs=tuple({**proof, "stale": stale(state, proof, tails)}
                             for (of, _), proof in state.proofs.items() if of == image.session),
                made_of=image.synthetic.made_of if image.synthetic else "")
                for image in state.images.values()),
            image_bytes=sum(image.bytes for image in state.images.values()),
            content_bytes=sum(image.content_bytes for image in state.images.values()),
            stored_bytes=sum(listed.size for listed in self._store.list(f"{names.PACKS}/")),
            marks=tuple(state.marks.values()), leases=tuple(state.leases.values()),
            running=tuple(state.sessions.values()), rights=self.rights, salvaged=self._salvage,
            left_out=getattr(self._catalog, "left_out", ()))

    def ls(self, prefix: str = "") -> Iterator[tuple[str, int, int]]:
        """Name, bytes and time (microseconds, by the storage's clock) of each object, by name."""
        for listed in self._store.list(prefix):
            yield listed.name, listed.size, listed.modified_us

    def mark(self, name: str, *, to_txid: int | None = None, at: datetime | None = None, branch: str | None = None,
             keep: bool = False) -> Entry:
        """Give a restore point a name. With `keep`, no expiry drops what it needs.

        Args:
            name: 1 to 100 characters.
            to_txid, at, branch: the point, as in `restore`; if none is given, the last one.

        Raises:
            InvalidInput: the name is not valid, or taken. RestorePointOutOfRange, NotFound.
        """
        if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
            raise InvalidInput(f"{shown(name)} is not a name for a mark", hint="use 1 to 100 printable characters")
        point = self._point(to_txid, at, None, branch)
        txid = point.txid
        if txid is None:
            txid = self._txid_at(point)
        entry = {"do": "mark", "name": name, "branch": point.branch, "txid": txid, "keep": keep,
                 "time_us": self._env.clock.now_us()}

        def decide(state: CatalogState) -> Entry | None:
            if name in state.marks:
                raise InvalidInput(f"there is a mark {shown(name)} already, of transaction "
                                   f"{state.marks[name]['txid']}", hint="remove it first, or take another name")
            return entry

        return self._catalog.append(decide).marks[name]

    def unmark(self, name: str) -> None:
        """Remove a mark. The restore point stays as long as others do. Raises `NotFound`."""
        def decide(state: CatalogState) -> Entry | None:
            if name not in state.marks:
                raise NotFound(f"there is no mark {shown(name)}")
            return {"do": "unmark", "name": name}

        self._catalog.append(decide)

    def _point(self, to_txid: int | None, at: datetime | None, mark: str | None, branch: str | None) -> Point:
        check_point(to_txid, at)
        return self._catalog.settled(lambda state: self._point_in(state, to_txid, at, mark, branch))

    def _point_in(self, state: CatalogState, to_txid: int | None, at: datetime | None, mark: str | None,
                  branch: str | None) -> Point:
        if mark is not None:
            if to_txid is not None or at is not None or branch is not None:
                raise InvalidInput("a mark was given, and another point too", hint="give one of them")
            if mark not in state.marks:
                raise NotFound(f"there is no mark {shown(mark)}; there are: {', '.join(state.marks) or 'none'}")
            to_txid, branch = state.marks[mark]["txid"], state.marks[mark]["branch"]
        chosen = branch_named(state, branch)
        ids = [one.id.hex() for one in state.branches[chosen].history.branches]
        tails, damaged = _tails(Archive(self._store, self._seal, state), [id for id in ids if id in state.branches])
        found = reaches(state, chosen, tails)
        if damaged and to_txid is None and at is None:
            raise damaged[0]
        try:
            if at is not None:
                time_us = micros(at)
                return Point(chosen, reach_of_time(found, time_us), None, time_us)
            reach, txid = reach_of_txid(found, to_txid)
        except RestorePointOutOfRange as error:
            if damaged:  # perhaps it is in there
                raise damaged[0] from error
            raise
        return Point(chosen, reach, txid, None)

    def _txid_at(self, point: Point) -> int:
        """The last transaction up to a point's time."""
        from .restoring import LogSource

        last = point.reach.image.consistent_from.txid
        source = LogSource(self._store, self._seal, self._archive(), point.reach)
        for record, _ in source.records(None, point.at_us):
            last = max(last, record.txid)
        return last

    # --- restoring ------------------------------------------------------------------------------------------------

    def plan(self, *, to_txid: int | None = None, at: datetime | None = None, mark: str | None = None,
             branch: str | None = None) -> RestorePlan:
        """What a restore to this point would do. Raises as `restore`."""
        point = self._point(to_txid, at, mark, branch)
        image = point.reach.image
        return RestorePlan(image=image.session, branch=point.branch, txid=point.txid, at_us=point.at_us,
                           image_bytes=image.bytes, log_from=image.image_position.txid,
                           log_to=point.reach.last if point.txid is None else point.txid,
                           restores_to=tuple(bounds([point.reach])))

    @tells
    def restore(self, dest: str | os.PathLike[str], *, to_txid: int | None = None, at: datetime | None = None,
                mark: str | None = None, branch: str | None = None, force: bool = False, delta: bool = False,
                wait: float = 0.0, engine: AnyEngine | None = None, options: Options | None = None,
                progress: Progress | None = None) -> RestoreReport:
        """Restore into a directory. O(image and log).

        Args:
            dest: the directory for the store, new or empty. A link is followed.
            to_txid: the transaction to restore to. If no point is given, the last one.
            at: restore to the last transaction committed at or before this time, which must have a time zone.
            mark: restore to the point of this name.
            branch: id of the branch (its first digits will do). If None, that of the newest image.
            force, wait, engine, options: as for `holdfast.backup.restore`.
            delta: `dest` is a closed store that was this one once: write only the blocks that differ. Its present state
                is not kept. If this dies, there is no store until another restore has gone on with it.
            progress: called in this thread with (stage, done, total).

        Raises:
            RestorePointOutOfRange: the repository does not restore to this point; the message says to which it does.
            NotFound, StoreExists, StoreLocked, TargetInvalid, InvalidInput, Damaged, UnsupportedFormat,
            UpgradeRequired, WrongEngine, SettingError, DiskFull, StorageUnavailable.
        """
        from .restore_run import restore_to

        if force and delta:
            raise InvalidInput("force and delta were both given", hint="give one of them")
        def work(point: Point) -> RestoreReport:
            return restore_to(Path(dest), self._restoring(point, engine, options, progress), force=force, delta=delta,
                              wait=wait)

        return self._with_point(f"restore to {os.fspath(dest)}", lambda: self._point(to_txid, at, mark, branch), work)

    def _with_point(self, what: str, find: Callable[[], Point], work: Callable[[Point], T]) -> T:
        """What `work` makes of a point, under a lease. If there is none, an expiry may remove what is read. Then the
        point is looked for again, and another image or unit leads to it, or it is refused."""
        for left in reversed(range(_TRIES)):
            point, known, leased = find(), self._catalog.state.number, False
            try:
                with self.leased(point, what) as leased:
                    return work(point)
            except (Damaged, ObjectMissing) as error:
                if leased or not left or self._catalog.refresh().number == known:
                    raise Damaged(f"{error.message}: what leads to this point with image "
                                  f"{point.reach.image.session[:8]} is damaged", hint=_DAMAGED_HINT) from error
                logger.warning("%s: it may have been removed by an expiry, and is planned anew", error)
        raise AssertionError("the last try returns or raises")

    @tells
    def restore_raw(self, dest: str | os.PathLike[str], *, to_txid: int | None = None, at: datetime | None = None,
                    mark: str | None = None, branch: str | None = None, force: bool = False, wait: float = 0.0,
                    progress: Progress | None = None) -> RawReport:
        """Write the image's files and the log up to a point into a directory, without the engine. What comes out is a
        backup: `state/` has the files as the engine wrote them, `log/` the log after them, in segments, and its
        attachments. Where the engine is installed, `holdfast.backup.restore` makes a store of it. O(image and log).

        Args:
            dest: the directory, new or empty.
            to_txid, at, mark, branch, force, wait, progress: as in `restore`.

        Raises:
            As `restore`, but nothing of engines.
        """
        from .raw import restore_raw

        def work(point: Point) -> RawReport:
            return restore_raw(Path(dest), point, self._store, self._seal, self._archive(), self._env, force=force,
                               wait=wait, progress=progress or silent)

        return self._with_point(f"restore to {os.fspath(dest)}", lambda: self._point(to_txid, at, mark, branch), work)

    @contextmanager
    def view(self, *, to_txid: int | None = None, at: datetime | None = None, mark: str | None = None,
             branch: str | None = None, scratch: str | os.PathLike[str] | None = None,
             engine: AnyEngine | None = None, options: Options | None = None, progress: Progress | None = None
             ) -> Iterator[Any]:
        """Open a past state to read from: `with repository.view(at=…) as view:` gives the engine's view, as
        `store.snapshot()` gave it at this point. The state is restored into a scratch place, which goes at the end of
        the block. Once the block has begun nothing is read from the repository, so an expiry does not wait for it.
        O(image and log).

        Args:
            to_txid, at, mark, branch: the point, as in `restore`; if none is given, the last one.
            scratch: the directory in which to restore; that for temporary files if None.
            engine, options, progress: as in `restore`.

        Raises:
            As `restore`.
        """
        from .restore_run import viewed

        with ExitStack() as stack:
            def work(point: Point) -> View:
                return stack.enter_context(viewed(self._restoring(point, engine, options, progress),
                                                  None if scratch is None else Path(scratch)))

            yield self._with_point("view", lambda: self._point(to_txid, at, mark, branch), work)

    def _restoring(self, point: Point, engine: AnyEngine | None, options: Options | None, progress: Progress | None
                   ) -> Restoring:
        from .restore_run import Restoring

        return Restoring(point, self._store, self._seal, self._archive(), self._env, options or {}, progress or silent,
                         engine)

    @contextmanager
    def leased(self, point: Point, what: str) -> Iterator[bool]:
        """Keep what a restore to this point reads from being expired during the block. If nothing can be put, because
        the rights are to read only, or this is a copy or opened with `salvage`, the block runs without. Gives whether
        there is a lease."""
        from .imaging import who

        id = self._env.randomness.token(8).hex()
        now = self._env.clock.now_us()
        entry: Entry = {"do": "lease", "id": id, "who": who(what), "time_us": now,
                        "until_us": now + int(LEASE_S * 1_000_000), "image": point.reach.image.session,
                        "branch": point.branch, "txid": point.reach.last if point.txid is None else point.txid}

        def decide(state: CatalogState) -> Entry | None:
            if point.reach.image.session not in state.images:
                raise NotFound(f"the image {point.reach.image.session[:8]} was dropped at this moment",
                               hint="run it again")
            if not has_log(state, point.reach, entry["txid"]):
                raise NotFound(f"log of branch {point.branch[:8]} was dropped at this moment", hint="run it again")
            return entry

        try:
            self._catalog.append(decide)
        except (StorageDenied, CatalogReadOnly) as error:
            logger.warning("%s: this goes without a lease, so an expiry may remove what it reads", error.message)
            yield False
            return
        try:
            yield True
        finally:
            with suppress(HoldfastError):  # it runs out
                self._catalog.append(lambda state: {"do": "release", "id": id} if id in state.leases else None)

    @tells
    def rehearse(self, *, to_txid: int | None = None, at: datetime | None = None, mark: str | None = None,
                 branch: str | None = None, scratch: str | os.PathLike[str] | None = None,
                 engine: AnyEngine | None = None, options: Options | None = None, progress: Progress | None = None
                 ) -> Rehearsal:
        """Restore into a scratch place that goes afterwards, open it, run the engine's check over all of it, and note
        the result in the repository. Raises as `restore`, and `Inconsistent`."""
        from .restore_run import rehearse

        def work(point: Point) -> Rehearsal:
            return rehearse(self._restoring(point, engine, options, progress), self._catalog,
                            None if scratch is None else Path(scratch))

        return self._with_point("rehearsal", lambda: self._point(to_txid, at, mark, branch), work)

    # --- keeping --------------------------------------------------------------------------------------------------

    @tells
    def verify(self, *, sample: float = 1.0, progress: Progress | None = None) -> RepositoryVerified:
        """Read what images and archived log need, and compare it with its digests, checksums and chains. Damage is in
        the report. O(bytes × sample). `sample`: the share of the blocks that are read, drawn at random; trees and log
        are always read."""
        from .verifying import verify

        if not isinstance(sample, int | float) or not 0 < sample <= 1:
            raise InvalidInput(f"sample={shown(sample)} is not a share above 0 and up to 1")
        return verify(self._store, self._seal, self._catalog, self._archive(), float(sample), self._env,
                      progress or silent)

    def expire(self, keep: Keep, *, dry_run: bool = False) -> Expired:
        """Remove what no kept restore point needs. With `dry_run`, only say what that is. See `Keep`. Raises
        `ExpiryVetoed` if a plugin does not want it."""
        from .expiring import expire

        def work() -> Expired:
            if not dry_run or self._salvage:
                self._catalog.refuse_read_only()
            return expire(self._store, self._seal, self._catalog, keep, self._env, dry_run=dry_run,
                          allow=(lambda plan: ask(self.plugins, plan)) if self.plugins else None)

        return work() if dry_run else told(self.plugins, "expire", work)


def _check_block(block_bytes: int) -> None:
    if type(block_bytes) is not int or not 4096 <= block_bytes <= 65536 or block_bytes & (block_bytes - 1):
        raise InvalidInput(f"block_bytes={shown(block_bytes)} is not a power of two from 4,096 to 65,536")


def _of_a_member(source: Named, connection: Connection, work: Callable[[Source], T]) -> T:
    """What `work` makes of a source; of a cluster, of the first member that does not go away."""
    members = sources(source, connection)
    for member in members:
        try:
            with connection.opened(member) as asked:
                return work(asked)
        except (SourceUnavailable, LeaseExpired, TooManyLeases) as error:
            if member is members[-1]:
                raise
            logger.warning("%s: %s; another member is asked", member, error.message)
    raise AssertionError("the last member returns or raises")


def _admission(info: SourceInfo, accept_branch: str | None) -> Decide:
    """The entry with which a source is let in; None: it is in. It raises if the source does not belong there."""
    history = info.history
    branch = history.branch.id.hex()
    asked = accept_branch.strip().lower() if accept_branch is not None else None
    if asked is not None and (len(asked) < 8 or not set(asked) <= set("0123456789abcdef")):
        raise InvalidInput(f"accept_branch={shown(accept_branch)} is not an id",
                           hint="ids are 32 hex digits; the first 8 or more will do")

    def decide(state: CatalogState) -> Entry | None:
        if state.store_id is None:
            return {"do": "store", "id": history.store_id, "engine": info.engine}
        _check_store(state, history.store_id)
        if branch in state.branches:
            return None
        if state.branches and not (asked is not None and branch.startswith(asked)):
            raise OtherBranch(f"the source is on branch {branch}, which left its last one at transaction "
                              f"{history.branch.start.txid} and is new to the repository",
                              hint="a restored store must not take the place of the one it was restored from; if "
                                   f"it is meant to, accept its branch: --accept-branch {branch[:8]}")
        return {"do": "accept", "history": history.to_wire()}

    return decide


def _check_store(state: CatalogState, store_id: bytes) -> None:
    if state.store_id is not None and state.store_id != store_id:
        raise ForeignStore(f"the repository is of store {state.store_id.hex()}, and the source is store "
                           f"{store_id.hex()}")


def _archived(log: BranchLog, tail: Tail | None) -> tuple[int | None, int | None]:
    """Up to which transaction and time the log of a branch is archived. Where the newest run has ended, as it has
    without a catalog, that is where."""
    if tail is not None:
        return tail.end.txid, tail.complete_until_us
    last = log.runs[-1] if log.runs else None
    return (None, None) if last is None or last.end is None else (last.end.txid, last.until_us)


def _tails(archive: Archive, branches: Iterable[str]) -> tuple[dict[str, Tail], list[Damaged]]:
    """Where the branches' archives end, and which of their last pieces are damaged."""
    damaged: list[Damaged] = []
    tails = {branch: tail for branch in branches if (tail := archive.tail(branch, damaged)) is not None}
    for error in damaged:
        logger.warning("the archive is read up to before a damaged piece: %s", error)
    return tails, damaged


def _document(store: ObjectStore) -> dict[str, Any]:
    where = Path(f"{store.url}/{names.REPOSITORY}")
    try:
        said = document.decode(store.get(names.REPOSITORY), _MAGIC, _VERSION, where)
    except ObjectMissing as error:
        raise RepositoryMissing(f"there is no repository at {store.url}") from error
    if not isinstance(said.get("id"), bytes) or len(said["id"]) != ID_BYTES or type(said.get("encrypted")) is not bool:
        raise Damaged("lacks or garbles a field", path=str(where))
    return said


