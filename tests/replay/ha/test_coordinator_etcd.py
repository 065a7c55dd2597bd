"""etcd as the coordinator: the contract on one member and on three, members that die, stop and lose their data, TLS,
authentication, lost answers."""

from __future__ import annotations

import base64
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from etcd_rig import Etcd, Proxy

from holdfast.replay.ha.coordinator import ABSENT, Coordinator
from holdfast.replay.ha.coordinators.etcd import EtcdCoordinator
from holdfast.replay.ha.coordinators.url import open_coordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from holdfast.replay.testing.coordinator import CoordinatorContract

pytestmark = pytest.mark.fault("etcd")

_clusters = count()


@pytest.fixture(scope="module")
def one_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd"), 3) as etcd:
        yield etcd


class _OnEtcd(CoordinatorContract):
    """Each coordinator reaches etcd through proxies of its own."""

    def begin(self, etcd: Etcd) -> Iterator[None]:
        self.etcd, self.cluster = etcd, f"contract-{next(_clusters)}"
        self.proxies: list[tuple[Coordinator, list[Proxy]]] = []
        yield
        for _, proxies in self.proxies:
            for proxy in proxies:
                proxy.close()

    def make(self) -> Coordinator:
        proxies = [Proxy(port) for port in self.etcd.ports]
        coordinator = EtcdCoordinator([("127.0.0.1", proxy.port) for proxy in proxies], self.cluster)
        self.proxies.append((coordinator, proxies))
        return coordinator

    def lose_answers(self, coordinator: Coordinator) -> None:
        for made, proxies in self.proxies:
            for proxy in proxies if made is coordinator else ():
                proxy.lose_answers = True


class TestEtcd(_OnEtcd):
    @pytest.fixture(autouse=True)
    def an_etcd(self, one_member: Etcd) -> Iterator[None]:
        yield from self.begin(one_member)


class TestEtcdOfThree(_OnEtcd):
    @pytest.fixture(autouse=True)
    def an_etcd(self, three_members: Etcd) -> Iterator[None]:
        yield from self.begin(three_members)


def test_clusters_do_not_see_each_other(one_member: Etcd) -> None:
    with EtcdCoordinator(one_member.endpoints, "a") as a, EtcdCoordinator(one_member.endpoints, "a2") as other:
        a.swap(ABSENT, b"of a", 5)
        assert other.read(5) == (None, ABSENT)


def test_a_connection_that_was_closed_meanwhile_loses_no_outcome(one_member: Etcd) -> None:
    """What etcd closes while it is idle, as in a restart, is not used for the next swap, whose outcome would be
    unknown."""
    proxy = Proxy(one_member.ports[0])
    with EtcdCoordinator([("127.0.0.1", proxy.port)], "idle") as one:
        version = ABSENT
        for number in range(5):
            version = one.swap(version, b"%d" % number, 5)
            proxy.cut()
            time.sleep(0.02)
    proxy.close()


def test_etcd_dies_and_comes_back(tmp_path: Path) -> None:
    """A refused connection is an outage that changes nothing, at once. What was written is there afterwards."""
    with Etcd(tmp_path) as etcd, EtcdCoordinator(etcd.endpoints, "social") as one:
        first = one.swap(ABSENT, b"first", 5)
        etcd.kill(0)
        begun = time.monotonic()
        for call in (lambda: one.read(5), lambda: one.swap(first, b"second", 5), lambda: one.wait(first, 5)):
            with pytest.raises(CoordinatorUnavailable, match="refused"):
                call()
        assert time.monotonic() - begun < 1
        etcd.start(0)
        etcd.wait_healthy(0)
        assert one.read(5) == (b"first", first)
        second = one.swap(first, b"second", 5)
        assert one.wait(first, 5) == (b"second", second)


def test_etcd_loses_its_data(tmp_path: Path) -> None:
    """An etcd that begins anew has no document. A version of before is not current again, although etcd counts the same
    revisions anew."""
    with Etcd(tmp_path) as etcd, EtcdCoordinator(etcd.endpoints, "social") as one:
        old = one.swap(ABSENT, b"of the old etcd", 5)
        etcd.kill(0)
        shutil.rmtree(etcd.data(0))
        etcd.start(0)
        etcd.wait_healthy(0)
        assert one.wait(old, 5) == one.read(5) == (None, ABSENT)
        with pytest.raises(SwapConflict):
            one.swap(old, b"of before", 5)
        new = one.swap(ABSENT, b"of the new etcd", 5)
        assert new.number == old.number
        with pytest.raises(SwapConflict):
            one.swap(old, b"of before", 5)
        assert one.read(5) == (b"of the new etcd", new)


def test_one_member_of_three_may_die_two_may_not(tmp_path: Path) -> None:
    with Etcd(tmp_path, 3) as etcd, EtcdCoordinator(etcd.endpoints, "social") as one:
        version = one.swap(ABSENT, b"0", 5)
        etcd.kill(0)
        end = time.monotonic() + 20
        while True:  # until the others have elected a leader
            try:
                data, version = one.read(2)
                version = one.swap(version, b"1", 2)
                break
            except (CoordinatorUnavailable, SwapUnknown):
                assert time.monotonic() < end
        etcd.kill(1)
        for call in (lambda: one.read(0.5), lambda: one.wait(version, 0.5), lambda: one.swap(version, b"2", 0.5)):
            begun = time.monotonic()
            with pytest.raises((CoordinatorUnavailable, SwapUnknown)):
                call()
            assert time.monotonic() - begun < 1.5
        etcd.start(0)
        etcd.wait_healthy(0)
        data, version = one.read(5)
        assert data in (b"1", b"2")  # an outcome that was unknown
        one.swap(version, b"3", 5)


