"""How a configuration option is declared: type, meaning, unit, range and MATLAB name in one place.

An option is a dataclass field without a default, beside the class that uses it. Its value lies in
`conf/`. This module knows neither values nor how they are read.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What a configuration file cannot say about an option.

    A number must be at least `low`, at most `high` and greater than `above`, where these are not None.
    `matlab` are the names of this option in MATLAB.
    """

    text: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    matlab: tuple[str, ...] = ()

    def allows(self, value: float) -> bool:
        """Return True if a number is finite and within the range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and -math.inf < value < math.inf
        )

    @property
    def range(self) -> str:
        """The allowed range in words, or an empty string."""
        if self.low is not None and self.high is not None:
            return f"from {self.low:,} to {self.high:,}"
        bounds = ((">=", self.low), (">", self.above), ("<=", self.high))
        return " and ".join(f"{sign} {bound:,}" for sign, bound in bounds if bound is not None)


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
    """Options of a component that is chosen by name: `_target_` names its class."""

    _target_: str = option("the class to build, as package.module.Class")


def absolute(path: str | None) -> str | None:
    """Return a path that does not depend on the working directory."""
    return None if path is None else os.path.abspath(path)


def import_named(name: str) -> ModuleType:
    """Import a module that an option names; it may lie in the current directory, as with `python -m`.

    Nothing in the current directory hides a module that lies elsewhere.
    """
    package, here = name.partition(".")[0], os.getcwd()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package or here in sys.path or PathFinder.find_spec(package, [here]) is None:
            raise
    sys.path.append(here)
    return importlib.import_module(name)


def import_registering(module: str | None, env_id: str) -> None:
    """Import what registers an environment: a module, and that of an id such as `my_lab.tank:Tank-v0`."""
    if module is not None:
        import_named(module)
    if own_module := env_id.rpartition(":")[0]:
        import_named(own_module)


def resolve(name: str) -> Any:
    """Import the object with a dotted name such as `package.module.Class`.

    Raises:
        ImportError: There is no such module, or the module has no such name.
    """
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or not module_name:
        raise ImportError(f"'{name}' is not of the form package.module.name")
    module = import_named(module_name)
    if not hasattr(module, attribute):
        raise ImportError(f"module '{module_name}' has no '{attribute}'")
    return getattr(module, attribute)
