"""The command line: `holdfast backup`, `restore`, `verify`, `info`, `log`, `serve`.

Thin: each command calls the library function of its name. With `--json` standard output holds one JSON object (JSON
lines for `log`), an error too, wrong usage included: `{"error": class, "message": ..., "hint": ...}`. Progress goes to
standard error, and only where that is a terminal. No error of Holdfast's ends in a traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine import errors
from ..engine.contract import Engine
from ..engine.plugins import find_engine
from ..engine.source.service import BackupService
from ..engine.store import Store
from ..replay.files import Progress, silent
from .info import info as info_of
from .info import transactions
from .kept import KEEP_POINTS
from .report import Told, iso, size_of
from .restore import restore as restore_to
from .run import run
from .verify import verify as verify_whole

if TYPE_CHECKING:
    import typer
    from typer.core import TyperGroup
else:
    try:
        import typer
        from typer.core import TyperGroup
    except ImportError:
        sys.exit("holdfast: the command line needs the extra packages of holdfast[cli]: pip install 'holdfast[cli]'")

EXIT_CODES: tuple[tuple[int, str, tuple[type[BaseException], ...]], ...] = (
    (3, "the source cannot be reached, went away, or its lease ran out: run it again",
     (errors.SourceUnavailable, errors.LeaseExpired, errors.TooManyLeases, errors.ClusterUnavailable)),
    (5, "inconsistent or damaged", (errors.Inconsistent, errors.Damaged)),
    (6, "no room on the disk", (errors.DiskFull,)),
    (7, "not enough memory, open files, threads or rights, or the disk failed: no byte is known to be damaged",
     (errors.LimitReached, errors.AccessDenied, errors.DeviceFailed)),
    (2, "wrong usage: an argument or a setting makes no sense", (errors.InvalidInput, errors.SettingError)),
    (4, "refused: the message says why; nothing was changed", (errors.HoldfastError,)),
    (1, "any other failure", (Exception,)),
)
"""Exit code, what it means, and the errors that lead to it. The first row that fits counts."""

POINTS_LOST, INTERRUPTED = 8, 130
_UsageError: Any = typer.BadParameter.__base__  # Typer exports this subclass only, and may bring a Click of its own
_CODES = [(0, "done"), *((code, text) for code, text, _ in sorted(EXIT_CODES)),
          (POINTS_LOST, "done, and restore points are missing that no period let go: the report names them"),
          (INTERRUPTED, "interrupted")]
_HELP = f"Exit codes: {'; '.join(f'{code} {text}' for code, text in _CODES)}."


class _Commands(TyperGroup):
    """Tells wrong usage as any other error where JSON is asked for."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> Any:
        given = sys.argv[1:] if args is None else args
        as_json = standalone_mode and "--json" in given
        try:
            done = super().main(args, prog_name, complete_var, standalone_mode and not as_json, windows_expand_args,
                                **extra)
        except _UsageError as error:
            if not as_json:
                raise
            wrong: Any = error
            hint = f"see {wrong.ctx.command_path if wrong.ctx is not None else 'holdfast'} --help"
            _complain(errors.InvalidInput.__name__, wrong.format_message(), hint, (), as_json)
            sys.exit(wrong.exit_code)
        return sys.exit(done) if as_json else done


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Back up, restore and look into Holdfast stores.", epilog=_HELP)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="Engine, by its registered name.", metavar="NAME")]
EngineOptions = Annotated[list[str] | None, typer.Option(help="Option of the engine; again for more.",
                                                         metavar="NAME=VALUE")]


def exit_code(error: BaseException) -> int:
    """The exit code for an error.

    >>> exit_code(errors.DiskFull("full")), exit_code(errors.ForeignStore("other")), exit_code(ValueError())
    (6, 4, 1)
    """
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _complain("Interrupted", "interrupted", "run it again", (), as_json)
        raise typer.Exit(INTERRUPTED) from None
    except errors.HoldfastError as error:
        findings = getattr(error, "findings", ())
        _complain(type(error).__name__, error.message, error.hint, findings, as_json)
        raise typer.Exit(exit_code(error)) from None
    except OSError as error:
        _complain(type(error).__name__, str(error), "", (), as_json)
        raise typer.Exit(1) from None


