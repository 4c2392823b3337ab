"""An issuer for which the scopes of a registration are a ceiling (H5): clients register for those of the first
challenge, which are the base scopes, and can then never have more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp.client.auth import OAuthFlowError

from tests.authorization_server.running import RunningServer, running
from tests.flows.targets import SCOPES, Kept, Target, in_process
from tests.flows.test_python_client import Person, by_code, connected
from tests.flows.test_typescript_client import led
from tests.support import listener, origin_of, serve


@asynccontextmanager
async def behind_a_ceiling(*scopes: str) -> AsyncIterator[tuple[Target, RunningServer]]:
    bound = listener()
    url = f"{origin_of(bound)}/mcp"
    async with running(resources=[url], scopes=SCOPES, registered_scope_binds=True) as issuer:
        kept = Kept()
        async with serve(in_process(url, issuer.issuer, kept, scopes or ("mcp:use",)), bound=bound):
            yield Target("behind a ceiling", url, kept, lambda: kept.records), issuer


async def test_h5_the_python_client_cannot_step_up_beyond_its_registration() -> None:
    """The issuer says so to the browser; the error ends the client's connection."""
    async with behind_a_ceiling() as (target, issuer):
        person = Person(issuer)
        with pytest.RaisesGroup(pytest.RaisesExc(OAuthFlowError, match="invalid_scope"), flatten_subgroups=True):
            async with connected(target.url, by_code(target.url, person), "modern") as agent:
                assert await agent.call("echo", text="hi") == "hi"
                await agent.call("write", text="x")
        assert [asked["scope"] for asked in person.asked] == ["mcp:use", "mcp:use files:write"]


async def test_h5_nor_can_the_typescript_client(home: Path) -> None:
    """The call alone fails."""
    calls = [("echo", "hi"), ("write", "x"), ("echo", "still")]
    async with behind_a_ceiling() as (target, issuer):
        outcome = await led(home, target, issuer, sdk=2, grant="code", era="modern", calls=calls)
    assert [asked["scope"] for asked in outcome.asked] == ["mcp:use", "mcp:use files:write"]
    hi, failure, still = outcome.results
    assert (hi, failure["code"], still) == ("hi", "invalid_scope", "still")


async def test_h5_whoever_asks_everybody_for_all_scopes_at_once_needs_no_step_up() -> None:
    """The way out: what tools need is among the base scopes."""
    async with behind_a_ceiling("mcp:use", "files:write") as (target, issuer):
        person = Person(issuer)
        async with connected(target.url, by_code(target.url, person), "modern") as agent:
            assert await agent.call("write", text="x") == "wrote x"
        assert [asked["scope"] for asked in person.asked] == ["mcp:use files:write"]
