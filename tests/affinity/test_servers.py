"""The official client and raw requests against real servers of the SDK and of FastMCP, over sockets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import mcp_types
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.middleware import Middleware

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.testing import FakeClock
from tests.mcp_servers import CONTEXTS, Kind, app_of, each_server, server_of
from tests.support import ERAS, HELLO, answer_of, connect, headers_for, initialize, post, serve, text_of

from .conftest import ASGIApp, CallerLayer, Recorder

ALICE = "https://login.example.com|agent|alice|1"
ALICE_REFRESHED = "https://login.example.com|agent|alice|2"
STRANGERS = {
    "another subject": "https://login.example.com|agent|mallory|1",
    "another client": "https://login.example.com|other|alice|1",
    "another issuer": "https://evil.example.com|agent|alice|1",
    "nobody": None,
}
NOT_FOUND = {"code": -32600, "message": "Session not found"}


def app(kind: Kind, *middleware: Middleware, **options: Any) -> ASGIApp:
    server = server_of(kind)

    @server.tool()
    async def echo(text: str) -> str:
        return text

    async def announce(ctx: Any) -> str:
        await ctx.session.send_tool_list_changed()
        return "announced"

    announce.__annotations__["ctx"] = CONTEXTS[kind]
    server.tool()(announce)
    return app_of(server, *middleware, **options)


BUILDERS = [
    pytest.param(lambda: app("sdk", json_response=True), id="sdk-json"),
    pytest.param(lambda: app("fastmcp"), id="fastmcp"),
]


class Site:
    """A served stack: caller layer, affinity, recorder, server."""

    def __init__(self, url: str, http: httpx2.AsyncClient, recorder: Recorder, affinity: SessionAffinityMiddleware):
        self.url = url
        self.http = http
        self.recorder = recorder
        self.affinity = affinity

    async def call(self, session: str | None, *, token: str | None = ALICE, **options: Any) -> httpx2.Response:
        params = {"name": "echo", "arguments": {"text": "hello"}}
        return await post(
            self.http, self.url, "tools/call", params, era="legacy", token=token, session=session, **options
        )

    async def send(self, method: str, session: str | None, *, token: str | None = ALICE) -> httpx2.Response:
        """A GET or DELETE; of a stream only the head is read."""
        headers = headers_for(era="legacy", token=token, session=session)
        request = self.http.build_request(method, self.url, headers=headers)
        response = await self.http.send(request, stream=True)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            await response.aread()
        await response.aclose()
        return response


@pytest.fixture(params=BUILDERS)
async def site(request: pytest.FixtureRequest, key: str, clock: FakeClock) -> AsyncIterator[Site]:
    async for built in build_site(request.param(), key, clock):
        yield built


@pytest.fixture
async def sdk_site(key: str, clock: FakeClock) -> AsyncIterator[Site]:
    async for built in build_site(app("sdk"), key, clock):
        yield built


async def build_site(server: ASGIApp, key: str, clock: FakeClock) -> AsyncIterator[Site]:
    recorder = Recorder(server)
    affinity = SessionAffinityMiddleware(recorder, keys=[key], idle=600, lifetime=3600, per_agent=3, clock=clock)
    async with serve(CallerLayer(affinity)) as origin, httpx2.AsyncClient() as http:
        yield Site(origin + "/mcp", http, recorder, affinity)


async def test_the_official_client_works_and_never_sees_the_servers_id(site: Site) -> None:
    """Initialize, calls, notifications on the GET stream, DELETE at the end."""
    told = asyncio.Event()
    seen: list[str] = []

    async def on_message(message: Any) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            told.set()

    async def keep(response: httpx2.Response) -> None:
        seen.extend(response.headers.get_list("mcp-session-id"))

    async with httpx2.AsyncClient(event_hooks={"response": [keep]}, timeout=20.0) as http:
        transport = streamable_http_client(site.url, http_client=http)
        async with Client(transport, mode="legacy", message_handler=on_message) as client:
            for text in ("one", "two"):
                assert text_of(await client.call_tool("echo", {"text": text})) == text
            async with asyncio.timeout(10):
                while not told.is_set():  # until the client has its stream, a notification finds no way to it
                    await client.call_tool("announce", {})
                    await asyncio.sleep(0.01)
    assert len(set(seen)) == 1
    assert not {value.encode() for value in seen} & site.recorder.issued
    assert len(site.recorder.issued) == 1
    reached = {method: ids for method, ids in site.recorder.requests if method in ("GET", "DELETE")}
    assert reached["GET"] == reached["DELETE"] == [*site.recorder.issued]
    assert (await site.call(seen[0], token=None)).status_code == 404


async def test_two_clients_have_sessions_of_their_own(site: Site) -> None:
    async with connect(site.url, era="legacy") as one, connect(site.url, era="legacy") as other:
        answers = await asyncio.gather(
            *(client.call_tool("echo", {"text": name}) for client, name in ((one, "1"), (other, "2")) * 5)
        )
    assert [text_of(answer) for answer in answers] == ["1", "2"] * 5
    assert len(site.recorder.issued) == 2


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_case_19_another_callers_session_is_unknown(sdk_site: Site, stranger: str) -> None:
    """On POST, GET and DELETE, and the owner is undisturbed. Same client, other subject: the same."""
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    before = len(site.recorder.requests)
    token = STRANGERS[stranger]
    stolen = [
        await site.call(session, token=token),
        await site.send("GET", session, token=token),
        await site.send("DELETE", session, token=token),
        await post(
            site.http, site.url, "notifications/cancelled", {"requestId": 1}, id=None, era="legacy", token=token,
            session=session,
        ),
    ]  # fmt: skip
    unknown = [
        await site.call("0" * 32, token=token),
        await site.send("GET", "0" * 32, token=token),
        await site.send("DELETE", "0" * 32, token=token),
        await post(
            site.http, site.url, "notifications/cancelled", {"requestId": 1}, id=None, era="legacy", token=token,
            session="0" * 32,
        ),
    ]  # fmt: skip
    for seen, expected in zip(stolen, unknown, strict=True):
        assert seen.status_code == expected.status_code == 404
        assert seen.content == expected.content
        assert seen.json()["error"] == NOT_FOUND
        assert without_date(seen) == without_date(expected)
    assert len(site.recorder.requests) == before
    assert answer_of(await site.call(session))["result"]["content"][0]["text"] == "hello"


def without_date(response: httpx2.Response) -> list[tuple[str, str]]:
    return [line for line in response.headers.multi_items() if line[0] != "date"]


async def test_case_20_an_id_the_client_chose_is_never_adopted(site: Site) -> None:
    """Also the server's own id, should a client get hold of it, and one that comes with initialize."""
    sealed = await initialize(site.http, site.url, token=ALICE)
    assert sealed is not None
    (raw,) = site.recorder.issued
    before = len(site.recorder.requests)
    for chosen in (raw.decode(), "chosen", "", "a" * 5000, sealed[:-1], sealed + "A", sealed.swapcase()):
        for response in (await site.call(chosen), await site.send("GET", chosen), await site.send("DELETE", chosen)):
            assert response.status_code == 404
            assert response.json()["error"] == NOT_FOUND
            assert "mcp-session-id" not in response.headers
    assert len(site.recorder.requests) == before
    response = await post(site.http, site.url, "initialize", HELLO, era="legacy", token=ALICE, session="chosen")
    assert response.status_code == 200
    assert response.headers["mcp-session-id"] not in ("chosen", sealed)
    assert site.recorder.requests[before] == ("POST", [])


