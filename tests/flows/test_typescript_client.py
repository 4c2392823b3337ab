"""The flows of the official TypeScript clients, from nothing but the URL of the MCP server.

What they do, as the tests read it off the wire:

``@modelcontextprotocol/client`` 2.4
    On 401 it reads both metadata documents, and gets a token for the scopes of the challenge; with a code flow it
    registers first. On 403 ``insufficient_scope`` it asks for what it has and what the challenge names together, once.
``@modelcontextprotocol/sdk`` 1.32
    The same on 401. On 403 it asks for the scopes of the challenge alone, unless it has a refresh token: then it uses
    that, comes back with the scopes it had, and gives up. A machine passes over what challenges name: each time it
    asks for the scopes that it was made with, or for none.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from mcp_middleware.types import Era
from tests import npm
from tests.authorization_server.running import Credentials, RunningServer
from tests.flows.targets import Target
from tests.support import each_era

CALLBACK: Final = "http://127.0.0.1:33418/callback"
SCRIPT: Final = Path(__file__).with_name("client.mjs")
PATIENCE: Final = 60.0

Grant = Literal["code", "secret", "assertion"]

CALLS: Final = [("echo", "hi"), ("write", "x"), ("write", "y"), ("echo", "still")]


@dataclass
class Outcome:
    results: list[Any]
    fetches: list[dict[str, Any]]
    asked: list[dict[str, str]]
    """What the person was asked for, each time."""

    def forms(self) -> list[dict[str, str]]:
        return [only(fetch["body"]) for fetch in self.fetches if urlsplit(fetch["url"]).path == "/token"]

    def count(self, path: str) -> int:
        return sum(urlsplit(fetch["url"]).path == path for fetch in self.fetches)

    def statuses(self, url: str) -> list[int]:
        return [fetch["status"] for fetch in self.fetches if fetch["url"] == url and fetch["method"] == "POST"]


def only(query: str) -> dict[str, str]:
    parsed = parse_qs(query, strict_parsing=True)
    assert all(len(values) == 1 for values in parsed.values())
    return {name: values[0] for name, values in parsed.items()}


async def led(
    home: Path,
    target: Target,
    issuer: RunningServer,
    *,
    sdk: int,
    grant: Grant,
    era: Era = "legacy",
    refresh: bool = True,
    scope: str | None = None,
    allowed: Sequence[str] | None = None,
    calls: Sequence[tuple[str, str]] = CALLS,
) -> Outcome:
    agent = Credentials("") if grant == "code" else issuer.add_client(key=grant == "assertion", scopes=allowed)
    options = {
        "sdk": sdk,
        "era": era,
        "url": target.url,
        "issuer": issuer.issuer,
        "grant": grant,
        "clientId": agent.client_id,
        "secret": agent.secret,
        "key": agent.private_key,
        "refresh": refresh,
        **({} if scope is None else {"scope": scope}),
        "callback": CALLBACK,
        "calls": calls,
    }
    process = await asyncio.create_subprocess_exec(
        str(npm.node_of(home)),
        *(str(SCRIPT), str(home), json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1024 * 1024,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked: list[dict[str, str]] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                said = json.loads(await process.stdout.readline())
                if "done" in said:
                    return Outcome(**said["done"], asked=asked)
                asked.append(only(urlsplit(said["open"]).query))
                process.stdin.write((await issuer.approve(said["open"])).encode() + b"\n")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


EVERYTHING: Final = ["hi", "wrote x", "wrote y", "still"]
GIVEN_UP: Final = {
    "error": "StreamableHTTPError",
    "message": "Streamable HTTP error: Server returned 403 after trying upscoping",
    "code": 403,
}


async def refused_for_scopes(target: Target) -> list[str | None]:
    return [record.target for record in await target.records() if record.reason == "insufficient_scope"]


@each_era
async def test_code_with_pkce_and_registration_then_a_step_up(
    home: Path, target: Target, issuer: RunningServer, era: Era
) -> None:
    outcome = await led(home, target, issuer, sdk=2, grant="code", era=era)
    assert outcome.results == EVERYTHING
    assert [asked["scope"] for asked in outcome.asked] == ["mcp:use", "mcp:use files:write"]
    assert {(asked["resource"], asked["code_challenge_method"]) for asked in outcome.asked} == {(target.url, "S256")}
    assert outcome.count("/register") == 1
    assert [(form["grant_type"], form["resource"]) for form in outcome.forms()] == [
        ("authorization_code", target.url)
    ] * 2
    assert (outcome.statuses(target.url).count(401), outcome.statuses(target.url).count(403)) == (1, 1)
    assert await refused_for_scopes(target) == ["write"]


@pytest.mark.parametrize(("grant", "era"), [("secret", "modern"), ("assertion", "legacy")])
async def test_a_machine_gets_a_token_then_steps_up(
    home: Path, target: Target, issuer: RunningServer, grant: Grant, era: Era
) -> None:
    """H1, H2."""
    outcome = await led(home, target, issuer, sdk=2, grant=grant, era=era)
    assert outcome.results == EVERYTHING
    assert [(form["grant_type"], form["scope"], form["resource"]) for form in outcome.forms()] == [
        ("client_credentials", "mcp:use", target.url),
        ("client_credentials", "mcp:use files:write", target.url),
    ]
    assert await refused_for_scopes(target) == ["write"]


async def test_the_client_of_before_steps_up_where_it_has_no_refresh_token(
    home: Path, target: Target, issuer: RunningServer
) -> None:
    """It asks for the scopes of the challenge and for no others, so these have to name those that are met."""
    outcome = await led(home, target, issuer, sdk=1, grant="code", refresh=False)
    assert outcome.results == EVERYTHING
    assert [asked["scope"] for asked in outcome.asked] == ["mcp:use", "mcp:use files:write"]
    assert await refused_for_scopes(target) == ["write"]


async def test_the_client_of_before_refreshes_where_it_can_and_then_gives_up(
    home: Path, target: Target, issuer: RunningServer
) -> None:
    """Its fault: a refreshed token has the scopes of the one before. What it was granted goes on working."""
    outcome = await led(home, target, issuer, sdk=1, grant="code", refresh=True)
    assert outcome.results == ["hi", GIVEN_UP, GIVEN_UP, "still"]
    assert [form["grant_type"] for form in outcome.forms()] == ["authorization_code", "refresh_token"]
    assert await refused_for_scopes(target) == ["write"] * 3


async def test_the_client_of_before_asks_for_no_scope_where_it_is_a_machine(
    home: Path, target: Target, issuer: RunningServer
) -> None:
    """It passes the challenge over; the issuer gives it what it gives a client that asks for nothing: here, all."""
    outcome = await led(home, target, issuer, sdk=1, grant="secret")
    assert outcome.results == EVERYTHING
    assert ["scope" in form for form in outcome.forms()] == [False]
    assert await refused_for_scopes(target) == []


async def test_the_client_of_before_asks_for_no_scope_after_a_403_either_where_it_is_a_machine(
    home: Path, target: Target, issuer: RunningServer
) -> None:
    """So it has no step-up: what the issuer does not give by default it never gets."""
    outcome = await led(home, target, issuer, sdk=1, grant="secret", allowed=["mcp:use"])
    assert outcome.results == ["hi", GIVEN_UP, GIVEN_UP, "still"]
    assert ["scope" in form for form in outcome.forms()] == [False, False]


async def test_a_machine_with_the_client_of_before_asks_for_the_scopes_that_it_was_made_with(
    home: Path, target: Target, issuer: RunningServer
) -> None:
    outcome = await led(home, target, issuer, sdk=1, grant="secret", scope="mcp:use files:write")
    assert outcome.results == EVERYTHING
    assert [form["scope"] for form in outcome.forms()] == ["mcp:use files:write"]
