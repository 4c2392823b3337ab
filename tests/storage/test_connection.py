"""One connection to Redis: what it takes for an answer, how long it waits, and which URLs it reads."""

import asyncio
import contextlib
import math
import socket
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import (
    RedisConnection,
    RedisStorage,
    Reservation,
    StorageUnavailableError,
    connection,
    open_requests,
)
from tests.certificates import certificate, server_context
from tests.support import Turns

from .redis_server import running_redis
from .storages import KEY, OPEN, SLOW, Storages, admitted, reserve, until


async def test_a_paused_redis_is_asked_once_and_then_left_alone(own: Storages) -> None:
    """The breaker: whoever comes later waits for nothing, and an attempt that hangs harms nobody."""
    storage = own.make(budget=0.5)
    assert await storage._connection.connect()
    own.server.pause()
    await reserve(storage)
    assert not storage._connection.is_up
    with Turns() as others:
        for _ in range(5):
            await reserve(storage)
    assert others.taken <= 5  # not one of them gave the loop more than a turn


async def test_a_busy_loop_is_not_a_slow_redis(storages: Storages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is there, only nobody has read it: a plain timeout of 50 ms would fire after each of these."""
    import time

    storage = storages.make(budget=0.05)
    assert await storage._connection.connect()
    for _ in range(3):
        pending = asyncio.create_task(storage.reserve(KEY, SLOW, 0))
        for _ in range(3):  # so that it has been sent
            await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251  # the loop is what is to be kept busy
        assert isinstance(await pending, Reservation)
        assert storage._connection.is_up
    assert await admitted(storage, 20) == 7


async def test_a_busy_loop_takes_nothing_of_the_time_that_redis_has(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storages.make()
    await reserve(storage)
    happened: list[str] = []
    deadline = RedisConnection.deadline

    def noting(connection: RedisConnection) -> float:
        happened.append("deadline")
        return deadline(connection)

    monkeypatch.setattr(RedisConnection, "deadline", noting)
    call = asyncio.create_task(reserve(storage))
    asyncio.get_running_loop().call_soon(happened.append, "busy")  # after the call, and before what it sends is written
    await call
    assert happened == ["busy", "deadline"]


async def test_a_caller_that_goes_away_leaves_the_others_their_own_answers(storages: Storages) -> None:
    storage = storages.make()
    await reserve(storage)
    tasks = [asyncio.create_task(storage.reserve(b"%d" % n, SLOW, n)) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 2:
            assert isinstance(answer, Reservation)
            assert answer.tokens == number
            assert answer.remaining_tokens == 1000 - number


async def test_a_redis_that_refuses_is_no_redis(storages: Storages, caplog: pytest.LogCaptureFixture) -> None:
    """Out of memory: it answers, at once, and does nothing."""
    storage = storages.make(replicas=2)
    await storage._connection.connect()
    with storages.server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            assert await admitted(storage, 20) == 5
        finally:
            client.config_set("maxmemory", "0")
    assert len([record for record in caplog.records if "refused a command" in record.getMessage()]) == 1
    assert await admitted(storage, 20) == 5


async def test_case_42_a_redis_that_has_become_a_replica_is_left_for_whoever_took_its_name(
    own: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LONGEST_PAUSE", 0.01)
    storage = own.make(replicas=2)
    assert await admitted(storage, 4) == 4
    with own.server.client() as client:
        client.replicaof("127.0.0.1", 1)
        assert await admitted(storage, 20) == 3
        assert not storage._connection.is_up
        client.replicaof("NO", "ONE")
        while not storage._connection.is_up:
            await storage._connection.connect()
    assert await admitted(storage, 20) == 3


async def test_closing_goes_on_while_more_nodes_become_known(
    storages: Storages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that are redirected meanwhile."""
    redis = storages.make()._connection
    node = redis._node_at("127.0.0.1", storages.server.port)
    assert await node.connect()
    aclose = node.aclose

    async def redirected() -> None:
        redis._node_at("localhost", storages.server.port)
        await aclose()

    monkeypatch.setattr(node, "aclose", redirected)
    await redis.aclose()
    assert not redis._nodes
    assert not node.is_up


async def test_a_redis_that_is_back_is_found_although_nobody_calls(own: Storages) -> None:
    storage = own.make()
    assert await storage._connection.connect()
    own.server.kill()
    await until(lambda: not storage._connection.is_up)
    own.server.start()
    await until(lambda: storage._connection.is_up)
    assert not (await reserve(storage)).local


async def test_a_redis_that_takes_connections_and_no_scripts_is_tried_more_and_more_rarely(own: Storages) -> None:
    """As while a replica takes its place: what only reads is answered."""
    storage = own.make(budget=0.05)
    assert await storage._connection.connect()
    with own.server.client() as client:
        client.client_pause(60_000, all=False)
        for times in (1, 2, 3):
            await until(lambda: storage._connection.is_up)
            assert (await reserve(storage)).local
            assert storage._connection._pause == connection._SHORTEST_PAUSE * 2**times
        client.client_unpause()
    await until(lambda: storage._connection.is_up)
    assert not (await reserve(storage)).local
    assert storage._connection._pause == connection._SHORTEST_PAUSE


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (b":1\r\n", "out of step"),
        (b"$1\r\n\xc1\r\n", "out of step"),
        (b"$1\r\n\x90\r\n", "out of step"),
        (b"what?\r\n", "ProtocolError"),
    ],
)
async def test_case_42_answers_that_are_out_of_step_are_not_taken_for_others(
    caplog: pytest.LogCaptureFixture, nonsense: bytes, why: str
) -> None:
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while asked := await reader.read(65_536):
                writer.write(b"+OK\r\n" * asked.count(b"SETINFO"))
                if b"TIME" in asked:
                    writer.write(b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n")
                elif b"EVAL" in asked:
                    writer.write(nonsense)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        storage = RedisStorage(RedisConnection(f"redis://127.0.0.1:{port}", budget=10.0), replicas=2)
        assert await admitted(storage, 20) == 5
        assert why in caplog.text
        await ended.wait()
        await storage.aclose()


async def test_what_cannot_be_written_leaves_nobody_waiting(storages: Storages) -> None:
    storage = storages.make()
    command: Any = object()
    with pytest.raises(StorageUnavailableError):
        await storage._connection.run(open_requests._HOLD, (OPEN,), (command,))


async def test_over_tls_and_with_answers_in_pieces(storages: Storages, tmp_path: Path) -> None:
    """Whatever kind of connection redis-py has opened, and however its answers arrive."""
    cert, private = certificate(tmp_path, "localhost")
    ended = asyncio.Event()

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, size: int) -> None:
        with contextlib.suppress(OSError):
            while part := await source.read(size):
                target.write(part)
                await target.drain()
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", storages.server.port)
        await asyncio.gather(pass_on(reader, there, 65_536), pass_on(back, writer, 7))
        ended.set()

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=server_context(cert, private)) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"rediss://localhost:{port}?ssl_ca_certs={cert}"
        storage = RedisStorage(RedisConnection(url, budget=10.0))
        answers = await asyncio.gather(*(storage.reserve(KEY, SLOW, 10) for _ in range(12)))
        assert [isinstance(answer, Reservation) for answer in answers] == [True] * 10 + [False] * 2
        assert not any(answer.local for answer in answers)
        await storage.aclose()
        await ended.wait()


