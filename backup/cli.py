"""The command line: `holdfast backup`, `restore`, `verify`, `info`, `log`, `slots`, `serve`, `check`, `cluster`, and
`repo`.

Thin: each command calls the library function of its name, which it imports only then. With `--json`, standard output
holds one JSON object (JSON lines for `log`), also for an error or wrong usage: `{"error": class, "message": ...,
"hint": ...}`. Progress goes to standard error. No error ends in a traceback.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine import errors
from .terminal import (
    DAMAGED,
    EXIT_CODES,
    INTERRUPTED,
    POINTS_LOST,
    complain,
    errors_told,
    plain,
    progress_told,
    say,
    say_done,
)

if TYPE_CHECKING:
    import typer
    from typer.core import TyperGroup

    from .engines import AnyEngine
else:
    try:
        import typer
        from typer.core import TyperGroup
    except ImportError:
        sys.exit("holdfast: the command line needs the extra packages of holdfast[cli]: pip install 'holdfast[cli]'")

from .arguments import (
    Ca,
    EngineName,
    EngineOptions,
    Json,
    Timeout,
    Tls,
    TokenFile,
    Uri,
    Wait,
    argument,
    backup_argument,
    engine_of,
    file_option,
    options_of,
    tell,
    time_of,
    token_of,
)
from .check_cli import check
from .cluster_cli import cluster_app
from .repository.cli import repo_app

_UsageError: Any = typer.BadParameter.__base__  # Typer exports only this subclass, and may contain its own Click
_CODES = [(0, "done"), *((code, text) for code, text, _ in sorted(EXIT_CODES)),
          (POINTS_LOST, "done, but restore points are gone that should have been kept: the report names them"),
          (INTERRUPTED, "interrupted")]
_HELP = f"Exit codes: {'; '.join(f'{code} {text}' for code, text in _CODES)}."


class _Commands(TyperGroup):
    """Reports wrong usage like any other error if JSON was asked for."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> Any:
        given = args = _by_new_names(sys.argv[1:] if args is None else args)
        as_json = standalone_mode and "--json" in given and "check" not in given[:1]
        try:
            done = super().main(args, prog_name, complete_var, standalone_mode and not as_json, windows_expand_args,
                                **extra)
        except _UsageError as error:
            if not as_json:
                raise
            wrong: Any = error
            hint = f"see {wrong.ctx.command_path if wrong.ctx is not None else 'holdfast'} --help"
            complain(errors.InvalidInput.__name__, wrong.format_message(), hint, (), as_json)
            sys.exit(wrong.exit_code)
        return sys.exit(done) if as_json else done


logger = logging.getLogger("holdfast")

_RENAMED = {"consumers": "slots", "--fold": "--compact", "--no-fold": "--no-compact", "--retire": "--promote"}


def _by_new_names(args: Sequence[str]) -> list[str]:
    """The arguments, with old names replaced by the current ones, each with a warning."""
    found, end = list(args), args.index("--") if "--" in args else len(args)
    for n, given in enumerate(found[:end]):
        old = given.partition("=")[0]
        if old in _RENAMED and (n == 0) == (old == "consumers"):
            logger.warning("%s is %s now; release 0.3 removes the old name", old, _RENAMED[old])
            found[n] = _RENAMED[old] + given[len(old):]
    return found


ARCHIVE_KEEP = "14 days, 16 GiB"
"""What `archiving.KEEP` is. That module is not loaded to show the help."""
_NAMES = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings=_NAMES, epilog=_HELP)
slots_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=_NAMES,
                        help="List the slots that a running store keeps log for, or drop one.")
app.add_typer(slots_app, name="slots")
app.add_typer(cluster_app, name="cluster")
app.add_typer(repo_app, name="repo")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def _holdfast(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Say which version this is.")] = False,
) -> None:
    """Back up, restore and look into Holdfast stores."""


