"""The official conformance suite, all of it, on both wires."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from mcp_middleware.audit import AuditFilter, AuditTrail
from tests.conformance import fixture
from tests.conformance.stack import SUITE, governed
from tests.conformance.suite import EXPECTED, Suite, install
from tests.npm import UnavailableError
from tests.support import post, serve

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
        async with httpx2.AsyncClient() as http:
            unknown = await post(http, stack.url, "tools/list")
        outcome = await suite.run(stack.url, wire, token=stack.token)
    assert unknown.status_code == 401, "nobody gets past the stack without a token"
    assert outcome.complete, f"{outcome.output}\n{outcome}"
    of_suite = AuditFilter(agent=SUITE.client_id, decision="allowed")
    records = list(AuditTrail(stack.audit).read(of_suite))
    assert len(records) > EXPECTED[wire] / 4, "and the suite passed through it"
    assert any(record.session for record in records) == (wire == "2025-11-25")
