"""How a follower finds where its log and the leader's part, when the leader is not, or no longer, what it seems."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.engine.errors import AheadOfSource
from holdfast.engine.model.positions import Position
from holdfast.replay.ha.errors import NotPrimary
from holdfast.replay.ha.following import MustSeed, common_position, leader_end


class Log:
    """Chains by txid, from 0 on."""

    def __init__(self, chains: str, published: int) -> None:
        self.chains = [chain.encode() for chain in chains]
        self._published = published

    def end(self) -> Position:
        return Position(len(self.chains) - 1, self.chains[-1])

    def published(self) -> int:
        return self._published

    def base(self) -> int:
        return 0

    def chain_at(self, txid: int) -> bytes:
        return self.chains[txid]

    def cut(self, after: Position) -> None:
        raise AssertionError("nothing is cut here")


class Peer:
    """A leader that serves an epoch, or 0."""

    def __init__(self, chains: str, serving: int) -> None:
        self.chains = [chain.encode() for chain in chains]
        self.serving = serving

    def status(self) -> dict[str, Any]:
        return {"name": "p", "serving": self.serving, "durable": len(self.chains) - 1}

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        if epoch is not None and epoch != self.serving:
            raise NotPrimary("p does not lead")
        if txid >= len(self.chains):
            raise AheadOfSource("not here")
        return self.chains[txid]


def test_a_leader_that_does_not_serve_yet_has_no_end() -> None:
    assert leader_end(Peer("0abc", 3), 3) == 3
    with pytest.raises(NotPrimary):
        leader_end(Peer("0abc", 0), 3)
    with pytest.raises(NotPrimary):
        leader_end(Peer("0abc", 4), 3)


def test_a_shorter_leader_makes_a_branch_only_while_it_leads() -> None:
    log = Log("0abcdef", published=5)
    with pytest.raises(MustSeed, match="5 was shown here") as branched:
        common_position(log, Peer("0abc", 3), 3, 3)
    assert branched.value.branched
    with pytest.raises(NotPrimary):
        common_position(log, Peer("0abc", 0), 3, 3)


def test_logs_part_at_the_last_equal_chain() -> None:
    assert common_position(Log("0abcxy", published=1), Peer("0abcdefg", 3), 7, 3) == Position(3, b"c")
    assert common_position(Log("0abc", published=1), Peer("0abcdefg", 3), 7, 3) == Position(3, b"c")
