"""The flows of the official Python client (mcp 2.3), from nothing but the URL of the MCP server.

What it does, as the tests read it off the wire:

1. The first answer is 401. It fetches the metadata document that the challenge names, then the issuer's metadata, and
   gets a token for the scopes of the challenge; with a code flow it registers first, for those scopes.
2. On 403 ``insufficient_scope`` it fetches nothing again. It asks for what it has had and what the challenge names
   together, once, and repeats the request. A second 403 is an error to the caller.
3. Every request for a code and for a token names the resource (RFC 8707), exactly as the document has it.
"""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp.client import Client
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from mcp.shared.exceptions import MCPError

from mcp_middleware.errors import UNAUTHORIZED
from mcp_middleware.types import Era
from tests.authorization_server.running import Credentials, RunningServer
from tests.flows.site import Site
from tests.flows.targets import Target
from tests.support import MODERN, TIMEOUT, each_era, text_of

CALLBACK = "http://127.0.0.1:33418/callback"


class Storage:
    """Where a client keeps what it was given."""

    def __init__(self, token: OAuthToken | None = None) -> None:
        self.token = token
        self.info: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.info = client_info


@dataclass
class Connected:
    """A client, and what it has sent so far."""

    client: Client
    sent: list[httpx2.Request] = field(default_factory=list)
    got: list[int] = field(default_factory=list)

    async def call(self, tool: str, **arguments: str) -> str:
        return text_of(await self.client.call_tool(tool, arguments))

    def to(self, path: str) -> list[httpx2.Request]:
        return [request for request in self.sent if request.url.path == path]

    def answered(self, method: str) -> int:
        """How many requests with this JSON-RPC method the server has answered well."""
        named = f'"{method}"'.encode()
        return sum(status == 200 and named in sent.content for sent, status in zip(self.sent, self.got, strict=True))

    def forms(self, path: str = "/token") -> list[dict[str, str]]:
        """The forms that were sent to a path of the authorization server."""
        return [one_each(request.content.decode()) for request in self.to(path)]


def one_each(query: str) -> dict[str, str]:
    """Parameters, none of which occurs twice."""
    parsed = parse_qs(query, strict_parsing=True)
    assert all(len(values) == 1 for values in parsed.values())
    return {name: values[0] for name, values in parsed.items()}


@asynccontextmanager
async def connected(url: str, provider: httpx2.Auth, era: Era) -> AsyncIterator[Connected]:
    """The official client, led to ``url`` and told nothing else."""
    sent: list[httpx2.Request] = []
    got: list[int] = []

    async def keep(response: httpx2.Response) -> None:
        sent.append(response.request)
        got.append(response.status_code)

    async with httpx2.AsyncClient(auth=provider, timeout=TIMEOUT, event_hooks={"response": [keep]}) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode="legacy" if era == "legacy" else "auto", read_timeout_seconds=20.0) as client:
            assert (client.protocol_version == MODERN) == (era == "modern")
            yield Connected(client, sent, got)


class Person:
    """Somebody with a browser, who allows what they are asked."""

    def __init__(self, issuer: RunningServer) -> None:
        self.issuer = issuer
        self.asked: list[dict[str, str]] = []
        self._answer: dict[str, str] = {}

    async def open(self, url: str) -> None:
        self.asked.append(one_each(urlsplit(url).query))
        self._answer = one_each(urlsplit(await self.issuer.approve(url)).query)

    async def answer(self) -> AuthorizationCodeResult:
        if "error" in self._answer:
            raise OAuthFlowError(self._answer["error"])
        return AuthorizationCodeResult(**{name: self._answer.get(name) for name in ("code", "state", "iss")})  # type: ignore[arg-type]


def by_code(url: str, person: Person, *, storage: Storage | None = None, **options: Any) -> OAuthClientProvider:
    metadata = OAuthClientMetadata(
        client_name="An agent",
        redirect_uris=[CALLBACK],  # type: ignore[list-item]
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
    )
    return OAuthClientProvider(url, metadata, storage or Storage(), person.open, person.answer, **options)


def by_secret(url: str, agent: Credentials, issuer: str, **options: Any) -> OAuthClientProvider:
    return ClientCredentialsOAuthProvider(url, Storage(), agent.client_id, agent.secret or "", issuer=issuer, **options)


