"""Flipped bytes in the log of a store: found, or harmless."""

from __future__ import annotations

from hypothesis import strategies as st

from ...errors import Damaged, HoldfastError
from ..support.contract import Contract, check, scratch
from ..support.crash_images import group_ends, segments_of, state_of
from ..support.flipped_bytes import damaged, must_be_found, places_in_segment
from ..support.modelled import Modelled
from ..support.raising import raises
from ..support.workload import Workload


class LogCorruptionChecks(Contract):
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
                    must_be_found(kept, whole, segment, offset, 1)
            files = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.name != "LOCK"
                     and state_of(whole) not in path.parents and path not in segments]
            for path in files:
                if not path.name.startswith("spare-"):
                    for offset in (0, path.stat().st_size // 2, path.stat().st_size - 1):
                        must_be_found(kept, whole, path, offset, 1)

            def claim(which: int, share: float, mask: int) -> None:
                segment = segments[which]
                end = group_ends(segment)[0][-1].offset
                must_be_found(kept, whole, segment, int(share * end), mask)

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
                copy = damaged(kept, whole, segment, offset, 1)
                try:
                    store = kept.opened(copy)
                except HoldfastError:
                    continue
                with store:
                    with store.snapshot() as view:
                        kept.compare(view)
                    if store.recovery.cut_bytes:
                        continue  # the seal was bad, so recovery read the log through, and sealed it anew
                    with raises(Damaged, f"reading a log through whose byte {offset} was flipped"):
                        store.log.verify()