def test_a_member_that_is_stopped_is_passed_over(three_members: Etcd) -> None:
    """It takes connections and answers nothing. A read finds another member within its time. A swap that was sent to it
    has an unknown outcome, and the next one asks another member."""
    etcd = three_members
    followers = [m for m in range(3) if (s := etcd.post("/v3/maintenance/status", {}, m))["leader"]
                 != s["header"]["member_id"]]
    stopped = followers[0]
    order = [etcd.endpoints[m] for m in (stopped, *(m for m in range(3) if m != stopped))]
    with EtcdCoordinator(order, "stopped") as one, EtcdCoordinator(order, "stopped") as other:
        first = one.swap(ABSENT, b"first", 5)
        assert other.read(5) == (b"first", first)
        etcd.send(stopped, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            assert one.read(1.5) == (b"first", first)
            assert time.monotonic() - begun < 1
            begun = time.monotonic()
            with pytest.raises(SwapUnknown):
                other.swap(first, b"second", 0.5)
            assert 0.5 <= time.monotonic() - begun < 1
            second = one.swap(first, b"of another", 10)
            with pytest.raises(SwapConflict):
                other.swap(first, b"second", 10)
        finally:
            etcd.send(stopped, signal.SIGCONT)
        etcd.wait_healthy(stopped)
        assert other.read(5) == (b"of another", second)  # the request that was under way came too late


def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ca, cert, key, strange = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem", "strange.pem"))
    authority.cert_pem.write_to_path(ca)
    stranger.cert_pem.write_to_path(strange)
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    with Etcd(tmp_path, tls=(ca, cert, key)) as etcd:
        address = f"etcds://127.0.0.1:{etcd.ports[0]}"
        with open_coordinator(address, "social", ca=ca, cert=cert, key=key) as one:
            first = one.swap(ABSENT, bytes(300_000), 5)
            assert one.read(5) == (bytes(300_000), first)
        with open_coordinator(address, "social", ca=strange, cert=cert, key=key) as one:
            with pytest.raises(CoordinatorUnavailable, match="certificate verify failed"):
                one.read(5)
            with pytest.raises(CoordinatorUnavailable, match="certificate verify failed"):
                one.swap(first, b"second", 5)
        with open_coordinator(address, "social", ca=ca) as one, pytest.raises(CoordinatorUnavailable):
            one.read(5)  # without a certificate of its own
        with open_coordinator(address.replace("etcds", "etcd"), "social") as one, pytest.raises(CoordinatorUnavailable):
            one.read(5)


def _enable_authentication(etcd: Etcd) -> None:
    for user, password in (("root", "secret of root"), ("holdfast", "secret")):
        etcd.post("/v3/auth/user/add", {"name": user, "password": password})
    for role in ("root", "members"):
        etcd.post("/v3/auth/role/add", {"name": role})
    begin, end = (base64.b64encode(key).decode() for key in (b"holdfast/", b"holdfast0"))
    etcd.post("/v3/auth/role/grant", {"name": "members", "perm": {"permType": "READWRITE", "key": begin,
                                                                   "range_end": end}})
    etcd.post("/v3/auth/user/grant", {"user": "root", "role": "root"})
    etcd.post("/v3/auth/user/grant", {"user": "holdfast", "role": "members"})
    etcd.post("/v3/auth/enable", {})


def _signed(directory: Path) -> str:
    """etcd's option for tokens that it signs with a key, and need not remember."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "private.pem").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "public.pem").write_bytes(public)
    return f"jwt,pub-key={directory}/public.pem,priv-key={directory}/private.pem,sign-method=ES256,ttl=10m"


@pytest.mark.parametrize("kind", ["simple", "signed"])
def test_user_and_password(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A token is fetched when it is needed, and anew when etcd does not know it any more (simple ones, after a restart)
    or its rules have changed (signed ones)."""
    with Etcd(tmp_path, token="simple" if kind == "simple" else _signed(tmp_path)) as etcd:
        address = f"etcd://localhost:{etcd.ports[0]}"
        with open_coordinator(address, "social", user="holdfast", password="secret") as one:
            with pytest.raises(CoordinatorUnavailable, match="authentication is not enabled"):
                one.read(5)
            _enable_authentication(etcd)
            first = one.swap(ABSENT, b"first", 5)
            root = etcd.post("/v3/auth/authenticate", {"name": "root", "password": "secret of root"})["token"]
            etcd.post("/v3/auth/role/add", {"name": "another"}, token=root)  # its rules have another revision now
            second = one.swap(first, b"second", 5)
            etcd.kill(0)  # it forgets tokens
            etcd.start(0)
            time.sleep(0.2)
            end = time.monotonic() + 20
            while True:
                try:
                    assert one.read(2) == (b"second", second)
                    break
                except CoordinatorUnavailable:
                    assert time.monotonic() < end
            one.swap(second, b"third", 5)
            assert "secret" not in repr(one)
        for user, password, why in ((None, None, "user name is empty"), ("holdfast", "wrong word", "invalid user"),
                                    ("nobody", "wrong word", "invalid user")):
            with open_coordinator(address, "social", user=user, password=password) as one:
                for call in (one.read, lambda t: one.swap(ABSENT, b"", t)):
                    with pytest.raises(CoordinatorUnavailable, match=why) as raised:
                        call(5)
                    assert "wrong word" not in str(raised.value)
        with open_coordinator(address, "social", user="root", password="secret of root") as one:
            assert one.read(5)[0] == b"third"
    assert "secret" not in caplog.text
