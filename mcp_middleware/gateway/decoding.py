"""The body of an answer that is compressed although nobody asked, plain again.

Some servers compress whatever the request says. The members look at answers, so what can be undone is undone.
"""

import zlib
from typing import Final, Protocol

from mcp_middleware.types import Headers

from .client import Answer, BrokenAnswerError

__all__ = ["decoded", "encoding_of", "read_whole"]

_INFLATABLE: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_PIECE: Final = 64 * 1024
"""Bytes that are decompressed at once."""


class _Source(Protocol):
    """Where a body comes from, piece by piece."""

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises BrokenAnswerError where the body is not whole."""
        ...


def encoding_of(headers: Headers) -> bytes | None:
    """How the body is compressed; empty for not at all, None for a way that cannot be undone."""
    found = b", ".join(value.strip().lower() for name, value in headers if name == b"content-encoding")
    if found in (b"", b"identity"):
        return b""
    return found if found in _INFLATABLE else None


def decoded(answer: Answer) -> _Source:
    """The body of ``answer``, plain."""
    return _Inflated(answer) if encoding_of(answer.headers) else answer


async def read_whole(answer: Answer, most: int) -> bytes:
    """The whole body of ``answer``, plain. Raises BrokenAnswerError, where it has more than ``most`` bytes too."""
    source = decoded(answer)
    data = await source.read()
    if answer.complete and source is answer and len(data) <= most:
        return data  # as most are: it was there before anybody asked
    parts, size = [data], len(data)
    while data and size <= most:
        data = await source.read()
        parts.append(data)
        size += len(data)
    if size > most:
        raise BrokenAnswerError("the server's answer is too large")
    return b"".join(parts)


class _Inflated:
    """However much it inflates, no more than a piece is held."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its own header

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises BrokenAnswerError where the data is not what it claims to be."""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or await self._answer.read()
                if not data:
                    raise BrokenAnswerError("the server's compressed answer is cut off")
                if piece := self._inflate.decompress(data, _PIECE):
                    return piece
        except zlib.error:
            raise BrokenAnswerError("the server's compressed answer cannot be read") from None
        return b""
