"""The address of a coordinator, and how it is opened."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ....engine.contract.registry import find
from ....engine.env import REAL, Env
from ....engine.env.shown import shown
from ....engine.errors import InvalidInput, SettingError
from ....engine.source.http.client import is_loopback
from ..coordinator import Coordinator
from .etcd import EtcdCoordinator
from .file import FileCoordinator

GROUP = "holdfast.coordinators"
"""The entry-point group of further coordinators, by scheme. A class is called as `Class(address, cluster, env=env)`."""

DEFAULT_PORT = 2379
_HINT = "write etcd://host:port,host:port or etcds://… (TLS), s3://bucket/prefix, or file:DIRECTORY"
_OWN = ("etcd", "etcds", "file")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]"
                       r"|(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?))(?::(?P<port>[0-9]{1,5}))?")
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """A parsed address of etcd or a directory.

    >>> parse("etcd://etcd-1,[::1]:23790").endpoints
    (('etcd-1', 2379), ('::1', 23790))
    >>> parse("file:/var/lib/cluster").directory
    PosixPath('/var/lib/cluster')

    Attributes:
        scheme: `etcds` is etcd with TLS.
        endpoints: hosts and ports of etcd's members.
        directory: of `file`; perhaps relative.
    """

    scheme: Literal["etcd", "etcds", "file"]
    endpoints: tuple[tuple[str, int], ...] = ()
    directory: Path | None = None


def parse(address: str) -> CoordinatorAddress:
    """The parsed address of etcd or a directory. Raises `InvalidInput`."""
    if not isinstance(address, str):
        raise InvalidInput(f"{shown(address)} is not a coordinator's address", hint=_HINT)
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "file":
        if not rest:
            raise InvalidInput(f"{shown(address)} names no directory", hint=_HINT)
        return CoordinatorAddress("file", directory=Path(rest.removeprefix("//") if rest.startswith("///") else rest))
    if scheme not in ("etcd", "etcds") or not rest.startswith("//"):
        raise InvalidInput(f"a coordinator's address begins with etcd://, etcds:// or file:, not with "
                           f"{shown(scheme[:20])}", hint=_HINT)
    if "@" in rest:  # not shown: it has a password
        raise InvalidInput("a coordinator's address has an @, and must not hold a user and a password, since addresses "
                           "are logged", hint="pass user and password beside the address")
    endpoints = tuple(_endpoint(part) for part in rest[2:].removesuffix("/").split(","))
    return CoordinatorAddress("etcds" if scheme == "etcds" else "etcd", endpoints)


def open_coordinator(address: str, cluster: str, *, ca: str | Path | None = None, cert: str | Path | None = None,
                     key: str | Path | None = None, user: str | None = None, password: str | None = None,
                     env: Env = REAL) -> Coordinator:
    """The coordinator at an address, for one cluster. Nothing is asked of etcd or a bucket before the first call.

    Args:
        address: `etcd://host:port,host:port`, `etcds://…` with TLS, `file:DIRECTORY`, or what is installed in the
            entry-point group `holdfast.coordinators`: `s3://bucket/prefix`, `gs://…` and `az://…` come with Holdfast.
        cluster: the cluster's name: up to 63 letters, digits, `_`, `.` or `-`. Clusters do not see each other.
        ca: file with the certificate authority of etcd's certificate. If None, the system's authorities.
        cert, key: files with a certificate that is shown to etcd, and its key.
        user, password: for an etcd with authentication. Off loopback they need `etcds://`.
        env: files, clock, threads and randomness.

    Raises:
        InvalidInput: the address or the name is not valid, or nothing is installed for its scheme.
        SettingError: the other arguments do not fit, or a file cannot be used.
        Unsupported: the directory is on a network file system, or a package that a bucket needs is not installed.
        HoldfastError: the directory cannot be made, or the environment configures a bucket wrongly.
    """
    scheme = _SCHEME.match(address) if isinstance(address, str) else None
    parsed = None if scheme is not None and scheme[1] not in _OWN else parse(address)
    if not isinstance(cluster, str) or not _CLUSTER.fullmatch(cluster):
        raise InvalidInput(f"{shown(cluster)} is not a cluster's name",
                           hint="use up to 63 letters, digits, _, . or -, and begin with a letter or a digit")
    if parsed is None:
        if any(given is not None for given in (ca, cert, key, user, password)):
            raise SettingError("ca, cert, key, user and password are for etcd, and the address begins with "
                               f"{address.partition(':')[0]}:",
                               hint="leave them out; credentials of a bucket come from the environment")
        return _installed(address, cluster, env)
    if parsed.scheme != "etcds" and (ca is not None or cert is not None or key is not None):
        raise SettingError(f"ca, cert and key are for TLS, and the address begins with {parsed.scheme}:",
                           hint="write etcds://")
    if (user is None) != (password is None):
        raise SettingError("of user and password one is missing", hint="give both or neither")
    if parsed.directory is not None:
        if user is not None:
            raise SettingError("a coordinator in a directory takes no user and password", hint="leave them out")
        return FileCoordinator(parsed.directory, cluster, env=env)
    far = [host for host, _ in parsed.endpoints if not is_loopback(host)]
    if user is not None and parsed.scheme == "etcd" and far:
        raise SettingError(f"the password would be sent to {far[0]} in the clear", hint="write etcds://")
    tls = _context(ca, cert, key) if parsed.scheme == "etcds" else None
    return EtcdCoordinator(parsed.endpoints, cluster, tls=tls, user=user, password=password, env=env)


def _installed(address: str, cluster: str, env: Env) -> Coordinator:
    scheme = address.partition(":")[0]
    try:
        made: Coordinator = find(GROUP, scheme, Coordinator)(address, cluster, env=env)
    except SettingError as error:
        raise InvalidInput(f"there is no coordinator for {shown(scheme)} addresses",
                           hint=f"{_HINT}; {error.hint}") from error
    return made


def _endpoint(part: str) -> tuple[str, int]:
    match = _ENDPOINT.fullmatch(part)
    port = DEFAULT_PORT if match is None or match["port"] is None else int(match["port"])
    if match is None or not 0 < port < 65536:
        raise InvalidInput(f"{shown(part)} in a coordinator's address is not a host and a port",
                           hint=f"write host:port, with IPv6 addresses in brackets; the default port is {DEFAULT_PORT}")
    return match["v6"] or match["host"], port


def _context(ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ValueError) as error:
        raise SettingError(f"ca: the certificate authority {ca} cannot be read: {error}") from error
    if cert is None:
        if key is not None:
            raise SettingError("key was given without cert", hint="give both")
        return context
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except SettingError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"cert, key: {cert} cannot be used: {error}",
                           hint="name PEM files of a certificate chain and its private key") from error
    return context


def _no_password() -> str:
    """OpenSSL's callback for a pass phrase. Without one, OpenSSL would prompt on the terminal and wait."""
    raise SettingError("key: the key has a pass phrase, which nobody can type here",
                       hint="name a file with the key in the clear (openssl pkey -in KEY -out FILE), readable by this "
                            "user only")
