"""Copy: the first of the two verbs. An image is copied from a source into a directory (`files` copies its bytes).

A copy needs a lease, which a thread renews. The document `COPY` lies beside the half-made files. It names the lease and
the image, and says how much of each file is synced. It is written only after those bytes are synced. An interrupted
copy is resumed only if the source still grants the same lease. Otherwise its bytes might be mixed from two images, so
it starts anew. A copy is valid only once the source has confirmed, after the last byte, that the lease held throughout.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..engine.contract.image import ImageFile
from ..engine.env import Env, Files, Scheduler, Task
from ..engine.errors import DirectoryMoved, HoldfastError, LeaseExpired, SourceRestarted
from ..engine.model import document
from ..engine.model.positions import Position
from ..engine.source.interface import CHUNK_BYTES, Grant, Source
from .files import CopiedFile, Progress, check_names, copy_files, silent

logger = logging.getLogger("holdfast.replay")

COPY_MAGIC, COPY_VERSION = b"HFCOPY\0\0", 1


@dataclass(slots=True)
class CopyState:
    """The document `COPY`: how far a copy has come.

    Attributes:
        grant: the lease and the image.
        target_id: of the target that the copy is made for.
        chunk_bytes: bytes that one digest covers.
        digests: by file name, the digests of the chunks that are synced, in order.
    """

    grant: Grant
    target_id: bytes
    chunk_bytes: int
    digests: dict[str, list[bytes]] = field(default_factory=dict)

    def write(self, files: Files, place: Path) -> None:
        g = self.grant
        document.write(files, place / "COPY", COPY_MAGIC, COPY_VERSION, {
            "instance": g.instance, "lease": g.id, "ttl": g.ttl, "position": list(g.position), "time_us": g.time_us,
            "image_id": g.image_id, "moving": g.moving, "files": [[f.name, f.size] for f in g.files],
            "target_id": self.target_id, "chunk_bytes": self.chunk_bytes,
            "digests": {n: b"".join(d) for n, d in self.digests.items()},
        })

    @classmethod
    def read(cls, files: Files, place: Path) -> CopyState | None:
        """The state of the copy in `place`, or None if there is none to resume."""
        try:
            body = document.read(files, place / "COPY", COPY_MAGIC, COPY_VERSION)
            grant = Grant(id=body["lease"], instance=body["instance"], ttl=body["ttl"], time_us=body["time_us"],
                          position=Position(*body["position"]), image_id=body["image_id"], moving=body["moving"],
                          files=tuple(ImageFile(n, s) for n, s in body["files"]))
            digests = {n: [d[i : i + 16] for i in range(0, len(d), 16)] for n, d in body["digests"].items()}
            return cls(grant, body["target_id"], body["chunk_bytes"], digests)
        except (FileNotFoundError, NotADirectoryError, HoldfastError, KeyError, TypeError, ValueError):
            return None


def begin(source: Source, place: Path, owner: str, target_id: bytes, *, env: Env, ttl: float,
          chunk_bytes: int = CHUNK_BYTES) -> CopyState:
    """Resume the copy in `place` if its lease still holds and its chunks have this size. Otherwise clear `place` and
    take a new lease.

    Raises:
        TooManyLeases, DiskFull, SourceUnavailable, SourceRefused.
    """
    state = CopyState.read(env.files, place)
    if (state is not None and state.chunk_bytes == chunk_bytes
            and state.grant.instance == source.info().instance):
        try:
            source.renew(state.grant.id)
        except (LeaseExpired, SourceRestarted):
            logger.info("the lease of the copy in %s has ended: the copy starts anew", place)
        else:
            return state
    env.files.remove_tree(place)
    grant = source.lease(owner, image=True, ttl=ttl)
    try:
        check_names(grant.files)
        env.files.make_directory(place)
        state = CopyState(grant, target_id, chunk_bytes)
        state.write(env.files, place)
    except Exception:
        with contextlib.suppress(OSError, DirectoryMoved):
            env.files.remove_tree(place)
        with contextlib.suppress(HoldfastError):
            source.release(grant.id)
        raise
    return state


@contextlib.contextmanager
def kept_alive(source: Source, grant: Grant, scheduler: Scheduler) -> Iterator[None]:
    """Renew a lease in a background thread during the block, so that a slow disk here does not let it expire."""
    stop = scheduler.event()

    def work() -> None:
        while not stop.wait(grant.ttl / 4):
            try:
                source.renew(grant.id)
            except (LeaseExpired, SourceRestarted) as error:
                logger.warning("lease %s has ended: %s", grant.id, error)
                return
            except HoldfastError as error:
                logger.info("lease %s could not be renewed, will try again: %s", grant.id, error)

    task: Task | None = None
    try:
        task = scheduler.spawn("holdfast-lease", work)
        yield
    finally:
        stop.set()
        if task is not None:
            task.join()


def copy_image(source: Source, state: CopyState, place: Path, *, env: Env,
               progress: Progress = silent) -> tuple[CopiedFile, ...]:
    """Copy the leased image to `place/state`, whole and durable. What `state` says is synced is not copied again.

    Raises:
        DiskFull: before the first byte, if the lack of room can be known then. What is in `place` stays.
        Damaged, LeaseExpired, SourceUnavailable, SourceRestarted.
    """
    grant = state.grant

    def read(name: str, offset: int, length: int) -> bytes:
        return source.read_image(grant.id, name, offset, length)

    def synced(digests: dict[str, list[bytes]]) -> None:
        state.digests = digests
        state.write(env.files, place)

    return copy_files(read, grant.files, place / "state", env=env, done=state.digests,
                      chunk_bytes=state.chunk_bytes, on_synced=synced, progress=progress)
