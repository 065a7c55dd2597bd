"""Members' requests and streams over real sockets on loopback."""

from __future__ import annotations

import datetime
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from peer_rig import START, TOKEN, Handler, member, records, talking
from source_rig import Proxy, ask, new_store, port_of

from holdfast.engine.env import REAL
from holdfast.engine.errors import InvalidInput, NotAuthorized, NotFound, SettingError, SourceRefused, SourceUnavailable
from holdfast.engine.source.http import discovery
from holdfast.engine.source.http.client import connect
from holdfast.engine.source.http.wire import Garbled
from holdfast.engine.source.interface import MemberInfo
from holdfast.replay.ha.errors import PeerUnavailable, ProtocolMismatch
from holdfast.replay.ha.peer import wire
from holdfast.replay.ha.peer.client import PeerClient, tls_context
from holdfast.replay.ha.peer.stream import LogStream


@pytest.fixture(autouse=True)
def _own_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def address(tmp_path: Path, handler: Handler) -> Iterator[str]:
    with member(tmp_path / "store", handler) as address:
        yield address


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def get(address: str, path: str, headers: str = "") -> tuple[int, bytes]:
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n"
    top, _, body = ask(port(address), head.encode()).partition(b"\r\n\r\n")
    return int(top.split()[1]), body


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# --- calls -----------------------------------------------------------------------------------------------------------


def test_calls_reach_the_handler(address: str, handler: Handler) -> None:
    with talking(address) as peer:
        assert peer.status() == {"name": "a", "role": "primary"}
        assert peer.promise({"epoch": 4}) == {"promised": 4}
        assert peer.chain_at(3) == b"\3" * 16
        assert peer.command("switchover", {"to": "b"}) == {"verb": "switchover", "to": "b"}
        assert len(peer._idle) == 2  # one was used three times


def test_an_error_of_the_handler_keeps_its_class(address: str, handler: Handler) -> None:
    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        raise PeerUnavailable("I am closing", hint="ask another")
    handler.promised = refuse
    with talking(address) as peer:
        with pytest.raises(NotFound, match="no transaction 101"):
            peer.chain_at(101)
        with pytest.raises(PeerUnavailable, match="I am closing"):
            peer.promise({"epoch": 1})


def test_an_attachment_is_compared_with_its_digest(address: str) -> None:
    name = "0a" * 16 + ".att"
    whole = name.encode() * 1000
    with talking(address) as peer:
        assert peer.read_attachment(name, 7, 1000) == whole[7:1007]
        with pytest.raises(InvalidInput):
            peer.read_attachment("../secret", 0, 10)
        with pytest.raises(Garbled):
            peer.read_attachment(name, len(whole) - 5, 10)  # fewer than asked for


def test_a_call_ends_within_its_timeout(address: str, handler: Handler) -> None:
    held = threading.Event()
    handler.promised = lambda request: {"late": held.wait(20)}
    with talking(address, timeout=0.3) as peer:
        begun = time.monotonic()
        with pytest.raises(PeerUnavailable, match="too long"):
            peer.promise({"epoch": 1})
        assert time.monotonic() - begun < 2
        held.set()


def test_bytes_that_trickle_do_not_prolong_a_call(address: str) -> None:
    def slowly(number: int, offset: int, data: bytes) -> bytes:
        time.sleep(0.6)
        return data
    with Proxy(port(address), slowly) as proxy, talking(f"127.0.0.1:{proxy.port}", timeout=0.3) as peer, \
            pytest.raises(PeerUnavailable, match="too long"):
        peer.status()


