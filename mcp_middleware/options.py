"""Checks of options that several classes have, so that all refuse a wrong one in the same words."""

import math

from .errors import ConfigurationError

__all__ = ["seconds", "whole_number"]


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
