"""Checks of damage: a byte of a backup flipped, a file cut short, missing or swapped, is found or does no harm.

Found is an error of the kit. Harmless is what leaves the end of the backup and its content as they were, and what
`verify` takes for harmless can be restored. There is nothing between the two, for `verify` as for a restore.

In a format with fields, one byte of each field is flipped: those of documents, of the header of a segment, of each of
its groups and records, and of its footer. Hypothesis flips others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import strategies as st

from ....engine.errors import HoldfastError
from ....engine.testing.support.contract import BULK, Contract, check
from ....engine.testing.support.crash_images import tree
from ....engine.testing.support.flipped_bytes import DOCUMENT_FIELDS, places_in_segment
from ....engine.testing.support.workload import Workload
from ..world import World, seen_in, world
from .interruptions import spread


class Damaged:
    """A world with a backup (a full one and two incrementals), whose files are changed one at a time.

    Attributes:
        files: every file of the backup, as it should be.
        segments: their names, oldest first.
    """

    def __init__(self, w: World) -> None:
        self.w = w
        self.files = {name: content for name, content in tree(w.target).items() if content}
        self.segments = sorted(name for name in self.files if name.endswith(".seg") and "spare" not in name)
        self.generation = self.segments[0].partition("/")[0]

    def names(self, *parts: str) -> list[str]:
        """The files in a part of the generation: `state`, `log/attachments`."""
        return sorted(name for name in self.files if name.startswith("/".join((self.generation, *parts, ""))))

    def tried(self, name: str, content: bytes | None, what: str) -> None:
        """The backup with other bytes in a file, or without the file (None)."""
        w, path = self.w, self.w.target / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            with seen_in(f"a damaged backup: {what}"):
                whole = False
                with suppress(HoldfastError):  # found
                    last = w.verified()
                    whole = True
                    assert last == w.last, f"verify takes a backup that ends at {w.last} for one that ends at {last}"
                try:
                    last = w.compare_restored()
                except HoldfastError:
                    assert not whole, "verify takes it for whole, and it cannot be restored"
                else:
                    assert last == w.last, f"a backup that ends at {w.last} was restored to {last}"
        finally:
            path.write_bytes(self.files[name])

    def flipped(self, name: str, at: int, bits: int = 0x10) -> None:
        content = bytearray(self.files[name])
        at %= len(content)
        content[at] ^= bits
        self.tried(name, bytes(content), f"byte {at} of {name} flipped")

    def told(self, name: str, count: int) -> list[int]:
        """Places all over a file that hold something else than zeros, at most `count`."""
        places = [at for at, byte in enumerate(self.files[name]) if byte]
        return [places[n - 1] for n in spread(len(places), count)]


@contextmanager
def damaged(work: Workload, *, bulk: bool = False) -> Iterator[Damaged]:
    with world(work) as w:
        w.add(2)
        w.store.checkpoint()
        w.add()
        w.back_up()
        w.add(2)
        if bulk:
            w.load()
            w.add()
        w.back_up()
        w.add()
        w.back_up()
        yield Damaged(w)


class CorruptionChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_flipped_byte_in_the_log_is_found_or_harmless(self, work: Workload) -> None:
        """A byte of a backup's log that is flipped, in any field of its segments, is found by verify or does no harm:
        there is never a silently different state."""
        with damaged(work) as backup:
            for name in (backup.segments[0], backup.segments[-1]):
                for at in places_in_segment(backup.w.target / name):
                    backup.flipped(name, at)

    @check()
    def test_a_flipped_byte_in_the_image_is_found_or_harmless(self, work: Workload) -> None:
        """A byte of a backup's image that is flipped is found by verify or does no harm: there is never a silently
        different state, however little the engine checks itself."""
        with damaged(work) as backup:
            for name in backup.names("state"):
                for at in (*backup.told(name, 24), -1):
                    backup.flipped(name, at)

    @check()
    def test_a_flipped_byte_in_a_document_is_found_or_harmless(self, work: Workload) -> None:
        """A byte that is flipped in `CURRENT`, in `STORE` or in the manifest is found by verify or does no harm."""
        with damaged(work) as backup:
            for at in range(len(backup.files["CURRENT"])):
                backup.flipped("CURRENT", at)
            for name in ("STORE", f"{backup.generation}/MANIFEST"):
                for at in (*DOCUMENT_FIELDS, *backup.told(name, 8), -17, -16, -1):
                    backup.flipped(name, at)

    @check(BULK)
    def test_a_flipped_byte_in_a_bulk_load_is_found_or_harmless(self, work: Workload) -> None:
        """A byte that is flipped in the file of a bulk load is found by verify or does no harm, and a bulk load whose
        file is cut short or missing is found."""
        with damaged(work, bulk=True) as backup:
            for name in backup.names("log", "attachments"):
                for at in (*backup.told(name, 8), -49, -48, -40, -36, -32, -24, -16, -1):
                    backup.flipped(name, at)
                backup.tried(name, backup.files[name][:-1], f"{name} cut by a byte")
                backup.tried(name, None, f"{name} missing")

    @check()
    def test_any_flipped_byte_is_found_or_harmless(self, work: Workload) -> None:
        """Any byte of any file of a backup that is flipped is found by verify or does no harm."""
        with damaged(work) as backup:

            def claim(name: str, where: int, told: bool, bits: int) -> None:
                places = backup.told(name, 1 << 20) if told else range(len(backup.files[name]))
                backup.flipped(name, places[where % len(places)], bits)

            self.prove(claim, examples=20, name=st.sampled_from(sorted(backup.files)), where=st.integers(0, 2**32),
                       told=st.booleans(), bits=st.integers(1, 255))

    @check()
    def test_a_cut_missing_or_swapped_file_is_found_or_harmless(self, work: Workload) -> None:
        """A file of a backup that is missing, cut short, empty, or another of its files in its place, is found by
        verify or does no harm."""
        with damaged(work) as backup:
            for name, content in backup.files.items():
                backup.tried(name, None, f"{name} missing")
                for size in sorted({0, len(content) // 2, len(content) - 1}):
                    backup.tried(name, content[:size], f"{name} cut to {size} bytes")
            for names in (backup.segments, backup.names("state")):
                for name, other in zip(names, names[1:] + names[:1], strict=True):
                    if other != name:
                        backup.tried(name, backup.files[other], f"{other} in the place of {name}")

    @check()
    def test_parts_of_two_backups_do_not_make_one(self, work: Workload) -> None:
        """The image, the log or the manifest of another backup of the same store, in the place of a backup's own, is
        found by verify or does no harm."""
        with damaged(work) as backup:
            w = backup.w
            w.add()
            w.store.checkpoint()  # so that the other's image is of a transaction that this one's log does not reach
            w.add()
            other = w.root / "other"
            w.back_up(other)
            for name, content in tree(other).items():
                if name in backup.files and name.split("/")[1:2] != ["log"]:
                    self._mixed(backup, name, content)

    @staticmethod
    def _mixed(backup: Damaged, name: str, content: bytes) -> None:
        w = backup.w
        path: Path = w.target / name
        path.write_bytes(content)
        try:
            with seen_in(f"a backup with the {name} of another"), suppress(HoldfastError):  # found
                w.verified()
        finally:
            path.write_bytes(backup.files[name])
