"""A target, opened: a generation with its manifest, which is read once, and its log, which is recovered once.

Order of writes: a run syncs log first, then writes the manifest that notes it. So the log may reach further than the
manifest says, if a run died in between. A log that ends earlier is damaged. A new generation is finished first, then
`CURRENT` is switched to it. If a run dies in between, the next run brings the finished generation into force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...engine.env import Env
from ...engine.errors import Damaged, StoreNotFound, TargetInvalid, TargetPromoted
from ...engine.store.layout import Generation, Layout
from ...engine.wal.log import Log
from ...engine.wal.writer import LogOptions
from ...replay.files import DigestedFiles
from ..directories import partials, refuse_inside
from ..manifest import Manifest
from ..report import Bounds, iso
from ..retention import gaps

LOG = LogOptions(preallocate=False)


class Target:
    """See the module's text. For one thread; the caller holds the target's lock while it writes.

    Attributes:
        layout, generation: the directory, and which generation of it this is.
        manifest: the generation's manifest. `note` replaces it.
        env: files, clock, randomness and threads.
    """

    def __init__(self, layout: Layout, generation: Generation, manifest: Manifest, env: Env,
                 log: Log | None = None) -> None:
        self.layout, self.generation, self.manifest, self.env = layout, generation, manifest, env
        self._log = log

    @classmethod
    def open(cls, layout: Layout, env: Env) -> Target:
        """Open the generation in force of a backup.

        Raises:
            TargetInvalid: there is no backup here.
            TargetPromoted: there was one, until it was opened for writing.
            Damaged, UnsupportedFormat.
        """
        try:
            identity = layout.read_identity()
            generation = layout.current()
        except StoreNotFound as error:
            begun = bool(partials(layout)) or (layout.is_empty(or_finished=True) and not layout.is_empty())
            raise TargetInvalid(f"there is no backup in {layout.root}", hint="its first run was never finished, or its "
                                "CURRENT is gone: back up into it again" if begun else "check the path") from error
        manifest = Manifest.read(layout.files, generation)
        if manifest is None:
            raise TargetInvalid(f"{layout.root} is a store, not a backup: {generation.name} has no MANIFEST")
        if manifest.promoted_us is not None:
            raise TargetPromoted(f"{layout.root} was opened for writing at {iso(manifest.promoted_us)}, so it is a "
                                 "store of its own and no longer a backup")
        if manifest.history.store_id != identity.store_id or manifest.engine != identity.engine:
            raise Damaged("belongs to another store than its directory", path=str(generation.manifest))
        return cls(layout, generation, manifest, env)

    # --- log and image ---------------------------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The log. The first call recovers it, read-only, and compares it with the manifest. It keeps no file open.
        Raises `Damaged`, `UnsupportedFormat`."""
        if self._log is None:
            self._log = self._recovered(read_only=True)
        return self._log

    @contextmanager
    def appending(self) -> Iterator[Log]:
        """Recover the log for appending. At the end of the block it is sealed, and `log` gives it from then on. Raises
        `Damaged`, `UnsupportedFormat`, `DiskFull`."""
        self._log = log = self._recovered(read_only=False)
        try:
            yield log
        finally:
            log.close()

    def _recovered(self, *, read_only: bool) -> Log:
        manifest, directory = self.manifest, self.generation.log
        log = Log.open(directory, engine_position=manifest.noted_end, read_only=read_only, options=LOG,
                       env=self.env)
        if log.base != manifest.image_position:
            raise Damaged(f"the log starts after {log.base}, and the image is of {manifest.image_position}",
                          path=str(directory))
        if log.history.store_id != manifest.history.store_id:
            raise Damaged("the log is another store's", path=str(directory))
        if log.chain_at(manifest.consistent_from.txid) != manifest.consistent_from.chain:
            raise Damaged(f"the log has another transaction {manifest.consistent_from.txid} than the manifest",
                          path=str(directory))
        return log

    def image(self) -> DigestedFiles:
        """The image's files, which compare what is read with their digests. The caller closes them."""
        return DigestedFiles(self.generation.state, self.manifest.files, self.manifest.chunk_bytes, self.env)

    def note(self, manifest: Manifest) -> None:
        """Replace this generation's manifest, durably."""
        manifest.write(self.env.files, self.generation)
        self.manifest = manifest

    # --- restore points --------------------------------------------------------------------------------------------

    def bounds(self) -> Bounds:
        """What this image and log restore to."""
        manifest, log = self.manifest, self.log
        first = manifest.consistent_from.txid if manifest.moving else manifest.image_position.txid
        last, noted = log.end, manifest.noted_end
        complete: int = manifest.runs[-1]["complete_until_us"] if manifest.runs else 0
        if last.txid > noted.txid:  # a run died before it was noted
            anew = log.complete_us < log.time_of(noted.txid)  # since then, times began anew
            complete = log.complete_us if anew else max(complete, log.complete_us)
        return Bounds(first=first, last=last.txid, first_time_us=log.time_of(first) or None,
                      last_time_us=log.time_of(last.txid) or None, complete_until_us=complete)

    def kept(self) -> list[tuple[Generation, Mapping[str, Any]]]:
        """The older generations that exist, newest first, each with what the manifest says of it."""
        found = [(Generation(self.layout.root / one["generation"]), one) for one in self.manifest.older]
        return sorted(((g, one) for g, one in found if self.layout.files.is_directory(g.path)),
                      key=lambda f: f[0].name, reverse=True)

    def older(self, generation: Generation) -> Target | None:
        """One of `kept`, or None if it has no manifest. Raises `Damaged`, `UnsupportedFormat`."""
        manifest = Manifest.read(self.layout.files, generation)
        return None if manifest is None else Target(self.layout, generation, manifest, self.env)

    def whole(self, newest: Bounds) -> Bounds:
        """What the whole target restores to: this generation (`newest`), the older ones, and the gaps in between."""
        parts = [newest, *(Bounds(**{k: v for k, v in one.items() if k not in ("generation", "damage")})
                           for _, one in self.kept() if not one["damage"])]
        first, last = min(parts, key=lambda b: b.first), max(parts, key=lambda b: b.last)
        return Bounds(first=first.first, last=last.last, first_time_us=first.first_time_us,
                      last_time_us=last.last_time_us, complete_until_us=newest.complete_until_us,
                      gaps=gaps((b.first, b.last) for b in parts))

    def sweep(self) -> None:
        """Remove every generation but this one and the older ones that it keeps. It must be in force, durably."""
        self.layout.sweep(keep=[one["generation"] for one in self.manifest.older])


