"""Which lines of the engine's own code never ran, so that a report can name them.

The engine's own code is the modules of its classes: of the engine, of its transaction and of its view. The kit's do not
count for an engine that somebody else has written. What runs in other processes is not counted.

A tracer would slow each call of the whole run, and there can be only one, which may be pytest-cov's. So the functions
of these modules get code that is compiled from their source again, with a mark before each statement. That costs as
much as an assignment, in these functions only, and tracebacks, debuggers and pytest-cov see the same lines as before.
"""

from __future__ import annotations

import ast
import gc
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from ...contract.engine import Engine

_KIT = __name__.partition(".testing.")[0].rpartition(".")[0]
_MARKS = "__holdfast_ran__"
_UNMARKED = (ast.Pass, ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom)


class _Marked(NamedTuple):
    """A module whose functions mark what they run: its statements, by their first and last lines."""

    globals: dict[str, Any]
    statements: list[tuple[int, int]]


_marks: dict[tuple[type[Engine[Any, Any]], str], list[bool]] = {}


def watch(engine: type[Engine[Any, Any]]) -> None:
    """From now on, note what runs of this engine's own code, and of no other engine's."""
    for module in _modules(engine):
        marked = _marked(module)
        if marked is not None:
            marked.globals[_MARKS] = _marks.setdefault((engine, module), [False] * len(marked.statements))


def never_ran(engine: type[Engine[Any, Any]]) -> dict[str, list[tuple[int, int]]]:
    """By the names of the files, the first and the last line of each stretch of statements that never ran while this
    engine was watched. Empty if it never was, or if it has no source."""
    found = {}
    for module in _modules(engine):
        marks, marked = _marks.get((engine, module)), _marked(module)
        if marks is not None and marked is not None:
            found[Path(sys.modules[module].__file__ or "").name] = _stretches(marked.statements, marks)
    return {name: lines for name, lines in found.items() if lines}


def all_that_never_ran() -> list[tuple[str, str, list[tuple[int, int]]]]:
    """The same of each engine that was watched in this process: the engine's name, the file, the stretches."""
    return [(getattr(engine, "name", engine.__name__), file, lines)
            for engine in dict.fromkeys(engine for engine, _ in _marks) for file, lines in never_ran(engine).items()]


def said(stretches: Sequence[tuple[int, int]], at_most: int = 12) -> str:
    """Stretches of lines in words."""
    some = [f"{first}" if first == last else f"{first}-{last}" for first, last in stretches[:at_most]]
    more = len(stretches) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def stretches_of(lines: Iterable[int]) -> list[tuple[int, int]]:
    """Lines, those that follow one another together."""
    stretches: list[tuple[int, int]] = []
    for line in sorted(lines):
        joins = bool(stretches) and stretches[-1][1] == line - 1
        stretches.append((stretches.pop()[0] if joins else line, line))
    return stretches


def _stretches(statements: list[tuple[int, int]], marks: list[bool]) -> list[tuple[int, int]]:
    stretches: list[tuple[int, int]] = []
    goes_on = False
    for (first, last), ran in sorted(zip(statements, marks, strict=True)):
        if not ran:
            stretches.append((stretches.pop()[0] if goes_on else first, last))
        goes_on = not ran
    return stretches


@cache
def _modules(engine: type[Engine[Any, Any]]) -> tuple[str, ...]:
    """The names of the modules of the engine's own code."""
    classes = [each for base in engine.__mro__ for each in (base, *_named_in(base))]
    names = {each.__module__ for each in classes}
    own = {name for name in names if not name.startswith(f"{_KIT}.")} - {"builtins", "abc", "typing"}
    return tuple(sorted(own or {name for name in names if ".builtin." in name}))


def _named_in(base: type) -> list[type]:
    """The transaction and the view of a `class …(Engine[Transaction, View])`."""
    named = (each for of in vars(base).get("__orig_bases__", ()) for each in typing.get_args(of))
    return [each for each in named if inspect.isclass(each)]


@cache
def _marked(name: str) -> _Marked | None:
    """A module with marks in its functions; None if its source is not to be had."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return None
    try:
        source = Path(file).read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return None
    marking = _Marking(source.splitlines(), keep_asserts="Rewriting" in type(module.__loader__).__name__)
    codes = {(code.co_qualname, code.co_firstlineno): code
             for code in _codes(compile(marking.visit(tree), file, "exec", dont_inherit=True))}
    vars(module)[_MARKS] = [False] * len(marking.statements)
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__globals__ is vars(module):
            code = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if code is not None and code.co_freevars == function.__code__.co_freevars:
                function.__code__ = code
    return _Marked(vars(module), marking.statements)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


class _Marking(ast.NodeTransformer):
    """Puts a mark before each statement of each function."""

    def __init__(self, lines: list[str], *, keep_asserts: bool) -> None:
        """`keep_asserts`: functions with assertions stay as they are, since pytest has compiled these its own way."""
        self.statements: list[tuple[int, int]] = []
        self._lines = lines
        self._keep_asserts = keep_asserts
        self._within = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if self._keep_asserts and any(isinstance(each, ast.Assert) for each in ast.walk(node)):
            return node
        self._within += 1
        self.generic_visit(node)
        self._within -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._within and not isinstance(node, (ast.Lambda, ast.ClassDef)):
            for name in ("body", "orelse", "finalbody"):
                body = getattr(node, name, None)
                if isinstance(body, list):
                    setattr(node, name, [each for statement in body for each in self._with_mark(statement)])
        return node

    def _with_mark(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        if self._counts(statement):
            mark = ast.parse(f"{_MARKS}[{len(self.statements)}] = True").body[0]
            for each in ast.walk(mark):
                ast.copy_location(each, statement)
            inner = getattr(statement, "body", None)
            last = inner[0].lineno - 1 if inner else statement.end_lineno or statement.lineno
            self.statements.append((statement.lineno, max(statement.lineno, last)))
            yield mark
        yield statement

    def _counts(self, statement: ast.stmt) -> bool:
        if isinstance(statement, _UNMARKED) or "pragma: no cover" in self._lines[statement.lineno - 1]:
            return False
        return not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))  # a text, or ...