@app.command()
def backup(
    context: typer.Context,
    uri: Uri,
    target: Annotated[Any, backup_argument("New or empty, or an earlier backup to bring up to date; or the URL of a "
                                           "repository, which is made if there is none.")],
    verify: Annotated[bool, typer.Option(help="Replay and check the copy after a full backup.")] = True,
    fallback: Annotated[bool, typer.Option(help="Take a full backup if the log for an incremental is gone.")] = True,
    incremental_only: Annotated[bool, typer.Option(
        "--incremental-only", help="Never take a full backup, not even the first time.")] = False,
    expect_store: Annotated[str | None, typer.Option(help="Refuse any other store or branch than this id.")] = None,
    accept_branch: Annotated[str | None, typer.Option(help="Continue if the source is on this other branch.")] = None,
    token_file: TokenFile = None,
    tls: Tls = None,
    ca: Ca = None,
    timeout: Timeout = 30.0,
    compact: Annotated[float, typer.Option(help="Compact the log into the image when it is larger than this share of "
                                             "the image.")] = 1.0,
    no_compact: Annotated[bool, typer.Option("--no-compact", help="Never compact.")] = False,
    keep_points: Annotated[str, typer.Option(help="How long restore points are kept: \"12 hours\", \"for ever\", "
                                                  "\"none\".", metavar="PERIOD")] = "7 days",
    full: Annotated[bool, typer.Option("--full", help="Take a full backup in any case, as a new generation.")] = False,
    check: Annotated[str, typer.Option(help="How much of the target is checked before log is added: sample, or "
                                            "all.")] = "sample",
    register: Annotated[bool, typer.Option(help="Have the source keep its log for the next run.")] = True,
    max_record_bytes: Annotated[int, typer.Option(help="The largest transaction that is accepted; raise it if the "
                                                       "store's own bound is larger.")] = 64 << 20,
    lease_ttl: Annotated[float, typer.Option(help="Seconds in which a run that died can be resumed.")] = 300.0,
    wait: Wait = 0.0,
    engine: EngineName = None,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Back up a running store: full the first time, incremental afterwards."""
    with errors_told(as_json):
        from .connection import Connection
        from .policy import Policy
        from .run import run

        connection = Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout,
                                max_record_bytes=max_record_bytes)
        if isinstance(target, str):
            _refuse_options_of_targets(context)
            from .repository import as_target

            with progress_told(as_json) as progress:
                image = as_target.backup(uri, target, connection=connection, accept_branch=accept_branch,
                                         lease_ttl=lease_ttl, progress=progress)
            tell(image, as_json)
            return
        if incremental_only:
            _refuse_first(target)
        policy = Policy(verify=verify, fallback=fallback and not incremental_only, check=check, register=register,
                        keep_points=keep_points, compact=None if no_compact else compact, lease_ttl=lease_ttl)
        with progress_told(as_json) as progress:
            report = run(uri, target, full=full, policy=policy, connection=connection, expect_store=expect_store,
                         accept_branch=accept_branch, wait=wait, engine=engine_of(engine),
                         options=options_of(engine_option), progress=progress)
        tell(report, as_json)
        if report.lost:
            raise SystemExit(POINTS_LOST)


_OF_TARGETS = ("verify", "fallback", "incremental_only", "expect_store", "compact", "no_compact", "keep_points", "full",
               "check", "register", "wait", "engine", "engine_option")


def _refuse_options_of_targets(context: typer.Context) -> None:
    """Raise `InvalidInput` if an option was given that a repository does not have."""
    for name in _OF_TARGETS:
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE":
            raise errors.InvalidInput(f"--{name.replace('_', '-')} is for a target in a directory, and this is a "
                                      "repository", hint="see holdfast repo --help for what a repository has instead")


def _refuse_first(target: Path) -> None:
    """Raise `TargetInvalid` if there is no backup to continue."""
    from .info import info as info_of

    try:
        found = info_of(target).kind
    except errors.StoreNotFound:
        found = "nothing"
    if found != "backup":
        raise errors.TargetInvalid(f"{target} holds {found}, and only an incremental was asked for",
                                   hint="leave out --incremental-only for the first backup")


@app.command()
def restore(
    target: Annotated[Any, backup_argument("The backup, or the URL of a repository.")],
    dest: Annotated[Path, argument("Where the store is to be; new or empty.")],
    txid: Annotated[int | None, typer.Option(help="Restore to this transaction.")] = None,
    at: Annotated[str | None, typer.Option(help="Restore to the last transaction at or before this time, with its time "
                                                "zone: 2026-03-01T12:00:00Z.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the store at DEST, once there is a new one.")] = False,
    wait: Wait = 0.0,
    engine: EngineName = None,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Make a store from a backup, as of its end, a transaction or a time."""
    with errors_told(as_json):
        from .restore import restore as restore_to

        if isinstance(target, str):
            from .repository.as_target import restore as restore_to  # type: ignore[assignment]  # same arguments
        when = time_of(at) if at is not None else None
        with progress_told(as_json) as progress:
            report = restore_to(target, dest, to_txid=txid, at=when, force=force, wait=wait,
                                engine=engine_of(engine), options=options_of(engine_option), progress=progress)
        tell(report, as_json)


@app.command()
def verify(target: Annotated[Any, backup_argument("The backup, or the URL of a repository, of which nothing is "
                                                  "replayed.")],
           wait: Wait = 0.0, engine: EngineName = None, engine_option: EngineOptions = None,
           as_json: Json = False) -> None:
    """Read every byte of a backup, replay it in a scratch place, and check the state that it gives."""
    with errors_told(as_json):
        if isinstance(target, str):
            from .repository.as_target import verify as verify_repository

            with progress_told(as_json) as progress:
                found = verify_repository(target, progress=progress)
            tell(found, as_json)
            if found.damaged:
                raise SystemExit(DAMAGED)
            return
        from .verify import verify as verify_whole

        with progress_told(as_json) as progress:
            report = verify_whole(target, wait=wait, engine=engine_of(engine), options=options_of(engine_option),
                                  progress=progress)
        tell(report, as_json)


@app.command()
def info(path: Annotated[Any, backup_argument("A store, a backup, or the URL of a repository.")],
         as_json: Json = False) -> None:
    """Say what a directory or a repository is, and to which points it can be restored."""
    with errors_told(as_json):
        from .info import info as info_of

        if isinstance(path, str):
            from .repository.as_target import info as info_of  # type: ignore[assignment]  # of the same use
        found = info_of(path)
        say(found.to_json() if as_json else str(found))


@app.command()
def log(
    path: Annotated[Path, argument("A store or a backup.")],
    first: Annotated[int | None, typer.Option("--from", help="First transaction.")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Last transaction.")] = None,
    as_json: Json = False,
) -> None:
    """List the transactions in a log: number, commit time, epoch, bytes, chain."""
    with errors_told(as_json):
        from .info import transactions
        from .report import iso, size_of

        epoch: int | None = None  # of the record before
        for record in transactions(path, first=first, last=last):
            attached = record.attachment.size if record.attachment is not None else 0
            if as_json:
                say(json.dumps({"txid": record.txid, "time": iso(record.time_us), "epoch": record.epoch,
                                "bytes": len(record.payload), "attachment_bytes": attached, "kit": record.is_kit,
                                "chain": record.chain.hex()}))
            else:
                bulk = f"  bulk load of {size_of(attached)}" if attached else ""
                kit = "" if not record.is_kit else "  mark" if record.epoch == epoch else (
                    f"  epoch {record.epoch} begins" if epoch is not None else "  kit record")
                say(f"{record.txid:>12}  {iso(record.time_us)}  epoch {record.epoch}  "
                    f"{len(record.payload):>10,} bytes  {record.chain.hex()}{bulk or kit}")
            epoch = record.epoch


@slots_app.command("list")
def list_slots(uri: Uri, token_file: TokenFile = None, tls: Tls = None, ca: Ca = None, timeout: Timeout = 30.0,
               as_json: Json = False) -> None:
    """List the slots that a running store keeps log for, and how much each holds back, the farthest behind first."""
    with errors_told(as_json):
        from .connection import Connection
        from .report import iso, size_of
        from .slots import slots

        connection = Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout)
        for one in slots(uri, connection=connection):
            if as_json:
                say(json.dumps({"id": one.id, "name": one.name, "txid": one.position.txid, "seen": iso(one.seen_us),
                                "held_bytes": one.held_bytes}))
            else:
                say(f"{one.id}  at transaction {one.position.txid}, last seen {iso(one.seen_us)}, "
                    f"holds back {size_of(one.held_bytes)}: {one.name}")


@slots_app.command("drop")
def drop_slot(uri: Uri, slot: Annotated[str, typer.Argument(help="Its id, as listed.", metavar="ID")],
              token_file: TokenFile = None, tls: Tls = None, ca: Ca = None, timeout: Timeout = 30.0,
              as_json: Json = False) -> None:
    """Stop keeping log for a slot, for instance that of a backup that was removed."""
    with errors_told(as_json):
        from .connection import Connection
        from .slots import drop_slot as drop

        drop(uri, slot, connection=Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout))
        say_done(json.dumps({"dropped": slot}) if as_json else f"{slot} is dropped: no log is kept for it")


