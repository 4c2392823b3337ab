"""A cluster of several nodes, as Redis itself runs it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from mcp_middleware.storage import (
    Limit,
    Limits,
    Place,
    RedisConnection,
    RedisSessions,
    RedisStorage,
    Reservation,
    StorageUnavailableError,
    connection,
)
from mcp_middleware.storage.budgets import Spending, Wallet
from mcp_middleware.storage.sessions import Agent

from .redis_server import RedisServer, running_redis
from .storages import IN_PARTS, reserve, until

MANY = Limits(Limit(1000, 0.001), None)
WALLET = Wallet("EUR month", "month", 10_000)


class Cluster:
    """Three masters, the first of which is in the URL, and a replica of one of them."""

    def __init__(self, servers: list[RedisServer], replicated: int) -> None:
        self.masters, self.replica, self.replicated = servers[:3], servers[3], servers[replicated]
        self.url = servers[0].url
        self.ids = {server: self.tell(server, "CLUSTER MYID").decode() for server in servers}

    def tell(self, server: RedisServer, *words: Any) -> Any:
        with server.client() as client:
            return client.execute_command(*words)

    async def form(self) -> None:
        """The nodes meet, share the slots, and all know of each other."""
        bounds = (0, 5461, 10_922, 16_384)
        for number, master in enumerate(self.masters):
            self.tell(master, "CLUSTER ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for server in self.ids:
            self.tell(server, "CLUSTER MEET", "127.0.0.1", self.masters[0].port)
        for server in self.ids:
            with server.client() as client:
                await until(partial(is_whole, client, len(self.ids)))
        self.tell(self.replica, "CLUSTER REPLICATE", self.ids[self.replicated])
        with self.replica.client() as client:
            await until(lambda: client.info("replication").get("master_link_status") == "up")

    async def fail_over(self) -> None:
        """The master dies, when its replica has everything that it has, and that takes its place."""
        with self.replicated.client() as client:
            assert client.wait(1, 10_000) == 1
        self.replicated.kill()
        self.tell(self.replica, "CLUSTER FAILOVER", "TAKEOVER")

    async def move(self, names: list[bytes], meanwhile: Callable[[], Awaitable[None]]) -> RedisServer:
        """Move the slot of ``names`` to another master, which is returned, and do ``meanwhile`` after each step."""
        slot = key_slot(names[0])
        source = next(server for server in self.masters if self.keeps(server, slot))
        target = next(server for server in self.masters if server is not source)
        self.tell(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.tell(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.ids[target])
        await meanwhile()
        self.tell(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *names)
        await meanwhile()
        for server in (target, source):
            self.tell(server, "CLUSTER SETSLOT", slot, "NODE", self.ids[target])
        await meanwhile()
        return target

    def keeps(self, server: RedisServer, slot: int) -> bool:
        return bool(self.tell(server, "CLUSTER COUNTKEYSINSLOT", slot))


@contextlib.asynccontextmanager
async def running_cluster(tmp_path: Path, *, replicated: int = 0) -> AsyncIterator[Cluster]:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_redis(
                    *("--cluster-enabled", "yes", "--cluster-config-file", f"{number}.conf"),
                    *("--cluster-require-full-coverage", "no", "--dir", str(tmp_path), "--dbfilename", f"{number}.rdb"),
                )
            )
            for number in range(4)
        ]
        cluster = Cluster(servers, replicated)
        await cluster.form()
        yield cluster


class Replica:
    """A process of ours that keeps limits, budgets and sessions there, by one connection."""

    def __init__(self, url: str) -> None:
        shared = RedisConnection(url, budget=10)
        self.limits, self.sessions = RedisStorage(shared), RedisSessions(shared)

    async def reserve(self, number: int) -> Reservation:
        return await reserve(self.limits, 0, MANY, b"%d" % number)

    async def spend(self, number: int) -> Spending:
        answer = await self.limits.budgets.spend(b"%d" % number, (WALLET,), 3)
        assert isinstance(answer, Spending)
        return answer

    async def place(self, number: int) -> bool:
        """Whether a session finds a place; there are two for each agent."""
        answer = await self.sessions.reserve(agent(number), per_agent=2, idle=600, now=time.time())
        return isinstance(answer, Place)

    async def aclose(self) -> None:
        await self.limits.aclose()
        await self.sessions.aclose()


def agent(number: int) -> Agent:
    return ("https://login.example.com", f"agent {number}", None)


@contextlib.asynccontextmanager
async def two_replicas(url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    both = Replica(url), Replica(url)
    yield both
    for one in both:
        await one.aclose()


async def through_redis(ask: Callable[[int], Awaitable[Any]], number: int) -> tuple[Any, int]:
    """Ask until the nodes have told each other of the new one; the answer, and how often that took."""
    times = 0
    while True:
        times += 1
        with contextlib.suppress(StorageUnavailableError):
            answer = await ask(number)
            if not getattr(answer, "local", False):
                return answer, times
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 2], ids=["the one in the URL", "another"])
async def test_case_42_a_node_dies_and_its_replica_takes_its_place(tmp_path: Path, dies: int) -> None:
    """What was let through meanwhile is told, so everything counts once."""
    numbers = range(30)
    async with running_cluster(tmp_path, replicated=dies) as cluster, two_replicas(cluster.url) as (one, other):
        for number in numbers:
            for spent, replica in ((3, one), (6, other)):
                assert not (await replica.reserve(number)).local
                assert (await replica.spend(number)).spent == (spent,)
                assert await replica.place(number)
            assert not await one.place(number)
        assert all(cluster.tell(server, "DBSIZE") > 10 for server in cluster.masters)
        await cluster.fail_over()
        for number in numbers:
            used = 2
            for replica in (other, one):
                reservation, times = await through_redis(replica.reserve, number)
                used += times
                assert reservation.remaining_requests == pytest.approx(1000 - used, abs=0.1)
            used = 2
            for replica in (other, one):
                spending, times = await through_redis(replica.spend, number)
                used += times
                assert spending.spent == (3 * used,)
            assert not (await through_redis(one.place, number))[0]


@pytest.mark.slow
async def test_case_42_a_node_that_comes_back_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its data, which is then what the replicas remember."""
    monkeypatch.setattr(connection, "_LONGEST_PAUSE", 0.1)
    numbers = range(30)
    async with running_cluster(tmp_path) as cluster, two_replicas(cluster.url) as (one, _):
        for number in numbers:
            assert not (await one.reserve(number)).local
        lost = cluster.masters[1]
        lost.kill()
        assert any([(await one.reserve(number)).local for number in numbers])
        lost.start()
        for number in numbers:
            reservation, times = await through_redis(one.reserve, number)
            assert reservation.remaining_requests == pytest.approx(1000 - 2 - times, abs=0.1)


