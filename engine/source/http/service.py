"""The backup service: the plugin that puts a store on the network.

By default it listens on loopback, on port 6362 or the next free one up to 6372. It makes a token for this opening that
only this user's processes can find (`discovery`), and listens only once the token can be found. Two things can be
missing: a free port, and a place to publish a token that was made here. If you named the address, either is an error,
and the store does not open. With the default address, the store opens and a warning says that the service is off. Off
loopback, the service needs TLS and a credential, or `insecure=True`. Clients need a token even then.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket  # noqa: TID251  real sockets
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...contract.plugin import Plugin, StoreHandle
from ...env.system import is_limit, told
from ...errors import SettingError
from ...store.store import Store
from .discovery import Entry, Publication

if TYPE_CHECKING:
    from .extension import Extension
    from .server import SourceServer

logger = logging.getLogger("holdfast.source")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORTS = range(6362, 6373)
_SEND_BUFFER = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?")


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int


class BackupService(Plugin):
    """Serves leases, images and log of the store that it is a plugin of. One object serves one store at a time."""

    def __init__(self, *, online_backup_enabled: bool = True, online_backup_server: str | None = None,
                 tls_certificate: str | Path | None = None, tls_key: str | Path | None = None,
                 token: str | None = None, names: tuple[str, ...] = (), insecure: bool = False,
                 extension: Extension | None = None) -> None:
        """
        Args:
            online_backup_enabled: if False, the plugin does nothing.
            online_backup_server: `host:port`, or `:port` for loopback. Port 0 takes any free one.
            tls_certificate, tls_key: PEM files; the key may be in the certificate's file.
            token: a fixed credential, of 16 printable ASCII characters or more. Without it, one is made per opening.
            names: further host names under which clients may know this service.
            insecure: allow listening off loopback without TLS, or without a credential of your own (a token is made
                then, as on loopback). Anybody who can read the network's traffic sees all data and the token.
            extension: further requests on the same port, which a plugin answers under its own token.

        Raises:
            SettingError: a setting makes no sense, or files cannot be read.
        """
        self._enabled = online_backup_enabled
        self._asked = None if online_backup_server is None else parse_address(online_backup_server)
        self._tls = tls_context(tls_certificate, tls_key)
        if token is not None and not re.fullmatch(r"[!-~]{16,}", token):
            raise SettingError("a token is at least 16 printable ASCII characters without spaces")
        if extension is not None and extension.token is not None and not re.fullmatch(r"[!-~]{16,}", extension.token):
            raise SettingError("the token of an extension is at least 16 printable ASCII characters without spaces")
        self._extension = extension
        self._fixed_token = token
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._insecure = insecure
        self._store: Store[Any, Any] | None = None
        self._server: SourceServer | None = None
        self._publication: Publication | None = None
        if self._asked is not None and self._enabled:
            self._check_safe(resolve(self._asked))

    def opened(self, store: StoreHandle) -> None:
        if not self._enabled:
            return
        if self._store is not None:
            raise SettingError("this BackupService serves a store already", hint="make one for each store")
        assert isinstance(store, Store)  # a source needs more of the store than a plugin may rely on
        self._store = store
        try:
            self._serve(store)
        except SettingError as error:
            self.closing(store)
            if self._asked is not None:
                raise
            logger.warning("the backup service is off: %s", error)
        except BaseException:
            self.closing(store)
            raise

    def closing(self, store: StoreHandle) -> None:
        mine = self._store
        if mine is None or store is not mine:
            return
        self._store = None
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            mine.backup_uri = None
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.withdraw()

    def forked(self) -> None:
        """In a forked child: drop socket and entry. The parent keeps using both."""
        server, self._server = self._server, None
        publication, self._publication = self._publication, None
        self._store = None
        if server is not None:
            server.forked()
        if publication is not None:
            publication.abandon()

    def _serve(self, store: Store[Any, Any]) -> None:
        """Find an address and serve there. Raises `SettingError` if that is not possible."""
        if self._asked is not None:
            family, address = resolve(self._asked)
            try:
                self._serve_at(store, bind(family, address))
            except OSError as error:
                if is_limit(error):
                    raise told(error, "cannot serve backups") or error from error
                raise SettingError(f"online_backup_server: cannot listen on {self._asked.host}:{self._asked.port}: "
                                   f"{error.strerror or error}",
                                   hint="name a free port and an address of this machine, or leave the setting out"
                                   ) from error
            return
        for port in DEFAULT_PORTS:
            try:
                self._serve_at(store, bind(socket.AF_INET, (DEFAULT_HOST, port)))
                return
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise SettingError(f"cannot listen on {DEFAULT_HOST}: {error}") from error
        raise SettingError(f"ports {DEFAULT_PORTS[0]} to {DEFAULT_PORTS[-1]} of {DEFAULT_HOST} are all taken")

    def _serve_at(self, store: Store[Any, Any], sock: socket.socket) -> None:
        """Serve on a bound socket, which is closed on failure. The token is published before the socket listens, so a
        client that can connect can also find the token.

        Raises:
            OSError: another process listens there.
            SettingError: the token could not be published.
        """
        from .server import SourceServer  # here, so that only processes that serve load aiohttp

        server: SourceServer | None = None
        try:
            host, port = sock.getsockname()[:2]
            made = store.env.randomness.token
            entry = Entry(host=host, port=port, scheme="http" if self._tls is None else "https",
                          token=self._fixed_token or made(24).hex(), key=made(32).hex(), instance=store.instance,
                          store_id=store.history.store_id.hex(), branch=store.history.branch.id.hex(),
                          path=str(store.directory), pid=os.getpid())
            names = self._names | {socket.gethostname().lower()}
            if self._asked is not None:
                names |= {self._asked.host.lower().rstrip(".")}
            server = SourceServer(store, sock, token=entry.token, key=entry.key, tls=self._tls, names=names,
                                  env=store.env, extension=self._extension)
            self._publish(entry, store)
            sock.listen(128)
            server.start()
        except BaseException:
            if self._publication is not None:
                self._publication.withdraw()
                self._publication = None
            if server is not None:
                server.stop()
            sock.close()
            raise
        self._server = server
        shown = socket.gethostname() if ipaddress.ip_address(host.partition("%")[0]).is_unspecified else host
        store.backup_uri = f"single://{f'[{shown}]' if ':' in shown else shown}:{port}"
        logger.info("backup service of %s on %s", store.directory, store.backup_uri)

    def _publish(self, entry: Entry, store: Store[Any, Any]) -> None:
        self._publication = Publication(entry, store.env)
        try:
            self._publication.start()
        except SettingError as error:
            if self._fixed_token is None:
                raise
            logger.warning("local clients must be given the token: %s", error.message)

    # --- addresses -------------------------------------------------------------------------------------------------

    def _check_safe(self, resolved: tuple[socket.AddressFamily, tuple[Any, ...]]) -> None:
        if ipaddress.ip_address(str(resolved[1][0]).partition("%")[0]).is_loopback or self._insecure:
            return
        if self._tls is None or self._fixed_token is None:
            raise SettingError("online_backup_server: an address other than loopback needs TLS and a credential",
                               hint="give tls_certificate, tls_key and token, or say insecure=True")


def parse_address(text: str, what: str = "online_backup_server") -> Address:
    """`host:port`, `[IPv6]:port` or `:port`. `what`: the setting. Raises `SettingError`."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        known = _is_address(host)
    else:
        host = host or DEFAULT_HOST
        known = ":" not in host and (_is_address(host) or _NAME.fullmatch(host) is not None)
    if not colon or not known or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise SettingError(f"{what}: {text!r} is not an address",
                           hint='write "host:port", "[IPv6]:port", or ":port" for loopback')
    return Address(host, int(port))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def resolve(asked: Address, what: str = "online_backup_server") -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family and address to bind. Raises `SettingError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(asked.host, asked.port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingError(f"{what}: {asked.host} is not known: {error.strerror or error}") from error
    return family, address


def bind(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    """A socket that is bound to the address and does not listen yet."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # accepted sockets inherit it
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _no_password() -> str:
    """OpenSSL's callback for a pass phrase. Without one, OpenSSL would prompt on the terminal and wait."""
    raise SettingError("tls_key: the key has a pass phrase, which nobody can type here",
                       hint="name a file with the key in the clear (openssl pkey -in KEY -out FILE), readable by this "
                            "user only")


def tls_context(certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise SettingError("tls_key was given without tls_certificate", hint="give both")
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key, password=_no_password)
    except SettingError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"tls_certificate, tls_key: {certificate} cannot be used: {error}",
                           hint="name PEM files of a certificate chain and its private key") from error
    return context
