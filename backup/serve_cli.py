"""`holdfast serve`: a store or a member of a cluster, until SIGTERM or SIGINT."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine import errors
from .arguments import EngineName, EngineOptions, Json, argument, engine_of, file_option, options_of, token_of
from .command_line import Option
from .terminal import errors_told, say_done

if TYPE_CHECKING:
    from .engines import AnyEngine

ARCHIVE_KEEP = "14 days, 16 GiB"
"""What `archiving.KEEP` is. That module is not loaded to show the help."""


def serve(
    directory: Annotated[Path, argument("The store.", metavar="DIR")],
    create: Annotated[bool, Option("--create", help="If there is no store, make an empty one of the engine "
                                                    "that --engine names.")] = False,
    promote: Annotated[bool, Option("--promote", help="Also serve a backup: it becomes a store of its own and is "
                                                    "no longer a backup.")] = False,
    engine: EngineName = None,
    listen: Annotated[str | None, Option(help="host:port of the backup service; :port means loopback. Default: "
                                              "127.0.0.1:6362 or the next free one.")] = None,
    tls_certificate: Annotated[Path | None, file_option("PEM file of the service's certificate chain.")] = None,
    tls_key: Annotated[Path | None, file_option("PEM file of its key, if it is not in the same file.")] = None,
    token_file: Annotated[Path | None, file_option(
        "File with the credential that clients must have; else HOLDFAST_TOKEN of the environment, else one that "
             "only this user's own processes find.")] = None,
    name: Annotated[list[str] | None, Option(help="Further host name by which clients know this machine; may "
                                                  "be repeated.")] = None,
    insecure: Annotated[bool, Option(
        "--insecure", help="Listen off loopback without TLS, or without a credential of your own.")] = False,
    cluster: Annotated[str | None, Option(help="Serve the store as a member of this cluster.")] = None,
    member: Annotated[str | None, Option(help="The member's name within the cluster.")] = None,
    coordinator: Annotated[str | None, Option(help="etcd://host:port,host:port, etcds://… with TLS, "
                                                   "s3://bucket/prefix, or file:DIRECTORY.",
                                              metavar="URI")] = None,
    coordinator_ca: Annotated[str | None, Option(help="File of authorities for etcds://.")] = None,
    advertise: Annotated[str | None, Option(help="host:port where the other members reach this one, if that is "
                                                 "not --listen.")] = None,
    cluster_token_file: Annotated[str | None, Option(
        help="File with the token that members show each other. Default: the one in the cluster's document.")] = None,
    ca: Annotated[str | None, Option(help="File of the authorities of the members' certificates.")] = None,
    ack: Annotated[str, Option(help="When commits return: quorum, all, local, or any(n).")] = "quorum",
    floor: Annotated[str, Option(help="With --create: how many voters must hold what is shown: quorum, or a "
                                      "number.")] = "quorum",
    ttl: Annotated[float, Option(help="With --create: seconds without a sign of life of the primary before "
                                      "another takes over.")] = 10.0,
    failsafe: Annotated[bool, Option("--failsafe", help="With --create: a primary that loses the coordinator "
                                                        "stays while enough voters confirm it.")] = False,
    no_failover: Annotated[bool, Option("--no-failover", help="Never promote this member by itself.")] = False,
    no_sync: Annotated[bool, Option("--no-sync", help="This member does not vote or count.")] = False,
    clone_from: Annotated[bool, Option("--clone-from", help="New members prefer to copy from this one.")] = False,
    priority: Annotated[int, Option(help="Of two voters, the one with the higher priority tries first.")] = 100,
    delay: Annotated[float, Option(help="Show transactions only when they are so many seconds old, so that what "
                                        "was destroyed by mistake can still be read here.")] = 0.0,
    on_role_change: Annotated[str | None, Option(
        metavar="PROGRAM", help="Run it after each change of role, with the role and the epoch as arguments.")] = None,
    branches: Annotated[str, Option(help="What is kept of transactions that are cut from this member's log: "
                                         "keep_all, keep_last or keep_none.")] = "keep_all",
    archive: Annotated[str | None, Option(metavar="REPO", help="Archive the log into this repository, from now "
                                                               "on. Of a cluster, its primary does.")] = None,
    archive_interval: Annotated[float, Option(help="Seconds from one archived piece to the next.")] = 1.0,
    archive_idle: Annotated[float, Option(help="Seconds after which a piece says how far an idle store is "
                                               "complete.")] = 60.0,
    archive_keep: Annotated[str, Option(
        metavar="BOUND", help='How much log may wait for the archive: "10 GiB", "3 days, 10 GiB", "for ever".'
        )] = ARCHIVE_KEEP,
    archive_overrun: Annotated[str | None, Option(
        help="What happens if more waits. hold: transactions wait. drop: what is not archived is given up by name. "
             "Default: drop; with --archive-ack: hold.")] = None,
    archive_ack: Annotated[bool, Option("--archive-ack", help="Commits return once they are archived.")] = False,
    archive_gate: Annotated[bool, Option("--archive-gate", help="With --archive-ack: readers see only what is "
                                                                "archived.")] = False,
    accept_branch: Annotated[str | None, Option(help="Accept a branch that is new to the repository.")] = None,
    key_file: Annotated[Path | None, file_option("With --archive: file with the repository's key.")] = None,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Open a store and serve backups of it, or be a member of a cluster, until SIGTERM or SIGINT."""
    with errors_told(as_json):
        if cluster is not None:
            from .cluster_cli import archive_of_member, serve_member

            if archive_overrun is not None or archive_gate or archive_keep != ARCHIVE_KEEP:
                raise errors.InvalidInput("--archive-keep, --archive-overrun and --archive-gate are for a single store",
                                          hint="leave them out")
            if archive is None and (archive_ack or key_file is not None):
                raise errors.InvalidInput("--archive-ack and --key-file need --archive")
            members: list[Any] = [] if archive is None else [archive_of_member(
                archive, ack=archive_ack, key_file=key_file, interval=archive_interval, idle=archive_idle,
                accept_branch=accept_branch)]
            if member is None or coordinator is None or listen is None:
                raise errors.InvalidInput("--cluster needs --member, --listen and --coordinator",
                                          hint="see holdfast serve --help")
            serve_member(directory, engine_of(engine) or _engine_of_member(directory), create,
                         options_of(engine_option), as_json, coordinator_ca, cluster=cluster, name=member,
                         listen=listen, advertise=advertise, coordinator=coordinator, ack=ack,
                         floor=int(floor) if floor.isdigit() else floor, ttl=ttl,
                         failsafe=failsafe, no_failover=no_failover, no_sync=no_sync, clone_from=clone_from,
                         priority=priority, delay=delay, on_role_change=on_role_change, branches=branches,
                         token=token_of(cluster_token_file), backup_token=_own_token(token_file),
                         tls_certificate=tls_certificate, tls_key=tls_key, ca=ca,
                         insecure=insecure, plugins=members)
            return
        from ..engine.source.http.service import BackupService

        kind = _engine_to_serve(directory, engine_of(engine), create, promote)
        service = BackupService(online_backup_server=listen, tls_certificate=tls_certificate, tls_key=tls_key,
                                token=_own_token(token_file), names=tuple(name or ()), insecure=insecure)
        plugins: list[Any] = [service]
        if archive is not None:
            from .repository.archiving import ArchiveAckPlugin, ArchivePlugin
            from .repository.cli import key_of

            how: dict[str, Any] = {"interval": archive_interval, "idle": archive_idle, "keep": archive_keep,
                                   "key": key_of(key_file), "accept_branch": accept_branch}
            if not archive_ack:
                if archive_gate:
                    raise errors.InvalidInput("--archive-gate needs --archive-ack")
                how["overrun"] = archive_overrun or "drop"
                plugins.append(ArchivePlugin(archive, **how))
            elif archive_overrun not in (None, "hold"):
                raise errors.InvalidInput("with --archive-ack, transactions are held at the bound, never given up",
                                          hint="leave out --archive-overrun")
            else:
                plugins.append(ArchiveAckPlugin(archive, gates_publication=archive_gate, **how))
        elif archive_ack or archive_gate or archive_overrun is not None or key_file is not None:
            raise errors.InvalidInput("--archive-ack, --archive-gate, --archive-overrun and --key-file need --archive")
        _serve(directory, kind, plugins, create, options_of(engine_option), as_json, lambda stop: stop.wait())


