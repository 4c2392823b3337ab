"""Enterprise-managed authorization (H3): a company's identity provider says who may, and nobody is asked.

The official Python client redeems what the identity provider gave it at the authorization server. What then comes to
the MCP server is an access token like any other; the identity provider's own paper is none.
"""

import time

import httpx2
from authlib.oauth2.drafts.id_jag import IDJAGGrant
from mcp.client.auth.extensions.identity_assertion import IdentityAssertionOAuthProvider

from mcp_middleware.types import Era
from tests.authorization_server.running import RunningServer
from tests.flows.targets import IDENTITY_PROVIDER, IDENTITY_PROVIDER_KEY, Target
from tests.flows.test_python_client import Storage, connected
from tests.support import TIMEOUT, each_era, post


def assertion(agent: str, audience: str, resource: str) -> str:
    """What the identity provider says: alice may use the resource by way of this client."""
    now = int(time.time())
    claims = {"resource": resource, "scope": "mcp:use files:write"}
    return str(
        IDJAGGrant.sign(
            IDENTITY_PROVIDER_KEY,
            issuer=IDENTITY_PROVIDER,
            audience=audience,
            subject="alice",
            client_id=agent,
            issued_at=now,
            expires_at=now + 60,
            claims=claims,
            alg="ES256",
        )
    )


@each_era
async def test_h3_an_identity_assertion_becomes_a_token_and_steps_up(
    any_target: Target, issuer: RunningServer, era: Era
) -> None:
    agent_of = issuer.add_client()

    async def ask(audience: str, resource: str) -> str:
        return assertion(agent_of.client_id, audience, resource)

    provider = IdentityAssertionOAuthProvider(
        any_target.url, Storage(), agent_of.client_id, agent_of.secret or "", issuer.issuer, ask, scope="mcp:use"
    )
    async with connected(any_target.url, provider, era) as agent:
        assert await agent.call("echo", text="hi") == "hi"
        assert await agent.call("write", text="x") == "wrote x"
        assert [form["scope"] for form in agent.forms()] == ["mcp:use", "mcp:use files:write"]
        assert not [request for request in agent.sent if "oauth-protected-resource" in request.url.path]
    calls = [record for record in await any_target.records() if record.target == "write"]
    assert [(record.subject, record.agent, record.reason) for record in calls] == [
        ("alice", agent_of.client_id, "insufficient_scope"),
        ("alice", agent_of.client_id, None),
    ]


async def test_case_5_h3_the_identity_providers_assertion_is_no_access_token(
    any_target: Target, issuer: RunningServer
) -> None:
    agent = issuer.add_client()
    async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
        for audience in (issuer.issuer, any_target.url):
            paper = assertion(agent.client_id, audience, any_target.url)
            refused = await post(http, any_target.url, "tools/list", token=paper)
            assert refused.status_code == 401
            assert 'error="invalid_token"' in refused.headers["www-authenticate"]
