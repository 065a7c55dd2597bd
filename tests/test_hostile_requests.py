"""Hostile requests by the thousand, over TLS and without, at a service whose store goes on.

Meanwhile a client with the token gets its answers, the store commits, and afterwards the process holds no more
descriptors and hardly more memory than before. Nothing that the service logs or answers is a traceback, or has a token.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import ssl
import threading
import time
from pathlib import Path

import hostile_requests
import pytest
import trustme
from source_rig import client, new_store, port_of, put

from holdfast.engine.source.service import BackupService
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.figures import count
from holdfast.engine.testing.profiles import SEED_VARIABLE, current_seed

TOKEN = "the-one-and-only-token-of-this-test"
REQUESTS = {"default": 300, "ci": 25_000, "nightly": 250_000}
BOUND_S = 10.0
"""A client with the token gets each answer within so many seconds."""
MEMORY = 64 << 20


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path, Path]:
    ca = trustme.CA()
    made = ca.issue_cert("127.0.0.1")
    chain, key, root = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    root.write_bytes(ca.cert_pem.bytes())
    return chain, key, root


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("over", ["plain", "tls"])
def test_a_service_lives_through_hostile_requests(over: str, tmp_path: Path, authority: tuple[Path, Path, Path],
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    """A service answers whoever has the token, and its store commits, whatever strangers send to it; none of it is a
    traceback, shows a token, or is kept."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    chain, key, root = authority
    secret = over == "tls"
    service = BackupService(online_backup_server="127.0.0.1:0", token=TOKEN, tls_certificate=chain if secret else None,
                            tls_key=key if secret else None)
    seed = current_seed()
    seed = random.randrange(1 << 32) if seed is None else seed
    print(f"{SEED_VARIABLE}={seed}")
    with new_store(tmp_path / "store", service=service) as store:
        put(store, 1)
        how = {"token": TOKEN, "timeout": BOUND_S, **({"tls": True, "ca": root} if secret else {})}
        context = ssl.create_default_context(cafile=str(root)) if secret else None
        done, slowest, committed = threading.Event(), [0.0], [0]
        errors: list[BaseException] = []

        def go_on() -> None:
            try:
                while not done.wait(0.05):
                    begun = time.monotonic()
                    with client(store, **how) as source:
                        source.info()
                    slowest[0] = max(slowest[0], time.monotonic() - begun)
                    put(store, 1, start=committed[0])
                    committed[0] += 1
            except BaseException as error:
                errors.append(error)

        def storm(number: int) -> hostile_requests.Storm:
            made = hostile_requests.Storm(port_of(store), seed + number, number, context)
            asyncio.run(made.run())
            return made

        storm(min(300, REQUESTS[current_profile().name]))  # what is allocated once
        gc.collect()
        before, held = _resident(), _descriptors()
        friend = threading.Thread(target=go_on)
        friend.start()
        made = storm(REQUESTS[current_profile().name])
        done.set()
        friend.join(60)
        assert not friend.is_alive(), "a client with the token hangs"
        assert not errors, f"a client with the token, or a commit, failed: {errors[0]!r}"
        assert slowest[0] < BOUND_S, f"an answer took {slowest[0]:.1f} s"
        assert committed[0], "nothing was committed meanwhile"
        assert not store.poisoned
        assert made.answered > made.count // 5, f"only {made.answered} of {made.count} were answered at all"
        until = time.monotonic() + 20
        while _descriptors() > held + 4 and time.monotonic() < until:
            time.sleep(0.1)
        assert _descriptors() <= held + 4, f"{_descriptors()} descriptors are open, {held} were before"
        gc.collect()
        assert _resident() < before + MEMORY, f"{(_resident() - before) >> 20} MiB more than before are held"
        with client(store, **how) as source:
            assert source.info().published == store.published
    for line in (*(record.getMessage() for record in caplog.records), *(a.decode("latin-1") for a in made.answers)):
        assert TOKEN not in line, line
        assert "Traceback" not in line, line
    assert not [record for record in caplog.records if record.exc_info], "a traceback was logged"
    assert not [record for record in caplog.records if any(ord(char) < 32 and char not in "\t\n" for char in
                                                           record.getMessage())], "a control character was logged"
    count("hostile requests", over, made.count)
