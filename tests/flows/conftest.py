from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests import npm
from tests.authorization_server.running import RunningServer
from tests.flows.site import Site, serve_site
from tests.flows.targets import Target, targets

TYPESCRIPT: Final = ("@modelcontextprotocol/sdk@1.32.2", "@modelcontextprotocol/client@2.4.0")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with serve_site(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(
    tmp_path_factory: pytest.TempPathFactory, site: Site
) -> AsyncIterator[tuple[RunningServer, dict[str, Target]]]:
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(site.certificate))  # what is made now trusts the site
            made = await stack.enter_async_context(targets(tmp_path_factory.mktemp("flows")))
        yield made


@pytest.fixture
def issuer(world: tuple[RunningServer, dict[str, Target]]) -> Iterator[RunningServer]:
    server = world[0]
    server.counts.clear()
    lifetime = server.server.lifetime
    yield server
    server.server.lifetime = lifetime


@pytest.fixture(scope="session")
def home() -> Path:
    """Where the TypeScript clients are."""
    try:
        return npm.install("typescript-sdk-1.32.2-client-2.4.0", TYPESCRIPT)
    except npm.UnavailableError as error:
        pytest.skip(str(error))


def _one_of(*names: str) -> Any:
    @pytest_asyncio.fixture(params=names, loop_scope="session")
    async def one(request: pytest.FixtureRequest, world: tuple[RunningServer, dict[str, Target]]) -> Target:
        found = world[1][request.param]
        await found.forget()
        return found

    return one


target = _one_of("in-process", "gateway")
opaque_target = _one_of("in-process, opaque", "gateway, opaque")
any_target = _one_of("in-process", "gateway", "in-process, opaque", "gateway, opaque")
