"""etcd 3.4 or later as the coordinator. The document is one key, swapped by a transaction that compares what is there.

The JSON gateway over the standard library's client, because the libraries for etcd do not bound a call: etcd3gw gives
requests a timeout for each silence and not for the whole answer, and aetcd brings gRPC, whose name lookup and event
loop are its own. One needs requests, the other grpcio. A primary must know when its last call has ended.

Changes are found by reading every 0.1 s and not by etcd's watch. A watch of a member that was cut off from the others
is silent, as if nothing changed; a read that is linearizable fails there.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Sequence
from typing import Any

from ....engine.env import REAL, Env
from ....engine.env.shown import printable
from ..coordinator import ABSENT, Coordinator, Version, check_data
from ..errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from .endpoint import Endpoint, NoAnswer, NotSent

_FIRST_PAUSE_S, _PAUSE_S = 0.01, 0.1
_TAIL_S = 0.5
"""A wait whose last read had less time than this, and failed, has not seen an outage."""
_NOT_CARRIED_OUT = frozenset({3, 5, 7, 8, 9, 12, 16})
"""gRPC's codes for requests that are refused: invalid, not found, denied, no room, not in this state, unknown, not
authenticated. With another one, etcd may still carry out what it was asked."""
_OLD_TOKEN = frozenset({3, 16})
"""Those by which etcd refuses a token from before its rules were changed, and one it does not know."""


class EtcdCoordinator(Coordinator):
    """The document of one cluster, the key `holdfast/<cluster>/document`. Versions are etcd's `mod_revision`, together
    with the document: an etcd that was put back from a snapshot counts the same revisions again.

    A read asks the members in turn and divides its time among them. A swap is sent to one only: if that one is stopped,
    the swap takes until its timeout and its outcome is unknown, and the next call asks another. Each call is one round
    trip to a member, and one of etcd's among its members.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], cluster: str, *, tls: ssl.SSLContext | None = None,
                 user: str | None = None, password: str | None = None, env: Env = REAL) -> None:
        """`endpoints`: hosts and ports of etcd's members, at least one; the one that answered last is asked first."""
        self._endpoints = [Endpoint(host, port, tls=tls, env=env) for host, port in endpoints]
        self._key = _encoded(f"holdfast/{cluster}/document".encode())
        self._user, self._password = user, password
        self._token: str | None = None
        self._first = 0
        self._clock = env.clock
        self._closing = env.scheduler.event()

    def __repr__(self) -> str:
        return f"<EtcdCoordinator at {', '.join(map(str, self._endpoints))}>"

    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        try:
            return self._range(self._call("/v3/kv/range", {"key": self._key}, timeout))
        except NoAnswer as error:
            raise CoordinatorUnavailable(str(error)) from error

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        check_data(data)
        compare: list[dict[str, Any]] = [{"key": self._key, "target": "MOD", "result": "EQUAL",
                                          "mod_revision": str(version.number)}]
        if version != ABSENT:
            compare.append({"key": self._key, "target": "VALUE", "result": "EQUAL", "value": _encoded(version.mark)})
        put = {"request_put": {"key": self._key, "value": _encoded(data)}}
        try:
            answer = self._call("/v3/kv/txn", {"compare": compare, "success": [put]}, timeout, once=True)
            try:
                swapped, revision = answer.get("succeeded", False), int(answer["header"]["revision"])
            except (LookupError, TypeError, ValueError) as error:
                raise NoAnswer("the answer is not one of etcd's") from error
        except NoAnswer as error:
            raise SwapUnknown(str(error)) from error
        if not swapped:
            raise SwapConflict(f"the cluster document does not have version {version.number} any more")
        return Version(revision, data)

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        end = self._clock.monotonic() + timeout
        pause, left, answered = _FIRST_PAUSE_S, timeout, False
        while True:
            try:
                data, found = self.read(left)
                if found != version:
                    return data, found
                answered = True
            except CoordinatorUnavailable:
                if not answered or left > _TAIL_S or self._closing.is_set():
                    raise
            left = end - self._clock.monotonic()
            self._closing.wait(max(min(left, pause), 0))
            left = end - self._clock.monotonic()
            if left <= 0:
                return None
            pause = min(2 * pause, _PAUSE_S)

    def close(self) -> None:
        self._closing.set()
        for endpoint in self._endpoints:
            endpoint.close()

    def _range(self, answer: dict[str, Any]) -> tuple[bytes | None, Version]:
        try:
            int(answer["header"]["revision"])  # something else that answers must not look like an absent document
            found = answer.get("kvs")
            if not found:
                return None, ABSENT
            data = base64.b64decode(found[0].get("value", ""), validate=True)
            return data, Version(int(found[0]["mod_revision"]), data)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise NoAnswer("the answer is not one of etcd's") from error

    def _call(self, path: str, request: dict[str, Any], timeout: float, *, once: bool = False) -> dict[str, Any]:
        """Ask each endpoint once, until one answers. With `once`, a request that was sent is not sent again.

        Raises:
            NoAnswer: with `once`, and it may have been carried out.
            CoordinatorUnavailable: there was no answer, and with `once` it was not carried out.
        """
        if self._closing.is_set():
            raise _closed()
        end = self._clock.monotonic() + timeout
        body = json.dumps(request).encode()
        first, count = self._first, len(self._endpoints)
        reasons = []
        for tried in range(count):
            at = (first + tried) % count
            endpoint = self._endpoints[at]
            now = self._clock.monotonic()
            if now >= end:
                reasons.append("no time was left")
                break
            share = now + (end - now) / (count - tried)
            try:
                answer = self._ask(endpoint, path, body, share, end if once else share)
            except NotSent as error:
                reasons.append(f"{endpoint}: {error}")
            except NoAnswer as error:
                reasons.append(f"{endpoint}: {error}")
                if once:
                    self._first = (at + 1) % count
                    raise NoAnswer(f"etcd did not say whether it has replaced the cluster document ({reasons[-1]})"
                                   ) from error
            else:
                self._first = at
                return answer
        self._first = (first + 1) % count
        raise CoordinatorUnavailable(f"etcd does not answer ({'; '.join(reasons)})")

    def _ask(self, endpoint: Endpoint, path: str, body: bytes, sent_by: float, end: float) -> dict[str, Any]:
        """One endpoint's answer. A token that has expired is replaced once."""
        fresh = False
        while True:
            headers = {}
            token = self._token
            if self._user is not None:
                if token is None:
                    token, fresh = self._authenticate(endpoint, sent_by), True
                headers["Authorization"] = token
            status, data = endpoint.post(path, body, headers, sent_by=sent_by, end=end)
            answer = _decoded(data)
            if status == 200:
                return answer
            code, message = answer.get("code"), _message(status, answer)
            if code not in _NOT_CARRIED_OUT:
                raise NoAnswer(message)
            if self._user is None or fresh or code not in _OLD_TOKEN:
                raise NotSent(message)
            if self._token == token:
                self._token = None

    def _authenticate(self, endpoint: Endpoint, end: float) -> str:
        body = json.dumps({"name": self._user, "password": self._password}).encode()
        try:
            status, data = endpoint.post("/v3/auth/authenticate", body, {}, sent_by=end, end=end)
            answer = _decoded(data)
            token = answer.get("token")
            if status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise NotSent(f"user {self._user} cannot be authenticated: {_message(status, answer)}")
        except NoAnswer as error:
            raise NotSent(f"user {self._user} cannot be authenticated: {error}") from error
        self._token = token
        return token


def _closed() -> CoordinatorUnavailable:
    return CoordinatorUnavailable("this coordinator was closed", hint="open it again")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoAnswer("the answer is not one of etcd's") from error
    if not isinstance(answer, dict):
        raise NoAnswer("the answer is not one of etcd's")
    return answer


def _message(status: int, answer: dict[str, Any]) -> str:
    return printable(str(answer.get("message") or answer.get("error") or f"HTTP status {status}"))[:200]
