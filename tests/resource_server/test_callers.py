"""Who calls: the token alone says so, and it is kept for as long as the request lasts."""

import json
from typing import Any

import httpx2

from mcp_middleware.authorization import Policy
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.resource_server import OAuthResourceServerMiddleware
from mcp_middleware.types import Rejection
from tests.resource_server.issuer import RESOURCE, LoopbackIssuer
from tests.resource_server.test_scopes import BASE, ORIGIN, Server, governed
from tests.support import each_era, headers_for, message


@each_era
async def test_a15_what_a_client_says_of_itself_changes_nothing(issuer: LoopbackIssuer, era: Any) -> None:
    """Neither rule nor limit nor record is about the name and version that a client gives itself."""
    policy = Policy.from_mapping({"rules": [{"agents": ["trusted"], "tools": ["echo"]}]})
    invented = {"name": "trusted", "version": "1"}
    meta = {"io.modelcontextprotocol/clientInfo": invented}
    async with governed(issuer, policy=policy) as stack:
        opened = await stack.send(
            "initialize",
            {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": invented},
            scope=BASE,
            era="legacy",
        )
        assert opened.status_code == 200
        assert stack.record.agent == "agent-1"
        answer = await stack.send("tools/call", {"name": "echo", "_meta": meta}, scope=BASE, era=era)
        assert answer.json()["error"]["message"] == "Unknown tool: echo"
        record = stack.record
        assert (record.agent, record.decision) == ("agent-1", "denied")
        named = issuer.token(scope=BASE, client_id="trusted")
        body = message("tools/call", {"name": "echo", "_meta": meta}, era=era)
        answer = await stack.http.post(
            "/mcp", content=json.dumps(body), headers=headers_for(body, era=era, token=named)
        )
        assert "result" in answer.json()


class Exchanging(Member):
    """Stands where a server's credential is fetched, and sees the token that it is to be fetched for."""

    stage = "authorization"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.seen: list[str | None] = []
        self.exchanges: list[Exchange] = []

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        self.seen.append(exchange.access_token)
        self.exchanges.append(exchange)
        return None


async def test_case_8_the_verified_token_is_at_hand_until_the_request_ends(issuer: LoopbackIssuer) -> None:
    server = Server()
    exchanging = Exchanging(server)
    guarded = OAuthResourceServerMiddleware(exchanging, resource=RESOURCE, issuers=[issuer.issuer])
    batch = [message("ping", id=number, era="legacy") for number in (1, 2)]
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(guarded), base_url=ORIGIN) as http:
        token = issuer.token()
        for body in (
            message("ping", era="legacy"),
            message("ping", era="legacy"),
            batch,
        ):  # verified, recalled, children
            headers = headers_for(era="legacy", token=token, version="2025-03-26")
            assert (await http.post("/mcp", content=json.dumps(body), headers=headers)).status_code == 200
        assert exchanging.seen == [token] * 4
        for refused in ("junk", issuer.token(aud="https://other.example")):
            headers = headers_for(era="legacy", token=refused)
            assert (await http.post("/mcp", content=json.dumps(batch[0]), headers=headers)).status_code == 401
    assert exchanging.seen == [token] * 4
    assert [exchange.access_token for exchange in exchanging.exchanges] == [None] * 4
    assert token not in "".join(map(repr, exchanging.exchanges))
