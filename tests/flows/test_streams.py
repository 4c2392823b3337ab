"""Case 24 over sockets: what the end of a token does to the streams that it opened, and what its refresh does not."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from mcp_middleware.types import Era
from tests.authorization_server.running import Credentials, RunningServer
from tests.flows.targets import Target
from tests.support import TIMEOUT, answer_of, each_era, headers_for, initialize, message, post

LISTEN = {"notifications": {"toolsListChanged": True}}


class Stream:
    """An event stream that a client has opened."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.ended = asyncio.create_task(self._read())

    async def _read(self) -> str:
        return (await self.response.aread()).decode()


@asynccontextmanager
async def opened(http: httpx2.AsyncClient, url: str, token: str, era: Era) -> AsyncIterator[Stream]:
    """A stream that the server has no reason to end: the session's own, or that of a subscription."""
    if era == "legacy":
        session = await initialize(http, url, token=token)
        request = http.build_request("GET", url, headers=headers_for(era=era, token=token, session=session))
    else:
        body = message("subscriptions/listen", LISTEN)
        request = http.build_request("POST", url, content=json.dumps(body), headers=headers_for(body, token=token))
    response = await http.send(request, stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    stream = Stream(response)
    try:
        yield stream
    finally:
        stream.ended.cancel()
        await response.aclose()


@pytest.fixture
def machine(issuer: RunningServer) -> Credentials:
    return issuer.add_client()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the tokens of open streams as often as a test has patience for."""
    monkeypatch.setattr("mcp_middleware.answer._TOKEN_CHECK", 0.02)


async def test_case_24_the_end_of_a_token_ends_its_stream_and_no_cache_does(
    world: tuple[RunningServer, dict[str, Target]], issuer: RunningServer, machine: Credentials
) -> None:
    """All streams at once, because each lasts as long as its token. An introspected one is asked about again and again
    meanwhile: no answer is kept here."""
    issuer.server.lifetime = 3

    async def read(target: Target, era: Era) -> str:
        async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
            token = await issuer.token(machine, target.url, "mcp:use")
            async with opened(http, target.url, token, era) as stream:
                text = await stream.ended
            refused = await post(http, target.url, "tools/list", token=token)
            assert refused.status_code == 401
            return text

    targets = world[1].values()
    legacy, modern = await asyncio.gather(
        asyncio.gather(*(read(target, "legacy") for target in targets)),
        asyncio.gather(*(read(target, "modern") for target in targets)),
    )
    assert all("error" not in text for text in legacy)
    assert all("the token that opened this stream has ended" in text for text in modern)
    assert issuer.counts["/introspect"] > 3 * len(targets)


@each_era
async def test_case_24_a_revocation_ends_the_streams_of_the_token_alone(
    opaque_target: Target, issuer: RunningServer, machine: Credentials, era: Era
) -> None:
    url = opaque_target.url
    async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
        revoked, kept = [await issuer.token(machine, url, "mcp:use") for _ in range(2)]
        async with opened(http, url, revoked, era) as stream, opened(http, url, kept, era) as other:
            issuer.revoke(revoked)
            text = await stream.ended
            assert ("the token that opened this stream has ended" in text) == (era == "modern")
            assert not other.ended.done()
            assert (await post(http, url, "tools/list", token=kept)).status_code == 200


async def test_case_24_an_issuer_that_is_down_ends_no_stream(
    opaque_target: Target, issuer: RunningServer, machine: Credentials
) -> None:
    url = opaque_target.url
    async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
        token = await issuer.token(machine, url, "mcp:use")
        async with opened(http, url, token, "modern") as stream:
            await issuer.down()
            try:
                refused = await post(http, url, "tools/list", token=token)
                assert refused.status_code == 503
                assert not stream.ended.done()
            finally:
                await issuer.up()
            issuer.revoke(token)
            assert "has ended" in await stream.ended


async def test_case_24_a_refresh_keeps_the_session_and_its_stream(target: Target, issuer: RunningServer) -> None:
    """The session belongs to issuer, client and subject; the stream to the token that opened it."""
    agent = issuer.add_client()
    async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
        first, second = [await issuer.token(agent, target.url, "mcp:use") for _ in range(2)]
        session = await initialize(http, target.url, token=first)
        headers = headers_for(era="legacy", token=first, session=session)
        async with http.stream("GET", target.url, headers=headers) as stream:
            assert stream.status_code == 200
            called = await post(
                http,
                target.url,
                "tools/call",
                {"name": "echo", "arguments": {"text": "hi"}},
                era="legacy",
                token=second,
                session=session,
            )
            assert answer_of(called)["result"]["content"][0]["text"] == "hi"


async def test_case_19_a_session_is_nobody_elses(target: Target, issuer: RunningServer) -> None:
    """Another client's, and the same client's for another person: 404 as if unknown, and the owner goes on."""
    owner, other = issuer.add_client(), issuer.add_client()
    call = {"name": "echo", "arguments": {"text": "hi"}}
    async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
        mine, theirs = [await issuer.token(agent, target.url, "mcp:use") for agent in (owner, other)]
        session = await initialize(http, target.url, token=mine)
        unknown = headers_for(era="legacy", token=theirs, session="unknown")
        stolen = headers_for(era="legacy", token=theirs, session=session)
        for method in ("POST", "GET", "DELETE"):
            body = json.dumps(message("tools/call", call, era="legacy")) if method == "POST" else None
            answers = [
                await http.request(method, target.url, headers=headers, content=body) for headers in (unknown, stolen)
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].content == answers[1].content
        called = await post(http, target.url, "tools/call", call, era="legacy", token=mine, session=session)
        assert called.status_code == 200
