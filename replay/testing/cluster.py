"""`ClusterContract`: what the members of a cluster must be with an engine, check by check.

    class TestMine(ClusterContract):
        workload = KeyValues(MyEngine, put=..., items=...)

The members are real ones, each with a store of its own. They run in one process, and call each other and the
coordinator without sockets, so that links can be cut and members killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...engine.contract.engine import BulkEngine
from ...engine.contract.view import View
from ...engine.errors import HoldfastError, OutcomeUnknown, RolledBack, StoreClosed
from ...engine.source.local import LocalSource
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from ...engine.testing.engine.transactions import several
from ...engine.testing.support.contract import Contract, check, scratch
from ...engine.testing.support.modelled import difference
from ...engine.testing.support.workload import Operation, Workload
from ..ha.errors import NotPrimary
from ..ha.service import Member
from ..roll import roll
from .members import PATIENCE, MemberCluster, until
from .seeded import BusySource, Seeded, compare_rolled, last_for_engine

SETTINGS = Settings(wait_s=PATIENCE, segment_bytes=128 << 10, heartbeat_s=0)
TTL = 0.6
"""For so long, a member that is cut off is not missed, seconds. If this machine stops for longer, a check goes on with
another primary."""


class ClusterContract(Contract):
    """Properties of a cluster of three members: fail-overs, members that join, are killed and are copied.

    Subclass it and set `workload`, or pass it to `check_engine`.
    """

    @check()
    def test_followers_show_each_transaction_as_the_primary_does(self, work: Workload) -> None:
        """Each member shows each transaction and each bulk load as the model does, also in views that were taken before
        later ones, and while it makes checkpoints."""

        def claim(histories: list[list[Operation]]) -> None:
            with three(work) as members:
                members.write(work.numbered(1))
                for number, operations in enumerate(histories):
                    with members.held_views():
                        members.write(operations)
                        if number % 2:
                            members.checkpoint()
                if issubclass(work.engine, BulkEngine):
                    members.bulk(2)
                members.write(work.numbered(3))
                members.agree()

        self.prove(claim, examples=2, histories=several(work, 6))

    @check()
    def test_a_failover_loses_nothing_that_was_acknowledged(self, work: Workload) -> None:
        """The primary is cut off while it writes. Another member goes on from what was acknowledged, and gives out no
        id a second time. What the old primary alone has is cut from its log, and never shown."""

        def claim(before: list[list[Operation]], after: list[list[Operation]]) -> None:
            with three(work) as members:
                members.write(work.numbered(1))
                for operations in before:
                    members.write(operations)
                old = members.primary()
                members.isolate(old.name)
                members.write_in_vain(old, work.numbered(2))
                members.primary(but=old.name)
                members.write(work.numbered(3), but=old.name)
                for operations in after:
                    members.write(operations, but=old.name)
                members.mend()
                members.write(work.numbered(4))
                members.agree()
                members.checkpoint()
                members.write(work.numbered(5))
                members.agree()

        self.prove(claim, examples=2, before=several(work, 3), after=several(work, 3))

    @check()
    def test_killed_members_come_back(self, work: Workload) -> None:
        """Each member is killed once, the primary too, and opened again on what is then in its directory. It shows
        nothing else than it did, and follows."""

        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with three(work) as members:
                members.write(work.numbered(100))
                for operations in before:
                    members.write(operations)
                members.write(work.numbered(101))
                members.checkpoint()
                left = list(during)
                for number, name in enumerate("bca"):
                    members.write(work.numbered(10 * number + 1))
                    members.kill(name)
                    members.write(work.numbered(10 * number + 2))
                    if left:
                        members.write(left.pop())
                    members.start(name)
                    members.write(work.numbered(10 * number + 3))
                members.agree()

        self.prove(claim, examples=1, before=several(work, 2), during=several(work, 3))

    @check()
    def test_a_member_joins_while_others_write(self, work: Workload) -> None:
        """A member with an empty directory copies the state of a follower. The primary commits before each piece that
        is read, and in the middle of it, and all make checkpoints. Then the new member shows what the others do, and
        when it is primary, it goes on from there."""

        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with three(work) as members:
                members.write(work.numbered(1))
                for operations in before:
                    members.write(operations)
                members.checkpoint()
                members.write(work.numbered(5))
                change = members.changing(during)
                members.network.source_of = lambda store: BusySource(store, change)
                members.start("d")
                members.network.source_of = LocalSource
                members.write(work.numbered(2))
                members.voting("a", "b", "c", "d")
                members.agree()
                members.hand_over_to("d")
                members.write(work.numbered(3))
                for operations in before:
                    members.write(operations)
                members.agree()

        self.prove(claim, examples=1, before=several(work, 2), during=several(work, 4))

    @check()
    def test_a_copy_of_a_follower_is_of_the_position_it_names(self, work: Workload) -> None:
        """Image and log of a follower, as a backup takes them, while the primary commits and the follower makes
        checkpoints. Rolled to any transaction, the copy is what the model is there."""

        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with three(work) as members:
                members.write(work.numbered(1))
                for operations in before:
                    members.write(operations)
                members.checkpoint()
                members.write(work.numbered(5))
                members.copy_from = members.follower().name
                source = BusySource(members.store, members.changing(during))
                seeded = Seeded(members, source, members.root / "copy")
                members.write(work.numbered(2))
                seeded.confirmed = source.confirm(seeded.grant.id)
                log = seeded.fetched()
                engine = seeded.engine()
                for txid in range(seeded.consistent_from.txid, log.end.txid + 1):
                    roll(engine, log, txid, durable=True)
                    compare_rolled(members, engine, last_for_engine(log, txid), "a copy of a follower, rolled,")
                engine.close()
                log.close()
                seeded.release()

        self.prove(claim, examples=2, before=several(work, 2), during=several(work, 4))


class ModelledMembers(MemberCluster):
    """Members with a model beside them: `models[n]` is the content after record n. Records of the kit change nothing.

    Attributes:
        work: the workload.
        copy_from: whose store `store` is.
    """

    def __init__(self, work: Workload, root: Path) -> None:
        super().__init__(root, work.engine, options=work.opened_with, settings=SETTINGS, ttl=TTL)
        self.work = work
        self.models: list[Any] = [work.new_model()]
        self.copy_from = "a"
        self._digests: dict[int, bytes] = {}

    @property
    def store(self) -> Store[Any, Any]:
        return self.members[self.copy_from].store

    def follower(self) -> Member[Any, Any]:
        """One that is not the primary."""
        primary = self.primary().name
        return next(member for name, member in self.members.items() if name != primary)

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, operations: list[Operation], but: str = "") -> None:
        """One transaction, on whoever is primary, except `but`. Then all others show it, too."""
        def transact(member: Member[Any, Any], model: Any) -> int | None:
            with member.transaction() as tx:
                self.work.run(tx, model, operations)
            txid: int | None = tx.txid
            return txid

        self._acknowledged(transact, but)

    def bulk(self, number: int) -> None:
        """One bulk load, in the same way."""
        self._acknowledged(lambda member, model: member.bulk(self.work.bulk_load(number, model)), "")

    def _acknowledged(self, change: Callable[[Member[Any, Any], Any], int | None], but: str) -> None:
        while True:
            member, model = self.primary(but), self.models[-1].copy()
            try:
                txid = change(member, model)
                break
            except OutcomeUnknown as unknown:  # this machine was so busy that a lease ran out
                if unknown.txid is not None and self._came_through(model, but):
                    txid = unknown.txid
                    break
            except (NotPrimary, StoreClosed, RolledBack):
                member.check()
        if txid is None:
            same = self.work.expected(model) == self.work.expected(self.models[-1])
            assert same, "a transaction that changed something ended without a payload"
            return
        assert txid >= len(self.models), f"transaction {txid} came after {len(self.models) - 1}"
        self.models += [self.models[-1]] * (txid - len(self.models))  # records of the kit
        self.models.append(model)
        for name in self.members:
            if name != but:
                self.shows(name, txid)

    def _came_through(self, model: Any, but: str) -> bool:
        with self.primary(but).snapshot(linearizable=True) as view:
            shown: bool = self.work.content(view) == self.work.expected(model)
        return shown

    def write_in_vain(self, member: Member[Any, Any], operations: list[Operation]) -> None:
        """A transaction that nobody else gets, on a primary that is cut off and does not know yet."""
        with contextlib.suppress(NotPrimary, StoreClosed, OutcomeUnknown), member.transaction(ack="local") as tx:
            self.work.run(tx, self.models[-1].copy(), operations)

    def checkpoint(self) -> None:
        """Of every member."""
        for member in self.members.values():
            with contextlib.suppress(StoreClosed):  # it was deposed at this moment
                member.store.checkpoint()

    def changing(self, transactions: list[list[Operation]]) -> Callable[[], None]:
        """What a `BusySource` calls: each call makes one of these transactions, and checkpoints after every second."""
        left = list(transactions)

        def change() -> None:
            if left:
                self.write(left.pop(0) + self.work.numbered(10 + len(left)))
                if len(left) % 2 == 0:
                    self.checkpoint()

        return change

    def hand_over_to(self, name: str) -> None:
        """Have a member made primary."""
        def handed_over() -> bool:
            with contextlib.suppress(HoldfastError):  # not yet, or not any more
                self.primary().switch_over(name)
            return self.members[name].role == "primary"

        until(handed_over)

    # --- looking --------------------------------------------------------------------------------------------------

    def shows(self, name: str, txid: int) -> None:
        """Wait until a member shows this transaction, and compare."""
        member = self.members[name]

        def reached() -> bool:
            member.check()
            with contextlib.suppress(StoreClosed):
                return member.position().txid >= txid
            return False

        until(reached)
        with member.snapshot(at_least=txid) as view:
            self.compare(view)

    def compare(self, view: View) -> None:
        """A view, with the model of its record."""
        txid = view.txid
        content, expected = self.work.content(view), self.work.expected(self.models[min(txid, len(self.models) - 1)])
        where = difference(content, expected)
        assert not where, f"the view at transaction {txid} is not what was written: {where}"
        found = list(view.check())
        assert not found, f"the engine's own check at transaction {txid} finds {found}"
        digest = view.digest()
        assert self._digests.setdefault(txid, digest) == digest, f"two digests of the state at transaction {txid}"

    @contextlib.contextmanager
    def held_views(self) -> Iterator[None]:
        """Views of every member that are taken now, and must show the same after the block."""
        views = [member.snapshot() for member in self.members.values()]
        try:
            yield
            for view in views:
                with contextlib.suppress(StoreClosed):  # its member was deposed
                    self.compare(view)
        finally:
            for view in views:
                view.close()

    def agree(self) -> None:
        """Wait until all members have the same log and show all of it, and compare."""
        super().agree()
        for name in self.members:
            self.shows(name, len(self.models) - 1)


@contextlib.contextmanager
def three(work: Workload) -> Iterator[ModelledMembers]:
    """Three members that vote."""
    with scratch() as place, ModelledMembers(work, place) as members:
        members.three()
        yield members
