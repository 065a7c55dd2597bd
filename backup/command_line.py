"""Commands that are declared by the signatures of functions, read by the standard library's `argparse`.

A parameter of such a function is `Annotated` with an `Argument`, which is given by its place, or with an `Option`. Its
type says how a text is read, and its default that it may be left out. The docstring is the command's help. Only the
command that is called is looked at, so the others cost nothing; one in another module is imported only then.

Typer was used before. To import it and to prepare all commands took nine times as many instructions as Python takes to
start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import NoneType
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from ..engine.errors import InvalidInput

F = TypeVar("F", bound=Callable[..., None])

_HELP = ("-h", "--help")
_NARROW = partial(argparse.HelpFormatter, width=80)
"""For parsers that show no help. Each option makes a formatter, which else imports `shutil` to measure the terminal."""


class Argument:
    """What a command is given by its place.

    Attributes:
        help: what it is.
        metavar: its name for people. Default: the parameter's, in capitals.
        parser: reads the text, and raises `InvalidInput` or `ValueError`. Default: the parameter's type.
    """

    def __init__(self, *, help: str, metavar: str = "", parser: Callable[[str], Any] | None = None) -> None:
        self.help, self.metavar, self.parser = help, metavar, parser


class Option(Argument):
    """What a command is given by name.

    Attributes:
        name: such as --token-file, or --tls/--no-tls for a flag and its opposite. Default: made of the parameter's
            name, and for a flag with its opposite.
    """

    def __init__(self, name: str = "", *, help: str, metavar: str = "",
                 parser: Callable[[str], Any] | None = None) -> None:
        super().__init__(help=help, metavar=metavar, parser=parser)
        self.name = name


_GIVEN = object()
Given = Annotated[frozenset[str], _GIVEN]
"""The type of a parameter that gets the names of the parameters that were given."""


class Parameter:
    """One parameter of a command.

    Attributes:
        name: in Python.
        declared: its `Argument` or `Option`.
        names: of an option, on the command line: one, or that of a flag and of its opposite. Empty for an argument.
        flag: whether it is an option without a value.
        many: whether it may be repeated.
        required: whether it must be given.
        default: its value if it is not given.
    """

    def __init__(self, name: str, hint: Any, declared: Argument, defaults: Mapping[str, Any]) -> None:
        self.name, self.declared = name, declared
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        self.many = list in (get_origin(hint), *map(get_origin, kinds))
        self.flag = kinds == [bool]
        self._read = declared.parser or (str if self.many else kinds[0])
        self.required, self.default = name not in defaults, defaults.get(name)
        self.names: tuple[str, ...] = ()
        if isinstance(declared, Option):
            word = name.replace("_", "-")
            given = declared.name or (f"--{word}/--no-{word}" if self.flag else f"--{word}")
            self.names = tuple(given.split("/"))

    @property
    def metavar(self) -> str:
        return self.declared.metavar or self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default for people, or an empty text if its help says it or there is nothing to say."""
        if self.default is True:
            return self.names[0]
        return f"{self.default:g}" if isinstance(self.default, float) else (
            self.default if isinstance(self.default, str) else "")

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser."""
        more: dict[str, Any] = {"help": self.declared.help.replace("%", "%%")}
        if self.shown_default:
            more["help"] += f" Default: {self.shown_default.replace('%', '%%')}."
        if not self.names:
            parser.add_argument(self.name, metavar=self.metavar, **more)
            return
        if self.flag:
            more["action"] = argparse.BooleanOptionalAction if len(self.names) > 1 else "store_true"
        else:
            more |= {"type": self._read, "metavar": self.metavar, "action": "append" if self.many else "store"}
        parser.add_argument(self.names[0], dest=self.name, required=self.required, **more)

    def read(self, text: str) -> Any:
        """The value of an argument. Raises `InvalidInput`."""
        try:
            return self._read(text)
        except ValueError as error:
            raise InvalidInput(f"{self.metavar}: {error}") from None


class Command:
    """A function as a command. `name`: with those of the groups that it is in."""

    def __init__(self, function: Callable[..., None], name: str) -> None:
        self.function, self.name = function, name
        hints = get_type_hints(function, include_extras=True)
        code, values = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[:code.co_argcount]
        defaults = dict(zip(names[len(names) - len(values):], values, strict=True))
        self.parameters: list[Parameter] = []
        self._given = ""
        for own in names:
            kind, declared = get_args(hints[own])[:2]
            if declared is _GIVEN:
                self._given = own
            else:
                self.parameters.append(Parameter(own, kind, declared, defaults))

    @property
    def arguments(self) -> list[Parameter]:
        return [one for one in self.parameters if not one.names]

    @property
    def options(self) -> list[Parameter]:
        return [one for one in self.parameters if one.names]

    @property
    def help(self) -> str:
        return " ".join((self.function.__doc__ or "").split())

    def shown_help(self) -> str:
        words = [f"[{one.metavar}]" if not one.required else one.metavar for one in self.arguments]
        parser = _Parser(self.name, " ".join(["[OPTIONS]", *words]), self.help)
        for one in self.parameters:
            one.add_to(parser)
        return parser.format_help()

    def run(self, given: Sequence[str]) -> None:
        """Call the function with what is given. `-h` and `--help` show the help instead. Raises `InvalidInput`, and
        what the function raises."""
        from .terminal import say

        end = list(given).index("--") if "--" in given else len(given)
        if any(word in _HELP for word in given[:end]):
            say(self.shown_help().rstrip())
            return
        parser = _Parser(self.name)
        for one in self.options:
            one.add_to(parser)
        found, words = parser.parse_known_args(list(given[:end]))
        if unknown := [word for word in words if word.startswith("-") and word != "-"]:
            parser.error(f"there is no option {unknown[0]}")
        words += given[end + 1:]
        arguments = self.arguments
        if len(words) > len(arguments):
            parser.error(f"{words[len(arguments)]!r} is one argument too many")
        if missing := [one.metavar for one in arguments[len(words):] if one.required]:
            parser.error(f"{' and '.join(missing)} must be given")
        values = {**vars(found), **{one.name: one.read(word) for one, word in zip(arguments, words, strict=False)}}
        if self._given:
            values[self._given] = frozenset(values)
        self.function(**values)


class Commands:
    """A group of commands and of other groups."""

    def __init__(self, *, help: str, epilog: str = "",
                 switches: Mapping[str, tuple[str, Callable[[], None]]] | None = None) -> None:
        """
        Args:
            help: what they are for.
            epilog: stands at the end of the help.
            switches: what can be asked for in place of a command, such as --version: its help, and what is done.
        """
        self.help, self._epilog, self._switches = help, epilog, switches or {}
        self._inner: dict[str, Callable[..., None] | Commands | tuple[str, str]] = {}

    def command(self, name: str) -> Callable[[F], F]:
        """A decorator: the function is a command of this name."""
        def add(function: F) -> F:
            self._inner[name] = function
            return function

        return add

    def add(self, name: str, inner: Commands) -> None:
        """Add a group."""
        self._inner[name] = inner

    def add_later(self, name: str, module: str, attribute: str) -> None:
        """Add a command or a group that is in another module, which is imported when it is used."""
        self._inner[name] = (module, attribute)

    def inner(self, name: str) -> Iterator[tuple[str, Command | Commands]]:
        """The word of each command and group in here, and what it is. `name`: of this group."""
        for word in self._inner:
            yield word, self._found(word, name)

    def run(self, given: Sequence[str], name: str) -> None:
        """Run the command that is given, in this group of this name. Raises `InvalidInput`, `SystemExit`, and what the
        command raises."""
        from .terminal import say

        word = given[0] if given else ""
        if word in self._switches:
            self._switches[word][1]()
        elif word in self._inner:
            found = self._found(word, name)
            found.run(given[1:], *([f"{name} {word}"] if isinstance(found, Commands) else []))
        elif not word or word in _HELP:
            say(self._shown_help(name).rstrip())
            if not word:
                raise SystemExit(2)
        else:
            raise InvalidInput(f"there is no {'option' if word.startswith('-') else 'command'} {word!r}",
                               hint=f"see {name} --help")

    def _found(self, word: str, name: str) -> Command | Commands:
        found = self._inner[word]
        if isinstance(found, tuple):
            found = getattr(import_module(found[0], __package__), found[1])
        return found if isinstance(found, Commands) else Command(found, f"{name} {word}")

    def _shown_help(self, name: str) -> str:
        parser = _Parser(name, "[OPTIONS] COMMAND …", self.help, self._epilog)
        commands = parser.add_argument_group("commands")
        for word, one in self.inner(name):
            commands.add_argument(word, help=one.help.partition(". ")[0].rstrip(".").replace("%", "%%"))
        for word, (help, _) in self._switches.items():
            parser.add_argument(word, action="store_true", help=help)
        return parser.format_help()


class _Parser(argparse.ArgumentParser):
    """Of the options of one command. What is not given is not in what it finds."""

    def __init__(self, name: str, usage: str = "", help: str = "", epilog: str = "") -> None:
        super().__init__(name, f"{name} {usage}", help, epilog, add_help=False, allow_abbrev=False,
                         argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.HelpFormatter if usage else _NARROW)
        if usage:
            self.add_argument(*_HELP, action="store_true", help="Show this message and exit.")

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, hint=f"see {self.prog} --help")
