"""A service and its store while strangers send hostile requests: the whole of it in a process of its own, since what a
process that ran other tests holds says nothing of a service.

    python hostile_service.py DIRECTORY SEED REQUESTS [--tls CHAIN KEY ROOT] [--keep BYTES]

It says at its end, as JSON, how many requests were tried, how many were answered, and by how many bytes the process
grew. It ends with a traceback if something is not as it should be. With `--keep` the service keeps so many bytes of
each stranger, which must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hostile_requests
from source_rig import client, new_store, port_of, put

from holdfast.engine.source.http.admission import Door
from holdfast.engine.source.http.service import BackupService

TOKEN = "the-one-and-only-token-of-this-test"
BOUND_S = 10.0
"""A client with the token gets each answer within so many seconds."""
MEMORY = 48 << 20
"""So much more may be held at the end than after the first requests: 22 MiB were seen, after 25,000 over TLS."""


class Listening(logging.Handler):
    """Looks at each line that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.lines += 1
        if record.exc_info or tells_too_much(line) or any(ord(char) < 32 and char not in "\t\n" for char in line):
            self.wrong = [*self.wrong[:9], repr(line)]


def tells_too_much(text: str) -> bool:
    return TOKEN in text or "Traceback" in text


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def lived_through(where: Path, seed: int, requests: int, tls: list[str] | None) -> dict[str, int]:
    """What is said at the end. Raises `AssertionError` if something is not as it should be."""
    chain, key, root = map(Path, tls) if tls else (None, None, None)
    service = BackupService(online_backup_server="127.0.0.1:0", token=TOKEN, tls_certificate=chain, tls_key=key)
    context = ssl.create_default_context(cafile=root) if tls else None
    how: dict[str, Any] = {"token": TOKEN, "timeout": BOUND_S, **({"tls": True, "ca": root} if tls else {})}
    listening = Listening()
    logging.getLogger().addHandler(listening)
    logging.getLogger().setLevel(logging.DEBUG)
    with new_store(where / "store", service=service) as store:
        put(store, 1)
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

        def storm(number: int, count: int) -> hostile_requests.Storm:
            made = hostile_requests.Storm(port_of(store), seed + number, count, context)
            asyncio.run(made.run())
            return made

        storm(1, 300)  # what is allocated once
        gc.collect()
        before, held = resident(), descriptors()
        friend = threading.Thread(target=go_on)
        friend.start()
        made = storm(2, requests)
        done.set()
        friend.join(60)
        assert not friend.is_alive(), "a client with the token hangs"
        assert not errors, f"a client with the token, or a commit, failed: {errors[0]!r}"
        assert slowest[0] < BOUND_S, f"an answer took {slowest[0]:.1f} s"
        assert committed[0], "nothing was committed meanwhile"
        assert not store.poisoned
        assert made.answered > made.count // 5, f"only {made.answered} of {made.count} were answered at all"
        until = time.monotonic() + 20
        while descriptors() > held + 4 and time.monotonic() < until:
            time.sleep(0.1)
        assert descriptors() <= held + 4, f"{descriptors()} descriptors are open, {held} were before"
        gc.collect()
        grown = resident() - before
        assert grown < MEMORY, f"{grown >> 20} MiB more than before are held"
        with client(store, **how) as source:
            assert source.info().published == store.published
    assert listening.lines, "nothing was logged"
    assert not listening.wrong, f"it logged {listening.wrong}"
    told = [answer for answer in made.answers if tells_too_much(answer.decode("latin-1"))]
    assert not told, f"it answered {told[0]!r}"
    return {"tried": made.count, "answered": made.answered, "grown": grown}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("requests", type=int)
    parser.add_argument("--tls", nargs=3)
    parser.add_argument("--keep", type=int, default=0)
    asked = parser.parse_args()
    kept: list[bytes] = []
    arrived = Door._arrived

    def keeping(self: Door, *arguments: Any) -> None:
        kept.append(b"\1" * asked.keep)
        arrived(self, *arguments)

    with patch.object(Door, "_arrived", keeping if asked.keep else arrived):
        print(json.dumps(lived_through(asked.directory, asked.seed, asked.requests, asked.tls)))


if __name__ == "__main__":
    main()
