"""What a member stores beside its store: identity, promise, the last cluster document, the published watermark.

    DIR/member/
      LOCK        held while the member runs
      IDENTITY    cluster, name, number of the opening (generation), whether it is whole (a document)
      PROMISE     the epoch below which it accepts nothing, and the leader of that epoch (a document)
      CLUSTER     the last cluster document that it has seen, as JSON in a document
      SLOTS       the slots that it has only because a primary told it of them (a document)
      WATERMARK   the last transaction that it knew to be published; not synced, since a lower one is safe
      branched/   what it had and the cluster does not (`set_aside.py`)

All are replaced whole, and all but `WATERMARK` are durable on return. The directory outlives the store beside it, which
may be seeded anew: a member that forgot its promise could acknowledge what a newer primary does not have.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest

from ...engine.env import Env
from ...engine.errors import Damaged, NotFound
from ...engine.model import document as files_document
from ...engine.store.layout import MEMBER
from .document import ClusterDocument
from .errors import MemberRefused

_IDENTITY, _PROMISE, _CLUSTER, _SLOTS = b"HFMEMBER", b"HFPROMIS", b"HFCLUSTR", b"HFMSLOTS"
_VERSION = 1
_WATERMARK = struct.Struct("<QQ")


@dataclass(slots=True)
class Identity:
    """See the module's text."""

    cluster: str
    name: str
    generation: int
    whole: bool


def kept_document(root: Path, env: Env) -> ClusterDocument:
    """The last cluster document that the member in a directory has seen. The member may be running. Raises `NotFound`
    if there is none, `Damaged`."""
    path = env.files.absolute(root) / MEMBER / "CLUSTER"
    try:
        return ClusterDocument.decode(files_document.read(env.files, path, _CLUSTER, _VERSION)["json"])
    except FileNotFoundError as error:
        raise NotFound(f"{root} is not the directory of a member: {path} does not exist",
                       hint="give the directory that a member of the cluster was served from") from error
    except KeyError as error:
        raise Damaged(f"lacks the field {error}", path=str(path)) from error


class StoredState:
    """See the module's text. One thread at a time for each file.

    Attributes:
        identity, promise, document, watermark: what is stored; `document` is None before the first.
        slots: the ids of slots that a primary told of, with the time at which each was registered there.
        fresh: nothing was stored here before.
    """

    def __init__(self, root: Path, cluster: str, name: str, env: Env) -> None:
        """Lock and read it, or begin it. Raises `StoreLocked` if another process runs this member, `MemberRefused` if
        the directory belongs to another one, `Damaged`."""
        files = env.files
        self.directory = files.absolute(root) / MEMBER
        self._env = env
        files.make_directory(self.directory)
        self._lock = files.lock(self.directory / "LOCK", f"process {os.getpid()}")
        try:
            self._load(cluster, name)
        except BaseException:
            self._lock.release()
            raise

    def _load(self, cluster: str, name: str) -> None:
        files = self._env.files
        self.promise, self.document, self.watermark = (0, ""), None, 0
        self.slots: dict[str, int] = {}
        self.fresh = not files.exists(self.directory / "IDENTITY")
        if self.fresh:
            self.identity = Identity(cluster, name, 0, False)
            return
        try:
            body = files_document.read(files, self.directory / "IDENTITY", _IDENTITY, _VERSION)
            self.identity = Identity(body["cluster"], body["name"], body["generation"], body["whole"])
            promise = files_document.read(files, self.directory / "PROMISE", _PROMISE, _VERSION)
            self.promise = promise["epoch"], promise["leader"]
        except KeyError as error:
            raise Damaged(f"lacks the field {error}", path=str(self.directory)) from error
        except FileNotFoundError as error:
            raise Damaged("is missing", path=str(self.directory / "PROMISE")) from error
        if (self.identity.cluster, self.identity.name) != (cluster, name):
            raise MemberRefused(f"{self.directory.parent} belongs to member {self.identity.name} of cluster "
                                f"{self.identity.cluster}, not to {name} of {cluster}")
        if files.exists(self.directory / "CLUSTER"):
            kept = files_document.read(files, self.directory / "CLUSTER", _CLUSTER, _VERSION)
            self.document = ClusterDocument.decode(kept["json"])
        if files.exists(self.directory / "SLOTS"):
            self.slots = dict(files_document.read(files, self.directory / "SLOTS", _SLOTS, _VERSION)["slots"])
        with contextlib.suppress(FileNotFoundError):
            data = files.read(self.directory / "WATERMARK")
            if len(data) == _WATERMARK.size:
                txid, checksum = _WATERMARK.unpack(data)
                self.watermark = txid if checksum == xxh3_64_intdigest(data[:8]) else 0

    def begin(self, *, whole: bool | None = None) -> None:
        """Durably count an opening. `whole`: set it too."""
        if self.fresh:  # the promise first: an identity without one would be damage
            self.keep_promise(*self.promise)
            self.fresh = False
        self.identity.generation += 1
        if whole is not None:
            self.identity.whole = whole
        self._keep_identity()

    def skip_generations(self, upto: int) -> None:
        """Durably continue after an opening number that another directory under this name has used."""
        self.identity.generation = max(self.identity.generation, upto) + 1
        self._keep_identity()

    def keep_whole(self, whole: bool) -> None:
        """Durably note whether this member has everything that it may ever have acknowledged."""
        self.identity.whole = whole
        self._keep_identity()

    def _keep_identity(self) -> None:
        own = self.identity
        files_document.write(self._env.files, self.directory / "IDENTITY", _IDENTITY, _VERSION,
                             {"cluster": own.cluster, "name": own.name, "generation": own.generation,
                              "whole": own.whole})

    def keep_promise(self, epoch: int, leader: str) -> None:
        """Durably promise to accept nothing of an epoch below `epoch`."""
        files_document.write(self._env.files, self.directory / "PROMISE", _PROMISE, _VERSION,
                             {"epoch": epoch, "leader": leader})
        self.promise = epoch, leader

    def keep_document(self, document: ClusterDocument) -> None:
        """Durably keep the last document seen."""
        files_document.write(self._env.files, self.directory / "CLUSTER", _CLUSTER, _VERSION,
                             {"json": document.encode()})
        self.document = document

    def keep_slots(self, slots: dict[str, int]) -> None:
        """Durably note which slots a primary told of."""
        if slots != self.slots:
            files_document.write(self._env.files, self.directory / "SLOTS", _SLOTS, _VERSION, {"slots": slots})
            self.slots = slots

    def keep_watermark(self, txid: int) -> None:
        """Remember that everything up to `txid` is published. Not durable on return."""
        if txid > self.watermark:
            head = struct.pack("<Q", txid)
            file = self._env.files.open(self.directory / "WATERMARK", "write" if self._has_watermark() else "create")
            try:
                file.pwrite(head + struct.pack("<Q", xxh3_64_intdigest(head)), 0)
            finally:
                file.close()
            self.watermark = txid

    def forget_watermark(self) -> None:
        """Durably forget it, before another store comes into force here: that one may have published less."""
        files = self._env.files
        files.unlink(self.directory / "WATERMARK", missing_ok=True)
        files.sync_directory(self.directory)
        self.watermark = 0

    def _has_watermark(self) -> bool:
        return self._env.files.exists(self.directory / "WATERMARK")

    def close(self) -> None:
        """Release the lock. May be called twice."""
        self._lock.release()
