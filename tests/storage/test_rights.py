"""What Redis must let its user do: as the page about it says, as the scripts need it, and as it is asked."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mcp_middleware.storage import RedisConnection
from mcp_middleware.storage.rights import refusal

from .redis_server import RedisServer, running_redis

ROOT = Path(__file__).parents[2]
(LINE,) = re.findall(r"^ACL SETUSER mcp .*$", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE)
COMMANDS = [word[1:].upper() for word in LINE.split() if word.startswith("+")]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
async def connection(server: RedisServer) -> AsyncIterator[RedisConnection]:
    """By the user of the page."""
    with server.client() as client:
        client.execute_command(LINE)
    made = RedisConnection(server.url.replace("//", "//mcp:password@"), budget=10.0)
    yield made
    await made.aclose()


def test_the_page_names_what_the_scripts_call() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "mcp_middleware" / "storage").glob("*.lua"))
    called = set(re.findall(r"redis\.p?call\('([A-Z]+)'", scripts))
    asked = set(re.findall(r"may\('([A-Z]+)'", scripts))
    assert called == asked == set(COMMANDS) - {"EVAL", "EVALSHA"}


async def test_the_rights_of_the_page_are_enough(server: RedisServer, connection: RedisConnection) -> None:
    assert await connection.connect()
    assert await refusal(connection) is None
    with server.client() as client:
        assert all(client.pttl(key) != -1 for key in client.scan_iter()), "nothing stays"


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"TIME", "EVAL"}))
async def test_a_right_that_is_missing_is_named(server: RedisServer, connection: RedisConnection, command: str) -> None:
    assert await connection.connect()
    with server.client() as client:
        client.execute_command("ACL SETUSER", "mcp", f"-{command}")
        said = await refusal(connection)
    assert said is not None
    named = "scripts" if command == "EVALSHA" else f"{command} ("
    assert said.startswith(f"Redis at 127.0.0.1:{server.port} refuses {named}")
    assert said.endswith("; give its user the rights that docs/redis.md names")
    assert "password" not in said


async def test_keys_that_the_user_may_not_use_are_noticed(server: RedisServer, connection: RedisConnection) -> None:
    assert await connection.connect()
    with server.client() as client:
        client.execute_command("ACL SETUSER", "mcp", "resetkeys", "~other:*")
        said = await refusal(connection)
    assert said is not None
    assert said.startswith(f"Redis at 127.0.0.1:{server.port} refuses ")


async def test_of_a_redis_that_is_away_nothing_is_said() -> None:
    assert await refusal(RedisConnection("redis://127.0.0.1:1")) is None
