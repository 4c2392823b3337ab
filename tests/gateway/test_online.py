"""What Redis says to who checks a configuration, and to who starts by it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.gateway.shared import Shared
from tests.storage.redis_server import RedisServer, running_redis
from tests.support import free_port

from .processes import configured
from .test_issuers import checked


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """With a user who may do nothing to data but read it."""
    with running_redis() as server:
        with server.client() as client:
            client.execute_command("ACL SETUSER", "reader", "on", ">hunter2", "~*", "+@read", "+@scripting", "+time")
        yield server


async def test_check_asks_redis_for_the_rights_that_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], redis: RedisServer
) -> None:
    sections = configured({"files": "http://127.0.0.1:9"}, free_port(), state=redis.url)

    async def check(state: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(checked, tmp_path / "gateway.yaml", sections | {"state": state}, capsys)

    place = f"online: state: Redis at 127.0.0.1:{redis.port}"
    status, out, err = await check(redis.url)
    assert (status, err) == (1, ""), "the server does not answer"
    assert f"{place} answers as expected" in out

    status, _, err = await check(redis.url.replace("//", "//reader:hunter2@"))
    assert status == 2
    assert f"{place} refuses ZREM, " in err
    assert "give its user the rights that docs/redis.md names" in err
    assert "hunter2" not in err

    status, out, err = await check(redis.url.replace("//", "//reader:wrong@"))
    assert f"{place} does not answer, or not to this user" in out
    assert "WRONGPASS" in err

    redis.kill()
    status, out, err = await check(redis.url)
    assert status == 1
    assert f"{place} does not answer" in out
    assert "cannot be reached" in err


async def test_a_start_says_which_rights_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, redis: RedisServer
) -> None:
    state = redis.url.replace("//", "//reader:hunter2@")
    shared = Shared(from_mapping(configured({"files": "http://127.0.0.1:9"}, free_port(), state=state)), None)
    assert shared.connection is not None
    shared.connection.budget = 10.0
    await shared.start()
    await shared.aclose()
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said.startswith(f"Redis at 127.0.0.1:{redis.port} refuses ZREM, ")
