"""An event-stream decoder and encoder without I/O (WHATWG HTML, "Server-sent events").

What comes in goes out: the frames of a stream, joined, are its bytes. A frame is whole when its blank line has come;
comments are passed on as soon as their line ends, because they keep connections alive.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["Decoder", "EventTooLargeError", "Frame", "encode"]

_FIELD: Final = rb"%b(?<![^\r\n]%b)(?:: ?([^\r\n]*+))?(?=[\r\n]|\Z)"
"""A line's value, by the name of its field. It begins with the name, for which alone the text is then searched."""
_LINE_END: Final = re.compile(rb"(?>\r\n|\n|\r)")
_BLOCK_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)++")
"""All blank lines that follow: each by itself would be an event of nothing."""
_LEADING_COMMENTS: Final = re.compile(rb"(?>:[^\r\n]*(?>\r\n|\n|\r(?!\Z)))+")
_DATA: Final = re.compile(_FIELD % (b"data", b"data"))
_EVENT: Final = re.compile(_FIELD % (b"event", b"event"))
_ID: Final = re.compile(_FIELD % (b"id", b"id"))
_DATA_LINE: Final = re.compile(rb"data(?<![^\r\n]data)(?::[^\r\n]*+)?(?>\r\n|\n|\r|\Z)")
_BOM: Final = b"\xef\xbb\xbf"
_PIECE: Final = 16 * 1024
"""Bytes of an event that are looked at in one step, which others have to wait for. Each line is an object of ours."""
_HEAD: Final = 1024
"""Bytes of an event in which its id is looked for."""
_MAX_LINES: Final = 500_000
"""Lines of one event: a few tenths of a second, which one of so many is read in a thread for."""
_COMMENT: Final = ord(":")
_CR: Final = ord("\r")


class EventTooLargeError(Exception):
    """One event is larger than the decoder may hold, or has too many lines."""


class Frame:
    """One event, or comments, with the bytes they came in.

    ``bom``: the stream's first, whose byte order mark is no part of a name. ``unread``: several, into which nobody
    looks.
    """

    __slots__ = ("_bom", "raw", "unread")

    def __init__(self, raw: bytes, *, bom: bool = False, unread: bool = False) -> None:
        self.raw = raw
        self.unread = unread
        self._bom = bom and raw.startswith(_BOM)

    @property
    def data(self) -> bytes | None:
        """The event's data, its lines joined by newlines; None where no ``data`` field came."""
        if len(self.raw) <= _PIECE:
            lines = _DATA.findall(self._fields)
            return b"\n".join(lines) if lines else None
        parts = [b"\n".join(lines) for piece in self._pieces() if (lines := _DATA.findall(piece))]
        return b"\n".join(parts) if parts else None

    @property
    def event(self) -> bytes:
        """The event's type."""
        named = b""
        for piece in self._pieces():
            named = (_EVENT.findall(piece) or [named])[-1]
        return named or b"message"

    @property
    def id(self) -> bytes:
        """What a client names that resumes the stream after this event; empty where there is none before the data."""
        named: list[bytes] = _ID.findall(self._fields[:_HEAD])
        return named[-1] if named else b""

    @property
    def lines(self) -> int:
        """How many there are, the blank one that ends them among them."""
        return _lines(self.raw)

    def with_data(self, data: bytes) -> "Frame":
        """This event with other data; its name, id and retry stay."""
        kept = b"".join([_DATA_LINE.sub(b"", piece) for piece in self._pieces()])
        kept = kept.replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip(b"\n")
        return Frame(b"\n".join([*([kept] if kept else []), _data_lines(data), b"", b""]))

    @property
    def _fields(self) -> bytes:
        return self.raw[len(_BOM) :] if self._bom else self.raw

    def _pieces(self) -> Iterator[bytes]:
        """The lines, some after some. Of a field only those that are looked for are taken out: an event of nothing but
        short lines, each an object of its own, would take a hundred times its size."""
        fields = self._fields
        start = 0
        while len(fields) - start > _PIECE:
            end = _LINE_END.search(fields, start + _PIECE)
            if end is None:
                break
            yield fields[start : end.end()]
            start = end.end()
        yield fields[start:] if start else fields


class Decoder:
    """Cuts a stream into frames as its bytes arrive. An event without a blank line when the stream ends never comes: it
    is none, and clients drop it.

    ``limit`` is the most bytes of one event to hold; ``feed`` raises EventTooLargeError beyond it, and beyond
    ``_MAX_LINES``.
    """

    __slots__ = ("_began", "_held", "_limit", "_scanned")

    def __init__(self, *, limit: int) -> None:
        self._held = bytearray()
        """The beginning of an event whose end has not come. It grows in place: a server that sends a large event in
        small pieces must not make each of them cost as much as all before."""
        self._limit = limit
        self._scanned = 0
        self._began = False

    def feed(self, chunk: bytes, *, unread: Callable[[bytes], bool] | None = None) -> list[Frame]:
        """The frames that ``chunk`` completes; one for all of them where ``unread`` says of these bytes that nobody
        will look into them."""
        held = self._held
        position = 0
        if held:
            no_line_ends = b"\n" not in chunk and b"\r" not in chunk and held[-1] != _CR
            held += chunk
            if no_line_ends:
                self._hold()
                return []
            end = _LINE_END if held[0] == _COMMENT else _BLOCK_END
            if end.search(held, self._scanned) is None:
                self._hold()
                return []
            chunk, position = bytes(held), self._scanned
            held.clear()
        frames: list[Frame] = []
        start = _last_end(chunk, position) if unread is not None and unread(chunk) else 0
        if start:
            frames.append(self._frame(chunk[:start], unread=True))
            position = start
        while match := _BLOCK_END.search(chunk, position):
            frames.append(self._frame(chunk[start : match.end()]))
            start = position = match.end()
        rest = chunk[start:] if start else chunk
        if rest.startswith(b":") and (comments := _LEADING_COMMENTS.match(rest)):
            frames.append(self._frame(comments[0]))
            rest = rest[comments.end() :]
        if rest:
            held += rest
            self._hold()
        return frames

    def _frame(self, raw: bytes, *, unread: bool = False) -> Frame:
        first, self._began = not self._began, True
        if len(raw) > _MAX_LINES and _lines(raw) > _MAX_LINES:
            raise EventTooLargeError
        return Frame(raw, bom=first, unread=unread)

    def _hold(self) -> None:
        if len(self._held) > self._limit:
            raise EventTooLargeError
        self._scanned = max(0, len(self._held) - 3)


def _lines(raw: bytes) -> int:
    return raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")


def _last_end(chunk: bytes, position: int) -> int:
    """Where the last frame ends that is whole; 0 if none is."""
    last = max(chunk.rfind(ends, position) for ends in (b"\n\n", b"\n\r", b"\r\r"))
    match = _BLOCK_END.search(chunk, max(position, last - 1)) if last >= 0 else None
    return match.end() if match is not None else 0


def encode(data: bytes, *, event: bytes = b"message") -> bytes:
    """One event carrying ``data``."""
    return b"\n".join([b"event: " + event, _data_lines(data), b"", b""])


def _data_lines(data: bytes) -> bytes:
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"data: " + data