def by_posted_secret(url: str, agent: Credentials, issuer: str) -> OAuthClientProvider:
    return by_secret(url, agent, issuer, token_endpoint_auth_method="client_secret_post")


def by_assertion(url: str, agent: Credentials, issuer: str) -> OAuthClientProvider:
    signer = SignedJWTParameters(
        issuer=agent.client_id, subject=agent.client_id, signing_key=agent.private_key or "", signing_algorithm="ES256"
    )
    return PrivateKeyJWTOAuthProvider(
        url, Storage(), agent.client_id, signer.create_assertion_provider(), issuer=issuer
    )


async def refused_for_scopes(target: Target) -> list[tuple[str | None, str]]:
    """Whom the trail shows as refused for want of a scope, and at what."""
    records = await target.records()
    assert {record.reason for record in records} <= {None, "no_token", "insufficient_scope"}
    return [(record.target, record.agent) for record in records if record.reason == "insufficient_scope"]


@each_era
async def test_code_with_pkce_and_registration_then_a_step_up(target: Target, issuer: RunningServer, era: Era) -> None:
    person = Person(issuer)
    storage = Storage()
    async with connected(target.url, by_code(target.url, person, storage=storage), era) as agent:
        assert await agent.call("echo", text="hi") == "hi"
        assert storage.info is not None
        assert (await agent.call("whoami")).split() == [storage.info.client_id, "alice"] or target.url.endswith(
            "/files/mcp"
        )
        (registration,) = agent.to("/register")
        assert json.loads(registration.content)["scope"] == "mcp:use"
        assert person.asked[0]["scope"] == "mcp:use"
        assert person.asked[0]["code_challenge_method"] == "S256"
        assert person.asked[0]["resource"] == target.url
        assert len(agent.forms()) == 1

        assert await agent.call("write", text="x") == "wrote x"
        assert [asked["scope"] for asked in person.asked] == ["mcp:use", "mcp:use files:write"]
        assert agent.got.count(403) == 1
        assert await agent.call("write", text="y") == "wrote y"
        assert await agent.call("echo", text="still") == "still"
        assert len(person.asked) == 2
        forms = agent.forms()
        assert [form["grant_type"] for form in forms] == ["authorization_code"] * 2
        assert {form["resource"] for form in forms} == {target.url}
        assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", form["code_verifier"]) for form in forms)
    assert issuer.counts["/register"] == 1
    assert issuer.counts["/.well-known/oauth-authorization-server"] >= 1
    assert await refused_for_scopes(target) == [("write", storage.info.client_id)]
    assert {record.subject for record in await target.records() if record.target} == {"alice"}


@each_era
@pytest.mark.parametrize("provider", [by_secret, by_posted_secret, by_assertion])
async def test_a_machine_gets_a_token_then_steps_up(
    any_target: Target,
    issuer: RunningServer,
    era: Era,
    provider: Callable[[str, Credentials, str], OAuthClientProvider],
) -> None:
    """H1, H2, H6: the token's subject is the client itself."""
    target = any_target
    agent_of = issuer.add_client(key=provider is by_assertion)
    async with connected(target.url, provider(target.url, agent_of, issuer.issuer), era) as agent:
        assert await agent.call("echo", text="hi") == "hi"
        assert await agent.call("write", text="x") == "wrote x"
        assert await agent.call("write", text="y") == "wrote y"
        forms = agent.forms()
        assert [(form["grant_type"], form["resource"], form["scope"]) for form in forms] == [
            ("client_credentials", target.url, "mcp:use"),
            ("client_credentials", target.url, "mcp:use files:write"),
        ]
        assert all("client_secret" not in form for form in forms) or provider is by_posted_secret
        assert [request.url.path for request in agent.sent if "/.well-known/" in request.url.path] == [
            f"/.well-known/oauth-protected-resource{urlsplit(target.url).path}",
            "/.well-known/oauth-authorization-server",
        ]
        assert agent.got.count(401) == 1
        assert agent.got.count(403) == 1
    assert await refused_for_scopes(target) == [("write", agent_of.client_id)]
    record = next(record for record in await target.records() if record.target == "echo")
    assert (record.agent, record.subject, record.issuer) == (agent_of.client_id, agent_of.client_id, issuer.issuer)