async def use(replica: Replica, number: int, held: list[Reservation]) -> None:
    """By the store in the end; what the replica let through while nodes could not tell (TRYAGAIN) counts too."""
    held.append(await reserve(replica.limits, 10, IN_PARTS, b"%d" % number))
    while held[-1].local:
        await replica.limits.settle(held[-1], None)  # only its place is free again
        await asyncio.sleep(0.2)
        held.append(await reserve(replica.limits, 10, IN_PARTS, b"%d" % number))
    assert held[-1].remaining_requests == pytest.approx(10 - len(held), abs=0.1)
    uses = sum(not one.local for one in held)
    assert (await replica.spend(number)).spent == (3 * uses,)


async def open_if_possible(replica: Replica, number: int, opened: list[bool]) -> None:
    with contextlib.suppress(StorageUnavailableError):
        opened.append(await replica.place(number))


@pytest.mark.slow
async def test_a_slot_moves_while_it_is_used(tmp_path: Path) -> None:
    """First by ASK, then by MOVED. What needs two keys waits while the nodes cannot tell whether there are both."""
    async with running_cluster(tmp_path) as cluster, two_replicas(cluster.url) as (one, other):
        for number in range(3):
            held: list[Reservation] = []
            await use(one, number, held)
            tag = (b"%d" % number).hex().encode()
            names = [b"mcp_middleware:%b:{%b}" % (kind, tag) for kind in (b"limit", b"open", b"budget")]
            target = await cluster.move(names, partial(use, other, number, held))
            assert cluster.tell(target, "EXISTS", *names) == 3
            await use(one, number, held)
            opened: list[bool] = []
            await open_if_possible(one, number, opened)
            names = list(one.sessions._keys(agent(number)))
            target = await cluster.move(names, partial(open_if_possible, other, number, opened))
            assert opened == [True, True]
            assert cluster.tell(target, "ZCARD", names[0]) == 2
            assert not await one.place(number)


def is_whole(client: Any, nodes: int) -> bool:
    """Whether a node of a cluster knows all of them, and somebody for every slot."""
    known: dict[str, str] = client.execute_command("CLUSTER INFO")
    return known["cluster_state"] == "ok" and int(known["cluster_known_nodes"]) == nodes


async def test_in_cluster_mode(tmp_path: Path) -> None:
    """A server that refuses scripts whose keys live apart."""
    nodes = tmp_path / "nodes.conf"
    with running_redis("--cluster-enabled", "yes", "--cluster-config-file", str(nodes)) as server:
        with server.client() as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
            await until(partial(is_whole, client, 1))
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
            await until(partial(is_whole, client, 2))
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
