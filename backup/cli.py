"""The command line: `holdfast backup`, `restore`, `verify`, `info`, `log`, `slots`, `serve`, `check`, `import`,
`cluster`, and `repo`.

Thin: each command calls the library function of its name, which it imports only then. With `--json`, standard output
holds one JSON object (JSON lines for `log`), also for an error or wrong usage: `{"error": class, "message": ...,
"hint": ...}`. Progress goes to standard error. No error ends in a traceback.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from ..engine import errors
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
    options_of,
    tell,
    time_of,
    token_of,
)
from .command_line import Argument, Commands, Given, Option
from .terminal import (
    DAMAGED,
    EXIT_CODES,
    INTERRUPTED,
    POINTS_LOST,
    errors_told,
    plain,
    progress_told,
    say,
    say_done,
)

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


_CODES = [(0, "done"), *((code, text) for code, text, _ in sorted(EXIT_CODES)),
          (POINTS_LOST, "done, but restore points are gone that should have been kept: the report names them"),
          (INTERRUPTED, "interrupted")]


def _version() -> None:
    from importlib.metadata import version

    say(f"holdfast {version('holdfast')}")


app = Commands(help="Back up, restore and look into Holdfast stores.",
               epilog=f"Exit codes: {'; '.join(f'{code} {text}' for code, text in _CODES)}.",
               switches={"--version": ("Say which version this is.", _version)})


@app.command("backup")
def backup(
    uri: Uri,
    target: Annotated[Any, backup_argument("New or empty, or an earlier backup to bring up to date; or the URL of a "
                                           "repository, which is made if there is none.")],
    verify: Annotated[bool, Option(help="Replay and check the copy after a full backup.")] = True,
    fallback: Annotated[bool, Option(help="Take a full backup if the log for an incremental is gone.")] = True,
    incremental_only: Annotated[bool, Option(
        "--incremental-only", help="Never take a full backup, not even the first time.")] = False,
    expect_store: Annotated[str | None, Option(help="Refuse any other store or branch than this id.")] = None,
    accept_branch: Annotated[str | None, Option(help="Continue if the source is on this other branch.")] = None,
    token_file: TokenFile = None,
    tls: Tls = None,
    ca: Ca = None,
    timeout: Timeout = 30.0,
    compact: Annotated[float, Option(help="Compact the log into the image when it is larger than this share of "
                                       "the image.")] = 1.0,
    no_compact: Annotated[bool, Option("--no-compact", help="Never compact.")] = False,
    keep_points: Annotated[str, Option(help="How long restore points are kept: \"12 hours\", \"for ever\", "
                                            "\"none\".", metavar="PERIOD")] = "7 days",
    full: Annotated[bool, Option("--full", help="Take a full backup in any case, as a new generation.")] = False,
    check: Annotated[str, Option(help="How much of the target is checked before log is added: sample, or "
                                      "all.")] = "sample",
    register: Annotated[bool, Option(help="Have the source keep its log for the next run.")] = True,
    max_record_bytes: Annotated[int, Option(help="The largest transaction that is accepted; raise it if the "
                                                 "store's own bound is larger.")] = 64 << 20,
    lease_ttl: Annotated[float, Option(help="Seconds in which a run that died can be resumed.")] = 300.0,
    wait: Wait = 0.0,
    engine: EngineName = None,
    engine_option: EngineOptions = None,
    as_json: Json = False,
    given: Given = frozenset(),
) -> None:
    """Back up a running store: full the first time, incremental afterwards."""
    with errors_told(as_json):
        from .connection import Connection
        from .policy import Policy
        from .run import run

        connection = Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout,
                                max_record_bytes=max_record_bytes)
        if isinstance(target, str):
            _refuse_options_of_targets(given)
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


def _refuse_options_of_targets(given: frozenset[str]) -> None:
    """Raise `InvalidInput` if an option was given that a repository does not have."""
    for name in _OF_TARGETS:
        if name in given:
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


@app.command("restore")
def restore(
    target: Annotated[Any, backup_argument("The backup, or the URL of a repository.")],
    dest: Annotated[Path, argument("Where the store is to be; new or empty.")],
    txid: Annotated[int | None, Option(help="Restore to this transaction.")] = None,
    at: Annotated[str | None, Option(help="Restore to the last transaction at or before this time, with its time "
                                          "zone: 2026-03-01T12:00:00Z.")] = None,
    force: Annotated[bool, Option("--force", help="Replace the store at DEST, once there is a new one.")] = False,
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


@app.command("verify")
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


@app.command("info")
def info(path: Annotated[Any, backup_argument("A store, a backup, or the URL of a repository.")],
         as_json: Json = False) -> None:
    """Say what a directory or a repository is, and to which points it can be restored."""
    with errors_told(as_json):
        from .info import info as info_of

        if isinstance(path, str):
            from .repository.as_target import info as info_of  # type: ignore[assignment]  # of the same use
        found = info_of(path)
        say(found.to_json() if as_json else str(found))


@app.command("log")
def log(
    path: Annotated[Path, argument("A store or a backup.")],
    first: Annotated[int | None, Option("--from", help="First transaction.")] = None,
    last: Annotated[int | None, Option("--to", help="Last transaction.")] = None,
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


slots_app = Commands(help="List the slots that a running store keeps log for, or drop one.")


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
def drop_slot(uri: Uri, slot: Annotated[str, Argument(help="Its id, as listed.", metavar="ID")],
              token_file: TokenFile = None, tls: Tls = None, ca: Ca = None, timeout: Timeout = 30.0,
              as_json: Json = False) -> None:
    """Stop keeping log for a slot, for instance that of a backup that was removed."""
    with errors_told(as_json):
        from .connection import Connection
        from .slots import drop_slot as drop

        drop(uri, slot, connection=Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout))
        say_done(json.dumps({"dropped": slot}) if as_json else f"{slot} is dropped: no log is kept for it")


app.add_later("serve", ".serve_cli", "serve")
app.add_later("check", ".check_cli", "check")
app.add_later("import", ".import_cli", "import_")
app.add("slots", slots_app)
app.add_later("cluster", ".cluster_cli", "cluster_app")
app.add_later("repo", ".repository.cli", "repo_app")


def answer(given: Sequence[str]) -> None:
    """Run the command that these arguments name. Raises `SystemExit`, unless it ends well."""
    with errors_told("--json" in given and "check" not in given[:1]):
        app.run(_by_new_names(given), "holdfast")


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def main() -> None:
    """The console script."""
    if sys.stderr is not None:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain("holdfast: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    answer(sys.argv[1:])
