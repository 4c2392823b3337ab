"""One Redis for the tests that do it no harm, and one each for those that do."""

from collections.abc import AsyncIterator, Iterator

import pytest

from .redis_server import RedisServer, running_redis
from .storages import Storages


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Running, and empty."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture
async def storages(redis_server: RedisServer) -> AsyncIterator[Storages]:
    made = Storages(redis_server)
    yield made
    await made.aclose()


@pytest.fixture
async def own() -> AsyncIterator[Storages]:
    """On a server that the test may harm."""
    with running_redis() as server:
        made = Storages(server)
        yield made
        await made.aclose()
