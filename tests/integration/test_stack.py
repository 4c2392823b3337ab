"""The six members together, round real servers, over sockets, with the official client of both eras."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from mcp_middleware.member import ORDER
from mcp_middleware.types import Era
from tests.mcp_servers import Kind, each_server
from tests.support import (
    ERAS,
    answer_of,
    connect,
    each_era,
    headers_for,
    initialize,
    message,
    messages_of,
    post,
    text_of,
)

from .stack import OTHER, SCOPES, Stack, build_server, governed

MEMBERS = tuple(stage for stage in ORDER if stage != "edge")  # that one is the gateway's own


@each_server
@each_era
async def test_the_official_client_sees_what_its_agent_may(kind: Kind, era: Era, tmp_path: Path) -> None:
    async with governed(tmp_path, build_server(kind)) as stack:
        async with connect(stack.url, token=stack.token(), era=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo", "whoami", "write"]
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["greet"]
            assert [str(resource.uri) for resource in (await client.list_resources()).resources] == ["memo://one"]
            assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"
            assert text_of(await client.call_tool("whoami", {})) == "ci-1 ci-1"
            with pytest.raises(MCPError) as denied:
                await client.call_tool("admin_reset", {})
            assert (denied.value.error.code, denied.value.error.message) == (-32602, "Unknown tool: admin_reset")
        async with connect(stack.url, token=stack.token(OTHER), era=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
    records = stack.records()
    calls = [record for record in records if record.method == "tools/call"]
    assert [(record.target, record.decision) for record in calls] == [
        ("echo", "allowed"),
        ("whoami", "allowed"),
        ("admin_reset", "denied"),
    ]
    first = calls[0]
    assert first.input_tokens is not None
    assert first.output_tokens is not None
    assert (first.agent, first.issuer, first.subject) == ("ci-1", stack.issuer.issuer, "ci-1")
    assert first.rule == "rules[0]"
    assert first.input_tokens > 0
    assert first.output_tokens > 0
    assert (first.session is not None) == (era == "legacy")
    assert {record.era for record in records} == {era}


@each_server
@each_era
async def test_case_11_hidden_unknown_and_missing_answer_alike(kind: Kind, era: Era, tmp_path: Path) -> None:
    """A tool that a rule allows and the server does not have, and one that the server has and no rule allows."""
    targets = [
        ("tools/call", "name", "missing", "admin_reset"),
        ("prompts/get", "name", "nothing", "hidden_prompt"),
        ("resources/read", "uri", "memo://none", "secret://one"),
    ]
    async with governed(tmp_path, build_server(kind)) as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token) if era == "legacy" else None
        for method, key, unknown, hidden in targets:
            answers: list[tuple[int, str]] = []
            seen: list[set[str]] = []
            for target in (unknown, hidden):
                reply = await post(stack.http, stack.url, method, {key: target}, era=era, token=token, session=session)
                answers.append((reply.status_code, json.dumps(answer_of(reply)).replace(target, "TARGET")))
                seen.append({name for name in reply.headers if name != "content-length"})
            assert answers[0] == answers[1]
            if era == "modern":  # a legacy server may answer in an event stream, a refusal never does
                assert seen[0] == seen[1]
            assert "error" in answers[0][1]


@each_era
async def test_case_10_a_missing_scope_is_named_at_once(era: Era, tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("sdk")) as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token) if era == "legacy" else None
        arguments = {"name": "write", "arguments": {"text": "x"}}
        reply = await post(stack.http, stack.url, "tools/call", arguments, era=era, token=token, session=session)
        assert reply.status_code == 403
        header = reply.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in header
        assert 'scope="mcp:use files:write"' in header
        assert f'resource_metadata="{stack.url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp")}"' in header
        better = stack.token(scopes=SCOPES)
        reply = await post(stack.http, stack.url, "tools/call", arguments, era=era, token=better, session=session)
        assert answer_of(reply)["result"]["content"][0]["text"] == "wrote x"


@each_server
async def test_case_1_every_request_needs_a_token_and_none_reaches_the_server_without(
    kind: Kind, tmp_path: Path
) -> None:
    async with governed(tmp_path, build_server(kind)) as stack:
        for method, path in itertools.product(("GET", "POST", "DELETE"), ("/mcp", "/mcp/", "//mcp", "/other")):
            url = stack.url.removesuffix("/mcp") + path
            for headers in ({}, {"authorization": "Bearer junk"}):
                reply = await stack.http.request(method, url, headers=headers)
                assert reply.status_code == 401
                challenge = reply.headers["www-authenticate"]
                assert "resource_metadata=" in challenge
                assert 'scope="mcp:use"' in challenge
                assert ("error=" in challenge) == bool(headers)
    assert [record.decision for record in stack.records()] == ["unauthenticated"] * 24


async def test_case_19_a_session_is_of_no_use_to_another_agent(tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("fastmcp")) as stack:
        owner, thief = stack.token(), stack.token(OTHER)
        session = await initialize(stack.http, stack.url, token=owner)
        assert session is not None
        arguments = {"name": "echo", "arguments": {"text": "x"}}
        answers = set()
        for stolen in (session, session[:-2] + "AA", "0" * 32):
            for method in ("GET", "DELETE"):
                headers = headers_for(era="legacy", token=thief, session=stolen)
                reply = await stack.http.request(method, stack.url, headers=headers)
                answers.add((reply.status_code, reply.text))
            reply = await post(
                stack.http, stack.url, "tools/call", arguments, era="legacy", token=thief, session=stolen
            )
            assert reply.status_code == 404
        assert len(answers) == 1
        assert answers.pop()[0] == 404
        reply = await post(stack.http, stack.url, "tools/call", arguments, era="legacy", token=owner, session=session)
        assert answer_of(reply)["result"]["content"][0]["text"] == "x"


async def test_case_23_a_modern_request_with_a_session_header_is_served_without_it(tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("sdk")) as stack:
        reply = await post(
            stack.http,
            stack.url,
            "tools/call",
            {"name": "echo", "arguments": {"text": "x"}},
            token=stack.token(),
            session="somebody-elses",
        )
        assert reply.status_code == 200
        assert "mcp-session-id" not in reply.headers


@each_era
async def test_case_29_a_limited_agent_still_connects_and_is_told_when_to_come_back(era: Era, tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("sdk"), requests="4/minute") as stack:
        token = stack.token()
        async with connect(stack.url, token=token, era=era) as client:
            for _ in range(3):  # before the first, the client lists the tools
                await client.call_tool("echo", {"text": "x"})
            with pytest.raises(MCPError) as limited:
                await client.call_tool("echo", {"text": "x"})
            assert limited.value.error.code == 429001
            assert limited.value.error.data["retryAfterMs"] > 0
        async with connect(stack.url, token=token, era=era):
            pass
        async with connect(stack.url, token=stack.token(OTHER), era=era) as client:
            assert text_of(await client.call_tool("echo", {"text": "x"})) == "x"
    assert "limited" in [record.decision for record in stack.records()]


async def test_case_12_a_batch_is_judged_message_by_message(tmp_path: Path) -> None:
    """Even before a server that knows no batches."""
    async with governed(tmp_path, build_server("sdk")) as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token, version="2025-03-26")
        names = ["echo", "admin_reset", "whoami"]
        batch = [
            message("tools/call", {"name": name, "arguments": {"text": "x"}}, id=n, era="legacy")
            for n, name in enumerate(names)
        ]
        headers = headers_for(era="legacy", token=token, session=session, version="2025-03-26")
        reply = await stack.http.post(stack.url, json=batch, headers=headers)
        answers = {answer["id"]: answer for answer in messages_of(reply)}
        assert answers[0]["result"]["content"][0]["text"] == "x"
        assert answers[1]["error"]["message"] == "Unknown tool: admin_reset"
        assert answers[2]["result"]["content"][0]["text"] == "ci-1 ci-1"
        refused = await stack.http.post(stack.url, json=batch, headers=headers | {"mcp-protocol-version": "2025-11-25"})
        assert refused.status_code == 400
    calls = [record for record in stack.records() if record.method == "tools/call"]
    assert [record.decision for record in calls] == ["allowed", "denied", "allowed"]


async def answers_of_the_script(stack: Stack) -> list[Any]:
    """One of everything: what each is answered, without what differs by time or chance."""
    token = stack.token()
    found: list[Any] = []

    async def ask(method: str, params: dict[str, Any], **options: Any) -> None:
        reply = await post(stack.http, stack.url, method, params, **{"token": token} | options)
        body = answer_of(reply) if reply.status_code != 401 else reply.json()
        found.append((method, reply.status_code, body))

    echo = {"name": "echo", "arguments": {"text": "x"}}
    await ask("tools/call", echo, token=None)
    await ask("tools/call", echo, token="junk")
    await ask("tools/list", {})
    await ask("tools/call", {"name": "admin_reset", "arguments": {}})
    await ask("tools/call", {"name": "write", "arguments": {"text": "x"}})
    await ask("tools/call", echo, headers={"mcp-name": "write"})
    await ask("tools/call", echo)
    session = await initialize(stack.http, stack.url, token=token)
    await ask("tools/call", echo, era="legacy", session=session)
    await ask("tools/call", echo, era="legacy", session="forged")
    await ask("tools/call", echo, era="legacy", session=session, token=stack.token(OTHER))
    reply = await post(stack.http, stack.url, "tools/call", echo, token=token)  # one more than the limit allows
    found.append((reply.status_code, reply.json()["error"]["code"], "retry-after" in reply.headers))
    return found


FOUR = ("resource_server", "limiter", "authorization", "affinity")


@pytest.mark.slow
async def test_24_orders_of_four_members_give_the_same_answers(tmp_path: Path) -> None:
    """And some orders of all six."""
    orders = [("audit", "tracing", *order) for order in itertools.permutations(FOUR)]
    orders += [
        tuple(reversed(MEMBERS)),
        ("affinity", "audit", "authorization", "tracing", "limiter", "resource_server"),
    ]
    expected: list[Any] | None = None
    for n, order in enumerate(orders):
        directory = tmp_path / str(n)
        directory.mkdir()
        async with governed(directory, build_server("fastmcp"), order=order, requests="6/hour") as stack:
            answers = await answers_of_the_script(stack)
        expected = expected or answers
        assert answers == expected, order
    assert expected is not None
    assert [entry[1] for entry in expected[:-1]] == [401, 401, 200, 400, 403, 400, 200, 200, 404, 404]
    assert expected[-1] == (429, 429001, True)


@pytest.mark.parametrize("alone", MEMBERS)
async def test_each_member_works_alone(alone: str, tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("fastmcp"), order=[alone]) as stack:
        for era in ERAS:
            async with connect(stack.url, token=stack.token(), era=era) as client:
                if alone == "authorization":  # nobody is authenticated: no rule is for anonymous callers
                    assert (await client.list_tools()).tools == []
                else:
                    assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"


async def test_case_21_calls_at_once_with_equal_ids_get_their_own_answers(tmp_path: Path) -> None:
    async with governed(tmp_path, build_server("sdk"), requests="100000/minute", tokens="10000000/minute") as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token)

        async def ask(n: int) -> None:
            arguments = {"name": "echo", "arguments": {"text": str(n)}}
            era: Era = "legacy" if n % 2 else "modern"
            held, request_id = (session, f"{n}") if era == "legacy" else (None, 1)
            reply = await post(
                stack.http, stack.url, "tools/call", arguments, id=request_id, era=era, token=token, session=held
            )
            assert answer_of(reply)["result"]["content"][0]["text"] == str(n)

        gate = asyncio.Semaphore(32)

        async def bounded(n: int) -> None:
            async with gate:
                await ask(n)

        await asyncio.gather(*(bounded(n) for n in range(400)))


async def test_a_stream_ends_and_the_server_is_told_when_the_client_leaves(tmp_path: Path) -> None:
    """Over a socket: the standalone stream of a session can be opened again at once."""
    async with governed(tmp_path, build_server("fastmcp")) as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token)
        headers = headers_for(era="legacy", token=token, session=session)
        for _ in range(3):
            async with stack.http.stream("GET", stack.url, headers=headers) as reply:
                assert reply.status_code == 200
            for _ in range(200):
                async with httpx2.AsyncClient() as probe, probe.stream("GET", stack.url, headers=headers) as again:
                    status = again.status_code
                if status == 200:
                    break
                await asyncio.sleep(0.01)
            assert status == 200


async def test_every_record_of_a_session_names_it_alike(tmp_path: Path) -> None:
    """What was served, what the policy denied, what could not be read, and what came with a bad token."""
    async with governed(tmp_path, build_server("sdk")) as stack:
        token = stack.token()
        session = await initialize(stack.http, stack.url, token=token)
        for name in ("echo", "admin_reset"):
            arguments = {"name": name, "arguments": {"text": "x"}}
            await post(stack.http, stack.url, "tools/call", arguments, era="legacy", token=token, session=session)
        for bearer in (token, "junk"):
            headers = headers_for(era="legacy", token=bearer, session=session)
            await stack.http.post(stack.url, content=b"{", headers=headers)
    records = stack.records()
    assert len(records) == 6
    assert len({record.session for record in records}) == 1
    assert records[0].session is not None
