"""Which instance a request goes to, where several stand behind a gateway and nothing is shared but the key."""

import base64
import os
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.errors import INVALID_REQUEST, ConfigurationError
from mcp_middleware.exchange import exchange_of
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Rejection
from tests.core.recording import Witness
from tests.support import HELLO, headers_for, post

from .conftest import CallerLayer
from .test_middleware import ALICE, MALLORY, URL


class Fleet:
    """``Instances`` of which a test says which one is next and which ones are dead; and the server itself, that opens
    a session on the instance the exchange names."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.dead: set[str] = set()
        self.next = names[0] if names else ""
        self.moves_to: str | None = None
        """Where a request goes that finds its instance dead on the way."""
        self.status = 200
        self.refusal: Rejection | None = None
        """What it refuses everything with, as a forwarder does."""
        self.received: list[tuple[str | None, bytes | None]] = []
        """Instance and session of every request that was forwarded."""

    def choose(self) -> str | None:
        alive = [name for name in self.names if self.is_usable(name)]
        return self.next if self.next in alive else next(iter(alive), None)

    def is_usable(self, name: str) -> bool:
        return name in self.names and name not in self.dead

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        presented = dict(scope["headers"]).get(b"mcp-session-id")
        self.received.append((exchange.instance, presented))
        if self.moves_to is not None:
            exchange.instance = self.moves_to
        if self.refusal is not None:
            exchange.rejection = self.refusal
            self.status = self.refusal.status
        headers = [(b"content-type", b"application/json")]
        status = self.status if exchange.instance is not None else 503
        if presented is None and exchange.era == "legacy":
            headers.append((b"mcp-session-id", f"{exchange.instance}-{len(self.received)}".encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"jsonrpc":"2.0","id":1,"result":{}}'})


class Replica:
    """One gateway process in front of the fleet."""

    def __init__(self, fleet: Fleet, clock: FakeClock, key: str, **options: Any) -> None:
        self.fleet = fleet
        affinity = SessionAffinityMiddleware(fleet, keys=[key], instances=fleet, clock=clock, **options)
        self.witness = Witness(affinity)
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(CallerLayer(self.witness)))

    async def initialize(self, session: str | None = None, token: str = ALICE) -> httpx2.Response:
        return await post(self.http, URL, "initialize", HELLO, era="legacy", token=token, session=session)

    async def open(self) -> str:
        session: str = (await self.initialize()).headers["mcp-session-id"]
        return session

    async def ping(self, session: str | None, token: str = ALICE) -> int:
        return (await post(self.http, URL, "ping", era="legacy", token=token, session=session)).status_code


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("http://a:9002/mcp", "http://b:9003/mcp")


@pytest.fixture
def replica(fleet: Fleet, clock: FakeClock, key: str) -> Replica:
    return Replica(fleet, clock, key)


A, B = "http://a:9002/mcp", "http://b:9003/mcp"


async def test_every_request_of_a_session_reaches_its_owner(fleet: Fleet, clock: FakeClock, key: str) -> None:
    """By whichever replica, method and kind of message: nothing is shared but the key."""
    replicas = [Replica(fleet, clock, key) for _ in range(2)]
    sessions: dict[str, str] = {}
    for name in (A, B):
        fleet.next = name
        sessions[name] = await replicas[0].open()
    fleet.next = A
    for replica in (*replicas, Replica(fleet, clock, key)):  # the third one has started since
        for name, session in sessions.items():
            fleet.received.clear()
            assert await replica.ping(session) == 200
            for body in (
                {"jsonrpc": "2.0", "method": "notifications/initialized"},
                {"jsonrpc": "2.0", "id": 5, "result": {}},
            ):
                await replica.http.post(
                    URL, json=body, headers=headers_for(body, era="legacy", token=ALICE, session=session)
                )
            stream: Mapping[str, str] = {"last-event-id": "17"}
            for method, more in (("GET", {}), ("GET", stream), ("OPTIONS", {})):
                headers = headers_for(era="legacy", token=ALICE, session=session) | dict(more)
                await replica.http.request(method, URL, headers=headers)
            assert {instance for instance, _ in fleet.received} == {name}
            assert len(fleet.received) == 6
    for name, session in sessions.items():
        headers = headers_for(era="legacy", token=ALICE, session=session)
        assert (await replicas[1].http.delete(URL, headers=headers)).status_code == 200
        assert fleet.received[-1][0] == name


async def test_a_batch_goes_to_the_owner_message_by_message(fleet: Fleet, replica: Replica) -> None:
    session = await replica.open()
    fleet.next = B
    fleet.received.clear()
    body = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(3)]
    headers = headers_for(era="legacy", token=ALICE, session=session, version="2025-03-26")
    assert (await replica.http.post(URL, json=body, headers=headers)).status_code == 200
    assert [instance for instance, _ in fleet.received] == [A] * 3


async def test_a_dead_instance_makes_its_sessions_unknown_and_no_others(fleet: Fleet, replica: Replica) -> None:
    lost = await replica.open()
    fleet.next = B
    kept = await replica.open()
    fleet.dead.add(A)
    fleet.received.clear()
    for method in ("GET", "DELETE"):
        headers = headers_for(era="legacy", token=ALICE, session=lost)
        assert (await replica.http.request(method, URL, headers=headers)).status_code == 404
        assert replica.witness.reason == "session_instance_down"
        assert replica.witness.last.instance is None
    answer = await post(replica.http, URL, "ping", era="legacy", token=ALICE, session=lost)
    unknown = await post(replica.http, URL, "ping", era="legacy", token=ALICE, session="made-up")
    assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    assert fleet.received == []
    assert await replica.ping(kept) == 200
    started_anew = await replica.initialize(lost)  # with the old id still in the header, as some clients do
    assert started_anew.status_code == 200
    assert fleet.received[-1] == (B, None)


async def test_an_instance_that_comes_back_is_asked_again(fleet: Fleet, replica: Replica) -> None:
    """It may have hung and not died; if it lost the session, the 404 is its own."""
    session = await replica.open()
    fleet.dead.add(A)
    assert await replica.ping(session) == 404
    fleet.dead.clear()
    assert await replica.ping(session) == 200


async def test_an_instance_that_was_taken_out_of_the_configuration_is_no_longer_known(
    fleet: Fleet, replica: Replica
) -> None:
    session = await replica.open()
    fleet.names = (B,)
    assert await replica.ping(session) == 404
    assert replica.witness.reason == "session_instance_down"


async def test_sessions_on_a_dead_instance_use_up_no_places(fleet: Fleet, clock: FakeClock, key: str) -> None:
    replica = Replica(fleet, clock, key, per_agent=2)
    sessions = [await replica.open() for _ in range(2)]
    assert (await replica.initialize()).status_code == 429
    fleet.dead.add(A)
    for session in sessions:
        assert await replica.ping(session) == 404
        assert (await replica.initialize()).status_code == 200


async def test_a_client_that_starts_anew_is_not_held_up_by_what_it_lost(
    fleet: Fleet, clock: FakeClock, key: str
) -> None:
    """It restarted with the instance, and never asks for the sessions that its agent had there."""
    replica = Replica(fleet, clock, key, per_agent=2)
    lost = [await replica.open() for _ in range(2)]
    fleet.dead.add(A)
    for _ in range(2):
        assert (await replica.initialize()).status_code == 200
    assert (await replica.initialize()).status_code == 429
    fleet.dead.clear()
    for session in lost:
        assert await replica.ping(session) == 200


@pytest.mark.parametrize(("reason", "room"), [("session_instance_down", True), ("unknown_tool", False)])
async def test_case_22_only_a_404_about_the_session_makes_room(
    fleet: Fleet, clock: FakeClock, key: str, reason: str, room: bool
) -> None:
    """A forwarder that cannot connect says that the session is lost; a policy's 404 says nothing of it."""
    replica = Replica(fleet, clock, key, per_agent=1)
    session = await replica.open()
    fleet.refusal = Rejection(404, INVALID_REQUEST, "not found", reason)
    assert await replica.ping(session) == 404
    fleet.refusal, fleet.status = None, 200
    assert (await replica.initialize()).status_code == (200 if room else 429)


