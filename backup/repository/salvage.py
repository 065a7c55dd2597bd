"""A repository without its catalog: what its objects say of themselves, as a state to read from.

A root says what the catalog says of its image, and a piece or unit which log of which branch it has. So images and
archived log are found again. What only the catalog knows is lost: marks, proofs, who is running, and what was dropped.
Something that was dropped and is not deleted yet is found, too. It is right, since nothing is ever changed; and it is
left out if anything that it needs has gone.

Nothing can be added to such a state: nobody knows what others have decided.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NoReturn

from ...engine.env import Env
from ...engine.errors import Damaged, HoldfastError, InvalidInput, UnsupportedFormat
from ...engine.model.positions import History
from . import names, pieces
from .attached import CHUNK_BYTES
from .blocks import Root
from .catalog import Catalog, Noted
from .errors import ObjectMissing, SalvageReadOnly
from .pieces import Piece
from .sealed import Kind, Seal
from .state import BranchLog, CatalogState, Image, Run, Unit
from .storage.interface import ObjectStore

logger = logging.getLogger("holdfast.repository")

_WRONG = Damaged, ObjectMissing, UnsupportedFormat


class SalvagedCatalog(Catalog):
    """Takes the place of a catalog. For one thread at a time.

    Attributes:
        left_out: what was found and does not count, each a sentence that names the object.
    """

    def __init__(self, store: ObjectStore, seal: Seal, env: Env) -> None:
        super().__init__(store, seal, env)
        self.left_out: tuple[str, ...] = ()
        self._looked = False

    def refresh(self) -> CatalogState:
        """Look at all objects, the first time. O(objects listed, roots, and log that no unit has)."""
        if not self._looked:
            search = _Search(self._store, self._seal)
            self.state = search.state()
            self.left_out, self._looked = tuple(search.left_out), True
            for one in self.left_out:
                logger.warning("left out: %s", one)
        return self.state

    def refuse_read_only(self) -> NoReturn:
        raise SalvageReadOnly(f"{self._store.url} was opened without its catalog")

    def verify(self, noted: Noted) -> None:
        """Nothing is read: the catalog does not count here."""


@dataclass(slots=True)
class _Search:
    """One look at all objects."""

    store: ObjectStore
    seal: Seal
    left_out: list[str] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    engine: str = ""

    def state(self) -> CatalogState:
        for folder in (names.PACKS, names.IMAGES, names.LOG, names.MERGED, names.ATTACHMENTS):
            self.listed |= {one.name: one.size for one in self.store.list(f"{folder}/")}
        images = self._images()
        logs = {branch: self._branch(branch, slots, units) for branch, (slots, units) in self._log_names().items()}
        found = [*(log for log in logs.values() if log is not None),
                 *(BranchLog(image.history) for image in images)]
        state = CatalogState(engine=self.engine)
        for log in sorted(found, key=lambda log: len(log.history.branches)):
            state.branches.setdefault(log.history.branch.id.hex(), log)
        state.images = {image.session: image for image in images}
        state.store_id = found[0].history.store_id if found else None
        return state

    def _is_there(self, name: str) -> bool:
        """Whether there is such an object. A list is only a hint."""
        if name not in self.listed:
            try:
                self.store.get(name, 0, 1)
            except ObjectMissing:
                return False
        return True

    def _check_there(self, needed: Iterable[str]) -> None:
        """Raise `ObjectMissing` if one of these is not there."""
        for name in needed:
            if not self._is_there(name):
                raise ObjectMissing(f"{self.store.url}/{name} is missing")

    def _head(self, name: str, folder: str) -> Piece:
        """What a piece says of itself. Its attachments are there, too."""
        piece, _ = pieces.decode(self.seal, name, self.store.get(name), self.store)
        for one in piece.attachments:
            self._check_there(names.attachment(folder, one.name, number)
                              for number in range(1, -(-one.size // CHUNK_BYTES) + 1))
        return piece

    # --- images ---------------------------------------------------------------------------------------------------

    def _images(self) -> list[Image]:
        """The images of which everything is there, in the order in which they were whole by their makers' clocks."""
        sessions = {name.split("/")[1] for name in self.listed
                    if name.startswith((f"{names.PACKS}/", f"{names.IMAGES}/"))}
        found = []
        for session in sorted(sessions):
            try:
                data = self.store.get(names.root(session))
            except ObjectMissing:  # the run has not come so far, or the image was dropped
                continue
            try:
                found.append(self._image(session, data))
            except _WRONG as error:
                self.left_out.append(f"image {session[:8]}: {error.message}")
        found.sort(key=lambda image: (image.created_us, image.session))
        return [replace(image, order=order) for order, image in enumerate(found, 1)]

    def _image(self, session: str, data: bytes) -> Image:
        name = names.root(session)
        where = f"{self.store.url}/{name}"
        root = Root.decode(self.seal.open(Kind.IMAGE, name, data), where)
        try:
            image = Image.from_wire(root.image, 0)
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise Damaged(f"lacks or garbles a field: {error}", path=where) from error
        self._check_there(root.packs)
        for number in range(1, image.log_objects + 1):
            self._head(names.image_log(session, number), names.image_files(session))
        self.engine = root.engine
        return image

    # --- log ------------------------------------------------------------------------------------------------------

    def _log_names(self) -> dict[str, tuple[set[int], list[str]]]:
        """The slots and the names of units that are listed, by branch."""
        found: dict[str, tuple[set[int], list[str]]] = defaultdict(lambda: (set(), []))
        for name in self.listed:
            folder, branch, *_ = name.split("/")
            if folder == names.LOG:
                found[branch][0].add(names.number_of(name))
            elif folder == names.MERGED:
                found[branch][1].append(name)
        return found

    def _branch(self, branch: str, slots: set[int], merged: list[str]) -> BranchLog | None:
        """The archived log of a branch: runs of slots whose log joins. What begins in a slot is the largest unit that
        can be read, or else its piece."""
        units: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for name in merged:
            _, first, last = names.merged_range(name)
            units[first].append((last, name))
        starts = sorted({*slots, *units})
        history: History | None = None
        runs: list[Run] = []
        kept: list[Unit] = []
        slot, n = starts[0], 0
        while True:
            taken = self._begins_in(branch, slot, sorted(units[slot], reverse=True) if slot in units else [])
            if taken is None:
                while n < len(starts) and starts[n] <= slot:
                    n += 1
                if n == len(starts):
                    break
                slot = starts[n]
                continue
            piece, last, unit = taken
            history = piece.history
            before = runs[-1] if runs else None
            if before is not None and (before.last, before.end) == (slot - 1, piece.after):
                runs[-1] = replace(before, last=last, end=piece.end,
                                   until_us=max(before.until_us, piece.complete_until_us))
            else:
                runs.append(Run(slot, piece.after, last, piece.end, piece.complete_until_us))
            if unit is not None:
                kept.append(unit)
            slot = last + 1
        return None if history is None else BranchLog(history, runs, kept)

    def _begins_in(self, branch: str, slot: int, units: list[tuple[int, str]]) -> tuple[Piece, int, Unit | None] | None:
        """What is read from a slot on: what it says, its last slot, and the unit if it is one. None: nothing."""
        folder = names.branch_files(branch)
        for last, name in [*units, (slot, names.piece(branch, slot))]:
            try:
                piece = self._head(name, folder)
            except ObjectMissing as error:
                if name in self.listed:  # so it is an attachment that has gone
                    self._note(name, error)
            except (Damaged, UnsupportedFormat) as error:
                self._note(name, error)
            else:
                return piece, last, _unit(name, piece, self.listed[name]) if name.startswith(names.MERGED) else None
        return None

    def _note(self, name: str, error: HoldfastError) -> None:
        self.left_out.append(f"log in {name}: {error.message}")


def _unit(name: str, piece: Piece, size: int) -> Unit:
    level, first, last = names.merged_range(name)
    return Unit(name=name, level=level, first=first, last=last, after=piece.after, end=piece.end,
                first_time_us=piece.first_time_us, last_time_us=piece.last_time_us,
                complete_until_us=piece.complete_until_us, bytes=size + piece.large_bytes,
                attachments=tuple(one.name for one in piece.attachments))
