"""The catalog: one numbered sequence of entries, which decides what is in the repository.

Entry N is the object `catalog/N`. It is put only if the name is free, by somebody who has read all entries before it.
So two decisions that do not fit together cannot both be made: the second one reads the first, and decides anew. An
object is deleted only after an entry says that it may be. No clock and no period of grace is part of this.

The answer to a put may be lost. Then the object is read back, and its nonce tells whose it is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgpack

from ...engine.env import Env
from ...engine.errors import Damaged, HoldfastError, UnsupportedFormat
from . import names
from .errors import CatalogReadOnly, CopyReadOnly, ObjectExists, ObjectMissing, StorageDenied
from .sealed import Kind, Seal
from .state import CatalogState, Entry
from .storage.interface import ObjectStore
from .storage.putting import put_contested

logger = logging.getLogger("holdfast.repository")

CHECKPOINT_EVERY = 64
"""Entries from one checkpoint to the next."""
Decide = Callable[[CatalogState], Entry | None]
Noted = Callable[[HoldfastError], None]
"""Is told what is wrong with an object."""
T = TypeVar("T")
_BEGUN = names.CATALOG, names.PACKS, names.IMAGES, names.LOG
_HINT = "what it holds can be restored without its catalog: --salvage, or salvage=True"


class Catalog:
    """See the module's text. For one thread at a time.

    Attributes:
        state: what the entries say that were read so far.
    """

    def __init__(self, store: ObjectStore, seal: Seal, env: Env) -> None:
        self._store, self._seal, self._env = store, seal, env
        self.state = CatalogState()
        self._is_none = False  # a copy: known before the first entry is added

    def refresh(self) -> CatalogState:
        """Read the entries that came since. The first time, from the newest checkpoint on. O(new entries). Raises
        `Damaged`, also if there are no entries any more."""
        try:
            return self._refreshed()
        except Damaged as error:
            error.hint = _HINT
            raise

    def _refreshed(self) -> CatalogState:
        first = not self.state.number
        if first:
            self._begin_at_checkpoint()
        while True:
            name = names.numbered(names.CATALOG, self.state.number + 1)
            try:
                entry = self._read(Kind.CATALOG, name)
            except ObjectMissing:
                if first and self._goes_on(name):
                    continue
                return self.state
            self.state.apply(entry, self._where(name))

    def _goes_on(self, name: str) -> bool:
        """Whether the entry came at this moment. Raises `Damaged` if it is missing, and something is there that is put
        only after it."""
        number = names.number_of(name)
        why = "the catalog goes on after it"
        if all(names.number_of(listed.name) <= number for listed in self._store.list(_hundred(number + 1))):
            if number > 1 or not self._is_begun():
                return False
            why = "there are images or log"
        try:
            self._store.get(name)
        except ObjectMissing as error:
            raise Damaged(f"is missing, and {why}", path=self._where(name)) from error
        return True

    def _is_begun(self) -> bool:
        """Whether there is anything that the first entries allow. The first copy into a place brings entries last."""
        if not any(True for folder in _BEGUN for _ in self._store.list(f"{folder}/")):
            return False
        try:
            self._store.get(names.COPY_OF)
        except ObjectMissing:
            return True
        return False

    def settled(self, look: Callable[[CatalogState], T]) -> T:
        """What `look` finds in the storage by the state. If entries came meanwhile, it looks again: what it looked for
        may have been merged or dropped, and deleted. Raises what it raises when none came."""
        while True:
            number = self.refresh().number
            try:
                found = look(self.state)
            except HoldfastError:
                if self.refresh().number == number:
                    raise
            else:
                if self.refresh().number == number:
                    return found

    def append(self, decide: Decide) -> CatalogState:
        """Add the entry that `decide` makes of the state. If somebody else adds one first, `decide` is asked again with
        the state after that. It returns None if there is nothing to add any more, and raises to give up.

        Raises:
            StorageUnavailable: whether the entry was added is not known.
            CatalogReadOnly: this is a copy, or is read without its catalog.
            Damaged.
        """
        nonce = self._env.randomness.token(16)
        self.refuse_read_only()
        while True:
            state = self.refresh()
            entry = decide(state)
            if entry is None:
                return state
            number = state.number + 1
            name = names.numbered(names.CATALOG, number)
            body = msgpack.packb({**entry, "number": number, "nonce": nonce}, use_bin_type=True)
            data = self._seal.seal(Kind.CATALOG, name, body)
            if put_contested(self._store, name, data, partial(self._has, name, nonce), self._env):
                state.apply(msgpack.unpackb(body), self._where(name))
                if number % CHECKPOINT_EVERY == 0:  # before what others have added since is read: it is of this entry
                    self._checkpoint(number)
                return self.refresh()

    def note(self, entry: Entry) -> None:
        """Add a proof of an image, unless the image has gone or nothing can be put here."""
        with contextlib.suppress(CatalogReadOnly, StorageDenied):
            self.append(lambda state: entry if entry["of"] in state.images else None)

    def refuse_read_only(self) -> None:
        """Raise `CatalogReadOnly` if nothing can be added here."""
        if not self._is_none:
            try:
                of = self._store.get(names.COPY_OF).decode()
            except ObjectMissing:
                self._is_none = True
            else:
                raise CopyReadOnly(f"{self._store.url} is a copy of {of}")

    def verify(self, noted: Noted) -> None:
        """Read every entry and every checkpoint, also those that no reader needs any more, and compare the checkpoints
        with what the entries come to. O(entries)."""
        upto, state = self.refresh().number, CatalogState()
        checkpoints = {names.number_of(listed.name) for listed in self._store.list(f"{names.CHECKPOINTS}/")}
        for number in range(1, upto + 1):
            name = names.numbered(names.CATALOG, number)
            try:
                entry = self._read(Kind.CATALOG, name)
                if state.number == number - 1:  # else one before is damaged
                    state.apply(entry, self._where(name))
            except ObjectMissing:
                noted(Damaged("is missing", path=self._where(name)))
            except (Damaged, UnsupportedFormat) as error:
                noted(error)
            if number in checkpoints:
                self._verify_checkpoint(number, state if state.number == number else None, noted)

    def _verify_checkpoint(self, number: int, state: CatalogState | None, noted: Noted) -> None:
        name = names.numbered(names.CHECKPOINTS, number)
        try:
            said = CatalogState.from_wire(self._read(Kind.CHECKPOINT, name), self._where(name))
        except (Damaged, UnsupportedFormat) as error:
            noted(error)
        else:
            if state is not None and said != state:
                noted(Damaged("is another state than the entries come to", path=self._where(name)))

    def _has(self, name: str, nonce: bytes) -> bool:
        return bool(self._read(Kind.CATALOG, name)["nonce"] == nonce)

    def _read(self, kind: Kind, name: str) -> dict[str, Any]:
        data = self._seal.open(kind, name, self._store.get(name))
        try:
            body: dict[str, Any] = msgpack.unpackb(data, strict_map_key=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise Damaged(f"is not a map: {error}", path=self._where(name)) from error
        return body

    def _where(self, name: str) -> str:
        return f"{self._store.url}/{name}"

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _begin_at_checkpoint(self) -> None:
        found = sorted(names.number_of(listed.name) for listed in self._store.list(f"{names.CHECKPOINTS}/"))
        while found:
            name = names.numbered(names.CHECKPOINTS, found.pop())
            try:
                self.state = CatalogState.from_wire(self._read(Kind.CHECKPOINT, name), self._where(name))
            except (ObjectMissing, Damaged) as error:  # the entries are there, too
                logger.warning("the catalog is read from an earlier checkpoint: %s", error)
            else:
                return

    def _checkpoint(self, number: int) -> None:
        name = names.numbered(names.CHECKPOINTS, number)
        body = msgpack.packb(self.state.to_wire(), use_bin_type=True)
        try:
            self._store.put(name, self._seal.seal(Kind.CHECKPOINT, name, body))
        except ObjectExists:
            pass
        except HoldfastError as error:  # readers begin at an earlier one
            logger.info("no checkpoint of the catalog was put: %s", error)


def _hundred(number: int) -> str:
    """How the names of a hundred entries begin, from this one or an earlier one on."""
    return names.numbered(names.CATALOG, number)[:-2]
