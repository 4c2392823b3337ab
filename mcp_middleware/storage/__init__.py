"""Where the members keep what must outlive a request."""

from .bucket import Limit, Limits, Shortage
from .interface import LimitStorage, Reservation
from .memory import MemoryStorage

__all__ = ["Limit", "LimitStorage", "Limits", "MemoryStorage", "Reservation", "Shortage"]
