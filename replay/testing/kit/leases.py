"""Leases: what one covers stays readable, whatever happens, until it is released or over; then it ends cleanly.

The store keeps as little log as possible, makes checkpoints and prunes at the worst moments, and has a clock set by
hand.
"""

from __future__ import annotations

from ....engine.contract.engine import Context
from ....engine.env import REAL
from ....engine.errors import LeaseExpired
from ....engine.source.local import LocalSource
from ....engine.testing.disks.quiet import SetClock
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.driver import put_files
from ....engine.testing.support.raising import raises
from ....engine.testing.support.workload import Workload
from ...roll import roll
from ..seeded import compare_rolled, fill, quietly_kept


class LeaseChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_lease_holds_what_it_covers(self, work: Workload) -> None:
        """While a lease lasts, its image and the log after it stay readable through commits, checkpoints and prunings,
        and a late copy under it is as right as an early one. Once released, it holds nothing back."""
        with quietly_kept(work) as kept:
            for number in range(1, 4):
                kept.write(number)
            kept.store.checkpoint()
            kept.write(4)
            source = LocalSource(kept.store)
            grant = source.lease("a check", image=True)
            image_position = grant.position
            first = {f.name: source.read_image(grant.id, f.name, 0, f.size) for f in grant.files}
            on_log = source.lease("a check of log", image=False, after=kept.store.log.base)
            fill(kept, 2)
            kept.store.prune()
            last = kept.last
            records = list(source.read_log(grant.id, image_position, last))
            found = [record.txid for record in records]
            assert found == [*range(image_position.txid + 1, last + 1)], (
                f"under a lease from {image_position} the log has only {len(found)} transactions")
            everything = len(list(source.read_log(on_log.id, on_log.position, last)))
            assert everything == last, f"under a lease on all {last} transactions, the log has {everything} of them"
            again = {f.name: source.read_image(grant.id, f.name, 0, f.size) for f in grant.files}
            if not grant.moving:
                assert again == first, "a stable image under a lease changed"
            for contents in (first, again):
                state = kept.fresh("state")
                put_files(REAL.files, state, contents)
                engine = work.engine.open(state, Context(options=work.opened_with), at=image_position)
                roll(engine, kept.store.log, last, durable=True)
                compare_rolled(kept, engine, last, "a copy made under a lease")
                engine.close()
            source.release(on_log.id)
            source.release(grant.id)
            kept.store.prune()
            assert kept.store.log.base.txid > image_position.txid, (
                "the leases were released, and the log they held is still kept")
            with raises(LeaseExpired, "a read under a released lease"):
                source.renew(grant.id)

    @check()
    def test_an_expired_lease_aborts_before_it_frees(self, work: Workload) -> None:
        """A lease that is not used for its time is over. A reader under it gets an error at the next piece, and a copy
        under it is not confirmed. The log is freed only when the last reader has ended."""
        clock = SetClock()
        with quietly_kept(work, clock) as kept:
            for number in range(1, 6):
                kept.write(number)
            source = LocalSource(kept.store)
            grant = source.lease("a check", image=True, ttl=10)
            assert grant.position.txid < kept.last, "nothing is checkpointed yet, and the image claims to hold it"
            name = max(grant.files, key=lambda file: file.size).name  # some may be empty
            for _ in range(3):  # use renews
                clock.seconds += 9
                source.read_image(grant.id, name, 0, 1)
            reader = source.read_log(grant.id, grant.position, kept.last)
            next(reader)
            fill(kept, 2)
            clock.seconds += 11
            kept.store.prune()
            base = kept.store.log.base
            held = base.txid <= grant.position.txid
            assert held, f"the log after {grant.position} is being read, and was pruned up to {base}"
            with raises(LeaseExpired, "the next record under a lease that is over"):
                next(reader)
            for what, call in (("an image", lambda: source.read_image(grant.id, name, 0, 1)),
                               ("a confirmation", lambda: source.confirm(grant.id)),
                               ("a renewal", lambda: source.renew(grant.id))):
                with raises(LeaseExpired, f"{what} under a lease that is over"):
                    call()
            kept.store.prune()
            assert kept.store.log.base.txid > grant.position.txid, "a lease is over, and the log it held is still kept"
            assert not source.leases(), "a lease is over, and still listed"
