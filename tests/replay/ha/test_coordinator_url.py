"""Addresses of coordinators, and what is refused before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from holdfast.engine.errors import HoldfastError, InvalidInput, SettingError
from holdfast.replay.ha.coordinators.etcd import EtcdCoordinator
from holdfast.replay.ha.coordinators.file import FileCoordinator
from holdfast.replay.ha.coordinators.url import CoordinatorAddress, open_coordinator, parse


@pytest.mark.parametrize(("text", "endpoints"), [
    ("etcd://a", (("a", 2379),)), ("etcd://a:1/", (("a", 1),)), ("etcds://a,b:65535", (("a", 2379), ("b", 65535))),
    ("etcd://[::1],[fe80::1]:7", (("::1", 2379), ("fe80::1", 7))), ("etcd://10.0.0.1:2379", (("10.0.0.1", 2379),)),
])
def test_addresses_of_etcd(text: str, endpoints: Any) -> None:
    assert parse(text) == CoordinatorAddress("etcds" if text.startswith("etcds") else "etcd", endpoints)


@pytest.mark.parametrize(("text", "directory"), [("file:d", "d"), ("file:/a/b", "/a/b"), ("file:///a b", "/a b"),
                                                 ("file:../x", "../x")])
def test_addresses_of_directories(text: str, directory: str) -> None:
    assert parse(text).directory == Path(directory)


@pytest.mark.parametrize("text", ["", "etcd", "etcd:", "etcd:a", "etcd://", "etcd://a,,b", "etcd://a:0", "etcd://a:65536",
                                  "etcd://a:b", "etcd://::1", "etcd://[::1", "etcd://[a]", "etcd://a:1:2", "etcd://a/x",
                                  "etcd://a b", "etcd://-a", "etcd://a\n", "http://a", "file:", "ETCD://a", None, 7])
def test_what_is_not_an_address(text: Any) -> None:
    with pytest.raises(InvalidInput, match=r"address|names no directory") as raised:
        parse(text)
    assert "etcd" in raised.value.hint or "host:port" in raised.value.hint


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidInput, match="must not hold a user and a password") as raised:
        parse("etcd://holdfast:secret@a:2379")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a b", "-a", "a" * 64, "ä", "a\n", "a\0", None, 7])
def test_what_is_not_the_name_of_a_cluster(name: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a cluster's name"):
        open_coordinator(f"file:{tmp_path}", name)
    assert not list(tmp_path.iterdir())


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert, key, closed = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "closed.pem"
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    closed.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("etcd://a", {"ca": cert}, "are for TLS"),
        ("etcd://localhost", {"key": key}, "are for TLS"),
        (f"file:{tmp_path}", {"cert": cert}, "are for TLS"),
        (f"file:{tmp_path}", {"user": "u", "password": "p"}, "takes no user"),
        ("etcds://a", {"user": "u"}, "one is missing"),
        ("etcds://a", {"password": "p"}, "one is missing"),
        ("etcd://localhost,far", {"user": "u", "password": "p"}, "sent to far in the clear"),
        ("etcds://a", {"ca": tmp_path / "none.pem"}, "none.pem cannot be read"),
        ("etcds://a", {"ca": key}, "key.pem cannot be read"),
        ("etcds://a", {"key": key}, "key was given without cert"),
        ("etcds://a", {"cert": cert, "key": closed}, "cannot be used|pass phrase"),
        ("etcds://a", {"cert": cert}, "cannot be used"),
    ]
    for address, settings, why in wrong:
        with pytest.raises(SettingError, match=why):
            open_coordinator(address, "social", **settings)


def test_what_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_coordinator("file:d", "social") as one:
        assert isinstance(one, FileCoordinator)
    assert (tmp_path / "d" / "social").is_dir()
    for address, shown in (("etcds://a:1,[::1]", "a:1, [::1]:2379"), ("etcd://localhost", "localhost:2379")):
        with open_coordinator(address, "social", user="u", password="secret") as etcd:
            assert isinstance(etcd, EtcdCoordinator)
            assert repr(etcd) == f"<EtcdCoordinator at {shown}>"
    (tmp_path / "taken").write_text("a file")
    with pytest.raises((HoldfastError, OSError)):
        open_coordinator("file:taken", "social")
