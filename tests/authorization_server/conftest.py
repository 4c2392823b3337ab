"""One running server a test: nothing of one is left to the next."""

from collections.abc import AsyncIterator

import pytest

from tests.authorization_server.flows import FILES, MAIL
from tests.authorization_server.running import RunningServer, running


@pytest.fixture
async def issuer() -> AsyncIterator[RunningServer]:
    """For two resources."""
    async with running(resources=[FILES, MAIL]) as server:
        yield server
