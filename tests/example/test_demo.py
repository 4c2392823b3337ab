"""The example as a newcomer meets it: one command, real processes, a story, and the audit trail it leaves."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider

from examples.fastapi_app.agent import TokenMemory
from tests.support import answer_of, post

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.fastapi_app"]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "default"}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def output() -> str:
    """What the command prints."""
    ended = subprocess.run(COMMAND, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def lines_of(output: str, kind: str) -> list[str]:
    """The story's lines of one kind, without the kind."""
    return [line[2:].removeprefix(kind).strip() for line in output.splitlines() if line.startswith(f"  {kind} ")]


def test_the_story_has_calls_of_every_fate(output: str) -> None:
    assert "SURPRISE" not in output
    allowed, denied = " ".join(lines_of(output, "allowed")), lines_of(output, "denied")
    for tool in ("read_file", "search_notes", "add_note", "delete_file"):
        assert tool in allowed
    assert "noted by reporter" in allowed, "the SDK's tool knows its caller"
    assert "draft.txt deleted by archivist" in allowed, "and so does FastMCP's"
    assert [line.split()[0] for line in denied] == ["delete_file", "no_such_tool", "its", "purge_notes", "purge_files"]
    assert len(lines_of(output, "limited")) == 1
    assert re.search(r"allowed +search_notes, \d+\.\d s later", output), "waiting as long as told is enough"


def test_the_story_shows_both_eras_and_both_kinds_of_credentials(output: str) -> None:
    for text in ("2025-11-25", "2026-07-28", "client_secret_basic", "private_key_jwt"):
        assert text in output


def test_a_hidden_tool_reads_like_an_unknown_one(output: str) -> None:
    hidden, unknown = (re.split(r" {2,}", line)[-1] for line in lines_of(output, "denied")[:2])
    assert hidden.replace("delete_file", "no_such_tool") == unknown


def test_the_client_obtains_the_missing_scope(output: str) -> None:
    [step_up] = lines_of(output, "step-up")
    assert step_up.startswith("mcp:use files:read")
    assert all(line.startswith("mcp:use ") for line in lines_of(output, "token"))


def test_the_audit_trail_has_the_same_story(output: str) -> None:
    trail = output.partition("The audit trail")[2]
    for decision in ("allowed", "denied", "limited", "unauthenticated"):
        assert decision in trail
    for what in ("reporter", "archivist", "delete_file", "purge_files", "search_notes"):
        assert what in trail


@pytest.fixture
def served() -> Iterator[dict[str, str]]:
    """The servers left up by ``--serve``: the URLs and the credentials it prints; ended by Ctrl-C."""
    with subprocess.Popen(
        [*COMMAND, "--serve"], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        said = {}
        for line in running.stdout or ():
            words = line.split()
            if len(words) > 1 and words[0] in ("files", "notes", "issuer"):
                said[words[0]] = words[1]
            if "client_secret" in words:
                said["secret"] = words[-1]
                break
        try:
            yield said
        finally:
            running.send_signal(signal.SIGINT)
            rest = running.communicate(timeout=30)[0]
    assert running.returncode == 0, rest
    assert "The audit trail" in rest


async def patiently(http: httpx2.AsyncClient, url: str, tool: str, arguments: dict[str, str]) -> dict[str, Any]:
    """Call a tool; the story has used up the agent's requests, so come back as late as told, and not later."""
    for _ in range(10):
        reply = await post(http, url, "tools/call", {"name": tool, "arguments": arguments})
        if reply.status_code != 429:
            break
        await asyncio.sleep(float(reply.headers["retry-after"]))
    return answer_of(reply)


@pytest.mark.slow
async def test_what_is_left_up_serves_any_client(served: dict[str, str]) -> None:
    files, issuer = served["files"], served["issuer"]
    async with httpx2.AsyncClient() as http:
        origin = files.removesuffix("/files/mcp")
        for name in ("files", "notes"):
            document = (await http.get(f"{origin}/.well-known/oauth-protected-resource/{name}/mcp")).json()
            assert document["resource"] == served[name]
            assert document["authorization_servers"] == [issuer]
        refused = await post(http, files, "tools/list")
        assert refused.status_code == 401
        assert f"{origin}/.well-known/oauth-protected-resource/files/mcp" in refused.headers["www-authenticate"]
        assert "error" in answer_of(refused)
    provider = ClientCredentialsOAuthProvider(files, TokenMemory(), "reporter", served["secret"], issuer=issuer)
    async with httpx2.AsyncClient(auth=provider) as http:
        answer = await patiently(http, files, "read_file", {"name": "agenda.txt"})
        assert "Tuesday" in answer["result"]["content"][0]["text"]
