"""Whether files contain something else than before: what a reload waits for."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["WatchedFiles"]

_Stamp: TypeAlias = tuple[int, int, int] | None
_MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a file that are looked at; configurations and certificates are smaller by far."""


class WatchedFiles:
    """Files that are looked at from time to time, by their path: a link that is set to another file, as Kubernetes
    does with what it mounts, is a change."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stamps = {path: _stamp(path) for path in paths}
        self._digests = {path: _digest(path) for path in self._stamps}
        self._moving = False

    def changed(self) -> bool:
        """Whether one of them contains something else since this last said so.

        Not while they still change: a file that is being written is read once it has rested from one call to the next.
        """
        stamps = {path: _stamp(path) for path in self._stamps}
        if stamps != self._stamps:
            self._stamps = stamps
            self._moving = True
            return False
        if not self._moving:
            return False
        self._moving = False
        digests = {path: _digest(path) for path in stamps}
        changed = digests != self._digests
        self._digests = digests
        return changed

    def watch(self, paths: Iterable[Path]) -> None:
        """Look at these from now on; what is known of those that were looked at already stays."""
        paths = list(paths)
        for path in paths:
            if path not in self._stamps:
                self._stamps[path] = _stamp(path)
                self._digests[path] = _digest(path)
        for path in self._stamps.keys() - set(paths):
            del self._stamps[path], self._digests[path]


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MAX_BYTES)).digest()
    except OSError:
        return None
