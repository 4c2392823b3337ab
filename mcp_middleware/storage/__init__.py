"""Where the members keep what must outlive a request."""

from .bucket import Limit, Limits, Shortage
from .connection import RedisConnection
from .interface import LimitStorage, Reservation, StorageUnavailableError
from .memory import MemoryStorage
from .redis import RedisSessions, RedisStorage
from .sessions import MemorySessions, SessionStore

__all__ = [
    "Limit",
    "LimitStorage",
    "Limits",
    "MemorySessions",
    "MemoryStorage",
    "RedisConnection",
    "RedisSessions",
    "RedisStorage",
    "Reservation",
    "SessionStore",
    "Shortage",
    "StorageUnavailableError",
]
