from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from mcp_middleware.testing import FakeClock
from tests.credentials.grants import Made
from tests.credentials.issuer import TokenIssuer
from tests.support import serve


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def issuer_server() -> AsyncIterator[TokenIssuer]:
    issuer = TokenIssuer()
    async with serve(issuer.app) as issuer.url:
        yield issuer


@pytest.fixture
def issuer(issuer_server: TokenIssuer) -> Iterator[TokenIssuer]:
    issuer_server.reset()
    yield issuer_server
    issuer_server.open.set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture(loop_scope="session")
async def make(issuer: TokenIssuer, clock: FakeClock) -> AsyncIterator[Made]:
    made = Made(issuer, clock)
    yield made
    issuer.open.set()
    for credential in made.open:
        await credential.aclose()
