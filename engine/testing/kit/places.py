"""A store is where it was opened, wherever the process goes: a daemon changes its directory, and so do tests."""

from __future__ import annotations

import os
from pathlib import Path

from ...contract.engine import BulkEngine
from ..support.contract import Contract, check, scratch
from ..support.crash_images import read_image, tree
from ..support.modelled import Modelled
from ..support.working_directory import back_again, go_to_one_of_two
from ..support.workload import Operation, Workload


class PlaceChecks(Contract):
    """Paths that are kept must be absolute."""

    @check()
    def test_a_store_stays_where_it_was_opened(self, work: Workload) -> None:
        """A store that was opened by a relative path stays there when the process changes its directory: what it
        commits, checkpoints, loads and gives as an image is there, and another store, to which the same path leads now,
        is left alone. The same holds where it is open read-only."""
        def claim(before: list[Operation], during: list[Operation]) -> None:
            with scratch() as root, back_again():
                here, elsewhere = go_to_one_of_two(root)
                with Modelled(work, elsewhere) as other:
                    other.write(77)
                untouched = tree(elsewhere)
                with Modelled(work, Path()) as kept:
                    name = kept.path
                    kept.root, kept.path = here, here / name  # for the check itself, which goes elsewhere too
                    assert (elsewhere / name).is_dir()
                    kept.transact(before)
                    kept.write(0)
                    os.chdir(elsewhere)
                    with kept.store.snapshot() as view:
                        kept.transact(during)
                        kept.write(1)
                        kept.store.checkpoint()
                        _is_left_alone(elsewhere, untouched, "a checkpoint")
                        if issubclass(work.engine, BulkEngine):
                            kept.bulk(2)
                            _is_left_alone(elsewhere, untouched, "a bulk load")
                        image = kept.store.image()
                        try:
                            read_image(image)
                        finally:
                            image.close()
                        kept.seal()
                        kept.write(3)
                        kept.compare(view)
                    kept.shows(kept.last)
                    kept.recovered(kept.crash_image(), kept.last)
                    kept.store.checkpoint()
                    kept.store.prune()
                    kept.store.close()
                    _is_left_alone(elsewhere, untouched, "all that a store does")
                    os.chdir(here)
                    with kept.opened(name, read_only=True) as closed:
                        os.chdir(elsewhere)
                        closed.refresh()
                        with closed.snapshot() as view:
                            kept.compare(view)
                            assert view.txid == kept.last, f"it shows transaction {view.txid}, not {kept.last}"
                    kept.open()
                    kept.found(kept.last)
                    _is_left_alone(elsewhere, untouched, "a read-only opening")

        self.prove(claim, examples=3, before=work.operations(), during=work.operations())


def _is_left_alone(elsewhere: Path, untouched: dict[str, bytes], what: str) -> None:
    found = tree(elsewhere)
    changed = sorted(name for name in found.keys() | untouched.keys() if found.get(name) != untouched.get(name))
    assert not changed, f"{what} of a store that is elsewhere changed {changed} in the directory that the process is in"
