from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.resource_server.issuer import LoopbackIssuer
from tests.support import serve


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def issuer_server() -> AsyncIterator[LoopbackIssuer]:
    issuer = LoopbackIssuer()
    async with serve(issuer.app) as issuer.url:
        yield issuer


@pytest.fixture
def issuer(issuer_server: LoopbackIssuer) -> Iterator[LoopbackIssuer]:
    yield issuer_server
    issuer_server.open.set()
    issuer_server.reset()
