"""The options of an engine: declared once, checked by the kit before the engine sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..env.shown import shown
from ..errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an engine.

    Attributes:
        default: the value if the user gives none. Not None, because a given value must be of the same type.
        meaning: what the option does, with its unit, for messages.
        least, most: its bounds, or None.

    Raises:
        InvalidInput: on construction, if the default is None or out of bounds.
    """

    default: Any
    meaning: str
    least: Any = None
    most: Any = None

    def __post_init__(self) -> None:
        if self.default is None:
            raise InvalidInput("the default of an engine option is None, so no other value could ever be given",
                               hint="give a default of the option's type, such as an empty text")
        self.check("default", self.default)

    def check(self, name: str, value: Any) -> None:
        """Raises `InvalidInput` if `value` has the wrong type or is out of bounds."""
        if (type(value) is type(self.default) and (self.least is None or value >= self.least)
                and (self.most is None or value <= self.most)):
            return
        bounds = [f"{word} {bound:,}" if isinstance(bound, int | float) else f"{word} {shown(bound)}"
                  for word, bound in (("at least", self.least), ("at most", self.most)) if bound is not None]
        wanted = ", ".join([f"of type {type(self.default).__name__}", *bounds])
        raise InvalidInput(f"the engine option {name}={shown(value)} must be {wanted}", hint=f"{name}: {self.meaning}")


def checked(known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """All of an engine's options: the values given, and defaults for the others. Raises `InvalidInput`."""
    if strange := sorted(set(given) - set(known), key=str):
        raise InvalidInput(f"unknown engine option {shown(strange[0])}",
                           hint=f"this engine knows: {', '.join(known) or 'none'}")
    for name, value in given.items():
        known[name].check(name, value)
    return {name: given.get(name, option.default) for name, option in known.items()}
