"""How clients find a service and its token: other environments, other containers, sweepers, and who else listens."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from source_rig import ask, client, new_store, port_of, put, token_of

from holdfast.engine.env import REAL, Env, Files
from holdfast.engine.errors import (
    HoldfastError,
    LimitReached,
    NotAuthorized,
    PluginError,
    SettingError,
    SourceUnavailable,
)
from holdfast.engine.source.http import discovery
from holdfast.engine.source.http.client import connect
from holdfast.engine.source.http.discovery import Entry, Publication
from holdfast.engine.source.http.service import BackupService

TOKEN = "0123456789abcdef-token"
ENTRY = Entry(host="127.0.0.1", port=7777, scheme="http", token="x" * 20, key="ab" * 32, instance="cd" * 16,
              store_id="", branch="", path="/somewhere", pid=1)


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, and one shared place below which there is another."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "tmp").mkdir(mode=0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(discovery, "SHARED", (str(tmp_path / "tmp"),))
    monkeypatch.delenv("HOLDFAST_TOKEN", raising=False)
    return tmp_path / "run" / "holdfast"


def shared(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"holdfast-{os.getuid()}"


@contextmanager
def published(entry: Entry = ENTRY) -> Iterator[Publication]:
    publication = Publication(entry, REAL)
    publication.start()
    yield publication
    publication.withdraw()


@contextmanager
def thief(host: str, port: int) -> Iterator[list[bytes]]:
    """Somebody who listens, and keeps what he is told."""
    heard: list[bytes] = []

    def work() -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as sock, suppress(OSError):
                    sock.settimeout(5)
                    heard.append(sock.recv(65536))
                    sock.sendall(b"HTTP/1.1 200 OK\r\nHoldfast-Instance: abcd\r\nContent-Length: 2\r\n\r\n{}")
                    heard.append(sock.recv(65536))

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


# --- where entries are -----------------------------------------------------------------------------------------------


def test_the_token_is_where_only_this_user_finds_it(tmp_path: Path, private: Path) -> None:
    with new_store(tmp_path / "store") as store:
        for directory in (private, shared(tmp_path)):
            path = directory / f"{port_of(store)}-{store.instance}.json"
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            entry = json.loads(path.read_text())
            assert entry["store_id"] == store.history.store_id.hex()
            assert (entry["path"], entry["pid"], entry["scheme"]) == (str(store.directory), os.getpid(), "http")
        for host in ("127.0.0.1", "localhost"):
            with connect(host, port_of(store)) as source:
                assert source.info().instance == store.instance
    assert list(private.iterdir()) == list(shared(tmp_path).iterdir()) == []
    with new_store(tmp_path / "store") as store:
        assert token_of(store) != entry["token"]


def test_a_client_of_another_environment_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store was served from a login, and cron, which has no XDG_RUNTIME_DIR, was told that the token is missing."""
    with new_store(tmp_path / "store") as store:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        with client(store) as source:
            source.info()
    with new_store(tmp_path / "store") as store:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        with client(store) as source:
            source.info()


