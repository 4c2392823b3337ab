"""What a server says of its own usage, in ``_meta`` of its result, and whether that can be true.

    "_meta": {"usage": {"inputTokens": 120, "outputTokens": 4100}}

``input_tokens`` and ``output_tokens`` are read as well. A tool that calls a model itself knows what that took; nobody
else does. A report is believed as a whole or not at all.
"""

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from mcp_middleware.server_message import ServerMessage

__all__ = ["HINT", "NONSENSE", "Report", "reported"]

HINT: Final = b'"usage"'
"""Stands in every answer that has a report: most have none, and need not be read for it."""
_MOST: Final = 10_000_000
"""Tokens of one call; more than any model reads or writes at once."""
_MOST_BYTES: Final = 16 * 1024


class Report(NamedTuple):
    """Tokens of one call; None where nothing is said."""

    input_tokens: int | None
    output_tokens: int | None


NONSENSE: Final = Report(None, None)
"""A report that cannot be true."""

_NAMES: Final = (("inputTokens", "input_tokens"), ("outputTokens", "output_tokens"))


class _Meta(msgspec.Struct, frozen=True):
    usage: Raw = Raw()


class _Result(msgspec.Struct, frozen=True):
    _meta: _Meta | None = None


_result: Final = msgspec.json.Decoder(_Result)
_any: Final = msgspec.json.Decoder()


def reported(answer: ServerMessage) -> Report | None:
    """What the answer says of its usage: nothing, something, or NONSENSE."""
    if not isinstance(answer.result, Raw):
        return None
    try:
        usage = (_result.decode(answer.result)._meta or _Meta()).usage
    except (msgspec.DecodeError, RecursionError):
        return None
    if not usage:
        return None
    if len(usage) > _MOST_BYTES:
        return NONSENSE
    try:
        values = _any.decode(usage)
    except (msgspec.DecodeError, RecursionError):  # a number that is none, such as 1e400
        return NONSENSE
    if values is None:
        return None
    if not isinstance(values, dict):
        return NONSENSE
    given = [[values[name] for name in names if name in values] for names in _NAMES]
    if not any(given):
        return None
    if not all(len(numbers) < 2 and all(_is_sane(number) for number in numbers) for numbers in given):
        return NONSENSE
    return Report(*(int(numbers[0]) if numbers else None for numbers in given))


def _is_sane(number: Any) -> bool:
    """Finite, not negative, bounded, and whole."""
    return (
        isinstance(number, int | float)
        and not isinstance(number, bool)
        and 0 <= number <= _MOST
        and number == int(number)
    )
