"""The official conformance suite, all of it, on both wires."""

import asyncio
from pathlib import Path

import pytest

from tests.conformance import fixture
from tests.conformance.stack import governed
from tests.conformance.suite import EXPECTED, Suite, UnavailableError, install
from tests.support import serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
async def suite() -> Suite:
    try:
        return await asyncio.to_thread(install)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("wire", EXPECTED)
async def test_fixture_alone_passes(suite: Suite, wire: str) -> None:
    """What the stack is measured against: the fixture leaves nothing to be desired by itself.

    With h11, which strips the blanks around a header's value; httptools leaves that to the app.
    """
    async with serve(fixture.build(), http="h11") as origin:
        outcome = await suite.run(origin + fixture.PATH, wire)
    assert outcome.complete, f"{outcome.output}\n{outcome}"


@pytest.mark.parametrize("wire", EXPECTED)
async def test_whole_stack_passes(suite: Suite, wire: str, tmp_path: Path) -> None:
    """Six members in front lose not one check."""
    async with governed(tmp_path) as stack:
        outcome = await suite.run(stack.url, wire, token=stack.token)
    assert outcome.complete, f"{outcome.output}\n{outcome}"
