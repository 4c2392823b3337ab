"""Where the members keep what must outlive a request."""

from .bucket import Limit, Limits, Shortage
from .connection import RedisConnection
from .interface import LimitStorage, Reservation, StorageUnavailableError
from .memory import MemoryStorage
from .redis import RedisStorage
from .redis_sessions import RedisSessions
from .sessions import Agent, MemorySessions, Place, SessionStore, SessionTable, Use

__all__ = [
    "Agent",
    "Limit",
    "LimitStorage",
    "Limits",
    "MemorySessions",
    "MemoryStorage",
    "Place",
    "RedisConnection",
    "RedisSessions",
    "RedisStorage",
    "Reservation",
    "SessionStore",
    "SessionTable",
    "Shortage",
    "StorageUnavailableError",
    "Use",
]
