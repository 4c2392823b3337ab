"""Counters of plain request limits: a storage for the ``limits`` library that is bounded, and starts no thread for what
has run out. One process's own."""

from collections import OrderedDict

from limits.storage import Storage

from mcp_middleware.types import Clock

__all__ = ["Windows"]


class Windows(Storage):
    """How often each key was hit in its current window, of at most ``most`` keys: beyond it, the one whose window began
    first is forgotten. ``clock``: seconds."""

    STORAGE_SCHEME = None

    def __init__(self, most: int, clock: Clock) -> None:
        super().__init__()
        self._most = most
        self._clock = clock
        self._windows: OrderedDict[str, list[float]] = OrderedDict()  # hits, and the end of the window

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        """None of a storage that is a dictionary."""
        return KeyError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count ``amount`` more."""
        now = self._clock()
        window = self._windows.get(key)
        if window is None or now >= window[1]:
            self._windows.pop(key, None)
            window = self._windows[key] = [0, now + expiry]
            if len(self._windows) > self._most:
                self._windows.popitem(last=False)
        window[0] += amount
        return int(window[0])

    def get(self, key: str) -> int:
        """What was counted."""
        window = self._windows.get(key)
        return 0 if window is None or self._clock() >= window[1] else int(window[0])

    def get_expiry(self, key: str) -> float:
        """The end of the window."""
        window = self._windows.get(key)
        return self._clock() if window is None else window[1]

    def take_back(self, key: str, end: float) -> None:
        """One hit of the window that ends at ``end`` was none; of a later one nothing is taken off."""
        window = self._windows.get(key)
        if window is not None and window[1] == end:
            window[0] -= 1

    def check(self) -> bool:
        """Always there."""
        return True

    def reset(self) -> int:
        """Forget all."""
        number = len(self._windows)
        self._windows.clear()
        return number

    def clear(self, key: str) -> None:
        """Forget one."""
        self._windows.pop(key, None)
