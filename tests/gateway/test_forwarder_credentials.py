"""The credential a server gets: fetched, kept, renewed once after a 401, and never the caller's own."""

import asyncio
import time

import httpx2
import jwt
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from mcp_middleware.errors import INTERNAL_ERROR, UNAVAILABLE, UnknownOutcomeError
from mcp_middleware.gateway.sections.credentials import CallerConfig, HeaderConfig
from mcp_middleware.testing import FakeClock
from mcp_middleware.tracing.upstream import ClientSpans
from mcp_middleware.types import Era
from tests.support import answer_of, each_era, headers_for, initialize, post

from .authority import authority
from .forwarding import AUDIENCE, CALL, INITIALIZED, RESULT, Caller, Handler, answer, gateway, head_of, raw_server

UNAUTHORIZED = b"401 Unauthorized"
AGED = 60.0
"""Seconds after which a token that a server rejects is worth another one."""


def sent(caller: Caller, name: bytes = b"authorization") -> list[bytes]:
    return [value for line, value in head_of(caller) if line == name]


def accepting(*tokens: bytes) -> Handler:
    """A server that knows these tokens, and no others."""

    async def handler(caller: Caller) -> None:
        if sent(caller) and sent(caller)[0].removeprefix(b"Bearer ") in tokens:
            notified = b'"id"' not in caller.body
            answered = INITIALIZED if b"initialize" in caller.body else RESULT
            await caller.send_json(b"" if notified else answered, status=b"202 Accepted" if notified else b"200 OK")
        else:
            challenge = b"www-authenticate: Bearer error=invalid_token\r\n"
            await caller.send_json(b'{"error": "no"}', status=UNAUTHORIZED, headers=challenge)

    return handler


async def test_case_8_a_server_gets_a_token_of_its_own_fetched_once_and_never_the_callers() -> None:
    async with authority() as issuer, raw_server(answer) as server:
        async with gateway(server.origin, credentials=issuer.grant()) as gate, httpx2.AsyncClient() as http:
            replies = await asyncio.gather(
                *(post(http, gate.url, "tools/call", CALL, token="the-callers") for _ in range(20))
            )
        assert {reply.status_code for reply in replies} == {200}
        assert [sent(caller) for caller in server.requests] == [[b"Bearer token-1"]] * 20
        assert not any(b"the-callers" in caller.head + caller.body for caller in server.requests)
        assert issuer.forms == [{"grant_type": "client_credentials", "scope": "files"}]


@each_era
async def test_a_401_has_a_new_token_fetched_and_the_same_request_sent_once_more(era: Era) -> None:
    clock = FakeClock(time.time())
    async with (
        authority() as issuer,
        raw_server(accepting(b"token-2")) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL, era=era)).status_code == 502, "it was new"
        await gate.seen.get()
        clock.advance(AGED)
        reply = await post(http, gate.url, "tools/call", CALL, era=era)
        assert (reply.status_code, reply.content) == (200, RESULT)
        _, first, second = server.requests
        assert (sent(first), sent(second)) == ([b"Bearer token-1"], [b"Bearer token-2"])
        assert first.body == second.body
        seen = await gate.seen.get()
        assert (seen.status, seen.failed, seen.rejection) == (200, None, None)
        assert gate.seen.empty(), "one call"
        assert all(state["in_flight"] == 0 for state in gate.upstream.snapshot()["instances"].values())