def _engine_of_member(directory: Path) -> AnyEngine:
    """The engine of a member, if none is given: what its store says; graph for an empty directory."""
    from ..engine.contract.registry import find_engine
    from .info import info as info_of

    try:
        name = info_of(directory).engine
    except errors.StoreNotFound:
        name = "graph"
    found: AnyEngine = find_engine(name)
    return found


def _engine_to_serve(directory: Path, engine: AnyEngine | None, create: bool, promote: bool) -> AnyEngine:
    """The engine to open a directory with: the one that is given, or what is in the directory says.

    Raises:
        InvalidInput: a store should be made, but no engine was named.
        StoreNotFound: there is no store, or a backup that was not to be promoted.
    """
    if create and engine is None:
        raise errors.InvalidInput("--create needs the name of an engine", hint="name it: --engine graph")
    from ..engine.contract.registry import find_engine
    from .info import info as info_of

    try:
        found = info_of(directory)
    except errors.StoreNotFound as error:
        if create and engine is not None:
            return engine
        error.hint = "check the path, or make one with --create"
        raise
    if found.kind == "backup" and not promote:
        raise errors.StoreNotFound(f"{directory} is a backup, not a store", hint="restore it and serve the restored "
                                   "store; or pass --promote: then it becomes a store and takes no more backups")
    if engine is not None:
        return engine
    named: AnyEngine = find_engine(found.engine)
    return named


def _own_token(file: Path | None) -> str | None:
    """A service's credential, from a file or the environment."""
    return token_of(file) if file is not None else os.environ.get("HOLDFAST_TOKEN") or None


def _serve(directory: Path, kind: AnyEngine, plugins: list[Any], create: bool,
           options: dict[str, Any], as_json: bool, wait: Callable[[Any], Any]) -> None:
    from ..engine.env import REAL
    from ..engine.store.store import Store

    stop = REAL.scheduler.event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Store.open(directory, kind, create=create, plugins=plugins, options=options) as store:
        ready = {"directory": str(directory), "engine": kind.name, "store_id": store.history.store_id.hex(),
                 "backup_uri": store.backup_uri}
        say_done(json.dumps(ready) if as_json else
                 f"serving {directory} ({kind.name}) at {store.backup_uri or 'no port: the backup service is off'}")
        wait(stop)
