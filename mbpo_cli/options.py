"""How a configuration option is described: type, meaning, unit, range and MATLAB name in one place.

An option is a dataclass field without a default, beside the class that uses it. Its value lives in
`conf/`. This room knows neither values nor how they are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What a configuration file cannot say about an option.

    Attributes:
        text: What the option does, in a few words, with its unit.
        low: Smallest allowed number, or None.
        high: Largest allowed number, or None.
        above: The number must be greater than this, or None.
        matlab: The names that this option has in MATLAB.
    """

    text: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    matlab: tuple[str, ...] = ()

    def allows(self, value: float) -> bool:
        """Tell whether a number lies in the range; NaN never does."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and value == value
        )

    @property
    def range(self) -> str:
        """The allowed range in words, or an empty string."""
        if self.low is not None and self.high is not None:
            return f"from {self.low:,} to {self.high:,}"
        bounds = []
        if self.low is not None:
            bounds.append(f"{self.low:,} or more")
        if self.above is not None:
            bounds.append(f"greater than {self.above:,}")
        if self.high is not None:
            bounds.append(f"at most {self.high:,}")
        return ", ".join(bounds)


def option(
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    matlab: str | tuple[str, ...] = (),
) -> Any:
    """Declare an option: a required dataclass field with its `Meaning`."""
    names = (matlab,) if isinstance(matlab, str) else matlab
    return field(metadata={"meaning": Meaning(text, low, high, above, names)})


@dataclass
class Component:
    """Options of a part that is chosen by name: `_target_` says which class it is."""

    _target_: str = option("the class to build, as package.module.Class")


def options_of(component: Callable[..., Any]) -> type[Component]:
    """Return the options dataclass that a component's class declares as `Options`.

    Raises:
        TypeError: The class has no such dataclass.
    """
    options = getattr(component, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Component)):
        raise TypeError(f"{component!r} has no dataclass 'Options' derived from Component")
    return options


def resolve(name: str) -> Any:
    """Import what a dotted name such as `package.module.Class` stands for.

    Raises:
        ImportError: There is no such module, or nothing of that name in it.
    """
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or not module_name:
        raise ImportError(f"'{name}' is not of the form package.module.name")
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise ImportError(f"module '{module_name}' has no '{attribute}'")
    return getattr(module, attribute)
