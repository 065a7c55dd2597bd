"""Keywords of earlier releases, which are fields of `Connection` and `Policy` now. Release 0.3 removes them."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, TypeVar

from ..engine.env.shown import shown
from ..engine.errors import SettingError

T = TypeVar("T")

_FIELDS = {"fold": "compact"}
"""Keywords whose field has another name."""


def given(call: str, kind: type[T], value: T | None, old: dict[str, Any], depth: int = 2) -> T:
    """`value`, or the default if it is None, with the old keywords that are its fields. These are removed from `old`,
    each with a warning for the line that is `depth` calls up. Raises `SettingError`."""
    if value is not None and not isinstance(value, kind):
        raise SettingError(f"{shown(value)} is not a {kind.__name__}")
    made: Any = kind() if value is None else value
    fields = {field.name for field in dataclasses.fields(made)}
    for name in [name for name in old if _FIELDS.get(name, name) in fields]:
        field = _FIELDS.get(name, name)
        warnings.warn(f"{call}({name}=…) is {call}({kind.__name__.lower()}={kind.__name__}({field}=…)) now; the old "
                      "keyword goes with release 0.3", DeprecationWarning, stacklevel=depth + 1)
        made = dataclasses.replace(made, **{field: old.pop(name)})
    changed: T = made
    return changed


def refuse(call: str, unknown: dict[str, Any]) -> None:
    """Raise `TypeError` if a keyword is left that no release had, as Python would."""
    for name in unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
