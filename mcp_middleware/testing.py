"""Tools for testing members and storages: a clock that a test moves."""

__all__ = ["FakeClock"]


class FakeClock:
    """A clock (``Clock``) that stands still until it is told to move. Seconds."""

    __slots__ = ("now",)

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``; a negative number moves back, as a clock that is set does."""
        self.now += seconds
