from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.credentials.issuer import TokenIssuer
from tests.support import serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for this folder, so that one server serves all tests of a file."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


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
