"""Flipped bytes in the files of a store: found, or harmless, and never a silently different state.

What a damaged store may do: refuse to open with one of the kit's errors; open, and have the engine's own check or its
reading say what is wrong; or show exactly what was written, because nobody needs the byte. After an unclean stop the
last group of the log cannot be told from a torn one: it may be cut, and then recovery reports that.

The places are chosen by what stands there: each field of each header, frame, record and footer; then some by lot.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from ...contract.view import View
from ...errors import Damaged, DeviceFailed, HoldfastError, LimitReached
from ...wal.format import FRAME, GROUP_HEADER, TRAILER
from ..disks.faulty import FaultyFiles
from ..disks.quiet import quiet_env
from ..support.contract import ABOVE_ENV, CHECKSUMS, Contract, check, scratch
from ..support.crash_images import group_ends, segments_of, state_of
from ..support.modelled import Modelled, difference
from ..support.raising import raises
from ..support.workload import Operation, Workload
from .commit_outcomes import kept_with

DOCUMENT_FIELDS = (0, 7, 8, 12, 15, 16, 17)
"""Where the fields of a document, or of a state file, begin: magic, version, length, and the body or what follows."""
GROUP_FIELDS = (0, 4, 8, 12, 16, 24, 32, 40, 48, 55)
FRAME_FIELDS = (0, 4, 8, 15)
_REFUSALS: dict[int, type[HoldfastError]] = {errno.EIO: DeviceFailed, errno.ENOMEM: LimitReached}
"""What the system says, and what the kit makes of it."""


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change some bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def places_in_segment(path: Path) -> list[int]:
    """An offset for each field of a segment, those of its first and last group included."""
    ends, sealed = group_ends(path)
    size, start = path.stat().st_size, ends[0].offset
    places = [*DOCUMENT_FIELDS, start // 2, start - 1]
    for at, stop in {(ends[0].offset, ends[1].offset), (ends[-2].offset, ends[-1].offset)} if len(ends) > 1 else ():
        frame = at + GROUP_HEADER.size
        record = frame + FRAME.size
        places += [at + field for field in GROUP_FIELDS]
        places += [frame + field for field in FRAME_FIELDS]
        places += [record, record + 1, record + 2, (record + stop) // 2, stop - 1]
    end = ends[-1].offset
    if sealed:
        places += [end, end + 1, (end + size - TRAILER.size) // 2]
        places += [size - TRAILER.size + field for field in (0, 8, 12, 16, 31)]
    else:
        places += [end, end + 1, end + GROUP_HEADER.size, size - 1]
    return sorted({place for place in places if place < size})


def places_in(path: Path) -> list[int]:
    """Offsets in a file of which nothing is known but that it begins with a head and ends with a checksum."""
    size = path.stat().st_size
    places = [*DOCUMENT_FIELDS, *range(20, 72, 4), size // 4, size // 2, 3 * size // 4, size - 17, size - 16, size - 1]
    return sorted({place for place in places if 0 <= place < size})


class CorruptionChecks(Contract):
    """What becomes of a store whose files were damaged."""

    @check()
    def test_a_flipped_byte_in_the_log_is_found(self, work: Workload) -> None:
        """Any single flipped byte in the log of a store is found when it is opened, or is harmless: what is shown is
        what was written, and only the last group of a log that was not closed may be cut, which recovery reports."""
        with scratch() as root, Modelled(work, root) as kept:
            for number in range(3):
                kept.write(number)
            image = kept.crash_image()
            kept.store.close()
            kept.path = image  # go on there: its log is replayed, and none of it is checkpointed
            kept.open()
            kept.seal()
            for number in range(3, 6):
                kept.write(number)
            whole = kept.crash_image()
            segments = [path for path in segments_of(whole) if group_ends(path)[0][1:]]
            assert len(segments) == 2, f"the history of this check should have two segments, not {len(segments)}"
            for segment in segments:
                for offset in places_in_segment(segment):
                    self._must_be_found(kept, whole, segment, offset, 1)
            files = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.name != "LOCK"
                     and state_of(whole) not in path.parents and path not in segments]
            for path in files:
                if not path.name.startswith("spare-"):
                    for offset in (0, path.stat().st_size // 2, path.stat().st_size - 1):
                        self._must_be_found(kept, whole, path, offset, 1)

            def claim(which: int, share: float, mask: int) -> None:
                segment = segments[which]
                end = group_ends(segment)[0][-1].offset
                self._must_be_found(kept, whole, segment, int(share * end), mask)

            self.prove(claim, examples=16, which=st.integers(0, 1), share=st.floats(0, 1), mask=st.integers(1, 255))

    @check()
    def test_a_flipped_byte_in_the_log_of_a_closed_store_is_found(self, work: Workload) -> None:
        """Any single flipped byte in the log of a store that was closed is found when it is opened, or by reading the
        log through; the state, which does not need that log, is what was written."""
        with scratch() as root, Modelled(work, root) as kept:
            for number in range(3):
                kept.write(number)
            kept.store.close()
            whole = kept.path
            kept.path = kept.fresh("other")
            kept.open()
            segment = next(path for path in segments_of(whole) if group_ends(path)[0][1:])
            for offset in places_in_segment(segment):
                damaged = self._damaged(kept, whole, segment, offset, 1)
                try:
                    store = kept.opened(damaged)
                except HoldfastError:
                    continue
                with store:
                    with store.snapshot() as view:
                        kept.compare(view)
                    if store.recovery.cut_bytes:
                        continue  # the seal was bad, so recovery read the log through, and sealed it anew
                    with raises(Damaged, f"reading a log through whose byte {offset} was flipped"):
                        store.log.verify()

    @check(ABOVE_ENV, CHECKSUMS)
    def test_a_flipped_byte_in_the_state_is_found(self, work: Workload) -> None:
        """Any single flipped byte in the state of a store is found, by opening it, by reading it, or by the engine's
        own check, or is harmless: what is shown is what was written, and nothing else ever without an error."""
        def claim(several: list[list[Operation]], closed: bool, which: int, share: float, mask: int) -> None:
            with _checkpointed(work, several, closed) as (kept, whole):
                files = [path for path in sorted(state_of(whole).rglob("*")) if path.is_file() and path.stat().st_size]
                path = files[which % len(files)]
                self._must_be_found(kept, whole, path, int(share * (path.stat().st_size - 1)), mask)

        with _checkpointed(work, [], closed=True) as (kept, whole):
            for path in sorted(state_of(whole).rglob("*")):
                for offset in places_in(path) if path.is_file() else ():
                    self._must_be_found(kept, whole, path, offset, 1)
        self.prove(claim, examples=12, several=st.lists(work.operations(), max_size=2), closed=st.booleans(),
                   which=st.integers(0, 9), share=st.floats(0, 1), mask=st.integers(1, 255))

    @check(ABOVE_ENV)
    def test_what_the_disk_refuses_is_no_damage(self, work: Workload) -> None:
        """While the disk, or a limit of the process, keeps the state from being read, each way of reading it shows what
        was written, or says what was refused: `DeviceFailed`, `LimitReached`. Nobody says that it is damaged, and when
        that is over all is as it was."""
        def claim(before: list[Operation], code: int) -> None:
            files, refusal = FaultyFiles(), _REFUSALS[code]
            with kept_with(work, before, env=quiet_env(files)) as kept:
                kept.store.checkpoint()
                with kept.store.snapshot() as view:
                    state = state_of(kept.path)
                    files.fail("pread", code=code, only=lambda path: state in path.parents)
                    _only_refused(refusal, "a view", lambda: kept.compare(view))
                    _only_refused(refusal, "the check of a view", lambda: _finds_nothing(view))
                    _only_refused(refusal, "the digest of a view", lambda: kept.note(view))
                    _only_refused(refusal, "a transaction", lambda: kept.write(1))
                    kept.store.close()
                    _only_refused(refusal, "an opening", lambda: kept.opened(kept.path, env=kept.env).close())
                    _only_refused(refusal, "a read-only opening", lambda: kept.opened(
                        kept.path, env=kept.env, read_only=True).close())
                    files.heal()
                kept.open()
                kept.found(kept.last)
                kept.write(2)

        for code in _REFUSALS:
            self.prove(claim, examples=2, before=work.operations(), code=st.just(code))

    @staticmethod
    def _damaged(kept: Modelled, whole: Path, path: Path, offset: int, mask: int) -> Path:
        damaged = kept.fresh("damaged")
        shutil.copytree(whole, damaged)
        flip(damaged / path.relative_to(whole), offset, mask)
        return damaged

    def _must_be_found(self, kept: Modelled, whole: Path, path: Path, offset: int, mask: int) -> None:
        """Open a copy of `whole` with one byte flipped."""
        what = f"byte {offset} of {path.relative_to(whole)} flipped (xor {mask})"
        in_last_group = False
        if path in segments_of(whole):
            ends, sealed = group_ends(path)
            in_last_group = not sealed and offset >= ends[-2 if len(ends) > 1 else -1].offset
        damaged = self._damaged(kept, whole, path, offset, mask)
        try:
            self._look(kept, damaged, what, kept.last - in_last_group)
        except HoldfastError:
            return  # found
        finally:
            shutil.rmtree(damaged)

    @staticmethod
    def _look(kept: Modelled, damaged: Path, what: str, at_least: int) -> None:
        try:
            store = kept.opened(damaged)
        except HoldfastError:
            raise
        except Exception as error:
            raise AssertionError(f"{what}: opening raised a bare {error!r}; say Damaged") from error
        with store:
            with store.snapshot() as view:
                if list(view.check()):
                    return
                txid, content, digest = view.txid, kept.work.content(view), view.digest()
            assert at_least <= txid <= kept.last, f"{what}: it shows transaction {txid} of {kept.last}, and no error"
            where = difference(content, kept.work.expected(kept.models[txid]))
            assert not where, f"{what}: no error, and at transaction {txid} something else is shown: {where}"
            assert kept.digests.setdefault(txid, digest) == digest, f"{what}: no error, and another digest"
            reported = store.recovery.cut_bytes
            assert txid == kept.last or reported, f"{what}: transaction {kept.last} was cut, and that is not reported"


def _only_refused(refusal: type[HoldfastError], what: str, look: Callable[[], object]) -> None:
    """`look` may be refused, and not fail otherwise."""
    try:
        look()
    except refusal:
        pass
    except (HoldfastError, OSError, MemoryError) as error:
        raise AssertionError(f"{what} of a state that cannot be read ends {type(error).__name__} ({error}), not "
                             f"{refusal.__name__}") from error


def _finds_nothing(view: View) -> None:
    found = list(view.check())
    assert not found, f"the engine's check finds {found} in a state that it cannot read"


@contextmanager
def _checkpointed(work: Workload, several: list[list[Operation]], closed: bool) -> Iterator[tuple[Modelled, Path]]:
    """A store, and a copy of its directory with a checkpointed state: closed, or with more log after the state."""
    with scratch() as root, Modelled(work, root) as kept:
        for number, operations in enumerate([*several, work.numbered(0), work.numbered(1)]):
            kept.transact(operations)
            if number == 0:
                kept.store.checkpoint()
        kept.store.checkpoint()
        if closed:
            kept.store.close()
            whole = kept.fresh("closed")
            shutil.copytree(kept.path, whole)
            kept.open()
        else:
            kept.write(2)
            whole = kept.crash_image()
        kept.shows(kept.last)
        yield kept, whole