def _complain(kind: str, message: str, hint: str, findings: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        _print(json.dumps({"error": kind, "message": message, "hint": hint, "findings": list(findings)}))
        return
    lines = [f"holdfast: {message}", *(f"  {f}" for f in findings), *([f"  {hint}"] if hint else [])]
    sys.stderr.write("\n".join(lines) + "\n")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(report: Told, as_json: bool) -> None:
    _print(report.to_json() if as_json else str(report))


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each stage, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn(),
              TextColumn("{task.fields[shown]}"), TimeRemainingColumn(), console=Console(stderr=True),
              transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, shown="", total=total)
            counted = stage in ("log", "replay")
            shown = f"{done:,} of {total:,} transactions" if counted else f"{size_of(done)} of {size_of(total)}"
            bars.update(tasks[stage], completed=done, total=total, shown=shown)

        yield progress


@app.command()
def backup(
    uri: Annotated[str, typer.Argument(help="Of the running store: single://host[:port].", metavar="URI")],
    target: Annotated[Path, typer.Argument(help="New or empty, or an earlier backup to bring up to date.")],
    verify: Annotated[bool, typer.Option(help="Replay and check the copy after a full backup.")] = True,
    fallback: Annotated[bool, typer.Option(help="Take a full one where the log for an incremental is gone.")] = True,
    expect_store: Annotated[str | None, typer.Option(help="Refuse any other store or branch than this id.")] = None,
    accept_branch: Annotated[str | None, typer.Option(help="Go on, the source being on this other branch.")] = None,
    token: Annotated[str | None, typer.Option(help="Credential of the source. Default: what a service of this user "
                                                   "here has published, else HOLDFAST_TOKEN.")] = None,
    tls: Annotated[bool | None, typer.Option(
        "--tls/--no-tls", show_default=False,
        help="Default: TLS off loopback. --no-tls sends the token in the clear.")] = None,
    ca: Annotated[Path | None, typer.Option(help="File of certificate authorities for TLS.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take.")] = 30.0,
    fold: Annotated[float, typer.Option(help="Fold the log into the image when it is larger than this share of "
                                             "it.")] = 1.0,
    no_fold: Annotated[bool, typer.Option("--no-fold", help="Never fold.")] = False,
    keep_points: Annotated[str, typer.Option(help="How long restore points are kept: \"12 hours\", \"for ever\", "
                                                  "\"none\".", metavar="PERIOD")] = KEEP_POINTS,
    full: Annotated[bool, typer.Option("--full", help="Take a full one, as a new generation, in any case.")] = False,
    check: Annotated[str, typer.Option(help="How the target is looked at before log is added: sample, or all of "
                                            "it.")] = "sample",
    register: Annotated[bool, typer.Option(help="Have the source keep its log for the next run.")] = True,
    lease_ttl: Annotated[float, typer.Option(help="Seconds for which the source waits for a run that died.")] = 300.0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for somebody else at the target.")] = 0.0,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Back up a running store: full the first time, incremental afterwards."""
    with _errors(as_json):
        with _bars() as progress:
            report = run(uri, target, verify=verify, fallback=fallback, expect_store=expect_store,
                         accept_branch=accept_branch, token=token, tls=tls, ca=ca, timeout=timeout,
                         fold=None if no_fold else fold,
                         keep_points=keep_points, full=full, check=check, register=register, lease_ttl=lease_ttl,
                         wait=wait, options=_options(engine_option), progress=progress)
        _tell(report, as_json)
        if report.lost:
            raise typer.Exit(POINTS_LOST)


@app.command()
def restore(
    target: Annotated[Path, typer.Argument(help="The backup.")],
    dest: Annotated[Path, typer.Argument(help="Where the store is to be; new or empty.")],
    txid: Annotated[int | None, typer.Option(help="Restore to this transaction.")] = None,
    at: Annotated[str | None, typer.Option(help="Restore to the last transaction at or before this time, with its time "
                                                "zone: 2026-03-01T12:00:00Z.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the store at DEST, once there is a new one.")] = False,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Make a store from a backup, as of its end, a transaction or a time."""
    with _errors(as_json):
        when = _time(at) if at is not None else None
        with _bars() as progress:
            report = restore_to(target, dest, to_txid=txid, at=when, force=force, options=_options(engine_option),
                                progress=progress)
        _tell(report, as_json)


def _options(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, each value as JSON where it is some, and as text otherwise.

    >>> _options(["map_size=1073741824", "name=ada", 'also="7"'])
    {'map_size': 1073741824, 'name': 'ada', 'also': '7'}
    """
    options: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise errors.InvalidInput(f"{text!r} is no engine option", hint="write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise errors.InvalidInput(f"{text!r} is no time", hint="write 2026-03-01T12:00:00Z") from None


@app.command()
def verify(target: Annotated[Path, typer.Argument(help="The backup.")], engine_option: EngineOptions = None,
           as_json: Json = False) -> None:
    """Read every byte of a backup, replay it in a scratch place, and check the state that comes of it."""
    with _errors(as_json):
        with _bars() as progress:
            report = verify_whole(target, options=_options(engine_option), progress=progress)
        _tell(report, as_json)


@app.command()
def info(path: Annotated[Path, typer.Argument(help="A store or a backup.")], as_json: Json = False) -> None:
    """Say what a directory is, and which points it can be restored to."""
    with _errors(as_json):
        _tell(info_of(path), as_json)


@app.command()
def log(
    path: Annotated[Path, typer.Argument(help="A store or a backup.")],
    first: Annotated[int | None, typer.Option("--from", help="First transaction.")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Last transaction.")] = None,
    as_json: Json = False,
) -> None:
    """List the transactions in a log: number, commit time, epoch, bytes, chain."""
    with _errors(as_json):
        for record in transactions(path, first=first, last=last):
            attached = record.attachment.size if record.attachment is not None else 0
            if as_json:
                _print(json.dumps({"txid": record.txid, "time": iso(record.time_us), "epoch": record.epoch,
                                   "bytes": len(record.payload), "attachment_bytes": attached,
                                   "chain": record.chain.hex()}))
            else:
                bulk = f"  bulk load of {size_of(attached)}" if attached else ""
                _print(f"{record.txid:>12}  {iso(record.time_us)}  epoch {record.epoch}  "
                       f"{len(record.payload):>10,} bytes  {record.chain.hex()}{bulk}")


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="The store.", metavar="DIR")],
    create: Annotated[bool, typer.Option("--create", help="Make an empty store of the engine that --engine names "
                                                          "where there is none.")] = False,
    retire: Annotated[bool, typer.Option("--retire", help="Serve a backup too, which becomes a store of its own then "
                                                          "and is no backup any more.")] = False,
    engine: EngineName = None,
    listen: Annotated[str | None, typer.Option(help="host:port of the backup service; :port means loopback. Default: "
                                                    "127.0.0.1:6362 or the next free one.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file of the service's certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key, where it is not in the same file.")] = None,
    token_file: Annotated[Path | None, typer.Option(
        help="File with the credential that clients must have; else HOLDFAST_TOKEN of the environment, else one that "
             "only this user's own processes find.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Further host name by which clients know this machine; again "
                                                        "for more.")] = None,
    insecure: Annotated[bool, typer.Option(
        "--insecure", help="Listen off loopback without TLS, or without a credential of your own.")] = False,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Open a store and serve backups of it until SIGTERM or SIGINT."""
    with _errors(as_json):
        kind = find_engine(_engine_to_serve(directory, engine, create, retire))
        service = BackupService(online_backup_server=listen, tls_certificate=tls_certificate, tls_key=tls_key,
                                token=_token(token_file), names=tuple(name or ()), insecure=insecure)
        _serve(directory, kind, service, create, _options(engine_option), as_json, lambda stop: stop.wait())


def _engine_to_serve(directory: Path, engine: str | None, create: bool, retire: bool) -> str:
    """The name of the engine to open a directory with.

    Raises:
        InvalidInput: a store is to be made, and it is not said of which engine.
        StoreNotFound: there is none, or a backup that is to stay one.
    """
    if create and engine is None:
        raise errors.InvalidInput("--create does not say of which engine", hint="name it: --engine graph")
    try:
        found = info_of(directory)
    except errors.StoreNotFound as error:
        if create and engine is not None:
            return engine
        error.hint = "check the path, or make one with --create"
        raise
    if found.kind == "backup" and not retire:
        raise errors.StoreNotFound(f"{directory} is a backup, and no store", hint="restore it, and serve what comes of "
                                   "that; or say --retire: then it becomes a store and takes no more backups")
    return engine or found.engine


def _token(file: Path | None) -> str | None:
    """The credential that a file or the environment holds. Raises `SettingError`."""
    if file is None:
        return os.environ.get("HOLDFAST_TOKEN") or None
    try:
        return file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.SettingError(f"no token can be read from {file}: {error}") from error


def _serve(directory: Path, kind: type[Engine[Any, Any]], service: BackupService, create: bool, options: dict[str, Any],
           as_json: bool, wait: Callable[[threading.Event], Any]) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Store.open(directory, kind, create=create, plugins=[service], options=options) as store:
        ready = {"directory": str(directory), "engine": kind.name, "store_id": store.history.store_id.hex(),
                 "backup_uri": store.backup_uri}
        _print(json.dumps(ready) if as_json else
               f"serving {directory} ({kind.name}) at {store.backup_uri or 'no port: the backup service is off'}")
        wait(stop)


def main() -> None:
    """The console script."""
    logging.basicConfig(level=logging.WARNING, format="holdfast: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the bytes of a path need be no characters
    app(prog_name="holdfast")