@pytest.mark.parametrize("where", ["redis://ann:p%40ss@127.0.0.1:{port}/3?", "unix://ann:p%40ss@{path}?db=3&"])
async def test_what_the_url_says_is_told_to_redis(tmp_path: Path, where: str) -> None:
    path = tmp_path / "socket"
    with running_redis("--unixsocket", str(path)) as server, server.client() as client:
        client.execute_command("ACL SETUSER", "ann", "on", ">p@ss", "~*", "+@all")
        url = where.format(port=server.port, path=path) + "client_name=limiter"
        storage = RedisStorage(RedisConnection(url, budget=10.0))
        assert not (await reserve(storage)).local
        told = [(one["user"], one["name"], one["db"]) for one in client.client_list()]
        assert ("ann", "limiter", "3") in told
        await storage.aclose()


def is_down(connection: RedisConnection) -> bool:
    return not connection.is_up


async def test_a_server_that_hangs_up_once_it_has_answered_keeps_nobody() -> None:
    """By a reset, which may come between the answer and the first who asks, or before, or after."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = b""
        while b"TIME" not in asked:
            asked = await reader.read(65_536)
            writer.write(b"+OK\r\n" * asked.count(b"SETINFO"))
        writer.write(b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n")
        hard = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for number in range(40):
            shared = RedisConnection(f"redis://127.0.0.1:{port}", budget=10.0)
            await shared.connect()
            if number % 2:
                await until(partial(is_down, shared))
            await shared.aclose()


def test_a_library_that_reads_no_urls_any_more_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("redis.asyncio.connection.parse_url")
    with pytest.raises(ImportError, match="parse_url"):
        RedisConnection("redis://localhost")


async def test_a_password_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis("--requirepass", "hunter2") as server:
        url = server.url.replace("redis://", "redis://:{}@")
        for password, works in (("hunter2", True), ("hunter3", False)):
            storage = RedisStorage(RedisConnection(url.format(password), budget=10))
            await reserve(storage)
            assert storage._connection.is_up == works
            assert "hunter" not in repr(storage) + repr(storage._connection) + repr(vars(storage))
            await storage.aclose()
    assert "cannot be reached" in caplog.text
    assert "hunter" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        *("", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port/0", "redis://h?hunter2=1"),
        *("redis://h?db=x", "redis://h/hunter2", "redis://:hunter2@h/-1", "redis://h/0/1"),
    ],
)
def test_a_wrong_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: url") as caught:
        RedisStorage(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: url is of type int"):
        RedisStorage(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "1", None])
def test_a_wrong_budget_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="RedisConnection: budget is"):
        RedisConnection("redis://localhost", budget=value)


@pytest.mark.parametrize("module", ["redis.asyncio.connection", "hiredis"])
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=r"mcp-middleware\[redis\]"):
        RedisStorage("redis://localhost")