def test_a_directory_that_others_may_enter_is_passed_over(tmp_path: Path, private: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    private.mkdir(mode=0o755)
    private.chmod(0o755)
    with new_store(tmp_path / "store") as store:
        assert not list(private.iterdir())
        with client(store) as source:
            source.info()
        (entry,) = shared(tmp_path).iterdir()
        entry.rename(private / entry.name)
        assert discovery.find(REAL.files, "127.0.0.1", port_of(store)) == []
    shared(tmp_path).rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shared(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingError, match="not a private directory"):
        new_store(tmp_path / "store")
    monkeypatch.setattr("holdfast.engine.source.http.service.DEFAULT_PORTS", (0,))
    with new_store(tmp_path / "store", service=BackupService()) as store:  # nobody asked for it: the store opens
        assert store.backup_uri is None


def test_a_token_of_its_own_needs_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that can write to its volume only, no store opened, and no client got as far as asking."""
    monkeypatch.setattr(discovery, "SHARED", ("/nowhere",))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    monkeypatch.setenv("TMPDIR", "relative")
    with pytest.raises(SettingError, match="token cannot be published"):
        new_store(tmp_path / "store")
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=":0", token=TOKEN)) as store:
        with client(store, token=TOKEN) as source:
            source.info()
        with client(store) as source, pytest.raises(NotAuthorized, match="the token is neither given"):
            source.info()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"port": 7777}', "\x00", "[" * 50_000])
def test_garbage_in_the_runtime_directory_is_passed_over(private: Path, text: str) -> None:
    private.mkdir(mode=0o700)
    (private / f"7777-{ENTRY.instance}.json").write_text(text)
    (private / "7777.json").write_text(text)
    assert discovery.find(REAL.files, "127.0.0.1", 7777) == []


# --- which are alive -------------------------------------------------------------------------------------------------


def test_an_entry_lives_as_long_as_it_is_locked(private: Path) -> None:
    """The process id was asked for, which is another in another container: a live service's token was deleted."""
    with published(replace(ENTRY, pid=2**22 + 5)):
        assert [e.instance for e in discovery.find(REAL.files, "127.0.0.1", 7777)] == [ENTRY.instance]
        path = private / f"7777-{ENTRY.instance}.json"
        data = path.read_bytes()
    path.write_bytes(data)  # as after a kill: nobody holds it
    assert discovery.find(REAL.files, "127.0.0.1", 7777) == []
    assert path.exists()  # a client deletes nothing
    with published(replace(ENTRY, instance="ef" * 16)):
        assert not path.exists()


def test_where_no_lock_can_be_had_an_entry_counts_as_alive(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with published():
        assert len(discovery.find(REAL.files, "127.0.0.1", 7777)) == 1
        with published(replace(ENTRY, instance="ef" * 16)):
            assert len(discovery.find(REAL.files, "127.0.0.1", 7777)) == 2


def test_what_was_swept_away_is_put_back(tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with published() as publication:
        path = private / f"7777-{ENTRY.instance}.json"
        os.utime(path, (0, 0))
        publication.refresh()
        assert path.stat().st_mtime > 0  # nor is it old
        path.unlink()
        private.rmdir()
        publication.refresh()
        assert len(discovery.find(REAL.files, "127.0.0.1", 7777)) == 1
        assert path.exists()
    monkeypatch.setattr(discovery, "REFRESH_S", 0.01)
    with new_store(tmp_path / "store") as store:
        (private / f"{port_of(store)}-{store.instance}.json").unlink()
        while not (private / f"{port_of(store)}-{store.instance}.json").exists():
            store.env.clock.sleep(0.01)
        with client(store) as source:
            source.info()


def test_a_forked_child_and_another_opening_leave_it_alone(private: Path) -> None:
    with published(replace(ENTRY, instance="ef" * 16)) as child, published():
        child.abandon()
        child.withdraw()
        assert len(list(private.iterdir())) == 2
    assert [p.name for p in private.iterdir()] == [f"7777-{'ef' * 16}.json"]


def test_several_services_have_one_port(tmp_path: Path) -> None:
    """At two addresses, each had the other's token file overwritten."""
    with ExitStack() as stack:
        first = stack.enter_context(new_store(tmp_path / "a"))
        port = port_of(first)
        second = stack.enter_context(new_store(
            tmp_path / "b", service=BackupService(online_backup_server=f"127.0.0.2:{port}")))
        for host, store in (("127.0.0.1", first), ("127.0.0.2", second), ("localhost", first)):
            with connect(host, port) as source:
                assert source.info().instance == store.instance
        first.close()
        with connect("127.0.0.2", port) as source:
            assert source.info().instance == second.instance
        with connect("127.0.0.1", port) as source, pytest.raises(SourceUnavailable):
            source.info()


def test_one_listens_at_the_same_address_in_another_container(tmp_path: Path) -> None:
    """Both share a directory for temporary files, not the network: the proof tells which entry is the listener's."""
    with (new_store(tmp_path / "store") as store, published(replace(ENTRY, port=port_of(store))),
          client(store) as source):
        assert source.info().instance == store.instance


def test_all_addresses_are_asked_for_at_loopback(tmp_path: Path) -> None:
    service = BackupService(online_backup_server="0.0.0.0:0", insecure=True)
    with new_store(tmp_path / "store", service=service) as store:
        for host in ("127.0.0.1", "localhost", "127.0.0.3"):
            with connect(host, port_of(store)) as source:
                assert source.info().instance == store.instance
        assert discovery.find(REAL.files, "192.0.2.1", port_of(store)) == []


# --- who listens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_a_token_is_not_sent_to_another_listener_on_the_port(tmp_path: Path, host: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for several addresses, and the first one was anybody's: who listened there was sent the token of
    the service at the other, and with it the whole store."""
    looked_up = socket.getaddrinfo

    def anybody_first(name: str, *rest: Any, **how: Any) -> Any:
        return [*looked_up(host, *rest, **how), *looked_up("127.0.0.1", *rest, **how)]

    with new_store(tmp_path / "store") as store, ExitStack() as stack:
        try:
            heard = stack.enter_context(thief(host, port_of(store)))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        with connect(host, port_of(store)) as source, pytest.raises(HoldfastError):
            source.info()
        assert heard
        assert not any(token_of(store).encode() in text for text in heard)
        heard.clear()
        monkeypatch.setattr(socket, "getaddrinfo", anybody_first)
        with connect("localhost", port_of(store)) as source:
            assert source.info().instance == store.instance
        assert not any(heard)  # a connection to which nothing is sent tells nobody anything


def test_a_token_is_not_sent_to_who_took_the_place_of_the_service() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with (published(replace(ENTRY, port=port)), thief("127.0.0.1", port) as heard,
          connect("127.0.0.1", port) as source, pytest.raises(NotAuthorized, match="has not proved")):
        source.info()
    assert heard[0].startswith(b"GET /v1/health ")
    assert not any(b"Authorization" in text for text in heard)


def test_a_question_passed_on_gets_an_answer_for_another_address(tmp_path: Path) -> None:
    """Who listens elsewhere can ask the service himself; what he gets does not fit his address."""
    with new_store(tmp_path / "store") as store:
        [entry] = discovery.find(REAL.files, "127.0.0.1", port_of(store))
        nonce = "12" * 16
        answer = ask(port_of(store), f"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                     f"Holdfast-Challenge: {nonce}\r\n\r\n".encode()).decode()
        assert entry.proof(nonce, ("127.0.0.1", port_of(store))) in answer
        assert entry.proof(nonce, ("127.0.0.2", port_of(store))) not in answer
        assert entry.proof("34" * 16, ("127.0.0.1", port_of(store))) not in answer
        assert entry.token not in answer


def test_tokens_are_looked_for_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given, what a service here has published for this very address, the environment."""
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=":0", token=TOKEN)) as store:
        monkeypatch.setenv("HOLDFAST_TOKEN", "of-another-host-altogether")
        with client(store) as source:
            source.info()
        with client(store, token="given") as source, pytest.raises(NotAuthorized, match="the token was given"):
            source.info()
        for path in (*(tmp_path / "run" / "holdfast").iterdir(), *shared(tmp_path).iterdir()):
            path.unlink()
        with client(store) as source, pytest.raises(NotAuthorized, match="comes from the environment's HOLDFAST_TOKEN"):
            source.info()
        monkeypatch.setenv("HOLDFAST_TOKEN", TOKEN)
        with client(store) as source:
            source.info()
    with pytest.raises(SettingError):
        connect("127.0.0.1", 1, token="line\r\nInjected: yes")


def test_it_can_be_found_before_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service listened before it had published its token: who came then was told that the token is missing."""
    seen: list[int] = []
    listen = socket.socket.listen

    def look(sock: socket.socket, *backlog: int) -> None:
        seen.append(len(discovery.find(REAL.files, *sock.getsockname())))
        listen(sock, *backlog)

    monkeypatch.setattr(socket.socket, "listen", look)
    with new_store(tmp_path / "store"):
        assert seen[:1] == [1]


def test_a_client_sees_a_service_that_comes_between_looking_and_connecting(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(tmp_path / "store") as store:
        looked: list[int] = []
        find = discovery.find

        def late(files: object, host: str, port: int) -> list[Entry]:
            looked.append(port)
            return find(REAL.files, host, port) if len(looked) > 2 else []

        monkeypatch.setattr(discovery, "find", late)
        with client(store) as source:
            assert source.info().instance == store.instance


def test_a_client_finds_the_token_of_a_service_that_was_restarted(tmp_path: Path) -> None:
    with new_store(tmp_path / "store") as store:
        put(store, 1)
        port = port_of(store)
        source = client(store)
        source.info()
    with new_store(tmp_path / "store", service=BackupService(online_backup_server=f":{port}")) as store:
        assert source.info().instance == store.instance
    source.close()


def test_a_client_that_can_open_no_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took a token that it could not read for one that is not there, and no socket for no answer."""
    def short(*_: object, **how: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with new_store(tmp_path / "store") as store:
        with client(store) as source:
            source.info()
            with monkeypatch.context() as patch:
                patch.setattr(Files, "read", short)
                with client(store, tls=False) as another, pytest.raises(LimitReached, match="open any more files"):
                    another.info()
                with pytest.raises(LimitReached):
                    client(store)
                source.info()  # on its connection
            source.close()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", short)
            with pytest.raises(LimitReached), client(store) as source:
                source.info()


def test_what_is_secret_is_not_shown() -> None:
    with connect("127.0.0.1", 1, token=TOKEN) as source:
        for thing in (ENTRY, source, source._credential):
            assert not {TOKEN, ENTRY.token, ENTRY.key} & set(repr(thing).split("'"))


def test_a_plugin_error_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no temporary directory could be had, Python's own error came out of opening a store."""
    monkeypatch.setattr(discovery, "SHARED", ())
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with suppress(SettingError):
        try:
            new_store(tmp_path / "store").close()
        except PluginError as error:
            raise AssertionError(error) from error
    assert discovery.find(Env().files, "127.0.0.1", 1) == []
