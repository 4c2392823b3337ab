"""A credential that is the same in every request."""

import re
from collections.abc import Sequence
from typing import Final

from mcp_middleware.errors import ConfigurationError

from .interface import Caller

__all__ = ["FIELD_NAME", "StaticHeader"]

FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2."""
_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
"""RFC 9110 section 5.5, without what is beyond ASCII."""
_NOT_OURS: Final = frozenset({"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"})
"""They frame a message, and belong to whoever sends it."""


class StaticHeader:
    """A header ``name: value``. Raises ConfigurationError, which never shows the value."""

    __slots__ = ("_headers", "name")

    def __init__(self, name: str, value: str) -> None:
        self.name = header_name("StaticHeader.name", name)
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigurationError("StaticHeader.value must be printable ASCII without spaces around it")
        self._headers = ((self.name.encode("ascii"), value.encode("ascii")),)

    async def headers(self, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
        """The header, whoever calls."""
        return self._headers

    def rejected(self, caller: Caller, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """False: there is no other."""
        return False

    async def start(self) -> None:
        """Nobody can be asked whether it is right."""

    async def aclose(self) -> None:
        """Nothing is open."""


def header_name(place: str, name: object) -> str:
    """``name`` in lower case, if a header may be named so. Raises ConfigurationError naming ``place``."""
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name) or name.lower() in _NOT_OURS:
        raise ConfigurationError(f"{place} is {name!r}; it must be the name of a header that frames no message")
    return name.lower()