async def test_case_20_initialize_with_a_live_id_opens_another_session(sdk_site: Site) -> None:
    first = await initialize(sdk_site.http, sdk_site.url, token=ALICE)
    response = await post(sdk_site.http, sdk_site.url, "initialize", HELLO, era="legacy", token=ALICE, session=first)
    second = response.headers["mcp-session-id"]
    assert second != first
    assert len(sdk_site.recorder.issued) == 2
    assert (await sdk_site.call(first)).status_code == (await sdk_site.call(second)).status_code == 200


async def test_case_23_a_modern_request_with_a_session_header_is_served_without_it(site: Site) -> None:
    sealed = await initialize(site.http, site.url, token=ALICE)
    before = len(site.recorder.requests)
    params = {"name": "echo", "arguments": {"text": "hello"}}
    for session in (sealed, "chosen"):
        response = await post(site.http, site.url, "tools/call", params, token=ALICE, session=session)
        assert answer_of(response)["result"]["content"][0]["text"] == "hello"
        assert "mcp-session-id" not in response.headers
        for method in ("GET", "DELETE"):
            answer = await site.http.request(
                method, site.url, headers=headers_for(era="modern", token=ALICE, session=session)
            )
            assert answer.status_code == 405
            assert "mcp-session-id" not in answer.headers
    assert {tuple(ids) for _, ids in site.recorder.requests[before:]} == {()}


