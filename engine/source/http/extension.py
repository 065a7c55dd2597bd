"""Further requests on the service's port, which a plugin answers under a credential of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..interface import MemberInfo

if TYPE_CHECKING:
    from aiohttp import web

    from .routes import Server


class Extension(Protocol):
    """What a plugin adds to a service.

    Attributes:
        prefix: requests whose path begins with it need `token`: the service's own token does not open them. `token`
            opens all other requests too.
        token: the credential of those requests, of 16 printable ASCII characters or more. None if it is not known yet:
            they are told to come back, since nobody's token is wrong then.
        open_paths: exact paths that need no token. The check of the Host header applies to them too.
    """

    prefix: str
    open_paths: frozenset[str]

    @property
    def token(self) -> str | None: ...

    def table(self, server: Server) -> list[web.RouteDef]:
        """The routes. Called once, on the thread of the event loop, before the first request."""
        ...

    def metrics(self) -> str:
        """Lines in Prometheus' text format, added to the service's own. Called on a thread that may block."""
        ...

    def member(self) -> MemberInfo | None:
        """What is said of this source as a member of a cluster. Called on a thread that may block."""
        ...

    def stopped(self) -> None:
        """The service has stopped, and all connections are closed."""
        ...