def test_a_stale_connection_is_replaced(tmp_path: Path, handler: Handler) -> None:
    with member(tmp_path / "store", handler) as address, Proxy(port(address)) as proxy, \
            talking(f"127.0.0.1:{proxy.port}") as peer:
        peer.status()
        for sock in list(proxy._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        assert peer.status()["name"] == "a"
        assert proxy.connections == 2


def test_nobody_listens(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free = sock.getsockname()[1]
    with talking(f"127.0.0.1:{free}") as peer, pytest.raises(PeerUnavailable, match="no answer"):
        peer.status()
    for text in ("", "x", "host:0", "host:70000", "http://host:1"):
        with pytest.raises(SettingError):
            PeerClient(text, TOKEN)


# --- tokens, versions, TLS -------------------------------------------------------------------------------------------


def test_only_the_cluster_token_opens_the_members_requests(address: str) -> None:
    [entry] = discovery.find(REAL.files, "127.0.0.1", port(address))
    for token in ("a-wrong-token-of-tests", entry.token):
        with talking(address, token) as peer:
            for call in (peer.status, lambda: next(peer.follow({}, START)), lambda: peer.acks({})):
                with pytest.raises(NotAuthorized, match="token is wrong"):
                    call()
    assert get(address, "/ha/v1/status")[0] == get(address, "/ha/v1/log")[0] == 401
    assert get(address, "/v1/store", f"Authorization: Bearer {TOKEN}\r\n")[0] == 200
    assert get(address, "/v1/store", f"Authorization: Bearer {entry.token}\r\n")[0] == 200


def test_before_a_member_has_a_token_nobodys_is_wrong(tmp_path: Path, handler: Handler) -> None:
    """It has just been started. What asks it for a linearizable read must not be told to change its token."""
    with member(tmp_path / "db", handler, token=None) as address:
        with talking(address) as peer, pytest.raises(SourceUnavailable, match="before it has joined"):
            peer.command("confirm", {})
        [entry] = discovery.find(REAL.files, "127.0.0.1", port(address))
        assert get(address, "/v1/store", f"Authorization: Bearer {TOKEN}\r\n")[0] == 401
        assert get(address, "/v1/store", f"Authorization: Bearer {entry.token}\r\n")[0] == 200


def test_a_body_that_the_network_loses_is_not_the_callers_mistake(tmp_path: Path, handler: Handler) -> None:
    with member(tmp_path / "db", handler, silence=0.3) as address:
        head = (f"POST /ha/v1/promise HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"{wire.VERSIONS_HEADER}: {wire.versions_to_wire(wire.HELLO_VERSION, wire.HELLO_MIN)}\r\n"
                "Connection: close\r\nContent-Length: 100\r\n\r\n")
        answer = ask(port(address), head.encode() + b"not all of it")
        assert answer.split()[1] == b"503"
        assert b"did not come, or not whole" in answer


def test_a_request_without_versions_is_refused(address: str) -> None:
    status, body = get(address, "/ha/v1/status", f"Authorization: Bearer {TOKEN}\r\n")
    assert (status, b"ProtocolMismatch" in body) == (409, True)


@pytest.mark.parametrize(("mine", "theirs", "spoken"), [
    ((3, 2), (4, 3), 3), ((4, 3), (3, 2), 3), ((3, 2), (5, 4), None), ((5, 4), (3, 2), None)])
def test_versions(tmp_path: Path, handler: Handler, mine: Any, theirs: Any, spoken: int | None) -> None:
    with member(tmp_path / "store", handler, versions=theirs) as address, talking(address, versions=mine) as peer:
        if spoken is None:
            with pytest.raises(ProtocolMismatch, match="upgrade the older"):
                peer.status()
            with pytest.raises(ProtocolMismatch):
                next(peer.follow({}, START))
        else:
            peer.status()
            acks = peer.acks({"name": "b"})
            acks.send({"txid": 1})
            handler.wait(lambda: handler.acks)
            acks.close()
            assert handler.acks[0]["version"] == spoken


def certificate(authority: trustme.CA, path: Path, **dates: Any) -> Path:
    authority.issue_cert("127.0.0.1", **dates).private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def test_tls(tmp_path: Path, handler: Handler) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with member(tmp_path / "store", handler, tls=certificate(authority, tmp_path / "a.pem")) as address:
        with talking(address, tls=tls_context(tmp_path / "ca.pem")) as peer:
            acks, follow = peer.acks({"name": "b"}), peer.follow({"name": "b"}, START)
            thread = in_thread(lambda: handler.stream().send_records(records(3)))
            assert next(follow).body[-1].txid == 3
            for txid in range(1, 4):
                acks.send({"txid": txid})
            handler.wait(lambda: len(handler.acks) == 3)
            acks.close()
            thread.join()
            handler.streams[0].close("done")
            assert list(follow) == []
        with talking(address, tls=tls_context(tmp_path / "other.pem")) as peer, \
                pytest.raises(NotAuthorized, match="could not prove its identity"):
            peer.status()
        with talking(address) as peer, pytest.raises(PeerUnavailable):
            peer.status()
    with pytest.raises(SettingError):
        tls_context(tmp_path / "none.pem")


def test_an_expired_certificate_is_named(tmp_path: Path, handler: Handler) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    now = datetime.datetime.now(datetime.UTC)
    dates = {"not_before": now - datetime.timedelta(days=3), "not_after": now - datetime.timedelta(days=1)}
    with member(tmp_path / "store", handler, tls=certificate(authority, tmp_path / "a.pem", **dates)) as address, \
            talking(address, tls=tls_context(tmp_path / "ca.pem")) as peer, \
            pytest.raises(NotAuthorized, match="expired"):
        peer.status()


def test_a_peer_without_tls_is_named(tmp_path: Path, address: str) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with talking(address, tls=tls_context(tmp_path / "ca.pem")) as peer, pytest.raises(PeerUnavailable, match="no TLS"):
        peer.status()


# --- streams ---------------------------------------------------------------------------------------------------------


def test_records_and_heartbeats_come_in_order(address: str, handler: Handler) -> None:
    made = records(50)

    def send() -> None:
        stream = handler.stream()
        for record in made:
            assert stream.send_records([record])
        stream.heartbeat({"watermark": 50})
        stream.close("done")
    thread = in_thread(send)
    with talking(address) as peer:
        frames = list(peer.follow({"name": "b"}, START))
    thread.join()
    assert [r.txid for f in frames if f.kind == wire.RECORDS for r in f.body] == list(range(1, 51))
    assert frames[-1] == wire.Frame(wire.HEARTBEAT, {"watermark": 50})
    assert handler.hellos == [{"name": "b", "after": 0, "chain": bytes(16), "version": 1}]


def test_the_reason_of_the_end_arrives(address: str, handler: Handler) -> None:
    thread = in_thread(lambda: handler.stream().close(PeerUnavailable("I am no longer primary")))
    with talking(address) as peer, pytest.raises(PeerUnavailable, match="no longer primary"):
        list(peer.follow({}, START))
    thread.join()


def test_fetch_ends_at_its_end_only(address: str, handler: Handler) -> None:
    def send(number: int) -> None:
        stream = handler.stream(number)
        stream.send_records(records(5))
        stream.close("done")
    with talking(address) as peer:
        for number, upto in ((0, 5), (1, 6)):
            thread = in_thread(lambda number=number: send(number))
            if upto == 5:
                assert [r.txid for f in peer.fetch(START, upto) for r in f.body] == [1, 2, 3, 4, 5]
            else:
                with pytest.raises(PeerUnavailable, match="up to transaction 5, not 6"):
                    list(peer.fetch(START, upto))
            thread.join()


def test_a_slow_reader_is_bounded_and_cut(tmp_path: Path, handler: Handler) -> None:
    handler.most_bytes = 4 << 20
    with member(tmp_path / "store", handler, write_seconds=0.5) as address, talking(address) as peer:
        follow = peer.follow({}, START)
        thread = in_thread(lambda: handler.stream().heartbeat({}))
        next(follow)
        thread.join()
        stream, after, taken = handler.streams[0], START, 0
        with pytest.raises(PeerUnavailable, match="does not take"):
            while True:
                [record] = records(1, bytes(1 << 20), after)
                if stream.send_records([record]):
                    after, taken = record.position, taken + 1
                    assert stream._pending_bytes + stream._unsent < handler.most_bytes + (3 << 20)
                else:
                    stream.wait_room(5)
        assert taken < 40  # what the system's own buffers hold, and the stream's
        follow.close()


def test_a_reader_that_pauses_gets_everything(address: str, handler: Handler) -> None:
    made = records(60, bytes(200_000))
    handler.most_bytes = 1 << 20

    def send() -> None:
        stream = handler.stream()
        for record in made:
            while not stream.send_records([record]):
                stream.wait_room(5)
        stream.close("done")
    thread = in_thread(send)
    with talking(address) as peer:
        got = 0
        for frame in peer.follow({}, START):
            if not got:
                time.sleep(0.3)
            got += len(frame.body)
    thread.join()
    assert got == 60


def test_silence_ends_a_stream(address: str) -> None:
    with talking(address, silence=0.3) as peer:
        begun = time.monotonic()
        with pytest.raises(PeerUnavailable, match="too long"):
            next(peer.follow({}, START))
        assert 0.25 < time.monotonic() - begun < 3


@pytest.mark.parametrize("kept", [False, True])
def test_a_stream_that_is_cut_or_garbled_is_named(address: str, handler: Handler, kept: bool) -> None:
    marker = b"payload"

    def tamper(number: int, offset: int, data: bytes) -> bytes | None:
        if marker not in data:
            return data
        return data.replace(marker, b"pAyload") if kept else None
    thread = in_thread(lambda: handler.stream().send_records(records(3)))
    with Proxy(port(address), tamper) as proxy, talking(f"127.0.0.1:{proxy.port}") as peer, \
            pytest.raises(Garbled if kept else PeerUnavailable):
        next(peer.follow({}, START))
    thread.join()


def test_a_reader_that_goes_closes_the_stream(address: str, handler: Handler) -> None:
    with talking(address) as peer:
        thread = in_thread(lambda: handler.stream().heartbeat({}))
        follow = peer.follow({}, START)
        next(follow)
        thread.join()
    follow.close()
    with pytest.raises(PeerUnavailable, match="has ended"):
        for _ in range(100):
            handler.streams[0].heartbeat({})
            time.sleep(0.05)


def test_closing_the_client_ends_a_wait(address: str) -> None:
    with talking(address, silence=20) as peer:
        threading.Timer(0.2, peer.close).start()
        begun = time.monotonic()
        with pytest.raises(PeerUnavailable):
            next(peer.follow({}, START))
        assert time.monotonic() - begun < 5


def test_acknowledgements_to_a_member_that_has_gone(tmp_path: Path, handler: Handler) -> None:
    with member(tmp_path / "store", handler) as address:
        peer = PeerClient(address, TOKEN)
        acks = peer.acks({"name": "b"})
        acks.send({"txid": 1, "name": "z"})
        handler.wait(lambda: handler.acks)
        assert handler.acks == [{"name": "b", "version": 1, "txid": 1}]  # a name is said once, in the hello
    with pytest.raises(PeerUnavailable):
        acks.send({"txid": 2})
    acks.close()
    peer.close()


def test_a_silent_sender_of_acknowledgements_is_cut(tmp_path: Path, handler: Handler) -> None:
    with member(tmp_path / "store", handler, silence=0.2) as address, talking(address) as peer:
        acks = peer.acks({"name": "b"})
        time.sleep(0.6)
        with pytest.raises(PeerUnavailable):
            acks.send({"txid": 1})
        acks.close()


def test_streams_are_bounded_in_number(tmp_path: Path, handler: Handler) -> None:
    with member(tmp_path / "store", handler, streams=1) as address, talking(address) as peer:
        first = peer.acks({"name": "b"})
        with pytest.raises(SourceUnavailable, match="1 such streams"):
            peer.acks({"name": "c"})
        first.close()


def test_a_full_stream_takes_nothing() -> None:
    stream = LogStream(most_bytes=1000)
    assert stream.send_records(records(1, bytes(2000)))
    assert stream.full
    assert not stream.send_records(records(1))
    assert not stream.heartbeat({})
    assert not stream.wait_room(0.01)
    stream.close("enough")
    with pytest.raises(PeerUnavailable, match="enough"):
        stream.wait_room(1)


# --- what needs no token ---------------------------------------------------------------------------------------------


def test_health_metrics_and_page(address: str, handler: Handler) -> None:
    assert get(address, "/primary") == (200, b'{"kind": "primary", "name": "a", "role": "primary"}')
    assert get(address, "/read-write")[0] == get(address, "/replica?lag=6")[0] == 503
    assert get(address, "/health")[0] == get(address, "/replica?lag=5")[0] == 200
    assert get(address, "/ha") == (200, "<p>ménage".encode())
    [entry] = discovery.find(REAL.files, "127.0.0.1", port(address))
    status, text = get(address, "/v1/metrics", f"Authorization: Bearer {entry.token}\r\n")
    assert (status, b"\nholdfast_member_epoch 3\n" in text) == (200, True)
    with connect("127.0.0.1", port(address)) as source:
        assert source.info().member == MemberInfo(name="a", role="primary", healthy=True)


def test_what_is_not_a_member_is_refused(tmp_path: Path) -> None:
    with new_store(tmp_path / "store") as store, talking(f"127.0.0.1:{port_of(store)}") as peer, \
            pytest.raises(SourceRefused):
        peer.status()
