"""The arguments that several commands have, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine import errors
from .command_line import Argument, Option
from .terminal import say_done

if TYPE_CHECKING:
    from datetime import datetime

    from .engines import AnyEngine
    from .report import Told


def path_of(text: str) -> Path:
    """A path as it was given; the command checks whether it can be used. An empty path is refused: most likely it is a
    shell variable that is not set, and does not mean the current directory."""
    if not text:
        raise errors.InvalidInput("the path is empty")
    return Path(text)


def argument(help: str, **more: Any) -> Any:
    return Argument(parser=path_of, help=help, **more)


def backup_of(text: str) -> Path | str:
    """A path as it was given, or the URL of a repository."""
    return text if "://" in text else path_of(text)


def backup_argument(help: str) -> Any:
    return Argument(parser=backup_of, help=help)


def file_option(help: str) -> Any:
    return Option(parser=path_of, help=help)


Json = Annotated[bool, Option("--json", help="Print JSON instead of words.")]
EngineName = Annotated[str | None, Option("--engine", metavar="ENGINE",
                                          help="The engine's registered name, or module:Class.")]
TokenFile = Annotated[Path | None, file_option(
    "File with the credential of the source. Default: what a service of this user here has published, else "
         "HOLDFAST_TOKEN of the environment. It is not an argument, since every user can see those.")]
Tls = Annotated[bool | None, Option("--tls/--no-tls", help="Default: TLS off loopback. --no-tls sends the "
                                                           "token in the clear.")]
Ca = Annotated[Path | None, file_option("File of certificate authorities for TLS.")]
Timeout = Annotated[float, Option(help="Seconds that one answer may take; ten times as long if the source must "
                                       "make an image first.")]
Wait = Annotated[float, Option(help="Seconds to wait if another process uses the target.")]
Uri = Annotated[str, Argument(help="Of the running store: single://host[:port], or "
                                   "ha://host:port,host:port for a cluster.", metavar="URI")]
EngineOptions = Annotated[list[str] | None, Option(help="Option of the engine; may be repeated.",
                                                   metavar="NAME=VALUE")]


def tell(report: Told, as_json: bool) -> None:
    say_done(report.to_json() if as_json else str(report))


def engine_of(given: str | None) -> AnyEngine | None:
    """The engine that --engine names. Raises `SettingError`."""
    from .engines import engine_given

    return engine_given(given)


def options_of(given: list[str] | None) -> dict[str, Any]:
    """Options from NAME=VALUE. A value that is valid JSON is read as JSON, any other as text.

    >>> options_of(["map_size=1073741824", "name=ada", 'also="7"'])
    {'map_size': 1073741824, 'name': 'ada', 'also': '7'}
    """
    options: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise errors.InvalidInput(f"{text!r} is not an engine option", hint="write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def time_of(text: str) -> datetime:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise errors.InvalidInput(f"{text!r} is not a time", hint="write 2026-03-01T12:00:00Z") from None


def token_of(file: Path | str | None) -> str | None:
    """The credential that a file holds. Raises `SettingError`."""
    if file is None:
        return None
    from ..engine.env import REAL

    try:
        return REAL.files.read(Path(file)).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.SettingError(f"no token can be read from {file}: {error}") from error
