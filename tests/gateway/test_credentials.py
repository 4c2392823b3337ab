"""Servers that accept what is for them alone, behind the gateway: whose token reaches them, and what if there is none.

The servers are real ones with a resource server of their own, so that a token for anybody else is refused by them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest

from mcp_middleware import OAuthResourceServerMiddleware
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.gateway.sections.credentials import GrantConfig
from mcp_middleware.types import Era
from tests.authorization_server.running import Credentials, RunningServer, running
from tests.integration.stack import build_server
from tests.support import (
    answer_of,
    connect,
    each_era,
    headers_for,
    initialize,
    listener,
    message,
    messages_of,
    origin_of,
    post,
    serve,
    text_of,
)

from .gateways import ECHO, Running, gateway

WHOAMI = {"name": "whoami", "arguments": {}}
CALLER_KEY = "k" * 32


@dataclass
class Upstream:
    """A server that was reached: what each request carried, besides what it was answered."""

    url: str
    app: Any = None
    seen: list[dict[str, str]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Statuses to answer with, in place of the next answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            self.seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
            if self.refusals:
                body = b'{"error": "no"}'
                headers = [(b"content-type", b"application/json"), (b"location", b"http://127.0.0.1:9/mcp")]
                await send({"type": "http.response.start", "status": self.refusals.pop(0), "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)

    def tokens(self) -> list[str]:
        """The bearer tokens that reached it, each once."""
        return list(dict.fromkeys(head["authorization"].removeprefix("Bearer ") for head in self.seen))

    def claims(self) -> list[dict[str, Any]]:
        return [jwt.decode(token, options={"verify_signature": False}) for token in self.tokens()]


@dataclass
class Chain:
    """An authorization server, the gateway, and a server behind it."""

    issuer: RunningServer
    gateway: Running
    upstream: Upstream
    agents: dict[str, Credentials]

    @property
    def url(self) -> str:
        return self.gateway.url("files")

    async def token(self, agent: str = "ci-1", scope: str = "mcp:use") -> str:
        return await self.issuer.token(self.agents[agent], self.url, scope)

    async def call(self, token: str, tool: Mapping[str, Any] = ECHO, **options: Any) -> Any:
        return await post(self.gateway.http, self.url, "tools/call", tool, token=token, **options)


def proof(client: Credentials, method: str = "client_secret_basic") -> dict[str, str]:
    """How the gateway proves itself, as the file has it."""
    if client.private_key is not None:
        return {"client_id": client.client_id, "private_key": client.private_key}
    return {"client_id": client.client_id, "client_secret": client.secret or "", "secret_method": method}


@asynccontextmanager
async def chain(
    directory: Path,
    kind: Literal["client_credentials", "token_exchange"],
    *,
    key: bool = False,
    method: str = "client_secret_basic",
    server: Mapping[str, Any] = {},
    wanted: Mapping[str, str] | None = None,
    **changes: Any,
) -> AsyncIterator[Chain]:
    """A gateway whose server gets a token by ``kind``; ``server`` are more keys of its section."""
    bound = listener()
    upstream = Upstream(f"{origin_of(bound)}/mcp")
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(running(resources=[upstream.url]))
        upstream.app = OAuthResourceServerMiddleware(
            build_server("sdk"), resource=upstream.url, issuers=[issuer.issuer], scopes=["files:use"]
        )
        await stack.enter_async_context(serve(upstream, bound=bound))
        own = issuer.add_client("gateway", key=key)
        agents = {name: issuer.add_client(name) for name in ("ci-1", "ci-2")}
        wanted = wanted or {"resource": upstream.url}
        credentials = {
            "type": kind,
            "issuer": issuer.issuer,
            **proof(own, method),
            **wanted,
            "scope": "files:use",
        }
        section = {"url": upstream.url, "credentials": credentials, **server}
        gate = await stack.enter_async_context(gateway(directory, {"files": section}, authorities=[issuer], **changes))
        issuer.counts.clear()
        yield Chain(issuer, gate, upstream, agents)


@pytest.mark.parametrize("proven", ["client_secret_basic", "client_secret_post", "private_key"])
async def test_case_8_client_credentials_the_server_gets_a_token_for_itself(proven: str, tmp_path: Path) -> None:
    key = proven == "private_key"
    method = "client_secret_basic" if key else proven
    async with chain(tmp_path, "client_credentials", key=key, method=method) as found:
        callers = [await found.token(agent) for agent in ("ci-1", "ci-2")]
        found.issuer.counts.clear()
        replies = await asyncio.gather(*(found.call(token, WHOAMI) for token in callers * 10))
        assert {answer_of(reply)["result"]["content"][0]["text"] for reply in replies} == {"gateway gateway"}
        (claims,) = found.upstream.claims()
        assert (claims["aud"], claims["scope"]) == (found.upstream.url, "files:use")
        assert not set(callers) & set(found.upstream.tokens())
        assert found.issuer.counts["/token"] <= 1, "one token for all"


@each_era
async def test_case_8_the_official_client_reaches_a_server_that_knows_the_gateway_alone(
    era: Era, tmp_path: Path
) -> None:
    async with (
        chain(tmp_path, "client_credentials") as found,
        connect(found.url, token=await found.token(), era=era) as client,
    ):
        assert text_of(await client.call_tool("whoami", {})) == "gateway gateway"
        assert [tool.name for tool in (await client.list_tools()).tools] == ["echo", "whoami", "write"]


@pytest.mark.parametrize("wanted", ["resource", "audience"])
async def test_case_8_token_exchange_the_server_sees_each_caller_and_the_gateway_acting(
    wanted: str, tmp_path: Path
) -> None:
    async with chain(tmp_path, "token_exchange") as found:
        callers = {agent: await found.token(agent) for agent in ("ci-1", "ci-2")}
        found.issuer.counts.clear()
        for _ in range(5):
            for agent, token in callers.items():
                reply = await found.call(token, WHOAMI)
                assert answer_of(reply)["result"]["content"][0]["text"] == f"gateway {agent}"
        assert {claims["sub"] for claims in found.upstream.claims()} == {"ci-1", "ci-2"}
        for claims in found.upstream.claims():
            assert claims["aud"] == found.upstream.url
            assert claims["act"] == {"sub": "gateway"}
        assert not set(callers.values()) & set(found.upstream.tokens())
        assert found.issuer.counts["/token"] == 2, "one exchange for each caller"


async def test_case_8_an_exchange_that_is_refused_is_403_and_remembered(tmp_path: Path) -> None:
    async with chain(tmp_path, "token_exchange") as found:
        token, other = await found.token("ci-1"), await found.token("ci-2")
        found.issuer.revoke(token)  # to the gateway it is a good JWT still
        found.issuer.counts.clear()
        for _ in range(3):
            reply = await found.call(token, id="mine")
            assert (reply.status_code, answer_of(reply)["id"]) == (403, "mine")
            assert "www-authenticate" not in reply.headers, "no scope and no token of the kind would help"
        assert found.issuer.counts["/token"] == 1
        assert not found.upstream.seen
        assert (await found.call(other)).status_code == 200
    reasons = [(record.decision, record.reason) for record in found.gateway.records()]
    assert reasons == [("denied", "credential_refused")] * 3 + [("allowed", None)]


@each_era
async def test_case_8_the_signed_caller_is_true_and_an_invented_one_is_not_passed_on(era: Era, tmp_path: Path) -> None:
    server = {"caller": {"key": CALLER_KEY}}
    async with chain(tmp_path, "client_credentials", server=server) as found:
        token, invented = await found.token("ci-2"), {"X-Mcp-Caller": "root"}
        session = await initialize(found.gateway.http, found.url, token=token) if era == "legacy" else None
        reply = await found.call(token, era=era, session=session, headers=invented)
        assert reply.status_code == 200
        signed = found.upstream.seen[-1]["x-mcp-caller"]
        claims = jwt.decode(signed, CALLER_KEY, algorithms=["HS256"], audience=found.url, issuer=found.gateway.origin)
        assert (claims["sub"], claims["client_id"], claims["scope"]) == ("ci-2", "ci-2", "mcp:use")
        assert claims["caller_issuer"] == found.issuer.issuer


@pytest.mark.parametrize("kind", ["client_credentials", "token_exchange"])
@each_era
async def test_case_8_the_callers_token_reaches_no_server_on_any_path(
    era: Era, kind: Literal["client_credentials", "token_exchange"], tmp_path: Path
) -> None:
    async with chain(tmp_path, kind, server={"caller": {"key": CALLER_KEY}}) as found:
        token = await found.token()
        for status in (200, 307, 401, 403, 500, 503):
            found.upstream.refusals = [] if status == 200 else [status] * 2
            for headers in (
                {},
                {"x-forwarded-access-token": token, "cookie": f"t={token}", "proxy-authorization": token},
            ):
                await found.call(token, era=era, headers=headers)
                await found.gateway.http.get(
                    f"{found.url}?access_token={token}", headers={"authorization": f"Bearer {token}"}
                )
                await found.gateway.http.delete(found.url, headers={"authorization": f"Bearer {token}"})
            found.upstream.refusals.clear()
        assert found.upstream.seen
        assert token not in json.dumps(found.upstream.seen)


async def test_case_12_each_message_of_a_batch_has_its_callers_credential(tmp_path: Path) -> None:
    async with chain(tmp_path, "token_exchange") as found:
        token = await found.token("ci-2")
        session = await initialize(found.gateway.http, found.url, token=token, version="2025-03-26")
        batch = [message("tools/call", WHOAMI, id=number, era="legacy") for number in (1, 2)]
        headers = headers_for(era="legacy", token=token, session=session, version="2025-03-26")
        reply = await found.gateway.http.post(found.url, json=batch, headers=headers)
        texts = {answer["id"]: answer["result"]["content"][0]["text"] for answer in messages_of(reply)}
        assert texts == {1: "gateway ci-2", 2: "gateway ci-2"}


async def test_case_34_neither_tokens_nor_secrets_are_in_a_log_or_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with chain(tmp_path, "token_exchange", server={"caller": {"key": CALLER_KEY}}) as found:
        good, refused, late = [await found.token(agent) for agent in ("ci-1", "ci-2", "ci-2")]
        own = found.issuer.server.query_client("gateway")
        assert own is not None
        found.issuer.revoke(refused)
        statuses = [(await found.call(good)).status_code, (await found.call(refused)).status_code]
        found.upstream.refusals = [401]
        statuses.append((await found.call(good)).status_code)
        await found.issuer.down()
        statuses.append((await found.call(late)).status_code)
        assert statuses == [200, 403, 502, 503]
        signed = {head["x-mcp-caller"] for head in found.upstream.seen}
        secrets = {good, refused, late, own.secret or "", CALLER_KEY, *found.upstream.tokens(), *signed}
    logged = [log.getMessage() for log in caplog.records if not log.name.startswith("authlib")]  # the issuer's own
    written = "\n".join(logged) + str(found.gateway.records())
    assert len(written) > 1000
    assert not [secret for secret in secrets if secret in written]


async def test_case_42_the_authorization_server_of_a_credential_goes_and_comes_back(tmp_path: Path) -> None:
    async with chain(tmp_path, "token_exchange") as found:
        known, new = await found.token("ci-1"), await found.token("ci-2")
        assert (await found.call(known)).status_code == 200
        await found.issuer.down()
        assert (await found.call(known)).status_code == 200, "its token is kept"
        reply = await found.call(new, id="mine")
        assert (reply.status_code, answer_of(reply)["id"]) == (503, "mine")
        assert int(reply.headers["retry-after"]) >= 1
        assert answer_of(reply)["error"]["code"] == 503001
        await found.issuer.up()
        assert (await found.call(known)).status_code == 200
    reasons = [(record.decision, record.reason) for record in found.gateway.records()]
    assert reasons == [("allowed", None)] * 2 + [("unavailable", "credential_unavailable"), ("allowed", None)]


async def test_cached_tokens_outlive_a_reload_that_does_not_change_them(tmp_path: Path) -> None:
    async with chain(tmp_path, "token_exchange") as found:
        token = await found.token()
        assert (await found.call(token)).status_code == 200
        found.issuer.counts.clear()
        config = found.gateway.app.config
        server = config.servers["files"]
        changed = replace(config, servers={"files": replace(server, timeout=server.timeout + 1)})
        await found.gateway.app.reload(changed)
        assert (await found.call(token)).status_code == 200
        assert found.issuer.counts["/token"] == 0, "neither asked at the reload nor at the call"
        assert isinstance(server.credentials, GrantConfig)
        other = replace(server.credentials, scope="files:use files:other")
        await found.gateway.app.reload(replace(config, servers={"files": replace(server, credentials=other)}))
        assert (await found.call(token)).status_code == 200
        assert found.issuer.counts["/token"] == 2, "asked at the reload, and for the caller"
