"""Members on real sockets, and the client that finds them: with TLS, and with what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from holdfast.engine import MemoryEngine
from holdfast.engine.errors import InvalidInput, NotAuthorized, SettingError
from holdfast.engine.model.positions import Position
from holdfast.engine.store.settings import Settings
from holdfast.replay import Cluster, Member
from holdfast.replay.testing.members import until

TTL = 2.0


def start(root: Path, name: str, **more: Any) -> Member[Any, Any]:
    return Member.open(root / name, MemoryEngine, cluster="social", name=name, listen="127.0.0.1:0", ttl=TTL,
                       coordinator=f"file:{root / 'co'}", settings=Settings(wait_s=5), **more)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Member[Any, Any]]]:
    with ExitStack() as stack:
        members = []
        for name in "abc":
            member = stack.enter_context(start(tmp_path, name, create=name == "a"))
            member.wait_ready(20)
            members.append(member)
        until(lambda: len(members[0].status()["voters"]) == 3 and "c" in members[0].status()["acked"])
        yield members


def test_the_client_finds_the_primary_and_tells_outcomes(three: list[Member[Any, Any]]) -> None:
    a = three[0]
    with a.transaction() as tx:
        tx.put(b"k", b"v")
    position = a.position()
    uri = "ha://" + ",".join(member.address for member in three)
    with Cluster(uri) as cluster:
        assert cluster.primary == a.address
        assert [state.role for state in cluster.status()] == ["primary", "follower", "follower"]
        assert next(cluster.watch())[0].name == "a"
        assert cluster.outcome(position) == "published"
        assert cluster.outcome(Position(position.txid, b"x" * 16)) == "cut"
        assert cluster.outcome(Position(position.txid + 100, b"x" * 16)) == "unknown"
        a.close()
        until(lambda: cluster.primary not in (None, a.address))
        assert cluster.status()[0].role is None
        assert cluster.outcome(position) == "published"
    for wrong in ("single://a:1", "ha://", "ha://host"):
        with pytest.raises((InvalidInput, SettingError)):
            Cluster(wrong)


def test_the_member_of_the_highest_epoch_tells_outcomes(three: list[Member[Any, Any]],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has yet to see a forced promotion shows what was lost by it, and said that it was published."""
    with three[0].transaction() as tx:
        tx.put(b"k", b"v")
    position = three[0].position()
    until(lambda: all(member.position() == position for member in three))
    with Cluster("ha://" + ",".join(member.address for member in three)) as cluster:
        states = [replace(state, epoch=epoch) for state, epoch in zip(cluster.status(), (1, 2, 1), strict=True)]
        monkeypatch.setattr(cluster, "status", lambda: tuple(states))
        asked: list[int] = []
        real = cluster._source

        def source(at: Any) -> Any:
            asked.append(at.port)
            return real(at)

        monkeypatch.setattr(cluster, "_source", source)
        assert cluster.outcome(position) == "published"
        assert asked == [int(three[1].address.rpartition(":")[2])]


def test_members_speak_tls_and_check_each_other(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "member.pem"))
    other.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "stranger.pem"))
    tls = {"ca": tmp_path / "ca.pem", "tls_certificate": tmp_path / "member.pem"}
    with start(tmp_path, "a", create=True, **tls) as a, start(tmp_path, "b", **tls) as b:
        for member in (a, b):
            member.wait_ready(20)
        with a.transaction(ack="all") as tx:
            tx.put(b"k", b"v")
        assert b.snapshot(at_least=tx.txid).get(b"k") == b"v"
        with Cluster(f"ha://{a.address},{b.address}", ca=tmp_path / "ca.pem") as cluster:
            assert cluster.primary == a.address
        with pytest.raises(NotAuthorized, match="token is wrong"):
            start(tmp_path, "c", token="another-token-of-tests", **tls)
    with pytest.raises(SettingError, match="check each other's certificates"):
        start(tmp_path, "d", tls_certificate=tmp_path / "member.pem")
