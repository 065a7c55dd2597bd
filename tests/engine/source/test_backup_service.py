"""The service as a plugin: its settings, where it listens, who finds its token, TLS, and forks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from source_rig import client, new_store, port_of, put

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import NotAuthorized, SettingError, SourceUnavailable
from holdfast.engine.source.http import discovery
from holdfast.engine.source.http.client import connect
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.pacing import Pacing
from holdfast.engine.store.store import Store

TOKEN = "0123456789abcdef-token"


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, and no other place for tokens."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(discovery, "SHARED", ())
    monkeypatch.delenv("HOLDFAST_TOKEN", raising=False)
    return tmp_path / "holdfast"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "localhost", "9999", ":", ":x", ":65536", ":-1", "a b:1", "::1:80", "[::1]",
                                  "[x]:1", "http://localhost:80", "localhost:80/path", "host:1:2", ":123456"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SettingError, match="online_backup_server"):
        BackupService(online_backup_server=text)


def test_other_settings_that_make_no_sense(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    senseless: list[dict[str, Any]] = [
        {"token": "short"}, {"token": "sixteen letters with spaces"}, {"token": "\u00e4" * 20}, {"tls_key": "x"},
        {"tls_certificate": tmp_path / "missing"}, {"tls_certificate": bad},
        {"online_backup_server": "no-such-host.invalid:1"}]
    for settings in senseless:
        with pytest.raises(SettingError):
            BackupService(**settings)


def test_off_loopback_needs_tls_and_a_credential(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("db.example").private_key_and_cert_chain_pem.write_to_path(str(pem))
    incomplete: list[dict[str, Any]] = [{}, {"token": TOKEN}, {"tls_certificate": pem}]
    for settings in incomplete:
        with pytest.raises(SettingError, match="TLS and a credential"):
            BackupService(online_backup_server="0.0.0.0:0", **settings)
    BackupService(online_backup_server="0.0.0.0:0", tls_certificate=pem, token=TOKEN)
    with new_store(tmp_path / "store", service=BackupService(online_backup_server="0.0.0.0:0", insecure=True)) as store:
        assert store.backup_uri is not None
        assert store.backup_uri.startswith(f"single://{socket.gethostname()}:")
        with client(store) as source:  # a token is needed even so
            source.info()
        with client(store, token="another") as source, pytest.raises(NotAuthorized):
            source.info()


def test_a_service_that_is_off(tmp_path: Path, private: Path) -> None:
    service = BackupService(online_backup_enabled=False, online_backup_server="0.0.0.0:1")
    with new_store(tmp_path / "store", service=service) as store:
        assert store.backup_uri is None
    assert not private.exists()


# --- ports -----------------------------------------------------------------------------------------------------------


def test_default_ports_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        base = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        free = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = free.getsockname()[1]
        free.close()
        monkeypatch.setattr("holdfast.engine.source.http.service.DEFAULT_PORTS", (base, port))
        first = stack.enter_context(new_store(tmp_path / "a", service=BackupService()))
        assert first.backup_uri == f"single://127.0.0.1:{port}"
        second = stack.enter_context(new_store(tmp_path / "b", service=BackupService()))
        assert second.backup_uri is None
        assert "all taken" in caplog.text
        put(second, 1)
        with pytest.raises(SettingError, match=f"127.0.0.1:{port}"):
            new_store(tmp_path / "c", service=BackupService(online_backup_server=f":{port}"))
        stack.enter_context(new_store(tmp_path / "c"))  # it was left closed and unlocked


def test_the_default_ports_are_the_documented_ones() -> None:
    from holdfast.engine.source.http import service

    assert (service.DEFAULT_HOST, list(service.DEFAULT_PORTS)) == ("127.0.0.1", list(range(6362, 6373)))


def test_one_service_serves_one_store(tmp_path: Path) -> None:
    service = BackupService(online_backup_server=":0")
    with new_store(tmp_path / "a", service=service) as store:
        with pytest.raises(SettingError, match="serves a store already"):
            new_store(tmp_path / "b", service=service)
        with client(store) as source:
            source.info()
    with new_store(tmp_path / "b", service=service):
        pass


def test_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with new_store(tmp_path / "store", service=BackupService(online_backup_server="[::1]:0")) as store:
        assert store.backup_uri is not None
        assert store.backup_uri.startswith("single://[::1]:")
        with connect("::1", port_of(store)) as source:
            assert source.info().instance == store.instance


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [True, False])
def test_tls(tmp_path: Path, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While transactions commit, too, when small pieces are sent."""
    monkeypatch.setattr(Pacing, "_is_busy", lambda self, now: busy)
    ca, other = trustme.CA(), trustme.CA()
    for authority, name in ((ca, "ca.pem"), (other, "other.pem")):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    pem = tmp_path / "server.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    service = BackupService(online_backup_server=":0", tls_certificate=pem, token=TOKEN)
    with new_store(tmp_path / "store", service=service) as store:
        put(store, 3, b"x" * 300_000)
        store.checkpoint()
        put(store, 3)
        with client(store, ca=tmp_path / "ca.pem") as source:  # token and scheme are found
            grant = source.lease("test", image=True)
            [file] = grant.files
            state = (store._opened.generation.state / "state").read_bytes()
            assert source.read_image(grant.id, file.name, 0, file.size) == state
            assert [r.txid for r in source.read_log(grant.id, grant.position, 6)] == [4, 5, 6]
        for options in ({"ca": tmp_path / "other.pem"}, {}):
            with client(store, **options) as source, pytest.raises(NotAuthorized, match="prove"):
                source.info()
        with connect("localhost", port_of(store), ca=tmp_path / "ca.pem") as source, \
                pytest.raises(NotAuthorized, match="localhost"):
            source.info()
        with client(store, tls=False) as source, pytest.raises(SourceUnavailable):
            source.info()
    with pytest.raises(SettingError, match=r"missing\.pem"):
        connect("127.0.0.1", 1, ca=tmp_path / "missing.pem")


