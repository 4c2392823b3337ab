"""Hostile callers of a whole gateway."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.gateway.client import UpstreamClient
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.gateway.sections.servers import ServerConfig
from mcp_middleware.gateway.upstream import MAX_TASK_NAME, Upstream
from tests.support import SESSION_KEY, free_port, headers_for, initialize, message, post

from .gateways import ECHO, sections
from .processes import configured
from .test_cases import recorded
from .test_gateway import before


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_case_9_without_authentication_a_metadata_path_is_no_second_way_in(method: str, tmp_path: Path) -> None:
    async with recorded(tmp_path, auth="off", access=None) as (running, recorder):
        for path in ("/.well-known/oauth-protected-resource/files/mcp", "/.well-known/oauth-protected-resource"):
            body = message("tools/call", ECHO) if method == "POST" else None
            response = await running.http.request(method, running.origin + path, json=body, headers=headers_for(body))
            assert response.status_code == 404
        assert not recorder.bodies


async def test_what_an_agent_has_open_is_counted_over_a_reload(tmp_path: Path) -> None:
    async with before(tmp_path, connections_per_agent=1) as running:
        token = running.token()
        session = await initialize(running.http, running.url(), token=token)
        headers = headers_for(era="legacy", token=token, session=session)
        url = {"url": running.app.config.servers["files"].instances[0]}
        issuer = running.issuer.issuer
        same: dict[str, Any] = sections({"files": url}, origin=running.origin, issuer=issuer, trail=running.audit)
        async with running.http.stream("GET", running.url(), headers=headers) as stream:
            assert stream.status_code == 200
            await running.app.reload(from_mapping(same | {"connections_per_agent": 1}))
            assert (await post(running.http, running.url(), "tools/call", ECHO, token=token)).status_code == 429
            await running.app.reload(from_mapping(same | {"connections_per_agent": 2}))
            assert (await post(running.http, running.url(), "tools/call", ECHO, token=token)).status_code == 200


def test_case_26_a_task_with_an_endless_name_is_not_remembered() -> None:
    upstream = Upstream(ServerConfig(name="files", instances=("http://a.example/mcp",)), UpstreamClient())
    for name, remembered in (("t" * MAX_TASK_NAME, "a"), ("t" * (MAX_TASK_NAME + 1), None)):
        upstream.remember_task(name, "a")
        assert upstream.task_instance(name) == remembered


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("content-type", ("application/json", "text/plain")),
        ("content-type", ("application/json", "application/json; charset=utf-16")),
        ("content-encoding", ("identity", "gzip")),
    ],
)
async def test_case_14_a_body_that_is_said_to_be_two_things_is_refused(
    name: str, values: tuple[str, str], tmp_path: Path
) -> None:
    async with recorded(tmp_path) as (running, recorder):
        body = message("tools/call", ECHO)
        headers = headers_for(body, token=running.token())
        if name == "content-type":
            del headers[name]
        lines = [*headers.items(), *((name, value) for value in values)]
        response = await running.http.post(running.url(), content=json.dumps(body), headers=lines)
        assert response.status_code == 415
        assert not recorder.bodies
        assert (await post(running.http, running.url(), "tools/call", ECHO, token=running.token())).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_certificate_that_is_none_is_said_in_one_line(workers: int, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM")
    file = tmp_path / "gateway.yaml"
    written = configured(
        {"files": "http://127.0.0.1:9"},
        free_port(),
        workers=workers,
        sessions={"per_agent": "off", "keys": [SESSION_KEY]},
    )
    file.write_text(json.dumps(written | {"tls": {"cert": "cert.pem", "key": "key.pem"}}))
    command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "tls.cert is" in ended.stderr
    assert "Traceback" not in ended.stderr
