"""Options that hold options: mappings, lists and globs. What is wrong is named with its place (ConfigurationError)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, TypeVar

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.globs import Glob, matcher

__all__ = ["by_glob", "globs", "is_text", "list_of", "matches_any", "read_mapping", "with_method"]

Options = TypeVar("Options")
Object = TypeVar("Object")


def read_mapping(place: str, option: Any, kind: type[Options]) -> Options:
    """A mapping as the values of a dataclass ``kind``, whose fields name what is allowed, and what is needed."""
    allowed = [one.name for one in fields(kind) if one.init]  # type: ignore[arg-type]
    needed = [one.name for one in fields(kind) if one.init and one.default is MISSING]  # type: ignore[arg-type]
    if not isinstance(option, Mapping):
        raise ConfigurationError(f"{place} is {option!r}; it must be a mapping with {', '.join(allowed)}")
    for key in option:
        if key not in allowed:
            raise ConfigurationError(f"{place}: {key!r} is not known; allowed are {', '.join(allowed)}")
    for key in needed:
        if key not in option:
            raise ConfigurationError(f"{place}: {key!r} is missing")
    try:
        return kind(**option)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None


def list_of(place: str, option: Any, what: str) -> Sequence[Any]:
    """``option``, if it is a list with something in it."""
    if not isinstance(option, list | tuple) or not option:
        raise ConfigurationError(f"{place} is {option!r}; it must be a list of {what}")
    return option


def with_method(place: str, option: Object, method: str) -> Object:
    """``option``, if it is an object with this method. A text, which counts letters, or a list is none."""
    if isinstance(option, str | bytes | list | tuple) or not callable(getattr(option, method, None)):
        raise ConfigurationError(f"{place} is {option!r}; it must have a method {method!r}")
    return option


def is_text(option: Any) -> bool:
    """Whether it is a text, not empty, and such that a storage can name buckets by it."""
    return isinstance(option, str) and option != "" and option == option.encode("utf-8", "replace").decode()


def by_glob(place: str, option: Any, *, names: str, values: str) -> list[tuple[str, re.Pattern[str], Any]]:
    """A mapping from globs of ``names`` to ``values``, None for an empty one: each glob, the expression whose
    ``fullmatch`` says what it stands for, and its value."""
    if option is None:
        return []
    if not isinstance(option, Mapping):
        raise ConfigurationError(f"{place} is {option!r}; it must be a mapping from globs to {values}")
    for glob in option:
        if not is_text(glob):
            raise ConfigurationError(f"{place} has the key {glob!r}; it must be a glob of {names}")
    return [(glob, _expression(place, glob), value) for glob, value in option.items()]


def globs(place: str, option: Any) -> tuple[str, ...]:
    """A list of globs."""
    for one in list_of(place, option, "globs"):
        if not isinstance(one, str) or not one:
            raise ConfigurationError(f"{place} has {one!r}; it must be a glob such as 'search*'")
        _expression(place, one)
    return tuple(option)


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the globs stands for the name."""
    return any(_compiled(pattern).fullmatch(name) for pattern in patterns)


def _expression(place: str, glob: str) -> re.Pattern[str]:
    try:
        return _compiled(glob)
    except ValueError as error:
        raise ConfigurationError(f"{place} has the glob {glob!r}: {error}") from None


@lru_cache(1024)
def _compiled(glob: str) -> re.Pattern[str]:
    return matcher([Glob(glob)])
