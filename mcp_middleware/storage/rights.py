"""Whether Redis lets its user do what the scripts do."""

from typing import Final

from .connection import RedisConnection, Script
from .interface import StorageUnavailableError

__all__ = ["refusal"]

_RIGHTS: Final = Script("rights.lua")
_KEYS: Final = (b"mcp_middleware:{rights}:hash", b"mcp_middleware:{rights}:set")
_REMEDY: Final = "give its user the rights that docs/redis.md names"


async def refusal(connection: RedisConnection) -> str | None:
    """What Redis refuses, and the remedy; None where it refuses nothing, or is away."""
    try:
        refused = [part.decode("utf-8", "replace") for part in await connection.run(_RIGHTS, _KEYS, ())]
    except StorageUnavailableError:
        return f"Redis at {connection.place} refuses scripts; {_REMEDY}" if connection.is_up else None
    if not refused:
        return None
    return f"Redis at {connection.place} refuses {', '.join(refused[::2])} ({refused[1]}); {_REMEDY}"
