"""What the middleware makes of every answer a server can give, and of every state a session can be in."""

import base64
import logging
import os
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.testing import FakeClock
from tests.core.recording import Witness
from tests.support import HELLO, headers_for, post

from .conftest import ASGIApp, CallerLayer

URL = "http://testserver/mcp"
ALICE = "https://login.example.com|agent|alice|1"
MALLORY = "https://login.example.com|agent|mallory|1"
UPSTREAM = b"raw-upstream-id"


class Server:
    """A server that answers as it is told: the status and the session headers of the next answers."""

    def __init__(self) -> None:
        self.status = 200
        self.sessions: list[bytes] = [UPSTREAM]
        self.header = b"mcp-session-id"
        self.crash = False
        self.received: list[list[bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.received.append([value for name, value in scope["headers"] if name == b"mcp-session-id"])
        if self.crash:
            raise RuntimeError("crashed")
        headers = [(b"content-type", b"application/json"), *((self.header, value) for value in self.sessions)]
        body = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Stack:
    """One process: callers, a witness, affinity, and the server."""

    def __init__(self, server: Server, clock: FakeClock, *, keys: list[str | bytes], **options: Any) -> None:
        self.server = server
        self.affinity = SessionAffinityMiddleware(server, keys=keys, clock=clock, **options)
        self.witness = Witness(self.affinity)
        transport = httpx2.ASGITransport(CallerLayer(self.witness), raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport)

    async def initialize(self, *, token: str | None = ALICE, **options: Any) -> httpx2.Response:
        return await post(self.http, URL, "initialize", HELLO, era="legacy", token=token, **options)

    async def open(self, *, token: str | None = ALICE) -> str:
        response = await self.initialize(token=token)
        session: str = response.headers["mcp-session-id"]
        return session

    async def ping(self, session: str | None, *, token: str | None = ALICE, url: str = URL) -> httpx2.Response:
        return await post(self.http, url, "ping", era="legacy", token=token, session=session)

    async def send(self, method: str, session: str | None, **options: Any) -> httpx2.Response:
        headers = headers_for(era="legacy", token=ALICE, session=session, **options)
        return await self.http.request(method, URL, headers=headers)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def start(server: Server, clock: FakeClock, key: str) -> Callable[..., Stack]:
    """Starts a process in front of the same server."""

    def build(**options: Any) -> Stack:
        return Stack(server, clock, **{"keys": [key], **options})

    return build


@pytest.fixture
def stack(start: Callable[..., Stack]) -> Stack:
    return start(idle=600, lifetime=3600, per_agent=2)


@pytest.mark.parametrize("status", [200, 201, 202, 299])
async def test_a_successful_initialize_gets_a_sealed_id(stack: Stack, server: Server, status: int) -> None:
    server.status = status
    session = await stack.open()
    assert UPSTREAM not in session.encode()
    server.status = 200
    response = await stack.ping(session)
    assert response.headers["mcp-session-id"] == session
    assert server.received[-1] == [UPSTREAM]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 429, 500, 503, 302])
async def test_an_initialize_that_failed_opens_nothing(stack: Stack, server: Server, status: int) -> None:
    """The server's throwaway id goes nowhere, and the place is given back."""
    server.status = status
    for _ in range(4):
        response = await stack.initialize()
        assert response.status_code == status
        assert "mcp-session-id" not in response.headers
    server.status = 200
    assert await stack.open()


@pytest.mark.parametrize("header", [b"mcp-session-id", b"Mcp-Session-Id", b"MCP-SESSION-ID"])
async def test_the_servers_id_never_leaves_by_other_answers(stack: Stack, server: Server, header: bytes) -> None:
    session = await stack.open()
    server.header = header
    server.sessions = [b"raw-other-id", b"raw-third-id"]
    for method in ("GET", "HEAD", "OPTIONS"):
        bare = await stack.send(method, None)
        assert "mcp-session-id" not in bare.headers
        held = await stack.send(method, session)
        assert held.headers.get_list("mcp-session-id") == [session]
    assert "mcp-session-id" not in (await stack.ping(None)).headers
    assert (await stack.ping(session)).headers.get_list("mcp-session-id") == [session]


async def test_answers_without_the_header_get_none(stack: Stack, server: Server) -> None:
    session = await stack.open()
    server.sessions = []
    assert "mcp-session-id" not in (await stack.ping(session)).headers


