"""Tokens exchanged for many callers at once, who come, go and return when theirs have ended: nobody gets another's."""

import asyncio
import random

from mcp_middleware.credentials import Caller, TokenExchange
from mcp_middleware.oauth import ClientSecret
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Principal
from tests.credentials.issuer import SECRET, TokenIssuer
from tests.support import serve

SERVER = "https://mail.example.com/mcp"


async def test_case_8_no_caller_ever_gets_what_was_exchanged_for_another() -> None:
    """The names are those that a careless key would take for one another."""
    callers = [
        Caller(Principal(issuer, client, subject, expires_at=ends), f"{issuer} {client} {subject} {ends}")
        for issuer in ("https://a", "https://a/")
        for client in ("c", "c, d", "None")
        for subject in ("d", "c", None)
        for ends in (1_300, 10_000)
    ]
    clock, chance = FakeClock(), random.Random(4)
    server = TokenIssuer()
    async with serve(server.app) as server.url:
        server.reset()
        server.exchanges_anything = True
        exchange = TokenExchange(
            issuer=server.url,
            authentication=ClientSecret("gateway", SECRET),
            audience=SERVER,
            cache_size=len(callers) // 2,
            clock=clock,
            monotonic=clock,
        )
        for _ in range(6):
            crowd = [chance.choice(callers) for _ in range(40)]
            asking = [asyncio.create_task(exchange.headers(caller)) for caller in crowd]
            for leaving in chance.sample(asking, 5):
                leaving.cancel()
            for caller, outcome in zip(crowd, await asyncio.gather(*asking, return_exceptions=True), strict=True):
                if isinstance(outcome, BaseException):
                    continue
                number = int(outcome[0][1].removeprefix(b"Bearer token-"))
                assert server.forms[number - 1]["subject_token"] == caller.token
                if chance.random() < 0.1:
                    exchange.rejected(caller, outcome)
            clock.advance(chance.choice([1, 11, 40, 76, 99, 101]))
        assert server.issued > 50
        await exchange.aclose()
