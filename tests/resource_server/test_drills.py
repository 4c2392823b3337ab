"""Rotation, outage and revocation, drilled with a whole authorization server: ``examples/authorization_server``."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.resource_server import (
    ClientSecret,
    Introspection,
    Issuer,
    IssuersVerifier,
    IssuerUnavailableError,
    PrivateKeyJWT,
)
from mcp_middleware.testing import FakeClock
from tests.authorization_server.running import Credentials, RunningServer, running
from tests.resource_server.issuer import RESOURCE

OTHER = "https://files.example.com/other"


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[RunningServer]:
    async with running(resources=[RESOURCE, OTHER]) as started:
        yield started


@pytest.fixture
def agent(server: RunningServer) -> Credentials:
    return server.add_client("agent")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture(loop_scope="session")
async def by_keys(server: RunningServer, clock: FakeClock) -> AsyncIterator[IssuersVerifier]:
    verifier = IssuersVerifier(resource=RESOURCE, issuers=[server.issuer], monotonic=clock)
    await verifier.start()
    yield verifier
    await verifier.aclose()


@pytest_asyncio.fixture(loop_scope="session", params=["secret", "key"])
async def by_asking(
    server: RunningServer, clock: FakeClock, request: pytest.FixtureRequest
) -> AsyncIterator[IssuersVerifier]:
    server.form = "opaque"
    gateway = server.add_client("gateway", key=request.param == "key", serves=[RESOURCE])
    proof = (
        PrivateKeyJWT("gateway", gateway.private_key)
        if gateway.private_key is not None
        else ClientSecret("gateway", gateway.secret or "")
    )
    issuer = Issuer(server.issuer, introspection=Introspection(proof))
    verifier = IssuersVerifier(resource=RESOURCE, issuers=[issuer], monotonic=clock)
    await verifier.start()
    yield verifier
    await verifier.aclose()


async def test_case_42_keys_are_rotated_and_no_good_token_is_refused(
    server: RunningServer, agent: Credentials, clock: FakeClock, by_keys: IssuersVerifier
) -> None:
    tokens = [await server.token(agent, RESOURCE)]
    for _ in range(4):
        server.rotate_keys()
        tokens.append(await server.token(agent, RESOURCE))
        for token in reversed(tokens):
            found = await by_keys.verify_token(token)
            assert found is not None
            assert (found.client_id, found.subject) == ("agent", "agent")
    server.remove_old_keys()
    clock.advance(450)  # when the keys are fetched again in the background
    assert by_keys.recall(f"Bearer {tokens[-1]}".encode()) is not None
    await asyncio.wait({task for task in asyncio.all_tasks() if task.get_name().startswith("keys of")})
    for token in tokens[:-1]:
        assert await by_keys.verify_token(token) is None, "its key was withdrawn"
    assert await by_keys.verify_token(tokens[-1]) is not None


async def test_case_42_the_issuer_of_the_keys_goes_down_and_comes_back(
    server: RunningServer, agent: Credentials, clock: FakeClock, by_keys: IssuersVerifier
) -> None:
    known, new, last = [await server.token(agent, RESOURCE) for _ in range(3)]
    assert await by_keys.verify_token(known) is not None
    await server.down()
    clock.advance(4199)
    assert await by_keys.verify_token(known) is not None
    assert await by_keys.verify_token(new) is not None
    clock.advance(1)
    for token in (known, new, last):
        with pytest.raises(IssuerUnavailableError):
            await by_keys.verify_token(token)
    await server.up()
    clock.advance(10)
    for token in (known, new, last):
        assert await by_keys.verify_token(token) is not None


async def test_case_7_a_revoked_token_is_refused_within_half_a_minute(
    server: RunningServer, agent: Credentials, clock: FakeClock, by_asking: IssuersVerifier
) -> None:
    token = await server.token(agent, RESOURCE)
    found = await by_asking.verify_token(token)
    assert found is not None
    assert found.principal.key == (server.issuer, "agent", "agent")
    server.revoke(token)
    clock.advance(30)
    assert await by_asking.verify_token(token) is None


async def test_case_42_the_issuer_that_is_asked_goes_down_and_comes_back(
    server: RunningServer, agent: Credentials, clock: FakeClock, by_asking: IssuersVerifier
) -> None:
    known, new = [await server.token(agent, RESOURCE) for _ in range(2)]
    assert await by_asking.verify_token(known) is not None
    await server.down()
    clock.advance(29)
    assert await by_asking.verify_token(known) is not None
    clock.advance(1)
    for token in (known, new):
        with pytest.raises(IssuerUnavailableError):
            await by_asking.verify_token(token)
    await server.up()
    clock.advance(1)
    for token in (known, new):
        assert await by_asking.verify_token(token) is not None


async def test_case_4_a_token_for_another_resource_is_refused_either_way(
    server: RunningServer, agent: Credentials, by_keys: IssuersVerifier
) -> None:
    assert await by_keys.verify_token(await server.token(agent, OTHER)) is None
    server.form = "opaque"
    gateway = server.add_client("gateway-2")
    issuer = Issuer(server.issuer, introspection=Introspection(ClientSecret("gateway-2", gateway.secret or "")))
    verifier = IssuersVerifier(resource=RESOURCE, issuers=[issuer])
    assert await verifier.verify_token(await server.token(agent, OTHER)) is None
    assert await verifier.verify_token(await server.token(agent, RESOURCE)) is not None
    await verifier.aclose()


async def test_a_client_with_a_wrong_secret_is_refused_at_the_start(server: RunningServer) -> None:
    server.add_client("gateway-3")
    issuer = Issuer(server.issuer, introspection=Introspection(ClientSecret("gateway-3", "wrong")))
    verifier = IssuersVerifier(resource=RESOURCE, issuers=[issuer])
    with pytest.raises(ConfigurationError, match=r"answered 401 .*invalid_client.* client_id 'gateway-3'"):
        await verifier.start()
    await verifier.aclose()