async def test_case_19_a_stranger_does_not_learn_whether_an_instance_is_down(fleet: Fleet, replica: Replica) -> None:
    session = await replica.open()
    fleet.dead.add(A)
    assert await replica.ping(session, token=MALLORY) == 404
    assert replica.witness.reason == "session_foreign"


async def test_without_any_instance_the_answer_is_the_forwarders(fleet: Fleet, replica: Replica) -> None:
    fleet.dead.update(fleet.names)
    for _ in range(3):
        response = await replica.initialize()
        assert response.status_code == 503
        assert "mcp-session-id" not in response.headers
        assert await replica.ping(None) == 503
    assert fleet.received[-1] == (None, None)


async def test_an_initialize_that_was_moved_on_its_way_is_sealed_for_where_it_arrived(
    fleet: Fleet, replica: Replica
) -> None:
    fleet.moves_to = B
    session = await replica.open()
    fleet.moves_to = None
    assert await replica.ping(session) == 200
    assert fleet.received[-1][0] == B


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
async def test_only_a_successful_initialize_opens_a_session(fleet: Fleet, replica: Replica, status: int) -> None:
    """A server puts throwaway ids on its refusals."""
    fleet.status = status
    assert "mcp-session-id" not in (await replica.initialize()).headers


async def test_the_modern_era_goes_anywhere_and_its_session_header_means_nothing(
    fleet: Fleet, replica: Replica
) -> None:
    session = await replica.open()
    for name in (B, A, B):
        fleet.next = name
        for presented in (None, session, "made-up"):
            response = await post(
                replica.http, URL, "tools/call", {"name": "echo", "arguments": {}}, token=ALICE, session=presented
            )
            assert response.status_code == 200
            assert fleet.received[-1] == (name, None)
            assert "mcp-session-id" not in response.headers


