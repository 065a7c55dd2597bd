"""`ReplayContract`: what copying and replaying must do with an engine, check by check.

    class TestMine(ReplayContract):
        workload = KeyValues(MyEngine, put=..., items=...)

Redo by itself, on which copies rest, is in `redo.py`.
"""

from __future__ import annotations

from ...engine.contract.engine import BulkEngine, Context
from ...engine.source.local import LocalSource
from ...engine.testing.engine.transactions import several
from ...engine.testing.support.contract import check
from ...engine.testing.support.crash_images import copy_running
from ...engine.testing.support.workload import Operation, Workload
from ..roll import roll
from .redo import RedoChecks
from .seeded import BusySource, Seeded, compare_rolled, quietly_kept


class ReplayContract(RedoChecks):
    """Properties of copies: torn, interrupted, replayed again, of a store that is being written.

    Subclass it and set `workload`, or pass it to `check_engine`.
    """

    @check()
    def test_a_copy_seeded_during_writes_is_right(self, work: Workload) -> None:
        """The source of a copy commits and makes checkpoints before each piece that is read and in the middle of it.
        The copy equals the model at the position that the source confirms, and at each one after it. What was committed
        during the copy is in it."""
        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with quietly_kept(work) as kept:
                kept.write(1)
                for operations in before:
                    kept.transact(operations)
                kept.store.checkpoint()
                kept.write(2)
                left = list(during)

                def change() -> None:
                    if left:
                        kept.transact(left.pop(0) + work.numbered(10 + len(left)))
                        if len(left) % 2 == 0:
                            kept.store.checkpoint()

                seeded = Seeded(kept, BusySource(kept.store, change), kept.fresh("copy"))
                last = kept.last
                kept.write(3)
                log = seeded.fetched()
                assert log.end.txid == last, f"{last} was committed during the copy, which ends at {log.end}"
                engine = seeded.engine()
                for txid in range(seeded.consistent_from.txid, last + 1):
                    roll(engine, log, txid, durable=True)
                    compare_rolled(kept, engine, txid, "a copy seeded during writes, rolled,")
                engine.close()
                log.close()
                seeded.release()

        self.prove(claim, examples=10, before=several(work, 2), during=several(work, 6))

    @check()
    def test_rolling_to_any_transaction_gives_the_model_there(self, work: Workload) -> None:
        """An image and the log after it, rolled to any transaction from the image's position on, durably or in memory,
        give exactly the state at that transaction, bulk loads included; rolled in two goes as in one."""
        def claim(before: list[list[Operation]], after: list[list[Operation]]) -> None:
            with quietly_kept(work) as kept:
                kept.write(1)
                for operations in before:
                    kept.transact(operations)
                kept.store.checkpoint()
                source = LocalSource(kept.store)
                seeded = Seeded(kept, source, kept.fresh("copy"))
                for operations in after:
                    kept.transact(operations)
                if issubclass(work.engine, BulkEngine):
                    kept.bulk(2)
                kept.write(3)
                seeded.confirmed = source.confirm(seeded.grant.id)
                log = seeded.fetched(kept.store.published)
                for txid in range(seeded.image_position.txid, kept.last + 1):
                    copied = kept.fresh("state")
                    copy_running(seeded.generation.state, copied)
                    engine = kept.engine.open(copied, Context(options=work.opened_with), at=seeded.image_position)
                    middle = (seeded.image_position.txid + txid) // 2
                    roll(engine, log, middle, durable=True)
                    rolled = roll(engine, log, txid, durable=txid % 2 == 0)
                    assert rolled.position.txid == txid, f"a roll to {txid} came to {rolled.position}"
                    compare_rolled(kept, engine, txid, f"a copy from {seeded.image_position} rolled to {txid}")
                    engine.close()
                log.close()
                seeded.release()

        self.prove(claim, examples=6, before=several(work, 2), after=several(work, 3))
