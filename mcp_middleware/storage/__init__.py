"""Where the members keep what must outlive a request."""

from .bucket import Limit, Limits, Shortage
from .connection import RedisConnection
from .interface import LimitStorage, Reservation, StorageUnavailableError
from .memory import MemoryStorage
from .redis import RedisStorage

__all__ = [
    "Limit",
    "LimitStorage",
    "Limits",
    "MemoryStorage",
    "RedisConnection",
    "RedisStorage",
    "Reservation",
    "Shortage",
    "StorageUnavailableError",
]