@pytest.mark.parametrize(
    "ids",
    [
        [b""],
        [b"a b"],
        [b"caf\xe9"],
        [b"a\x7f"],
        [b"a\tb"],
        [b"u" * 1025],
        [b"first-id", b"second-id"],
        [b"first-id", b"first-id"],
    ],
)
async def test_an_unfit_id_of_the_server_is_withheld(
    stack: Stack, server: Server, ids: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Visible ASCII, one of them; the operator is told, without the id."""
    server.sessions = ids
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            response = await stack.initialize()
            assert response.status_code == 200
            assert "mcp-session-id" not in response.headers
    assert "withheld" in caplog.text
    assert "first-id" not in caplog.text
    server.sessions = [b"u" * 1024]
    assert (await stack.ping(await stack.open())).status_code == 200


async def test_a_server_without_sessions_is_left_alone(stack: Stack, server: Server) -> None:
    server.sessions = []
    for _ in range(4):
        assert "mcp-session-id" not in (await stack.initialize()).headers
    assert (await stack.ping(None)).status_code == 200
    assert server.received == [[]] * 5


async def test_a_crash_gives_the_place_back(stack: Stack, server: Server) -> None:
    server.crash = True
    for _ in range(4):
        assert (await stack.initialize()).status_code == 500
    server.crash = False
    session = await stack.open()
    server.crash = True
    assert (await stack.ping(session)).status_code == 500
    server.crash = False
    assert (await stack.ping(session)).status_code == 200


@pytest.mark.parametrize(("status", "ended"), [(200, True), (204, True), (404, True), (405, False), (500, False)])
async def test_delete_ends_what_the_server_ended(stack: Stack, server: Server, status: int, ended: bool) -> None:
    """Forwarded to the owner; 2xx and 404 end the session, 405 keeps it."""
    session = await stack.open()
    server.status = status
    assert (await stack.send("DELETE", session)).status_code == status
    assert server.received[-1] == [UPSTREAM]
    server.status = 200
    before = len(server.received)
    assert (await stack.ping(session)).status_code == (404 if ended else 200)
    assert stack.witness.reason == ("session_ended" if ended else None)
    assert len(server.received) == before + (not ended)
    assert (await stack.initialize()).status_code == 200
    assert (await stack.initialize()).status_code == (200 if ended else 429)


async def test_a_session_the_server_lost_is_the_servers_to_refuse(stack: Stack, server: Server) -> None:
    """Its 404 passes, its place is free, and the id still reaches the server, which may know better."""
    session = await stack.open()
    await stack.open()
    assert (await stack.initialize()).status_code == 429
    server.status = 404
    lost = await stack.ping(session)
    assert lost.status_code == 404
    assert lost.json()["result"] == {}
    assert lost.headers["mcp-session-id"] == session
    server.status = 200
    assert (await stack.initialize()).status_code == 200
    assert (await stack.ping(session)).status_code == 200
    assert server.received[-1] == [UPSTREAM]


async def test_case_22_a_404_of_the_router_makes_no_room(stack: Stack, server: Server) -> None:
    """The path with a slash more is the same endpoint, for servers that redirect; others know nothing there."""
    session = await stack.open()
    await stack.open()
    server.status = 404
    for response in (
        await stack.ping(session, url=URL + "/"),
        await stack.http.delete(URL + "/", headers=headers_for(era="legacy", token=ALICE, session=session)),
    ):
        assert response.status_code == 404
        assert server.received[-1] == [UPSTREAM]
    server.status = 200
    assert (await stack.initialize()).status_code == 429
    assert (await stack.ping(session)).status_code == 200


async def test_a_session_outlives_a_restart(start: Callable[..., Stack], clock: FakeClock) -> None:
    """Nothing is stored: the sealed id is enough. Idle time starts anew, the lifetime does not."""
    session = await start(idle=600, lifetime=3600).open()
    clock.advance(700)
    restarted = start(idle=600, lifetime=3600)
    assert (await restarted.ping(session)).status_code == 200
    clock.advance(600)
    assert (await restarted.ping(session)).status_code == 404
    assert restarted.witness.reason == "session_idle"
    assert (await restarted.ping(session)).status_code == 404
    assert restarted.witness.reason == "session_ended"
    clock.advance(2300)
    again = start(idle=600, lifetime=3600)
    assert (await again.ping(session)).status_code == 404
    assert again.witness.reason == "session_expired"


async def test_keys_rotate_under_live_sessions(start: Callable[..., Stack], key: str) -> None:
    new = base64.b64encode(os.urandom(32))
    session = await start().open()
    assert (await start(keys=[new, key]).ping(session)).status_code == 200
    rotated = start(keys=[new])
    assert (await rotated.ping(session)).status_code == 404
    assert rotated.witness.reason == "session_unknown"


async def test_case_20_another_instances_session_is_unknown_here(start: Callable[..., Stack], server: Server) -> None:
    one, two = start(instance="pod-1"), start(instance="pod-2")
    session = await one.open()
    assert one.witness.last.instance == "pod-1"
    refused = await two.ping(session)
    assert refused.status_code == 404
    assert two.witness.reason == "session_elsewhere"
    assert refused.content == (await two.ping("nonsense")).content
    assert len(server.received) == 1
    assert (await one.ping(session)).status_code == 200


async def test_case_19_and_20_every_refusal_is_the_same(
    stack: Stack, start: Callable[..., Stack], clock: FakeClock
) -> None:
    """Only the record tells them apart."""
    foreign = await stack.open(token=MALLORY)
    elsewhere = await start(instance="pod-2").open()
    ended, live = await stack.open(token=ALICE.replace("agent", "second")), await stack.open()
    await stack.http.delete(
        URL, headers=headers_for(era="legacy", token=ALICE.replace("agent", "second"), session=ended)
    )
    attempts = {
        "session_unknown": ("chosen", ALICE, URL),
        "session_foreign": (foreign, ALICE, URL),
        "session_elsewhere": (elsewhere, ALICE, URL),
        "session_ended": (ended, ALICE.replace("agent", "second"), URL),
    }
    seen: list[tuple[int, bytes, list[tuple[str, str]]]] = []
    for reason, (session, token, url) in attempts.items():
        response = await stack.ping(session, token=token, url=url)
        assert stack.witness.reason == reason
        seen.append((response.status_code, response.content, response.headers.multi_items()))
    tampered = live[:-1] + ("A" if live[-1] != "A" else "B")
    for session, url in ((tampered, URL), (live, URL + "/other")):
        response = await stack.ping(session, url=url)
        assert stack.witness.reason == "session_unknown"
        seen.append((response.status_code, response.content, response.headers.multi_items()))
    clock.advance(600)
    response = await stack.ping(live)
    assert stack.witness.reason == "session_idle"
    seen.append((response.status_code, response.content, response.headers.multi_items()))
    clock.advance(3000)
    response = await stack.ping(live)
    assert stack.witness.reason == "session_expired"
    seen.append((response.status_code, response.content, response.headers.multi_items()))
    assert all(answer == seen[0] for answer in seen)
    assert seen[0][0] == 404


async def test_case_19_a_stranger_does_not_keep_a_session_awake(stack: Stack, clock: FakeClock) -> None:
    session = await stack.open()
    clock.advance(599)
    assert (await stack.ping(session, token=MALLORY)).status_code == 404
    clock.advance(1)
    assert (await stack.ping(session)).status_code == 404
    assert stack.witness.reason == "session_idle"


async def test_records_name_the_session_and_never_its_id(stack: Stack) -> None:
    """The same short name from initialize on, also where a stolen id was refused."""
    session = await stack.open()
    name = stack.witness.last.session
    assert name is not None
    assert len(name) == 16
    assert name not in session
    await stack.ping(session)
    assert stack.witness.last.session == name
    await stack.send("GET", session)
    assert stack.witness.last.session == name
    await stack.ping(session, token=MALLORY)
    assert stack.witness.last.session == name
    await stack.ping("chosen")
    assert stack.witness.last.session is None
    await stack.open()
    assert stack.witness.last.session not in (None, name)
    assert stack.witness.last.instance is None


@pytest.mark.parametrize(
    ("version", "modern"), [("2026-07-28", True), ("2099-01-01", True), ("x", True), ("2024-11-05", False)]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_case_23_the_version_header_tells_the_era_of_get_and_delete(
    stack: Stack, server: Server, version: str, modern: bool, method: str
) -> None:
    session = await stack.open()
    for presented in (session, "chosen"):
        before = len(server.received)
        headers = headers_for(era="legacy", token=ALICE, session=presented, version=version)
        doubled = [*headers.items(), ("mcp-session-id", "another")] if modern else headers
        response = await stack.http.request(method, URL, headers=doubled)
        if modern:
            assert response.status_code == 200
            assert server.received[-1] == []
            assert "mcp-session-id" not in response.headers
        elif presented == session:
            assert server.received[-1] == [UPSTREAM]
        else:
            assert response.status_code == 404
            assert len(server.received) == before


async def test_case_22_callers_whom_nobody_authenticated_are_one_agent(stack: Stack) -> None:
    for _ in range(2):
        await stack.open(token=None)
    assert (await stack.initialize(token=None)).status_code == 429
    assert stack.witness.reason == "session_limit"
    assert (await stack.initialize()).status_code == 200


async def test_case_22_the_users_of_a_client_do_not_share_a_cap(stack: Stack) -> None:
    for _ in range(2):
        await stack.open()
    assert (await stack.initialize()).status_code == 429
    assert (await stack.initialize(token=MALLORY)).status_code == 200


async def test_case_25_a_new_token_brings_no_new_places(stack: Stack) -> None:
    for serial in "23":
        await stack.open(token=ALICE[:-1] + serial)
    assert (await stack.initialize()).status_code == 429


async def test_case_22_no_cap_on_request(start: Callable[..., Stack]) -> None:
    stack = start(per_agent=None)
    for _ in range(150):
        await stack.open()


async def test_one_key_for_two_mounts_keeps_them_apart(server: Server, clock: FakeClock, key: str) -> None:
    """Whether a framework hands the full path to a mounted app (Starlette) or cuts its own part off."""
    affinity = SessionAffinityMiddleware(server, keys=[key], clock=clock)
    seen: dict[str, httpx2.AsyncClient] = {}
    for name, scope in {
        "full": {"root_path": "/a", "path": "/a/mcp"},
        "cut": {"root_path": "/a", "path": "/mcp"},
        "other": {"root_path": "/b", "path": "/mcp"},
        "none": {"root_path": "", "path": "/mcp"},
    }.items():
        transport = httpx2.ASGITransport(_mounted(affinity, scope))
        seen[name] = httpx2.AsyncClient(transport=transport)
    opened = await post(seen["full"], URL, "initialize", HELLO, era="legacy")
    session = opened.headers["mcp-session-id"]
    answers = {
        name: (await post(http, URL, "ping", era="legacy", session=session)).status_code for name, http in seen.items()
    }
    assert answers == {"full": 200, "cut": 200, "other": 404, "none": 404}


def _mounted(app: ASGIApp, overlay: dict[str, str]) -> ASGIApp:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, **overlay}, receive, send)

    return mounted


async def test_memory_is_bounded_and_ids_stay_good(start: Callable[..., Stack]) -> None:
    stack = start(per_agent=None, max_sessions=5)
    opened = [await stack.open() for _ in range(20)]
    assert len(stack.affinity._sessions) == 5
    for session in opened:
        assert (await stack.ping(session)).status_code == 200
    assert len(stack.affinity._sessions) == 5


async def test_two_of_them_nest(server: Server, clock: FakeClock, key: str) -> None:
    """A gateway in front of a server that already seals: the outer one treats the inner one's id as the server's."""
    inner = SessionAffinityMiddleware(server, keys=[key], clock=clock, instance="inner")
    outer = SessionAffinityMiddleware(inner, keys=[key], clock=clock, instance="outer")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(outer)) as http:
        opened = await post(http, URL, "initialize", HELLO, era="legacy")
        session = opened.headers["mcp-session-id"]
        response = await post(http, URL, "ping", era="legacy", session=session)
    assert response.status_code == 200
    assert response.headers["mcp-session-id"] == session
    assert server.received[-1] == [UPSTREAM]


WRONG: dict[str, list[Any]] = {
    "idle": [0, -1, float("inf"), float("nan"), True, "30", None],
    "lifetime": [0, -1, float("inf"), float("nan"), True, "30", None],
    "per_agent": [0, -1, 1.5, True, "100"],
    "max_sessions": [0, -1, 1.5, True, "100", None],
    "instance": ["a b", "é", "a\n", "x" * 65, None, b"pod", 7],
    "keys": [[], "key", ["short"]],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in WRONG.items() for value in values])
def test_a_wrong_option_is_refused_by_name(server: Server, key: str, option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"SessionAffinityMiddleware: {option}"):
        SessionAffinityMiddleware(server, **{"keys": [key], option: value})  # type: ignore[arg-type]