def detect(layout: Layout, env: Env) -> Target | None:
    """The backup in a directory, or None if the directory can take a first one. Changes nothing.

    Raises:
        TargetInvalid, TargetPromoted: something else is here, or the directory lies inside a store or backup.
        Damaged, UnsupportedFormat: the backup cannot be read.
    """
    refuse_inside(layout.root, layout.files)
    if layout.is_store():
        return Target.open(layout, env)
    if layout.is_empty(or_finished=True):
        return None
    if not layout.files.is_directory(layout.root):
        raise TargetInvalid(f"{layout.root} is a file")
    raise TargetInvalid(f"{layout.root} is not empty and holds no backup")


def finish_switch(layout: Layout) -> bool:
    """Bring a finished generation into force if a run died before it switched to it. Returns whether there was one. The
    caller holds the lock."""
    files = layout.files
    try:
        store_id = layout.read_identity().store_id
    except StoreNotFound:
        return False
    in_force = layout.current().name if files.exists(layout.root / "CURRENT") else ""
    for name in reversed(files.list(layout.root)):
        if not name.startswith("gen-") or name.endswith(".partial") or name <= in_force:
            continue
        manifest = Manifest.read(files, Generation(layout.root / name))
        if manifest is not None and manifest.promoted_us is None and manifest.history.store_id == store_id:
            layout.switch(Generation(layout.root / name))
            return True
    return False
