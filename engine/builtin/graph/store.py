"""The graph store: `Store` with the graph engine and the backup service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from ... import renamed
from ...contract.plugin import Plugin
from ...contract.registry import listed
from ...env import REAL, Env
from ...source.http.service import BackupService
from ...store.settings import Settings
from ...store.store import Store
from .engine import GraphEngine
from .transaction import GraphTransaction
from .view import GraphView


class GraphStore(Store[GraphTransaction, GraphView]):
    """A property graph in one directory. `GraphTransaction` has the calls that write, `GraphView` those that read."""

    @classmethod
    @renamed.arguments(seams="env")
    def open(  # type: ignore[override]  # a preset: the engine is given, and the service's settings are added
        cls, directory: str | Path, *, create: bool = True, read_only: bool = False,
        plugins: Iterable[Plugin | str] = (), options: Mapping[str, Any] | None = None,
        settings: Settings | None = None, online_backup_enabled: bool = True, online_backup_server: str | None = None,
        tls_certificate: str | Path | None = None, tls_key: str | Path | None = None, token: str | None = None,
        insecure: bool = False, env: Env = REAL,
    ) -> Self:
        """Open the graph in `directory`, and recover it.

        Args:
            directory, create, read_only, plugins, options, settings, env: as `Store.open`.
            online_backup_enabled: serve backups. A store that is open read-only does not.
            online_backup_server: `host:port`, or `:port` for loopback. If None, 127.0.0.1:6362 or the next free port up
                to 6372.
            tls_certificate, tls_key, token, insecure: as `BackupService`.

        Raises:
            As `Store.open`; `SettingError` if the given address is taken or not safe.
        """
        service = BackupService(online_backup_enabled=online_backup_enabled and not read_only,
                                online_backup_server=online_backup_server, tls_certificate=tls_certificate,
                                tls_key=tls_key, token=token, insecure=insecure)
        return super().open(directory, GraphEngine, create=create, read_only=read_only,
                            plugins=[service, *listed(plugins)], options=options, settings=settings, env=env)
