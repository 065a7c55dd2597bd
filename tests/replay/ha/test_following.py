"""How a follower finds where its log and the leader's part, when the leader is not, or no longer, what it seems."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.engine.errors import AheadOfSource
from holdfast.engine.model.positions import Branch, History, Position
from holdfast.replay.ha.errors import NotPrimary
from holdfast.replay.ha.following import MustSeed, PeerLog, common_position, leader_log, parting


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

    def adopt(self, history: History) -> None:
        raise AssertionError("nothing is followed here")


class Peer:
    """A leader that serves an epoch, or 0."""

    def __init__(self, chains: str, serving: int) -> None:
        self.chains = [chain.encode() for chain in chains]
        self.serving = serving

    def status(self) -> dict[str, Any]:
        return {"name": "p", "serving": self.serving, "durable": len(self.chains) - 1, "store_id": "0a",
                "branches": [["0b", 0, "0c"]]}

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        if epoch is not None and epoch != self.serving:
            raise NotPrimary("p does not lead")
        if txid >= len(self.chains):
            raise AheadOfSource("not here")
        return self.chains[txid]


def test_a_leader_that_does_not_serve_yet_has_no_end() -> None:
    history = History(b"\n", (Branch(b"\v", Position(0, b"\f")),))
    assert leader_log(Peer("0abc", 3), 3) == PeerLog(3, history)
    with pytest.raises(NotPrimary):
        leader_log(Peer("0abc", 0), 3)
    with pytest.raises(NotPrimary):
        leader_log(Peer("0abc", 4), 3)


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


def test_where_a_branched_log_left_the_leaders() -> None:
    assert parting(Log("0abcxyz", published=6), Peer("0abcdefghij", 3), 10) == Position(3, b"c")
    assert parting(Log("0abcxyz", published=6), Peer("0ab", 3), 2) == Position(2, b"b")
    assert parting(Log("1x", published=1), Peer("0ab", 3), 2) == Position(0, b"1")
