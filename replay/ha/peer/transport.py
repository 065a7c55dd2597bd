"""The network of a member: one port for its backup service, the other members and load balancers."""

from __future__ import annotations

import os
import socket  # noqa: TID251  the member's own port
from pathlib import Path
from typing import Any

from ....engine.env import REAL, Env
from ....engine.errors import SettingError
from ....engine.source.http.client import HttpSource, is_loopback
from ....engine.source.http.discovery import Entry, Publication
from ....engine.source.http.server import SourceServer
from ....engine.source.http.service import bind, parse_address, resolve
from ....engine.source.http.service import tls_context as server_context
from ....engine.source.interface import Source
from ....engine.store.store import Store
from . import wire
from .client import PeerClient, tls_context
from .interface import Handler
from .server import PeerRoutes
from .stream import LogStream

TIMEOUT_S = 5.0
SILENCE_S = 10.0


class _Answers:
    """What the routes ask, answered by a member."""

    def __init__(self, handler: Handler, env: Env) -> None:
        self._handler = handler
        self._env = env
        self.status, self.promise, self.chain_at = handler.status, handler.promise, handler.chain_at
        self.command, self.read_attachment, self.health = handler.command, handler.read_attachment, handler.health
        self.metrics, self.page, self.acked = handler.metrics, handler.page, handler.acked

    def open_stream(self, hello: dict[str, Any]) -> LogStream:
        stream = LogStream(env=self._env)
        if "upto" in hello:
            self._handler.send_log(hello, stream)
        else:
            self._handler.open_stream(hello, stream)
        return stream


class HttpTransport:
    """See the module's text. `address`: where others reach this member.

    `versions`: the newest and the oldest version of the members' protocol that it speaks.
    """

    versions = wire.HELLO_VERSION, wire.HELLO_MIN

    def __init__(self, listen: str, advertise: str | None = None, *, token: str | None = None,
                 backup_token: str | None = None, tls_certificate: str | Path | None = None,
                 tls_key: str | Path | None = None, ca: str | Path | None = None, insecure: bool = False,
                 silence: float = SILENCE_S, env: Env = REAL) -> None:
        """Bind the address.

        Args:
            listen: "host:port". Port 0 takes any free one.
            advertise: "host:port" where others reach it, if that is not `listen`.
            token: what members show each other, 16 characters or more. Default: that in the cluster's document.
            backup_token: what clients of the backup service show. Default: one that only this user's processes find.
            tls_certificate, tls_key: PEM files of this member.
            ca: file of the authorities that have signed the members' certificates. With it, members speak TLS.
            insecure: allow an address off loopback without TLS.
            silence: seconds that a stream may be silent before it counts as broken.
            env: the environment.

        Raises:
            SettingError: a setting makes no sense, or the address cannot be used.
        """
        family, address = resolve(parse_address(listen, "listen"), "listen")
        self._tls = server_context(tls_certificate, tls_key)
        if not is_loopback(str(address[0])) and self._tls is None and not insecure:
            raise SettingError("listen: an address other than loopback needs TLS between the members",
                               hint="give tls_certificate, tls_key and ca, or say insecure=True")
        self._client_tls = None if ca is None else tls_context(ca)
        if ca is None and self._tls is not None:
            raise SettingError("tls_certificate was given without ca", hint="members check each other's certificates")
        self._given_token = token
        self._backup_token = backup_token or env.randomness.token(24).hex()
        self._silence = silence
        self._env = env
        try:
            self._socket = bind(family, address)
        except OSError as error:
            raise SettingError(f"listen: cannot listen on {listen}: {error.strerror or error}",
                               hint="name a free port and an address of this machine") from error
        host, port = self._socket.getsockname()[:2]
        self._host, self._port = host, port
        shown = f"[{host}]" if ":" in host else host
        self.address = advertise or f"{shown}:{port}"
        self._token = token or ""
        self._server: SourceServer | None = None
        self._routes: PeerRoutes | None = None
        self._store: Store[Any, Any] | None = None
        self._publication: Publication | None = None

    def start(self, handler: Handler) -> None:
        """Serve from now on. Called again with the handler that takes over."""
        if self._routes is not None:
            self._routes.handler = _Answers(handler, self._env)
            return
        # Before the document is known, there may be no token yet.
        self._routes = routes = PeerRoutes(_Answers(handler, self._env), self._token or None, silence=self._silence,
                                           versions=self.versions, env=self._env)
        names = {parse_address(self.address, "advertise").host.lower(), socket.gethostname().lower()}
        self._key = self._env.randomness.token(32).hex()
        self._server = SourceServer(self._store, self._socket, token=self._backup_token, key=self._key, tls=self._tls,
                                    names=frozenset(names), env=self._env, extension=routes)
        self._publish()
        self._socket.listen(128)
        self._server.start()

    def learn(self, token: str) -> None:
        """The token in the cluster's document; one that was given to this member takes precedence."""
        self._token = self._given_token or token
        if self._routes is not None:
            self._routes.token = self._token

    def show(self, store: Store[Any, Any] | None) -> None:
        """Serve backups of this store from now on."""
        self._store = store
        if store is not None:
            store.backup_uri = f"single://{self.address}"
        if self._server is not None:
            self._server.show(store)
            self._publish()

    def _publish(self) -> None:
        """Let this user's processes find the token of the backup service."""
        old, self._publication = self._publication, None
        if old is not None:
            old.withdraw()
        store = self._store
        if store is None:
            return
        entry = Entry(host=self._host, port=self._port, scheme="http" if self._tls is None else "https",
                      token=self._backup_token, key=self._key, instance=store.instance,
                      store_id=store.history.store_id.hex(), branch=store.history.branch.id.hex(),
                      path=str(store.directory), pid=os.getpid())
        publication = Publication(entry, self._env)
        try:
            publication.start()
        except SettingError:  # no place for it: clients must be given the token
            return
        self._publication = publication

    def peer(self, address: str) -> PeerClient:
        """A client of another member."""
        return PeerClient(address, self._token, tls=self._client_tls, timeout=TIMEOUT_S, silence=self._silence,
                          versions=self.versions, env=self._env)

    def source(self, address: str) -> Source:
        """A source of images and log at another member."""
        at = parse_address(address, "a member's address")
        return HttpSource(at.host, at.port, token=self._token, tls=self._client_tls, env=self._env)

    def stop(self) -> None:
        """Stop serving, and release the port. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.withdraw()
        self._socket.close()
