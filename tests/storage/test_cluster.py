"""A cluster of several nodes, as Redis itself runs it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.storage import RedisConnection, RedisStorage

from .redis_server import running_redis
from .storages import IN_PARTS, reserve, until


def is_whole(client: Any) -> bool:
    """Whether a node of a cluster knows somebody for every slot."""
    state: str = client.execute_command("CLUSTER INFO")["cluster_state"]
    return state == "ok"


async def test_in_cluster_mode(tmp_path: Path) -> None:
    """A server that refuses scripts whose keys live apart."""
    nodes = tmp_path / "nodes.conf"
    with running_redis("--cluster-enabled", "yes", "--cluster-config-file", str(nodes)) as server:
        with server.client() as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
            await until(lambda: is_whole(client))
        storage = RedisStorage(RedisConnection(server.url, budget=10))
        for number in range(50):
            reservation = await reserve(storage, 10, IN_PARTS, key=b"%d" % number)
            await storage.top_up(reservation, 5)
            await storage.settle(reservation, 5)
        assert storage._connection.is_up
        await storage.aclose()


async def test_in_a_cluster_each_key_is_asked_for_where_it_lives(tmp_path: Path) -> None:
    def node(name: str) -> Any:
        return running_redis("--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / name))

    with node("one.conf") as one, node("other.conf") as other, one.client() as here, other.client() as there:
        here.execute_command("CLUSTER ADDSLOTS", *range(8192))
        there.execute_command("CLUSTER ADDSLOTS", *range(8192, 16384))
        here.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        for client in (here, there):
            await until(partial(is_whole, client))
        storage = RedisStorage(RedisConnection(one.url, budget=10))
        for number in range(50):
            reservation = await reserve(storage, 100, key=b"%d" % number)
            await storage.settle(reservation, 50)
            assert (await reserve(storage, key=b"%d" % number)).remaining_tokens == pytest.approx(950, abs=0.1)
        assert here.dbsize() + there.dbsize() == 50
        assert min(here.dbsize(), there.dbsize()) > 10
        other.kill()
        await until(lambda: not all(node.is_up for node in storage._connection._nodes.values()))
        for number in range(50):  # those of the lost node by this replica's share
            await reserve(storage, key=b"%d" % number)
        await storage.aclose()