async def test_a_server_that_refuses_every_token_is_asked_twice_and_never_again() -> None:
    clock = FakeClock(time.time())
    async with (
        authority() as issuer,
        raw_server(accepting()) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 502
        await gate.seen.get()
        clock.advance(AGED)
        reply = await post(http, gate.url, "tools/call", CALL, id="mine")
        assert (reply.status_code, answer_of(reply)["id"]) == (502, "mine")
        assert answer_of(reply)["error"]["code"] == INTERNAL_ERROR
        assert "refuses the gateway's credential (401)" in answer_of(reply)["error"]["message"]
        assert "www-authenticate" not in reply.headers
        assert [sent(caller)[0] for caller in server.requests] == [
            b"Bearer token-1",
            b"Bearer token-1",
            b"Bearer token-2",
        ]
        assert isinstance((await gate.seen.get()).failed, UnknownOutcomeError)
        await asyncio.gather(*(post(http, gate.url, "tools/call", CALL) for _ in range(10)))
        assert len(server.requests) == 13, "a new token that is refused is not replaced by the next one"
        assert len(issuer.forms) == 2


async def test_many_calls_that_meet_a_401_have_one_new_token_fetched() -> None:
    clock = FakeClock(time.time())
    async with (
        authority() as issuer,
        raw_server(accepting(b"token-2")) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        await post(http, gate.url, "tools/call", CALL)
        clock.advance(AGED)
        replies = await asyncio.gather(*(post(http, gate.url, "tools/call", CALL) for _ in range(30)))
        assert {reply.status_code for reply in replies} == {200}
        assert len(issuer.forms) == 2


async def test_every_method_has_the_credential_and_its_second_try() -> None:
    clock = FakeClock(time.time())

    async def stream(caller: Caller) -> None:
        if caller.head.startswith(b"GET") and sent(caller) == [b"Bearer token-2"]:
            await caller.start_stream()
            await caller.send_chunk(b": hello\n\n")
            await caller.send_chunk(b"")
        else:
            await accepting(b"token-2")(caller)

    async with (
        authority() as issuer,
        raw_server(stream) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        await post(http, gate.url, "tools/call", CALL)
        clock.advance(AGED)
        session = await initialize(http, gate.url)
        assert session is None
        headers = headers_for(era="legacy")
        async with http.stream("GET", gate.url, headers=headers) as reply:
            assert [line async for line in reply.aiter_lines() if line] == [": hello"]
        await http.delete(gate.url, headers=headers)
        methods = {caller.head.split(b" ")[0] for caller in server.requests if sent(caller)}
        assert methods == {b"POST", b"GET", b"DELETE"}


async def test_a_second_try_stays_with_the_instance_of_the_session() -> None:
    clock = FakeClock(time.time())
    asked: list[str] = []

    def instance(name: str) -> Handler:
        async def handler(caller: Caller) -> None:
            asked.append(name)
            if b"initialize" in caller.body:
                session = b"mcp-session-id: of-" + name.encode() + b"\r\n"
                await caller.send_json(INITIALIZED, headers=session)
            elif sent(caller) == [b"Bearer token-1"]:
                await caller.send_json(b"", status=UNAUTHORIZED)
            else:
                await caller.send_json(RESULT)

        return handler

    async with (
        authority() as issuer,
        raw_server(instance("a")) as first,
        raw_server(instance("b")) as second,
        gateway(first.origin, second.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        reply = await post(http, gate.url, "initialize", {"protocolVersion": "2025-11-25"}, era="legacy")
        session = reply.headers["mcp-session-id"]
        clock.advance(AGED)
        reply = await post(http, gate.url, "tools/call", CALL, era="legacy", session=session)
        assert reply.status_code == 200
        assert asked[1:] == [asked[0]] * 2


async def test_case_42_an_authorization_server_that_is_down_is_503_and_nothing_is_sent() -> None:
    clock = FakeClock(time.time())
    async with (
        authority() as issuer,
        raw_server(answer) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        await post(http, gate.url, "tools/call", CALL)
        clock.advance(3600)
        issuer.refusal = (503, "temporarily_unavailable")
        for _ in range(3):
            reply = await post(http, gate.url, "tools/call", CALL, id="mine")
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
            error = answer_of(reply)["error"]
            assert (answer_of(reply)["id"], error["code"], error["data"]["retryAfterMs"]) == (
                "mine",
                UNAVAILABLE,
                10_000,
            )
        assert (len(server.requests), len(issuer.forms)) == (1, 2), "it is left alone for a while"
        await gate.seen.get()
        seen = await gate.seen.get()
        assert seen.rejection is not None
        assert seen.rejection.reason == "credential_unavailable"
        issuer.refusal = None
        clock.advance(10)
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200


async def test_an_authorization_server_that_refuses_the_gateway_is_502_and_nothing_is_sent() -> None:
    clock = FakeClock(time.time())
    async with (
        authority() as issuer,
        raw_server(answer) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock) as gate,
        httpx2.AsyncClient() as http,
    ):
        issuer.refusal = (401, "invalid_client")
        for _ in range(3):
            reply = await post(http, gate.url, "tools/call", CALL, id="mine")
            assert (reply.status_code, answer_of(reply)["error"]["code"]) == (502, UNAVAILABLE)
            assert "invalid_client" not in reply.text
        assert (len(server.requests), len(issuer.forms)) == (0, 1)
        seen = await gate.seen.get()
        assert seen.rejection is not None
        assert seen.rejection.reason == "credential_refused"


async def test_case_38_a_redirect_is_followed_with_no_credential() -> None:
    async with raw_server(answer) as elsewhere:

        async def redirect(caller: Caller) -> None:
            location = b"location: " + elsewhere.origin.encode() + b"/mcp\r\n"
            await caller.send_json(b"", status=b"307 Temporary Redirect", headers=location)

        async with (
            authority() as issuer,
            raw_server(redirect) as server,
            gateway(server.origin, credentials=issuer.grant()) as gate,
            httpx2.AsyncClient() as http,
        ):
            reply = await post(http, gate.url, "tools/call", CALL, token="the-callers")
            assert reply.status_code == 502
            assert len(server.requests) == 1
        assert not elsewhere.requests


@pytest.mark.parametrize("kind", ["headers", "credentials"])
async def test_a_header_of_the_file_is_the_same_in_requests_and_probes_and_is_not_renewed(kind: str) -> None:
    value = "Basic b3Vycw=="
    fixed = HeaderConfig(name="authorization", value=value) if kind == "credentials" else None
    headers = {"authorization": value} if kind == "headers" else {}
    async with (
        raw_server(accepting()) as server,
        gateway(server.origin, credentials=fixed, headers=headers) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert list((await gate.upstream.probe_all()).values()) == [None], "a 401 proves life"
        assert (await post(http, gate.url, "tools/call", CALL, token="the-callers")).status_code == 502
        assert [sent(caller) for caller in server.requests] == [[value.encode()]] * 2


async def test_a_probe_waits_for_no_authorization_server() -> None:
    async with (
        authority() as issuer,
        raw_server(accepting(b"token-1")) as server,
        gateway(server.origin, credentials=issuer.grant()) as gate,
    ):
        assert list((await gate.upstream.probe_all()).values()) == [None]
        assert (sent(server.requests[0]), issuer.forms) == ([], [])


async def test_case_8_the_signed_caller_is_the_gateways_and_an_invented_one_is_removed() -> None:
    key = "k" * 32
    invented = {"X-Who": "root", "x_who": "root", "X-Mcp-Caller": "root"}
    async with (
        raw_server(answer) as server,
        gateway(server.origin, caller=CallerConfig(header="x-who", key=key)) as gate,
        httpx2.AsyncClient() as http,
    ):
        assert (await post(http, gate.url, "tools/call", CALL, headers=invented)).status_code == 200
        (value,) = sent(server.requests[0], b"x-who")
        assert b"root" not in server.requests[0].head
        claims = jwt.decode(value, key, algorithms=["HS256"], audience=AUDIENCE, issuer="https://gateway.example")
        assert claims["client_id"] == "anonymous"


async def test_a_second_try_is_one_span() -> None:
    exporter, clock = InMemorySpanExporter(), FakeClock(time.time())
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    async with (
        authority() as issuer,
        raw_server(accepting(b"token-2")) as server,
        gateway(server.origin, credentials=issuer.grant(), clock=clock, spans=ClientSpans(tracers)) as gate,
        httpx2.AsyncClient() as http,
    ):
        await post(http, gate.url, "tools/call", CALL)
        await gate.seen.get()
        exporter.clear()
        clock.advance(AGED)
        assert (await post(http, gate.url, "tools/call", CALL)).status_code == 200
        await gate.seen.get()
        (span,) = exporter.get_finished_spans()
        assert span.kind == SpanKind.CLIENT
        assert span.status.is_unset
        parent = f"{span.context.span_id:016x}".encode()
        assert all(parent in caller.body for caller in server.requests[1:])
