"""Records as JSON Lines: one file, one object a line, safe to print and to ship."""

import errno
import os
import re
import stat
import sys
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from mcp_middleware.errors import ConfigurationError

from .record import AuditRecord
from .sinks import QueuedSink, file_path, logger

if sys.platform != "win32":
    import fcntl

__all__ = ["JSONLinesSink", "encode_line", "encode_printable"]

_encode: Final = msgspec.json.Encoder().encode
_NOT_ASCII: Final = re.compile(r"[^ -~]")
_TAIL: Final = 64 * 1024
_START: Final = b'{"time":"'
"""How every line, and so every trail, starts: the record's first field."""


class JSONLinesSink(QueuedSink):
    """Appends records to a file, one JSON object a line.

    Several processes may write the same file. The file is opened for each batch, so that it can be renamed under a
    running process; a path that is no regular file, such as ``/dev/stdout``, is written to as it is.

    Args:
        path: the file; made with mode 0600 if it does not exist.
        queue_size: records that may wait for the disk before new calls are refused.

    Raises:
        ConfigurationError: the file cannot be written, or ``queue_size`` is no whole number above 0.
    """

    def __init__(self, path: str | os.PathLike[str], *, queue_size: int = 10_000) -> None:
        super().__init__(queue_size=queue_size)
        self._path = file_path("JSONLinesSink", path)
        try:
            _append(self._path, b"")
        except OSError as error:
            raise ConfigurationError(
                f"JSONLinesSink: {os.fspath(path)!r} cannot be used ({error.strerror}); "
                "name a new file or an audit trail"
            ) from None

    def __str__(self) -> str:
        return f"JSONLinesSink({str(self._path)!r})"

    def _open(self) -> "_LineStore":
        return _LineStore(self._path)


class _LineStore:
    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, records: Sequence[AuditRecord]) -> None:
        _append(self._path, b"".join(encode_line(record) for record in records))

    def close(self) -> None:
        """Nothing stays open."""


def encode_line(record: AuditRecord) -> bytes:
    """One line of JSON with its line feed, see ``encode_printable``."""
    return encode_printable(record) + b"\n"


def encode_printable(value: object) -> bytes:
    """JSON. Whatever is not printable (controls, line and paragraph separators, bidirectional marks and other format
    characters) is written as a ``\\u`` escape, which a JSON reader turns back."""
    line = _encode(value)
    if not line.isascii() or b"\x7f" in line:
        text = line.decode()
        if not text.isprintable():
            line = _NOT_ASCII.sub(_escape, text).encode()
    return line


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _append(path: Path, lines: bytes) -> None:
    """Add whole lines or nothing. Raises OSError."""
    regular = not path.exists() or stat.S_ISREG(path.stat().st_mode)
    flags = (os.O_RDWR | os.O_APPEND | os.O_CREAT) if regular else os.O_WRONLY
    with FileIO(os.open(path, flags, 0o600), "r+b" if regular else "wb") as file:
        if not regular:
            _write(file, lines)
            return
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        end = _mend(file, path)
        try:
            _write(file, lines)
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)  # a full disk may have taken the first half
            raise


def _write(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = file.write(rest)
        if not written:
            raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        rest = rest[written:]


def _mend(file: FileIO, path: Path) -> int:
    """Cut off a last line that its writer, killed or out of space, never finished. Returns the file's length.

    Only under the lock: a line without an end is then nobody's work in progress. Raises OSError, and cuts nothing, if
    the file is something else's.
    """
    file.seek(0)
    if not _START.startswith(file.read(len(_START))):
        raise OSError(errno.EEXIST, "it is a file of something else")
    end = length = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _TAIL)
        file.seek(start)
        line_feed = file.read(end - start).rfind(b"\n")
        if line_feed >= 0:
            end = start + line_feed + 1
            break
        end = start
    if end < length:
        os.ftruncate(file.fileno(), end)
        logger.warning("%s ended in a torn record of %d bytes; it was removed", path, length - end)
    return end