def test_a_token_is_not_sent_in_the_clear_off_loopback() -> None:
    assert connect("192.0.2.1", 1, token=TOKEN)._tls is not None
    assert connect("db.example", 1, token=TOKEN)._tls is not None
    assert connect("db.example", 1, token=TOKEN, tls=False)._tls is None
    assert connect("127.0.0.1", 1, token=TOKEN)._tls is None


# --- forks -----------------------------------------------------------------------------------------------------------

FORKER = """
import os, sys
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.source.http.client import connect
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.store import Store

store = Store.open(sys.argv[1], MemoryEngine, plugins=[BackupService(online_backup_server=":0")])
port = int(store.backup_uri.rpartition(":")[2])
source = connect("127.0.0.1", port)
source.info()  # a connection is open
ready, told = os.pipe()
wait, go = os.pipe()
child = os.fork()
if not child:
    sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}")]
    listening = {line.split()[9] for line in open("/proc/net/tcp").readlines()[1:]
                 if int(line.split()[1].split(":")[1], 16) == port}
    kept = [s for s in sockets if s.startswith("socket:[") and s[8:-1] in listening]
    os.write(told, b"kept" if kept else b"none")
    os.read(wait, 1)
    os._exit(0)
print(os.read(ready, 4).decode())
source.info()  # the parent goes on
store.close()
Store.open(sys.argv[1], MemoryEngine, plugins=[BackupService(online_backup_server=f":{port}")]).close()
os.write(go, b"x")
os.waitpid(child, 0)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_forked_child_keeps_no_socket(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", FORKER, str(tmp_path / "store")], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert made.stdout.split() == ["none", "done"], made.stderr


def test_closing_withdraws_everything(tmp_path: Path, private: Path) -> None:
    store = Store.open(tmp_path / "store", MemoryEngine, plugins=[BackupService(online_backup_server=":0")])
    port = port_of(store)
    with client(store) as source:
        source.lease("test", image=True)
        store.close()
        assert store.backup_uri is None
        with pytest.raises(SourceUnavailable):
            source.info()
    assert os.listdir(private) == []
    socket.create_server(("127.0.0.1", port)).close()


def test_a_key_with_a_pass_phrase_is_refused(tmp_path: Path) -> None:
    """OpenSSL asked on the terminal for it, and a service that had none waited for ever."""
    cert = trustme.CA().issue_cert("db.example")
    key = serialization.load_pem_private_key(cert.private_key_pem.bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    with pytest.raises(SettingError, match="pass phrase"):
        BackupService(tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with pytest.raises(SettingError, match="cannot be used"):
        BackupService(tls_certificate="a\0b")
