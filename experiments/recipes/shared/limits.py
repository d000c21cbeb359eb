"""Limits of options, written beside them: ``width: Annotated[int, COUNT] = 256``."""

import dataclasses
import math
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """An interval of finite numbers, each end of it inclusive, exclusive or absent."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def admit(self, value: float) -> bool:
        """Return whether a value is within the limits; infinity and NaN are not."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = [
            f"{name.replace('_', ' ')} {end}" for name, end in vars(self).items() if end is not None
        ]
        return " and ".join(words)


COUNT = Limits(at_least=1)
POSITIVE = Limits(above=0)
FINITE = Limits()


def check(options: Any) -> None:
    """Raise unless every option of a dataclass, or of those within it, is within its limits.

    An option that was not given, None, is within them. Of a tuple every number must be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
            continue
        for limits in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(limits, Limits):
                _check("--" + field.name.replace("_", "-"), value, limits)


def _check(option: str, value: Any, limits: Limits) -> None:
    if value == ():
        raise ValueError(f"{option} must hold at least one number, got none")
    if isinstance(value, tuple):
        for number in value:
            _check(option, number, limits)
        return
    if value is None or limits.admit(value):
        return
    open_ended = limits.at_most is None and limits.below is None
    words = ["finite"] * (open_ended and isinstance(value, float))
    words += [str(limits)] * bool(str(limits))
    raise ValueError(f"{option} must be {' and '.join(words)}, got {value}")