async def test_a_refused_request_is_sent_nowhere(fleet: Fleet, clock: FakeClock, key: str) -> None:
    replica = Replica(fleet, clock, key, per_agent=1)
    await replica.open()
    other = base64.b64encode(os.urandom(32)).decode()
    foreign_key = await Replica(fleet, clock, other).open()
    fleet.received.clear()
    assert (await replica.initialize()).status_code == 429
    for presented in ("made-up", foreign_key):
        assert await replica.ping(presented) == 404
        assert replica.witness.last.instance is None
    assert fleet.received == []


async def test_an_id_sealed_by_a_single_server_is_not_routed(fleet: Fleet, clock: FakeClock, key: str) -> None:
    alone = SessionAffinityMiddleware(fleet, keys=[key], instance="pod-1", clock=clock)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(CallerLayer(alone))) as http:
        opened = await post(http, URL, "initialize", HELLO, era="legacy", token=ALICE)
    replica = Replica(fleet, clock, key)
    assert await replica.ping(opened.headers["mcp-session-id"]) == 404
    assert replica.witness.reason == "session_instance_down"


def test_instance_and_instances_exclude_each_other(fleet: Fleet, key: str) -> None:
    with pytest.raises(ConfigurationError, match="instance and instances are both given"):
        SessionAffinityMiddleware(fleet, keys=[key], instance="pod-1", instances=fleet)


@pytest.mark.parametrize("value", ["a", ["a", "b"], object()])
def test_wrong_instances_are_refused(fleet: Fleet, key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="SessionAffinityMiddleware: instances is"):
        SessionAffinityMiddleware(fleet, keys=[key], instances=value)
