"""Checks of options that several classes have, so that all refuse a wrong one in the same words."""

import math
from collections.abc import Sequence

from .errors import ConfigurationError

__all__ = ["flag", "one_of", "seconds", "whole_number"]


def flag(place: str, value: object) -> bool:
    """``value``, if it is True or False; ``place`` names the option. Raises ConfigurationError."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{place} is {value!r}; it must be True or False")
    return value


def one_of(place: str, value: object, allowed: Sequence[str]) -> str:
    """``value``, if it is one of ``allowed``; ``place`` names the option. Raises ConfigurationError."""
    if not isinstance(value, str) or value not in allowed:
        *others, last = map(repr, allowed)
        raise ConfigurationError(f"{place} is {value!r}; it must be {', '.join(others)} or {last}")
    return value


def whole_number(place: str, value: object, *, least: int = 1) -> int:
    """``value``, if it is a whole number from ``least``; ``place`` names the option. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{place} is {value!r}; it must be a whole number from {least}")
    return value


def seconds(place: str, value: object) -> float:
    """``value``, if it is a finite number above 0; ``place`` names the option. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{place} is {value!r}; it must be a number of seconds above 0")
    return float(value)
