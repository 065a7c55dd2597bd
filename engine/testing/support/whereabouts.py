"""Where every thread is, and which waits for which, in words: what a check that hangs says.

Python does not know who holds a lock. The source does: a thread that is inside of `with self._lock:` holds it. So the
expressions of the `with` statements around each thread's lines are looked up, in its own variables, without running any
code.
"""

from __future__ import annotations

import ast
import dis
import inspect
import linecache
import re
import sys
import threading
import traceback
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

_FRAMES = 12
_LIBRARY = frozenset({"threading", "queue", "concurrent.futures._base", "contextlib", "contextvars"})
"""Modules that wait on behalf of others."""
_AROUND = ("hypothesis", "_pytest", "pluggy", "unittest", "xdist", "execnet")
"""Modules whose frames say nothing: they call the check. They hold no lock of an engine either, and to read their
source takes seconds."""
_READ = ast.With, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
_WAITS = frozenset({"acquire", "wait", "wait_for", "join", "get", "put", "result"})
_OWNER = re.compile(r"owner=(\d+)")
_MISSING = object()


def whereabouts(first: threading.Thread) -> str:
    """Who waits for what, and the stack of each thread, `first` before the others."""
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    order = sorted(frames, key=lambda ident: ident != first.ident)
    lines = [f"thread {names.get(ident, ident)!r} {_waits(frames[ident], frames, names, ident)}" for ident in order]
    for ident in order:
        lines += [f"stack of thread {names.get(ident, ident)!r}, the innermost call last:", *_stack(frames[ident])]
    return "\n".join(lines)


def _stack(frame: FrameType) -> list[str]:
    calls = [(each, line) for each, line in reversed(list(traceback.walk_stack(frame)))
             if not _module(each).startswith(_AROUND)]
    shown = [f"  {each.f_code.co_filename}:{line}, in {each.f_code.co_name}: "
             f"{linecache.getline(each.f_code.co_filename, line).strip()}" for each, line in calls[-_FRAMES:]]
    return [*(["  …"] if len(calls) > _FRAMES else []), *shown]


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name


def _waits(frame: FrameType, frames: dict[int, FrameType], names: dict[int | None, str], ident: int) -> str:
    """What a thread waits for, or where it is."""
    joined, at = None, frame
    while _module(at) in _LIBRARY and at.f_back is not None:
        if at.f_code.co_name == "join" and isinstance(at.f_locals.get("self"), threading.Thread):
            joined = at.f_locals["self"]
        at = at.f_back
    place = _place(at, at.f_lineno)
    if joined is not None:
        return f"waits for the end of thread {joined.name!r}, at {place}"
    expression = _waited_for(at)
    if expression is None:
        return f"is at {place}"
    said = f"waits for {ast.unparse(expression)}, at {place}"
    lock = _lock(_value(at, expression))
    holders = _holders(lock, frames) if lock is not _MISSING else []
    if not holders:
        return said
    by = "; ".join(f"{'itself' if holder == ident else f'thread {names.get(holder, holder)!r}'}{since}"
                   for holder, since in holders)
    return f"{said}, which is held by {by}"


def _place(frame: FrameType, line: int) -> str:
    file = frame.f_code.co_filename
    return (f"{Path(file).name}:{line}, in {frame.f_code.co_name}: "
            f"`{linecache.getline(file, line).strip()}`")


def _holders(lock: Any, frames: dict[int, FrameType]) -> list[tuple[int, str]]:
    """The threads that hold a lock, and since where, as far as that is known."""
    found = {}
    for ident, top in frames.items():
        for frame, line in traceback.walk_stack(top):
            if _module(frame).startswith(_AROUND):
                continue
            for expression in _entered(frame, line):
                if _lock(_value(frame, expression)) is lock:
                    found[ident] = f", since {_place(frame, expression.lineno)}"
    if (owner := _OWNER.search(repr(lock))) is not None and (ident := int(owner[1])):
        found.setdefault(ident, "")
    return list(found.items())


# --- reading the source ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=200)
def _parsed(file: str) -> list[ast.AST]:
    try:
        return [node for node in ast.walk(ast.parse("".join(linecache.getlines(file)))) if isinstance(node, _READ)]
    except (SyntaxError, ValueError, SystemError):  # the last one if another thread parses, too (CPython 3.11)
        return []


def _entered(frame: FrameType, line: int) -> list[ast.expr]:
    """What a frame's function has entered by `with` and not left."""
    nodes = _parsed(frame.f_code.co_filename)
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                 and _covers(node, line)]
    begins = max((node.lineno for node in functions), default=0)
    around = [node for node in nodes if isinstance(node, ast.With) and node.lineno >= begins
              and node.body[0].lineno <= line <= (node.end_lineno or 0)]
    statement, at = _entering(frame)
    return [item.context_expr for node in around if node is not statement for item in node.items] + [
        item.context_expr for item in (statement.items[:at] if statement is not None else ())]


def _entering(frame: FrameType) -> tuple[ast.With | None, int]:
    """The `with` statement that a frame is about to enter, if any, and by which of its items."""
    here = _position(frame)
    for node in _parsed(frame.f_code.co_filename):
        if isinstance(node, ast.With):
            for number, item in enumerate(node.items):
                if _extent(item.context_expr) == here:  # from Python 3.13 on
                    return node, number
            if _extent(node) == here:
                entries = [step.offset for step in dis.get_instructions(frame.f_code) if step.opname == "BEFORE_WITH"
                           and step.positions is not None and tuple(step.positions) == here]
                if frame.f_lasti in entries:
                    return node, entries.index(frame.f_lasti)
    return None, 0


def _position(frame: FrameType) -> tuple[int | None, ...]:
    """Of what a frame does now: its first and last line, and its first and last column."""
    return list(frame.f_code.co_positions())[frame.f_lasti // 2]


def _extent(node: ast.expr | ast.stmt) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _covers(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or 0)


def _waited_for(frame: FrameType) -> ast.expr | None:
    """The expression of what a frame is about to enter, to acquire or to wait for."""
    statement, at = _entering(frame)
    if statement is not None:
        return statement.items[at].context_expr
    here = _position(frame)
    return next((node.func.value for node in _parsed(frame.f_code.co_filename)
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WAITS
                 and _extent(node) == here), None)


def _value(frame: FrameType, expression: ast.expr) -> Any:
    """What a name, or an attribute of one, is in a frame; `_MISSING` if it cannot be known without running code."""
    if isinstance(expression, ast.Name):
        return frame.f_locals.get(expression.id, frame.f_globals.get(expression.id, _MISSING))
    if not isinstance(expression, ast.Attribute):
        return _MISSING
    of = _value(frame, expression.value)
    if of is _MISSING:
        return _MISSING
    found = inspect.getattr_static(of, expression.attr, _MISSING)
    return found.__get__(of, type(of)) if inspect.ismemberdescriptor(found) else found


def _lock(value: Any) -> Any:
    """The lock that a condition is made with; anything else as it is."""
    return inspect.getattr_static(value, "_lock", value) if isinstance(value, threading.Condition) else value
