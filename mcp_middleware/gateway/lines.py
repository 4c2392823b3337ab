"""What the process says on standard error, in the order in which it was said: the log, the access log, the banner.

Nobody who serves waits for who reads it: a line costs the text alone, and a thread writes. A reader that does not read
costs lines, which are counted, and never requests. What was said is written before the process ends, as far as somebody
reads.
"""

import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

from .access_log import visible

__all__ = ["Lines", "configure_logging"]

FLUSH_SECONDS: Final = 0.25
"""Seconds that a line may wait whose reader is in no hurry."""
MAX_WAITING: Final = 20_000
MAX_CHARACTERS: Final = 16 * 1024 * 1024
"""Lines that wait to be written, and the characters of all of them; of more the newest are dropped and counted."""
PIECE: Final = select.PIPE_BUF // 10
"""Characters, each of ten bytes at most (``\\U0001f600``), that a stream takes at once when it takes any."""
PATIENCE: Final = 2.0
"""Seconds that the end of the process waits for whoever reads."""


class Lines:
    """Lines for ``stream``, which a thread writes between ``start`` and ``close``; before and after that they are
    written at once, as far as that waits for nobody. ``say_dropped`` makes a line of how many were lost."""

    def __init__(self, stream: TextIO, say_dropped: Callable[[int], str]) -> None:
        self._stream = stream
        self._say_dropped = say_dropped
        self._waiting: deque[str] = deque()
        self._characters = 0
        self._dropped = 0
        self._is_cut = False
        """What was written last is the beginning of a line, whose end was dropped."""
        self._wanted = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write in a thread of its own. To be called in the process that serves: no thread survives a fork."""
        with suppress(OSError, ValueError):  # no file
            os.set_blocking(self._stream.fileno(), True)  # else a reader who takes his time would cost lines
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Have ``line`` written with those that come within ``FLUSH_SECONDS``."""
        size = len(line)
        if len(self._waiting) < MAX_WAITING and self._characters + size <= MAX_CHARACTERS:
            self._characters += size
            self._waiting.append(line)
        else:
            self._dropped += 1

    def say(self, line: str) -> None:
        """Have ``line`` written now."""
        self.add(line)
        if self._thread is not None:
            self._wanted.set()
        else:
            self.flush()

    def flush(self) -> None:
        """Write what waits: all of it where there is a thread, which waits for who reads, and else what is taken at
        once. What is not written whole counts as dropped."""
        waiting, dropped = len(self._waiting), self._dropped
        self._characters = self._dropped = 0
        patient = self._thread is not None
        try:
            lines = [self._waiting.popleft() for _ in range(waiting)]
            if dropped:
                lines.append(self._say_dropped(dropped))
            text = "\n" * self._is_cut + "".join(lines)
            step = MAX_CHARACTERS if patient else PIECE
            for begin in range(0, len(text), step):
                if not patient and not _takes_more(self._stream):
                    self._dropped += dropped + waiting
                    self._is_cut |= begin > 0
                    return
                self._stream.write(text[begin : begin + step])
                self._stream.flush()
            self._is_cut = False
        except Exception:  # nobody is there to read, or there is no memory: no reason to stop serving, or writing
            self._dropped += dropped + waiting

    def close(self) -> bool:
        """End the thread once all is written, within ``PATIENCE``. Whether it has ended: one that still waits for its
        reader holds the stream, and whoever else would write to it."""
        if self._thread is not None:
            self._ending = True
            self._wanted.set()
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _run(self) -> None:
        while not self._ending:
            self._wanted.wait(FLUSH_SECONDS)
            self._wanted.clear()
            self.flush()
        self.flush()


def _takes_more(stream: TextIO) -> bool:
    """Whether ``PIECE`` can be written without waiting for who reads."""
    try:
        return bool(select.select([], [stream.fileno()], [], 0)[1])
    except (OSError, ValueError):
        return True  # no file, so nobody who could be slow


class _Handler(logging.Handler):
    """Has records written as lines. Its lock is never held while something is written."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.say(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """What ``logging.shutdown`` calls before a process ends, however it does."""
        self._lines.close()
        super().close()


def configure_logging(stream: TextIO, level: str, form: str) -> Lines:
    """Have the process's log written to ``stream``, from ``level`` on, as ``text`` or ``json``; and by what."""
    formatter = _JSONFormatter() if form == "json" else _TextFormatter()

    def say_dropped(count: int) -> str:
        text = f"{count} lines of the log were dropped: nobody reads them fast enough"
        record = logging.LogRecord("mcp_middleware.gateway", logging.WARNING, __file__, 0, text, None, None)
        return formatter.format(record) + "\n"

    lines = Lines(stream, say_dropped)
    handler = _Handler(lines)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("mcp_middleware").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    return lines


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Requests that we end at the deadline of a stop are no errors of the application."""
    from asyncio import CancelledError

    return not (record.exc_info and isinstance(record.exc_info[1], CancelledError))


class _TextFormatter(logging.Formatter):
    """A line for people, with more below it where there are; nothing that came from outside can look like another."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        lines = record.getMessage().splitlines() or [""]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return f"{clock}.{record.msecs:03.0f} {record.levelname} " + "\n    ".join(map(visible, lines))


class _JSONFormatter(logging.Formatter):
    """The same as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
