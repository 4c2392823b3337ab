"""On the page of each authorization server: its configuration reads its example tokens as the table says, and is the
same in Python. What such a server really issues nobody can test here; that what the page shows is taken, we can.
"""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.gateway.config import Config, load
from mcp_middleware.resource_server import Issuer
from mcp_middleware.resource_server.claims import identity_of
from mcp_middleware.resource_server.tokens import check_claims, check_header
from tests.docs.blocks import ROOT, Block, blocks_of
from tests.support import SESSION_KEY

PROVIDERS = ("keycloak", "auth0", "entra", "okta", "cognito", "google")
PAGES = [ROOT / "docs" / "authentication" / f"{name}.md" for name in PROVIDERS]
TOKENS = [block for page in PAGES for block in blocks_of(page) if block.title in ("person.json", "machine.json")]

RESOURCE = "https://mcp.example.com/files/mcp"
LATER = 60
"""Seconds after its issue that a token is looked at."""


def block(page: Path, title: str) -> Block:
    return next(block for block in blocks_of(page) if block.title == title)


def configuration(page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("SESSION_KEY", SESSION_KEY)
    file = directory / "gateway.yaml"
    file.write_text(block(page, "gateway.yaml").code)
    return load(file)


def told(page: Path, title: str) -> list[list[str]]:
    """What the page's table says of a token: agent, subject, scopes, roles, each as the words in its cell."""
    row = next(line for line in page.read_text().splitlines() if line.startswith(f"| `{title}` |"))
    cells = re.split(r"(?<!\\)\|", row.strip("|"))[1:]
    return [[word.replace("\\|", "|") for word in re.findall(r"`([^`]+)`", cell)] for cell in cells]


def options(issuer: Issuer) -> dict[str, Any]:
    """The options of an issuer; lists and tuples are alike."""
    values = {field.name: getattr(issuer, field.name) for field in fields(issuer)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize("token", TOKENS, ids=[block.name for block in TOKENS])
def test_the_configuration_reads_the_example_token(
    token: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(token.page, tmp_path, monkeypatch)
    assert config.auth is not None
    [issuer] = config.auth.issuers
    example: dict[str, Any] = json.loads(token.code)
    claims = example["claims"]
    assert token.title is not None

    check_header(example["header"], issuer)
    check_claims(claims, issuer, resource=RESOURCE, now=claims["iat"] + LATER, leeway=0)
    identity = identity_of(claims, issuer.mapping)

    agent, subject, scopes, roles = told(token.page, token.title)
    assert ([identity.client], [identity.subject]) == (agent, subject)
    assert (identity.scopes, sorted(identity.roles)) == (scopes, sorted(roles))


@pytest.mark.parametrize("token", TOKENS, ids=[block.name for block in TOKENS])
def test_the_example_token_has_what_every_request_needs(
    token: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = configuration(token.page, tmp_path, monkeypatch).auth
    assert auth is not None
    scopes = set(identity_of(json.loads(token.code)["claims"], auth.issuers[0].mapping).scopes)
    implied = {value for scope in scopes for value in auth.implied_scopes.get(scope, ())}
    assert set(auth.scopes) <= scopes | implied


@pytest.mark.parametrize("page", PAGES, ids=PROVIDERS)
def test_the_issuer_is_the_same_in_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(page, tmp_path, monkeypatch)
    namespace: dict[str, Any] = {}
    exec(block(page, "issuer.py").code, namespace)  # noqa: S102 - it is our own documentation
    assert config.auth is not None
    [issuer] = config.auth.issuers
    assert options(issuer) == options(namespace["ISSUER"])


@pytest.mark.parametrize("page", PAGES, ids=PROVIDERS)
def test_a_page_says_that_it_was_not_tried(page: Path) -> None:
    assert "**Not verified against a " in page.read_text().replace("\n", " ")


def test_no_page_is_without_a_token() -> None:
    assert {block.page.stem for block in TOKENS} == set(PROVIDERS)