@app.command()
def serve(
    directory: Annotated[Path, argument("The store.", metavar="DIR")],
    create: Annotated[bool, typer.Option("--create", help="If there is no store, make an empty one of the engine "
                                                          "that --engine names.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Also serve a backup: it becomes a store of its own and is "
                                                          "no longer a backup.")] = False,
    engine: EngineName = None,
    listen: Annotated[str | None, typer.Option(help="host:port of the backup service; :port means loopback. Default: "
                                                    "127.0.0.1:6362 or the next free one.")] = None,
    tls_certificate: Annotated[Path | None, file_option("PEM file of the service's certificate chain.")] = None,
    tls_key: Annotated[Path | None, file_option("PEM file of its key, if it is not in the same file.")] = None,
    token_file: Annotated[Path | None, file_option(
        "File with the credential that clients must have; else HOLDFAST_TOKEN of the environment, else one that "
             "only this user's own processes find.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Further host name by which clients know this machine; may "
                                                        "be repeated.")] = None,
    insecure: Annotated[bool, typer.Option(
        "--insecure", help="Listen off loopback without TLS, or without a credential of your own.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Serve the store as a member of this cluster.")] = None,
    member: Annotated[str | None, typer.Option(help="The member's name within the cluster.")] = None,
    coordinator: Annotated[str | None, typer.Option(help="etcd://host:port,host:port, etcds://… with TLS, "
                                                         "s3://bucket/prefix, or file:DIRECTORY.",
                                                    metavar="URI")] = None,
    coordinator_ca: Annotated[str | None, typer.Option(help="File of authorities for etcds://.")] = None,
    advertise: Annotated[str | None, typer.Option(help="host:port where the other members reach this one, if that is "
                                                       "not --listen.")] = None,
    cluster_token_file: Annotated[str | None, typer.Option(
        help="File with the token that members show each other. Default: the one in the cluster's document.")] = None,
    ca: Annotated[str | None, typer.Option(help="File of the authorities of the members' certificates.")] = None,
    ack: Annotated[str, typer.Option(help="When commits return: quorum, all, local, or any(n).")] = "quorum",
    floor: Annotated[str, typer.Option(help="With --create: how many voters must hold what is shown: quorum, or a "
                                            "number.")] = "quorum",
    ttl: Annotated[float, typer.Option(help="With --create: seconds without a sign of life of the primary before "
                                            "another takes over.")] = 10.0,
    failsafe: Annotated[bool, typer.Option("--failsafe", help="With --create: a primary that loses the coordinator "
                                                              "stays while enough voters confirm it.")] = False,
    no_failover: Annotated[bool, typer.Option("--no-failover", help="Never promote this member by itself.")] = False,
    no_sync: Annotated[bool, typer.Option("--no-sync", help="This member does not vote or count.")] = False,
    clone_from: Annotated[bool, typer.Option("--clone-from", help="New members prefer to copy from this one.")] = False,
    priority: Annotated[int, typer.Option(help="Of two voters, the one with the higher priority tries first.")] = 100,
    delay: Annotated[float, typer.Option(help="Show transactions only when they are so many seconds old, so that what "
                                              "was destroyed by mistake can still be read here.")] = 0.0,
    on_role_change: Annotated[str | None, typer.Option(
        metavar="PROGRAM", help="Run it after each change of role, with the role and the epoch as arguments.")] = None,
    branches: Annotated[str, typer.Option(help="What is kept of transactions that are cut from this member's log: "
                                               "keep_all, keep_last or keep_none.")] = "keep_all",
    archive: Annotated[str | None, typer.Option(metavar="REPO", help="Archive the log into this repository, from now "
                                                                     "on. Of a cluster, its primary does.")] = None,
    archive_interval: Annotated[float, typer.Option(help="Seconds from one archived piece to the next.")] = 1.0,
    archive_idle: Annotated[float, typer.Option(help="Seconds after which a piece says how far an idle store is "
                                                     "complete.")] = 60.0,
    archive_keep: Annotated[str, typer.Option(
        metavar="BOUND", help='How much log may wait for the archive: "10 GiB", "3 days, 10 GiB", "for ever".'
        )] = ARCHIVE_KEEP,
    archive_overrun: Annotated[str | None, typer.Option(
        help="What happens if more waits. hold: transactions wait. drop: what is not archived is given up by name. "
             "Default: drop; with --archive-ack: hold.")] = None,
    archive_ack: Annotated[bool, typer.Option("--archive-ack", help="Commits return once they are archived.")] = False,
    archive_gate: Annotated[bool, typer.Option("--archive-gate", help="With --archive-ack: readers see only what is "
                                                                      "archived.")] = False,
    accept_branch: Annotated[str | None, typer.Option(help="Accept a branch that is new to the repository.")] = None,
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


app.command()(check)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def main() -> None:
    """The console script."""
    if sys.stderr is not None:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain("holdfast: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with errors_told("--json" in sys.argv):
        app(prog_name="holdfast")
