"""One Redis for the tests that do it no harm."""

from collections.abc import Iterator

import pytest

from .redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Running, and empty."""
    shared_redis.flush()
    return shared_redis
