"""Opening what a caller names as a source: a URI, an open store, or any `Source`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..engine.env.shown import shown
from ..engine.errors import InvalidInput, SettingError
from ..engine.source.http.client import MAX_RECORD, connect
from ..engine.source.interface import Source
from ..engine.store.settings import check_duration
from .uri import parse

if TYPE_CHECKING:
    from ..engine.store.store import Store

Named: TypeAlias = "str | Store[Any, Any] | Source"


def store_in(source: Named) -> Store[Any, Any] | None:
    """The source if it is an open store. What an open store needs is imported only if it may be one."""
    if isinstance(source, str | Source):
        return None
    from ..engine.store.store import Store

    return source if isinstance(source, Store) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a source that is named by its URI. Ignored for an open store or a `Source`.

    Attributes:
        token: the credential. Without one: what a service of this user on this machine has published for exactly this
            address, else the environment's HOLDFAST_TOKEN.
        tls: whether to use TLS. If None: on loopback as that service has published, otherwise always. False sends the
            token in the clear; use it only if you trust the network.
        ca: file with the certificate authority of the source's certificate. If None, the system's authorities.
        timeout: seconds that one answer may take; ten times as long if the source must make an image first.
        max_record_bytes: the largest payload of a transaction that is accepted. If the store was opened with a larger
            bound, give the same here.

    Raises:
        SettingError: on construction, if a value is invalid.
    """

    token: str | None = field(default=None, repr=False)
    tls: bool | None = None
    ca: str | Path | None = None
    timeout: float = 30.0
    max_record_bytes: int = MAX_RECORD

    def __post_init__(self) -> None:
        check_duration("timeout", self.timeout)
        if type(self.max_record_bytes) is not int or self.max_record_bytes <= 0:
            raise SettingError(f"max_record_bytes must be a whole number of bytes above 0, not "
                               f"{shown(self.max_record_bytes)}")

    @contextmanager
    def opened(self, source: Named) -> Iterator[Source]:
        """The source, for the block. Raises `SourceUnavailable`, and `InvalidInput`, also for members of a cluster: see
        `cluster.py`."""
        if isinstance(source, Source):
            yield source
        elif (store := store_in(source)) is not None:
            from ..engine.source.local import LocalSource

            with LocalSource(store) as local:
                yield local
        elif isinstance(source, str):
            uri = parse(source)
            if uri.mode == "ha":
                raise InvalidInput(f"{uri} names members of a cluster, and one store is asked for here",
                                   hint="write single://host:port")
            host, port = uri.addresses[0]
            with connect(host, port, token=self.token, tls=self.tls, ca=self.ca, timeout=self.timeout,
                         max_record_bytes=self.max_record_bytes) as remote:
                yield remote
        else:
            raise InvalidInput(f"{shown(source)} is not a source", hint="pass a URI, an open store, or a Source")
