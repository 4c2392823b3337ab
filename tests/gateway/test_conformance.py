"""The official conformance suite through the gateway, with a bearer token and everything on."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from mcp_middleware.audit import AuditFilter
from mcp_middleware.audit.query import AuditTrail
from tests.conformance import fixture
from tests.conformance.suite import EXPECTED, install
from tests.npm import UnavailableError
from tests.support import post, serve

from .gateways import CI, gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("wire", EXPECTED)
async def test_the_official_suite_passes_through_the_gateway(wire: str, tmp_path: Path) -> None:
    try:
        suite = await asyncio.to_thread(install)
    except UnavailableError as error:
        pytest.skip(str(error))
    async with serve(fixture.build()) as upstream, gateway(tmp_path, {"files": upstream + fixture.PATH}) as running:
        async with httpx2.AsyncClient() as http:
            unknown = await post(http, running.url(), "tools/list")
        outcome = await suite.run(running.url(), wire, token=running.token())
    assert unknown.status_code == 401, "nobody gets through without a token"
    assert outcome.complete, f"{outcome.output}\n{outcome}"
    records = list(AuditTrail(running.audit).read(AuditFilter(agent=CI.client_id, decision="allowed")))
    assert len(records) > EXPECTED[wire] / 4, "and the suite passed through it"
    assert {record.server for record in records} == {"files"}