async def test_case_24_a_new_token_keeps_the_session(site: Site) -> None:
    session = await initialize(site.http, site.url, token=ALICE)
    assert (await site.call(session, token=ALICE_REFRESHED)).status_code == 200


async def test_case_22_a_session_flood_meets_its_cap(site: Site, clock: FakeClock) -> None:
    """Also when they come at once; another agent notices nothing, and an ended session makes room."""
    answers = await asyncio.gather(
        *(post(site.http, site.url, "initialize", HELLO, era="legacy", token=ALICE) for _ in range(12))
    )
    opened = [answer.headers["mcp-session-id"] for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(opened) == 3
    assert len(site.recorder.issued) == 3
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["id"] == 1
        assert answer.json()["error"]["data"]["retryAfterMs"] == int(answer.headers["retry-after"]) * 1000
        assert "mcp-session-id" not in answer.headers
    other = await initialize(site.http, site.url, token=STRANGERS["another client"])
    assert (await site.call(other, token=STRANGERS["another client"])).status_code == 200
    assert (await site.send("DELETE", opened[0])).is_success
    opened.append(await initialize(site.http, site.url, token=ALICE) or "")
    again = await post(site.http, site.url, "initialize", HELLO, era="legacy", token=ALICE)
    assert again.status_code == 429
    assert again.headers["retry-after"] == "600"
    clock.advance(600)
    assert await initialize(site.http, site.url, token=ALICE) is not None


async def test_a_session_ends_with_delete(site: Site) -> None:
    """The server, asked in the meantime, is not asked again."""
    session = await initialize(site.http, site.url, token=ALICE)
    assert (await site.send("DELETE", session)).is_success
    before = len(site.recorder.requests)
    for response in (
        await site.call(session),
        await site.send("GET", session),
        await site.send("DELETE", session),
    ):
        assert response.status_code == 404
        assert response.json()["error"] == NOT_FOUND
    assert len(site.recorder.requests) == before


async def test_a_session_ends_when_it_was_not_used(sdk_site: Site, clock: FakeClock) -> None:
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    for _ in range(3):
        clock.advance(599)
        assert (await site.call(session)).status_code == 200
        for _ in range(100):  # the answer is here before the server has finished with the request
            await asyncio.sleep(0)
    clock.advance(600)
    before = len(site.recorder.requests)
    for _ in range(2):
        assert (await site.call(session)).status_code == 404
    assert len(site.recorder.requests) == before


async def test_a_session_ends_with_its_lifetime_however_busy(sdk_site: Site, clock: FakeClock) -> None:
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    for _ in range(6):
        clock.advance(599)
        assert (await site.call(session)).status_code == 200
    clock.advance(6)
    assert (await site.call(session)).status_code == 404


async def test_an_open_stream_is_use(sdk_site: Site, clock: FakeClock) -> None:
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    headers = headers_for(era="legacy", token=ALICE, session=session)
    async with site.http.stream("GET", site.url, headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["mcp-session-id"] == session
        clock.advance(1800)
        assert (await site.call(session)).status_code == 200
        clock.advance(1200)
        assert (await site.call(session)).status_code == 200


async def test_every_answer_of_a_session_carries_the_callers_id(site: Site) -> None:
    """The SDK puts its id on every answer, also on refusals; never that one gets out."""
    session = await initialize(site.http, site.url, token=ALICE)
    assert session is not None
    bad = await site.call(session, headers={"mcp-protocol-version": "2025-06-18", "accept": "text/plain"})
    assert bad.status_code == 406
    put = await site.http.put(site.url, headers=headers_for(era="legacy", token=ALICE, session=session))
    assert put.status_code == 405
    no_session = await site.call(None)
    assert no_session.status_code == 400
    assert "mcp-session-id" not in no_session.headers
    for response in (await site.call(session), bad, put):
        assert response.headers.get("mcp-session-id", session) == session
    assert site.recorder.issued
    for response in (bad, put, no_session):
        assert not any(raw.decode() in str(response.headers) + response.text for raw in site.recorder.issued)


async def test_several_session_headers_are_refused(sdk_site: Site) -> None:
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    before = len(site.recorder.requests)
    headers = httpx2.Headers([*headers_for(era="legacy", token=ALICE).items()])
    doubled = [*headers.multi_items(), ("mcp-session-id", session or ""), ("mcp-session-id", "other")]
    for method in ("GET", "DELETE"):
        response = await site.http.request(method, site.url, headers=doubled)
        assert response.status_code == 400
    response = await site.http.post(site.url, content='{"jsonrpc":"2.0","id":1,"method":"ping"}', headers=doubled)
    assert response.status_code == 400
    assert len(site.recorder.requests) == before
    assert (await site.call(session)).status_code == 200


async def test_a_session_is_good_at_its_own_endpoint_only(sdk_site: Site) -> None:
    """Case 20, replayed elsewhere: also no way to make the server's 404 at a wrong path end or free a session."""
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE)
    before = len(site.recorder.requests)
    for path in ("/other", "/mcp/x", "//mcp", "/MCP"):
        response = await site.http.delete(
            site.url.removesuffix("/mcp") + path, headers=headers_for(era="legacy", token=ALICE, session=session)
        )
        assert response.status_code == 404
        assert response.json()["error"] == NOT_FOUND
    assert len(site.recorder.requests) == before
    assert (await site.call(session)).status_code == 200
    redirected = await site.http.post(
        site.url + "/",
        content='{"jsonrpc":"2.0","id":1,"method":"ping"}',
        headers=headers_for({"method": "ping"}, era="legacy", token=ALICE, session=session),
        follow_redirects=True,
    )
    assert redirected.status_code == 200


@each_server
async def test_a_server_without_sessions_needs_none(kind: Kind, key: str, clock: FakeClock) -> None:
    """And its initialize keeps no place of the agent's."""
    async for site in build_site(app(kind, stateless_http=True), key, clock):
        for _ in range(5):
            assert await initialize(site.http, site.url, token=ALICE) is None
        assert (await site.call(None)).status_code == 200
        async with connect(site.url, era="legacy") as client:
            assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"


async def test_fastmcp_takes_it_as_its_middleware(key: str) -> None:
    async with serve(app("fastmcp", Middleware(SessionAffinityMiddleware, keys=[key]))) as origin:
        for era in ERAS:
            async with connect(origin + "/mcp", era=era) as client:
                assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"


async def test_batches_of_2025_03_26_are_served_in_their_session(sdk_site: Site) -> None:
    site = sdk_site
    session = await initialize(site.http, site.url, token=ALICE, version="2025-03-26")
    call = {"jsonrpc": "2.0", "method": "ping"}
    headers = headers_for(era="legacy", token=ALICE, session=session, version="2025-03-26")
    body = [{**call, "id": 1}, {**call, "id": 2}]
    served = await site.http.post(site.url, json=body, headers=headers)
    assert "result" in served.text
    assert served.text.count('"id"') == 2
    refused = await site.http.post(site.url, json=body, headers={**headers, "mcp-session-id": "chosen"})
    assert refused.text.count("Session not found") == 2
    assert not any(raw.decode() in str(served.headers) for raw in site.recorder.issued)
