"""The gateway before real servers, over sockets: the official client in both eras, and what must hold under attack."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from starlette.requests import Request
from starlette.responses import JSONResponse

from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.banner import capabilities
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.types import Era
from tests.integration.stack import build_server
from tests.mcp_servers import Kind, each_server
from tests.support import (
    LEGACY,
    SESSION_KEY,
    answer_of,
    connect,
    each_era,
    headers_for,
    initialize,
    message,
    messages_of,
    post,
    serve,
    text_of,
)

from .gateways import ECHO, OTHER, SCOPES, Running, gateway, located, sections


@asynccontextmanager
async def before(
    directory: Path, kind: Kind = "sdk", *, names: tuple[str, ...] = ("files",), **changes: Any
) -> AsyncIterator[Running]:
    """A gateway before one server of ``kind`` for each name."""
    async with AsyncExitStack() as stack:
        origins = {name: await stack.enter_async_context(serve(build_server(kind))) for name in names}
        urls = {name: f"{origin}/mcp" for name, origin in origins.items()}
        yield await stack.enter_async_context(gateway(directory, urls, **changes))


@each_server
@each_era
async def test_the_official_client_sees_what_its_agent_may(kind: Kind, era: Era, tmp_path: Path) -> None:
    async with before(tmp_path, kind) as running:
        async with connect(running.url(), token=running.token(), era=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo", "whoami", "write"]
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["greet"]
            assert [str(resource.uri) for resource in (await client.list_resources()).resources] == ["memo://one"]
            assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"
            with pytest.raises(MCPError) as denied:
                await client.call_tool("admin_reset", {})
            assert (denied.value.error.code, denied.value.error.message) == (-32602, "Unknown tool: admin_reset")
        async with connect(running.url(), token=running.token(OTHER), era=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
    records = [record for record in running.records() if record.method == "tools/call"]
    assert [(r.server, r.target, r.decision, r.outcome) for r in records] == [
        ("files", "echo", "allowed", "ok"),
        ("files", "admin_reset", "denied", "refused"),
    ]
    assert records[0].instance is not None
    assert records[0].instance.startswith("127.0.0.1:")
    assert (records[0].session is not None) == (era == "legacy")


async def test_each_server_has_its_own_resource_policy_and_document(tmp_path: Path) -> None:
    async with before(tmp_path, names=("files", "notes")) as running:
        for name in ("files", "notes"):
            document = f"{running.origin}/.well-known/oauth-protected-resource/{name}/mcp"
            metadata = (await running.http.get(document)).json()
            assert metadata["resource"] == running.url(name)
            assert metadata["authorization_servers"] == [running.issuer.issuer]
            refused = await post(running.http, running.url(name), "tools/list")
            assert f'resource_metadata="{document}"' in refused.headers["www-authenticate"]
        assert (await running.http.get(f"{running.origin}/.well-known/oauth-protected-resource")).status_code == 404
        files, notes = running.token(scopes=SCOPES), running.token(server="notes", scopes=SCOPES)
        write = {"name": "write", "arguments": {"text": "x"}}
        assert (await post(running.http, running.url("notes"), "tools/call", ECHO, token=files)).status_code == 401
        assert (await post(running.http, running.url("notes"), "tools/call", ECHO, token=notes)).status_code == 200
        assert (await post(running.http, running.url("files"), "tools/call", write, token=files)).status_code == 200
        hidden = answer_of(await post(running.http, running.url("notes"), "tools/call", write, token=notes))
        assert hidden["error"]["message"] == "Unknown tool: write"


async def test_the_document_of_one_server_is_at_the_root_too(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        reply = await running.http.get(f"{running.origin}/.well-known/oauth-protected-resource")
        assert reply.json()["resource"] == running.url()


async def test_a_public_url_with_a_path_leads_to_the_servers_and_their_documents(tmp_path: Path) -> None:
    """B2, B3. A proxy before the gateway may take that path away, or leave it."""
    public = "https://mcp.example.com/tools"
    place = "/.well-known/oauth-protected-resource"
    async with before(tmp_path, names=("files", "mail"), public_url=public) as running:
        for path in ("/tools/files/mcp", "/files/mcp"):
            reply = await running.http.post(running.origin + path)
            assert reply.status_code == 401
            assert f'"https://mcp.example.com{place}/tools/files/mcp"' in reply.headers["www-authenticate"]
        reply = await running.http.get(f"{running.origin}{place}/tools/files/mcp")
        assert reply.json()["resource"] == f"{public}/files/mcp"
        for path in (f"{place}/files/mcp", "/other/files/mcp", "/tools/mail"):
            assert (await running.http.get(running.origin + path)).status_code == 404


async def test_case_1_no_token_no_entry_by_any_path(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        for method, path in itertools.product(("GET", "POST", "DELETE"), ("/files/mcp", "/files/mcp/", "//files//mcp")):
            for headers in ({}, {"authorization": "Bearer junk"}):
                reply = await running.http.request(method, running.origin + path, headers=headers)
                assert reply.status_code == 401
                challenge = reply.headers["www-authenticate"]
                assert 'scope="mcp:use"' in challenge
                assert ("error=" in challenge) == bool(headers)
        for path in ("/", "/files", "/files/mcp/more", "/other/mcp", "/files/../files/mcp", "/FILES/mcp"):
            assert (await running.http.get(running.origin + path)).status_code in (404, 401)
    assert [record.decision for record in running.records()][:18] == ["unauthenticated"] * 18


async def test_case_8_what_a_caller_says_of_itself_never_reaches_the_server(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        seen.append(dict(request.headers))
        body = await request.json()
        await JSONResponse({"jsonrpc": "2.0", "id": body["id"], "result": {"content": []}})(scope, receive, send)

    invented = {"x-forwarded-user": "root", "x-user-id": "0", "cookie": "a=b", "x-forwarded-for": "1.1.1.1"}
    section = {"url": "", "headers": {"X-Api-Key": "${FILES_KEY}"}, "forward_headers": ["X-Custom"]}
    async with serve(app) as upstream:
        section["url"] = f"{upstream}/mcp"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FILES_KEY", "the-servers-own")
            async with gateway(tmp_path, {"files": section}) as running:
                token = running.token()
                headers = invented | {"mcp-param-region": "eu", "x-custom": "kept"}
                for extra in ("", "?access_token=" + token):
                    url = running.url() + extra
                    reply = await post(running.http, url, "tools/call", ECHO, token=token, headers=headers)
                    assert reply.status_code == 200
    for headers in seen:
        assert not headers.keys() & {"authorization", *invented}
        assert headers["x-api-key"] == "the-servers-own"
        assert (headers["mcp-param-region"], headers["x-custom"]) == ("eu", "kept")
        assert token not in json.dumps(headers)


async def test_case_9_a_hostile_host_or_origin_is_refused_and_recorded(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        token = running.token()
        for headers, status in (
            ({"host": "evil.example.com"}, 421),
            ({"origin": "https://evil.example.com"}, 403),
            ({"x-forwarded-host": "evil.example.com", "x-forwarded-proto": "https"}, 200),
        ):
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=token, headers=headers)
            assert reply.status_code == status
        document = f"{running.origin}/.well-known/oauth-protected-resource/files/mcp"
        reply = await running.http.get(document, headers={"x-forwarded-host": "evil.example.com"})
        assert reply.json()["resource"] == running.url()
        assert (await running.http.get(document, headers={"host": "evil.example.com"})).status_code == 421
    assert [record.reason for record in running.records()] == ["bad_host", "bad_origin", None, "bad_host"]


async def test_a_page_of_an_allowed_origin_may_call_and_read_and_no_other(tmp_path: Path) -> None:
    page = "https://inspector.example.com"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,mcp-method"}
    async with before(tmp_path, origins=[page]) as running:
        preflight = await running.http.options(running.url(), headers=asks | {"origin": page})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, page)
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        for token, status in ((running.token(), 200), (None, 401)):
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=token, headers={"origin": page})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, page)
            assert "mcp-session-id" in reply.headers["access-control-expose-headers"]
        for headers in (asks | {"origin": "https://evil.example.com"}, asks):
            refused = await running.http.options(running.url(), headers=headers)
            assert refused.status_code in (401, 403)
            assert "access-control-allow-origin" not in refused.headers
        document = f"{running.origin}/.well-known/oauth-protected-resource/files/mcp"
        anywhere = await running.http.get(document, headers={"origin": "https://anywhere.example.com"})
        assert (anywhere.status_code, anywhere.headers["access-control-allow-origin"]) == (200, "*")


@each_era
async def test_case_10_a_missing_scope_is_named_at_once(era: Era, tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        session = await initialize(running.http, running.url(), token=running.token()) if era == "legacy" else None
        write = {"name": "write", "arguments": {"text": "x"}}
        options: dict[str, Any] = {"era": era, "session": session}
        reply = await post(running.http, running.url(), "tools/call", write, token=running.token(), **options)
        assert reply.status_code == 403
        assert 'error="insufficient_scope"' in reply.headers["www-authenticate"]
        assert 'scope="mcp:use files:write"' in reply.headers["www-authenticate"]
        reply = await post(
            running.http, running.url(), "tools/call", write, token=running.token(scopes=SCOPES), **options
        )
        assert answer_of(reply)["result"]["content"][0]["text"] == "wrote x"


async def test_case_13_headers_that_differ_from_the_body_are_refused(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        for headers in ({"mcp-name": "write"}, {"mcp-method": "tools/list"}, {"mcp-protocol-version": LEGACY}):
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(), headers=headers)
            assert (reply.status_code, answer_of(reply)["error"]["code"]) == (400, -32020)


async def test_case_12_a_batch_is_judged_message_by_message(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token, version="2025-03-26")
        names = ["echo", "admin_reset", "whoami"]
        batch = [
            message("tools/call", {"name": name, "arguments": {"text": "x"}}, id=n, era="legacy")
            for n, name in enumerate(names[:2])
        ]
        headers = headers_for(era="legacy", token=token, session=session, version="2025-03-26")
        reply = await running.http.post(running.url(), json=batch, headers=headers)
        answers = {answer["id"]: answer for answer in messages_of(reply)}
        assert answers[0]["result"]["content"][0]["text"] == "x"
        assert answers[1]["error"]["message"] == "Unknown tool: admin_reset"


async def test_case_19_and_20_a_session_is_good_for_its_owner_on_its_server_only(tmp_path: Path) -> None:
    async with before(tmp_path, names=("files", "notes")) as running:
        owner, thief = running.token(), running.token(OTHER)
        session = await initialize(running.http, running.url(), token=owner)
        assert session is not None
        answers = set()
        for stolen in (session, session[:-4] + "AAAA", "0" * 32, "x" * 300):
            for method in ("GET", "DELETE"):
                headers = headers_for(era="legacy", token=thief, session=stolen)
                reply = await running.http.request(method, running.url(), headers=headers)
                answers.add((reply.status_code, reply.text))
            reply = await post(
                running.http, running.url(), "tools/call", ECHO, era="legacy", token=thief, session=stolen
            )
            assert reply.status_code == 404
        replayed = headers_for(era="legacy", token=running.token(server="notes"), session=session)
        reply = await running.http.delete(running.url("notes"), headers=replayed)
        answers.add((reply.status_code, reply.text))
        assert len(answers) == 1
        assert answers.pop()[0] == 404
        reply = await post(running.http, running.url(), "tools/call", ECHO, era="legacy", session=session)
        assert reply.status_code == 401, "a session is no login"
        reply = await post(running.http, running.url(), "tools/call", ECHO, era="legacy", token=owner, session=session)
        assert answer_of(reply)["result"]["content"][0]["text"] == "x"


async def test_case_22_a_session_flood_meets_its_cap_and_nobody_else_notices(tmp_path: Path) -> None:
    sessions = {"keys": [SESSION_KEY], "per_agent": 3}
    async with before(tmp_path, sessions=sessions) as running:
        token = running.token()
        held = [await initialize(running.http, running.url(), token=token) for _ in range(3)]
        refused = await post(
            running.http, running.url(), "initialize", {"protocolVersion": LEGACY}, era="legacy", token=token
        )
        assert refused.status_code == 429
        assert "retry-after" in refused.headers
        assert await initialize(running.http, running.url(), token=running.token(OTHER)) is not None
        ended = await running.http.delete(
            running.url(), headers=headers_for(era="legacy", token=token, session=held[0])
        )
        assert ended.status_code == 200
        assert await initialize(running.http, running.url(), token=token) is not None


async def test_an_initialize_that_is_refused_opens_no_session(tmp_path: Path) -> None:
    """The SDK names one all the same, with 200 and an event stream."""
    async with before(tmp_path, sessions={"keys": [SESSION_KEY], "per_agent": 1}) as running:
        token = running.token()
        for _ in range(3):
            reply = await post(
                running.http, running.url(), "initialize", {"protocolVersion": 5}, era="legacy", token=token
            )
            assert "error" in answer_of(reply)
            session = reply.headers.get("mcp-session-id")
            if session is not None:
                again = await post(
                    running.http, running.url(), "tools/call", ECHO, era="legacy", token=token, session=session
                )
                assert again.status_code == 404
        assert await initialize(running.http, running.url(), token=token) is not None


async def test_case_23_a_modern_request_with_a_session_header_is_served_without_it(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(), session="made-up")
        assert reply.status_code == 200
        assert "mcp-session-id" not in reply.headers


async def test_case_21_calls_at_once_with_equal_ids_get_their_own_answers(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        origins = [await stack.enter_async_context(serve(build_server("sdk"))) for _ in range(2)]
        running = await stack.enter_async_context(gateway(tmp_path, {"files": [f"{o}/mcp" for o in origins]}))
        token = running.token()
        sessions = [await initialize(running.http, running.url(), token=token) for _ in range(8)]
        gate = asyncio.Semaphore(32)

        async def ask(n: int) -> None:
            arguments = {"name": "echo", "arguments": {"text": str(n)}}
            era: Era = "legacy" if n % 2 else "modern"
            held = sessions[n % 8] if era == "legacy" else None
            request_id: int | str = f"{n}" if era == "legacy" else 1
            async with gate:
                reply = await post(
                    running.http,
                    running.url(),
                    "tools/call",
                    arguments,
                    id=request_id,
                    era=era,
                    token=token,
                    session=held,
                )
            assert answer_of(reply)["result"]["content"][0]["text"] == str(n)

        await asyncio.gather(*(ask(n) for n in range(400)))


async def test_sessions_stay_with_their_instance_over_two_replicas_with_nothing_shared_but_the_key(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        origins = [await stack.enter_async_context(serve(located(f"i{n}"))) for n in range(3)]
        urls = [f"{origin}/mcp" for origin in origins]
        first = await stack.enter_async_context(gateway(tmp_path, {"files": urls}))
        config = sections(
            {"files": {"instances": urls[::-1]}},
            origin=first.origin,
            issuer=first.issuer.issuer,
            trail=tmp_path / "second.db",
        )
        second = await stack.enter_async_context(serve(create_app(from_mapping(config))))
        token = first.token()
        where = {"name": "where", "arguments": {}}
        replicas = [first.url(), f"{second}/files/mcp"]
        host = {"host": first.origin.removeprefix("http://")}
        places = set()
        for n in range(9):
            session = await initialize(first.http, replicas[n % 2], token=token, headers=host)
            answers = set()
            for replica in (*replicas, *replicas):
                reply = await post(
                    first.http, replica, "tools/call", where, era="legacy", token=token, session=session, headers=host
                )
                answers.add(answer_of(reply)["result"]["content"][0]["text"])
            assert len(answers) == 1, "every replica sends a session to the instance that opened it"
            places |= answers
        assert places == {"i0", "i1", "i2"}


async def test_a_dead_instance_ends_its_sessions_and_nothing_else(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        living = await stack.enter_async_context(serve(located("living")))
        doomed = AsyncExitStack()
        dying = await doomed.enter_async_context(serve(located("dying")))
        running = await stack.enter_async_context(gateway(tmp_path, {"files": [f"{living}/mcp", f"{dying}/mcp"]}))
        token = running.token()
        where = {"name": "where", "arguments": {}}

        async def ask(**options: Any) -> httpx2.Response:
            return await post(running.http, running.url(), "tools/call", where, token=token, **options)

        held: dict[str, str] = {}
        while len(held) < 2:
            session = await initialize(running.http, running.url(), token=token)
            assert session is not None
            reply = await ask(era="legacy", session=session)
            held[answer_of(reply)["result"]["content"][0]["text"]] = session
        await doomed.aclose()
        lost = await ask(era="legacy", session=held["dying"])
        assert lost.status_code == 404, "so that the client starts anew"
        assert answer_of(await ask(era="legacy", session=held["living"]))["result"]["content"][0]["text"] == "living"
        for _ in range(20):
            assert answer_of(await ask())["result"]["content"][0]["text"] == "living"
            assert await initialize(running.http, running.url(), token=token) is not None
    assert not [record for record in running.records() if record.outcome in ("failed", "unknown")]


async def test_no_instance_left_is_said_with_the_requests_id(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"files": "http://127.0.0.1:9/mcp"}) as running:
        for _ in range(5):
            reply = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(), id=77)
            assert reply.status_code in (502, 503)
            assert answer_of(reply)["id"] == 77


async def test_health_and_readiness(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        assert (await running.http.get(f"{running.origin}/healthz")).json() == {"status": "alive"}
        ready = await running.http.get(f"{running.origin}/readyz", headers={"host": "10.0.0.1"})
        assert ready.status_code == 200
        assert ready.json()["status"] == "ready"
        assert "files" in ready.json()["servers"]
        assert (await running.http.post(f"{running.origin}/readyz")).status_code == 405
        running.app.begin_drain()
        draining = await running.http.get(f"{running.origin}/readyz")
        assert (draining.status_code, draining.json()["status"]) == (503, "draining")


async def test_a_rule_beside_those_that_allow_it_stops_an_agent_at_the_next_reload(tmp_path: Path) -> None:
    brake = {"effect": "deny", "agents": ["ci-1"], "tools": ["*"], "prompts": ["*"], "resources": ["*"]}
    allow = {"agents": ["ci-1"], "tools": ["*"]}
    async with before(tmp_path, access={"rules": [allow]}) as running:
        server = {"files": {"url": running.app.config.servers["files"].instances[0]}}
        stopped = sections(
            server,
            origin=running.origin,
            issuer=running.issuer.issuer,
            trail=running.audit,
            access={"rules": [allow, brake]},
        )
        token = running.token()
        assert "result" in answer_of(await post(running.http, running.url(), "tools/call", ECHO, token=token))
        await running.app.reload(from_mapping(stopped))
        assert "error" in answer_of(await post(running.http, running.url(), "tools/call", ECHO, token=token))
        told = "configuration: access.rules[0] allows only what rules[1] denies, and changes nothing"
        assert capabilities(running.app.config)["authorization"] == f"policy, deny by default; {told}"
        assert not running.app.config.warnings, "it is no danger, for which a pipeline would not let it through"


async def test_case_18_and_43_a_reload_changes_what_is_asked_next_and_a_bad_one_nothing(tmp_path: Path) -> None:
    async with before(tmp_path) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token)

        async def ask(name: str, **options: Any) -> dict[str, Any]:
            arguments = {"name": name, "arguments": {"text": "x"}}
            return answer_of(await post(running.http, running.url(), "tools/call", arguments, token=token, **options))

        assert "result" in await ask("echo")
        audit, issuer = running.audit, running.issuer.issuer
        url = {"url": running.app.config.servers["files"].instances[0]}
        narrower = {"rules": [{"agents": ["ci-*"], "tools": ["whoami"]}]}
        changed = sections({"files": url}, origin=running.origin, issuer=issuer, trail=audit, access=narrower)
        async with running.http.stream(
            "GET", running.url(), headers=headers_for(era="legacy", token=token, session=session)
        ) as stream:
            assert stream.status_code == 200
            await running.app.reload(from_mapping(changed))
            assert "error" in await ask("echo")
            assert "error" in await ask("echo", era="legacy", session=session), "the session goes on, by the new rules"
            running.app.note_bad_reload("gateway.yaml:1: it is wrong")
            ready = (await running.http.get(f"{running.origin}/readyz")).json()
            assert ready["status"] == "ready"
            assert "refused" in ready["reload"]
            await running.app.reload(from_mapping(changed | {"audit": {"jsonl": str(tmp_path / "other.jsonl")}}))
            assert "reload" not in (await running.http.get(f"{running.origin}/readyz")).json()
            assert running.app.config.audit == from_mapping(changed).audit, "what cannot change at a reload stays"
            for kind in ("cert", "key"):
                (tmp_path / kind).touch()
            tls = {"cert": str(tmp_path / "cert"), "key": str(tmp_path / "key")}
            del changed["public_url"]
            for fixed in ({"listen": "127.0.0.1:9"}, {"tls": tls}):
                await running.app.reload(from_mapping(changed | fixed))
                assert running.app.config.public_url == running.origin, "and so does what follows from it"
    assert "denied" in {record.decision for record in running.records()}


async def test_what_one_agent_has_open_is_bounded_and_connecting_is_not(tmp_path: Path) -> None:
    async with before(tmp_path, connections_per_agent=1) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token)
        headers = headers_for(era="legacy", token=token, session=session)
        async with running.http.stream("GET", running.url(), headers=headers) as stream:
            assert stream.status_code == 200
            refused = await post(running.http, running.url(), "tools/call", ECHO, token=token)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert await initialize(running.http, running.url(), token=token) is not None
            other = await post(running.http, running.url(), "tools/call", ECHO, token=running.token(OTHER))
            assert other.status_code == 200


async def test_without_authentication_all_callers_are_one(tmp_path: Path) -> None:
    access = {"rules": [{"agents": ["*"], "tools": ["echo"]}]}
    async with before(tmp_path, auth="off", access=access) as running:
        async with connect(running.url()) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
            assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"
        evil = await post(
            running.http, running.url(), "tools/call", ECHO, headers={"origin": "https://evil.example.com"}
        )
        assert evil.status_code == 403
    assert {record.agent for record in running.records()} == {"anonymous"}


async def test_a_gateway_that_has_ended_can_start_again() -> None:
    config = from_mapping({"servers": {"files": {"url": "http://127.0.0.1:1/mcp"}}, "auth": "off"})
    app = create_app(config)
    for _ in range(2):
        await app.startup()
        assert app.readiness()["status"] == "ready"
        await app.shutdown()
        assert app.readiness()["status"] == "starting"
