"""State files that were changed, or that the disk does not give: an error, and never other content."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from ...contract.view import View
from ...errors import DeviceFailed, HoldfastError, LimitReached
from ..disks.faulty import FaultyFiles
from ..disks.quiet import quiet_env
from ..support.contract import ABOVE_ENV, CHECKSUMS, Contract, check, scratch
from ..support.crash_images import state_of
from ..support.flipped_bytes import must_be_found, places_in
from ..support.modelled import Modelled, kept_with
from ..support.workload import Operation, Workload

_REFUSALS: dict[int, type[HoldfastError]] = {errno.EIO: DeviceFailed, errno.ENOMEM: LimitReached}
"""What the system says, and what the kit makes of it."""


class DamagedStateChecks(Contract):
    """What becomes of a state that cannot be read as it was written."""

    @check(ABOVE_ENV, CHECKSUMS)
    def test_a_flipped_byte_in_the_state_is_found(self, work: Workload) -> None:
        """Any single flipped byte in the state of a store is found, by opening it, by reading it, or by the engine's
        own check, or is harmless: what is shown is what was written, and nothing else ever without an error."""
        def claim(several: list[list[Operation]], closed: bool, which: int, share: float, mask: int) -> None:
            with _checkpointed(work, several, closed) as (kept, whole):
                files = [path for path in sorted(state_of(whole).rglob("*")) if path.is_file() and path.stat().st_size]
                path = files[which % len(files)]
                must_be_found(kept, whole, path, int(share * (path.stat().st_size - 1)), mask)

        with _checkpointed(work, [], closed=True) as (kept, whole):
            for path in sorted(state_of(whole).rglob("*")):
                for offset in places_in(path) if path.is_file() else ():
                    must_be_found(kept, whole, path, offset, 1)
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
