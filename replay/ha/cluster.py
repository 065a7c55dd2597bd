"""A client of a cluster: it finds the primary, watches the members, and tells what became of a transaction. It neither
writes nor retries.

    with Cluster("ha://127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003") as cluster:
        print(cluster.primary, cluster.status())

What members are is asked at `/health`, which needs no token. What became of a transaction is asked of their backup
services, whose token is found on the same machine, or given.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ...engine.env import REAL, Env
from ...engine.errors import HoldfastError, InvalidInput
from ...engine.model.positions import Position
from ...engine.source.http import discovery
from ...engine.source.http.client import HttpSource, is_loopback
from ...engine.source.http.connection import Credential, Line
from ...engine.source.http.service import Address, parse_address
from .peer.client import tls_context

MAX_ANSWER = 64 << 10


@dataclass(frozen=True, slots=True)
class MemberState:
    """What a member says. `role` is None if it does not answer, and `trouble` then says why."""

    address: str
    name: str | None
    role: str | None
    epoch: int | None
    published: int | None
    lag_s: float | None
    trouble: str | None = None


class Cluster:
    """See the module's text. A context manager. From any thread.

    Attributes:
        addresses: of the members that it asks, as given.
    """

    def __init__(self, uri: str, *, token: str | None = None, ca: str | Path | None = None, timeout: float = 5.0,
                 env: Env = REAL) -> None:
        """
        Args:
            uri: "ha://host:port,host:port,…".
            token: of the members' backup services. Default: what they have published for this user on this machine.
            ca: file of authorities; with it, members are asked over TLS.
            timeout: seconds that one answer may take.
            env: the environment.

        Raises:
            InvalidInput, SettingError.
        """
        scheme, _, rest = uri.partition("://")
        if scheme != "ha" or not rest:
            raise InvalidInput(f"{uri!r} is not the address of a cluster", hint="write ha://host:port,host:port")
        self.addresses = tuple(rest.rstrip("/").split(","))
        self._at = [parse_address(address, "a member's address") for address in self.addresses]
        self._token = token
        self._tls = None if ca is None else tls_context(ca)
        self._timeout = timeout
        self._env = env

    def status(self) -> tuple[MemberState, ...]:
        """What each member says now, one after the other."""
        return tuple(self._state(text, at) for text, at in zip(self.addresses, self._at, strict=True))

    def _state(self, text: str, at: Address) -> MemberState:
        line = Line(at.host, at.port, tls=self._tls, credential=Credential(None, ""), timeout=self._timeout,
                    env=self._env)
        try:
            line.open()
            line.allow(self._timeout, self._timeout)
            line.request("GET", "/health")
            said: dict[str, Any] = json.loads(line.getresponse().read(MAX_ANSWER))
            return MemberState(text, str(said["name"]), str(said["role"]), int(said["epoch"]), int(said["published"]),
                               float(said["lag_s"]))
        except (OSError, http.client.HTTPException, HoldfastError, ValueError, KeyError, TypeError) as error:
            return MemberState(text, None, None, None, None, None, str(error) or type(error).__name__)
        finally:
            line.close()

    @property
    def primary(self) -> str | None:
        """The address of the member that says that it is primary, in the highest epoch; None if none does."""
        found = [m for m in self.status() if m.role == "primary"]
        return max(found, key=lambda m: m.epoch or 0).address if found else None

    def watch(self, interval: float = 1.0) -> Iterator[tuple[MemberState, ...]]:
        """What the members say, again and again, with a pause of `interval` seconds."""
        pause = self._env.scheduler.event()
        while True:
            yield self.status()
            pause.wait(interval)

    def outcome(self, position: Position) -> Literal["published", "cut", "unknown"]:
        """What became of the transaction at a position: a member has published it; a member has published another one
        in its place; or none can tell yet. Members of the highest epoch are asked first, because one that has yet to
        see a forced promotion may show what was lost by it. O(members)."""
        said = zip(self.status(), self._at, strict=True)
        for _, at in sorted(said, key=lambda one: -1 if one[0].epoch is None else one[0].epoch, reverse=True):
            try:
                source = self._source(at)
                try:
                    if source.info().published.txid >= position.txid:
                        return "published" if source.chain_at(position.txid) == position.chain else "cut"
                finally:
                    source.close()
            except HoldfastError:  # it does not answer, or has pruned that: another may tell
                continue
        return "unknown"

    def _source(self, at: Address) -> HttpSource:
        def look() -> list[discovery.Entry]:
            return list(discovery.find(self._env.files, at.host, at.port))

        finds = self._token is None and is_loopback(at.host)
        return HttpSource(at.host, at.port, tls=self._tls, timeout=self._timeout, env=self._env,
                          credential=Credential(self._token, "was given", look if finds else None))

    def close(self) -> None:
        """Does nothing: no connection is kept."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
