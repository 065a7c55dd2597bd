"""Backup addresses: what is taken, what is refused, and that what is printed reads back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backup.uri import Address, BackupUri, parse
from holdfast.engine.errors import InvalidInput


@pytest.mark.parametrize(("text", "addresses"), [
    ("single://localhost", [("localhost", 6362)]),
    ("single://10.0.0.1:7000", [("10.0.0.1", 7000)]),
    ("single://[::1]", [("::1", 6362)]),
    ("single://[fe80::1%eth0]:7000", [("fe80::1%eth0", 7000)]),
    ("single://db_1.example/", [("db_1.example", 6362)]),
    ("ha://a,b:7000,[::1]:7001", [("a", 6362), ("b", 7000), ("::1", 7001)]),
])
def test_reads(text: str, addresses: list[tuple[str, int]]) -> None:
    uri = parse(text)
    assert uri.mode == text.split(":")[0]
    assert list(uri.addresses) == addresses


@pytest.mark.parametrize(("text", "says"), [
    ("localhost:6362", "not a backup address"), ("", "not a backup address"),
    ("single:/localhost", "not a backup address"),
    ("http://localhost", "neither single nor ha"), ("Single://a", "neither single nor ha"),
    ("single://", "not a host name"), ("single://a b", "not a host name"), ("single://a/b", "not a host name"),
    ("single://user@a", "not a host name"), ("ha://a,,b", "not a host name"), ("ha://a,", "not a host name"),
    ("single://a,b", "takes one"), ("single://a:", "not a port"), ("single://a:0", "not a port"),
    ("single://a:x", "not a port"),
    ("single://a:65536", "not a port"), ("single://a:+1", "not a port"), ("single://a:٣", "not a port"),
    ("single://::1", "more than one colon"), ("single://[::1", "not an IPv6"), ("single://[a]:1", "not an IPv6"),
    ("single://[::1]7000", "not an IPv6"),
])
def test_refuses(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        parse(text)
    assert caught.value.hint


hosts = st.one_of(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True), st.ip_addresses(v=6).map(str))


@given(st.lists(st.builds(Address, hosts, st.integers(1, 65535)), min_size=1, max_size=4))
def test_what_is_printed_reads_back(addresses: list[Address]) -> None:
    uri = BackupUri("ha" if len(addresses) > 1 else "single", tuple(addresses))
    assert parse(str(uri)) == uri


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"single://{text}", f"ha://a,{text}"):
        try:
            uri = parse(candidate)
        except InvalidInput:
            continue
        assert parse(str(uri)) == uri
