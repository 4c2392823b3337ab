"""What members and replicas that share a store know of each other's sessions, and what they do without it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import MemorySessions, RedisConnection, RedisSessions, SessionStore
from mcp_middleware.storage.redis_sessions import _LEAVE_PLACE
from mcp_middleware.testing import FakeClock
from tests.storage.redis_server import RedisServer, running_redis
from tests.support import headers_for, until

from .test_middleware import ALICE, MALLORY, URL, Server, Stack

Start = Callable[..., Stack]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def start(server: Server, clock: FakeClock, key: str) -> Start:
    """Starts a process in front of the same server."""

    def build(**options: Any) -> Stack:
        return Stack(server, clock, keys=[key], **options)

    return build


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


class Replicas:
    """Processes in front of one server, each with its own connection to one Redis."""

    def __init__(self, redis: RedisServer, clock: FakeClock, key: str) -> None:
        self.redis = redis
        self.server = Server()
        self._clock = clock
        self._key = key
        self.made: list[Stack] = []

    def start(self, *, budget: float = 10.0, **options: Any) -> Stack:
        store = RedisSessions(RedisConnection(self.redis.url, budget=budget))
        options = {"idle": 600, "lifetime": 3600, "per_agent": 3, "store": store, **options}
        stack = Stack(self.server, self._clock, keys=[self._key], **options)
        self.made.append(stack)
        return stack

    async def aclose(self) -> None:
        for stack in self.made:
            await stack.affinity.aclose()


@pytest.fixture
async def replicas(shared_redis: RedisServer, clock: FakeClock, key: str) -> AsyncIterator[Replicas]:
    shared_redis.flush()
    made = Replicas(shared_redis, clock, key)
    yield made
    await made.aclose()


@pytest.fixture
async def own(clock: FakeClock, key: str) -> AsyncIterator[Replicas]:
    """On a Redis that the test may harm."""
    with running_redis() as server:
        made = Replicas(server, clock, key)
        yield made
        await made.aclose()


def store_of(stack: Stack) -> SessionStore:
    return stack.affinity._store


def connection_of(stack: Stack) -> RedisConnection:
    store = store_of(stack)
    assert isinstance(store, RedisSessions)
    return store._connection


async def test_case_22_replicas_count_together(replicas: Replicas) -> None:
    one, other = replicas.start(), replicas.start()
    await one.open()
    await other.open()
    session = await one.open()
    for stack in (one, other):
        refused = await stack.initialize()
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 750
        assert stack.witness.reason == "session_limit"
    assert (await other.initialize(token=MALLORY)).status_code == 200
    assert (await other.send("DELETE", session)).status_code == 200  # ended where it was not opened
    assert (await one.initialize()).status_code == 200
    assert (await other.initialize()).status_code == 429


async def test_case_22_a_flood_at_all_replicas_at_once_meets_the_cap(replicas: Replicas) -> None:
    stacks = [replicas.start() for _ in range(3)]
    answers = await asyncio.gather(*(stack.initialize() for stack in stacks for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 57


@pytest.mark.parametrize("status", [400, 500])
async def test_an_initialize_that_failed_takes_no_place(replicas: Replicas, status: int) -> None:
    stack = replicas.start()
    replicas.server.status = status
    for _ in range(5):
        assert (await stack.initialize()).status_code == status
    replicas.server.status = 200
    for _ in range(3):
        await stack.open()
    assert (await stack.initialize()).status_code == 429


async def test_what_the_server_lost_leaves_its_place(replicas: Replicas) -> None:
    one, other = replicas.start(per_agent=1), replicas.start(per_agent=1)
    session = await one.open()
    replicas.server.status = 404
    assert (await other.ping(session)).status_code == 404
    replicas.server.status = 200
    assert (await other.initialize()).status_code == 200


async def test_ended_at_one_replica_is_ended_at_all(replicas: Replicas) -> None:
    one, other = replicas.start(), replicas.start()
    session = await one.open()
    assert (await one.send("DELETE", session)).status_code == 200
    before = len(replicas.server.received)
    for stack in (one, other, other, replicas.start()):
        assert (await stack.ping(session)).status_code == 404
        assert stack.witness.reason == "session_ended"
    assert len(replicas.server.received) == before


async def test_a_session_in_use_elsewhere_is_not_idle(replicas: Replicas, clock: FakeClock) -> None:
    one, other = replicas.start(), replicas.start()
    session = await one.open()
    assert (await other.ping(session)).status_code == 200
    clock.advance(599)
    assert (await one.ping(session)).status_code == 200
    clock.advance(2)
    assert (await other.ping(session)).status_code == 200


async def test_a_session_idle_everywhere_is_over(replicas: Replicas, clock: FakeClock) -> None:
    one, other = replicas.start(), replicas.start()
    session = await one.open()
    assert (await other.ping(session)).status_code == 200
    with replicas.redis.client() as client:  # its place is free by Redis's clock, which no test can move
        for key in client.keys("*:places:*"):
            client.delete(key)
    clock.advance(600)
    assert (await one.ping(session)).status_code == 404
    assert one.witness.reason == "session_idle"
    assert (await other.ping(session)).status_code == 404


async def test_redis_is_told_of_a_busy_session_now_and_then(replicas: Replicas, clock: FakeClock) -> None:
    stack = replicas.start()
    session = await stack.open()

    def calls() -> int:
        with replicas.redis.client() as client:
            stats: dict[str, Any] = client.info("commandstats")
            return int(stats["cmdstat_evalsha"]["calls"])

    await stack.ping(session)
    before = calls()
    for _ in range(50):
        await stack.ping(session)
    assert calls() == before
    clock.advance(200)
    await stack.ping(session)
    assert calls() == before + 1


async def test_a_stream_that_stays_open_keeps_its_session(replicas: Replicas) -> None:
    stack = replicas.start(idle=0.08, lifetime=3600)
    session = await stack.open()
    use = store_of(stack).table.find(session.encode())
    assert use is not None
    store_of(stack).table.enter(use, use.used)
    with replicas.redis.client() as client:
        (key,) = client.keys("*:places:*")
        first = client.zscore(key, use.name)
        await until(lambda: (client.zscore(key, use.name) or 0) > first)
    store_of(stack).table.leave(use, use.used)


async def test_a_request_that_ends_while_the_store_is_closed_leaves_no_task(replicas: Replicas) -> None:
    stack = replicas.start()
    store, session = store_of(stack), await stack.open()
    assert isinstance(store, RedisSessions)
    use = store.table.find(session.encode())
    assert use is not None
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    ending = asyncio.create_task(store.keep(use, idle=600, now=use.used))
    await asyncio.wait({closing, ending})
    assert store._keeping is None


async def test_what_is_kept_in_redis_ends_by_itself(replicas: Replicas) -> None:
    stack = replicas.start(per_agent=None)
    sessions = [await stack.open() for _ in range(5)]
    await stack.send("DELETE", sessions[0])
    with replicas.redis.client() as client:
        keys = client.keys()
        assert len(keys) == 2
        assert len({key.partition(b"{")[2] for key in keys}) == 1  # one place in a cluster
        assert all(0 < client.pttl(key) <= 751_000 for key in keys)
        assert b"alice" not in b"".join(keys)


async def test_case_44_an_agent_that_opens_and_ends_leaves_a_bounded_trace(replicas: Replicas) -> None:
    store = store_of(replicas.start())
    connection = connection_of(replicas.made[0])
    keys = (b"p:{x}", b"e:{x}")
    await asyncio.gather(*(connection.run(_LEAVE_PLACE, keys, (b"%d" % n, b"600")) for n in range(1200)))
    with replicas.redis.client() as client:
        assert client.zcard("e:{x}") == 1000
    await store.aclose()


async def test_without_redis_sessions_go_on_and_none_is_opened(own: Replicas) -> None:
    """design.md: sealed ids keep routing; what needs the store answers 503, never 404, never 401."""
    one, other = own.start(), own.start()
    sessions = [await one.open() for _ in range(2)]
    assert (await other.ping(sessions[0])).status_code == 200
    own.redis.kill()
    fresh = own.start()
    for stack in (one, other, fresh):
        for session in sessions:
            assert (await stack.ping(session)).status_code == 200
            assert own.server.received[-1]
        refused = await stack.initialize()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["data"]["retryAfterMs"] >= 1000
        assert stack.witness.reason == "session_store_down"
        assert (await stack.ping(sessions[0], token=MALLORY)).status_code == 404
        assert (await stack.ping(None)).status_code == 200
    assert (await one.send("DELETE", sessions[1])).status_code == 200
    assert (await one.ping(sessions[1])).status_code == 404  # it knows that by itself
    own.redis.start()
    for stack in (one, other, fresh):
        assert await connection_of(stack).connect()
        assert (await stack.initialize()).status_code == 200


async def test_without_a_cap_nothing_needs_redis(own: Replicas) -> None:
    stack = own.start(per_agent=None)
    await stack.open()
    own.redis.kill()
    session = await stack.open()
    assert (await stack.ping(session)).status_code == 200
    assert (await stack.send("DELETE", session)).status_code == 200


async def test_case_42_a_paused_redis_is_waited_for_once(own: Replicas) -> None:
    stack = own.start(budget=0.5)
    assert await connection_of(stack).connect()
    session = await stack.open()
    own.redis.pause()
    assert (await stack.initialize()).status_code == 503
    assert not connection_of(stack).is_up
    for _ in range(3):
        assert (await stack.initialize()).status_code == 503
        assert (await stack.ping(session)).status_code == 200
    own.redis.resume()
    assert await connection_of(stack).connect()
    assert (await stack.initialize()).status_code == 200


async def test_flushed_redis_learns_the_sessions_again(replicas: Replicas, clock: FakeClock) -> None:
    one, other = replicas.start(), replicas.start()
    sessions = [await one.open() for _ in range(3)]
    replicas.redis.flush()
    for session in sessions:
        assert (await other.ping(session)).status_code == 200
    assert (await other.initialize()).status_code == 429


async def test_a_member_that_replaces_another_knows_its_sessions(start: Start, clock: FakeClock) -> None:
    """A reload: other options, the same store."""
    store = MemorySessions()
    before = start(store=store, per_agent=2, idle=600)
    sessions = [await before.open() for _ in range(2)]
    assert (await before.send("DELETE", sessions[0])).status_code == 200
    after = start(store=store, per_agent=1, idle=300)
    assert (await after.ping(sessions[0])).status_code == 404
    assert after.witness.reason == "session_ended"
    assert (await after.initialize()).status_code == 429
    clock.advance(300)
    assert (await after.ping(sessions[1])).status_code == 404
    assert after.witness.reason == "session_idle"
    assert (await before.initialize()).status_code == 200  # a request of the old one that came late


async def test_servers_that_share_a_store_are_kept_apart(start: Start, server: Server) -> None:
    store = MemorySessions()
    stack = start(store=store, per_agent=1)
    first = await stack.open()
    other = URL.replace("/mcp", "/other/mcp")
    headers = headers_for(era="legacy", token=ALICE, session=first)
    assert (await stack.http.get(other, headers=headers)).status_code == 404
    opened = await stack.http.post(
        other,
        json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
        headers=headers_for({"method": "initialize"}, era="legacy", token=ALICE),
    )
    assert opened.status_code == 200
    assert (await stack.initialize()).status_code == 429
    assert (await stack.ping(first)).status_code == 200


async def test_case_22_inventing_paths_brings_no_places(start: Start) -> None:
    """Without a shared store there is one server, which may answer every path."""
    stack = start(per_agent=1)
    await stack.open()
    answer = await stack.http.post(
        URL + "/invented",
        json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
        headers=headers_for({"method": "initialize"}, era="legacy", token=ALICE),
    )
    assert answer.status_code == 429


@pytest.mark.parametrize("value", ["redis://localhost", {}, 7])
def test_a_wrong_store_is_refused(server: Server, key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="SessionAffinityMiddleware: store is"):
        SessionAffinityMiddleware(server, keys=[key], store=value)


@pytest.mark.parametrize(("option", "value"), [("max_sessions", 0), ("prefix", "a b")])
def test_a_wrong_option_of_the_redis_store_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"RedisSessions: {option} is"):
        RedisSessions("redis://localhost", **{option: value})
