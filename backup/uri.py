"""The address to back up from: `<mode>://<host>[:port]{,<host>[:port]}`.

`single` names one store. `ha` names members of a cluster, any of which may be used. Put IPv6 addresses in brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..engine.errors import InvalidInput

DEFAULT_PORT = 6362
_HINT = "write single://host:port, or ha://host:port,host:port for a cluster"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")


class Address(NamedTuple):
    """A host, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BackupUri:
    """A parsed address.

    >>> print(parse("single://db.example"))
    single://db.example:6362
    >>> parse("ha://a,[::1]:7000").addresses
    (Address(host='a', port=6362), Address(host='::1', port=7000))
    """

    mode: Literal["single", "ha"]
    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        return f"{self.mode}://{','.join(map(str, self.addresses))}"


def parse(text: str) -> BackupUri:
    """The parsed address. Raises `InvalidInput`."""
    mode, separator, rest = text.partition("://")
    if not separator:
        raise InvalidInput(f"{text!r} is not a backup address", hint=_HINT)
    if mode not in ("single", "ha"):
        raise InvalidInput(f"{text!r} has the mode {mode!r}, which is neither single nor ha", hint=_HINT)
    addresses = tuple(_address(text, part) for part in rest.removesuffix("/").split(","))
    if mode == "single":
        if len(addresses) > 1:
            raise InvalidInput(f"{text!r} names {len(addresses)} hosts, and single:// takes one",
                               hint="name one host, or use ha:// to ask any member of a cluster")
        return BackupUri("single", addresses)
    return BackupUri("ha", addresses)


def _address(text: str, part: str) -> Address:
    if part.startswith("["):
        host, bracket, port = part[1:].partition("]")
        if not bracket or not _IPV6.fullmatch(host) or ":" not in host or (port and not port.startswith(":")):
            raise InvalidInput(f"{part!r} in {text!r} is not an IPv6 address in brackets", hint="write [::1]:6362")
        return Address(host, DEFAULT_PORT if not port else _port(text, port[1:]))
    host, colon, port = part.partition(":")
    if ":" in port:
        raise InvalidInput(f"{part!r} in {text!r} has more than one colon",
                           hint="put IPv6 addresses in brackets: [::1]:6362")
    if not _HOST.fullmatch(host):
        raise InvalidInput(f"{host!r} in {text!r} is not a host name", hint=_HINT)
    return Address(host, DEFAULT_PORT if not colon else _port(text, port))


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise InvalidInput(f"{port!r} in {text!r} is not a port", hint="ports are 1 to 65535; the default is 6362")
    return int(port)
