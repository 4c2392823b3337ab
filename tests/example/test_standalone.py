"""The standalone example: what users copy is good, the library serves, and the deployment loses no call."""

import os
import re
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from examples.standalone.library import create
from mcp_middleware.gateway.config import load
from tests.authorization_server.running import running
from tests.support import children_of, post, serve

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "standalone"
COMMAND = [sys.executable, "-m", "examples.standalone"]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "default"}
VARIABLES = {
    "LISTEN": "127.0.0.1:8080",
    "PUBLIC_URL": "https://mcp.example.com",
    "SEARCH": "http://127.0.0.1:9001/mcp",
    "FILES_1": "http://127.0.0.1:9002/mcp",
    "FILES_2": "http://127.0.0.1:9003/mcp",
    "FILES_KEY": "secret",
    "ISSUER": "https://login.example.com",
    "SESSION_KEY": "ypRt5eR3K0VjZDDHrbOEhtOTfl1G3RpCU1kEdoLNhPE=",
}


def test_the_file_to_copy_is_good_and_names_every_variable(tmp_path: Path) -> None:
    config = load(EXAMPLE / "gateway.yaml", environ=VARIABLES | {"AUDIT": str(tmp_path / "audit.db")})
    assert not config.warnings
    assert sorted(config.servers) == ["files", "search"]
    assert all(policy is not None for policy in config.policies.values())


async def test_the_library_serves_the_gateway_beside_other_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = {"host": "mcp.example.com"}
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(running(resources=["https://mcp.example.com/files/mcp"]))
        for name, value in (VARIABLES | {"AUDIT": str(tmp_path / "audit.db"), "ISSUER": issuer.issuer}).items():
            monkeypatch.setenv(name, value)
        origin = await stack.enter_async_context(serve(create()))
        http = await stack.enter_async_context(httpx2.AsyncClient())
        assert (await http.get(origin)).text.splitlines()[0] == "https://mcp.example.com/search/mcp"
        assert (await http.get(f"{origin}/readyz")).json()["status"] == "ready"
        document = await http.get(f"{origin}/.well-known/oauth-protected-resource/files/mcp", headers=public)
        assert document.json()["resource"] == "https://mcp.example.com/files/mcp"
        assert (await post(http, f"{origin}/files/mcp", "tools/list", headers=public)).status_code == 401


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_rolling_deployment_fails_no_call() -> None:
    ended = subprocess.run(COMMAND, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("is back") == 2
    tallies = re.findall(r"^  (\S+) +\S+ +(\d+) calls, 0 failed, by (.*)$", ended.stdout, re.MULTILINE)
    assert [name for name, _, _ in tallies] == ["assistant", "batch-1"]
    assert re.fullmatch(r"files-[12]", tallies[0][2]), "the session stayed with its instance"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_signal_ends_all_of_it() -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        assert "Two replicas" in running.stdout.readline()
        children = children_of(running.pid)
        assert len(children) == 6
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=60)[0]
    assert running.returncode == 1
    assert "it was ended" in said
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