@each_era
async def test_a_machine_that_may_not_have_the_scope_is_told_once(
    target: Target, issuer: RunningServer, era: Era
) -> None:
    """The issuer grants less than it was asked for, so the second 403 stands, and nothing goes round in circles."""
    agent_of = issuer.add_client(scopes=["mcp:use"])
    async with connected(target.url, by_secret(target.url, agent_of, issuer.issuer), era) as agent:
        with pytest.raises(MCPError, match="'write' needs a token with the scopes: mcp:use files:write") as refused:
            await agent.call("write", text="x")
        assert refused.value.error.code == UNAUTHORIZED
        assert agent.got.count(403) == 2
        assert len(agent.forms()) == 2
        assert await agent.call("echo", text="still") == "still"
    assert await refused_for_scopes(target) == [("write", agent_of.client_id)] * 2


@each_era
async def test_a_machine_proves_itself_to_no_issuer_but_the_one_it_was_given(
    target: Target, issuer: RunningServer, era: Era
) -> None:
    """The page on troubleshooting has what it says then."""
    provider = by_secret(target.url, issuer.add_client(), "https://login.example.com")
    with pytest.raises(ExceptionGroup) as caught:
        async with connected(target.url, provider, era):
            pass
    said = f"Authorization server metadata issuer mismatch: {issuer.issuer} != https://login.example.com"
    assert [str(error) for error in caught.value.exceptions if isinstance(error, OAuthFlowError)] == [said]
    assert issuer.counts["/token"] == 0


@each_era
async def test_case_10_what_no_scope_cures_sends_nobody_for_a_token(
    target: Target, issuer: RunningServer, era: Era
) -> None:
    agent_of = issuer.add_client()
    async with connected(target.url, by_secret(target.url, agent_of, issuer.issuer), era) as agent:
        for tool in ("admin_reset", "nothing"):
            with pytest.raises(MCPError, match=f"Unknown tool: {tool}"):
                await agent.call(tool)
        assert len(agent.forms()) == 1
        assert 403 not in agent.got


@each_era
async def test_case_10_a_token_for_something_else_is_exchanged_for_the_right_one_at_once(
    target: Target, issuer: RunningServer, era: Era
) -> None:
    """A token that the client has kept, good and without the scopes of this server."""
    agent_of = issuer.add_client()
    kept = await issuer.token(agent_of, target.url, "other")
    provider = by_secret(target.url, agent_of, issuer.issuer)
    provider.context.storage = Storage(OAuthToken(access_token=kept, scope="other"))
    async with connected(target.url, provider, era) as agent:
        assert 401 not in agent.got
        assert await agent.call("echo", text="hi") == "hi"
        assert [form["scope"] for form in agent.forms()] == ["other mcp:use"]


@each_era
async def test_case_24_a_refreshed_token_keeps_the_session(target: Target, issuer: RunningServer, era: Era) -> None:
    person = Person(issuer)
    storage = Storage()
    provider = by_code(target.url, person, storage=storage)
    async with connected(target.url, provider, era) as agent:
        assert await agent.call("echo", text="before") == "before"
        before = storage.token
        provider.context.token_expiry_time = 1.0  # as if its end had come
        assert await agent.call("echo", text="after") == "after"
        assert storage.token is not None
        assert before is not None
        assert storage.token.access_token != before.access_token
        assert [form["grant_type"] for form in agent.forms()] == ["authorization_code", "refresh_token"]
        assert len(person.asked) == 1
        assert agent.answered("initialize") == (1 if era == "legacy" else 0)
    calls = [record for record in await target.records() if record.target == "echo"]
    assert len({record.session for record in calls}) == 1
    assert (calls[0].session is not None) == (era == "legacy")


async def test_a_client_that_describes_itself_need_not_register(
    target: Target, issuer: RunningServer, site: Site
) -> None:
    """A client ID metadata document: its URL is the client's name (H5)."""
    site.document = {
        "client_id": site.url,
        "client_name": "An agent",
        "redirect_uris": [CALLBACK],
        "grant_types": ["authorization_code"],
        "response_types": ["code"],
    }
    person = Person(issuer)
    provider = by_code(target.url, person, client_metadata_url=site.url)
    async with connected(target.url, provider, "modern") as agent:
        assert await agent.call("write", text="x") == "wrote x"
        assert agent.to("/register") == []
    assert {asked["client_id"] for asked in person.asked} == {site.url}
    assert await refused_for_scopes(target) == [("write", site.url)]
