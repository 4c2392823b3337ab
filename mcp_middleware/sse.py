"""An event-stream decoder and encoder without I/O (WHATWG HTML, "Server-sent events").

What comes in goes out: the frames of a stream, joined, are its bytes. A frame is whole when its blank line has come;
comments are passed on as soon as their line ends, because they keep connections alive.
"""

import re
from typing import Final

__all__ = ["Decoder", "EventTooLargeError", "Frame", "encode"]

_LINE_END: Final = re.compile(rb"(?>\r\n|\n|\r)")
_BLOCK_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LEADING_COMMENTS: Final = re.compile(rb"(?>:[^\r\n]*(?>\r\n|\n|\r(?!\Z)))+")
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLargeError(Exception):
    """One event is larger than the decoder may hold."""


class Frame:
    """One event, or comments, with the bytes they came in."""

    __slots__ = ("_fields", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._fields: list[tuple[bytes, bytes]] | None = None

    def _values(self, name: bytes) -> list[bytes]:
        if self._fields is None:
            parts = (line.partition(b":") for line in _LINE_END.split(self.raw.removeprefix(_BOM)))
            self._fields = [(field, value.removeprefix(b" ")) for field, _, value in parts if field]
        return [value for field, value in self._fields if field == name]

    @property
    def data(self) -> bytes | None:
        """The event's data, its lines joined by newlines; None where no ``data`` field came."""
        lines = self._values(b"data")
        return b"\n".join(lines) if lines else None

    @property
    def event(self) -> bytes:
        """The event's type."""
        named = self._values(b"event")
        return (named and named[-1]) or b"message"

    def with_data(self, data: bytes) -> "Frame":
        """This event with other data; its name, id and retry stay."""
        kept = [
            line for line in _LINE_END.split(self.raw.removeprefix(_BOM)) if line and line.partition(b":")[0] != b"data"
        ]
        return Frame(b"\n".join([*kept, *_data_lines(data), b"", b""]))


class Decoder:
    """Cuts a stream into frames as its bytes arrive.

    ``limit`` is the most bytes of one event to hold; ``feed`` raises EventTooLargeError beyond it.
    """

    __slots__ = ("_buffer", "_limit", "_scanned")

    def __init__(self, *, limit: int) -> None:
        self._buffer = b""
        self._limit = limit
        self._scanned = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that ``chunk`` completes."""
        buffer = self._buffer + chunk if self._buffer else chunk
        frames: list[Frame] = []
        start = 0
        position = self._scanned
        while match := _BLOCK_END.search(buffer, position):
            frames.append(Frame(buffer[start : match.end()]))
            start = position = match.end()
        rest = buffer[start:] if start else buffer
        if rest.startswith(b":") and (comments := _LEADING_COMMENTS.match(rest)):
            frames.append(Frame(comments[0]))
            rest = rest[comments.end() :]
        if len(rest) > self._limit:
            raise EventTooLargeError
        self._buffer = rest
        self._scanned = max(0, len(rest) - 3)
        return frames

    def flush(self) -> bytes:
        """The bytes of an event that never ended; a client drops them, so they carry no message."""
        rest, self._buffer, self._scanned = self._buffer, b"", 0
        return rest


def encode(data: bytes, *, event: bytes = b"message") -> bytes:
    """One event carrying ``data``."""
    return b"\n".join([b"event: " + event, *_data_lines(data), b"", b""])


def _data_lines(data: bytes) -> list[bytes]:
    return [b"data: " + line for line in _LINE_END.split(data)]
